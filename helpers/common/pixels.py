"""Pixels of more than 8 bits as uint8; what has to be known about how that was done goes into `notes`."""

from __future__ import annotations

import numpy as np


def to_uint8(values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Numbers of any type as uint8; NaN is black.

    16 bits keep the high byte, unless the largest number fits into 9 to 14 bits, as those of many cameras do: then it
    is the least such range that becomes 0 … 255. A picture that is merely dark is brightened by that, too, but stays
    one to see something on; one that needs 15 bits is bright enough, and one of up to 255 black or a map of numbers.
    32 bits that 8 or 16 would hold are taken as those. Floats are scaled from the first of 0 … 1, 0 … 255 and 0 … 65535
    that holds them all; what no range holds, from its minimum to its maximum.
    """
    if values.dtype == np.uint8:
        return values
    is_16_bits = values.dtype.kind == "u" and values.dtype.itemsize == 2
    if values.dtype.kind in "iu" and values.min() >= 0:
        bits = int(values.max()).bit_length()
        if 9 <= bits <= 14:
            notes.append(f"only {bits} bits of its numbers are used: 0 … {(1 << bits) - 1:,} became 0 … 255")
            return np.rint(values * np.float32(255 / ((1 << bits) - 1))).astype(np.uint8)
        if bits <= 16 and (is_16_bits or bits > 8):
            return (values >> 8).astype(np.uint8)
    ranges = (1, 255, 65535) if values.dtype.kind == "f" else (255,)
    values, finite = values.astype(np.float32), np.isfinite(values)
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if low >= 0 and high <= ranges[-1]:
        low, high = 0, next(end for end in ranges if high <= end)
    elif low < high:
        notes.append(f"its numbers from {low:g} to {high:g} became 0 … 255")
    values = (np.where(finite, values, low) - low) * (255 / ((high - low) or 1))
    return np.rint(np.nan_to_num(values)).clip(0, 255).astype(np.uint8)


def tone_map(light: np.ndarray, notes: list[str]) -> np.ndarray:
    """Light without an upper bound, float RGB, as uint8: the brightest hundredth is white, and gamma is 2.2."""
    light = np.nan_to_num(light, nan=0, posinf=np.finfo(np.float32).max).clip(0)
    white = np.percentile(light.max(2), 99) or light.max() or 1
    notes.append("of its high dynamic range the brightest hundredth became white, with a gamma of 2.2")
    return np.rint(255 * np.clip(light / white, 0, 1) ** (1 / 2.2)).astype(np.uint8)
