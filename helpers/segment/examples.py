"""Pictures and a clip to try q2 on where the user gave none: photos, and scenes of drawn shapes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.common.files import atomic_path
from helpers.segment.video import Silent, VideoWriter
from helpers.shapes.clips import Clip, make_clip
from helpers.shapes.draw import COLOURS
from helpers.shapes.scenes import SCENE_SHAPES, Scene, make_scene

PHOTOS = Path(__file__).resolve().parents[2] / "assets" / "photos"
PHOTO_PROMPT = "a cat. a coffee cup. a spoon. a rocket"
FOLDER_PROMPT = ". ".join(SCENE_SHAPES)
SIZES = ((480, 640), (640, 480), (360, 640), (512, 512), (800, 1000), (240, 320))  # height, width in pixels


def draw_examples(folder: Path | str, seed: int) -> tuple[list[Path], str]:
    """Draw a scene of each of `SIZES` into `folder`; equal seeds give equal pictures. Returns their paths and a prompt
    for the first, which names its objects and one thing that is not there."""
    paths, prompt = [], ""
    for i, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng((seed, 6, i))  # pictures of 6 have little noise for seed 0, and are small as PNG
        scene = make_scene(rng, height, width, objects=(4, 5), min_diameter=min(height, width) / 8)
        prompt = prompt or _prompt(scene)
        path = Path(folder) / f"shapes-{i + 1}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(scene.image).save(temporary)
        paths.append(path)
    return paths, prompt


def _prompt(scene: Scene) -> str:
    """A phrase for each colour in the scene, and before the last one for a colour that is not there."""
    phrases, absent = [], []
    for colour in sorted(COLOURS):
        shapes = [item.shape for item in scene.objects if item.colour == colour]
        article = "the" if not phrases else "an" if colour == "orange" else "a"
        if shapes:
            phrases.append(f"{article} {colour} {shapes[0] if len(shapes) == 1 else 'shape'}")
        else:
            absent.append(f"{colour} cross")
    return ". ".join([*phrases[:-1], absent[0], *phrases[-1:]])


def draw_example_clip(folder: Path, seed: int) -> tuple[Path, str, Clip]:
    """Write a drawn video of three objects into `folder`: one is hidden for a while, one enters late and one leaves.
    Returns its path, a prompt that names all three, and the clip with its true masks."""
    for attempt in itertools.count():
        rng = np.random.default_rng((seed, attempt))
        clip = make_clip(rng, 240, 320, 72, min_diameter=40, occluders=(1, 1), motions=("stay", "enter", "leave"))
        shows = np.array([item.masks.any((1, 2)) for item in clip.objects])  # [object, frame]
        if (~shows[0]).sum() >= 4 and shows[0, [0, -1]].all() and list(shows[1:, 0]) == [False, True] and shows[1, -1]:
            break
    path = Path(folder) / "shapes.mp4"
    with VideoWriter(path, Silent(320, 240, fps=24), quality=20) as writer:
        for i, frame in enumerate(clip.frames):
            writer.write(frame, i)
    return path, ". ".join(f"{item.colour} {item.shape}" for item in clip.objects), clip
