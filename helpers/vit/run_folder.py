"""A run's folder: whether it can be written to, whether it is in use, and where the files of an earlier run go.

A lock that the system takes back when a process ends (`flock`), so that it is never stale, lets a second process on a
machine refuse before it trains.
"""

import csv
import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from helpers.common import distributed
from helpers.common.files import atomic_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEST, LAST, HISTORY, SUMMARY = "best_vit_cifar10.pth", "last.pth", "history.csv", "run_summary.json"
RESULTS = (BEST, LAST, HISTORY, SUMMARY)
FIGURES = ("data", "augmentation", "schedule", "curves", "classes", "calibration", "mistakes", "attention", "pictures")
FILES = (*RESULTS, "predictions.csv", "submission.csv", *(f"{name}.png" for name in FIGURES))
PROBE_BYTES = 8 * 2**20
_locks: dict[Path, int] = {}  # folder -> the open file descriptor that holds its lock


def new_id() -> str:
    """A run's id, twelve hexadecimal digits, the same in every process; drawn by none of the seeded generators."""
    return distributed.broadcast(secrets.token_hex(6))


def check_writable(folder: Path) -> None:
    """Make `folder` and try to write there, before hours are spent; raises `OSError` with a sentence where that
    fails."""
    problem = None
    if distributed.is_main():
        try:
            with atomic_path(folder / ".probe") as temporary:
                temporary.write_bytes(bytes(PROBE_BYTES))
            (folder / ".probe").unlink()
        except OSError as error:
            problem = f"out_dir={str(folder)!r}: nothing can be written there ({error}): give another folder"
    if problem := distributed.broadcast(problem):
        raise OSError(problem)


def claim(out: Path, cfg: SimpleNamespace) -> None:
    """Take the folder `out` for a run that begins, or goes on from `out`/last.pth or from the path `cfg.resume`; where
    only a checkpoint is tested, nothing is taken.

    The files of an earlier run, unless it is the one that goes on, are moved to earlier/<its id>/, and it is said what
    they were. Raises `RuntimeError` where a process on this machine is training into `out`.
    """
    problem, resume = None, cfg.resume
    if distributed.is_main() and not cfg.checkpoint:
        try:
            _lock(out)
            last = out / LAST
            goes_on = last.is_file() and (resume is True or (resume and last.samefile(resume)))
            if not goes_on and any((out / name).exists() for name in RESULTS):
                _set_aside_all(out)
        except (OSError, RuntimeError) as error:
            problem = str(error)
    if problem := distributed.broadcast(problem):
        raise RuntimeError(problem)


def release() -> None:
    """Let other processes use the folders that this one has taken."""
    while _locks:
        os.close(_locks.popitem()[1])


def set_aside(out: Path, names: Sequence[str], run_id: str = "") -> Path:
    """Move those of the files `names` that are in `out` to earlier/<run_id>/, where nothing is overwritten, and return
    that folder; without an id they go by the date of the newest."""
    there = [out / name for name in names if (out / name).is_file()]
    if not re.fullmatch(r"\w+", run_id):  # what stands in a file must not lead elsewhere
        run_id = f"{_changed(there):%Y-%m-%d_%H-%M-%S}"
    folder, number = out / "earlier" / run_id, 1
    while any((folder / path.name).exists() for path in there):
        number += 1
        folder = folder.with_name(f"{run_id}_{number}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in there:
        path.replace(folder / path.name)
    return folder


def _changed(paths: Sequence[Path]) -> datetime:
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in paths))


def _set_aside_all(out: Path) -> None:
    """Move an earlier run's files away, and say what they were."""
    date = _changed([out / name for name in RESULTS if (out / name).exists()])
    try:
        with (out / HISTORY).open(newline="") as file:
            rows = list(csv.DictReader(file))
        scores = [float(row[name]) for row in rows for name in ("val_accuracy", "ema_accuracy") if row[name]]
        what = f"{float(rows[-1]['epoch']):g} epochs"
        what += f", {max(scores):.2f} % of the held-out images right" if scores else ""
        run_id = rows[-1]["run"] or ""
    except (OSError, ValueError, LookupError):  # none, or not one of a run
        what, run_id = "no history", ""
    folder = set_aside(out, FILES, run_id)
    print(f"{out} had the run {folder.name} ({what}, {date:%Y-%m-%d %H:%M}): it is now in {folder}")


def _lock(out: Path) -> None:
    """Lock the folder `out` itself until this process ends or calls `release`; raises `RuntimeError` where another one
    holds it."""
    out = out.resolve()
    if out in _locks or fcntl is None:
        return
    release()
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        said = "is in use by another process that trains: give another out_dir, or end that one first"
        raise RuntimeError(f"{out} {said}") from None
    except OSError:  # a file system without locks
        os.close(handle)
    else:
        _locks[out] = handle
