"""Procedurally drawn shapes: the renderer, and the ten-class image set that stands in where no CIFAR-10 is found.

Every shape is a signed distance function in a unit frame (x to the right, y up, the shape inside the circle of radius 1
and touching it). One routine turns distances into anti-aliased coverage, for a single object on a canvas of any
size (`shape_mask`) and for a batch of small images at once (`make_shapes`). NumPy only.
"""

import math

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "pentagon", "heart", "crescent", "arrow")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 140, 30),
    "purple": (130, 50, 170),
    "pink": (250, 130, 185),
    "cyan": (50, 205, 215),
}


# --- The shapes --------------------------------------------------------------------------------------------------


def _regular(corners, first_degrees, radii=(1.0,)):
    """Corners at equal angles, counter-clockwise; `radii` are used in turn. Returns a tuple of (x, y)."""
    angles = [math.radians(first_degrees + 360 * k / corners) for k in range(corners)]
    return tuple(
        (radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a)) for k, a in enumerate(angles)
    )


_ARM, _HALF = 3 / math.sqrt(10), 1 / math.sqrt(10)  # a cross whose arms are a third of its span
_POLYGONS = {
    "square": _regular(4, 45),
    "triangle": _regular(3, 90),
    "star": _regular(10, 90, (1.0, (3 - math.sqrt(5)) / 2)),  # the inner radius of a pentagram
    "pentagon": _regular(5, 90),
    "cross": tuple(
        (c * x - s * y, s * x + c * y)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in ((_ARM, -_HALF), (_ARM, _HALF), (_HALF, _HALF))
    ),
    "arrow": ((1.0, 0.0), (0.1, 0.72), (0.1, 0.28), (-0.96, 0.28), (-0.96, -0.28), (0.1, -0.28), (0.1, -0.72)),
}
_RING_HOLE = 0.55  # radius of the hole
_BITE_X, _BITE_RADIUS = 0.5, 0.8  # the disc that a crescent lacks
# A heart is a square standing on a corner with a half disc on each upper side. Its enclosing circle touches the
# lower corner and both half discs; with the square's diagonal as the unit that fixes the circle's radius:
_HEART = 1 / (3 - math.sqrt(2))
_HEART_SQUARE = tuple((x / _HEART, (y - _HEART) / _HEART) for x, y in ((0, 0), (0.5, 0.5), (0, 1), (-0.5, 0.5)))
_LOBE_X, _LOBE_Y, _LOBE_RADIUS = 0.25 / _HEART, (0.75 - _HEART) / _HEART, math.sqrt(0.125) / _HEART


def _disc(x, y, cx=0.0, cy=0.0, radius=1.0):
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
    """Distance to the outline in the unit frame, negative inside; x and y are float32 arrays of one shape."""
    if shape == "circle":
        return _disc(x, y)
    if shape == "ring":
        return np.maximum(_disc(x, y), -_disc(x, y, radius=_RING_HOLE))
    if shape == "crescent":
        return np.maximum(_disc(x, y), -_disc(x, y, _BITE_X, 0.0, _BITE_RADIUS))
    if shape == "heart":
        lobes = _disc(np.abs(x), y, _LOBE_X, _LOBE_Y, _LOBE_RADIUS)  # both, by symmetry
        return np.minimum(lobes, _polygon(x, y, _HEART_SQUARE))
    return _polygon(x, y, _POLYGONS[shape])


def _coverage(shape, columns, rows, cx, cy, size, angle):
    """Coverage of pixels [..., H, W], float32. `columns` [W] and `rows` [H] are pixel indices; the rest are scalars or
    float arrays [n, 1, 1], one object an image."""
    turn, radius = np.deg2rad(angle), np.asarray(size) / 2
    cos, sin = (np.asarray(f(turn) / radius, np.float32) for f in (np.cos, np.sin))
    right = np.asarray(columns + 0.5 - cx, np.float32)  # [..., 1, W]
    up = np.asarray(cy - (rows[:, None] + 0.5), np.float32)  # [..., H, 1]
    distance = _signed_distance(shape, right * cos + up * sin, up * cos - right * sin)
    # A straight edge at distance d from a pixel's centre covers 0.5 - d of it: exact along the axes, and the sum over
    # the pixels that an edge crosses is right at every angle.
    return np.clip(0.5 - distance * radius.astype(np.float32), 0, 1)


def shape_mask(shape, height, width, cx, cy, size, angle=0.0):
    """Draw one shape and return how much of each pixel it covers; `>= 0.5` is its binary mask.

    shape: one of `SHAPES`. height, width: the canvas, in pixels.
    cx, cy: the centre in pixels from the canvas's top left corner (a pixel's own centre is at +0.5); may lie outside.
    size: diameter in pixels of the circle that the shape touches from inside. It is the same at every angle.
    angle: degrees counter-clockwise as seen. At 0 a square and a cross stand upright, triangle, star and pentagon
    point up, a heart stands, an arrow points to the right, and a crescent opens to the right.

    Returns float32 [height, width] in [0, 1], anti-aliased. Only the part of the canvas near the shape is computed.
    Raises ValueError for an unknown shape, an empty canvas, or a size or position that is no usable number.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    if height < 1 or width < 1:
        raise ValueError(f"a canvas of {height} x {width} pixels: height and width must be at least 1")
    if not 0 < size < math.inf:
        raise ValueError(f"size={size!r}: give the diameter in pixels, a finite number above 0")
    if not all(map(math.isfinite, (cx, cy, angle))):
        raise ValueError(f"cx={cx!r}, cy={cy!r}, angle={angle!r}: all three must be finite numbers")
    reach = size / 2 + 1
    left, right = (min(max(math.floor(cx + d), 0), width) for d in (-reach, reach + 1))
    top, bottom = (min(max(math.floor(cy + d), 0), height) for d in (-reach, reach + 1))
    mask = np.zeros((height, width), np.float32)
    mask[top:bottom, left:right] = _coverage(
        shape, np.arange(left, right), np.arange(top, bottom), cx, cy, float(size), angle
    )
    return mask


# --- The ten-class image set ---------------------------------------------------------------------------------------

# How hard the set is was tuned by measurement: a linear model gets about a third of it right, a small ViT most of it.
# Any colour on any colour, with or without full turns, left the same ViT near chance after six epochs.
_CHUNK = 256  # images drawn at once: their planes fit into a core's cache
_DIAMETER = (0.55, 0.9)  # of a shape, relative to the image
_CONTRAST = (90.0, 160.0)  # between a shape's brightness and its background's, of 255
_TINT = 45.0  # each channel is shifted by up to this, either way, and the mean shift taken out again
_DARKER = 0.3  # share of the shapes that are darker than their background
_TURN = 20.0  # most degrees that a shape is turned, either way
_BLOBS, _LINES = 2, 1  # most pieces of clutter in an image


def _value_noise(rng, n, cells, size):
    """Random values at the corners of `cells` x `cells` squares, linear between them: float32 [n, 3, size, size] in
    [-1, 1]. One cell is a gradient, many are a texture."""
    grid = rng.uniform(-1, 1, (n, 3, cells + 1, cells + 1)).astype(np.float32)
    at = (np.arange(size) + 0.5) * cells / size
    i = at.astype(int)
    t = (at - i).astype(np.float32)
    grid = grid[:, :, i] + t[:, None] * (grid[:, :, i + 1] - grid[:, :, i])
    return grid[..., i] + t * (grid[..., i + 1] - grid[..., i])


def _clutter(rng, n, size, longest):
    """Coverage [n, size, size] of one stroke with round ends an image: a blob if `longest` is 0."""
    x0, y0 = rng.uniform(0, size, (2, n, 1, 1))
    length, turn = rng.uniform(0, longest, (n, 1, 1)), rng.uniform(0, 2 * np.pi, (n, 1, 1))
    dx, dy = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    radius = rng.uniform(0.5, 1 if longest else size / 12, (n, 1, 1)).astype(np.float32)
    x = (np.arange(size) + 0.5 - x0).astype(np.float32)
    y = (np.arange(size)[:, None] + 0.5 - y0).astype(np.float32)
    along = np.clip(x * dx + y * dy, 0, length.astype(np.float32))
    return np.clip(0.5 - _disc(x - along * dx, y - along * dy, radius=radius), 0, 1)


def _draw(rng, labels, size):
    """One chunk of images, uint8 [n, 3, size, size], for labels [n]."""
    n = len(labels)

    def each(low, high):  # one number an image, ready to broadcast over its pixels
        return rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32)

    def tint():  # shifts the colour, not the brightness
        shift = rng.uniform(-_TINT, _TINT, (n, 3, 1, 1)).astype(np.float32)
        return shift - shift.mean(1, keepdims=True)

    # A dark colour and a bright one, each tinted anyhow, and either of them the shape's.
    dark = each(20, 80)
    bright = dark + each(*_CONTRAST)
    darker = each(0, 1) < _DARKER
    back, front = np.where(darker, bright, dark) + tint(), np.where(darker, dark, bright) + tint()

    image = back + each(0, 50) * _value_noise(rng, n, 1, size) + each(0, 40) * _value_noise(rng, n, size // 4, size)
    for k in range(_BLOBS + _LINES):
        alpha = _clutter(rng, n, size, longest=0 if k < _BLOBS else size)[:, None]
        # Half of the pieces have the shape's own colour, so that colour alone does not tell the shape's pixels.
        ink = np.where(each(0, 1) < 0.5, front, each(0, 255) + tint())
        image += (each(0, 1) < 0.5) * alpha * (ink - image)

    diameter = rng.uniform(*_DIAMETER, (n, 1, 1)) * size
    cx, cy = diameter / 2 + rng.uniform(0, 1, (2, n, 1, 1)) * (size - diameter)  # all of it inside the image
    angle = rng.uniform(-_TURN, _TURN, (n, 1, 1))
    alpha = np.empty((n, 1, size, size), np.float32)
    for label, shape in enumerate(SHAPES):
        k = labels == label
        alpha[k, 0] = _coverage(shape, np.arange(size), np.arange(size), cx[k], cy[k], diameter[k], angle[k])
    image += alpha * (front + each(0, 30) * _value_noise(rng, n, 1, size) - image)

    image += each(0, 15) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_shapes(n, seed, size=32):
    """Draw the ten-class set: one shape an image, anywhere, of any size and colour, brighter or darker than what
    is behind it, slightly turned, among gradients, texture, clutter and noise. The label is the shape's index in
    `SHAPES`. The colours say nothing about it, and every class keeps its meaning in a mirror.

    n: number of images, at least 1; the classes differ by at most one in number and come in random order.
    seed: equal seeds give equal images, others others (what `numpy.random.default_rng` takes).
    size: height and width in pixels, at least 16.

    Returns (images uint8 [n, 3, size, size] in RGB, labels int64 [n]). Raises ValueError for n or size too small.
    """
    if n < 1:
        raise ValueError(f"n={n!r}: the number of images must be at least 1")
    if size < 16:
        raise ValueError(f"size={size!r}: the shapes cannot be told apart below 16 pixels, give 16 or more")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n, dtype=np.int64) % len(SHAPES))
    images = np.empty((n, 3, size, size), np.uint8)
    for start in range(0, n, _CHUNK):
        images[start : start + _CHUNK] = _draw(rng, labels[start : start + _CHUNK], size)
    return images, labels
