"""q1.ipynb's own code beside what people would use instead, in turns.

    python tests/bench/bench_q1.py [--parts augmentation epoch accuracy hardness] [--data-root DIR] [--out DIR]

augmentation  images/s of crop, flip, RandAugment (two rounds, magnitude 9), normalisation and Random Erasing (0.25) on
              a CPU: the notebook's `augment`, torchvision and timm image by image in a DataLoader, torchvision's v2
epoch         images/s of a training epoch, augmentation included: the notebook, and the same model, optimizer, mixing,
              clipping, EMA and precision behind a DataLoader with torchvision, and behind timm's `create_loader`
accuracy      on held-out training images after the same wall-clock time of training, behind the same three
hardness      augmented images that a trained model (--weights) gets right, by the notebook's augmentation and by
              timm's: a defect in either would show

The notebook and timm apply a drawn operation with probability 0.5, torchvision always.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import timm.data.auto_augment as timm_aa
import torch
from PIL import Image
from timm.data import create_loader, create_transform
from timm.data.mixup import Mixup, mixup_target
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from bench_common import ROOT, Contender, nbload, precisions, report, take_turns
from helpers.common.device import Compute, pick_compute
from helpers.vit import checkpoint as ckpt
from helpers.vit import engine, evaluate
from helpers.vit.clock import Clock
from helpers.vit.config import OTHER_SETTINGS, fit_to_images, make_config
from helpers.vit.data import Split, hold_out, load_images

Q1 = "q1.ipynb"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SCALE = [torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD)]


def some_images(data_root: str | None, count: int) -> Tensor:
    """uint8 [count, 3, 32, 32]: CIFAR-10's from data_root, else smooth random ones (the speed hardly depends on it)."""
    if data_root:
        images = load_images(data_root, download=False).train_images
        return images[torch.arange(count) % len(images)]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).mul_(255).clamp_(0, 255).byte()


# ---- the usual pipelines ----


class PillowImages(Dataset):
    """As torchvision.datasets.CIFAR10: pixels in memory, one Pillow image made and transformed per item."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable | None = None):
        self.pixels, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transform  # timm's create_loader sets its own

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def torchvision_transform(cfg: SimpleNamespace) -> Callable:
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            *([transforms.RandAugment(cfg.randaug_n, round(cfg.randaug_m))] if cfg.randaug_n else []),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            *([transforms.RandomErasing(cfg.erase_prob, value="random")] if cfg.erase_prob else []),
        ]
    )


def v2_transform(cfg: SimpleNamespace) -> Callable:
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(cfg.randaug_n, round(cfg.randaug_m)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(cfg.erase_prob, value="random"),
        ]
    )


def timm_options(cfg: SimpleNamespace) -> dict:
    """Options of timm's `create_transform` and `create_loader` alike."""
    return {
        "is_training": True,
        "auto_augment": f"rand-m{cfg.randaug_m:g}-n{cfg.randaug_n}-mstd0.5-inc1" if cfg.randaug_n else None,
        "color_jitter": None,  # timm adds it where RandAugment is off
        "re_prob": cfg.erase_prob,
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


def _keep_a_bit(level: float, _) -> tuple[int]:
    return (max(1, 4 - int(level / 10 * 4)),)


def torchvision_batches(images: Tensor, labels: Tensor, cfg: SimpleNamespace, workers: int, compute: Compute):
    """Batches of (float32 [B, 3, 32, 32], int64 [B]) on the CPU; workers stay alive between passes."""
    return DataLoader(
        PillowImages(images, labels, torchvision_transform(cfg)),
        cfg.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=compute.device.type == "cuda",
    )


def timm_batches(images: Tensor, labels: Tensor, cfg: SimpleNamespace, workers: int, compute: Compute):
    """The same by timm, on the GPU where there is one."""
    cuda = compute.device.type == "cuda"
    loader = create_loader(
        PillowImages(images, labels),
        (3, 32, 32),
        cfg.batch_size,
        use_prefetcher=cuda,
        num_workers=workers,
        pin_memory=cuda,
        device=compute.device,
        **timm_options(cfg),
    )
    fit_small_images(loader.dataset.transform)
    return loader


LOADERS = {"DataLoader with torchvision": torchvision_batches, "timm's create_loader": timm_batches}


# ---- augmentation alone ----


def augmentation(args: argparse.Namespace) -> list[dict]:
    q1, compute = nbload.load(Q1), pick_compute("fp32", "cpu")
    cfg = bench_config(q1, (192, 9, 4), 512)
    images, labels = some_images(args.data_root, args.images), torch.arange(args.images) % 10
    v2_augment, few = v2_transform(cfg), max(cfg.batch_size, args.images // 4)
    per_image = images[:few], labels[:few]  # these take about thirty times as long

    def by_batches(augment: Callable, size: int, *given) -> Callable[[], int]:
        return lambda: sum(len(augment(batch, *given)) for batch in images.split(size))

    contenders = []
    for threads in (1, 2):
        workers = 0 if threads == 1 else 2
        ways = {
            f"{Q1}, batches of 512": by_batches(q1.augment, 512, cfg, SCALE),
            f"{Q1}, batches of 128": by_batches(q1.augment, 128, cfg, SCALE),
            "torchvision v2, one draw for 8 images": by_batches(v2_augment, 8),
        }
        for name, transform in (
            ("torchvision", torchvision_transform(cfg)),
            ("timm", fit_small_images(create_transform(32, **timm_options(cfg)))),
        ):
            loader = DataLoader(
                PillowImages(*per_image, transform), 512, num_workers=workers, persistent_workers=workers > 0
            )
            ways[f"{name}, per image, {workers} workers"] = lambda loader=loader: sum(len(x) for x, _ in loader)
        contenders += [Contender(f"{name}, {threads} threads", run, threads) for name, run in ways.items()]
    return take_turns(f"32 x 32, {compute.name}", "images/s", contenders, args.repeats)


# ---- a whole training epoch ----


def bench_config(q1, size: tuple[int, int, int], batch: int) -> SimpleNamespace:
    """The preset t4's recipe for a ViT of another (width, depth, patch), with 64 channels a head."""
    width, depth, patch = size
    given = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": max(1, width // 64)}
    given |= {"batch_size": batch, "compile": False, "max_minutes": 0, "seed": 0}
    return make_config(q1.RECIPE, q1.PRESETS, "t4", given, 0)


def notebook_epoch(q1, cfg, images: Tensor, labels: Tensor, compute: Compute) -> Callable[[], int]:
    """An epoch of the notebook's own code."""
    split = Split(images.to(compute.device), labels.to(compute.device))
    scale = [value.to(compute.device) for value in SCALE]
    run = q1.Run(cfg, compute, split, split.first(0), scale, tuple("0123456789"))
    run.clock, example = Clock(10**9), torch.arange(cfg.batch_size)[None]
    step = engine.prepare(run, q1.train_step, lambda: next(q1.batches(run, example)))

    def epoch() -> int:
        q1.train_epoch(run, step)
        compute.synchronize()
        return run.steps_per_epoch * cfg.batch_size

    return epoch


def usual_epoch(q1, cfg, data: Iterable, compute: Compute) -> Callable[[], int]:
    """The same behind a loader of whole batches, with the loss read after every step."""
    model = q1.ViT(cfg, 10).to(compute.device)
    optimizer, ema = q1.make_optimizer(model, cfg), ModelEmaV3(model, cfg.ema_decay)
    mixer = Mixup(cfg.mixup, cfg.cutmix, label_smoothing=cfg.label_smoothing, num_classes=10)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")

    def epoch() -> int:
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

    return epoch


def epoch(args: argparse.Namespace) -> list[dict]:
    q1, rows = nbload.load(Q1), []
    counts = args.epoch_images or ([50_000] if torch.cuda.is_available() else [1024, 8192])
    for i, size in enumerate(args.models):
        count = counts[min(i, len(counts) - 1)]
        images, labels = some_images(args.data_root, count), torch.arange(count) % 10
        cfg = bench_config(q1, size, args.batch)
        for compute in precisions(args.precisions):
            contenders = [Contender(Q1, notebook_epoch(q1, cfg, images, labels, compute))]
            for name, batches in LOADERS.items():
                run = usual_epoch(q1, cfg, batches(images, labels, cfg, args.workers, compute), compute)
                contenders.append(Contender(f"{name}, {args.workers} workers", run))
            setting = f"{size_name(cfg)}, {count:,} images, {compute.precision}"
            rows += take_turns(setting, "images/s", contenders, args.repeats)
    return rows


# ---- accuracy after equal time ----


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


def accuracy(args: argparse.Namespace) -> list[dict]:
    """A row for each contender and seed; all have the preset's recipe, schedule, validation and checkpoints."""
    q1, compute, rows = nbload.load(Q1), pick_compute(), []
    found = load_images(args.data_root, download=False)
    given = {"max_minutes": args.minutes, "compile": False, "val_size": args.val_size, "data_root": args.data_root}
    given = dict.fromkeys(OTHER_SETTINGS) | given
    if args.accuracy_model:
        width, depth, patch = args.accuracy_model
        given |= {"embed_dim": width, "depth": depth, "patch_size": patch, "num_heads": max(1, width // 64)}
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0
    cfg = make_config(q1.RECIPE, q1.PRESETS, args.preset, given, memory)
    cfg.val_size = min(cfg.val_size, len(found.train_labels) // 5)
    scale = [value.to(compute.device) for value in SCALE]
    setting = f"{found.name}, {cfg.val_size:,} held out; preset {cfg.preset}, {size_name(cfg)}, {compute.precision}"
    for seed in args.seeds:
        cfg.seed = seed
        train, val = hold_out(found, cfg.val_size, args.train_size, seed, compute.device)
        for name, make_batches in ((Q1, None), *LOADERS.items()):
            source = q1.batches
            if make_batches:
                batches = make_batches(train.images.cpu(), train.labels.cpu(), cfg, args.workers, compute)
                source, name = partial(loader_batches, batches), f"{name}, {args.workers} workers"
            began, run = time.perf_counter(), q1.Run(cfg, compute, train, val, scale, found.classes)
            with tempfile.TemporaryDirectory() as out, mock.patch.object(q1, "batches", source):
                q1.train(run, Path(out))
            rows.append(
                {
                    "contender": name,
                    "setting": f"{setting}, {args.minutes:g} min",
                    "seed": seed,
                    "raw, %": round(run.history[-1]["val_accuracy"], 2),
                    "EMA, %": round(run.history[-1]["ema_accuracy"], 2),
                    "images seen": run.step * cfg.batch_size,
                    "epochs": round(run.step / run.steps_per_epoch, 2),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            print(rows[-1], flush=True)
            source = batches = None  # ends its workers
    return rows


# ---- how hard the images are ----


@torch.no_grad()
def hardness(args: argparse.Namespace) -> list[dict]:
    """A row for training and held-out images and each kind of augmentation."""
    q1, compute, rows = nbload.load(Q1), pick_compute(cpu_bf16=True), []
    best = ckpt.load_checkpoint(args.weights, "model", "config", "mean", "std")
    found = load_images(args.data_root, download=False)
    cfg = SimpleNamespace(**dict.fromkeys(OTHER_SETTINGS) | best["config"])
    fit_to_images(cfg, found)
    model, scale = q1.ViT(cfg, len(found.classes)).to(compute.device), (best["mean"], best["std"])
    model.load_state_dict(best["model"])
    train, val = hold_out(found, cfg.val_size, cfg.train_size, cfg.seed, torch.device("cpu"))
    for part, split in (("training images", train.first(2000)), ("held-out images", val.first(2000))):
        for name, n, erase in (("none", 0, 0.0), ("RandAugment", 2, 0.0), ("erasing", 0, 0.25), ("both", 2, 0.25)):
            cfg.randaug_n, cfg.randaug_m, cfg.erase_prob = n, 9, erase
            options = timm_options(cfg) | {key: best[key].flatten().tolist() for key in ("mean", "std")}
            transform = fit_small_images(create_transform(32, **options))
            theirs = [transform(Image.fromarray(image)) for image in split.images.permute(0, 2, 3, 1).numpy()]
            row = {"images": part, "beside crop and flip": name, "n": len(split)}
            for who, x in (("q1", q1.augment(split.images, cfg, scale)), ("timm", torch.stack(theirs))):
                seen = evaluate.predict(model, x, lambda x: x, compute)[0]
                right = (seen.argmax(-1) == split.labels).double().mean().item()
                row[f"{who}, % right"] = round(100 * right, 2)
            rows.append(row)
            print(row, flush=True)
    return rows


# ---- command line ----


def parse_size(text: str) -> tuple[int, ...]:
    """(width, depth, patch) from 192x9p4."""
    found = re.fullmatch(r"(\d+)x(\d+)p(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give width, depth and patch as in 192x9p4")
    return tuple(map(int, found.groups()))


def size_name(cfg: SimpleNamespace) -> str:
    return f"ViT {cfg.embed_dim} wide, {cfg.depth} deep, patch {cfg.patch_size}, batch {cfg.batch_size}"


PARTS = {"augmentation": augmentation, "epoch": epoch, "accuracy": accuracy, "hardness": hardness}


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["augmentation", "epoch"])
    parser.add_argument("--data-root", help="CIFAR-10 in any layout; default: random or drawn images")
    parser.add_argument("--out", type=Path, help="folder for the CSV and Markdown tables")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16", "fp16"])
    parser.add_argument("--images", type=int, default=4096, help="(augmentation; a quarter for those image by image)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoaders; default: one per core")
    parser.add_argument("--models", nargs="+", type=parse_size, default=[(192, 9, 4), (64, 2, 8)], help="(epoch)")
    parser.add_argument("--batch", type=int, default=128, help="(epoch)")
    parser.add_argument("--epoch-images", nargs="+", type=int, help="by model; default: 1024 8192, 50000 on a GPU")
    parser.add_argument("--minutes", type=float, default=3, help="of training (accuracy)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(accuracy)")
    parser.add_argument("--preset", default="auto", help="of q1.ipynb (accuracy); default: by device")
    parser.add_argument("--accuracy-model", type=parse_size, help="another ViT than the preset's, such as 64x2p8")
    parser.add_argument("--train-size", type=int, help="(accuracy)")
    parser.add_argument("--val-size", type=int, help="(accuracy)")
    parser.add_argument("--weights", type=Path, default=ROOT / "assets" / "q1_vit_h100.pth", help="(hardness)")
    args = parser.parse_args(given)
    torch.set_float32_matmul_precision("high")  # as in the notebook
    for part in args.parts:
        report("bench_q1", part, PARTS[part](args), args.out, given)


if __name__ == "__main__":
    main(sys.argv[1:])
