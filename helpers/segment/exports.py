"""Files for several images together: COCO's instances, a data set for YOLO, and cut-outs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from helpers.common.boxes import mask_box
from helpers.common.files import atomic_path, write_csv
from helpers.common.images import given_root
from helpers.segment.detections import Detection
from helpers.segment.images import safe_name

FORMATS = ("coco", "yolo", "cutouts")
MOST_RINGS = 500  # outlines in a polygon: joining them takes a second, and a mask of more is noise
DATA_YAML = """# yolo segment train data=data.yaml model=yolo11n-seg.pt
train: images  # relative to this file
val: images  # the same ones: hold some out to measure anything
names:
"""


def parse_formats(export: str) -> tuple[str, ...]:
    """The formats that a text such as "coco, yolo" names, in the order of `FORMATS`; `ValueError` for other text."""
    names = [name.strip().lower() for name in str(export).split(",")]
    if not set(names) <= {*FORMATS, ""}:
        raise ValueError(f'export={export!r}: give any of {", ".join(FORMATS)} with commas between, or "" for none')
    return tuple(name for name in FORMATS if name in names)


def export_image(
    out: Path,
    name: str,
    path: Path,
    image: np.ndarray,
    detections: Sequence[Detection],
    phrases: Sequence[str],
    formats: Collection[str],
) -> None:
    """Write what `formats` ask for of one image, uint8 RGB `[H, W, 3]`, into `out`, as soon as it is done; objects
    without a pixel are left out. name: its folder's; path: where it came from; phrases: the labels by their number.

    - yolo: `yolo/labels/<name>.txt`, a line for each object: the number of its label from 0, and its polygon (see
      `mask_polygon`) as x y x y …, in shares of the image's width and height; and the image in `yolo/images/`.
    - cutouts: `cutouts/<name>_<id>_<label>.png` for each object, RGBA, as large as its mask, which is the alpha.
    """
    found = [(number, d) for number, d in enumerate(detections, 1) if d.mask.any()]
    if "yolo" in formats:
        lines = []
        for _, d in found:  # a quarter of a pixel more is the same one, whether a reader rounds or cuts off
            shares = (mask_polygon(d.mask) + 0.25) / d.mask.shape[::-1]
            lines.append(f"{phrases.index(d.label)} {' '.join(f'{value:.6f}' for value in shares.ravel())}\n")
        with atomic_path(out / "yolo" / "labels" / f"{name}.txt") as temporary:
            temporary.write_text("".join(lines))
        # A JPEG is kept as it is, of anything else the pixels that were segmented. No link: ultralytics mends files.
        content = path.read_bytes()
        is_jpeg = content.startswith(b"\xff\xd8\xff")
        with atomic_path(out / "yolo" / "images" / f"{name}{'.jpg' if is_jpeg else '.png'}") as temporary:
            if is_jpeg:
                temporary.write_bytes(content)
            else:
                Image.fromarray(image).save(temporary, compress_level=1)
    if "cutouts" in formats:
        for number, d in found:
            x0, y0, x1, y1 = mask_box(d.mask)
            inside = d.mask[y0:y1, x0:x1, None]
            pixels = np.concatenate([image[y0:y1, x0:x1] * inside, np.uint8(255) * inside], axis=2)
            with atomic_path(out / "cutouts" / _cutout_name(name, number, d.label)) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=1)


def mask_polygon(mask: np.ndarray) -> np.ndarray:
    """One closed path around all that a bool mask `[H, W]`, not empty, covers: x and y of pixels, int32 `[P >= 3, 2]`.

    It runs through the outermost pixels of each part and around each hole. From one to the next it goes there and back
    along a short line, a bridge: filled by the even-odd rule and with its outline, as cv2.fillPoly and Pillow do,
    it is the mask but for the bridges between parts. Of more than `MOST_RINGS` outlines the smallest are left out.
    """
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    path, *rings = sorted((ring.reshape(-1, 2) for ring in rings), key=len, reverse=True)[:MOST_RINGS]
    for ring in rings:  # goes in where the path comes nearest to it, turned to begin there
        step = 1 + len(path) * len(ring) // 500_000  # of long paths not every point is tried
        squares = ((path[::step, None] - ring) ** 2).sum(2)
        i, k = np.unravel_index(squares.argmin(), squares.shape)
        path = np.concatenate([path[: step * i + 1], ring[k:], ring[: k + 1], path[step * i :]])
    if len(path) > 2:  # points in the middle of a straight line say nothing
        path = path[((path - np.roll(path, 1, 0)) != (np.roll(path, -1, 0) - path)).any(1)]
    return path if len(path) > 2 else np.resize(path, (3, 2))


def _cutout_name(name: str, number: int, label: str) -> str:
    return f"{name}_{number}_{'-'.join(safe_name(label, 40).replace('_', ' ').split())}.png"


def finish_folder(
    out: Path, given: str | Path, rows: Sequence[dict], phrases: Sequence[str], formats: Collection[str]
) -> list[str]:
    """Write `summary.csv` of the rows, one for each image, and what `formats` ask for of all that were not skipped,
    after `export_image` of each; returns a line on each file. given: what the images were found by.

    - coco: `coco.json`, made of their `detections.json`: images are named by their paths from `given`, categories are
      the phrases in order, from 1, and besides COCO's keys an annotation has its `score`.
    - yolo: `yolo/data.yaml`, which names the phrases.
    - cutouts: those that an earlier run left of the same images are removed.
    """
    write_csv(rows, out / "summary.csv")
    done = [row for row in rows if not row["skipped"]]
    lines = [f"{len(done)} of {len(rows)} images; the table is in {out / 'summary.csv'}"]
    root, entries, annotations, cutouts = given_root(given), [], [], set()
    for number, row in enumerate(done, 1) if formats else ():
        record = json.loads((out / row["folder"] / "detections.json").read_text(encoding="utf-8"))
        relative = Path(os.path.relpath(row["image"], root)).as_posix()
        size = record["image"]
        entries.append({"id": number, "file_name": relative, "width": size["width"], "height": size["height"]})
        for found in record["detections"]:
            rle, label = found["mask"], found["label"]
            if area := int(coco_mask.area(rle)):
                cutouts.add(_cutout_name(row["folder"], found["id"], label))
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": phrases.index(label) + 1}
                place = {"segmentation": rle, "bbox": coco_mask.toBbox(rle).tolist(), "area": area, "iscrowd": 0}
                annotations.append({**ids, **place, "score": found["score"]})
    if "coco" in formats:
        info = {"description": ". ".join(phrases)}
        categories = [{"id": i, "name": phrase, "supercategory": ""} for i, phrase in enumerate(phrases, 1)]
        coco = {"info": info, "licenses": [], "categories": categories, "images": entries, "annotations": annotations}
        with atomic_path(out / "coco.json") as temporary:
            temporary.write_text(json.dumps(coco), encoding="ascii")
        lines.append(f"COCO instances: {out / 'coco.json'}")
    if "yolo" in formats:
        names = "".join(f"  {i}: {json.dumps(phrase, ensure_ascii=False)}\n" for i, phrase in enumerate(phrases))
        with atomic_path(out / "yolo" / "data.yaml") as temporary:
            temporary.write_text(DATA_YAML + names, encoding="utf-8")
        lines.append(f"YOLO data set: {out / 'yolo' / 'data.yaml'}")
    if "cutouts" in formats:
        folders = {row["folder"] for row in done}
        for file in (out / "cutouts").glob("*.png"):
            if file.name not in cutouts and file.stem.rsplit("_", 2)[0] in folders:
                file.unlink()
        lines.append(f"{len(cutouts)} cut-outs: {out / 'cutouts'}")
    return lines
