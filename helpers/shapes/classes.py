"""The ten-class image set that stands in where no CIFAR-10 is found."""

import numpy as np

from helpers.shapes.draw import SHAPES, coverage, disc, value_noise

# How hard the set is was tuned by measurement: a linear model gets about a third of it right, a small ViT most of it.
# Any colour on any colour, with or without full turns, left the same ViT near chance after six epochs.
_SIZE = 32  # pixels
_CHUNK = 256  # images drawn at once: their planes fit into a core's cache


def _clutter(rng, n, longest):
    """Coverage [n, 32, 32] of one stroke with round ends an image: a blob if `longest` is 0."""
    x0, y0 = rng.uniform(0, _SIZE, (2, n, 1, 1))
    length, turn = rng.uniform(0, longest, (n, 1, 1)), rng.uniform(0, 2 * np.pi, (n, 1, 1))
    dx, dy = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    radius = rng.uniform(0.5, 1 if longest else _SIZE / 12, (n, 1, 1)).astype(np.float32)
    x = (np.arange(_SIZE) + 0.5 - x0).astype(np.float32)
    y = (np.arange(_SIZE)[:, None] + 0.5 - y0).astype(np.float32)
    along = np.clip(x * dx + y * dy, 0, length.astype(np.float32))
    return np.clip(0.5 - disc(x - along * dx, y - along * dy, radius=radius), 0, 1)


def _draw(rng, labels):
    """One chunk of images, uint8 [n, 3, 32, 32], for labels [n]."""
    n = len(labels)

    def each(low, high):  # one number an image, ready to broadcast over its pixels
        return rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32)

    def tint():  # shifts the colour, not the brightness
        shift = rng.uniform(-45, 45, (n, 3, 1, 1)).astype(np.float32)
        return shift - shift.mean(1, keepdims=True)

    # A dark colour and a bright one, each tinted anyhow; three shapes in ten have the dark one.
    dark = each(20, 80)
    bright = dark + each(90, 160)
    darker = each(0, 1) < 0.3
    back, front = np.where(darker, bright, dark) + tint(), np.where(darker, dark, bright) + tint()

    image = back + each(0, 50) * value_noise(rng, n, 1, _SIZE, _SIZE)
    image += each(0, 40) * value_noise(rng, n, _SIZE // 4, _SIZE, _SIZE)
    for longest in (0, 0, _SIZE):
        alpha = _clutter(rng, n, longest)[:, None]
        # Half of the pieces have the shape's own colour, so that colour alone does not tell the shape's pixels.
        ink = np.where(each(0, 1) < 0.5, front, each(0, 255) + tint())
        image += (each(0, 1) < 0.5) * alpha * (ink - image)

    diameter = rng.uniform(0.55, 0.9, (n, 1, 1)) * _SIZE
    cx, cy = diameter / 2 + rng.uniform(0, 1, (2, n, 1, 1)) * (_SIZE - diameter)  # all of it inside the image
    angle = rng.uniform(-20, 20, (n, 1, 1))
    alpha = np.empty((n, 1, _SIZE, _SIZE), np.float32)
    for label, shape in enumerate(SHAPES):
        k = labels == label
        alpha[k, 0] = coverage(shape, np.arange(_SIZE), np.arange(_SIZE), cx[k], cy[k], diameter[k], angle[k])
    image += alpha * (front + each(0, 30) * value_noise(rng, n, 1, _SIZE, _SIZE) - image)

    image += each(0, 15) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_shapes(n, seed):
    """Draw n images of one shape each, uint8 [n, 3, 32, 32] in RGB, and their labels, int64 [n], which index `SHAPES`,
    evenly and in random order. Colours say nothing about the class, and every class keeps its meaning in a mirror."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n, dtype=np.int64) % len(SHAPES))
    images = [_draw(rng, labels[start : start + _CHUNK]) for start in range(0, n, _CHUNK)]
    return np.concatenate(images), labels
