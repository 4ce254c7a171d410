"""CIFAR-10 as tables: the official batches in a folder or a tar archive, NumPy's .npz, Parquet."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from helpers.common.files import DataError, listing, natural, peek, some
from helpers.vit.cifar_pickle import text, unpickle
from helpers.vit.image_set import CLASSES, PIXEL_SHAPES, ImageSet, Table, assemble

TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN_BATCHES, "test_batch")
META = "batches.meta"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


# ---- the official batches ----


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


def _join(files: Iterable[tuple[str, str, bytes]], path: Path, layout: str) -> ImageSet:
    """The set from (name, name in errors, content) of each file."""
    tables: dict[str, Table] = {}
    for name, where, data in files:
        content = unpickle(data, where)
        if name != META:
            tables[name] = _batch(content, where)
            continue
        names = content.get("label_names", [*CLASSES])
        names = [text(name) for name in names] if isinstance(names, list) else names
        if names != [*CLASSES]:
            raise DataError(f"{where}: label_names is {names}, expected {[*CLASSES]}.")
    missing = [name for name in BATCHES if name not in tables]
    if missing:
        raise DataError(f"{path}: {some(missing, 6)} missing; needed are {', '.join(BATCHES)}.")
    train = [tables[name] for name in TRAIN_BATCHES]
    return assemble({"train": train, "test": [tables["test_batch"]]}, path, layout)


def _batch(content: dict[str, object], where: str) -> Table:
    if "fine_labels" in content:
        raise DataError(f"{where}: this is CIFAR-100 (it has fine_labels).")
    missing = [key for key in ("data", "labels") if content.get(key) is None]
    if missing:
        raise DataError(f"{where}: no {' and no '.join(missing)} in it, only {some(list(content))}.")
    return Table(content["data"], content["labels"], where)


# ---- .npz ----


def read_npz(path: Path) -> ImageSet:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in NPZ_KEYS if key in file.files}
    except Exception as error:  # zipfile.BadZipFile, EOFError, zlib.error, ValueError (object arrays), …
        raise DataError(f"{path}: truncated or corrupt .npz, or one with pickled objects ({error}).") from error
    missing = [key for key in NPZ_KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)} in it, only {some(list(arrays))}.")
    splits = {split: (f"x_{split}", f"y_{split}") for split in ("train", "test")}
    tables = {split: [Table(arrays[x], arrays[y], f"{path}: {x} and {y}")] for split, (x, y) in splits.items()}
    return assemble(tables, path, "NumPy .npz")


def npz_problem(path: Path) -> str | None:
    """The reason why this .npz is no CIFAR-10, from its test images: Keras' mnist.npz, say, has the same keys."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            shape = file["x_test"].shape
    except Exception as error:  # also a KeyError: it is not there
        return f"{path}, which cannot be read as CIFAR-10 ({error})"
    if shape[1:] not in PIXEL_SHAPES:
        return f"{path}, which holds x_test {list(shape)}: no 32x32 colour images"


# ---- Parquet ----


def read_parquet(folder: Path) -> ImageSet:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(f"{folder}: reading Parquet files needs pyarrow. Run: pip install pyarrow.") from error
    shards = parquet_shards(folder)
    for split, paths in shards.items():
        if not paths:
            raise DataError(f"{folder}: no {split}*.parquet beside the other split.")
    return assemble(
        {split: [_read_shard(path) for path in paths] for split, paths in shards.items()}, folder, "Parquet"
    )


def parquet_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: train-….parquet, or train/….parquet as Hugging Face converts them."""
    folders, files = peek(folder)
    shards = {}
    for split in ("train", "test"):
        beside = [path for name, path in files.items() if name.lower().startswith(split)]
        below = [*peek(folders[split])[1].values()] if split in folders else []
        beside, below = ([p for p in paths if p.suffix.lower() == ".parquet"] for paths in (beside, below))
        shards[split] = sorted(beside or below, key=lambda path: natural(path.name))
    return shards


def parquet_problem(path: Path) -> str | None:
    """The reason why this Parquet file is no CIFAR-10, from its schema alone; None where reading it will tell."""
    try:
        _image_column(path)
    except DataError as error:
        return str(error).removesuffix(".")
    except Exception:  # pyarrow is missing, or the file is broken
        return None


def _image_column(path: Path) -> str:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    image = next((column for column in ("img", "image") if column in schema.names), None)
    if image is None or "label" not in schema.names:
        raise DataError(f"{path}: has the columns {some(schema.names)}; expected img (or image) and label.")
    try:  # the class names, where Hugging Face recorded them
        names = [*json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return image
    if names != list(CLASSES):
        raise DataError(f"{path}: its classes are {some(names, 10)}; expected {', '.join(CLASSES)}.")
    return image


def _read_shard(path: Path) -> Table:
    import pyarrow.compute
    import pyarrow.parquet

    try:
        name = _image_column(path)
        table = pyarrow.parquet.ParquetFile(path).read(columns=[name, "label"])
        image, label = table[name], table["label"]
        if pyarrow.types.is_struct(image.type):
            image = pyarrow.compute.struct_field(image, "bytes")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: truncated or corrupt Parquet file ({error}).") from error
    if image.type not in (pyarrow.binary(), pyarrow.large_binary()):
        raise DataError(f"{path}: column {name} is {image.type}; expected PNG or JPEG bytes, or a dict of them.")
    if image.null_count:
        raise DataError(f"{path}: {image.null_count:,} rows without an image.")
    return Table(image.to_pylist(), label.to_numpy(), f"{path}, label of type {label.type}")
