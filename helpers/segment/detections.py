"""The record that passes between the stages, one object that the text named; and how masks overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask


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


def overlaps(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairwise [n, m] of two lists of masks, bool [H, W]: IoU, intersection over the first mask's area, and over the
    second's; 0 where both, or that one, are empty."""
    if not ones or not others:
        return (np.zeros((len(ones), len(others))),) * 3
    one, other = ([coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in masks] for masks in (ones, others))
    # "crowd" is pycocotools' word for a second mask whose own area does not count
    shares = coco_mask.iou(one, other, [True] * len(other)), coco_mask.iou(other, one, [True] * len(one)).T
    return coco_mask.iou(one, other, [False] * len(other)), *shares


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two bool masks [H, W]; 0 if both are empty."""
    return float(overlaps([one], [other])[0][0, 0])
