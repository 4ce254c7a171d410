"""The notebooks' own code beside what people would use instead: side by side, in turns, in one run.

    python tests/bench/bench_peers.py [--parts q1-epoch q1-accuracy q2-images q2-video] [--data-root DIR] [--out DIR]

q1-epoch     images/s of a training epoch, data and augmentation included: q1.ipynb, a DataLoader with torchvision's
             RandAugment image by image, and timm's `create_loader` (with its prefetcher where there is a GPU)
q1-accuracy  accuracy on held-out training images after the same wall-clock time of training, behind the same three
q2-images    images/s for several phrases: one GroundingDINO pass and one SAM 2 encoding for all of them, as q2.ipynb
             does, against one of each for every phrase
q2-video     frames/s and peak memory of tracking: segment/sam2_video.py on frames as they are decoded, against the sam2
             package's own `init_state` and `propagate_in_video` on a folder of JPEG files

Contenders of a setting have the same model, device, batch and precision. They take turns, so that whatever else the
machine does hits all alike; peak memory is that of a process for each. Each part writes bench_peers_<part>.md and .csv
into --out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from PIL import Image
from sam2.utils.misc import load_video_frames
from timm.data import create_loader
from timm.data.mixup import Mixup, mixup_target

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import bench_q1
import nbload
from bench_q1 import MEAN, STD, Contender, LabelledImages, take_turns
from bench_q2 import PHRASES, TINY, load_models, write_full_size, write_sam2
from helpers.common.device import Compute, pick_compute
from helpers.segment import video
from helpers.segment.sam2_masks import Segmenter, load_sam2
from helpers.segment.sam2_video import VideoTracker
from helpers.segment.video import Silent, VideoReader, VideoWriter
from helpers.shapes.clips import make_clip
from helpers.shapes.scenes import make_scene
from helpers.vit import data
from helpers.vit.config import make_config

Q1, Q2 = "q1.ipynb", "q2.ipynb"  # the first contender of every setting: the others are compared with it
PACKAGES = ("torch", "torchvision", "timm", "transformers", "sam2", "pillow", "av", "numpy")


# ---- tables ----


def tidy(value: float) -> float:
    """Three digits, or all of those before the point."""
    return round(value) if value >= 100 else float(f"{value:.3g}")


def rate_rows(setting: str, unit: str, contenders: list[Contender], turns: list[list[tuple[float, float]]]) -> list:
    """A row for each contender from what `take_turns` returned; the ratio is to the first one."""
    rows = []
    for contender, rates in zip(contenders, turns, strict=True):
        wall = [rate for rate, _ in rates]
        row = {"contender": contender.name, "setting": setting, "n": len(wall)}
        row |= {f"median {unit}": tidy(statistics.median(wall)), "min": tidy(min(wall)), "max": tidy(max(wall))}
        first = (rows or [row])[0]
        rows.append(row | {"ratio to ours": tidy(row[f"median {unit}"] / first[f"median {unit}"])})
    return rows


def report(part: str, rows: list[dict], notes: Sequence[str], args: argparse.Namespace, load: float | None) -> None:
    command = shlex.join(["python", "tests/bench/bench_peers.py", *args.given])
    above = [f"`{command}`", f"device: {pick_compute('fp32').name}", *bench_q1.machine(*PACKAGES)]
    if load is not None:
        above[-1] += f" (its own work included), {load:.1f} before"
    bench_q1.write_table(rows, args.out, f"bench_peers_{part.replace('-', '_')}", notes, above)


def precisions(args: argparse.Namespace) -> list[Compute]:
    """The device at each precision asked for; a CPU has float32 only."""
    if not torch.cuda.is_available():
        return [pick_compute("fp32")]
    return [pick_compute(name) for name in args.precisions]


# ---- q1 ----


def timm_batches(images: torch.Tensor, labels: torch.Tensor, cfg, workers: int, compute: Compute) -> Iterable:
    """timm's own loader: batches of (float32 [B, 3, 32, 32], int64 [B]), on the GPU where there is one."""
    cuda = compute.device.type == "cuda"
    loader = create_loader(
        LabelledImages(images, labels, None),
        (3, 32, 32),
        cfg.batch_size,
        use_prefetcher=cuda,
        num_workers=workers,
        pin_memory=cuda,
        device=compute.device,
        **bench_q1.timm_options(cfg.randaug_n, cfg.randaug_m, cfg.erase_prob),
    )
    bench_q1.fit_small_images(loader.dataset.transform)
    return loader


LOADERS = {"DataLoader with torchvision": bench_q1.torchvision_batches, "timm's create_loader": timm_batches}


def parse_size(text: str) -> tuple[int, int, int]:
    """(width, depth, patch) from 192x9p4."""
    found = re.fullmatch(r"(\d+)x(\d+)p(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give width, depth and patch as in 192x9p4")
    return tuple(map(int, found.groups()))


def size_name(cfg) -> str:
    return f"ViT {cfg.embed_dim} wide, {cfg.depth} deep, patch {cfg.patch_size}, batch {cfg.batch_size}"


def q1_epoch(args: argparse.Namespace) -> tuple[list[dict], list[str]]:
    q1, rows, threads = nbload.load(Q1), [], torch.get_num_threads()
    default = [50_000] if torch.cuda.is_available() else [1024, 8192]
    counts = args.epoch_images or default
    for i, size in enumerate(args.models):
        count = counts[min(i, len(counts) - 1)]
        images, labels = bench_q1.load_images(args.data_root, count), torch.arange(count) % 10
        cfg = bench_q1.epoch_config(q1, *size, args.batch)
        for compute in precisions(args):
            ours = bench_q1.notebook_epoch(q1, cfg, images, labels, compute)
            contenders = [Contender(Q1, threads, ours)]
            for name, batches in LOADERS.items():
                run = bench_q1.usual_epoch(q1, cfg, batches(images, labels, cfg, args.workers, compute), compute)
                contenders.append(Contender(f"{name}, {args.workers} workers", threads, run))
            setting = f"{size_name(cfg)}, {count:,} images, {compute.precision}"
            rows += rate_rows(setting, "images/s", contenders, take_turns(contenders, args.repeats))
    notes = []
    notes.append(
        "Every row: the same ViT, optimizer, MixUp and CutMix, clipping and EMA; crop, flip, RandAugment (two rounds, "
        "magnitude 9) and Random Erasing (0.25). Ours and timm apply an operation with probability 0.5, torchvision "
        f"always. Images: {args.data_root or 'smooth random ones'}."
    )
    return rows, notes


def loader_batches(batches: Iterable, run, order) -> Iterator:
    """In place of the notebook's `batches`: what a loader gives, mixed batch by batch by timm."""
    cfg, device, classes = run.cfg, run.compute.device, len(run.classes)
    mixer = Mixup(cfg.mixup, cfg.cutmix, label_smoothing=cfg.label_smoothing, num_classes=classes)
    for x, y in batches:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if run.progress < 1 - cfg.mix_off_epochs / cfg.epochs and (cfg.mixup or cfg.cutmix):
            yield mixer(x, y)
        else:
            yield x, mixup_target(y, classes, smoothing=cfg.label_smoothing)


def train_for(q1, cfg, compute: Compute, train, val, classes: Sequence[str], batches: Iterable | None) -> dict:
    """Train for cfg.max_minutes with the notebook's own code (None), or with that behind a loader of batches; returns
    the columns of a table row."""
    start, scale = time.perf_counter(), [torch.tensor(v).view(3, 1, 1).to(compute.device) for v in (MEAN, STD)]
    run = q1.new_run(cfg, compute, train, val, scale, classes)
    source = q1.batches if batches is None else partial(loader_batches, batches)
    with tempfile.TemporaryDirectory() as out, mock.patch.object(q1, "batches", source):
        q1.train(run, Path(out))
    accuracies = {name: round(run.history[-1][key], 2) for name, key in ACCURACIES.items()}
    return {
        "accuracy, %": max(accuracies.values()),
        **accuracies,
        "images seen": run.step * cfg.batch_size,
        "epochs": round(run.step / run.steps_per_epoch, 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


ACCURACIES = {"raw, %": "val_accuracy", "EMA, %": "ema_accuracy"}


def q1_accuracy(args: argparse.Namespace) -> tuple[list[dict], list[str]]:
    q1, compute, rows = nbload.load(Q1), pick_compute(), []
    found = data.load_images(args.data_root, download=False)
    given = {"max_minutes": args.minutes, "compile": False, "val_size": args.val_size, "data_root": args.data_root}
    if args.accuracy_model:
        width, depth, patch = args.accuracy_model
        given |= {"embed_dim": width, "depth": depth, "patch_size": patch, "num_heads": max(1, width // 64)}
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0
    cfg = make_config(q1.RECIPE, q1.PRESETS, args.preset, given, memory)
    cfg.val_size = min(cfg.val_size, len(found.train_labels) // 5)
    setting = f"{found.name}; preset {cfg.preset}, {size_name(cfg)}, {compute.precision}, {args.minutes:g} min"
    for seed in args.seeds:
        cfg.seed = seed
        train, val = data.hold_out(found, cfg.val_size, args.train_size, seed, compute.device)
        for name, make_batches in ((Q1, None), *LOADERS.items()):
            batches = make_batches and make_batches(train.images.cpu(), train.labels.cpu(), cfg, args.workers, compute)
            name += f", {args.workers} workers" if batches else ""
            print(f"{name}, seed {seed}")
            row = {"contender": name, "setting": setting, "seed": seed}
            rows.append(row | train_for(q1, cfg, compute, train, val, found.classes, batches))
            del batches  # ends its workers
    worst = min(row["accuracy, %"] for row in rows) / 100
    error = 100 * (worst * (1 - worst) / cfg.val_size) ** 0.5
    notes = []
    notes.append(
        f"Accuracy: that of the last weights, raw or EMA, whichever is higher, on {cfg.val_size:,} images held out of "
        f"the {len(found.train_labels):,} training images ({found.name}, {found.source}); the test images are not "
        f"looked at. One standard error of an accuracy over so many images is {error:.1f} points."
    )
    notes.append(
        "Every row: the same recipe (that of the preset), planning of the schedule, validation after each epoch, and "
        "checkpoints: a contender's images per second decide how many epochs it gets."
    )
    return rows, notes


# ---- q2, images ----


def one_pass(q2, networks, image: np.ndarray, phrases: list[str], each: int) -> list:
    """As q2.ipynb: all phrases in one caption, one encoding of the image; the surest `each` boxes a phrase on average.
    Returns detections with masks, bool [H, W]."""
    boxes = q2.detect(networks.dino, image, phrases, q2.Settings(0.0, 0.0, 0.4, 1.0, 1))
    networks.sam2.set_image(image)
    return q2.add_masks(networks.sam2, boxes[: each * len(phrases)])


def pass_per_phrase(q2, networks, image: np.ndarray, phrases: list[str], each: int) -> list:
    """Phrase by phrase: a caption, an encoding of the image, and the surest `each` boxes for every one."""
    return [d for phrase in phrases for d in one_pass(q2, networks, image, [phrase], each)]


WAYS = {f"{Q2}: one pass for all phrases": one_pass, "one pass for each phrase": pass_per_phrase}


def model_folders(args: argparse.Namespace, full: Path) -> dict[str, Path]:
    folders = {"tiny": TINY, "full size": full}
    return {name: folder for name, folder in folders.items() if name.split()[0] in args.sizes}


def q2_images(args: argparse.Namespace, full: Path) -> tuple[list[dict], list[str]]:
    q2, rows, threads = nbload.load(Q2), [], torch.get_num_threads()
    image, phrases = make_scene(0, *args.image_size[::-1], objects=(5, 5)).image, PHRASES[: args.phrases]
    for kind, folder in model_folders(args, full).items():
        for compute in precisions(args):
            networks, masks = load_models(q2, folder, compute), {}

            def contender(name: str, way: Callable, networks=networks, compute=compute, masks=masks) -> Contender:
                def run() -> int:
                    masks[name] = len(way(q2, networks, image, phrases, args.boxes))
                    compute.synchronize()
                    return 1

                return Contender(name, threads, run)

            contenders = [contender(name, way) for name, way in WAYS.items()]
            slow = kind != "tiny" and compute.device.type == "cpu"
            if slow:  # a minute and a half a turn: ours alone warms the models up
                contenders[0].run()
            repeats = args.full_repeats if kind != "tiny" else args.repeats
            setting = f"{kind}, {image.shape[1]} x {image.shape[0]}, {len(phrases)} phrases, {compute.precision}"
            new = rate_rows(setting, "images/s", contenders, take_turns(contenders, repeats, warm_up=not slow))
            rows += [row | {"masks": masks[row["contender"]]} for row in new]
    notes = []
    notes.append(
        "From an image in memory to its masks, for as many boxes either way and without CLIPSeg. Full size: "
        "GroundingDINO Swin-T and SAM 2.1 small with random weights."
    )
    return rows, notes


# ---- q2, video ----


def draw_clip(folder: Path, frames: int, height: int, width: int, objects: int) -> list[list[float]]:
    """Write clip.mp4 and its frames as jpg/00000.jpg and so on; returns the boxes of the objects on the first frame,
    x0, y0, x1, y1 in pixels."""
    clip = make_clip(3, height, width, frames, occluders=(0, 0), motions=["stay"] * objects)
    (folder / "jpg").mkdir()
    with VideoWriter(folder / "clip.mp4", Silent(width, height, 25)) as writer:
        for i, image in enumerate(clip.frames):
            writer.write(image, i)
            Image.fromarray(image).save(folder / "jpg" / f"{i:05}.jpg", quality=95)
    boxes = []
    for item in clip.objects:
        y, x = np.nonzero(item.masks[0])
        boxes.append([float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)])
    return boxes


def track_lazily(segmenter: Segmenter, folder: Path, boxes: list, frames: Iterable | None = None) -> np.ndarray:
    """The masks, bool [T, objects, H, W], of helpers/segment/sam2_video.py on clip.mp4, or on `frames`, a list of uint8
    [H, W, 3]."""
    clip = VideoReader(folder / "clip.mp4") if frames is None else frames
    images = (frame.image for frame in clip) if frames is None else iter(frames)
    height, width = Image.open(folder / "jpg" / "00000.jpg").size[::-1]
    tracker, found = VideoTracker(segmenter, height, width, len(clip)), []
    for i, prepared in enumerate(video.read_ahead(map(tracker.prepare, images))):
        tracker.show(i, prepared)
        for number, box in enumerate(boxes if i == 0 else ()):
            tracker.add(number, box=box)
        found.append(np.stack(list(tracker.track().values())))
    return np.stack(found)


@torch.inference_mode()
def track_plainly(segmenter: Segmenter, folder: Path, boxes: list) -> np.ndarray:
    """The same by the package's own loop over the folder jpg, as its examples have it."""
    model, found = segmenter.model, []
    with segmenter.compute.autocast():
        state = model.init_state(str(folder / "jpg"))
        for number, box in enumerate(boxes):
            model.add_new_points_or_box(state, 0, number, box=np.float32(box))
        for _, _, logits in model.propagate_in_video(state):
            found.append((logits[:, 0] > 0).cpu().numpy())
    return np.stack(found)


TRACKERS = {f"{Q2}: frames as they come": track_lazily, "sam2's own loop over jpg files": track_plainly}


def peak_memory(name: str, weights: str, precision: str, folder: str, boxes: list) -> dict:
    """In this process (of Linux): MiB at the peak while the contender `name` of TRACKERS works, and how much of it the
    work added to what Python, the packages and the model took."""
    compute = pick_compute(precision)
    segmenter = load_segmenter(Path(weights), compute)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # loading had a peak of its own: forget it
    before = memory("VmRSS")
    TRACKERS[name](segmenter, Path(folder), boxes)
    row = {"peak MiB": memory("VmHWM"), "of which the video": max(0, memory("VmHWM") - before)}
    if compute.device.type == "cuda":
        row["peak GPU MiB"] = torch.cuda.max_memory_allocated() // 2**20
    return row


def memory(kind: str) -> int:
    """MiB of this process: "VmRSS" now, "VmHWM" at its peak."""
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


def in_its_own_process(job: dict) -> dict:
    """What `peak_memory(**job)` returns in a fresh process."""
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def load_segmenter(folder: Path, compute: Compute) -> Segmenter:
    """SAM 2 alone, of the tiny models or of full size."""
    full = folder / "sam2.1_hiera_small.pt"
    return load_sam2(full if full.is_file() else folder / "sam2", compute)


def q2_video(args: argparse.Namespace, full: Path) -> tuple[list[dict], list[str]]:
    rows, agreements, readings, threads = [], [], [], torch.get_num_threads()
    width, height = args.video_size
    for kind, weights in model_folders(args, full).items():
        frames, repeats = (args.frames, args.repeats) if kind == "tiny" else (args.full_frames, args.full_repeats)
        for objects in args.objects if kind == "tiny" else args.objects[:1]:
            for compute in precisions(args):
                setting = f"{kind}, {frames} frames of {width} x {height}, {objects} object{'s' * (objects > 1)}"
                setting += f", {compute.precision}"
                with tempfile.TemporaryDirectory() as place:
                    folder = Path(place)
                    boxes = draw_clip(folder, frames, height, width, objects)
                    segmenter = load_segmenter(weights, compute)
                    images = [np.array(Image.open(path)) for path in sorted((folder / "jpg").iterdir())]
                    masks = track_lazily(segmenter, folder, boxes, images), track_plainly(segmenter, folder, boxes)
                    agreements.append(f"{setting}: {agreement(*masks)}.")
                    readings.append(f"{setting}: {reading(segmenter, folder, images)}.")
                    contenders = [
                        Contender(name, threads, lambda run=run, s=segmenter, f=folder, b=boxes: len(run(s, f, b)))
                        for name, run in TRACKERS.items()
                    ]
                    turns = take_turns(contenders, repeats, warm_up=False)  # the comparison of the masks was that
                    job = {"weights": str(weights), "precision": compute.precision, "folder": place, "boxes": boxes}
                    for row in rate_rows(setting, "frames/s", contenders, turns):
                        rows.append(row | in_its_own_process(job | {"name": row["contender"]}))
    notes = []
    notes.append("On the same frames (those of the jpg files): " + " ".join(agreements))
    notes.append("Of a frame's time, all but this goes to the same model: " + " ".join(readings))
    notes.append(
        "Ours decodes H.264; sam2's loop reads JPEG files, which were written beforehand (not timed). One run in a "
        "process of its own for the memory. Full size: SAM 2.1 small with random weights."
    )
    return rows, notes


def reading(segmenter: Segmenter, folder: Path, images: list[np.ndarray]) -> str:
    """What either contender does before the model has a frame, timed by itself: milliseconds a frame, the least of
    three."""
    height, width = images[0].shape[:2]
    tracker, size = VideoTracker(segmenter, height, width, len(images)), segmenter.model.image_size
    load = partial(load_video_frames, offload_video_to_cpu=False, compute_device=segmenter.compute.device)
    prepared = [tracker.prepare(image) for image in images]

    def contender(name: str, work: Callable[[], object]) -> Contender:
        def run() -> int:
            work()
            segmenter.compute.synchronize()
            return len(images)

        return Contender(name, torch.get_num_threads(), run)

    steps = [
        contender("decode", lambda: list(VideoReader(folder / "clip.mp4"))),
        contender("resize", lambda: [tracker.prepare(image) for image in images]),
        contender("normalise", lambda: [tracker.show(i, pixels) for i, pixels in enumerate(prepared)]),
        contender("sam2's", lambda: load(str(folder / "jpg"), size)),
    ]
    turns = take_turns(steps, 3, warm_up=False)
    decode, resize, scale, theirs = (1000 / max(wall for wall, _ in rates) for rates in turns)
    return (
        f"ours decodes in {decode:.1f} ms and resizes in {resize:.1f}, both ahead on another thread, and normalises in "
        f"{scale:.1f}; sam2's does all three in {theirs:.1f}"
    )


def agreement(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How alike two sets of masks, bool [T, objects, H, W], are."""
    if ours.shape == theirs.shape and (ours == theirs).all():
        return f"all {ours.shape[0] * ours.shape[1]:,} masks are equal, pixel by pixel"
    return f"{100 * (ours == theirs).mean():.3f} % of the masks' pixels are equal"


# ---- command line ----

Q1_PARTS = {"q1-epoch": q1_epoch, "q1-accuracy": q1_accuracy}
Q2_PARTS = {"q2-images": q2_images, "q2-video": q2_video}


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*Q1_PARTS, *Q2_PARTS]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, help="folder for the CSV and Markdown tables")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16", "fp16"])
    q1 = parser.add_argument_group("q1")
    q1.add_argument("--data-root", help="CIFAR-10 in any layout; default: random images, drawn shapes for the accuracy")
    q1.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoaders; default: one per core")
    q1.add_argument("--models", nargs="+", type=parse_size, default=[(192, 9, 4), (64, 2, 8)], help="such as 192x9p4")
    q1.add_argument("--batch", type=int, default=128)
    q1.add_argument("--epoch-images", nargs="+", type=int, help="for each model; default: 1024 8192, 50000 on a GPU")
    q1.add_argument("--minutes", type=float, default=3, help="of training for the accuracy, each contender and seed")
    q1.add_argument("--seeds", type=int, nargs="+", default=[0])
    q1.add_argument("--preset", default="auto", help="of q1.ipynb, for the accuracy; default: by device")
    q1.add_argument("--accuracy-model", type=parse_size, help="another ViT than the preset's, such as 64x2p8")
    q1.add_argument("--train-size", type=int)
    q1.add_argument("--val-size", type=int)
    q2 = parser.add_argument_group("q2")
    q2.add_argument("--sizes", nargs="+", choices=("tiny", "full"), default=["tiny", "full"])
    q2.add_argument("--full-repeats", type=int, default=1, help="for the models of full size")
    q2.add_argument("--image-size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    q2.add_argument("--phrases", type=int, default=len(PHRASES))
    q2.add_argument("--boxes", type=int, default=1, help="a phrase (the tiny GroundingDINO has 20 in all)")
    q2.add_argument("--video-size", type=int, nargs=2, default=[320, 240], metavar=("WIDTH", "HEIGHT"))
    q2.add_argument("--frames", type=int, default=60)
    q2.add_argument("--full-frames", type=int, default=8)
    q2.add_argument("--objects", type=int, nargs="+", default=[1, 3], help="full size: the first number only")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a job of `in_its_own_process`
    args = parser.parse_args(given)
    args.given = list(given)
    return args


def main(given: Sequence[str]) -> None:
    args = parse(given)
    torch.set_float32_matmul_precision("high")  # as in the notebooks
    if args.one:
        print(json.dumps(peak_memory(**args.one)))
        return
    with tempfile.TemporaryDirectory() as full:
        if "full" in args.sizes and "q2-images" in args.parts:
            write_full_size(Path(full))
        elif "full" in args.sizes and "q2-video" in args.parts:
            write_sam2(Path(full))
        for part in args.parts:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            run = Q1_PARTS[part] if part in Q1_PARTS else partial(Q2_PARTS[part], full=Path(full))
            report(part, *run(args), args, load)


if __name__ == "__main__":
    main(sys.argv[1:])
