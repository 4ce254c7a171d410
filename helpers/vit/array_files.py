"""Data sets kept as tables of arrays: the official batches, NumPy's .npz and .npy, Parquet and Arrow.

A pickle may name any function: of all that it asks for, only what NumPy's arrays are made of is called.
"""

import _codecs
import io
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helpers.common.files import DataError, free_memory, natural, peek, some
from helpers.vit import layouts
from helpers.vit.image_set import Reading, Table

PIXEL_SHAPES = ((3072,), (3, 32, 32), (32, 32, 3))  # of an image in an array
SEARCH_LIMIT = 2_000_000_000  # bytes; CIFAR-10 as 64-bit numbers has 1.5


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


def _load(path: Path) -> dict[str, Any]:
    """{name: values} of what is in a file, None for what is of no use. Raises `DataError` where it is broken, too large
    or of a kind whose reader is not installed."""
    ending, size = path.suffix.lower(), path.stat().st_size
    try:
        if ending in layouts.TABLES:
            return _load_table(path)
        if ending == ".npz":
            # opened here, because np.load leaves a damaged file open
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
                unpacked = sum(info.file_size for info in arrays.zip.infolist())
                if 2 * unpacked > free_memory():  # few bytes may be a great many once they are unpacked
                    raise DataError(
                        f"{path} holds {unpacked / 1e9:,.1f} GB of arrays, and there is no memory for them."
                    )
                wanted = {*layouts.IMAGES, *layouts.LABELS, *layouts.CLASS_NAMES}
                return {key: arrays[key] if layouts.split_and_rest(key)[1] in wanted else None for key in arrays.files}
        if ending == ".npy":  # those beside it as well
            files = [file for name, file in peek(path.parent)[1].items() if name.lower().endswith(".npy")]
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
        if ending == ".mat":
            from scipy.io import loadmat

            return loadmat(path, simplify_cells=True)
        data = path.read_bytes()
        if ending == ".txt":
            return {"label_names": data.decode().split()}
        if ending == ".bin":  # a byte for the label before the pixels, in CIFAR-100 two
            rows = np.frombuffer(data, np.uint8).reshape(-1, 3074 if path.stem in ("train", "test") else 3073)
            return {"data": rows[:, -3072:], "labels": rows[:, -3073]}
        # encoding="bytes": Python 2's str arrives as bytes, so that raw pixels and names both survive
        return {_text(key): value for key, value in _Unpickler(io.BytesIO(data), encoding="bytes").load().items()}
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path} is read by {error.name}, which is missing: pip install {error.name}.") from error
    except Exception as error:  # what damaged files raise is open-ended
        what = f"truncated, corrupt, or with pickled objects that images have no use for ({size:,} bytes; {error})"
        raise DataError(f"{path}: {what}. Nothing in it was executed.") from error


def _load_table(path: Path) -> dict[str, Any]:
    """The columns that matter of a Parquet or Arrow file, and the names of the classes where Hugging Face left them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.OSFile(str(path)) as file:
        packed = path.suffix.lower() == ".parquet"  # of which the other columns stay packed; `datasets` writes streams
        table = pq.ParquetFile(file) if packed else pa.ipc.open_stream(file).read_all()
        schema = table.schema_arrow if packed else table.schema
        wanted = [name for name in schema.names if name.lower() in (*layouts.IMAGES, *layouts.LABELS)]
        table = table.read(wanted) if packed else table
    columns = dict.fromkeys(schema.names) | {name: _values(table[name]) for name in wanted}
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    recorded = [features[label].get("names") for label in layouts.LABELS if label in features]
    return columns | ({"class_names": recorded[0]} if any(recorded) else {})


def _values(column: Any) -> Any:
    """A column of numbers as an array; else a list, of the bytes of images where they stand beside their paths."""
    if str(column.type).startswith(("int", "uint", "float", "double", "half")):
        return column.to_numpy()
    return [value.get("bytes") if isinstance(value, dict) else value for value in column.to_pylist()]


def _tables(file: Path, columns: Mapping[str, Any]) -> dict[str, Table] | str:
    """{split, "" for one without a name: table} of the images and labels in a file, or why there are none."""
    keys = {layouts.split_and_rest(key): key for key, values in columns.items() if values is not None}
    tables = {}
    for split in dict.fromkeys(split for split, _ in keys):
        found = [[keys[split, k] for k in best if (split, k) in keys] for best in (layouts.IMAGES, layouts.LABELS)]
        images, labels = (next(iter(best), None) for best in found)
        if not images and not labels:
            continue  # names of classes
        if not images or not labels:
            return f"{file}, which holds no {'labels' if images else 'images'}, but {some([*columns], 8)}"
        pixels, where = columns[images], f"{file}: {images}"
        if not isinstance(pixels, list):
            pixels = np.asarray(pixels)
            if pixels.shape[1:] not in PIXEL_SHAPES or pixels.dtype.kind not in "iuf":
                return f"{where} are {pixels.dtype} {[*pixels.shape]}, no 32x32 colour images"
            pixels = _pixels(pixels, where)
        tables[split or ""] = Table(pixels, columns[labels], f"{where} and {labels}")
    return tables or f"{file}, which holds no images, but {some([*columns], 8)}"


def _pixels(values: np.ndarray, where: str) -> np.ndarray:
    """uint8 [N, 3, 32, 32] of numbers from 0 to 255, or from 0 to 1, in any of `PIXEL_SHAPES`."""
    low, high = (values.min(), values.max()) if values.size else (0, 255)
    if not 0 <= low <= high <= 255:
        what = f"{values.dtype} from {low:g} to {high:g}, expected 0 to 255 (or to 1), not normalised"
        raise DataError(f"{where} are {what}.")
    if values.dtype.kind == "f":
        factor = 255 if high <= 1 and (values % 1).any() else 1
        values = np.concatenate([np.rint(part * factor).astype(np.uint8) for part in np.array_split(values, 50)])
    if values.size and values.max() <= 1:
        raise DataError(f"{where} are all {low if low == high else '0 or 1: were they divided by 255 before?'}")
    values = values.astype(np.uint8, copy=False)
    # rows of 3072 are CIFAR-10's own: all of red, of green, of blue
    return values.transpose(0, 3, 1, 2) if values.shape[1:] == (32, 32, 3) else values.reshape(-1, 3, 32, 32)


def _table_files(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """({split: Parquet or Arrow files in order}, names of those left out), in a folder and its folders of splits."""
    alike = defaultdict(list)  # (split, how files are named but for numbers): their paths
    for place, where in [("", folder), *layouts.split_folders(folder).items()]:
        for name, path in sorted(peek(where)[1].items(), key=lambda item: natural(item[0])):
            if path.suffix.lower() in layouts.TABLES:
                split = place or layouts.split_and_rest(path.stem)[0] or ""
                alike[split, re.sub(r"\d+", "#", name)].append(path)
    chosen: dict[str, list[Path]] = {}
    # train-00000-of-00002.parquet before train_small.parquet; without a split's name only where no file has one
    for split, name in sorted(alike, key=lambda key: (not key[0], "#-of-#" not in key[1], len(key[1]))):
        if split not in chosen and (split or not chosen):
            files = chosen[split] = alike.pop((split, name))
            shards = re.search(r"-of-0*(\d+)\.", files[0].name)
            if shards and int(shards[1]) != len(files):
                there = f"{len(files)} of the {shards[1]} files of {split or 'the images'} are there"
                raise DataError(f"{folder}: {there}.")
    return chosen, [path.name for files in alike.values() for path in files]


def _official_files(folder: Path, dataset: str, ending: str) -> dict[str, list[Path]]:
    """{split: CIFAR's own files in a folder, "names": those that name the classes}."""
    files = peek(folder)[1]
    wanted = {split: [name + ending for name in names] for split, names in layouts.BATCHES[dataset].items()}
    if files.keys() & {*wanted["test"]} and not files.keys() & {*wanted["train"]}:
        del wanted["train"]  # the test set alone, to evaluate on
    if missing := [name for names in wanted.values() for name in names if name not in files]:
        raise DataError(f"{folder}: {some(missing, 6)} missing, of {dataset}'s files.")
    wanted["names"] = [name for name in layouts.METAS if name in files]
    return {split: [files[name] for name in names] for split, names in wanted.items()}


def read_arrays(path: Path, own: bool = True) -> Reading | str | None:
    """Read the official files or the tables in a folder, or the arrays of one file; text says what they are instead.
    Unless `own` classes will do, what is larger than CIFAR-10 is left alone."""
    layout = {".npz": "NumPy .npz", ".npy": "NumPy .npy"}.get(path.suffix.lower(), "Parquet or Arrow")
    left_out: list[str] = []
    if kind := layouts.batch_kind(beside := peek(path)[1]):
        layout, files = layouts.BATCH_ENDINGS[kind[1]], _official_files(path, *kind)
        used = {file.name for paths in files.values() for file in paths}
        left_out = [name for name in beside if name not in used and name.startswith("data_batch")]
    elif path.is_file():
        files = {"": [path]}
    else:
        files, left_out = _table_files(path)
    if not files:
        return None
    if not own and sum(file.stat().st_size for paths in files.values() for file in paths) > SEARCH_LIMIT:
        return f"{path}, which is larger than CIFAR-10"

    tables, classes = defaultdict(list), [*map(str, range(100))] if kind and kind[0] == "CIFAR-100" else []
    for split, file in [(split, file) for split, paths in files.items() for file in paths]:
        columns = _load(file)
        # names of classes stand beside the images, or in an official file of their own
        named = next((columns[key] for key in layouts.CLASS_NAMES if columns.get(key) is not None), classes)
        classes = [str(_text(name)) for name in named]
        found = _tables(file, columns) if split != "names" else {}
        if isinstance(found, str) and kind:
            raise DataError(f"{found}.")
        if isinstance(found, str):
            return found
        for own_split, table in found.items():
            tables[own_split or split or "train"].append(table)
    return Reading(path, layout, dict(tables), classes, left_out)
