"""Inputs of a run of q2, the user's images, video and prompt, or examples; and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.common import distributed
from helpers.common.files import atomic_path
from helpers.common.images import expand
from helpers.segment.examples import FOLDER_PROMPT, PHOTO_PROMPT, PHOTOS, draw_example_clip, draw_examples
from helpers.segment.images import find_images, read_first
from helpers.segment.prompts import parse_phrases
from helpers.segment.sequences import Animation, PictureSequence, open_clip
from helpers.segment.video import VideoReader


@dataclass(frozen=True)
class Settings:
    """Which objects are kept, and how images are worked on; the notebook's parameters of the same names."""

    box_threshold: float = 0.35
    text_threshold: float = 0.25
    clipseg_thr: float = 0.4
    nms_iou: float = 0.7
    max_objects: int = 50
    one_label: bool = False
    redetect_every: int = 6
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "clipseg_thr", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number from 0 to 1")
        for name in ("max_objects", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give at least 1")
        if self.one_label not in (True, False):
            raise ValueError(f"one_label={self.one_label!r}: give True or False")
        if self.redetect_every < 0:
            raise ValueError(f"redetect_every={self.redetect_every!r}: give a number of frames, or 0 for never")


@dataclass(frozen=True)
class Inputs:
    """Images, video, and the phrases to look for in each."""

    images: list[Path]
    first: tuple[Path, np.ndarray]  # the first of them that can be read, uint8 RGB [H, W, 3]
    phrases: list[str]
    root: Path | str  # what the images were found by
    is_folder: bool  # each image gets a folder of its own
    folder_phrases: list[str]
    clip: VideoReader | PictureSequence | Animation | None
    clip_phrases: list[str]


def find_inputs(
    images: str | Path | None, video: str | Path | None, prompt: str | Sequence[str] | None, out: Path
) -> Inputs | None:
    """Find what the parameters name; None where they name neither images nor a video. Without images the first frame of
    the video stands for them. What was passed over is printed."""
    notes: list[str] = []
    if images is not None:
        paths = find_images(images, out, notes)
        is_folder = len(paths) > 1 or paths != [expand(images)]
        # where none is an image, that is told now, not once the models are loaded
        first = read_first(paths, None if is_folder else notes)
    clip = None if video is None else open_clip(video, out)
    if prompt is None and (images is not None or video is not None):
        raise ValueError('TEXT_PROMPT is not set: say what to look for, such as TEXT_PROMPT = "cat. red dog"')
    phrases = None if prompt is None else parse_phrases(prompt)
    main = distributed.is_main()
    if images is not None:
        if main:
            print(*notes, sep="\n", end="\n" if notes else "")
        return Inputs(paths, first, phrases, images, is_folder, phrases, clip, phrases)
    if clip is None:
        return None
    # of several processes one writes, and tells the others
    frame = distributed.broadcast(_save_first_frame(clip, out / "first_frame.png") if main else None)
    return Inputs([frame], read_first([frame]), phrases, frame, False, phrases, clip, phrases)


def find_examples(kind: str, prompt: str | Sequence[str] | None, out: Path, seed: int) -> Inputs:
    """Return something to try the models on: the project's photos, or for the "tiny" kind of models scenes of shapes
    drawn into `out`; and a drawn clip. Prompts of their own are used where none is given."""
    main, folder = distributed.is_main(), out / "examples"
    # of several processes one writes, and tells the others
    clip_path, clip_prompt = distributed.broadcast(draw_example_clip(folder, seed)[:2] if main else None)
    if kind == "tiny":
        paths, first_prompt = distributed.broadcast(draw_examples(folder, seed) if main else None)
        each_prompt, what = FOLDER_PROMPT, f"{len(paths)} pictures and a clip of shapes were drawn in {folder}"
    else:
        paths, folder, first_prompt, each_prompt = sorted(PHOTOS.glob("*.jpg")), PHOTOS, PHOTO_PROMPT, PHOTO_PROMPT
        what = f"the photos in {PHOTOS}, and a clip of shapes drawn in {clip_path.parent}"
    given = None if prompt is None else parse_phrases(prompt)
    first, each, tracked = (given or parse_phrases(text) for text in (first_prompt, each_prompt, clip_prompt))
    print(f"no IMAGE_PATH: {what}")
    return Inputs(paths, read_first(paths), first, folder, True, each, VideoReader(clip_path), tracked)


def _save_first_frame(clip: VideoReader | PictureSequence | Animation, path: Path) -> Path:
    with atomic_path(path) as temporary:
        Image.fromarray(next(iter(clip)).image).save(temporary)
    return path
