"""Procedurally drawn shapes: the renderer, the ten-class image set that stands in where no CIFAR-10 is found, and the
scenes on which the tiny segmentation models are trained and measured.

Every shape is a signed distance function in a unit frame (x to the right, y up, the shape inside the circle of radius 1
and touching it). One routine turns distances into anti-aliased coverage, for a single object on a canvas of any
size (`shape_mask`) and for a batch of small images at once (`make_shapes`). NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from helpers.common.boxes import mask_box

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


def _cross(arm, half):
    """Corners of a cross that reaches `arm` from its middle, with arms `half` wide to either side."""
    return tuple(
        (c * x - s * y, s * x + c * y)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in ((arm, -half), (arm, half), (half, half))
    )


_POLYGONS = {
    "square": _regular(4, 45),
    "triangle": _regular(3, 90),
    "star": _regular(10, 90, (1.0, (3 - math.sqrt(5)) / 2)),  # the inner radius of a pentagram
    "pentagon": _regular(5, 90),
    "cross": _cross(3 / math.sqrt(10), 1 / math.sqrt(10)),  # whose arms are a third of its span
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
    """Distance to the outline in the unit frame, negative inside; x and y are float32 arrays of one shape. `shape` is
    one of `SHAPES` or the corners of a polygon."""
    if isinstance(shape, tuple):
        return _polygon(x, y, shape)
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
    mask = np.zeros((height, width), np.float32)
    rows, columns = _window(height, width, cx, cy, size)
    mask[rows, columns] = _patch(shape, rows, columns, cx, cy, size, angle)
    return mask


def _window(height, width, cx, cy, size):
    """The rows and columns of the canvas, as slices, that a shape can touch."""
    reach = size / 2 + 1
    left, right = (min(max(math.floor(cx + d), 0), width) for d in (-reach, reach + 1))
    top, bottom = (min(max(math.floor(cy + d), 0), height) for d in (-reach, reach + 1))
    return slice(top, bottom), slice(left, right)


def _patch(shape, rows, columns, cx, cy, size, angle):
    """Coverage of the pixels in `_window`'s rows and columns."""
    columns, rows = np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)
    return _coverage(shape, columns, rows, cx, cy, float(size), angle)


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


def _value_noise(rng, n, cells, height, width):
    """Random values at the corners of `cells` x `cells` boxes, linear between them: float32 [n, 3, height, width] in
    [-1, 1]. One cell is a gradient, many are a texture."""
    grid = rng.uniform(-1, 1, (n, 3, cells + 1, cells + 1)).astype(np.float32)
    i, t = _interpolation(cells, height)
    grid = grid[:, :, i] + t[:, None] * (grid[:, :, i + 1] - grid[:, :, i])
    i, t = _interpolation(cells, width)
    return grid[..., i] + t * (grid[..., i + 1] - grid[..., i])


def _interpolation(cells, size):
    """For each of `size` pixels the cell that it lies in, and how far along."""
    at = (np.arange(size) + 0.5) * cells / size
    i = at.astype(int)
    return i, (at - i).astype(np.float32)


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

    image = back + each(0, 50) * _value_noise(rng, n, 1, size, size)
    image += each(0, 40) * _value_noise(rng, n, size // 4, size, size)
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
    image += alpha * (front + each(0, 30) * _value_noise(rng, n, 1, size, size) - image)

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


# --- Scenes: several objects, and what one may call them -----------------------------------------------------------

SCENE_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
# What people mean by a colour's name is a region: scenes draw from between these, of which the first is `COLOURS`' own
# and the others are those of CSS and the like.
_SHADES = {
    "red": ((255, 0, 0), (200, 20, 20)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34)),
    "blue": ((0, 0, 255), (30, 110, 235)),
    "yellow": ((255, 255, 0), (255, 220, 0)),
    "orange": ((255, 165, 0), (255, 128, 0)),
    "purple": ((128, 0, 128), (150, 40, 220)),
    "pink": ((255, 192, 203), (255, 105, 180)),
    "cyan": ((0, 255, 255), (0, 200, 220)),
}
MIN_DIAMETER = 24.0  # pixels


@dataclass
class SceneObject:
    """One object of a scene. `mask` is bool [H, W], the part that can be seen; `box` (x0, y0, x1, y1) its extent in
    pixels, x1 and y1 exclusive; `diameter` in pixels that of the circle around the whole shape."""

    shape: str
    colour: str
    diameter: float
    mask: np.ndarray
    box: tuple[int, int, int, int]


@dataclass
class Scene:
    """`image` is uint8 [H, W, 3] in RGB; the objects come from the farthest to the nearest."""

    image: np.ndarray
    objects: list[SceneObject]


@dataclass(frozen=True)
class Phrase:
    """Words, and the indices of all objects of the scene that they name: none if it is absent."""

    text: str
    objects: tuple[int, ...]


def _outline(rng, shape):
    """The shape as someone else might draw it: a plumper star, a thinner cross, a heart of another curve, each
    slightly stretched. Returns a name or corners, within the unit circle."""
    if shape == "circle" or rng.random() < 0.4:
        return shape
    if shape == "star":
        corners = _regular(10, 90, (1.0, rng.uniform(0.36, 0.55)))
    elif shape == "cross":
        corners = _cross(1, rng.uniform(0.2, 0.42))
    elif shape == "heart":  # the parametric curve in wide use, MathWorld "Heart Curve", equation 5
        t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        corners = tuple(zip(-16 * np.sin(t) ** 3, y + 2.5, strict=True))
    else:
        corners = _POLYGONS[shape]
    stretch = rng.uniform(0.85, 1 / 0.85)
    corners = [(x * stretch, y) for x, y in corners]
    reach = max(math.hypot(x, y) for x, y in corners)
    return tuple((float(x / reach), float(y / reach)) for x, y in corners)


def _shade(rng, colour):
    """A colour of that name, float32 [3] in [0, 255]."""
    shades = np.array((COLOURS[colour], *_SHADES[colour]), np.float32)
    mixed = rng.dirichlet(np.full(len(shades), 0.5)) @ shades
    return np.clip(mixed * rng.uniform(0.88, 1.06) + rng.uniform(-10, 10, 3), 0, 255).astype(np.float32)


def _background(rng, height, width):
    """Flat, a gradient, or a texture with structure at several scales: float32 [H, W, 3]."""
    grey, saturation = rng.uniform(0, 255), rng.uniform(0, 0.45) ** 1.5
    base = grey + saturation * rng.uniform(-160, 160, 3)
    image = np.empty((height, width, 3), np.float32)
    image[:] = np.clip(base, 0, 255)
    kind = rng.integers(3)
    if kind > 0:
        image += rng.uniform(5, 70) * _value_noise(rng, 1, 1, height, width)[0].transpose(1, 2, 0)
    if kind == 2:
        for octave in range(2, 2 + rng.integers(1, 5)):
            cells = 2**octave
            texture = _value_noise(rng, 1, cells, height, width)[0].transpose(1, 2, 0)
            if rng.random() < 0.7:  # mostly of brightness: colour varies less in what a camera sees
                texture = texture[..., :1] + 0.2 * texture
            image += rng.uniform(5, 40) * texture
    return image


def _add_strokes(rng, image):
    """Thin lines of any colour across the background."""
    height, width = image.shape[:2]
    rows, columns = np.arange(height, dtype=np.float32)[:, None] + 0.5, np.arange(width, dtype=np.float32) + 0.5
    for _ in range(rng.integers(0, 4)):
        turn, thickness = rng.uniform(0, np.pi), rng.uniform(0.5, max(1.0, min(height, width) / 60))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        distance = np.abs((columns - x) * np.float32(np.sin(turn)) - (rows - y) * np.float32(np.cos(turn)))
        alpha = np.clip(thickness + 0.5 - distance, 0, 1)[..., None] * np.float32(rng.uniform(0.3, 1))
        image += alpha * (rng.uniform(0, 255, 3).astype(np.float32) - image)


def _any_kind(rng):
    return SCENE_SHAPES[rng.integers(len(SCENE_SHAPES))], tuple(COLOURS)[rng.integers(len(COLOURS))]


def _kinds(rng, n, alike=0.6):
    """n pairs (shape, colour): any or, for a share of `alike`, the same again, or with the colour or the shape of an
    earlier one."""
    kinds = []
    for _ in range(n):
        shape, colour = _any_kind(rng)
        if kinds and (how := rng.random()) < alike:
            how *= 0.6 / alike
            other = kinds[rng.integers(len(kinds))]
            shape = other[0] if how < 0.35 else shape
            colour = other[1] if how < 0.07 or how >= 0.35 else colour
        kinds.append((shape, colour))
    return kinds


def _begin(seed, height, width, min_diameter):
    """The generator and the background, float32 [H, W, 3], of a scene or a clip; ValueError if no object has room."""
    if min(height, width) < min_diameter + 4:
        raise ValueError(f"an image of {height} x {width} pixels has no room for an object of {min_diameter:g} pixels")
    rng = np.random.default_rng(seed)
    image = _background(rng, height, width)
    if rng.random() < 0.5:
        _add_strokes(rng, image)
    return rng, image


def make_scene(seed, height, width, objects=(1, 5), min_diameter=MIN_DIAMETER, max_share=0.5):
    """Draw objects of several shapes, colours and sizes, some overlapping, on a flat, shaded, textured or noisy
    background. Distractors share their colour or their shape with another object.

    seed: what `numpy.random.default_rng` takes (a generator too); equal seeds give equal scenes.
    height, width: of the image, in pixels. objects: the fewest and the most (fewer if they find no room).
    min_diameter, max_share: diameters lie, evenly on a log scale, from min_diameter pixels to max_share of the image's
    shorter side. At least 60 % of every object can be seen, and all of it lies within the image.

    Returns a `Scene`. Raises ValueError for an image in which the smallest object has no room.
    """
    largest = max_share * min(height, width)
    rng, image = _begin(seed, height, width, min_diameter)
    placed: list[SceneObject] = []
    whole_areas: list[int] = []
    for shape, colour in _kinds(rng, rng.integers(objects[0], objects[1] + 1)):
        for _ in range(12):  # tries to find a place; crowded images may hold fewer objects
            diameter = math.exp(rng.uniform(math.log(min_diameter), math.log(max(largest, min_diameter))))
            cx, cy = (rng.uniform(diameter / 2 + 1, side - diameter / 2 - 1) for side in (width, height))
            angle = rng.uniform(-180, 180) if rng.random() < 0.3 else rng.uniform(-20, 20)
            rows, columns = _window(height, width, cx, cy, diameter)
            alpha = _patch(_outline(rng, shape), rows, columns, cx, cy, diameter, angle)
            covered, shade = alpha >= 0.5, _shade(rng, colour)
            behind = image[rows, columns][covered]
            hidden = [np.count_nonzero(o.mask[rows, columns] & covered) for o in placed]
            seen = [
                (np.count_nonzero(o.mask) - lost) / area
                for o, lost, area in zip(placed, hidden, whole_areas, strict=True)
            ]
            # An object of the colour behind it cannot be told from it, nor one that hides another almost wholly.
            if np.abs(behind - shade).sum(1).mean() > 130 and all(share > 0.6 for share in seen):
                break
        else:
            continue
        paint = np.broadcast_to(shade, (*alpha.shape, 3))
        if rng.random() < 0.5:  # lit from one side, or of some material
            paint = paint + rng.uniform(5, 30) * _value_noise(rng, 1, 1, *alpha.shape)[0].transpose(1, 2, 0)[..., :1]
        if rng.random() < 0.25:
            paint = paint + rng.uniform(5, 25) * _value_noise(rng, 1, 8, *alpha.shape)[0].transpose(1, 2, 0)[..., :1]
        image[rows, columns] += alpha[..., None] * (paint - image[rows, columns])
        mask = np.zeros((height, width), bool)
        mask[rows, columns] = covered
        for other in placed:
            other.mask &= ~mask
        placed.append(SceneObject(shape, colour, diameter, mask, (0, 0, 0, 0)))
        whole_areas.append(int(covered.sum()))
    for item in placed:
        item.box = mask_box(item.mask)
    if rng.random() < 0.4:
        image += rng.uniform(2, 14) * rng.standard_normal(image.shape, np.float32)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), placed)


_THINGS = ("object", "shape", "thing")
_SIZES = {"large": ("large", "big"), "small": ("small", "little")}
WORDS = (
    *("a", "an", "the", *_THINGS, *(f"{thing}s" for thing in _THINGS), *_SIZES["large"], *_SIZES["small"]),
    *(*COLOURS, *SCENE_SHAPES, *(f"{shape}s" for shape in SCENE_SHAPES if shape != "cross"), "crosses"),
)  # every word that `make_phrases` uses


def _named(scene, shape, colour):
    return tuple(
        i
        for i, item in enumerate(scene.objects)
        if (shape is None or item.shape == shape) and (colour is None or item.colour == colour)
    )


def _words(rng, shape, colour, size=None, plural=False):
    """A phrase for things of that shape, colour and size, each `None` if it is not to be said."""
    noun = shape or ("" if rng.random() < 0.4 else _THINGS[rng.integers(len(_THINGS))])
    if plural and noun:
        noun += "es" if noun == "cross" else "s"
    size = size and _SIZES[size][rng.integers(2)]
    words = " ".join(word for word in (size, colour, noun) if word)
    article = rng.random()
    if article < 0.25 and not plural:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"the {words}" if article > 0.75 else words


def _present(rng, scene, item):
    """A phrase that names the given object, perhaps among others; `None` if this try gave none that is clear."""
    how = rng.random()
    if how < 0.12:
        return Phrase(_words(rng, item.shape, None), _named(scene, item.shape, None))
    if how < 0.24:
        return Phrase(_words(rng, None, item.colour), _named(scene, None, item.colour))
    named = _named(scene, item.shape, item.colour)
    if how < 0.40:
        diameters = sorted((scene.objects[i].diameter for i in named), reverse=True)
        short = min(scene.image.shape[:2])
        if len(named) == 1:  # nothing to compare with: large or small for the picture
            size = "large" if item.diameter > 0.25 * short else "small"
            return Phrase(_words(rng, item.shape, item.colour, size), named)
        if item.diameter == diameters[0] and diameters[0] > 1.4 * diameters[1]:
            return Phrase(_words(rng, item.shape, item.colour, "large"), (scene.objects.index(item),))
        if item.diameter == diameters[-1] and diameters[-2] > 1.4 * diameters[-1]:
            return Phrase(_words(rng, item.shape, item.colour, "small"), (scene.objects.index(item),))
        return None
    return Phrase(_words(rng, item.shape, item.colour, plural=how > 0.93), named)


def _absent(rng, scene):
    """A phrase that names nothing in the scene, mostly by the colour of one object and the shape of another; `None` if
    this try names something."""
    shape, colour = _any_kind(rng)
    how = rng.random()
    if scene.objects and how < 0.7:
        one, other = (scene.objects[i] for i in rng.integers(len(scene.objects), size=2))
        shape = one.shape if how < 0.5 else shape
        colour = other.colour if how < 0.25 or how >= 0.5 else colour
    if how > 0.94:
        shape = None
    elif how > 0.88:
        colour = None
    if _named(scene, shape, colour):
        return None
    size = ("large", "small")[rng.integers(2)] if shape and colour and rng.random() < 0.15 else None
    return Phrase(_words(rng, shape, colour, size), ())


def make_phrases(seed, scene, present, absent):
    """Phrases for a scene: by colour and shape, one of them alone, or with a size, with or without an article.

    seed: as in `make_scene`. present, absent: how many that name something, and how many that name nothing; fewer if
    none are left. No two phrases name the same object, so that every object has one right label.

    Returns a list of `Phrase` in random order, no text twice.
    """
    rng = np.random.default_rng(seed)
    phrases: list[Phrase] = []
    for i in rng.permutation(len(scene.objects)):
        taken = {j for phrase in phrases for j in phrase.objects}
        for _ in range(4):
            phrase = _present(rng, scene, scene.objects[i]) if i not in taken and len(phrases) < present else None
            if phrase and not taken.intersection(phrase.objects):
                phrases.append(phrase)
                break
    wanted = len(phrases) + absent
    for _ in range(10 * absent):
        phrase = _absent(rng, scene)
        if len(phrases) < wanted and phrase and phrase.text not in {p.text for p in phrases}:
            phrases.append(phrase)
    return [phrases[i] for i in rng.permutation(len(phrases))]


def scene_size(seed, longest=1024, shortest=96):
    """A height and a width, in pixels: the aspect ratio evenly, on a log scale, from 1:2 to 2:1, the longer side
    likewise up to `longest`, the shorter one at least `shortest`."""
    rng = np.random.default_rng(seed)
    aspect = 2 ** rng.uniform(-1, 1)
    ratio = max(aspect, 1 / aspect)
    longer = math.exp(rng.uniform(math.log(shortest * ratio), math.log(longest)))
    height, width = (longer, longer / ratio) if aspect < 1 else (longer / ratio, longer)
    return round(height), round(width)


# --- Clips: scenes in motion -----------------------------------------------------------------------------------------


@dataclass
class ClipObject:
    """One moving object. `masks` is bool [T, H, W], the part that can be seen on each frame, empty where none can;
    `diameter` in pixels that of the circle around the whole shape."""

    shape: str
    colour: str
    diameter: float
    masks: np.ndarray


@dataclass
class Clip:
    """`frames` is uint8 [T, H, W, 3] in RGB; the objects come from the farthest to the nearest."""

    frames: np.ndarray
    objects: list[ClipObject]


def _path(rng, frames, diameter, height, width, kind):
    """Centres [T, 2] (x, y) in pixels of an object that stays in the picture, enters it, leaves it, or does both."""
    sides = np.array([width, height])
    if kind == "stay":
        low, high = np.full(2, diameter / 2 + 1), sides - diameter / 2 - 1
        ends = rng.uniform(low, np.maximum(high, low + 1e-3), (2, 2))
        bend = rng.uniform(low, np.maximum(high, low + 1e-3))
    else:
        inside = rng.uniform(0.3, 0.7, (2, 2)) * sides
        outside = rng.uniform(0.1, 0.9, 2) * sides
        axis = rng.integers(2)
        far = 0.62 * diameter + 2  # it may grow by a fifth
        outside[axis] = -far if rng.random() < 0.5 else sides[axis] + far
        ends = np.stack([outside, inside[0]]) if kind == "enter" else np.stack([inside[0], outside])
        bend = inside[1]
    t = np.linspace(0, 1, frames)
    if kind == "enter":  # out of sight for a while, then in
        t = np.clip((t - rng.uniform(0.15, 0.4)) / 0.5, 0, 1)
    elif kind == "leave":
        t = np.clip((t - rng.uniform(0.05, 0.3)) / 0.5, 0, 1)
    t = t[:, None]
    return (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * bend + t**2 * ends[1]


def make_clip(
    seed,
    height,
    width,
    frames,
    objects=(2, 4),
    min_diameter=MIN_DIAMETER,
    max_share=0.4,
    occluders=(0, 1),
    motions=None,
    alike=0.6,
):
    """Draw a clip: objects of different kinds move over a still background, pass over one another, turn and change
    their size a little; some enter the picture after it has begun, some leave it, and posts of a muted colour may stand
    before them all.

    seed: as in `make_scene`. height, width: in pixels. frames: how many. objects: the fewest and the most; the first
    one stays in the picture. min_diameter, max_share: as in `make_scene`. occluders: the fewest and the most posts.
    motions: for each object "stay", "enter" or "leave", in place of `objects`. alike: share of the objects that are
    given the colour or the shape of an earlier one.

    Returns a `Clip`; no two of its objects have both their shape and their colour in common. Raises ValueError for an
    image in which the smallest object has no room.
    """
    rng, background = _begin(seed, height, width, min_diameter)
    objects = objects if motions is None else (len(motions),) * 2
    kinds = list(dict.fromkeys(_kinds(rng, rng.integers(objects[0], objects[1] + 1), alike)))
    while len(kinds) < objects[0]:
        kinds = list(dict.fromkeys([*kinds, _any_kind(rng)]))
    canvas = np.repeat(background[None], frames, axis=0)
    largest = max(max_share * min(height, width), min_diameter)
    placed = []
    for number, (shape, colour) in enumerate(kinds):
        motion = "stay" if number == 0 else ("stay", "enter", "leave")[rng.choice(3, p=(0.4, 0.3, 0.3))]
        motion = motion if motions is None else motions[number]
        shade = _shade(rng, colour)
        for _ in range(8):  # a shade that shows on this background
            if np.abs(np.median(background, (0, 1)) - shade).sum() > 130:
                break
            shade = _shade(rng, colour)
        diameter = math.exp(rng.uniform(math.log(min_diameter), math.log(largest)))
        centres = _path(rng, frames, diameter, height, width, motion)
        grow = np.linspace(1, rng.uniform(0.85, 1.2), frames)
        angles = rng.uniform(-20, 20) + np.linspace(0, rng.uniform(-40, 40), frames)
        outline = _outline(rng, shape)
        masks = np.zeros((frames, height, width), bool)
        for t in range(frames):
            place = (*centres[t], diameter * grow[t], angles[t])
            rows, columns = _window(height, width, *place[:3])
            if rows.start < rows.stop and columns.start < columns.stop:
                alpha = _patch(outline, rows, columns, *place)
                canvas[t, rows, columns] += alpha[..., None] * (shade - canvas[t, rows, columns])
                masks[t, rows, columns] = alpha >= 0.5
        for other in placed:
            other.masks &= ~masks
        placed.append(ClipObject(shape, colour, diameter, masks))
    for _ in range(rng.integers(occluders[0], occluders[1] + 1)):
        wide = rng.uniform(0.05, 0.14) * width
        left = rng.uniform(0.15, 0.85) * width - wide / 2
        columns = slice(round(left), round(left + wide))
        canvas[:, :, columns] = rng.uniform(40, 200) + rng.uniform(-12, 12, 3)
        for item in placed:
            item.masks[:, :, columns] = False
    if rng.random() < 0.4:
        canvas += rng.uniform(2, 10) * rng.standard_normal(canvas.shape, np.float32)
    return Clip(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), placed)
