"""Detections drawn on their image: masks, outlines, boxes, and tags with label and score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from helpers.common.figures import PALETTE
from helpers.segment.detections import Detection

_COLOURS = 128  # that can be told apart at all; the next number takes the first one again
_SMALLEST_TEXT, _LARGEST_TEXT = 9, 160  # pixels
_LONGEST_LABEL = 40  # letters


def draw_instances(
    image: np.ndarray, detections: Sequence[Detection], alpha: float = 0.5, ids: Sequence[int] | None = None
) -> np.ndarray:
    """Draw masks over an image: uint8 RGB `[H, W, 3]`, a copy.

    Every instance has its own colour: filled with opacity `alpha`, outlined in its light tone between two dark lines,
    so that the outline shows on any background, and named in a tag with its label and score. Where masks overlap, the
    smaller one's fill is on top. An instance without a mask is drawn as its box. A `~` before the label says that
    CLIPSeg, not the detector, found it; its score is not comparable to the detector's.

    ids: integers from 1, one a detection; given, the tags show them, and an id has the same colour in every image, so
    that a tracked object keeps its own. Without, detections are coloured in their order, as in `instances.png`.

    Tags lie inside the image, and off one another where there is room. A label that is long, or wider than the image,
    is shortened; a tag that could not be read at all is left out. Letters that the font lacks are shown as `?`.

    Raises `ValueError` for an image or a mask of another type or size.
    """
    return _draw(image, detections, alpha, ids)


def draw_boxes(image: np.ndarray, detections: Sequence[Detection]) -> np.ndarray:
    """Draw boxes with label and score over an image, masks or not, as `draw_instances` colours and tags them."""
    return _draw(image, detections, None, None)


def colour(number: int) -> tuple[int, int, int]:
    """RGB of instance `number`, from 1: the palette of the figures first, then what is farthest from all before."""
    red, green, blue = _colours()[(number - 1) % _COLOURS].tolist()
    return red, green, blue


def _draw(
    image: np.ndarray, detections: Sequence[Detection], alpha: float | None, ids: Sequence[int] | None
) -> np.ndarray:
    """`alpha=None`: boxes only."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"the image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]: see read_image().")
    canvas = np.array(image, order="C")
    height, width = image.shape[:2]
    numbers = range(1, len(detections) + 1) if ids is None else ids
    masked, boxed, tags = [], [], []
    for number, detection in zip(numbers, detections, strict=True):
        box = _inside(detection.box, width, height)
        tags.append((detection, number, box))
        if alpha is None or detection.mask is None:
            boxed.append((number, box))
            continue
        mask = detection.mask
        if mask.shape != (height, width) or mask.dtype != bool:
            raise ValueError(
                f"the mask of {detection.label!r} is {mask.dtype} {list(mask.shape)}, expected bool {[height, width]} "
                "like the image."
            )
        mask = np.ascontiguousarray(mask).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if w:
            masked.append((number, mask[y : y + h, x : x + w], (x, y)))

    masked.sort(key=lambda item: -cv2.countNonZero(item[1]))  # the smallest last, on top
    for number, mask, (x, y) in masked:
        part = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        # From the image, not the canvas, so that fills never add up to an opaque one.
        cv2.copyTo(cv2.LUT(image[part], _tint(number, alpha)), mask, canvas[part])
    line = max(1, round(np.sqrt(height * width) / 450 + 0.5))
    for number, mask, corner in masked:
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE, offset=corner)
        _double(line, number, lambda *pen, lines=contours: cv2.drawContours(canvas, lines, -1, *pen))
    for number, (x0, y0, x1, y1) in boxed:
        _double(line, number, lambda *pen, ends=((x0, y0), (x1 - 1, y1 - 1)): cv2.rectangle(canvas, *ends, *pen))
    _draw_tags(canvas, tags, ids is not None)
    return canvas


def _inside(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels that a box touches, at least one, as (x0, y0, x1, y1) with x1 and y1 exclusive."""
    x0, y0 = (min(max(int(np.floor(v)), 0), size - 1) for v, size in zip(box[:2], (width, height), strict=True))
    x1, y1 = (min(int(np.ceil(v)), size) for v, size in zip(box[2:], (width, height), strict=True))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


# --- Colours and lines ---------------------------------------------------------------------------------------------


@lru_cache
def _colours() -> np.ndarray:
    """uint8 RGB `[_COLOURS, 3]`."""
    levels = np.linspace(0, 1, 12, dtype=np.float32)
    candidates = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None], cv2.COLOR_RGB2Lab)[0]
    vivid = (lab[:, 0] > 35) & (lab[:, 0] < 90) & (np.hypot(lab[:, 1], lab[:, 2]) > 40)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = np.array([to_rgb(name) for name in PALETTE if name != "#000000"], np.float32)  # black would not glow
    distance = np.full(len(candidates), np.inf)
    for i in range(_COLOURS):
        if i == len(chosen):
            chosen = np.vstack([chosen, candidates[distance.argmax()]])
        distance = np.minimum(
            distance, np.linalg.norm(lab - cv2.cvtColor(chosen[None, i : i + 1], cv2.COLOR_RGB2Lab)[0], axis=1)
        )
    return np.rint(255 * chosen).astype(np.uint8)


def _tint(number: int, alpha: float) -> np.ndarray:
    """What each of 256 values of each channel becomes below a fill: uint8 `[1, 256, 3]`."""
    values = (1 - alpha) * np.arange(256)[:, None] + alpha * np.array(colour(number))
    return np.rint(values).astype(np.uint8)[None]


def _double(line: int, number: int, draw: Callable[..., object]) -> None:
    """A line in the instance's light tone on a wider dark one: one of the two shows on any background."""
    light = tuple(int(255 - 0.5 * (255 - value)) for value in colour(number))
    draw((0, 0, 0), line + 2 * max(1, line // 3), cv2.LINE_AA)
    draw(light, line, cv2.LINE_AA)


# --- Tags ----------------------------------------------------------------------------------------------------------


def _draw_tags(
    canvas: np.ndarray, items: Sequence[tuple[Detection, int, tuple[int, int, int, int]]], numbered: bool
) -> None:
    height, width = canvas.shape[:2]
    size = int(np.clip(np.sqrt(height * width) / 45, _SMALLEST_TEXT, _LARGEST_TEXT))
    objects = np.array([box for *_, box in items], float).reshape(-1, 4)
    placed, tags = np.empty((0, 4)), []
    for detection, number, box in items:
        prefix = (f"{number} " if numbered else "") + ("~" if detection.source == "clipseg" else "")
        tag = _tag(prefix, detection.label, f"{detection.score:.2f}", number, size, width, height)
        if tag is None:
            continue
        place = _place(tag.shape[1], tag.shape[0], box, placed, objects, width, height)
        placed = np.vstack([placed, place])
        tags.append((tag, place))
    for tag, (x0, y0, x1, y1) in reversed(tags):  # where there was no room, the first is on top
        canvas[y0:y1, x0:x1] = tag


def _place(w, h, box, placed, objects, width, height) -> tuple[int, int, int, int]:
    """Where a tag of `w` x `h` pixels hides least: other tags above all, then objects; near its own box."""
    x0, y0, x1, y1 = box
    near = [(x0, y0 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1), (x1, y0), (x0 - w, y0)]
    near += [(x0, y0), (x1 - w, y0), (x0, y1 - h), (x1 - w, y1 - h)]
    far = [(x, y) for y in range(0, height - h + 1, h) for x in (x0, x1 - w)]  # where it is crowded
    corners = np.array(near + far)
    corners = np.clip(corners, 0, (width - w, height - h))
    spots = np.hstack([corners, corners + np.array([w, h])])

    def hidden(others: np.ndarray) -> np.ndarray:
        """How much of each spot, or of what lies below it if that is smaller, is shared: sums `[spots]`."""
        low = np.maximum(spots[:, None, :2], others[:, :2])
        high = np.minimum(spots[:, None, 2:], others[:, 2:])
        areas = (others[:, 2:] - others[:, :2]).prod(1)
        return ((high - low).clip(0).prod(-1) / np.minimum(areas, w * h)).sum(1)

    gap = np.maximum(np.array([x0, y0]) - spots[:, 2:], spots[:, :2] - np.array([x1, y1])).clip(0).sum(1) / h
    cost = 10 * hidden(placed) + hidden(objects) + 0.2 * gap + 0.01 * np.arange(len(spots))
    return tuple(int(value) for value in spots[cost.argmin()])


@lru_cache(maxsize=64)
def _tag(prefix: str, label: str, score: str, number: int, size: int, width: int, height: int) -> np.ndarray | None:
    """A tag as uint8 `[h, w, 3]` that fits into `width` x `height` and takes at most a quarter of it, shortened for
    that if need be, or `None` if nothing readable does."""
    label = _printable(label)
    kept, pixels = min(len(label), _LONGEST_LABEL), size
    while True:
        short = label if kept == len(label) else f"{label[:kept].rstrip()}…" if kept else ""
        # The marks (U+200E) keep prefix, label and score in this order round a label written from right to left.
        text = f"\u200e{prefix}{short}\u200e {score}"
        font, pad = _font(pixels), max(1, pixels // 6)
        w, h = int(np.ceil(font.getlength(text))) + 2 * pad, sum(font.getmetrics()) + pad
        if w <= width and h <= height and 4 * w * h <= width * height:
            break
        if pixels > _SMALLEST_TEXT:
            pixels -= 1
        elif kept:
            kept -= 1
        else:
            return None
    back = colour(number)
    # Relative luminance (WCAG 2): black has more contrast above 0.179, white below.
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(back) / 255]
    ink = "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"
    tag = Image.new("RGB", (w, h), back)
    ImageDraw.Draw(tag).text((pad, pad // 2), text, ink, font)
    return np.asarray(tag)


@lru_cache
def _font_path() -> str:
    return font_manager.findfont("DejaVu Sans")  # comes with matplotlib


@lru_cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(_font_path()).get_charmap())


@lru_cache(maxsize=256)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(), pixels)


def _printable(text: str) -> str:
    return "".join(letter if ord(letter) in _letters() else "?" for letter in " ".join(text.split()))
