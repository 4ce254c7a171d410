"""CIFAR-10's pickled batches, in a folder or in the tar archive, read without executing anything that they name."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from helpers.common.files import DataError, listing, some
from helpers.vit.image_set import CLASSES, ImageSet, Part, checked_labels, cifar10

TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN_BATCHES, "test_batch")
META = "batches.meta"


def _text(value: bytes | str) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Dtype:
    """Stands for a pickled `numpy.dtype`: plain numbers only."""

    def __init__(self, spec: bytes | str, *_: object) -> None:
        self.spec = _text(spec)
        if not re.fullmatch(r"[<>|=]?[uif][1248]", self.spec):
            raise pickle.UnpicklingError(f"an array of type {self.spec!r}")

    def __setstate__(self, state: tuple) -> None:
        order = _text(state[1])
        self.spec = (order if order in ("<", ">") else "") + self.spec.lstrip("<>|=")


class _Array:
    """Stands for a pickled array until its state arrives; `value` is then the real one."""

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.value = _from_buffer(raw, dtype, shape, "F" if fortran else "C")


def _from_buffer(raw: bytes | str, dtype: _Dtype, shape: tuple, order: str = "C", *_: object) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, dtype.spec).reshape(shape, order=order)


def _scalar(dtype: _Dtype, raw: bytes | str) -> int | float:
    return _from_buffer(raw, dtype, ()).item()


class _CifarUnpickler(pickle._Unpickler):
    """Reads containers, numbers, text and plain arrays, and calls nothing that the pickle names.

    A pickle can name any function of any module to be called. Here every name outside this table is refused, and the
    names in it (numpy 1's and numpy 2's) lead to the small stand-ins above, never to numpy's own. Derived from pickle's
    Python implementation: in the C one, a few damaged bytes can reserve gigabytes (LONG_BINPUT, BYTEARRAY8).
    """

    allowed: dict[tuple[str, str], object] = {  # noqa: RUF012
        ("numpy", "ndarray"): "ndarray",  # only ever passed to _reconstruct
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),  # bytes, as Python 3 writes them in protocol 2
        # the empty bytes of protocol 2; with a number, `bytes` would take as much memory as that says
        **{(builtins, "bytes"): lambda: b"" for builtins in ("builtins", "__builtin__")},
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 has no use for")
        return self.allowed[module, name]

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
    """The dictionary of one CIFAR-10 file, keys as str whatever Python wrote it."""
    try:  # encoding="bytes": Python 2's str arrives as bytes, so that raw pixels and names both survive
        content = _CifarUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary")
    except Exception as error:  # what a damaged pickle raises is open-ended
        what = f"truncated, corrupt or not a CIFAR-10 pickle ({len(data):,} bytes; {error})"
        raise DataError(f"{where}: {what}. Nothing in it was executed.") from error
    named = {_text(key): value for key, value in content.items() if isinstance(key, (bytes, str))}
    return {key: value.value if isinstance(value, _Array) else value for key, value in named.items()}


def _batch(content: dict[str, object], where: str) -> Part:
    if "fine_labels" in content:
        raise DataError(f"{where}: this is CIFAR-100 (it has fine_labels).")
    missing = [key for key in ("data", "labels") if content.get(key) is None]
    if missing:
        raise DataError(f"{where}: no {' and no '.join(missing)} in it, only {some(list(content))}.")
    images, labels = content["data"], content["labels"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] not in ((3072,), (3, 32, 32)):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{where}: data is {got}, expected uint8 [N, 3072] (32x32 pixels, 3 colours).")
    # lists of lists may hold one another and grow without end in numpy
    if isinstance(labels, (list, tuple)) and not all(isinstance(label, (int, float)) for label in labels):
        raise DataError(f"{where}: labels is no flat list of numbers.")
    return images.reshape(-1, 3, 32, 32), checked_labels(labels, len(images), where)


def _check_meta(content: dict[str, object], where: str) -> None:
    names = content.get("label_names", CLASSES)
    names = names if isinstance(names, (list, tuple)) else []
    names = [_text(name) for name in names if isinstance(name, (bytes, str))]
    if names != list(CLASSES):
        raise DataError(f"{where}: label_names is {names}, expected {list(CLASSES)}.")


def _join(files: Iterable[tuple[str, str, bytes]], path: Path, layout: str) -> ImageSet:
    """The set from (name, name in errors, content) of each file."""
    parts: dict[str, Part] = {}
    for name, where, data in files:
        content = _unpickle(data, where)
        if name == META:
            _check_meta(content, where)
        else:
            parts[name] = _batch(content, where)
    missing = [name for name in BATCHES if name not in parts]
    if missing:
        raise DataError(f"{path}: {some(missing, 6)} missing; needed are {', '.join(BATCHES)}.")
    images, labels = zip(*(parts[name] for name in TRAIN_BATCHES), strict=True)
    return cifar10((np.concatenate(images), np.concatenate(labels)), parts["test_batch"], path, layout)


def read_batches(folder: Path) -> ImageSet:
    files = listing(folder)[1]
    found = ((name, str(files[name]), files[name].read_bytes()) for name in (META, *BATCHES) if name in files)
    return _join(found, folder, "pickled batches")


def read_archive(path: Path) -> ImageSet:
    return _join(_members(path), path, "tar archive of pickled batches")


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:  # read in one pass, in memory: nothing is unpacked to the disk
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in (META, *BATCHES):
                    yield name, f"{path}:{member.name}", archive.extractfile(member).read()
    except Exception as error:  # tarfile.ReadError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, …
        raise DataError(f"{path}: truncated or corrupt archive ({path.stat().st_size:,} bytes; {error}).") from error
