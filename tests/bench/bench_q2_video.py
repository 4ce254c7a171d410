"""Peak memory and speed of q2's video pipeline by the length of the clip: 1080p, two objects.

    python tests/bench/bench_q2_video.py [--frames 200 2000] [--full 12 36] [--redetect-every 6] [--out assets/measured]

`--frames` are run with the tiny models, `--full` with models of full size (GroundingDINO Swin-T, SAM 2.1 small) with
random weights, which find nothing: GroundingDINO looks, and the two objects' true boxes are taken. Each length runs in
a process of its own, from the text to `video_overlay.mp4` and `tracks.json`. The table, as Markdown and CSV, says on
which machine and with which versions.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "assets" / "tiny"), str(ROOT / "tests")]

import nbload
from bench_q2 import TINY, load_models, write_full_size
from helpers.common import device
from helpers.common.files import write_csv
from helpers.segment.detections import Detection
from helpers.segment.video import Silent, VideoReader, VideoWriter
from helpers.shapes.draw import shape_mask

HEIGHT, WIDTH, FPS = 1080, 1920, 30
OBJECTS = (("circle", (220, 40, 40), 300, 0.0), ("square", (40, 80, 220), 360, 2.0))
PROMPT = ("red circle", "blue square")


def draw_clip(path: Path, frames: int) -> None:
    """Two shapes that go round, one above the other, on grey."""
    with VideoWriter(path, Silent(WIDTH, HEIGHT, FPS)) as writer:
        for i in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
            for row, (shape, colour, size, phase) in enumerate(OBJECTS):
                x = WIDTH / 2 + 0.35 * WIDTH * np.sin(2 * np.pi * i / 300 + phase)
                mask = shape_mask(shape, HEIGHT, WIDTH, x, HEIGHT * (0.27 + 0.46 * row), size)
                image[mask >= 0.5] = colour
            writer.write(image, i)


def true_boxes(q2, networks, image, phrases, settings) -> list[Detection]:
    """In place of the notebook's `find_objects`: as much work, but with the boxes of what differs from the grey."""
    q2.detect(networks.dino, image, phrases, settings)
    boxes = []
    for rows in (slice(0, HEIGHT // 2), slice(HEIGHT // 2, HEIGHT)):
        y, x = np.nonzero(np.abs(image[rows].astype(int) - 150).max(2) > 40)
        top = y + rows.start
        boxes.append((float(x.min()), float(top.min()), float(x.max() + 1), float(top.max() + 1)))
    networks.sam2.set_image(image)
    found = [Detection(p, 0.9, box, "groundingdino") for p, box in zip(phrases, boxes, strict=True)]
    return q2.add_masks(networks.sam2, found)


def run_once(path: Path, every: int, full: Path | None) -> dict:
    """In this process: the figures of one clip. `full`: a folder with models of full size."""
    q2, compute = nbload.load("q2.ipynb"), device.pick_compute()
    if full:
        q2.find_objects = partial(true_boxes, q2)
    networks = load_models(q2, full or TINY, compute)
    clip = VideoReader(path)
    start = time.perf_counter()
    settings = q2.Settings(0.35, 0.25, 0.4, 0.7, 50)
    frames, complete = q2.segment_video(networks, clip, list(PROMPT), settings, path.parent, every)
    seconds = time.perf_counter() - start
    return {
        "models": "full size" if full else "tiny",
        "frames": len(frames),
        "complete": complete,
        "objects": len({o["id"] for frame in frames for o in frame["objects"]}),
        "frames a second": round(len(frames) / seconds, 2),
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak GPU memory, MB": round(torch.cuda.max_memory_allocated() / 1e6) if torch.cuda.is_available() else "",
        "device": str(compute),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--full", type=int, nargs="*", default=[12, 36])
    parser.add_argument("--redetect-every", type=int, default=6, help="frames, as the notebook's parameter")
    parser.add_argument("--out", type=Path, help="write bench_q2_video.md and .csv here")
    parser.add_argument("--one", type=Path, nargs="+", help=argparse.SUPPRESS)  # a clip, and the models unless tiny
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_once(args.one[0], args.redetect_every, *args.one[1:] or [None])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as full:
        if args.full:
            write_full_size(Path(full))
        for models, count in [([], n) for n in args.frames] + [([full], n) for n in args.full]:
            with tempfile.TemporaryDirectory() as folder:
                draw_clip(Path(folder) / "clip.mp4", count)
                every = ["--redetect-every", str(args.redetect_every)]
                command = [sys.executable, __file__, *every, "--one", str(Path(folder) / "clip.mp4"), *models]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    from bench_q1 import machine  # here, so that its packages are not in the memory that `run_once` measures

    shown = [name for name in rows[0] if name not in ("complete", "device") and rows[0][name] != ""]
    made_by = f"tests/bench/bench_q2_video.py --frames {' '.join(map(str, args.frames))}"
    made_by += f" --full {' '.join(map(str, args.full))}" if args.full else " --full"
    made_by += f" --redetect-every {args.redetect_every}"
    lines = [f"`{made_by}`, 1080p, {rows[0]['device']}", "", "; ".join(machine("torch", "sam2", "av", "numpy"))]
    lines += ["", "| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(str(row[name]) for name in shown) + " |" for row in rows]
    print("\n".join(lines))
    if args.out:
        (args.out / "bench_q2_video.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_csv(rows, args.out / "bench_q2_video.csv")


if __name__ == "__main__":
    main()
