"""The renderer of the drawn world, in NumPy: shapes, colours, textures. Every shape is a signed distance function in a
unit frame (x to the right, y up, the shape inside the circle of radius 1 and touching it)."""

import math
from itertools import cycle

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "pentagon", "heart", "crescent", "arrow")

COLOURS = {  # RGB
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 140, 30),
    "purple": (130, 50, 170),
    "pink": (250, 130, 185),
    "cyan": (50, 205, 215),
}


def regular_corners(corners, first_degrees, radii=(1.0,)):
    """Corners (x, y) at equal angles, counter-clockwise; `radii` are used in turn."""
    angles = [math.radians(first_degrees + 360 * k / corners) for k in range(corners)]
    return tuple((r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, cycle(radii), strict=False))


def cross_corners(arm, half):
    """Corners of a cross that reaches `arm` from its middle, with arms `half` wide to either side."""
    return tuple(
        (c * x - s * y, s * x + c * y)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in ((arm, -half), (arm, half), (half, half))
    )


POLYGONS = {
    "square": regular_corners(4, 45),
    "triangle": regular_corners(3, 90),
    "star": regular_corners(10, 90, (1.0, (3 - math.sqrt(5)) / 2)),  # the inner radius of a pentagram
    "pentagon": regular_corners(5, 90),
    "cross": cross_corners(3 / math.sqrt(10), 1 / math.sqrt(10)),  # whose arms are a third of its span
    "arrow": ((1.0, 0.0), (0.1, 0.72), (0.1, 0.28), (-0.96, 0.28), (-0.96, -0.28), (0.1, -0.28), (0.1, -0.72)),
}
# A heart is a square standing on a corner with a half disc on each upper side. Its enclosing circle touches the
# lower corner and both half discs; with the square's diagonal as the unit that fixes the circle's radius:
_HEART = 1 / (3 - math.sqrt(2))
_HEART_SQUARE = tuple((x / _HEART, (y - _HEART) / _HEART) for x, y in ((0, 0), (0.5, 0.5), (0, 1), (-0.5, 0.5)))
_LOBE_X, _LOBE_Y, _LOBE_RADIUS = 0.25 / _HEART, (0.75 - _HEART) / _HEART, math.sqrt(0.125) / _HEART


def disc(x, y, cx=0.0, cy=0.0, radius=1.0):
    """Signed distance to a circle."""
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - radius


def _polygon(x, y, corners):
    """Signed distance to a simple polygon: nearest edge, sign by counting the edges that a ray to the right crosses."""
    nearest, inside = np.inf, False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = x1 - x0, y1 - y0
        px, py = x - x0, y - y0
        along = np.clip((px * ex + py * ey) * (1 / (ex * ex + ey * ey)), 0, 1)
        dx, dy = px - along * ex, py - along * ey
        nearest = np.minimum(nearest, dx * dx + dy * dy)
        spans = (y >= y0) != (y >= y1)
        inside = inside ^ (spans & ((ex * py > ey * px) == (ey > 0)))
    return np.sqrt(nearest) * np.where(inside, np.float32(-1), np.float32(1))


def _signed_distance(shape, x, y):
    """Distance to the outline of one of `SHAPES`, or of a polygon given by its corners; negative inside."""
    if shape == "circle":
        return disc(x, y)
    if shape == "ring":
        return np.maximum(disc(x, y), -disc(x, y, radius=0.55))
    if shape == "crescent":
        return np.maximum(disc(x, y), -disc(x, y, cx=0.5, radius=0.8))
    if shape == "heart":
        lobes = disc(np.abs(x), y, _LOBE_X, _LOBE_Y, _LOBE_RADIUS)  # both, by symmetry
        return np.minimum(lobes, _polygon(x, y, _HEART_SQUARE))
    return _polygon(x, y, POLYGONS.get(shape, shape))


def coverage(shape, columns, rows, cx, cy, size, angle):
    """Share of each pixel that a shape covers, float32 [..., H, W]. `columns` [W] and `rows` [H] are pixel indices; the
    others, as in `patch`, are scalars or arrays [n, 1, 1], one object an image."""
    turn, radius = np.deg2rad(angle), np.asarray(size) / 2
    cos, sin = (np.asarray(f(turn) / radius, np.float32) for f in (np.cos, np.sin))
    right = np.asarray(columns + 0.5 - cx, np.float32)  # [..., 1, W]
    up = np.asarray(cy - (rows[:, None] + 0.5), np.float32)  # [..., H, 1]
    distance = _signed_distance(shape, right * cos + up * sin, up * cos - right * sin)
    # A straight edge at distance d from a pixel's centre covers 0.5 - d of it: exact along the axes, and the sum over
    # the pixels that an edge crosses is right at every angle.
    return np.clip(0.5 - distance * radius.astype(np.float32), 0, 1)


def patch(shape, height, width, cx, cy, size, angle):
    """The rows and columns, as slices, of the canvas that a shape can touch, and their coverage, float32 [h, w].

    cx, cy: its centre in pixels from the canvas's top left corner (a pixel's own centre is at +0.5); may lie outside.
    size: diameter in pixels of the circle around it. angle: degrees counter-clockwise as seen; at 0 the shapes stand
    upright or point up, but for an arrow, which points to the right, and a crescent, which opens to the right.
    """
    reach = size / 2 + 1
    left, right = (min(max(math.floor(cx + d), 0), width) for d in (-reach, reach + 1))
    top, bottom = (min(max(math.floor(cy + d), 0), height) for d in (-reach, reach + 1))
    alpha = coverage(shape, np.arange(left, right), np.arange(top, bottom), cx, cy, size, angle)
    return slice(top, bottom), slice(left, right), alpha


def value_noise(rng, n, cells, height, width):
    """Random values at the corners of `cells` x `cells` boxes, linear between them: float32 [n, 3, height, width] in
    [-1, 1]. One cell is a gradient, many are a texture."""
    grid = rng.uniform(-1, 1, (n, 3, cells + 1, cells + 1)).astype(np.float32)
    y, x = ((np.arange(size) + 0.5) * cells / size for size in (height, width))
    row, column = y.astype(int), x.astype(int)  # the box that a pixel lies in
    down, along = (y - row).astype(np.float32)[:, None], (x - column).astype(np.float32)
    grid = grid[:, :, row] + down * (grid[:, :, row + 1] - grid[:, :, row])
    return grid[..., column] + along * (grid[..., column + 1] - grid[..., column])
