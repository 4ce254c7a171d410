"""Speed of q1's input pipeline, measured: images per second of wall-clock time, and of CPU time on one thread.

    python tests/bench/bench_q1.py [--parts augmentation epoch] [--data-root DIR] [--repeats 5] [--out DIR]

Part "augmentation": crop, flip, RandAugment (two rounds, magnitude 9), normalisation and Random Erasing (0.25) of
32×32 images on a CPU, by q1.ipynb's own `augment` and as it is usually done, image by image on Pillow images in a
DataLoader.
Part "epoch": a whole training epoch, data and augmentation included, of one ViT (width 192, depth 9, patch 4), by
q1.ipynb's own code and by the usual loop over a DataLoader; on the GPU where there is one.

The contenders take turns, so that whatever else the machine does hits all alike; the first, untimed turn warms up.
Prints each part's table and writes it as CSV and Markdown into --out.
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import timm.data.auto_augment as timm_aa
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import nbload
from helpers.common import environment
from helpers.common.device import cpu_name, pick_compute
from helpers.common.files import write_csv
from helpers.vit import engine
from helpers.vit.clock import Clock
from helpers.vit.config import make_config
from helpers.vit.data import Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 512  # ours works on batches as a training step does; the DataLoaders collate the same


@dataclass
class Contender:
    """One way to do the work. run() does it once and returns how much that was, in images or frames; threads is what
    the table says it uses, and what torch is told before each run (a DataLoader's workers count themselves: each has
    one)."""

    name: str
    threads: int
    run: Callable[[], int]


def take_turns(contenders: list[Contender], repeats: int, warm_up: bool = True) -> list[list[tuple[float, float]]]:
    """Run the contenders in turns, `repeats` times each after a warm-up. For each contender a list over its runs:
    what run() returns per second of wall-clock time, and per second of this process's CPU time."""
    rates = [[] for _ in contenders]
    for repeat in range(-1 if warm_up else 0, repeats):  # the first turn loads, allocates and starts workers
        for i, contender in enumerate(contenders):
            torch.set_num_threads(contender.threads)
            started, cpu_started = time.perf_counter(), time.process_time()
            done = contender.run()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            if repeat >= 0:
                rates[i].append((done / seconds, done / cpu_seconds))
    return rates


def measure(contenders: list[Contender], repeats: int) -> list[dict]:
    """Let the contenders take turns; returns a table row (a dict) for each."""
    wall, cpu = zip(*(zip(*rates, strict=True) for rates in take_turns(contenders, repeats)), strict=True)
    return [
        {
            "contender": contender.name,
            "threads": contender.threads,
            "n": repeats,
            "median images/s": round(statistics.median(wall[i])),
            "min": round(min(wall[i])),
            "max": round(max(wall[i])),
            # Hardly moved by what else the machine does, but it knows this process only, not a DataLoader's workers.
            "images per CPU second": round(statistics.median(cpu[i])) if contender.threads == 1 else "",
        }
        for i, contender in enumerate(contenders)
    ]


def machine(*packages: str) -> list[str]:
    """What the numbers depend on, a line each."""
    versions = environment.versions(*(packages or ("torch", "torchvision", "timm", "pillow", "numpy")))
    lines = [
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, {platform.system()}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if hasattr(os, "getloadavg"):
        lines.append(f"load average (one per busy core) after the run: {os.getloadavg()[0]:.1f}")
    return lines


def write_table(rows: list[dict], out: Path | None, name: str, notes: Sequence[str], head_lines: Sequence[str]) -> None:
    """Print rows (dicts with the same keys) as a Markdown table under `head_lines` and over `notes`; with out, also
    write {name}.csv and .md."""
    head = list(rows[0])
    table = [
        head,
        ["---"] * len(head),
        *([f"{v:,}" if isinstance(v, int) else str(v) for v in r.values()] for r in rows),
    ]
    text = "\n\n".join((*head_lines, "\n".join(f"| {' | '.join(line)} |" for line in table), *notes)) + "\n"
    print(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    write_csv(rows, out / f"{name}.csv")


def load_images(data_root: str | None, count: int) -> Tensor:
    """uint8 [count, 3, 32, 32]: CIFAR-10's from data_root, else smooth random ones (the speed hardly depends on it)."""
    if data_root:
        from helpers.vit import data

        images = data.load_images(data_root, download=False).train_images
        return images[torch.arange(count) % len(images)]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    grain = 0.05 * torch.randn(count, 3, 32, 32, generator=generator)
    return (smooth + grain).mul_(255).clamp_(0, 255).byte()


# ---- augmentation alone ----


class PillowImages(Dataset):
    """As torchvision.datasets.CIFAR10: pixels in memory, one Pillow image made and transformed per item."""

    def __init__(self, images: Tensor, transform: Callable | None):
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.pixels[index]))


def ours(q1, images: Tensor, batch: int) -> Callable[[], int]:
    cfg, scale = epoch_config(q1, 192, 9, 4), [torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD)]

    def run() -> int:
        for x in images.split(batch):
            q1.augment(x, cfg, scale)
        return len(images)

    return run


def torchvision_transform(randaug_n: int = 2, randaug_m: float = 9, erase_prob: float = 0.25) -> Callable:
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            *([transforms.RandAugment(randaug_n, round(randaug_m))] if randaug_n else []),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            *([transforms.RandomErasing(erase_prob, value="random")] if erase_prob else []),
        ]
    )


def timm_options(randaug_n: int = 2, randaug_m: float = 9, erase_prob: float = 0.25) -> dict:
    """Of timm's `create_transform` and `create_loader` alike; two rounds of RandAugment are timm's default."""
    return {
        "is_training": True,
        "auto_augment": f"rand-m{randaug_m:g}-n{randaug_n}-mstd0.5-inc1" if randaug_n else None,
        "color_jitter": None,  # timm adds it where RandAugment is off
        "re_prob": erase_prob,
        "re_mode": "pixel",
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
    }


def fit_small_images(transform: Callable) -> Callable:
    """timm's transform, changed in place to suit 32×32 images and Pillow 13."""
    # For 32×32 images a padded crop instead of timm's resized one, as DeiT's datasets.py does it.
    transform.transforms[0] = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    # At magnitude 10 timm asks Pillow to keep 0 bits, an error since Pillow 13.
    for op in next((t.ops for t in transform.transforms if isinstance(t, timm_aa.RandAugment)), ()):
        if op.name == "PosterizeIncreasing":
            op.level_fn = _keep_a_bit
    return transform


def timm_transform() -> Callable:
    return fit_small_images(create_transform(32, **timm_options()))


def _keep_a_bit(level: float, _) -> tuple[int]:
    return (max(1, 4 - int(level / 10 * 4)),)


def loader(images: Tensor, transform: Callable, workers: int) -> Callable[[], int]:
    """One pass through a DataLoader. The workers stay alive between passes: starting them is not timed."""
    data = DataLoader(
        PillowImages(images, transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: sum(len(x) for x in data)


def v2_chunks(images: Tensor) -> Callable[[], int]:
    """torchvision v2 on tensors draws once per call: chunks of 8 images share crop, flip, operations and rectangle."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25, value="random"),
        ]
    )

    def run() -> int:
        for x in images.split(BATCH):
            torch.cat([transform(chunk) for chunk in x.split(8)])
        return len(images)

    return run


def augmentation(args: argparse.Namespace) -> Iterator[Contender]:
    images = load_images(args.data_root, args.images)
    few = images[: max(BATCH, args.images // 4)]  # for those that take about thirty times as long
    q1, q1_always = nbload.load("q1.ipynb"), nbload.load("q1.ipynb")
    q1_always.rand_augment = partial(q1_always.rand_augment, prob=1.0)  # the notebook leaves it at 0.5
    for threads in (1, 2):
        yield Contender(f"ours, batches of {BATCH}", threads, ours(q1, images, BATCH))
        yield Contender("ours, batches of 128", threads, ours(q1, images, 128))
        yield Contender(f"ours, batches of {BATCH}, every operation applied", threads, ours(q1_always, images, BATCH))
        yield Contender("torchvision v2, one draw for 8 images", threads, v2_chunks(images))
        workers = 0 if threads == 1 else 2
        yield Contender("torchvision, per image", threads, loader(few, torchvision_transform(), workers))
        yield Contender("timm, per image", threads, loader(few, timm_transform(), workers))


AUGMENTATION_NOTES = (
    "Ours and timm apply each of an image's two operations with probability 0.5 (timm's rand-m9-mstd0.5-inc1), "
    "torchvision always; hence the row with every operation applied.",
    "Two threads: torch's own for the tensor pipelines; for the per-image ones a DataLoader with two workers, started "
    "beforehand, beside the process that receives the batches. One: no workers. With two, threads wait for each other "
    "at every operation: those rows say something only where both cores were free.",
)


# ---- a whole training epoch ----


def epoch(args: argparse.Namespace) -> Iterator[Contender]:
    compute = pick_compute()
    count = args.epoch_images or (50_000 if compute.device.type == "cuda" else 1024)
    images, labels = load_images(args.data_root, count), torch.arange(count) % 10
    q1 = nbload.load("q1.ipynb")
    cfg = epoch_config(q1, 192, 9, 4)
    threads = torch.get_num_threads()
    yield Contender("q1.ipynb", threads, notebook_epoch(q1, cfg, images, labels, compute))
    for workers in (0, os.cpu_count()):
        run = usual_epoch(q1, cfg, torchvision_batches(images, labels, cfg, workers, compute), compute)
        yield Contender(f"DataLoader, {workers} workers, torchvision per image", threads, run)


def epoch_config(q1, width: int, depth: int, patch: int, batch: int = 128):
    """The preset t4's recipe for a ViT of another size, with 64 channels a head."""
    sizes = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": max(1, width // 64)}
    return make_config(
        q1.RECIPE, q1.PRESETS, "t4", sizes | {"batch_size": batch, "compile": False, "max_minutes": 0, "seed": 0}, 0
    )


def notebook_run(q1, cfg, images: Tensor, labels: Tensor, compute):
    """The notebook's `Run` for images, uint8 [N, 3, 32, 32], of ten classes, with none held out; it never ends."""
    device, scale = compute.device, [torch.tensor(v).view(3, 1, 1).to(compute.device) for v in (MEAN, STD)]
    split = Split(images.to(device), labels.to(device))
    run = q1.Run(cfg, compute, split, split.first(0), scale, tuple("0123456789"))
    run.clock = Clock(10**9)
    return run


def notebook_epoch(q1, cfg, images: Tensor, labels: Tensor, compute) -> Callable[[], int]:
    """Runs an epoch of the notebook's own code, and returns for how many images; images uint8 [N, 3, 32, 32]."""
    run = notebook_run(q1, cfg, images, labels, compute)
    example = torch.arange(cfg.batch_size)[None]
    step = engine.prepare(run, q1.train_step, lambda: next(q1.batches(run, example)))

    def epoch() -> int:
        q1.train_epoch(run, step)
        compute.synchronize()
        return run.steps_per_epoch * cfg.batch_size

    return epoch


class LabelledImages(PillowImages):
    def __init__(self, images: Tensor, labels: Tensor, transform: Callable | None):
        super().__init__(images, transform)
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return super().__getitem__(index), int(self.labels[index])


def torchvision_batches(images: Tensor, labels: Tensor, cfg, workers: int, compute) -> DataLoader:
    """Batches of (float32 [B, 3, 32, 32], int64 [B]) on the CPU, augmented image by image as `cfg` says."""
    return DataLoader(
        LabelledImages(images, labels, torchvision_transform(cfg.randaug_n, cfg.randaug_m, cfg.erase_prob)),
        cfg.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=compute.device.type == "cuda",
    )


def usual_epoch(q1, cfg, data: Iterable, compute) -> Callable[[], int]:
    """The same model, optimizer, mixing and precision behind a loader of whole batches, with the loss read after every
    step."""
    model = q1.ViT(cfg, 10).to(compute.device)
    optimizer, ema = q1.make_optimizer(model, cfg), ModelEmaV3(model, cfg.ema_decay)
    mixer = Mixup(cfg.mixup, cfg.cutmix, label_smoothing=cfg.label_smoothing, num_classes=10)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")

    def run() -> int:
        model.train()
        for x, y in data:
            x, y = mixer(x.to(compute.device, non_blocking=True), y.to(compute.device, non_blocking=True))
            with compute.autocast():
                logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits.float(), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            ema.update(model)
            loss.item()
        return len(data) * cfg.batch_size

    return run


EPOCH_NOTES = (
    "The same ViT, batch (128), optimizer, MixUp and CutMix, clipping, EMA and precision in every row; what differs is "
    "where the images come from and what draws their augmentation.",
)

PARTS = {"augmentation": (augmentation, AUGMENTATION_NOTES), "epoch": (epoch, EPOCH_NOTES)}


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--data-root", help="a folder with CIFAR-10; default: synthetic images")
    parser.add_argument("--images", type=int, default=4096, help="per run (a quarter for the per-image pipelines)")
    parser.add_argument("--epoch-images", type=int, help="per epoch; default: 1,024 on a CPU, 50,000 on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the CSV and Markdown tables")
    args = parser.parse_args(given)
    command = shlex.join(["python", "tests/bench/bench_q1.py", *given])
    for name in args.parts:
        contenders, notes = PARTS[name]
        rows = measure(list(contenders(args)), args.repeats)
        write_table(rows, args.out, f"bench_q1_{name}", notes, [f"`{command}`", *machine()])


if __name__ == "__main__":
    main(sys.argv[1:])
