"""Videos that are no video file: numbered pictures in a folder, and animated ones; one door for both and for files."""

from __future__ import annotations

import contextlib
import glob
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
from PIL import Image

from helpers.common.files import some
from helpers.common.images import ImageError, expand, is_image, open_image, read_image, to_rgb
from helpers.segment.images import find_images, read_first
from helpers.segment.video import Frame, VideoError, VideoReader

FPS = 25  # of pictures that do not say how long they last
_PAUSE = 100  # ms, which browsers take for a duration of 0
_ANIMATED_BYTES = 2**27  # of frames that are decoded at once on the way back


def open_clip(path: Path | str, out: Path | None = None) -> VideoReader | PictureSequence | Animation:
    """Return the reader of a video file, an animated picture, or a folder or pattern of pictures.

    out: where a run writes; its files are no frames. Raises `FileNotFoundError`, or `VideoError` for what is no video.
    """
    if not str(path).strip():
        raise VideoError("VIDEO_PATH is empty: give a video file, a folder of pictures, or None.")
    path = expand(path)
    if path.is_dir() or (glob.has_magic(str(path)) and not path.exists()):
        return PictureSequence(path, out)
    if path.is_file() and is_image(path):
        kind, count = "", 0
        with contextlib.suppress(Exception), open_image(path) as image:  # else the reader of videos says what it is
            kind, count = image.format, getattr(image, "n_frames", 1)
        if count > 1 and kind in ("WEBP", "AVIF"):
            return Animation(path)
        if kind and (count == 1 or kind not in ("GIF", "PNG")):  # these FFmpeg plays
            takes = "VIDEO_PATH takes a video, a folder of numbered pictures, or a pattern such as frames/*.png"
            raise VideoError(f"{path} is a picture, not a video: give it as IMAGE_PATH. {takes}.")
    return VideoReader(path)


class PictureSequence:
    """The pictures that a folder or a pattern means, in natural order, `FPS` a second: read as they are asked for.

    It has what a `VideoReader` has. The first picture that can be read gives the size, to which others are stretched;
    what cannot be read is left out as if it were not there. `notes` tells of both. Raises `VideoError` where there is
    no picture, or none that can be read.
    """

    aspect, start, sound = Fraction(1), Fraction(0), False
    fps, time_base = float(FPS), Fraction(1, FPS)  # seconds

    def __init__(self, path: Path | str, out: Path | None = None) -> None:
        self.path, self.notes = expand(path), []
        try:
            self._paths = find_images(self.path, out, self.notes)
        except ImageError:
            pattern = f"{glob.escape(str(self.path))}/*" if self.path.is_dir() else str(self.path)
            held = sorted(Path(name).name for name in glob.glob(pattern, recursive=True))  # noqa: PTH207
            found = f"no picture among what is found there: {some(held) or 'nothing'}"
            raise VideoError(f"{path}: {found}. Give VIDEO_PATH a video file, or a folder of pictures.") from None
        try:
            _, first = read_first(self._paths, self.notes)
        except ImageError as error:
            raise VideoError(f"{path}: {error}") from error
        self.height, self.width = first.shape[:2]
        self.notes.append(f"{self.path}: {len(self)} pictures, taken for {self.fps:g} a second")

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while index < len(self._paths):
            if frame := self._read(index):
                yield frame
                index += 1

    def backwards(self, start: int) -> Iterator[Frame]:
        """The frames `start` - 1, ..., 0."""
        return filter(None, map(self._read, range(min(start, len(self)) - 1, -1, -1)))

    def _read(self, index: int) -> Frame | None:
        """The frame in the size of the first; None for one that cannot be read, which is then no longer listed."""
        path = self._paths[index]
        try:
            image = read_image(path)
        except ImageError as error:
            del self._paths[index]
            self.notes.append(f"left out: {error}")
            return None
        if image.shape[:2] != (self.height, self.width):
            image = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA)
            note = f"{self.path}: pictures of other sizes are stretched to the first one's {self.width} x {self.height}"
            self.notes += [] if note in self.notes else [note]
        return Frame(index, index, float(index * self.time_base), image)


class Animation:
    """The frames of an animated WebP or AVIF, by Pillow, each for as long as the file says; transparency is white.

    It has what a `VideoReader` has. The file is decoded once to learn its times, then again whenever it is iterated.
    Raises `VideoError` where there is no frame.
    """

    aspect, start, sound, time_base = Fraction(1), Fraction(0), False, Fraction(1, 1000)

    def __init__(self, path: Path | str) -> None:
        self.path, self.notes = expand(path), []
        durations: list[int] = []  # ms
        with Image.open(self.path) as image:
            self.width, self.height = image.size
            try:
                for index in range(image.n_frames):
                    image.seek(index)
                    image.load()
                    durations.append(round(image.info.get("duration") or 0) or _PAUSE)
            except Exception as error:  # decoders raise more than OSError for a damaged file
                if not durations:
                    raise VideoError(f"{path} holds no frame that can be decoded ({error}). Is it whole?") from error
                self.notes.append(f"{self.path.name} breaks off: it has {len(durations)} of {image.n_frames} frames")
        self._pts = list(itertools.accumulate(durations[:-1], initial=0))
        self.fps = 1000 * len(durations) / sum(durations)

    def __len__(self) -> int:
        return len(self._pts)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames(0, len(self))

    def backwards(self, start: int) -> Iterator[Frame]:
        """The frames `start` - 1, ..., 0, a few at a time, as going back means to decode from the first one on."""
        step = max(1, min(32, _ANIMATED_BYTES // (3 * self.width * self.height)))
        for stop in range(min(start, len(self)), 0, -step):
            yield from reversed(list(self._frames(max(0, stop - step), stop)))

    def _frames(self, start: int, stop: int) -> Iterator[Frame]:
        with Image.open(self.path) as image:
            for index in range(start, stop):
                image.seek(index)
                yield Frame(index, self._pts[index], self._pts[index] / 1000, to_rgb(image, []))
