"""The files that a training run writes, and continues from."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.common import distributed, environment
from helpers.common.device import Compute
from helpers.common.files import atomic_path, free_space, load_plain, write_csv
from helpers.vit import run_folder, transfer
from helpers.vit.clock import log_line
from helpers.vit.config import MEASURES, check_resumable
from helpers.vit.data import fingerprint
from helpers.vit.image_set import ImageSet
from helpers.vit.run_folder import BEST, HISTORY, LAST

SAVE_SECONDS = 30  # that a killed run may lose: epochs of a second would spend a fifth of it on last.pth
# The state of a resumed run, what learns and what is counted; the rest of it follows from its settings.
MODULES = ("model", "ema", "optimizer", "scaler")
BEST_KEYS = ("model", "config", "mean", "std", "weights", "epoch", "classes", "val_accuracy")
COUNTS = ("step", "seconds", "train_seconds", "skipped", "best_accuracy", "history")
SINCE = {"run": None, "best_loss": math.inf}  # what a last.pth from before runs had an id lacks


def try_save(content: dict[str, Any], path: Path | str) -> bool:
    """Write tensors and plain containers atomically; a full disk is a printed warning and False: a long run goes on."""
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        free = f"{free_space(path) / 2**20:,.0f} MiB free there"
        print(f"warning: {path} could not be written ({free}): {error}; what was there is kept")
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


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether no tensor holds NaN or infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def begin(run: Any, out: Path) -> None:
    """Let a fresh `run` go on from the last.pth that its setting `resume` names (True: the one in `out`), else begin
    with the weights in the file `init_weights`, where there is one."""
    resumed = run.cfg.resume and resume(run, out / LAST if run.cfg.resume is True else Path(run.cfg.resume))
    if run.cfg.init_weights and not resumed:
        transfer.begin_from(run, run.cfg.init_weights)


def resume(run: Any, path: Path) -> bool:
    """Let `run` go on from the last.pth at `path`, and from the best weights beside it, where they are of the same run;
    returns whether there is one. Raises `ValueError` for a file that is broken, or of a run with other settings."""
    content = best = None
    if distributed.is_main() and path.is_file():
        content = SINCE | load_checkpoint(path, "config", "rng", "precision", *MODULES, *COUNTS)
        check_resumable(run.cfg, content["config"], path)
        if not all_finite(content["model"].values()):
            raise ValueError(f"{path} holds weights that are not finite: start anew with resume=False, and a lower lr")
        best = _best_beside(path, content["run"])
    content, best = distributed.broadcast((content, best))
    if not content:
        print(f"resume=True, but there is no {path}: starting anew")
        return False
    if content["precision"] != run.compute.precision or not content["scaler"]:  # of another kind of device
        content["scaler"] = run.scaler.state_dict()
    for name in MODULES:  # tensors move to where their predecessors are
        getattr(run, name).load_state_dict(content[name])
    for group in run.optimizer.param_groups:  # a CUDA graph reads the learning rate on the device
        group["lr"] = torch.as_tensor(group["lr"]).to(run.compute.device)
    for name in (*COUNTS, "best_loss"):
        setattr(run, name, content[name])
    run.id = content["run"] or run.id
    if best:  # it may be of a later epoch than last.pth
        run.best = best | {"run": run.id}
        run.best_accuracy, run.best_loss = best["val_accuracy"] or 0.0, best.get("val_loss") or math.inf
    set_rng_state(content["rng"])
    run.saved = run.seconds
    print(f"resumed after {run.step} steps")
    return True


def _best_beside(path: Path, run_id: str | None) -> dict[str, Any] | None:
    """The best weights beside a last.pth, `None` where there are none of the run `run_id`."""
    path = path.with_name(BEST)
    try:
        best = load_checkpoint(path, *BEST_KEYS)
    except (OSError, ValueError):
        print(f"{path} is missing or broken: the best weights are those of what follows")
        return None
    if (of := best.get("run")) != run_id:
        print(f"{path} is of another run ({of}, not {run_id}): the best weights are those of what follows")
        return None
    return best


def save_last(run: Any, path: Path) -> None:
    """Write everything that a resumed run goes on from; of several processes the first one does."""
    run.saved = run.clock.seconds()
    if distributed.is_main():
        content = {name: getattr(run, name).state_dict() for name in MODULES}
        content |= {name: getattr(run, name) for name in (*COUNTS, "best_loss")}
        content |= {"rng": get_rng_state(), "config": vars(run.cfg), "precision": run.compute.precision, "run": run.id}
        try_save(content, path)


def save_best(run: Any, scores: dict[str, float | None], path: Path) -> str:
    """Keep the better of a run's weights if they beat all before, without held-out images the EMA in any case, and see
    to it that the best are at `path`; returns " *raw" or " *ema" where they were kept, else nothing.

    The higher accuracy is better; of equal ones the lower loss, and of equal losses the later weights, the EMA first.
    Weights that are not finite are never kept.
    """
    better = (run.best_accuracy, -run.best_loss) if run.best else (-math.inf, 0)
    kept = None
    for name, weights, accuracy in (("raw", run.model, "val_accuracy"), ("ema", run.ema, "ema_accuracy")):
        loss = scores.get(accuracy.replace("accuracy", "loss"))
        none_held_out = scores[accuracy] is None
        rank = (0.0, 0.0) if none_held_out else (scores[accuracy], -math.inf if loss is None else -loss)
        if (none_held_out and name == "raw") or rank < better or not all_finite(weights.state_dict().values()):
            continue
        better, kept = rank, name
    if kept:
        _remember_best(run, kept, scores)
    _write_best(run, path)
    return f" *{kept}" if kept else ""


def _remember_best(run: Any, kept: str, scores: dict[str, float | None]) -> None:
    """Copy the weights `kept` ("raw" or "ema"), with all that is needed to use them, to the CPU."""
    weights, prefix = (run.model, "val") if kept == "raw" else (run.ema, "ema")
    accuracy, loss = scores[f"{prefix}_accuracy"], scores.get(f"{prefix}_loss")
    run.best = {
        "model": {name: value.detach().to("cpu", copy=True) for name, value in weights.state_dict().items()},
        "config": vars(run.cfg),
        "mean": run.scale[0].cpu(),
        "std": run.scale[1].cpu(),
        "classes": tuple(run.classes),
        "weights": kept,
        "epoch": run.step / run.steps_per_epoch,
        "val_accuracy": accuracy,
        "val_loss": loss,
        "run": run.id,
    }
    run.best_accuracy, run.best_loss = accuracy or 0.0, math.inf if loss is None else loss
    run.best_is_saved = False


def _write_best(run: Any, path: Path) -> None:
    """Write the best weights, unless they are at `path`; what another run left there is moved to earlier/<its id>/."""
    if not run.best or (distributed.broadcast(path.is_file()) and run.best_is_saved):
        return
    if distributed.is_main() and path.is_file():
        try:
            other = load_checkpoint(path, "model").get("run", run.id)
        except (OSError, ValueError):  # broken, and so nobody's
            other = run.id
        if other != run.id:
            print(f"{path} was of another run: it is now in {run_folder.set_aside(path.parent, other, [BEST])}")
    run.best_is_saved = distributed.broadcast(distributed.is_main() and try_save(run.best, path))


@contextlib.contextmanager
def kept_if_lost(run: Any, out: Path) -> Iterator[None]:
    """Save a run that ends by `FloatingPointError`: its bad steps were skipped, so these are the last good weights."""
    try:
        yield
    except FloatingPointError:
        save_last(run, run_folder.own(out, run.id) / LAST)
        distributed.barrier()  # the first process to fail takes the others with it
        raise


def save_epoch(run: Any, row: dict[str, Any], out: Path) -> None:
    """Add an epoch's `row` to the history, write what is to be written after it, and print the epoch in a line; raises
    `FloatingPointError` where the weights are no longer finite, and leaves the files as they were."""
    epoch = round(run.step / run.steps_per_epoch, 3)
    if not all_finite(run.model.parameters()):
        raise FloatingPointError(
            f"the weights are not finite after epoch {epoch:g}; {BEST} and {LAST}, where there are any, are of before: "
            "start anew with a lower lr or weight_decay, or amp=False"
        )
    out = run_folder.own(out, run.id)
    run.seconds = run.clock.seconds()
    row = {"run": run.id, "epoch": epoch, "step": run.step, **row, "seconds": run.seconds}
    run.history.append(row)
    mark = save_best(run, row, out / BEST)
    if distributed.broadcast(run.seconds - run.saved >= SAVE_SECONDS or run.progress >= 1):
        save_last(run, out / LAST)
    if distributed.is_main():
        write_csv(run.history, out / HISTORY)
    print(log_line(row, run.clock.minutes_left(run.progress)) + mark)


def finish(run: Any, scores: Callable[[], dict[str, float | None]], out: Path) -> Path:
    """See to it that a run has its best weights, by `scores()` where it was resumed from last.pth alone, and that they
    are written; returns the folder that it has written into, see `run_folder.own`."""
    out = run_folder.own(out, run.id)
    if run.best:
        _write_best(run, out / BEST)
    else:
        save_best(run, scores(), out / BEST)
    return out


def image_size(cfg: Any) -> int:
    """Side in pixels of the images to load: what the checkpoint to be tested was trained on, else the setting."""
    return load_checkpoint(cfg.checkpoint, "config")["config"].get("img_size", 32) if cfg.checkpoint else cfg.img_size


def load_best(path: Path | str, dataset: ImageSet, run: Any) -> dict[str, Any]:
    """Read the weights to be tested on the images `dataset`; `run` is what has just been trained, if anything. Where
    the file is not this run's, or not its best, the weights in memory are returned instead.

    Raises `ValueError` for weights of other classes, that are not finite or not of this notebook's model, and
    `RuntimeError` where there are none of this run.
    """
    content = _best_of(run, Path(path)) if run else load_checkpoint(path, *BEST_KEYS)
    if missing := [name for name in MEASURES if name not in content["config"]]:
        raise ValueError(f"{path} is not of this notebook's model: its config has no {', '.join(missing)}")
    for name in ("mean", "std"):
        if not isinstance(content[name], Tensor) or content[name].numel() != 3:
            raise ValueError(f"{path}: {name} is {content[name]!r}, expected a tensor with a number for each channel")
    if list(content["classes"]) != list(dataset.classes):
        raise ValueError(
            f"{path} knows the classes {content['classes']}, the images in {dataset.source} show {dataset.classes}: "
            "set data_root to images of the classes it knows, or checkpoint=None to train on these"
        )
    bad = [name for name, value in content["model"].items() if not all_finite([value])]
    if bad:
        raise ValueError(f"{path}: {len(bad)} of {len(content['model'])} weights are not finite ({bad[0]}): train anew")
    if not run and dataset.held_out and not content["config"].get("images", "").endswith(fingerprint(dataset)):
        print("warning: these test images are some of CIFAR-10's training images, which may have been trained on")
    return content


def _best_of(run: Any, path: Path) -> dict[str, Any]:
    """The best weights of a run, from its file at `path` or else from memory."""
    try:
        content = load_checkpoint(path, *BEST_KEYS)
        found = f"is of run {content.get('run')}"
    except (OSError, ValueError):
        content, found = {}, "is missing or broken"
    same = content.get("run") == run.id and (not run.best or content["epoch"] == run.best["epoch"])
    if same:
        return content
    if not run.best:
        raise RuntimeError(f"run {run.id} has saved no weights yet ({path} {found}): train to an epoch's end")
    print(f"{path} {found}, or an older one: the best weights of run {run.id} are taken from memory")
    return run.best


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
        bad = f", {run.skipped:,} of them skipped (gradients not finite)" if run.skipped else ""
        print(f"{run.step:,} steps{bad} in {run.seconds:,.0f} s, ended by {run.stopped_by()}")
    summary = {
        "run": best.get("run"),
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
    run_folder.release()  # what follows are figures
