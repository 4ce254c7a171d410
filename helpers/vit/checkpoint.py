"""The files that a training run writes after every epoch, and continues from."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from helpers.common import distributed, environment
from helpers.common.device import Compute
from helpers.common.files import atomic_path, write_csv
from helpers.vit import run_folder, transfer
from helpers.vit.best_weights import all_finite, best_beside, load_checkpoint, save_best, try_save, write_best
from helpers.vit.clock import log_line
from helpers.vit.config import check_resumable
from helpers.vit.image_set import ImageSet
from helpers.vit.run_folder import BEST, HISTORY, LAST

SAVE_SECONDS = 30  # that a killed run may lose: epochs of a second would spend a fifth of it on last.pth
# The state of a resumed run, what learns and what is counted; the rest of it follows from its settings.
MODULES = ("model", "ema", "optimizer", "scaler")
COUNTS = ("step", "seconds", "train_seconds", "skipped", "history")


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


def begin(run: Any, out: Path) -> None:
    """Let a fresh `run` go on from the last.pth that its setting `resume` names (True: the one in `out`), else begin
    with the weights in the file `init_weights`, where there is one."""
    run_folder.claim(out, run.cfg)  # for a second run, of the same notebook, as well
    resumed = run.cfg.resume and resume(run, out / LAST if run.cfg.resume is True else Path(run.cfg.resume))
    if run.cfg.init_weights and not resumed:
        transfer.begin_from(run, run.cfg.init_weights)
    if resumed and not run.best and distributed.is_main() and (out / BEST).is_file():
        print(f"what was {out / BEST} is kept in {run_folder.set_aside(out, [BEST])}")


def resume(run: Any, path: Path) -> bool:
    """Let `run` go on from the last.pth at `path`, and from the best weights beside it, where they are of the same run;
    returns whether there is one. Raises `ValueError` for a file that is broken, or of a run with other settings."""
    content = best = None
    if distributed.is_main() and path.is_file():
        content = load_checkpoint(path, "config", "rng", "precision", "run", *MODULES, *COUNTS)
        check_resumable(run.cfg, content["config"], path)
        if not all_finite(content["model"].values()):
            raise ValueError(f"{path} holds weights that are not finite: start anew with resume=False, and a lower lr")
        best = best_beside(path, content["run"])
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
    for name in COUNTS:
        setattr(run, name, content[name])
    run.id, run.best = content["run"], best  # which may be of a later epoch than last.pth
    set_rng_state(content["rng"])
    run.saved = run.seconds
    print(f"resumed after {run.step} steps")
    return True


def save_last(run: Any, path: Path) -> None:
    """Write everything that a resumed run goes on from; of several processes the first one does."""
    run.saved = run.clock.seconds()
    if distributed.is_main():
        content = {name: getattr(run, name).state_dict() for name in MODULES}
        content |= {name: getattr(run, name) for name in COUNTS}
        content |= {"rng": get_rng_state(), "config": vars(run.cfg), "precision": run.compute.precision, "run": run.id}
        try_save(content, path)


@contextlib.contextmanager
def kept_if_lost(run: Any, out: Path) -> Iterator[None]:
    """Save a run that ends by `FloatingPointError`: its bad steps were skipped, so these are the last good weights."""
    try:
        yield
    except FloatingPointError:
        save_last(run, out / LAST)
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
    run.seconds = run.clock.seconds()
    row = {"run": run.id, "epoch": epoch, "step": run.step, **row, "seconds": run.seconds}
    run.history.append(row)
    mark = save_best(run, row, out / BEST)
    if distributed.broadcast(run.seconds - run.saved >= SAVE_SECONDS or run.progress >= 1):
        save_last(run, out / LAST)
    if distributed.is_main():
        write_csv(run.history, out / HISTORY)
    print(log_line(row, run.clock.minutes_left(run.progress)) + mark)


def finish(run: Any, scores: Callable[[], dict[str, float | None]], out: Path) -> None:
    """See to it that a run has its best weights, by `scores()` where it was resumed from last.pth alone, and that they
    are written."""
    if run.best:
        write_best(run, out / BEST)
    else:
        save_best(run, scores(), out / BEST)


def write_summary(
    path: Path, compute: Compute, dataset: ImageSet, best: dict[str, Any], results: dict[str, Any], run: Any
) -> None:
    """Write run_summary.json: the weights `best` of a `run` (None: of an earlier one), their images and `results`; and
    print the result with what it depends on."""
    images = {"name": dataset.name, "source": dataset.source, "notes": dataset.notes, "test": len(dataset.test_labels)}
    images |= {"train": len(run.train) if run else None, "val": len(run.val) if run else None}
    trained = dict.fromkeys(("seconds", "images_per_second", "stopped_by"))
    if run:
        rate = run.step * run.cfg.batch_size / max(run.train_seconds, 1e-9)
        trained = {"seconds": run.seconds, "images_per_second": rate, "stopped_by": run.stopped_by()}
        trained |= {"steps": run.step, "skipped_steps": run.skipped}
        bad = f", {run.skipped:,} of them skipped (gradients not finite)" if run.skipped else ""
        print(f"{run.step:,} steps{bad} in {run.seconds:,.0f} s, ended by {run.stopped_by()}")
    tta = results["test_accuracy_tta"]
    of = f"the {'EMA' if best['weights'] == 'ema' else best['weights']} weights of epoch {best['epoch']:.4g}"
    print(
        f"test accuracy {results['test_accuracy']:.2f} %{'' if tta is None else f' ({tta:.2f} % with TTA)'} on "
        f"{images['test']:,} images of {dataset.name}, by {of}; {compute.name}, {compute.precision}"
    )
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
