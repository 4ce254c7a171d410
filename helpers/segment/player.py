"""A written video shown in a notebook: a player, an animated picture, and frames of it."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from helpers.segment.video import Frame, Silent, VideoReader, VideoWriter

PLAYER_BYTES = 6 * 2**20  # of a video within a notebook
SHOWN = 640  # pixels, the width of a player
ANIMATION_BYTES = 600_000  # of an animated picture, before which its frames get fewer


def player(path: Path | str) -> Any:
    """A player that carries the video within itself, so that it plays wherever the notebook is opened; of more than
    `PLAYER_BYTES` a preview, written beside the file: half the size, coarser, and as much of it as fits."""
    from IPython.display import Video

    shown = path = Path(path)
    video = VideoReader(path)
    width, height, length = max(2, video.width // 4 * 2), max(2, video.height // 4 * 2), len(video)
    while shown.stat().st_size > PLAYER_BYTES:
        shown = path.with_name(f"{path.stem}_preview.mp4")
        with VideoWriter(shown, Silent(width, height, max(1, round(video.fps))), quality=32) as writer:
            for frame in itertools.islice(video, length):
                writer.write(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA), frame.index)
        length = max(1, int(0.9 * length * PLAYER_BYTES / shown.stat().st_size))
    width = min(SHOWN, SHOWN * 3 // 4 * video.width // video.height)  # an upright film is no taller than a screen
    options = {"embed": True, "html_attributes": "controls loop muted", "width": width}
    return Video(data=shown.read_bytes(), mimetype="video/mp4", **options)


@dataclass(frozen=True, repr=False)
class AnimatedPicture:
    """An animated WebP as a notebook's output; IPython's own `Image` takes that format in its later versions only."""

    data: bytes

    def __repr__(self) -> str:  # what a log shows
        return f"<animated picture, {len(self.data):,} bytes>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/webp": base64.b64encode(self.data).decode()}


def animation(path: Path | str, width: int = 400) -> AnimatedPicture:
    """An animated picture of the video, which is shown where a player is not: in notebooks that are not trusted yet,
    and on web pages. As many frames, spread over its length, as `ANIMATION_BYTES` hold."""
    video, count = VideoReader(path), 72
    while True:
        buffer, frames = io.BytesIO(), [Image.fromarray(frame.image) for frame in spread_frames(path, count)]
        for frame in frames:
            frame.thumbnail((width, width))
        ms = round(1000 * len(video) / video.fps / len(frames))
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=ms, loop=0, quality=60)
        if buffer.tell() <= ANIMATION_BYTES or count < 4:
            return AnimatedPicture(buffer.getvalue())
        count = int(0.9 * count * ANIMATION_BYTES / buffer.tell())


def spread_frames(path: Path | str, count: int, also: int | None = None) -> list[Frame]:
    """Up to `count` frames of a video, spread evenly over its length, the first and the last among them; the one with
    index `also` in place of the nearest of these."""
    video = VideoReader(path)
    wanted = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    if also is not None:
        wanted[np.abs(wanted - also).argmin()] = also
    return [frame for frame in video if frame.index in wanted]
