"""Pictures to try q2 on where the user gave none: scenes of drawn shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from helpers.checkpoint import atomic_path
from helpers.synthetic import SCENE_SHAPES, make_phrases, make_scene

FOLDER_PROMPT = ". ".join(SCENE_SHAPES)
SIZES = ((480, 640), (640, 480), (360, 640), (512, 512), (800, 1000), (240, 320))  # height, width in pixels
_STREAM = 6  # whose pictures for seed 0 have little noise, and so are small as PNG


def draw_examples(folder: Path | str, seed: int) -> tuple[list[Path], str]:
    """Draw a scene of each of `SIZES` into `folder`; equal seeds give equal pictures.

    Returns their paths and a prompt for the first, which names its objects and one thing that is not there.
    """
    paths, prompt = [], ""
    for i, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng((seed, _STREAM, i))
        scene = make_scene(rng, height, width, objects=(4, 5), min_diameter=min(height, width) / 8)
        prompt = prompt or ". ".join(phrase.text for phrase in make_phrases(rng, scene, present=5, absent=1))
        path = Path(folder) / f"shapes-{i + 1}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(scene.image).save(temporary)
        paths.append(path)
    return paths, prompt
