"""How well tracks follow the objects of a drawn clip, whose true masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers.segment.detections import mask_iou
from helpers.segment.outputs import decode_mask
from helpers.shapes.clips import ClipObject

_LEAST_IOU = 0.5  # of an id with the object on a frame, to be its id there


@dataclass(frozen=True)
class TrackScore:
    """Scores of one true object. `j` is the mean IoU over the frames with the id that it has most often, under its own
    label, where a frame counts as 1 if neither has a mask (J of Perazzi et al., "A Benchmark Dataset and Evaluation
    Methodology for Video Object Segmentation", CVPR 2016, for clips in which objects come and go); `switched` whether
    it has more than one id; `late` whether it is absent from the first frame; `delay` how many frames after half of its
    largest area shows it is found, `None` if never."""

    j: float
    switched: bool
    late: bool
    delay: int | None


def masks_by_id(frames: Sequence[dict[str, Any]]) -> list[dict[int, tuple[str, np.ndarray]]]:
    """{id: (label, mask bool [H, W])} of each frame of `tracks.json`."""
    return [{o["id"]: (o["label"], decode_mask(o["mask"])) for o in frame["objects"]} for frame in frames]


def score_object(item: ClipObject, frames: Sequence[dict[int, tuple[str, np.ndarray]]]) -> TrackScore:
    """Compare a true object with what `masks_by_id` returned for the first of its frames, or all of them."""
    label, masks = f"{item.colour} {item.shape}", item.masks[: len(frames)]
    ids = []
    for found, mask in zip(frames, masks, strict=True):
        overlaps = {i: mask_iou(m, mask) for i, (name, m) in found.items() if name == label}
        best = max(overlaps, key=overlaps.get, default=None)
        ids.append(best if best is not None and overlaps[best] >= _LEAST_IOU else None)
    known = [i for i in ids if i is not None]
    main = max(sorted(set(known)), key=known.count, default=None)
    values = []
    for found, mask in zip(frames, masks, strict=True):
        mine = found[main][1] if main in found else np.zeros_like(mask)
        values.append(mask_iou(mine, mask) if (mine | mask).any() else 1.0)
    areas = masks.sum((1, 2))
    shows = np.flatnonzero(areas >= max(1, 0.5 * areas.max()))
    first = next((t for t, i in enumerate(ids) if i is not None), None)
    delay = None if first is None or not len(shows) else first - int(shows[0])
    return TrackScore(float(np.mean(values)), len(set(known)) > 1, not masks[0].any(), delay)
