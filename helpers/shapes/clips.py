"""Clips: scenes in motion."""

import math
from dataclasses import dataclass

import numpy as np

from helpers.shapes.draw import patch
from helpers.shapes.scenes import any_kind, background, draw_kinds, outline_like, shade_of


@dataclass
class ClipObject:
    """One moving object: as `SceneObject`, with `masks` bool [T, H, W]."""

    shape: str
    colour: str
    diameter: float
    masks: np.ndarray


@dataclass
class Clip:
    """`frames` is uint8 [T, H, W, 3] in RGB; the objects come from the farthest to the nearest."""

    frames: np.ndarray
    objects: list[ClipObject]


def _path(rng, frames, diameter, height, width, motion):
    """Centres [T, 2] (x, y) in pixels of an object, on a quadratic Bézier curve."""
    sides = np.array([width, height])
    t = np.linspace(0, 1, frames)
    if motion == "stay":
        low, high = diameter / 2 + 1, sides - diameter / 2 - 1
        start, end, bend = rng.uniform(low, np.maximum(high, low + 1e-3), (3, 2))
    else:
        inside, bend = rng.uniform(0.3, 0.7, (2, 2)) * sides
        outside = rng.uniform(0.1, 0.9, 2) * sides
        axis = rng.integers(2)
        far = 0.62 * diameter + 2  # it may grow by a fifth
        outside[axis] = -far if rng.random() < 0.5 else sides[axis] + far
        if motion == "enter":
            start, end, wait = outside, inside, rng.uniform(0.15, 0.4)
        else:
            start, end, wait = inside, outside, rng.uniform(0.05, 0.3)
        t = np.clip((t - wait) / 0.5, 0, 1)
    t = t[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


def make_clip(
    seed, height, width, frames, objects=(2, 4), min_diameter=24, max_share=0.4, occluders=(0, 1), motions=(), alike=0.6
):
    """Draw a clip: objects, no two of one shape and colour, move over one another, some into the picture or out of it,
    turn and grow a little, before a still background and behind posts of a muted colour.

    seed, min_diameter, max_share: as in `make_scene`. objects, occluders: the fewest and the most objects and posts.
    motions: for each object "stay", "enter" or "leave", in place of `objects`. alike: as in `draw_kinds`.
    """
    rng = np.random.default_rng(seed)
    still = background(rng, height, width)
    if motions:
        objects = len(motions), len(motions)
    kinds = list(dict.fromkeys(draw_kinds(rng, rng.integers(objects[0], objects[1] + 1), alike)))
    while len(kinds) < objects[0]:
        kinds = list(dict.fromkeys([*kinds, any_kind(rng)]))
    canvas = np.repeat(still[None], frames, axis=0)
    largest = max(max_share * min(height, width), min_diameter)
    placed = []
    for number, (shape, colour) in enumerate(kinds):
        # what it is, and how it moves
        motion = "stay" if number == 0 else ("stay", "enter", "leave")[rng.choice(3, p=(0.4, 0.3, 0.3))]
        motion = motions[number] if motions else motion
        for _ in range(9):  # a shade that shows on this background
            shade = shade_of(rng, colour)
            if np.abs(np.median(still, (0, 1)) - shade).sum() > 130:
                break
        diameter = math.exp(rng.uniform(math.log(min_diameter), math.log(largest)))
        centres = _path(rng, frames, diameter, height, width, motion)
        diameters = diameter * np.linspace(1, rng.uniform(0.85, 1.2), frames)
        angles = rng.uniform(-20, 20) + np.linspace(0, rng.uniform(-40, 40), frames)
        outline = outline_like(rng, shape)
        # frame by frame, over what is there
        masks = np.zeros((frames, height, width), bool)
        for t in range(frames):
            rows, columns, alpha = patch(outline, height, width, *centres[t], diameters[t], angles[t])
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
