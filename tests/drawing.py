"""Shapes drawn for tests and benches."""

import numpy as np

from helpers.shapes.draw import patch


def shape_mask(shape, height, width, cx, cy, size, angle=0.0):
    """How much of each pixel a shape, as `patch` draws it, covers: float32 [height, width]."""
    mask = np.zeros((height, width), np.float32)
    rows, columns, alpha = patch(shape, height, width, cx, cy, size, angle)
    mask[rows, columns] = alpha
    return mask
