"""Files of a segmented image or video: masks, overlay and the record of its objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from helpers.common.boxes import mask_box
from helpers.common.files import atomic_path
from helpers.segment.detections import Detection
from helpers.segment.inputs import Settings
from helpers.segment.overlay import draw_instances
from helpers.segment.video import VideoReader

TINY = "the tiny models know six drawn shapes in eight colours, and nothing else; models='full' is for photos"


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
    """Write the four files of one image, uint8 RGB `[H, W, 3]`, into `folder`, each atomically, and return what
    `detections.json` holds. path: where the image came from; seconds: by stage. Raises
    `OSError` that names the folder if it cannot be written.

    - `mask.png`: 8 bits, 255 where any instance is.
    - `instances.png`: 16 bits, the ids 1 … N in the order of `detections`, 0 for the background; where masks overlap,
      the smaller one is on top, of equal ones the higher score.
    - `overlay.png`: as `draw_instances` draws it.
    - `detections.json`, written last: whole masks where instances overlap, boxes in pixels, cut at the image's border.
    """
    folder, (height, width) = Path(folder), image.shape[:2]
    entries = []
    for number, d in enumerate(detections, 1):
        box = np.clip(np.array(d.box, float), 0, (width, height, width, height)).round(2).tolist()
        entry = {"id": number, "label": d.label, "score": round(float(d.score), 4), "box": box}
        about_mask = {"mask": encode_mask(d.mask), "mask_score": round(float(np.nan_to_num(d.mask_score)), 4)}
        entries.append({**entry, **about_mask, "source": d.source})
    record = {
        "image": {"path": str(path), "width": width, "height": height},
        "prompt": prompt,
        "models": models,
        "seconds": {stage: round(float(taken), 4) for stage, taken in seconds.items()},
        "detections": entries,
    }
    instances = np.zeros((height, width), np.uint16)
    for i in sorted(range(len(detections)), key=lambda i: (-detections[i].mask.sum(), detections[i].score)):
        instances[detections[i].mask] = i + 1
    mask, overlay = np.uint8(255) * (instances > 0), draw_instances(image, detections)
    try:
        for name, pixels in (("mask", mask), ("instances", instances), ("overlay", overlay)):
            with atomic_path(folder / f"{name}.png") as temporary:
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


def advice(kind: str, settings: Settings) -> str:
    """Return what to do where nothing is found; kind: of the models, "full" or "tiny"."""
    if kind == "tiny":
        return TINY
    return (
        f"lower box_threshold ({settings.box_threshold}) or clipseg_thr ({settings.clipseg_thr}), or use plainer words"
    )


def track_entry(number: int, label: str, score: float, mask: np.ndarray) -> dict[str, Any]:
    """One object on one frame as `tracks.json` holds it; mask: bool `[H, W]`, not empty. The box is the mask's."""
    rle = encode_mask(mask)
    return {"id": number, "label": label, "score": round(float(score), 4), "box": list(mask_box(mask)), "mask": rle}


def track_table(frames: Sequence[dict[str, Any]]) -> str:
    """Return a line for each object of the frames that `tracks.json` holds, to be printed."""
    seen: dict[tuple[int, str], list[int]] = {}
    for frame in frames:
        for found in frame["objects"]:
            seen.setdefault((found["id"], found["label"]), []).append(frame["index"])
    lines = [f"{i} {label}: on {len(on)} frames, {on[0]} to {on[-1]}" for (i, label), on in sorted(seen.items())]
    return "\n".join(lines) or "nothing was followed"


def doubtful_frame(frames: Sequence[dict[str, Any]]) -> int | None:
    """Return the index of the frame on which two objects share most of the smaller one's pixels, more than half: there
    one of them has often taken a part of the other. None where no two do; frames: those of `tracks.json`."""
    most, index = 0.5, None
    for frame in frames:
        masks = [found["mask"] for found in frame["objects"]]
        if len(masks) > 1:
            shared = coco_mask.iou(masks, masks, [True] * len(masks))  # of the first mask's pixels, by pair
            np.fill_diagonal(shared, 0)
            if shared.max() > most:
                most, index = shared.max(), frame["index"]
    return index


def write_tracks(
    path: Path, clip: VideoReader, prompt: str, models: dict[str, str], complete: bool, frames: Sequence[dict[str, Any]]
) -> None:
    """Write `tracks.json` atomically; frames: `index`, `time` and `objects` of each, as `track_entry` makes them."""
    about = {"path": str(clip.path), "width": clip.width, "height": clip.height, "fps": clip.fps, "frames": len(frames)}
    record = {"video": about, "prompt": prompt, "models": models, "complete": complete}
    lines = ",\n".join(json.dumps(frame, ensure_ascii=False) for frame in frames)  # one a frame, for the eye
    text = f'{json.dumps(record, ensure_ascii=False)[:-1]}, "frames": [\n{lines}\n]}}\n'
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))
