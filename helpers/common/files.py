"""Files that are either whole or not there, and what lies in a folder."""

import contextlib
import csv
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; when the block succeeds it is flushed to disk and takes
    `path`'s name, else it is removed, and `path` is as it was."""
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


def load_plain(path: Path, advice: str, mmap: bool = False) -> Any:
    """Read tensors and plain containers onto the CPU; nothing in the file is executed. Raises `OSError`, or for a file
    that is truncated or nothing of torch's `ValueError`, whose message ends in `advice`. With `mmap` the numbers are
    read when they are used."""
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # torch before 1.6 wrote files of another kind
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # of half a dozen types; torch's own words advise to execute what is in the file
        raise ValueError(f"{path} ({path.stat().st_size:,} bytes) is truncated or not a checkpoint{advice}") from error


def free_space(path: Path | str) -> int:
    """Free bytes beside `path`."""
    return shutil.disk_usage(Path(path).parent).free


def free_memory() -> float:
    """Bytes of memory that can be had now; infinite where the system does not tell."""
    with contextlib.suppress(OSError, TypeError):  # Linux; what it lends to its cache of files can be had
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


@contextlib.contextmanager
def dispensable_path(path: Path | str) -> Iterator[Path]:
    """`atomic_path` for a file that a run can do without: where it cannot be written, a warning is printed."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        print(f"warning: {path} could not be written: {error}")


def write_csv(rows: list[dict[str, Any]], path: Path | str) -> None:
    """Write rows, by `dispensable_path`; a column for every key that is in any of them."""
    with dispensable_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)


class DataError(ValueError):
    """A data set is missing or broken; the message names the file or value and the next step."""


def peek(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({name: sub-folder}, {name: file}) of `folder`, without hidden and system entries; nothing where it is absent or
    may not be read."""
    folders, files = {}, {}
    # no stat for each of 50,000 files, which a network disk would take minutes for
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if not name.startswith((".", "__MACOSX")) and name.lower() not in ("thumbs.db", "desktop.ini"):
                    (folders if entry.is_dir() else files)[name] = folder / name
    except OSError:
        return {}, {}  # never a part of what is there
    return folders, files


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def some(names: Sequence[object], limit: int = 5) -> str:
    """The first `limit` names, and how many more there are, as text."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def reason(error: Exception) -> str:
    """Return the first sentence of an error's message (torch's next one advises to execute what is in the file), or its
    type where there is none."""
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".:")
