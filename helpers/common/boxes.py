"""The box of a mask."""

import numpy as np


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The extent (x0, y0, x1, y1) in pixels of a mask, bool [H, W], that is not empty; x1 and y1 exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
