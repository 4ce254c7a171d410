"""Pictures to try q2 on where the user gave none: scenes of drawn shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from helpers.checkpoint import atomic_path
from helpers.synthetic import make_scene

EXAMPLE_PROMPT = "a red circle. blue square. the star. green heart. yellow triangle. purple cross."
SIZES = ((480, 640), (640, 480), (360, 640), (512, 512), (800, 1000), (240, 320))  # height, width in pixels


def draw_examples(folder: Path | str, seed: int) -> list[Path]:
    """Draw a scene of each of `SIZES` into `folder` and return the paths; equal seeds give equal pictures."""
    paths = []
    for i, (height, width) in enumerate(SIZES):
        scene = make_scene(
            np.random.default_rng((seed, i)), height, width, objects=(4, 5), min_diameter=min(height, width) / 8
        )
        path = Path(folder) / f"shapes-{i + 1}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(scene.image).save(temporary)
        paths.append(path)
    return paths
