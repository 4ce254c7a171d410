"""The record that passes between the stages: one object named by the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Detection:
    """One object. `box` is (x0, y0, x1, y1) in pixels of the image, float, x1 and y1 exclusive.

    `label` is always one of the phrases asked for, `score` the detector's, in [0, 1]; `source` is `"groundingdino"` or
    `"clipseg"`. `mask` is bool [H, W] and `mask_score` SAM's own estimate of its IoU, both `None` before SAM has run.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    source: str
    mask: np.ndarray | None = None
    mask_score: float | None = None
