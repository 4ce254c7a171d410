"""Checkpoints read and written safely, and the best weights of a run: chosen, kept, and read back for the test."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.common import distributed
from helpers.common.files import atomic_path, free_space, load_plain, some
from helpers.vit.config import MEASURES
from helpers.vit.data import fingerprint
from helpers.vit.image_set import ImageSet
from helpers.vit.run_folder import BEST

BEST_KEYS = ("model", "config", "mean", "std", "weights", "epoch", "classes", "val_accuracy")


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


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether no tensor holds NaN or infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def save_best(run: Any, scores: dict[str, float | None], path: Path) -> str:
    """Keep the better of a run's weights if they beat all before, without held-out images the EMA in any case, and see
    to it that the best are at `path`; returns " *raw" or " *ema" where they were kept, else nothing.

    The higher accuracy is better; of equal ones the lower loss, and of equal losses the later weights, the EMA first.
    Weights that are not finite are never kept.
    """
    better = _rank(run.best["val_accuracy"], run.best.get("val_loss")) if run.best else (-math.inf, 0)
    kept = None
    for name, weights, prefix in (("raw", run.model, "val"), ("ema", run.ema, "ema")):
        accuracy, loss = scores[f"{prefix}_accuracy"], scores[f"{prefix}_loss"]
        unwanted = accuracy is None and name == "raw"
        if unwanted or _rank(accuracy, loss) < better or not all_finite(weights.state_dict().values()):
            continue
        better, kept = _rank(accuracy, loss), name
        # with all that is needed to use them, on the CPU
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
        run.best_is_saved = False
    write_best(run, path)
    return f" *{kept}" if kept else ""


def _rank(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """Grows with how good weights are on the held-out images; without any all are alike."""
    return (0.0, 0.0) if accuracy is None else (accuracy, -math.inf if loss is None else -loss)


def write_best(run: Any, path: Path) -> None:
    """Write the best weights, unless they are at `path`."""
    if run.best and not (distributed.broadcast(path.is_file()) and run.best_is_saved):
        run.best_is_saved = distributed.broadcast(distributed.is_main() and try_save(run.best, path))


def best_beside(path: Path, run_id: str) -> dict[str, Any] | None:
    """The best weights beside a last.pth, `None` where there are none of the run `run_id`."""
    path = path.with_name(BEST)
    try:
        best = load_checkpoint(path, *BEST_KEYS, "run")
        if best["run"] == run_id:
            return best
        found = f"of another run ({best['run']}, not {run_id})"
    except (OSError, ValueError):
        found = "missing or broken"
    print(f"{path} is {found}: the best weights are those of what follows")
    return None


def image_size(cfg: Any) -> int:
    """Side in pixels of the images to load: what the checkpoint to be tested was trained on, else the setting."""
    return load_checkpoint(cfg.checkpoint, "config")["config"].get("img_size", 32) if cfg.checkpoint else cfg.img_size


def load_best(path: Path | str, dataset: ImageSet, run: Any) -> dict[str, Any]:
    """The weights to be tested on the images `dataset`: the best of the `run` that has just been trained, whether they
    could be written or not, or without one those in the file `path`.

    Raises `ValueError` for weights of other classes, that are not finite or not of this notebook's model, and
    `RuntimeError` where there are none of this run.
    """
    if run:
        if not run.best:
            raise RuntimeError(f"run {run.id} has no weights yet: train to an epoch's end")
        return run.best
    content = load_checkpoint(path, *BEST_KEYS)
    if missing := [name for name in MEASURES if name not in content["config"]]:
        raise ValueError(f"{path} is not of this notebook's model: its config has no {', '.join(missing)}")
    if list(content["classes"]) != list(dataset.classes):
        raise ValueError(
            f"{path} knows the classes {some(content['classes'], 10)}; the images in {dataset.source} show "
            f"{some(dataset.classes, 10)}: "
            "set data_root to images of the classes it knows, or checkpoint=None to train on these"
        )
    bad = [name for name, value in content["model"].items() if not all_finite([value])]
    if bad:
        raise ValueError(f"{path}: {len(bad)} of {len(content['model'])} weights are not finite ({bad[0]}): train anew")
    if dataset.held_out and not content["config"].get("images", "").endswith(fingerprint(dataset)):
        print("warning: these test images were taken from the training images, which may have been trained on")
    return content
