"""The files that a training run writes, and continues from."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from helpers.common import distributed, environment
from helpers.common.device import Compute
from helpers.common.files import atomic_path, free_space, load_plain, write_csv
from helpers.vit.clock import log_line
from helpers.vit.config import check_resumable
from helpers.vit.data import fingerprint
from helpers.vit.image_set import ImageSet

BEST = "best_vit_cifar10.pth"
SAVE_SECONDS = 30  # that a killed run may lose: epochs of a second would spend a fifth of it on last.pth
# The state of a resumed run, what learns and what is counted; the rest of it follows from its settings.
MODULES = ("model", "ema", "optimizer", "scaler")
COUNTS = ("step", "seconds", "train_seconds", "skipped", "best_accuracy", "history")


def try_save(content: dict[str, Any], path: Path | str) -> bool:
    """Write tensors and plain containers atomically; a full disk is a printed warning and False: a long run goes on."""
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        print(f"warning: {path} could not be written ({free_space(path)} free there): {error}; what was there is kept")
        return False
    return True


def load_checkpoint(path: Path | str, *required: str) -> dict[str, Any]:
    """Read one of q1's checkpoints, executing nothing in it; raises `FileNotFoundError`, or `ValueError` for a file
    that is truncated, not a checkpoint, or lacks a key named in `required`."""
    path = Path(path)
    advice = "give another file as checkpoint=, or train anew with checkpoint=None and resume=False"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint (looked for from {Path.cwd()}); {advice}")
    content = load_plain(path, f"; {advice}")
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} is not a checkpoint of this notebook: it has no {', '.join(missing)}; {advice}")
    return content


def get_rng_state() -> dict[str, Any]:
    """States of Python's and torch's generators (CPU and every GPU) as tensors and plain containers."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue from `get_rng_state()`. GPU states are restored where the number of GPUs is the same."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def resume(run: Any, path: Path) -> None:
    """Let `run` go on from the last.pth at `path`, where there is one; raises `ValueError` for a file that is broken,
    or of a run with other settings."""
    content = None
    if distributed.is_main() and path.is_file():
        content = load_checkpoint(path, "config", "rng", "precision", *MODULES, *COUNTS)
        check_resumable(run.cfg, content["config"], path)
    content = distributed.broadcast(content)
    if not content:
        print(f"resume=True, but there is no {path}: starting anew")
        return
    if content["precision"] != run.compute.precision or not content["scaler"]:  # of another kind of device
        content["scaler"] = run.scaler.state_dict()
    for name in MODULES:  # tensors move to where their predecessors are
        getattr(run, name).load_state_dict(content[name])
    for group in run.optimizer.param_groups:  # a CUDA graph reads the learning rate on the device
        group["lr"] = torch.as_tensor(group["lr"]).to(run.compute.device)
    for name in COUNTS:
        setattr(run, name, content[name])
    set_rng_state(content["rng"])
    run.saved = run.seconds
    print(f"resumed after {run.step} steps")


def save_last(run: Any, path: Path) -> None:
    """Write everything that a resumed run goes on from; of several processes the first one does."""
    run.saved = run.clock.seconds()
    if distributed.is_main():
        content = {name: getattr(run, name).state_dict() for name in MODULES}
        content |= {name: getattr(run, name) for name in COUNTS}
        content |= {"rng": get_rng_state(), "config": vars(run.cfg), "precision": run.compute.precision}
        try_save(content, path)


def save_best(run: Any, scores: dict[str, float | None], path: Path) -> str:
    """Write the better of a run's weights if they beat all before, without held-out images the EMA in any case;
    returns " *raw" or " *ema" where they were written, else nothing."""
    raw, best, kept = scores["val_accuracy"], scores["ema_accuracy"], "ema"
    if best is not None and raw > best:
        best, kept = raw, "raw"
    there = distributed.broadcast(path.is_file())  # it may be gone, where a run was resumed from last.pth alone
    if best is not None and best <= run.best_accuracy and there:
        return ""
    weights = (run.model if kept == "raw" else run.ema).state_dict()
    content = {
        "model": {name: value.cpu() for name, value in weights.items()},  # so that any machine can load them
        "config": vars(run.cfg),
        "mean": run.scale[0].cpu(),
        "std": run.scale[1].cpu(),
        "classes": tuple(run.classes),
        "weights": kept,
        "epoch": run.step / run.steps_per_epoch,
        "val_accuracy": best,
    }
    if not distributed.broadcast(distributed.is_main() and try_save(content, path)):
        return ""
    run.best_accuracy = best or 0.0
    return f" *{kept}"


@contextlib.contextmanager
def kept_if_lost(run: Any, out: Path) -> Iterator[None]:
    """Save a run that ends by `FloatingPointError`: its bad steps were skipped, so these are the last good weights."""
    try:
        yield
    except FloatingPointError:
        save_last(run, out / "last.pth")
        distributed.barrier()  # the first process to fail takes the others with it
        raise


def save_epoch(run: Any, row: dict[str, Any], out: Path) -> None:
    """Add an epoch's `row` to the history, write what is to be written after it, and print the epoch in a line."""
    run.seconds = run.clock.seconds()
    row = {"epoch": round(run.step / run.steps_per_epoch, 3), "step": run.step, **row, "seconds": run.seconds}
    run.history.append(row)
    mark = save_best(run, row, out / BEST)
    if distributed.broadcast(run.seconds - run.saved >= SAVE_SECONDS or run.progress >= 1):
        save_last(run, out / "last.pth")
    if distributed.is_main():
        write_csv(run.history, out / "history.csv")
    print(log_line(row, run.clock.minutes_left(run.progress)) + mark)


def load_best(path: Path | str, dataset: ImageSet, run: Any) -> dict[str, Any]:
    """Read the weights to be tested on the images `dataset`; `run` is what has just been trained, if anything.
    Raises `ValueError` where they know other classes, `RuntimeError` where they are not this run's."""
    content = load_checkpoint(path, "model", "config", "mean", "std", "weights", "epoch", "classes")
    if list(content["classes"]) != list(dataset.classes):
        raise ValueError(
            f"{path} knows the classes {content['classes']}, the images in {dataset.source} show {dataset.classes}: "
            "set data_root to images of the classes it knows, or checkpoint=None to train on these"
        )
    if run and run.best_accuracy < 0:
        raise RuntimeError(f"this run has saved no weights yet, {path} is of an earlier one: train to an epoch's end")
    if not run and dataset.held_out and not content["config"].get("images", "").endswith(fingerprint(dataset)):
        print("warning: these test images are some of CIFAR-10's training images, which may have been trained on")
    return content


def write_summary(
    path: Path, compute: Compute, dataset: ImageSet, best: dict[str, Any], results: dict[str, Any], run: Any
) -> None:
    """Write run_summary.json: the weights `best` of a `run` (None: of an earlier one), their images and `results`."""
    images = {"name": dataset.name, "source": dataset.source, "notes": dataset.notes, "test": len(dataset.test_labels)}
    images |= {"train": len(run.train) if run else None, "val": len(run.val) if run else None}
    trained = dict.fromkeys(("seconds", "images_per_second", "stopped_by"))
    if run:
        rate = run.step * run.cfg.batch_size / max(run.train_seconds, 1e-9)
        trained = {"seconds": run.seconds, "images_per_second": rate, "stopped_by": run.stopped_by()}
        trained |= {"steps": run.step, "skipped_steps": run.skipped}
        print(f"{run.step:,} steps in {run.seconds:,.0f} s, ended by {run.stopped_by()}")
    summary = {
        "dataset": images,
        "config": best["config"],
        "parameters": sum(weights.numel() for weights in best["model"].values()),
        "epochs_run": run.step / run.steps_per_epoch if run else best["epoch"],
        **trained,
        "best_val_accuracy": best["val_accuracy"],
        **results,
        "selected_weights": best["weights"],
        "device": compute.name,
        "processes": best["config"].get("processes", 1),
        "precision": compute.precision,
        "versions": environment.versions("torch", "torchvision", "timm", "numpy"),
        "seed": best["config"]["seed"],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2))
