"""What a segmented image or video leaves on the disk: masks, overlay and the record of its objects."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from helpers.common.boxes import mask_box
from helpers.common.files import atomic_path
from helpers.segment.detections import Detection
from helpers.segment.overlay import draw_instances

_MOST_INSTANCES = 2**16 - 1


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run-length encoding of a bool mask `[H, W]`: {`size`: [H, W], `counts`: text}, ready for JSON.

    Raises `ValueError` for another type or shape.
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"a mask is {mask.dtype} {list(mask.shape)}, expected bool [H, W]: threshold it first.")
    rle = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """The bool mask `[H, W]` that `encode_mask` wrote."""
    return np.ascontiguousarray(coco_mask.decode(rle), dtype=bool)


def write_detections(
    folder: Path | str,
    image: np.ndarray,
    detections: Sequence[Detection],
    path: Path | str,
    prompt: str,
    models: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write the four files of one image into `folder`, each atomically, and return what `detections.json` holds.

    image: uint8 RGB `[H, W, 3]`; path: where it came from. Every detection needs its mask. seconds: by stage.

    - `mask.png`: 8 bits, 255 where any instance is.
    - `instances.png`: 16 bits, the ids 1 … N in the order of `detections`, 0 for the background. Where masks overlap,
      the smaller one is on top, so that a small object on a large one is not lost; of equal ones the higher score.
    - `overlay.png`: as `draw_instances` draws it.
    - `detections.json`, written last: its masks (COCO's run-length encoding) are whole where instances overlap. Boxes
      are in pixels, cut at the image's border; a score that is no finite number is null.

    Raises `ValueError` for a detection without a mask or with one of another size, for a box that is not finite, and
    for more instances than 16 bits can number; `OSError` that names the folder if it cannot be written.
    """
    folder = Path(folder)
    height, width = image.shape[:2]
    if len(detections) > _MOST_INSTANCES:
        raise ValueError(
            f"{len(detections):,} detections, but instances.png can number {_MOST_INSTANCES:,}: set max_objects, or "
            "raise box_threshold."
        )
    record = {
        "image": {"path": str(path), "width": width, "height": height},
        "prompt": prompt,
        "models": models,
        "seconds": {stage: _rounded(value, 4) for stage, value in seconds.items()},
        "detections": [_entry(i, detection, width, height) for i, detection in enumerate(detections, 1)],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    instances = _instance_map(detections, height, width)
    overlay = draw_instances(image, detections)
    try:
        for name, pixels in (
            ("mask.png", np.where(instances > 0, np.uint8(255), np.uint8(0))),
            ("instances.png", instances),
            ("overlay.png", overlay),
        ):
            with atomic_path(folder / name) as temporary:
                # Photos shrink by less than a tenth more at the usual level 6, which takes nearly twice as long.
                Image.fromarray(pixels).save(temporary, compress_level=1)
        with atomic_path(folder / "detections.json") as temporary:
            temporary.write_bytes(text.encode("utf-8", "replace"))  # a file's name may hold bytes that are no text
    except OSError as error:
        raise OSError(
            f"{folder}: the results could not be written there ({error}): free space, or write to another folder."
        ) from error
    return json.loads(text)


def track_entry(number: int, label: str, score: float, mask: np.ndarray) -> dict[str, Any]:
    """One object on one frame as `tracks.json` holds it; mask: bool `[H, W]`, not empty. The box is the mask's."""
    box = list(mask_box(mask))
    return {"id": number, "label": label, "score": _rounded(score, 4), "box": box, "mask": encode_mask(mask)}


def draw_tracked(image: np.ndarray, objects: Sequence[dict[str, Any]]) -> np.ndarray:
    """Draw what `tracks.json` holds of a frame over it, uint8 RGB `[H, W, 3]`, each object in the colour of its id."""
    drawn = [
        Detection(o["label"], o["score"], tuple(o["box"]), "groundingdino", decode_mask(o["mask"])) for o in objects
    ]
    return draw_instances(image, drawn, ids=[o["id"] for o in objects]) if objects else image


def visible_areas(frames: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """{"id label": its share of the image on each frame, 0 where it is out of sight} from the frames of `tracks.json`,
    in the order of the ids; the label is the last one."""
    names = dict(sorted({o["id"]: f"{o['id']} {o['label']}" for f in frames for o in f["objects"]}.items()))
    shares = {number: [0.0] * len(frames) for number in names}
    for i, frame in enumerate(frames):
        for o in frame["objects"]:
            shares[o["id"]][i] = float(decode_mask(o["mask"]).mean())
    return {names[number]: values for number, values in shares.items()}


def write_tracks(
    path: Path | str,
    video: dict[str, Any],
    prompt: str,
    models: dict[str, Any],
    complete: bool,
    frames: Sequence[dict[str, Any]],
) -> None:
    """Write `tracks.json` atomically. video: `path`, `width`, `height`, `fps` and `frames`; complete: whether all
    frames were done; frames: `index`, `time` and `objects` of each, these as `track_entry` makes them."""
    record = {"video": video, "prompt": prompt, "models": models, "complete": complete}
    head = json.dumps(record, ensure_ascii=False, default=_plain)[:-1]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(f'{head}, "frames": ['.encode("utf-8", "replace"))
        for i, frame in enumerate(frames):  # a line each, so that a long record can be read with the eye
            file.write((",\n" if i else "\n").encode() + json.dumps(frame, ensure_ascii=False).encode())
        file.write(b"\n]}\n")


def _entry(number: int, detection: Detection, width: int, height: int) -> dict[str, Any]:
    """One detection as `detections.json` holds it."""
    name = f"detection {number} ({detection.label!r})"
    if detection.mask is None or detection.mask.shape != (height, width):
        found = "no mask" if detection.mask is None else f"a mask of {list(detection.mask.shape)}"
        raise ValueError(f"{name} has {found}, expected bool {[height, width]} like the image: run SAM 2 on it first.")
    if not all(map(math.isfinite, detection.box)):
        raise ValueError(f"{name} has the box {tuple(detection.box)}, which is no place in the image: leave it out.")
    limits = (width, height, width, height)
    return {
        "id": number,
        "label": detection.label,
        "score": _rounded(detection.score, 4),
        "box": [_rounded(min(max(0, value), limit), 2) for value, limit in zip(detection.box, limits, strict=True)],
        "mask": encode_mask(detection.mask),
        "mask_score": _rounded(detection.mask_score, 4),
        "source": detection.source,
    }


def _instance_map(detections: Sequence[Detection], height: int, width: int) -> np.ndarray:
    """uint16 `[H, W]` of ids from 1, painted so that the smallest instance is on top."""
    instances = np.zeros((height, width), np.uint16)
    areas = [np.count_nonzero(detection.mask) for detection in detections]
    for i in sorted(range(len(detections)), key=lambda i: (-areas[i], detections[i].score)):
        instances[detections[i].mask] = i + 1
    return instances


def _rounded(value: float | None, digits: int) -> float | None:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """What JSON has no type for: numpy's numbers, and paths."""
    return value.item() if isinstance(value, np.generic) else str(value)
