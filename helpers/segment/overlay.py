"""Detections drawn on their image: outlines, light fills, boxes, and tags with label and score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import hsv_to_rgb, to_rgb
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from helpers.common.figures import PALETTE
from helpers.segment.detections import Detection

FILL = 0.1  # opacity: an object that is named by its colour must still be seen in it
LEAST_FILLED = 1 / 400  # of the image, 28 x 28 pixels of 640 x 480; what is smaller is seen by its outline well enough
LONGEST_LABEL = 40  # letters


def draw_instances(image: np.ndarray, detections: Sequence[Detection], ids: Sequence[int] | None = None) -> np.ndarray:
    """Draw masks over a copy of an image, uint8 RGB `[H, W, 3]`: outlines outside the masks, and light fills.

    Every instance has a colour and a tag; where masks overlap, the smaller one is on top. A dashed outline and a `~`
    before the label say that CLIPSeg found it, whose score does not compare with the detector's. `ids`, from 1, give
    the colours and stand in the tags; without them the order does."""
    canvas, occupied = np.array(image, order="C"), np.zeros(image.shape[:2], np.uint8)
    items = list(zip(ids or range(1, len(detections) + 1), detections, strict=True))
    for number, detection in sorted(items, key=lambda item: -np.count_nonzero(item[1].mask)):
        mask = detection.mask.astype(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        part, mask = (slice(y, y + h), slice(x, x + w)), mask[y : y + h, x : x + w]
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        _outline(canvas, contours, number, dashed=detection.source == "clipseg")
        # The inside comes last and from the image: lines lie outside, and fills of several objects never add up.
        inside = image[part]
        if np.count_nonzero(mask) >= LEAST_FILLED * occupied.size:
            inside = cv2.addWeighted(inside, 1 - FILL, np.full_like(inside, colour(number)), FILL, 0)
        cv2.copyTo(inside, mask, canvas[part])
        occupied[part] |= mask
    _draw_tags(canvas, occupied, items, ids is not None)
    return canvas


def draw_boxes(image: np.ndarray, detections: Sequence[Detection]) -> np.ndarray:
    """Draw boxes with label and score over an image, as `draw_instances` colours and tags them."""
    canvas, occupied = np.array(image, order="C"), np.zeros(image.shape[:2], np.uint8)
    for number, detection in enumerate(detections, 1):
        x0, y0, x1, y1 = _inside(detection.box, canvas)
        before = canvas[y0:y1, x0:x1].copy()
        _outline(canvas, [np.array([(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)], np.int32)], number)
        canvas[y0:y1, x0:x1] = before
        occupied[y0:y1, x0:x1] = 1
    _draw_tags(canvas, occupied, list(enumerate(detections, 1)), ids=False)
    return canvas


def draw_tracked(image: np.ndarray, objects: Sequence[dict[str, Any]], unsure: Collection[int] = ()) -> np.ndarray:
    """Draw a frame's objects as `tracks.json` has them over it, uint8 RGB `[H, W, 3]`, in the colours of their ids;
    those whose ids are in `unsure` as what CLIPSeg found."""
    drawn = []
    for o in objects:
        source, mask = "clipseg" if o["id"] in unsure else "groundingdino", coco_mask.decode(o["mask"]).astype(bool)
        drawn.append(Detection(o["label"], o["score"], o["box"], source, mask))
    return draw_instances(image, drawn, [o["id"] for o in objects])


def colour(number: int) -> tuple[int, int, int]:
    """RGB of instance `number`, from 1: the palette of the figures without its black, then other hues."""
    index = number - 1
    if index < 7:
        rgb = to_rgb(PALETTE[index])
    else:  # by steps of the golden ratio, each hue lies far from those just before it
        rgb = hsv_to_rgb(((0.05 + 0.618034 * index) % 1, (1, 0.75)[index % 2], (0.9, 0.55, 0.75)[index // 2 % 3]))
    return tuple(round(255 * value) for value in rgb)


def _reaches(image: np.ndarray) -> tuple[int, int, int]:
    """How far from an object its white, its coloured and its black line reach, in pixels: 5, 4 and 1 in 640 x 480."""
    line = max(2, round(np.sqrt(image.shape[0] * image.shape[1]) / 200))
    border = max(1, line // 4)
    return line + 2 * border, line + border, border


def _outline(canvas: np.ndarray, contours: Sequence[np.ndarray], number: int, dashed: bool = False) -> None:
    """Draw three lines around closed paths, to show on any background; what is inside is left to be restored."""
    if dashed:  # a point for each pixel of the path
        dash = 4 * _reaches(canvas)[0]
        contours = [path[i : i + dash] for path in contours for i in range(0, len(path), 2 * dash)]
    for ink, reach in zip(((255, 255, 255), colour(number), (0, 0, 0)), _reaches(canvas), strict=True):
        cv2.polylines(canvas, contours, not dashed, ink, 2 * reach, cv2.LINE_AA)


def _inside(box: Sequence[float], canvas: np.ndarray) -> tuple[int, int, int, int]:
    """The pixels of a box, at least one, far enough from the border of the image that lines around it can be seen."""
    sides = np.array([canvas.shape[1], canvas.shape[0]])
    margin = min(_reaches(canvas)[0], (sides.min() - 1) // 2)
    x0, y0 = np.clip(np.floor(box[:2]), margin, sides - margin - 1).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:]), margin, sides - margin).astype(int).tolist()
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _draw_tags(canvas: np.ndarray, occupied: np.ndarray, items: Sequence[tuple[int, Detection]], ids: bool) -> None:
    size = max(9, round(np.sqrt(occupied.size) / 45))  # of letters, in pixels
    margin, tags = _reaches(canvas)[0], []  # outlines are not to be hidden either, and other tags least of all
    hides = cv2.dilate(occupied, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    for number, detection in items:
        prefix = (f"{number} " if ids else "") + ("~" if detection.source == "clipseg" else "")
        tag = _tag(prefix, detection.label, f"{detection.score:.2f}", colour(number), size, canvas.shape[1])
        if tag is not None and len(tag) <= len(canvas):
            place = _place(tag.shape[1], tag.shape[0], _inside(detection.box, canvas), margin, hides)
            hides[place] = 10
            tags.append((place, tag))
    for place, tag in reversed(tags):  # the first is on top
        canvas[place] = tag


def _place(w: int, h: int, box: Sequence[int], margin: int, hides: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a tag of `w` x `h` pixels where it hides least (`hides`: by pixel), near its box."""
    height, width = hides.shape
    x0, y0, x1, y1 = box
    columns = (x0, x1 - w, (x0 + x1 - w) // 2)
    beside = (x1 + margin + 1, x0 - margin - 1 - w)
    spots = [(x, y) for y in (y0 - margin - 1 - h, y1 + margin + 1) for x in columns]
    spots += [(x, y) for y in (y0, (y0 + y1 - h) // 2, y1 - h) for x in beside]
    spots += [(x, y) for y in range(0, height - h + 1, max(1, h // 2)) for x in (*columns, *beside)]  # for a crowd
    left, top = np.clip(spots, 0, (width - w, height - h)).T
    right, bottom = left + w, top + h

    above = cv2.integral(hides)  # the sum over what is left of and above each place, [H + 1, W + 1]
    hidden = above[bottom, right] - above[top, right] - above[bottom, left] + above[top, left]
    gap = np.maximum(x0 - right, left - x1).clip(0) + np.maximum(y0 - bottom, top - y1).clip(0)
    i = (20 * hidden / (w * h) + 0.2 * gap / h + 0.001 * np.arange(len(spots))).argmin()
    return slice(top[i], bottom[i]), slice(left[i], right[i])


def _tag(prefix: str, label: str, score: str, back: tuple[int, int, int], size: int, width: int) -> np.ndarray | None:
    """A tag as uint8 `[h, w, 3]`, its label shortened to fit into `width`; `None` where not even the score fits."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)  # it comes with matplotlib
    pad = max(2, size // 5)
    for kept in range(min(len(label), LONGEST_LABEL), -1, -1):
        text = f"{prefix}{label[:kept].rstrip()}{'…' if kept < len(label) else ''} {score}"
        w = int(np.ceil(font.getlength(text))) + 2 * pad
        if w <= width:
            # Relative luminance (WCAG 2): black has more contrast above 0.18, white below.
            ink = "black" if np.dot((np.array(back) / 255) ** 2.2, (0.2126, 0.7152, 0.0722)) > 0.18 else "white"
            tag = Image.new("RGB", (w, sum(font.getmetrics()) + pad), back)
            ImageDraw.Draw(tag).text((pad, pad // 2), text, ink, font)
            return np.asarray(tag)
    return None
