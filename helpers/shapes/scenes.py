"""Scenes of several objects, with their masks."""

import math
from dataclasses import dataclass

import numpy as np

from helpers.shapes.draw import COLOURS, POLYGONS, cross_corners, patch, regular_corners, value_noise

SCENE_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
# What people mean by a colour's name is a region: between its RGB in `COLOURS` and these, of CSS and the like.
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
    """One object: `diameter` of the circle around it, in pixels; `mask` bool [H, W], the part that can be seen."""

    shape: str
    colour: str
    diameter: float
    mask: np.ndarray


@dataclass
class Scene:
    """`image` is uint8 [H, W, 3] in RGB; the objects come from the farthest to the nearest."""

    image: np.ndarray
    objects: list[SceneObject]


def outline_like(rng, shape):
    """The shape as someone else might draw it: its name, or corners within the unit circle, slightly stretched, of a
    plumper star, a thinner cross, a heart of another curve."""
    if shape == "circle" or rng.random() < 0.4:
        return shape
    if shape == "star":
        corners = regular_corners(10, 90, (1.0, rng.uniform(0.36, 0.55)))
    elif shape == "cross":
        corners = cross_corners(1, rng.uniform(0.2, 0.42))
    elif shape == "heart":  # the parametric curve in wide use, MathWorld "Heart Curve", equation 5
        t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        corners = zip(-16 * np.sin(t) ** 3, y + 2.5, strict=True)
    else:
        corners = POLYGONS[shape]
    stretch = rng.uniform(0.85, 1 / 0.85)
    corners = [(x * stretch, y) for x, y in corners]
    reach = max(math.hypot(x, y) for x, y in corners)
    return tuple((float(x / reach), float(y / reach)) for x, y in corners)


def shade_of(rng, colour):
    """A colour of that name, float32 [3] in [0, 255]."""
    shades = np.array((COLOURS[colour], *_SHADES[colour]), np.float32)
    mixed = rng.dirichlet(np.full(len(shades), 0.5)) @ shades
    return np.clip(mixed * rng.uniform(0.88, 1.06) + rng.uniform(-10, 10, 3), 0, 255).astype(np.float32)


def background(rng, height, width):
    """Flat, a gradient, or a texture with structure at several scales; half of them with strokes: float32 [H, W, 3]."""
    grey, saturation = rng.uniform(0, 255), rng.uniform(0, 0.45) ** 1.5
    colour = np.clip(grey + saturation * rng.uniform(-160, 160, 3), 0, 255)
    image = np.full((height, width, 3), colour, np.float32)
    kind = rng.integers(3)
    if kind > 0:
        image += rng.uniform(5, 70) * _noise(rng, 1, height, width)
    if kind == 2:
        for octave in range(2, 2 + rng.integers(1, 5)):
            texture = _noise(rng, 2**octave, height, width)
            if rng.random() < 0.7:  # mostly of brightness: colour varies less in what a camera sees
                texture = texture[..., :1] + 0.2 * texture
            image += rng.uniform(5, 40) * texture
    strokes = rng.integers(0, 4) if rng.random() < 0.5 else 0
    for _ in range(strokes):  # thin lines, from border to border
        turn, thickness = rng.uniform(0, np.pi), rng.uniform(0.5, max(1.0, min(height, width) / 60))
        across, down = (np.arange(side, dtype=np.float32) + 0.5 for side in (width, height))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        distance = np.abs((across - x) * np.float32(np.sin(turn)) - (down[:, None] - y) * np.float32(np.cos(turn)))
        alpha = np.clip(thickness + 0.5 - distance, 0, 1)[..., None] * np.float32(rng.uniform(0.3, 1))
        image += alpha * (rng.uniform(0, 255, 3).astype(np.float32) - image)
    return image


def _noise(rng, cells, height, width):
    """`value_noise` for one image, float32 [H, W, 3]."""
    return value_noise(rng, 1, cells, height, width)[0].transpose(1, 2, 0)


def any_kind(rng):
    """A shape and a colour, by their names."""
    return SCENE_SHAPES[rng.integers(len(SCENE_SHAPES))], tuple(COLOURS)[rng.integers(len(COLOURS))]


def draw_kinds(rng, n, alike=0.6):
    """n pairs (shape, colour); for a share of `alike` with the colour or the shape of an earlier one."""
    kinds = []
    for _ in range(n):
        shape, colour = any_kind(rng)
        if kinds and (how := rng.random()) < alike:
            how *= 0.6 / alike
            other = kinds[rng.integers(len(kinds))]
            shape = other[0] if how < 0.35 else shape
            colour = other[1] if how < 0.07 or how >= 0.35 else colour  # below 0.07 the same kind again
        kinds.append((shape, colour))
    return kinds


def make_scene(seed, height, width, objects=(1, 5), min_diameter=MIN_DIAMETER, max_share=0.5):
    """Draw objects, some overlapping, at least 60 % of each in sight, on a flat, shaded, textured or noisy background;
    some share their colour or their shape.

    seed: what `numpy.random.default_rng` takes (a generator too). objects: the fewest and the most; fewer where they
    find no room. Diameters lie, evenly on a log scale, from min_diameter pixels to max_share of the shorter side, which
    is at least 4 pixels above min_diameter.
    """
    rng = np.random.default_rng(seed)
    image = background(rng, height, width)
    largest = max(max_share * min(height, width), min_diameter)
    placed = []  # objects, each with the area of all of it
    for shape, colour in draw_kinds(rng, rng.integers(objects[0], objects[1] + 1)):
        for _ in range(12):  # tries to find a place; crowded images may hold fewer objects
            diameter = math.exp(rng.uniform(math.log(min_diameter), math.log(largest)))
            cx, cy = (rng.uniform(diameter / 2 + 1, side - diameter / 2 - 1) for side in (width, height))
            angle = rng.uniform(-180, 180) if rng.random() < 0.3 else rng.uniform(-20, 20)
            rows, columns, alpha = patch(outline_like(rng, shape), height, width, cx, cy, diameter, angle)
            covered, shade = alpha >= 0.5, shade_of(rng, colour)
            contrast = np.abs(image[rows, columns][covered] - shade).sum(1).mean()
            # what would be left of each object before, as a share of all of it
            left = [(other.mask.sum() - (other.mask[rows, columns] & covered).sum()) / area for other, area in placed]
            # An object of the colour behind it cannot be told from it, nor one that hides another almost wholly.
            if contrast > 130 and all(share > 0.6 for share in left):
                break
        else:
            continue
        paint = np.broadcast_to(shade, (*alpha.shape, 3))
        if rng.random() < 0.5:  # lit from one side
            paint = paint + rng.uniform(5, 30) * _noise(rng, 1, *alpha.shape)[..., :1]
        if rng.random() < 0.25:  # of some material
            paint = paint + rng.uniform(5, 25) * _noise(rng, 8, *alpha.shape)[..., :1]
        image[rows, columns] += alpha[..., None] * (paint - image[rows, columns])
        mask = np.zeros((height, width), bool)
        mask[rows, columns] = covered
        for other, _ in placed:
            other.mask &= ~mask
        placed.append((SceneObject(shape, colour, diameter, mask), covered.sum()))
    if rng.random() < 0.4:
        image += rng.uniform(2, 14) * rng.standard_normal(image.shape, np.float32)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), [item for item, _ in placed])
