"""What one may call the objects of a drawn scene, and how large such a scene is: what the tiny models learn, and are
measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import common  # noqa: F401 (it makes helpers/ importable)
from helpers.shapes.draw import COLOURS
from helpers.shapes.scenes import SCENE_SHAPES, any_kind


@dataclass(frozen=True)
class Phrase:
    """Words, and the indices of all objects of the scene that they name: none if it is absent."""

    text: str
    objects: tuple[int, ...]


_THINGS = ("object", "shape", "thing")
_SIZES = {"large": ("large", "big"), "small": ("small", "little")}
WORDS = (
    *("a", "an", "the", *_THINGS, *(f"{thing}s" for thing in _THINGS), *_SIZES["large"], *_SIZES["small"]),
    *(*COLOURS, *SCENE_SHAPES, *(f"{shape}s" for shape in SCENE_SHAPES if shape != "cross"), "crosses"),
)  # every word that `make_phrases` uses


def _named(scene, shape, colour):
    """Indices of the objects of that shape and colour, each `None` for any."""
    each = enumerate(scene.objects)
    return tuple(i for i, item in each if shape in (None, item.shape) and colour in (None, item.colour))


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


def _present(rng, scene, i):
    """A phrase that names object i, perhaps among others; `None` if this try gave none that is clear."""
    item, how = scene.objects[i], rng.random()
    if how < 0.12:
        return Phrase(_words(rng, item.shape, None), _named(scene, item.shape, None))
    if how < 0.24:
        return Phrase(_words(rng, None, item.colour), _named(scene, None, item.colour))
    named = _named(scene, item.shape, item.colour)
    if how >= 0.40:
        return Phrase(_words(rng, item.shape, item.colour, plural=how > 0.93), named)
    others = [scene.objects[k].diameter for k in named if k != i]
    if not others:  # nothing to compare with: large or small for the picture
        size = "large" if item.diameter > 0.25 * min(scene.image.shape[:2]) else "small"
    elif item.diameter > 1.4 * max(others):
        size = "large"
    elif min(others) > 1.4 * item.diameter:
        size = "small"
    else:
        return None
    return Phrase(_words(rng, item.shape, item.colour, size), (i,))


def _absent(rng, scene):
    """A phrase that names nothing in the scene, mostly by the colour of one object and the shape of another; `None` if
    this try names something."""
    shape, colour = any_kind(rng)
    how = rng.random()
    if scene.objects and how < 0.7:
        one, other = (scene.objects[i] for i in rng.integers(len(scene.objects), size=2))
        shape = one.shape if how < 0.5 else shape
        colour = other.colour if how < 0.25 or how >= 0.5 else colour
    shape, colour = (None if how > 0.94 else shape), (None if 0.88 < how <= 0.94 else colour)
    if _named(scene, shape, colour):
        return None
    size = ("large", "small")[rng.integers(2)] if shape and colour and rng.random() < 0.15 else None
    return Phrase(_words(rng, shape, colour, size), ())


def make_phrases(seed, scene, present, absent):
    """Phrases for a scene, a list of `Phrase` in random order, no text twice: by colour and shape, one of them alone,
    or with a size, with or without an article.

    seed: as in `make_scene`. present, absent: how many that name something, and how many that name nothing; fewer if
    none are left. No two phrases name the same object, so that every object has one right label.
    """
    rng = np.random.default_rng(seed)
    phrases: list[Phrase] = []
    for i in rng.permutation(len(scene.objects)):
        taken = {k for phrase in phrases for k in phrase.objects}
        if i in taken or len(phrases) >= present:
            continue
        for _ in range(4):
            phrase = _present(rng, scene, int(i))
            if phrase and not taken.intersection(phrase.objects):
                phrases.append(phrase)
                break
    wanted = len(phrases) + absent
    for _ in range(10 * absent):
        phrase = _absent(rng, scene)
        if len(phrases) < wanted and phrase and phrase.text not in {p.text for p in phrases}:
            phrases.append(phrase)
    return [phrases[i] for i in rng.permutation(len(phrases))]


def scene_size(seed):
    """A height and a width, in pixels: the aspect ratio evenly, on a log scale, from 1:2 to 2:1, the longer side
    likewise up to 1024, the shorter one at least 96."""
    rng = np.random.default_rng(seed)
    aspect = 2 ** rng.uniform(-1, 1)
    ratio = max(aspect, 1 / aspect)
    longer = math.exp(rng.uniform(math.log(96 * ratio), math.log(1024)))
    height, width = (longer, longer / ratio) if aspect < 1 else (longer / ratio, longer)
    return round(height), round(width)
