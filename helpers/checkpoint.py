"""Files that are either whole or not there, and the random state that a resumed run continues from."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is flushed to disk and takes `path`'s name.

    When the block fails, or the disk is full, the temporary file is removed and `path` is as it was; what a killed
    process left is overwritten by the next one. The suffix is kept, since savers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(content: dict[str, Any], path: Path | str) -> None:
    """Write `content` (tensors and plain containers) atomically. Raises `OSError` that names the path and the space."""
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        raise OSError(
            f"{path} could not be written ({free_space(path)} free there); what stood there is kept"
        ) from error


def load_checkpoint(path: Path | str, *required: str) -> dict[str, Any]:
    """Read one of q1's checkpoints, by `load_plain`.

    Raises `FileNotFoundError`, or `ValueError` for a file that is truncated, not a checkpoint, or lacks a key named in
    `required`.
    """
    path = Path(path)
    advice = "give another file as checkpoint=, or train anew with checkpoint=None and resume=False"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint (looked for from {Path.cwd()}); {advice}")
    content = load_plain(path, f"; {advice}")
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing:
        keys = ", ".join(map(repr, missing))
        raise ValueError(f"{path} is not a checkpoint of this notebook: it has no {keys}; {advice}")
    return content


def load_plain(path: Path, advice: str) -> Any:
    """Read tensors and plain containers onto the CPU; nothing in the file is executed (`weights_only=True`).

    Raises `OSError` where it cannot be read, and `ValueError`, whose message ends in `advice`, where it is truncated or
    nothing of torch's.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and torch raise half a dozen types for one meaning
        size = path.stat().st_size  # torch's own words are left out: they advise to execute what is in the file
        raise ValueError(f"{path} ({size:,} bytes) is truncated or not a checkpoint{advice}") from error


def free_space(path: Path | str) -> str:
    """Free space of the file system that holds `path`'s folder, as text."""
    return f"{shutil.disk_usage(Path(path).parent).free / 2**20:,.0f} MiB"


def get_rng_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators (CPU and every GPU) as tensors and plain containers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue from `get_rng_state()`. GPU states are restored where the number of GPUs is the same."""
    kind, keys, position, has_gauss, cached = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pack(state: Any) -> dict[str, Any]:
    """Turn a dataclass into tensors and plain containers: the `state_dict()` of what has one, the rest as it is.

    Modules in fields marked `metadata={"saved": False}` (a compiled twin, say) are left out. The random state goes
    along under `"rng"`. The tensors are the live ones: save or deep-copy them before going on.
    """
    content: dict[str, Any] = {"rng": get_rng_state()}
    for item in dataclasses.fields(state):
        value = getattr(state, item.name)
        if item.metadata.get("saved", True):
            if hasattr(value, "state_dict"):
                value = value.state_dict()
            content[item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return content


def unpack(state: Any, content: dict[str, Any]) -> None:
    """Put back what `pack` took, in place; tensors move to where their predecessors are."""
    for item in dataclasses.fields(state):
        if item.metadata.get("saved", True):
            old, new = getattr(state, item.name), content[item.name]
            if hasattr(old, "load_state_dict"):
                old.load_state_dict(new)
            elif dataclasses.is_dataclass(old):
                setattr(state, item.name, type(old)(**new))
            else:
                setattr(state, item.name, new.to(old.device) if isinstance(old, torch.Tensor) else new)
    set_rng_state(content["rng"])


def try_save(content: dict[str, Any], path: Path | str) -> bool:
    """`save_checkpoint`, but a failure is a printed warning, so that a long run outlives a full disk."""
    try:
        save_checkpoint(content, path)
    except OSError as error:
        print(f"warning: {error}")
        return False
    return True


@contextlib.contextmanager
def dispensable_path(path: Path | str) -> Iterator[Path]:
    """`atomic_path` for a file that a run can do without: a full disk is a printed warning."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        print(f"warning: {path} could not be written: {error}")


def write_csv(rows: list[dict[str, Any]], path: Path | str) -> None:
    """Write rows that share their keys atomically; a full disk is a printed warning."""
    with dispensable_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
