"""CIFAR-10's layouts, each read into tables: official batches, NumPy's .npz, Parquet, class folders, Kaggle's.

A pickle may name any function: of all that it asks for, only what NumPy's arrays are made of is called.
"""

from __future__ import annotations

import _codecs
import csv
import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from helpers.common.files import DataError, listing, natural, some
from helpers.vit.image_set import CLASSES, PIXEL_SHAPES, ImageSet, Table, assemble

BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
META = "batches.meta"  # with the names of the classes
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def _plain_dtype(spec: object, *_: object) -> np.dtype:
    """The dtype of plain numbers: the elements of any other could be addresses that a pickle made up."""
    dtype = np.dtype(spec, copy=True)  # a copy, since its byte order is set afterwards
    if dtype.kind not in "uif":
        raise pickle.UnpicklingError(f"an array of type {dtype}")
    return dtype


_ARRAY = np.zeros(1, np.uint8)
ALLOWED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _plain_dtype,
    "numpy.core.multiarray._reconstruct": _ARRAY.__reduce__()[0],
    "numpy.core.multiarray.scalar": _ARRAY[0].__reduce__()[0],
    "numpy.core.numeric._frombuffer": _ARRAY.__reduce_ex__(5)[0],
    "_codecs.encode": _codecs.encode,  # bytes, as Python 3 writes them in protocol 2
    "builtins.bytes": bytes,  # and those that are empty
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if full not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 has no use for")
        return ALLOWED[full]


def _text(value: object) -> object:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _unpickle(data: bytes, where: str) -> dict[object, object]:
    """The dictionary of one file, whatever Python wrote it."""
    try:  # encoding="bytes": Python 2's str arrives as bytes, so that raw pixels and names both survive
        return {_text(key): value for key, value in _Unpickler(io.BytesIO(data), encoding="bytes").load().items()}
    except Exception as error:  # what a damaged pickle raises is open-ended
        what = f"truncated, corrupt or not a CIFAR-10 pickle ({len(data):,} bytes; {error})"
        raise DataError(f"{where}: {what}. Nothing in it was executed.") from error


def _batch_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, name in errors, content) of each file in a folder or a tar archive."""
    if path.is_dir():
        for name, file in listing(path)[1].items():
            if name in (META, *BATCHES):
                yield name, str(file), file.read_bytes()
        return
    try:
        with tarfile.open(path, "r:*") as archive:  # read in one pass, in memory: nothing is unpacked to the disk
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in (META, *BATCHES):
                    yield name, f"{path}:{member.name}", archive.extractfile(member).read()
    except Exception as error:  # tarfile.ReadError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, …
        raise DataError(f"{path}: truncated or corrupt archive ({path.stat().st_size:,} bytes; {error}).") from error


def read_batches(path: Path) -> ImageSet:
    tables: dict[str, Table] = {}
    for name, where, data in _batch_files(path):
        content = _unpickle(data, where)
        if name == META:
            names = [_text(name) for name in content.get("label_names", CLASSES)]
            if names != [*CLASSES]:
                raise DataError(f"{where}: label_names is {names}, expected {[*CLASSES]}.")
            continue
        lacking = [key for key in ("data", "labels") if content.get(key) is None]
        if lacking:
            raise DataError(f"{where}: no {' and no '.join(lacking)} in it, only {some(list(content))}.")
        tables[name] = Table(content["data"], content["labels"], where)
    missing = [name for name in BATCHES if name not in tables]
    if missing:
        raise DataError(f"{path}: {some(missing, 6)} missing; needed are {', '.join(BATCHES)}.")
    layout = "pickled batches" if path.is_dir() else "tar archive of pickled batches"
    train = [tables[name] for name in BATCHES[:5]]
    return assemble({"train": train, "test": [tables["test_batch"]]}, path, layout)


def read_npz(path: Path) -> ImageSet:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in NPZ_KEYS}
    except Exception as error:  # zipfile.BadZipFile, EOFError, zlib.error, ValueError (object arrays), KeyError, …
        wrong = f"truncated or corrupt .npz, or one with pickled objects or without {', '.join(NPZ_KEYS)}"
        raise DataError(f"{path}: {wrong} ({error}).") from error
    tables = {
        split: [Table(arrays[f"x_{split}"], arrays[f"y_{split}"], f"{path}: x_{split} and y_{split}")]
        for split in ("train", "test")
    }
    return assemble(tables, path, "NumPy .npz")


def npz_problem(path: Path) -> str | None:
    """The reason why this .npz is no CIFAR-10, from its test images: Keras' mnist.npz, say, has the same keys."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            shape = file["x_test"].shape
    except Exception as error:  # also a KeyError: it is not there
        return f"{path}, which cannot be read as CIFAR-10 ({error})"
    return None if shape[1:] in PIXEL_SHAPES else f"{path}, which holds x_test {list(shape)}: no 32x32 colour images"


def read_parquet(folder: Path) -> ImageSet:
    tables = {}
    for split, paths in parquet_shards(folder).items():
        if not paths:
            raise DataError(f"{folder}: no {split}*.parquet beside the other split.")
        tables[split] = [_read_shard(path) for path in paths]
    return assemble(tables, folder, "Parquet")


def parquet_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: train-….parquet, or train/….parquet as Hugging Face converts them."""
    shards = {}
    for split in ("train", "test"):
        found = [*folder.glob(f"{split}*.parquet")] or (folder / split).glob("[!.]*.parquet")
        shards[split] = sorted(found, key=lambda path: natural(path.name))
    return shards


def parquet_problem(path: Path) -> str | None:
    """The reason why this Parquet file is no CIFAR-10, from its header alone; None where reading it will tell."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return None
    if "label" not in schema.names or not {"img", "image"} & {*schema.names}:
        return f"{path}, which has the columns {some(schema.names)}, and not img (or image) and label"
    # the class names, where Hugging Face recorded them
    recorded = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = recorded.get("info", {}).get("features", {}).get("label", {}).get("names", [*CLASSES])
    return None if names == [*CLASSES] else f"{path}, whose classes are {some(names, 10)}"


def _read_shard(path: Path) -> Table:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        images = table["img" if "img" in table.column_names else "image"].to_pylist()
        label = table["label"]
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: truncated or corrupt Parquet file ({error}).") from error
    images = [image["bytes"] if isinstance(image, dict) else image for image in images]
    return Table(images, label.to_numpy(), f"{path}, label of type {label.type}")


def _images_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """(PNG and JPEG files, other files) directly in `folder`, in natural order."""
    images, others = [], []
    for path in sorted(listing(folder)[1].values(), key=lambda path: natural(path.name)):
        (images if path.suffix.lower() in (".png", ".jpg", ".jpeg") else others).append(path)
    return images, others


def _lower(paths: dict[str, Path]) -> dict[str, Path]:
    return {name.lower(): path for name, path in paths.items()}


def read_folders(root: Path) -> ImageSet:
    splits = _lower(listing(root)[0])
    tables, left_out = {}, []
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{root}: no {split}/ folder beside the other one.")
        folders = _lower(listing(splits[split])[0])
        wrong = [f"missing {name}" for name in CLASSES if name not in folders]
        wrong += sorted(f"unknown {path.name}" for name, path in folders.items() if name not in CLASSES)
        if wrong:
            expected = f"Expected exactly: {', '.join(CLASSES)}"
            raise DataError(f"{splits[split]}: class folders {some(wrong, 15)}. {expected}.")
        tables[split] = []
        for label, name in enumerate(CLASSES):
            images, others = _images_in(folders[name])
            tables[split].append(Table(images, [label] * len(images), str(folders[name])))
            left_out += others
    return assemble(tables, root, "class folders", left_out)


def read_kaggle(root: Path) -> ImageSet:
    folders, files = map(_lower, listing(root))
    table, train = files["trainlabels.csv"], folders.get("train")
    if train is None:
        packed = next((path for name, path in files.items() if name.startswith("train.")), None)
        step = f"Unpack {packed.name} (pip install py7zr; py7zr x {packed})" if packed else "Put the images there"
        raise DataError(f"{root}: {table.name}, but no train/ folder beside it. {step}.")
    if not _images_in(train)[0] and "train" in listing(train)[0]:
        train = train / "train"  # some tools unpack train.7z into train/train
    label_of, (images, others) = _read_label_table(table), _images_in(train)
    unpaired = sorted({path.stem for path in images} ^ label_of.keys(), key=natural)
    if unpaired:
        count = f"{len(unpaired):,} of the {max(len(images), len(label_of)):,} images"
        listed = some([f"{stem}.png" for stem in unpaired])
        raise DataError(f"{count} have no file in {train}, or no row in {table}: {listed}.")
    labels = [label_of[path.stem] for path in images]
    return assemble({"train": [Table(images, labels, str(table))]}, root, "Kaggle competition", others)


def _read_label_table(table: Path) -> dict[str, int]:
    """{id: label} of trainLabels.csv."""
    label_of: dict[str, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames = [column.strip().lower() for column in reader.fieldnames or ()]
            if not {"id", "label"} <= set(columns):
                raise DataError(f"{table}: the first line is {columns}, expected the columns id and label.")
            for row in reader:
                key, name = (row["id"] or "").strip().removesuffix(".png"), (row["label"] or "").strip().lower()
                if name not in CLASSES or not key or key in label_of:
                    problem = f"label {row['label']!r} is no class, or id {row['id']!r} is empty or there twice"
                    raise DataError(f"{table}, line {reader.line_num}: {problem}.")
                label_of[key] = CLASSES.index(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}).") from error
    return label_of
