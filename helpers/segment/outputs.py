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
from helpers.segment.video import VideoReader


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run-length encoding of a bool mask `[H, W]`: {`size`: [H, W], `counts`: text}, ready for JSON."""
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
    models: dict[str, str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write the four files of one image into `folder`, each atomically, and return what `detections.json` holds.

    image: uint8 RGB `[H, W, 3]`; detections: with their masks; path: where it came from; seconds: by stage.

    - `mask.png`: 8 bits, 255 where any instance is.
    - `instances.png`: 16 bits, the ids 1 … N in the order of `detections`, 0 for the background; where masks overlap,
      the smaller one is on top, of equal ones the higher score.
    - `overlay.png`: as `draw_instances` draws it.
    - `detections.json`, written last: masks (COCO's run-length encoding) are whole where instances overlap, boxes in
      pixels, cut at the image's border; a score that is no finite number is null.

    Raises `OSError` that names the folder if it cannot be written.
    """
    folder = Path(folder)
    height, width = image.shape[:2]
    record = {
        "image": {"path": str(path), "width": width, "height": height},
        "prompt": prompt,
        "models": models,
        "seconds": {stage: _rounded(value, 4) for stage, value in seconds.items()},
        "detections": [_entry(i, detection, width, height) for i, detection in enumerate(detections, 1)],
    }
    instances = np.zeros((height, width), np.uint16)
    by_area = sorted(enumerate(detections, 1), key=lambda item: (-np.count_nonzero(item[1].mask), item[1].score))
    for number, detection in by_area:
        instances[detection.mask] = number
    pictures = {
        "mask.png": np.where(instances > 0, np.uint8(255), np.uint8(0)),
        "instances.png": instances,
        "overlay.png": draw_instances(image, detections),
    }
    try:
        for name, pixels in pictures.items():
            with atomic_path(folder / name) as temporary:
                # Photos shrink by less than a tenth more at the usual level 6, which takes nearly twice as long.
                Image.fromarray(pixels).save(temporary, compress_level=1)
        with atomic_path(folder / "detections.json") as temporary:
            text = json.dumps(record, indent=2, ensure_ascii=False)
            temporary.write_bytes(text.encode("utf-8", "replace"))  # a file's name may hold bytes that are no text
    except OSError as error:
        advice = "free space, or write to another folder"
        raise OSError(f"{folder}: the results could not be written there ({error}): {advice}.") from error
    return record


def table(detections: Sequence[Detection], seconds: dict[str, float]) -> str:
    """Return the seconds of each stage and a line for each object, to be printed."""
    lines = [" · ".join(f"{stage} {taken:.2f} s" for stage, taken in seconds.items())]
    lines.append(f"{'label':24} {'score':>6} {'mask score':>10}  {'source':14} pixels")
    for d in detections:
        lines.append(f"{d.label[:24]:24} {d.score:6.2f} {d.mask_score:10.2f}  {d.source:14} {d.mask.sum():,}")
    return "\n".join(lines)


def _entry(number: int, detection: Detection, width: int, height: int) -> dict[str, Any]:
    """One detection as `detections.json` holds it."""
    return {
        "id": number,
        "label": detection.label,
        "score": _rounded(detection.score, 4),
        "box": np.clip(np.array(detection.box, float), 0, (width, height, width, height)).round(2).tolist(),
        "mask": encode_mask(detection.mask),
        "mask_score": _rounded(detection.mask_score, 4),
        "source": detection.source,
    }


def track_entry(number: int, label: str, score: float, mask: np.ndarray) -> dict[str, Any]:
    """One object on one frame as `tracks.json` holds it; mask: bool `[H, W]`, not empty. The box is the mask's."""
    box = list(mask_box(mask))
    return {"id": number, "label": label, "score": _rounded(score, 4), "box": box, "mask": encode_mask(mask)}


def write_tracks(
    path: Path | str,
    clip: VideoReader,
    prompt: str,
    models: dict[str, str],
    complete: bool,
    frames: Sequence[dict[str, Any]],
) -> None:
    """Write `tracks.json` atomically. complete: whether all frames of the clip were done; frames: `index`, `time` and
    `objects` of each, these as `track_entry` makes them."""
    about = {"path": str(clip.path), "width": clip.width, "height": clip.height, "fps": clip.fps, "frames": len(frames)}
    record = {"video": about, "prompt": prompt, "models": models, "complete": complete}
    lines = ",\n".join(json.dumps(frame, ensure_ascii=False) for frame in frames)  # one a frame, for the eye
    text = f'{json.dumps(record, ensure_ascii=False)[:-1]}, "frames": [\n{lines}\n]}}\n'
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))


def _rounded(value: float | None, digits: int) -> float | None:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None
