"""A run's folder: whether it can be written to, whose it is, and where the files of an earlier run go.

Two things keep runs apart. A lock that the system takes back when a process ends (`flock`), so that it is never stale,
lets a second process on a machine refuse before it trains. Disks that machines share (a mounted Drive) need not pass
locks on: there the folder itself says whose it is, in run.json, which a run reads before every save. Where another one
has taken the folder, the run goes on in earlier/<its id>/, to which that one has moved its files.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers.common import distributed
from helpers.common.files import atomic_path, free_space

try:
    import fcntl
except ImportError:  # Windows: only run.json keeps runs apart
    fcntl = None

BEST, LAST, HISTORY, SUMMARY, OWNER = "best_vit_cifar10.pth", "last.pth", "history.csv", "run_summary.json", "run.json"
RESULTS = (BEST, LAST, HISTORY, SUMMARY)
FIGURES = ("data", "augmentation", "schedule", "curves", "classes", "calibration", "mistakes", "attention", "pictures")
FILES = (*RESULTS, OWNER, "predictions.csv", "submission.csv", *(f"{name}.png" for name in FIGURES))
SESSION = secrets.token_hex(6)  # of this process
PROBE_BYTES = 64 * 2**20  # at most; more would take seconds on a slow disk
_locks: dict[Path, int] = {}  # folder -> the open file descriptor that holds its lock
_signed: set[Path] = set()  # folders that this process has written its run.json into


def new_id() -> str:
    """A run's id, twelve hexadecimal digits, the same in every process; drawn by none of the seeded generators."""
    return distributed.broadcast(secrets.token_hex(6))


def check_writable(folder: Path, best: int, last: int) -> None:
    """Make `folder` and try to write a file of `best` bytes there, before hours are spent; raises `OSError` with a
    sentence where that fails, and warns where `last` bytes more have no room."""
    problem = None
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / ".probe") as temporary:
                temporary.write_bytes(bytes(min(best, PROBE_BYTES)))
            (folder / ".probe").unlink()
            if (free := free_space(folder / ".probe")) < best + last:
                print(f"warning: {free / 2**20:,.0f} MiB are free in {folder}, too few for {LAST}, to resume from")
        except OSError as error:
            size = f"a checkpoint of {best / 2**20:,.1f} MiB"
            problem = f"out_dir={str(folder)!r}: {size} cannot be written there ({error}): give another folder"
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
            _sign(out, None)
        except (OSError, RuntimeError) as error:
            problem = str(error)
    if problem := distributed.broadcast(problem):
        raise RuntimeError(problem)


def release() -> None:
    """Let other processes use the folders that this one has taken."""
    while _locks:
        os.close(_locks.popitem()[1])


def own(out: Path, run_id: str) -> Path:
    """`out`, or where another process has taken it, `out`/earlier/<run_id>; asked before every save."""
    folder = None
    if distributed.is_main():
        owner, folder = _owner(out), out
        taken = out.resolve() in _signed and owner.get("session", SESSION) != SESSION
        if taken:
            folder = out / "earlier" / run_id
            print(f"warning: {out} was taken by {_name(owner)}; run {run_id} goes on in {folder}")
        elif owner.get("run") != run_id or owner.get("session") != SESSION:
            _sign(out, run_id)
    return distributed.broadcast(folder)


def set_aside(out: Path, run_id: str | None, names: Sequence[str]) -> Path:
    """Move those of the files `names` that are in `out` to earlier/<run_id>/, where nothing is overwritten; files from
    before runs had an id go by the date of the newest. Returns the new folder."""
    there = [out / name for name in names if (out / name).is_file()]
    if not re.fullmatch(r"\w+", run_id or ""):  # what stands in a file must not lead elsewhere
        run_id = f"{_changed(there):%Y-%m-%d_%H-%M-%S}"
    folder, number = out / "earlier" / run_id, 1
    while any((folder / path.name).exists() for path in there):
        number += 1
        folder = folder.with_name(f"{run_id}_{number}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in there:
        path.replace(folder / path.name)
    return folder


def _set_aside_all(out: Path) -> None:
    """Move an earlier run's files away, and say what they were."""
    try:
        with (out / HISTORY).open(newline="") as file:
            rows = list(csv.DictReader(file))
        scores = [float(row[name]) for row in rows for name in ("val_accuracy", "ema_accuracy") if row[name]]
        what = f"{float(rows[-1]['epoch']):g} epochs"
        what += f", {max(scores):.2f} % of the held-out images right" if scores else ""
        run_id = rows[-1].get("run")
    except (OSError, ValueError, LookupError):  # none, or not one of a run
        what, run_id = "no history", _owner(out).get("run")
    date = _changed([out / name for name in RESULTS if (out / name).exists()])
    folder = set_aside(out, run_id, FILES)
    print(f"{out} had the run {run_id or 'of another version'} ({what}, {date:%Y-%m-%d %H:%M}): it is now in {folder}")


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
        owner = _name(_owner(out))
        raise RuntimeError(f"{out} is in use by {owner}: give another out_dir, or end that one first") from None
    except OSError:  # a file system without locks
        os.close(handle)
    else:
        _locks[out] = handle


def _sign(out: Path, run_id: str | None) -> None:
    """Write into run.json that the folder is this process's, and its run's."""
    began = f"{datetime.now():%Y-%m-%d %H:%M}"
    owner = {"run": run_id, "session": SESSION, "host": socket.gethostname(), "pid": os.getpid(), "began": began}
    try:
        with atomic_path(out / OWNER) as temporary:
            temporary.write_text(json.dumps(owner))
        _signed.add(out.resolve())
    except OSError as error:
        print(f"warning: {out / OWNER} could not be written: {error}")


def _owner(out: Path) -> dict[str, Any]:
    """The content of run.json, nothing where it is not there or cannot be read."""
    try:
        owner = json.loads((out / OWNER).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _name(owner: dict[str, Any]) -> str:
    run_id = f"run {owner['run']}" if owner.get("run") else "a run"
    return f"{run_id}, process {owner.get('pid')} on {owner.get('host')} since {owner.get('began')}"


def _changed(paths: Sequence[Path]) -> datetime:
    """When the newest of the files was written."""
    return datetime.fromtimestamp(max((path.stat().st_mtime for path in paths), default=0))
