"""Seconds of each stage of q2's image pipeline, and the peak of its memory: tiny models and full size.

    python tests/bench/bench_q2.py --out assets/measured

Full size means GroundingDINO Swin-T, SAM 2.1 small and CLIPSeg rd64 with random weights: as fast as trained ones, and
nothing has to be fetched. So that every run has the same work, the surest 8 boxes are kept whatever their scores.
Each row is a process of its own, since memory that was once used counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nbload
from helpers.common import device, environment
from helpers.common.files import atomic_path, write_csv
from helpers.segment import clipseg, grounding_dino, sam2_masks
from helpers.segment.outputs import write_detections
from helpers.shapes.scenes import make_scene

TINY = ROOT / "assets" / "tiny"
SIZES = {"640 x 480": (480, 640), "12 megapixels": (3000, 4000)}
PHRASES = ["red circle", "blue square", "green star", "pink heart", "cyan cross", "a triangle", "orange star", "square"]
BOXES = 8
STAGES = ("groundingdino", "sam2_encode", "sam2_masks", "clipseg", "write")


def write_full_size(folder: Path) -> None:
    """The three models at full size, random weights, in the layouts that their loaders read."""
    from transformers import (
        BertTokenizerFast,
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    torch.manual_seed(0)
    dino = folder / "groundingdino"
    GroundingDinoForObjectDetection(GroundingDinoConfig()).save_pretrained(dino)
    tokenizer = BertTokenizerFast.from_pretrained(TINY / "groundingdino")
    GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer).save_pretrained(dino)

    CLIPSegForImageSegmentation(CLIPSegConfig()).save_pretrained(folder / "clipseg")
    processor = CLIPSegProcessor.from_pretrained(TINY / "clipseg")
    processor.image_processor.size = {"height": 352, "width": 352}
    processor.save_pretrained(folder / "clipseg")
    write_sam2(folder)


def write_sam2(folder: Path) -> None:
    """SAM 2.1 small alone."""
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    config = OmegaConf.load(Path(sam2.__file__).parent / "configs/sam2.1/sam2.1_hiera_s.yaml").model
    torch.save({"model": instantiate(config, _recursive_=True).state_dict()}, folder / "sam2.1_hiera_small.pt")


def load_models(q2, folder: Path, compute: device.Compute):
    """The tiny models from their folder, or what `write_full_size` wrote, as q2's `Models`."""
    weights = folder / "sam2.1_hiera_small.pt" if (folder / "sam2.1_hiera_small.pt").is_file() else folder / "sam2"
    return q2.Models(
        grounding_dino.load(folder / "groundingdino", None, compute),
        sam2_masks.load_sam2(weights, compute),
        clipseg.load_clipseg(folder / "clipseg", compute),
        compute,
    )


def measure(folder: Path, size: str, phrases: int, repeats: int) -> dict:
    """Medians over `repeats` runs after one that is not counted; memory of this process in MiB."""
    q2, compute = nbload.load("q2.ipynb"), device.pick_compute()
    networks = load_models(q2, folder, compute)
    image = make_scene(0, *SIZES[size], objects=(5, 5)).image
    wanted, settings = PHRASES[:phrases], q2.Settings(0.0, 0.0, 0.4, 1.0, BOXES)
    seconds = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(1 + repeats):
            marks = [time.perf_counter()]

            def mark(marks=marks):
                compute.synchronize()
                marks.append(time.perf_counter())

            boxes = q2.detect(networks.dino, image, wanted, settings)[:BOXES]
            mark()
            networks.sam2.set_image(image)
            mark()
            detections = q2.add_masks(networks.sam2, boxes)
            mark()
            networks.clipseg.heatmaps(image, wanted)
            mark()
            detections = [replace(d, mask_score=float(np.nan_to_num(d.mask_score))) for d in detections]
            write_detections(out, image, detections, "image", ". ".join(wanted), networks.names(), {})
            mark()
            for stage, taken in zip(STAGES, np.diff(marks), strict=True):
                seconds[stage].append(taken)
    row = {stage: round(statistics.median(taken[1:]), 3) for stage, taken in seconds.items()}
    row["total"] = round(sum(row.values()), 3)
    row |= {"total_min": round(min(map(sum, zip(*(s[1:] for s in seconds.values()), strict=True))), 3)}
    row |= {"total_max": round(max(map(sum, zip(*(s[1:] for s in seconds.values()), strict=True))), 3)}
    row["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    row["peak_GPU_MiB"] = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else ""
    versions = environment.versions("torch", "transformers", "sam2", "groundingdino-py")
    return row | {"n": repeats, "device": str(compute), "versions": " ".join(f"{k} {v}" for k, v in versions.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--one", nargs=3, help=argparse.SUPPRESS
    )  # folder, size, phrases: what a process of its own does
    args = parser.parse_args()
    if args.one:
        folder, size, phrases = args.one
        print(json.dumps(measure(Path(folder), size, int(phrases), args.repeats)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as full:
        write_full_size(Path(full))
        for models, folder in (("tiny", TINY), ("full size", Path(full))):
            for size in SIZES:
                for phrases in (1, 8):
                    command = [sys.executable, __file__, "--repeats", str(args.repeats)]
                    command += ["--one", str(folder), size, str(phrases)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    row = {"models": models, "image": size, "phrases": phrases}
                    rows.append(row | json.loads(done.stdout.splitlines()[-1]))
                    print(*rows[-1].values(), sep="  ", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, args.out / "bench_q2.csv")
    columns = [
        "models",
        "image",
        "phrases",
        *STAGES,
        "total",
        "total_min",
        "total_max",
        "peak_MiB",
        "peak_GPU_MiB",
        "n",
    ]
    lines = [
        f"`python tests/bench/bench_q2.py --repeats {args.repeats}` on {rows[0]['device']}; {rows[0]['versions']}",
        "",
    ]
    lines += [
        "Seconds (medians; full size with random weights), 8 boxes an image, and memory of the whole process.",
        "",
    ]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    with atomic_path(args.out / "bench_q2.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
