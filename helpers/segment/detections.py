"""The record that passes between the stages: one object named by the text; and what is measured of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.common.boxes import mask_box


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


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two bool masks [H, W]; 0 if both are empty."""
    return np.count_nonzero(one & other) / max(1, np.count_nonzero(one | other))


def covered(mask: np.ndarray, other: np.ndarray) -> float:
    """Share of a bool mask [H, W] that lies in another one; 0 if it is empty."""
    return np.count_nonzero(mask & other) / max(1, np.count_nonzero(mask))


def overlaps(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of n masks, bool [H, W], with each of m others: `mask_iou`, the share of the one that lies in the other,
    and that of the other in the one, float [n, m]. Only masks whose boxes meet are compared, and only there: many
    objects on a large image take milliseconds."""
    shared = np.zeros((len(ones), len(others)))
    boxes = [[mask_box(mask) if mask.any() else (0, 0, 0, 0) for mask in masks] for masks in (ones, others)]
    for i, j in np.ndindex(*shared.shape):
        (left, top, right, bottom), (x0, y0, x1, y1) = boxes[0][i], boxes[1][j]
        rows, columns = slice(max(top, y0), min(bottom, y1)), slice(max(left, x0), min(right, x1))
        if rows.start < rows.stop and columns.start < columns.stop:
            shared[i, j] = np.count_nonzero(ones[i][rows, columns] & others[j][rows, columns])
    one, other = (np.array([np.count_nonzero(mask) for mask in masks], float) for masks in (ones, others))
    one = one[:, None]
    return shared / np.maximum(1, one + other - shared), shared / np.maximum(1, one), shared / np.maximum(1, other)
