"""Measure q2's whole pipeline with the embedded tiny models on drawn scenes that no training has seen:

    python assets/tiny/measure.py --seed 1 --scenes 500 [--drawn-by pillow]

Prints a table and, with --out, writes it as Markdown. Scenes as helpers/shapes/ draws them: images of 96 to 1024
pixels a side, aspect ratios from 1:2 to 2:1, 1 to 5 objects from 24 pixels to half the image. With `--drawn-by pillow`
the objects are drawn flat by Pillow instead, on a plain colour or on something like a photo out of focus.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from phrases import make_phrases, scene_size
from PIL import Image, ImageDraw, ImageFilter

from common import ROOT, nbload
from helpers.common import device, environment
from helpers.segment import clipseg, grounding_dino, sam2_image
from helpers.segment.inputs import Settings
from helpers.segment.models import Models
from helpers.shapes.draw import COLOURS
from helpers.shapes.scenes import MIN_DIAMETER, SCENE_SHAPES, Scene, SceneObject, make_scene

# Never those of a training, whose generators are seeded with (seed, step).
STREAM = 20_000_000
GROUPS = {
    "object": ("24 to 48 px", "48 to 96 px", "over 96 px"),
    "image": ("up to 256 px", "256 to 512 px", "over 512 px"),
    "aspect": ("tall", "about square", "wide"),
}


def load_tiny(q2, compute: device.Compute, tiny: Path = ROOT / "assets" / "tiny"):
    """The embedded models, as the notebook holds them."""
    return Models(
        grounding_dino.load(tiny / "groundingdino", None, compute),
        sam2_image.load_sam2(tiny / "sam2", compute),
        clipseg.load_clipseg(tiny / "clipseg", compute),
        compute,
    )


# --- Scenes of another hand ------------------------------------------------------------------------------------------


def _points(shape: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Corners in a frame from -1 to 1, y down, as one would write them by hand."""
    if shape == "square":
        return [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]
    if shape == "triangle":
        return [(0, -0.9), (0.85, 0.7), (-0.85, 0.7)]
    if shape == "star":
        return [
            (r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5))
            for k in range(10)
            for r in ((0.97, 0.42)[k % 2],)
        ]
    if shape == "cross":
        a = 0.3
        return [
            (-a, -0.9), (a, -0.9), (a, -a), (0.9, -a), (0.9, a), (a, a),
            (a, 0.9), (-a, 0.9), (-a, a), (-0.9, a), (-0.9, -a), (-a, -a),
        ]  # fmt: skip
    ts = [2 * math.pi * k / 60 for k in range(60)]  # a circle or a heart
    if shape == "circle":
        return [(0.95 * math.cos(t), 0.95 * math.sin(t)) for t in ts]
    return [
        (0.055 * 16 * math.sin(t) ** 3,
         -0.055 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
        for t in ts
    ]  # fmt: skip


def _photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Patches of muted colours out of focus, with a little grain."""
    image = Image.new("RGB", (width, height), tuple(rng.integers(60, 190, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.4, 2) * (width, height)
        grey = rng.uniform(40, 215)
        draw.ellipse((x - w, y - h, x + w, y + h), fill=tuple(int(v) for v in grey + rng.uniform(-30, 30, 3)))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(max(height, width) / 40)), np.float32)
    return Image.fromarray(np.clip(blurred + rng.normal(0, 5, blurred.shape), 0, 255).astype(np.uint8))


def pillow_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Like `make_scene`, drawn four times as large by Pillow and scaled down; objects do not overlap."""
    if rng.random() < 0.5:
        image = Image.new("RGB", (width, height), (255, 255, 255) if rng.random() < 0.5 else (30, 30, 30))
    else:
        image = _photo(rng, height, width)
    objects: list[SceneObject] = []
    for _ in range(rng.integers(1, 6)):
        shape, colour = rng.choice(SCENE_SHAPES), rng.choice(list(COLOURS))
        for _ in range(20):
            size = math.exp(rng.uniform(math.log(MIN_DIAMETER), math.log(max(MIN_DIAMETER, min(height, width) / 2))))
            cx, cy = (rng.uniform(size / 2, side - size / 2) for side in (width, height))
            turn = math.radians(rng.choice([0, 0, rng.uniform(-30, 30)]))
            corners = [
                (cx + size / 2 * (x * math.cos(turn) - y * math.sin(turn)),
                 cy + size / 2 * (x * math.sin(turn) + y * math.cos(turn)))
                for x, y in _points(shape, rng)
            ]  # fmt: skip
            large = Image.new("L", (4 * width, 4 * height))
            ImageDraw.Draw(large).polygon([(4 * x, 4 * y) for x, y in corners], fill=255)
            cover = large.resize((width, height), Image.Resampling.BOX)
            mask = np.asarray(cover) >= 128
            ink = np.array(COLOURS[colour], float)
            behind = np.asarray(image, float)[mask]
            if not any((mask & other.mask).any() for other in objects) and (np.abs(behind.mean(0) - ink).sum() > 130):
                break
        else:
            continue
        image.paste(COLOURS[colour], mask=cover)
        objects.append(SceneObject(str(shape), str(colour), size, mask))
    return Scene(np.array(image), objects)


# --- Measuring -------------------------------------------------------------------------------------------------------


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def union_mask(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    return np.any(masks, axis=0) if masks else np.zeros(shape, bool)


def groups_of(scene: Scene, phrase) -> tuple[str, str, str]:
    """Where a phrase counts: by its smallest object, by the image's longer side, and by the aspect ratio."""
    height, width = scene.image.shape[:2]
    smallest = min(scene.objects[i].diameter for i in phrase.objects)
    aspect = width / height
    sizes = np.searchsorted((48, 96), smallest), np.searchsorted((256, 512), max(height, width))
    return tuple(
        f"{kind} {names[i]}"
        for (kind, names), i in zip(GROUPS.items(), (*sizes, int(aspect > 1 / 1.3) + int(aspect > 1.3)), strict=True)
    )


def measure(q2, networks, scenes: int, seed: int, drawn_by: str = "helpers") -> list[tuple[str, str, int]]:
    """Rows (what, value, number of phrases) over `scenes` scenes; deterministic for a seed."""
    settings = Settings()
    ious, found, alone, boxed, shape_boxed, seconds, groups = [], [], [], [], [], {}, {}
    for i in range(scenes):
        rng = np.random.default_rng((STREAM + seed, i))
        height, width = scene_size(rng)
        scene = pillow_scene(rng, height, width) if drawn_by == "pillow" else make_scene(rng, height, width)
        phrases = make_phrases(rng, scene, 3, 2)
        if not phrases:
            continue
        texts = [phrase.text for phrase in phrases]
        detections, taken = q2.segment(networks, scene.image, texts, settings)
        for stage, value in taken.items():
            seconds.setdefault(stage, []).append(value)
        (encoded,), (heat,) = networks.sam2.encode([scene.image]), networks.clipseg.heatmaps([scene.image], [texts])
        coarse = q2.fall_back(networks.sam2, encoded, heat, texts, settings.clipseg_thr)
        for phrase in phrases:
            mine = [d for d in detections if d.label == phrase.text]
            if not phrase.objects:
                boxed.append(bool(mine))
                if not COLOURS.keys() & phrase.text.split():
                    shape_boxed.append(bool(mine))
                continue
            truth = [scene.objects[k].mask for k in phrase.objects]
            whole = union_mask(truth, (height, width))
            ious.append(iou(union_mask([d.mask for d in mine], (height, width)), whole))
            best = max(mine, key=lambda d: d.score, default=None)
            found.append(best is not None and max(iou(best.mask, mask) for mask in truth) >= 0.5)
            from_clipseg = [d.mask for d in coarse if d.label == phrase.text]
            alone.append(iou(union_mask(from_clipseg, (height, width)), whole))
            for group in groups_of(scene, phrase):
                groups.setdefault(group, []).append(ious[-1])
    rows = [
        (
            "present phrases whose surest object is right, IoU of the mask at least 0.5",
            f"{100 * np.mean(found):.1f} %",
            len(found),
        ),
        ("mean IoU of the final mask", f"{np.mean(ious):.3f}", len(ious)),
        *(
            (f"mean IoU, {name}", f"{np.mean(groups[name]):.3f}", len(groups[name]))
            for kind, names in GROUPS.items()
            for name in (f"{kind} {n}" for n in names)
            if name in groups
        ),
        ("absent phrases that get an object", f"{100 * np.mean(boxed):.1f} %", len(boxed)),
        *(
            [("of those that name a shape alone", f"{100 * np.mean(shape_boxed):.1f} %", len(shape_boxed))]
            if shape_boxed
            else []
        ),
        ("mean IoU of CLIPSeg and SAM 2 alone", f"{np.mean(alone):.3f}", len(alone)),
    ]
    rows += [(f"median seconds, {stage}", f"{np.median(values):.3f}", len(values)) for stage, values in seconds.items()]
    return rows


def table(rows, title: str) -> str:
    lines = [title, "", "| on held-out scenes | value | n |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value} | {n:,} |" for what, value, n in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--drawn-by", choices=("helpers", "pillow"), default="helpers")
    parser.add_argument("--out", type=Path, help="write the table here too, as Markdown")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    compute, start = device.pick_compute(), time.perf_counter()
    q2 = nbload.load("q2.ipynb")
    rows = measure(q2, load_tiny(q2, compute), args.scenes, args.seed, args.drawn_by)
    versions = environment.versions("torch", "transformers", "sam2", "numpy")
    made_by = f"assets/tiny/measure.py --seed {args.seed} --scenes {args.scenes} --drawn-by {args.drawn_by}"
    text = table(rows, f"`{made_by}`, {time.perf_counter() - start:.0f} s, {compute}, {versions}")
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
