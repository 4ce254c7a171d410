"""What a GPU is to tell about q1, in parts of some minutes each; on a CPU the same in a size for trying it out.

    python tests/bench/gpu.py --part engine --data DATA [--out DIR]
    python tests/bench/gpu.py --part recipe --minutes 5 --data DATA [--epochs 12] [--only NAME ...]
    python tests/bench/gpu.py --part train --minutes 8 --data DATA [--set embed_dim=384 epochs=300 ...]

engine: milliseconds of a training step run eagerly, compiled, and as one CUDA graph, for several models and batches.
recipe, rates, choices: one thing changed at a time, each trained by q1.ipynb's own code on equally many images, with
    the gradient's norm and the size of the residual stream logged on the way; stops before --minutes are over, and goes
    on from what DIR/<part>.csv already has.
train: one run with q1's outputs, resumed from DIR/last.pth where there is one.
figures: DIR/recipe.png, DIR/gpu_run.png and DIR/cpu_run.png, as section 7 of q1 shows them, from the tables in
    assets/measured/.

DATA: what q1's data_root takes; drawn shapes without. Needs no package of q2's.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bench_common import ROOT, nbload, spread
from helpers.common import environment
from helpers.common.device import Compute, pick_compute
from helpers.common.figures import PALETTE, finish, new_figure
from helpers.vit import best_weights, config, engine, evaluate, figures
from helpers.vit import checkpoint as ckpt
from helpers.vit.clock import Clock
from helpers.vit.data import hold_out, load_images, pixel_statistics
from helpers.vit.image_set import ImageSet

BEGAN = time.perf_counter()
VIT = {"embed_dim": 192, "depth": 12, "num_heads": 3, "patch_size": 4, "patch_stride": None}
WIDE = {"embed_dim": 384, "num_heads": 6}
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "compile": False}  # where there is no GPU

# name: (settings that differ, what of the notebook is replaced); the first is what the others are held against.
HIGH = {"lr": 1e-3, "batch_size": 128}
PLAIN = {"fresh_weights": "plain_init", "beta2": 0.999}
OLD = {"beta2": 0.99}  # what the notebook once had, with mimetic attention
MIMETIC = {"mimetic": True}
RECIPE = {
    "baseline: mimetic init, beta2 0.99, batch 128, lr 1e-3": (HIGH | MIMETIC, OLD),
    "baseline, 384 wide, batch 512": (HIGH | WIDE | MIMETIC | {"batch_size": 512}, OLD),
    "baseline, 384 wide, batch 512, timm's init, beta2 0.999": (HIGH | WIDE | {"batch_size": 512}, PLAIN),
    "baseline, timm's init": (HIGH, PLAIN | {"beta2": 0.99}),
    "baseline, timm's init, beta2 0.999": (HIGH, PLAIN),
    "baseline, timm's ViT and init, beta2 0.999": (HIGH, {"ViT": "timm_vit", "beta2": 0.999}),
    "baseline, batch 512": (HIGH | MIMETIC | {"batch_size": 512}, OLD),
    "baseline, lr 3e-4": (HIGH | MIMETIC | {"lr": 3e-4}, OLD),
    "baseline, no RandAugment, no erasing": (HIGH | MIMETIC | {"randaug_n": 0, "erase_prob": 0.0}, OLD),
    "baseline, no MixUp, no CutMix": (HIGH | MIMETIC | {"mixup": 0.0, "cutmix": 0.0}, OLD),
}
LATE = {"warmup_epochs": 3}  # of 10
RATES = {
    "lr 3e-4, timm's init, beta2 0.999": ({"lr": 3e-4}, PLAIN),
    "lr 5e-4, warm-up 3 epochs, timm's init, beta2 0.999": ({"lr": 5e-4} | LATE, PLAIN),
    "lr 5e-4, warm-up 3 epochs, mimetic init, beta2 0.99": ({"lr": 5e-4} | LATE | MIMETIC, OLD),
    "lr 1e-3, warm-up 3 epochs, timm's init, beta2 0.999": ({"lr": 1e-3} | LATE, PLAIN),
    "lr 1.5e-4": ({"lr": 1.5e-4}, {}),
    "lr 3e-4, batch 64": ({"lr": 3e-4, "batch_size": 64}, {}),
    "lr 6e-4, batch 256": ({"lr": 6e-4, "batch_size": 256}, {}),
    "384 wide, lr 3e-4": (WIDE | {"lr": 3e-4}, {}),
    "no RandAugment, no erasing": ({"randaug_n": 0, "erase_prob": 0.0}, {}),
    "no MixUp, no CutMix": ({"mixup": 0.0, "cutmix": 0.0}, {}),
    "mean pooling": ({"pool": "mean"}, {}),
    "no DropPath": ({"drop_path": 0.0}, {}),
}
CHOICES = {
    "base": ({}, {}),
    "mean pooling": ({"pool": "mean"}, {}),
    "mixed to the end": ({"mix_off_epochs": 0}, {}),
    "EMA 0.9998": ({"ema_decay": 0.9998}, {}),
    "no DropPath": ({"drop_path": 0.0}, {}),
    "weight decay 0.1": ({"weight_decay": 0.1}, {}),
}
# On a CPU, for the minutes of `quick`.
QUICK = {
    "mimetic attention, beta2 0.99": ({}, OLD),
    "mimetic attention, beta2 0.999": ({}, {"beta2": 0.999}),
    "small random attention, beta2 0.99": ({"mimetic": False}, OLD),
    "random attention and positions, beta2 0.99": ({"mimetic": False}, PLAIN | OLD),
    "random attention and positions, beta2 0.999": ({"mimetic": False}, PLAIN),
    "lr 1.2e-3": ({"lr": 1.2e-3}, {}),
    "mean pooling": ({"pool": "mean"}, {}),
}
COMPARISONS = {"quick": QUICK, "recipe": RECIPE, "rates": RATES, "choices": CHOICES}


# ------------------------------------------------------------------------------------------ replaced in the notebook


@torch.no_grad()
def plain_init(model: nn.Module) -> None:
    """timm's weights of a ViT: truncated normals of deviation 0.02, positions included."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.cls_token, std=1e-6)
    nn.init.trunc_normal_(model.pos_embed, std=0.02)


def timm_vit(cfg: SimpleNamespace, num_classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=cfg.img_size, patch_size=cfg.patch_size, embed_dim=cfg.embed_dim, depth=cfg.depth,
        num_heads=cfg.num_heads, mlp_ratio=cfg.mlp_ratio, num_classes=num_classes, drop_path_rate=cfg.drop_path,
    )  # fmt: skip


def notebook(replaced: dict[str, Any]) -> ModuleType:
    q1 = nbload.load("q1.ipynb")
    for name, value in replaced.items():
        if name == "beta2":
            q1.make_optimizer = partial(with_beta2, q1.make_optimizer, value)
        else:
            setattr(q1, name, globals()[value])
    return q1


def with_beta2(make_optimizer: Callable, beta2: float, *given: Any) -> torch.optim.Optimizer:
    optimizer = make_optimizer(*given)
    for group in optimizer.param_groups:
        group["betas"] = (group["betas"][0], beta2)
    return optimizer


def new_run(q1: ModuleType, settings: dict[str, Any], found: ImageSet, compute: Compute) -> Any:
    settings = dict.fromkeys(config.OTHER_SETTINGS) | {"seed": 0, "max_minutes": 0, "preset": "t4"} | settings
    cfg = config.make_config(q1.RECIPE, q1.PRESETS, settings.pop("preset"), settings, 0)
    config.fit_to_images(cfg, found)
    train, val = hold_out(found, cfg.val_size, cfg.train_size, cfg.seed, compute.device)
    return q1.Run(cfg, compute, train, val, pixel_statistics(train.images[:20000]), found.classes)


# ------------------------------------------------------------------------------------------ one thing at a time


@torch.no_grad()
def stream(model: nn.Module, x: torch.Tensor) -> list[tuple[float, float]]:
    """(root mean square, that of the largest channel) of the residual stream before and after each block."""
    sizes: list[tuple[float, float]] = []

    def note(x: torch.Tensor) -> None:
        square = x.float().pow(2).mean((0, 1))  # (D,)
        sizes.append((round(square.mean().sqrt().item(), 3), round(square.max().sqrt().item(), 3)))

    hooks = [block.register_forward_hook(lambda _, __, output: note(output)) for block in model.blocks]
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda _, inputs: note(inputs[0])))
    model.eval()
    model(x)
    for hook in hooks:
        hook.remove()
    return sizes


def compare(args: argparse.Namespace, found: ImageSet, compute: Compute) -> None:
    """A row for each variant in <part>.csv; in <part>.jsonl what was logged on the way."""
    table, longest = args.out / f"{args.part}.csv", 0.0
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    for name, (changed, replaced) in COMPARISONS[args.part].items():
        if name in {row["variant"] for row in rows} or (args.only and name not in args.only):
            continue
        if 60 * args.minutes - (time.perf_counter() - BEGAN) < 1.2 * longest:
            print(f"no time left for {name}", flush=True)
            continue
        began, q1 = time.perf_counter(), notebook(replaced)
        shape = {"preset": "quick"} if args.part == "quick" else VIT
        shape = shape | changed | (SMALL if args.small else {})
        short = {"epochs": args.epochs, "warmup_epochs": args.epochs / 12, "mix_off_epochs": args.epochs / 15}
        short["warmup_epochs"] /= 2 if args.part == "quick" else 1
        run = new_run(q1, short | shape | args.set, found, compute)
        row = follow(q1, run, args, name)
        row = {"variant": name, **row, "whole_seconds": round(time.perf_counter() - began, 1)}
        longest = max(longest, time.perf_counter() - began)
        rows.append({key: str(value) for key, value in row.items()})
        ckpt.write_csv(rows, table)
        print(json.dumps(row), flush=True)


def follow(q1: ModuleType, run: Any, args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train `run` to its end by the notebook's epochs; every 100 steps log gradient norm and stream."""
    run.clock = Clock(round(run.cfg.epochs * run.steps_per_epoch))
    probe = copy.deepcopy(run.ema)  # never compiled
    example = torch.arange(run.cfg.batch_size)[None]
    step = engine.prepare(run, q1.train_step, lambda: next(q1.batches(run, example)))
    run.clock.start(lambda images: None, 0)
    seen = q1.normalise(run.val.images[:64], run.cfg, run.scale)

    def logged(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        result = step(images, targets)
        if run.step % 100 == 0:
            probe.load_state_dict(run.model.state_dict())
            loss, norm = result.tolist()
            line = {"variant": name, "step": run.step, "loss": round(loss, 4), "norm": round(norm, 4)}
            with (args.out / f"{args.part}.jsonl").open("a") as file:
                file.write(json.dumps(line | {"stream": stream(probe, seen)}) + "\n")
        return result

    while run.progress < 1:
        row = q1.train_epoch(run, logged)
        epoch = round(run.step / run.steps_per_epoch)
        if epoch % 4 == 0 or run.progress >= 1:
            row |= q1.validate(run, run.val)
            shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
            print(f"  {name}, epoch {epoch}: {shown}", flush=True)
    probe.load_state_dict(run.model.state_dict())
    sizes = stream(probe, seen)
    return {
        "val": round(row["val_accuracy"], 2),
        "ema": round(row["ema_accuracy"], 2),
        "loss": round(row["loss"], 4),
        "gradient_norm": round(row["gradient_norm"], 3),
        "stream": max(size for size, _ in sizes),
        "largest_channel": max(largest for _, largest in sizes),
        "skipped": run.skipped,
        "epochs": run.cfg.epochs,
        "steps": run.step,
        "images": run.step * run.cfg.batch_size,
        "images_per_second": round(run.step * run.cfg.batch_size / run.train_seconds),
        **about(run),
    }


def about(run: Any) -> dict[str, Any]:
    return {
        "seed": run.cfg.seed,
        "device": run.compute.name,
        "precision": run.compute.precision,
        "dataset": run.cfg.images.split(",")[0],
        "torch": torch.__version__,
    }


# ------------------------------------------------------------------------------------------ speed


def seconds_of(compute: Compute, work: Callable[[], object], count: int) -> list[float]:
    """Seconds of a call, the mean of `count` in a row, five times after one call that is not timed."""
    work()
    taken = []
    for _ in range(5):
        compute.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            work()
        compute.synchronize()
        taken.append((time.perf_counter() - began) / count)
    return taken


def speed(args: argparse.Namespace, found: ImageSet, compute: Compute) -> None:
    """A row in engine.csv for each model, batch and way to run a step: its milliseconds, and images/s, input included,
    where steps are run that way."""
    cuda, rows = compute.device.type == "cuda", []
    shapes = [(VIT, b) for b in (128, 64, 256, 512)] + [(VIT | WIDE, b) for b in (128, 512)]
    shapes += [(VIT | WIDE | {"patch_size": 2}, 128)]
    for shape, batch in shapes if cuda else [(SMALL, 64)]:
        if time.perf_counter() - BEGAN > 60 * args.minutes:
            print("no time left", flush=True)
            break
        for compiled in (False, True) if cuda else (False,):
            q1 = notebook({})
            run = new_run(q1, shape | {"batch_size": batch, "compile": compiled, "epochs": 10**6}, found, compute)
            run.clock, count = Clock(10**12), min(4096 if cuda else 256, len(run.train)) // batch * batch
            order = torch.randperm(len(run.train))[:count].view(-1, batch)
            step = engine.prepare(run, q1.train_step, lambda q1=q1, run=run, order=order: next(q1.batches(run, order)))

            def chunk(q1=q1, run=run, order=order, step=step) -> None:
                for x, y in q1.batches(run, order):
                    q1.set_rates(run)
                    step(x, y)

            given = next(q1.batches(run, order))
            ways = {"eager": partial(q1.train_step, run, *given)} | ({"graph": partial(step, *given)} if cuda else {})
            for way, work in ways.items():
                used = way == "graph" or not cuda  # by the notebook
                row = {
                    "model": f"{run.cfg.embed_dim}x{run.cfg.depth} p{run.cfg.patch_size}",
                    "batch": batch,
                    "way": ("compiled, " if compiled else "") + way,
                    "unit": "ms",
                    **spread([1e3 * seconds for seconds in seconds_of(compute, work, 20 if cuda else 1)]),
                    "images/s with input": round(count / median(seconds_of(compute, chunk, 1))) if used else "",
                    **about(run),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
            ckpt.write_csv(rows, args.out / "engine.csv")


# ------------------------------------------------------------------------------------------ one long run


def train(args: argparse.Namespace, found: ImageSet, compute: Compute) -> None:
    """q1's training and test; writes its files into --out."""
    q1 = notebook({})
    left = args.minutes - (time.perf_counter() - BEGAN) / 60 - args.reserve
    run = new_run(q1, {"max_minutes": max(0.05, left)} | (SMALL if args.small else {}) | args.set, found, compute)
    if (args.out / "last.pth").is_file():
        ckpt.resume(run, args.out / "last.pth")
        run.cfg.max_minutes += run.seconds / 60
    q1.train(run, args.out)
    best = best_weights.load_best(args.out / ckpt.BEST, found, run)
    prepare = lambda images: q1.normalise(images, run.cfg, run.scale)  # noqa: E731
    run.ema.load_state_dict({name: value.to(compute.device) for name, value in best["model"].items()})
    views = evaluate.predict(run.ema, found.test_images, prepare, compute, shift=1)
    results = evaluate.report(views, found.test_labels, found.classes)[0]
    half = {name: value.half() if value.is_floating_point() else value for name, value in best["model"].items()}
    ckpt.try_save(best | {"model": half}, args.out / "best_fp16.pth")  # small enough to be taken along
    ckpt.write_summary(args.out / "run_summary.json", compute, found, best, results, run)


# ------------------------------------------------------------------------------------------ figures


def comparison(rows: list[dict[str, Any]]) -> Figure:
    """Runs with one thing changed each: accuracy, and the residual stream's largest channel at the end."""
    rows, held_out = sorted(rows, key=lambda row: row["val"]), 5000  # validation images
    figure, (left, right) = new_figure(12, 0.34 * len(rows) + 1.3, 1, 2)
    values = np.array([row["val"] for row in rows])
    error = 1.96 * np.sqrt(values * (100 - values) / held_out)
    left.errorbar(values, [row["variant"] for row in rows], xerr=error, fmt="o", capsize=3)
    left.set(title=f"After {rows[0]['epochs']:g} epochs", xlabel=f"accuracy on {held_out:,} validation images (%)")
    right.barh([row["variant"] for row in rows], [row["largest_channel"] for row in rows], color=PALETTE[1])
    right.set(title="Largest channel of the residual stream", xlabel="root mean square", xscale="log")
    right.sharey(left)
    right.tick_params(labelleft=False)
    return figure


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, numbers as such; none where the file is missing."""

    def number(text: str) -> float | str | None:
        try:
            return float(text)
        except ValueError:
            return text or None

    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def draw(out: Path) -> None:
    """Write recipe.png, gpu_run.png and cpu_run.png."""
    measured, data = ROOT / "assets" / "measured", "CIFAR-10, JPEG copy"
    rows = [row for name in ("recipe", "rates") for row in read_rows(measured / f"q1_gpu_{name}.csv")]
    about = "seed {seed:g}; {device}, {precision}; torch {torch}; one run each, 192 wide if not said".format(**rows[0])
    finish(
        comparison(rows), out / "recipe.png", f"{data}; {about}; python tests/bench/gpu.py --part recipe, --part rates"
    )
    for name in ("gpu_run", "cpu_run"):
        said = json.loads((measured / f"q1_{name}.json").read_text())
        about = f"preset {said['config']['preset']}, seed {said['seed']}; {said['device']}, {said['precision']}"
        run = figures.learning_curves(read_rows(measured / f"q1_{name}.csv"), said["test_accuracy"])
        finish(run, out / f"{name}.png", f"{data}; {about}; torch {said['versions']['torch']}")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["engine", "train", "figures", *COMPARISONS], required=True)
    parser.add_argument("--minutes", type=float, default=10, help="from the start of this script")
    parser.add_argument("--reserve", type=float, default=0.2, help="minutes kept for the test (train)")
    parser.add_argument("--epochs", type=float, default=12, help="of each variant (recipe, rates, choices)")
    parser.add_argument("--data", help="default: drawn shapes")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of q1, for every variant")
    parser.add_argument("--amp", default=None, help="fp16, bf16 or fp32; default: by device")
    parser.add_argument("--small", action="store_true", help="tiny models, to try this script out on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu")
    args = parser.parse_args(given)
    pairs = (pair.split("=", 1) for pair in args.set)
    args.set = {name: json.loads(value) if value[0] in "-0123456789tfn" else value for name, value in pairs}
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "figures":
        return draw(args.out)
    torch.set_float32_matmul_precision("high")
    compute = pick_compute(args.amp or True, cpu_bf16=True)
    found = load_images(args.data, download=False, default_roots=())
    print(f"[{time.perf_counter() - BEGAN:.1f} s] {found.name}, {found.source}, {compute}", flush=True)
    print(environment.versions("torch", "timm", "numpy"), flush=True)
    {"engine": speed, "train": train}.get(args.part, compare)(args, found, compute)
    print(f"[{time.perf_counter() - BEGAN:.1f} s] done", flush=True)


if __name__ == "__main__":
    main()
