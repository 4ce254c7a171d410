"""CIFAR-10 as image files in class folders, as the Kaggle competition, as a NumPy .npz and as Parquet."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.contrib.concurrent import thread_map

from helpers.common.files import DataError, listing, natural, peek, some
from helpers.vit.image_set import CLASSES, ImageSet, checked_labels, cifar10

HOLD_OUT_SEED = 0  # which labelled images of the competition become the test set; fixed, so that runs compare
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
CHANNELS_AXIS = {(3, 32, 32): 1, (32, 32, 3): 3}


def _pixels(source: Path | bytes) -> tuple[np.ndarray, str] | str:
    """(uint8 [32, 32, 3], "PNG" or "JPEG") of one image, or what is wrong with it."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if not data:
            return "is empty"
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.size != (32, 32):  # before decoding: an image may be huge
                return "is {}x{} pixels, not 32x32".format(*image.size)
            if image.mode[0] in "IF":
                return f"has mode {image.mode}, more than 8 bits a pixel"
            kind = "PNG" if image.format == "PNG" else "JPEG"
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB")), kind
    except UnidentifiedImageError:
        return "is no readable PNG or JPEG"
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        return str(error) or type(error).__name__


def _decode(sources: Sequence[Path | bytes], names: Sequence[object], what: str) -> tuple[np.ndarray, Counter[str]]:
    """(uint8 [N, 3, 32, 32], how many images of each kind) from files or bytes, in their order; `names` for errors."""
    Image.preinit()  # once, before the threads do
    few = len(sources) < 5_000  # decoded in a second: a bar would only flicker
    results = thread_map(_pixels, sources, max_workers=16, desc=f"reading {what}", unit="img", disable=few)
    problems = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if problems:
        raise DataError(f"{some(problems)}. {len(problems):,} of {len(sources):,} images cannot be used.")
    return np.stack([pixels for pixels, _ in results]).transpose(0, 3, 1, 2), Counter(kind for _, kind in results)


def _described(layout: str, kinds: Counter[str], others: Sequence[Path] = ()) -> tuple[str, list[str]]:
    """(the layout with its kinds of images, the notes on them)."""
    notes = []
    if kinds["JPEG"]:
        notes.append(
            f"{kinds['JPEG']:,} of {kinds.total():,} image files are JPEG: their pixels, and so accuracies, are not "
            "exactly those of the original CIFAR-10"
        )
    if others:
        notes.append(f"{len(others):,} files that are no PNG or JPEG were left out: {some(others, 3)}")
    return f"{layout}, {' and '.join(sorted(kinds))}", notes


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
    parts, kinds, others = [], Counter(), []
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{root}: no {split}/ folder beside the other one.")
        folders = _lower(listing(splits[split])[0])
        missing = [f"missing {name}" for name in CLASSES if name not in folders]
        unknown = [f"unknown {path.name}" for name, path in folders.items() if name not in CLASSES]
        if missing or unknown:
            wrong = some(missing + sorted(unknown), 15)
            raise DataError(f"{splits[split]}: class folders {wrong}. Expected exactly: {', '.join(CLASSES)}.")
        files, labels = [], []
        for label, name in enumerate(CLASSES):
            images, rest = _images_in(folders[name])
            if not images:
                raise DataError(f"{folders[name]}: no PNG or JPEG file in this class folder.")
            files += images
            labels += [label] * len(images)
            others += rest
        pixels, found = _decode(files, files, split)
        parts.append((pixels, np.array(labels)))
        kinds += found
    return cifar10(*parts, root, *_described("class folders", kinds, others))


def read_kaggle(root: Path) -> ImageSet:
    folders, files = map(_lower, listing(root))
    table, train = files.get("trainlabels.csv"), folders.get("train")
    if table is None:
        raise DataError(f"{root}: no trainLabels.csv beside train/.")
    if train is None:
        packed = next((path for name, path in files.items() if name.startswith("train.")), None)
        step = f"Unpack {packed.name} (pip install py7zr; py7zr x {packed})" if packed else "Put the images there"
        raise DataError(f"{root}: {table.name}, but no train/ folder beside it. {step}.")
    if not _images_in(train)[0] and "train" in listing(train)[0]:
        train = train / "train"  # some tools unpack train.7z into train/train
    label_of = _read_label_table(table)
    images, others = _images_in(train)
    path_of = {path.stem: path for path in images}
    for problem, culprits in (
        ("are missing", [f"{i}.png" for i in label_of if i not in path_of]),
        ("have no row", [path.name for path in images if path.stem not in label_of]),
        ("are twice there", [path.name for path in images if path_of[path.stem] != path]),
    ):
        if culprits:
            count = f"{len(culprits):,} of the {max(len(images), len(label_of)):,} images"
            listed = some(sorted(culprits, key=natural))
            raise DataError(f"{train}: {count} {problem}, compared with {table.name}: {listed}.")
    labels = np.array([label_of[path.stem] for path in images])
    pixels, kinds = _decode(images, images, "train")
    test = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(HOLD_OUT_SEED)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: max(1, len(members) // 5)]] = True
    layout, notes = _described("Kaggle competition", kinds, others)
    note = (
        f"the competition's test set has no labels: the test set here is one fifth of the labelled images "
        f"({test.sum():,} of {len(labels):,}, stratified, seed {HOLD_OUT_SEED}), so accuracies are not those on "
        "CIFAR-10's own test set"
    )
    parts = [(pixels[chosen], labels[chosen]) for chosen in (~test, test)]
    return cifar10(*parts, root, layout, [note, *notes], held_out=True)


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
                if name not in CLASSES:
                    raise DataError(f"{table}, line {reader.line_num}: label {row['label']!r} is none of {CLASSES}.")
                if not key or key in label_of:
                    raise DataError(f"{table}, line {reader.line_num}: id {row['id']!r} is empty or there twice.")
                label_of[key] = CLASSES.index(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}).") from error
    if not label_of:
        raise DataError(f"{table}: no rows.")
    return label_of


def npz_problem(path: Path) -> str | None:
    """Why this .npz is no CIFAR-10, from its headers alone; None if it is. Keras' mnist.npz, say, has the same keys."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for key in NPZ_KEYS:
                with archive.open(f"{key}.npy") as file:
                    np.lib.format.read_magic(file)
                    shapes[key] = np.lib.format.read_array_header_1_0(file)[0]  # 2.0 is for structured arrays
    except Exception as error:  # also a KeyError: one of the arrays is not there
        return f"{path}, which cannot be read as CIFAR-10 ({error})"
    wrong = [f"{key} {list(shapes[key])}" for key in ("x_train", "x_test") if shapes[key][1:] not in CHANNELS_AXIS]
    return f"{path}, which holds {', '.join(wrong)}: no 32x32 colour images" if wrong else None


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
    parts = []
    for split in ("train", "test"):
        images = arrays[f"x_{split}"]
        if images.shape[1:] not in CHANNELS_AXIS:
            raise DataError(f"{path}: x_{split} is {list(images.shape)}, expected [N, 32, 32, 3] or [N, 3, 32, 32].")
        if images.dtype.kind not in "iu" or (images.size and not 0 <= images.min() <= images.max() <= 255):
            got = f"{images.dtype} from {images.min()} to {images.max()}"
            raise DataError(f"{path}: x_{split} is {got}. Save the pixels as uint8, 0 … 255, not normalised.")
        images = np.moveaxis(images, CHANNELS_AXIS[images.shape[1:]], 1)
        parts.append((images, checked_labels(arrays[f"y_{split}"], len(images), f"{path}: y_{split}")))
    return cifar10(*parts, path, "NumPy .npz")


def parquet_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: train-….parquet, or train/….parquet as Hugging Face converts them."""
    folders, files = peek(folder)
    shards = {}
    for split in ("train", "test"):
        beside = [path for name, path in files.items() if name.lower().startswith(split)]
        below = [*peek(folders[split])[1].values()] if split in folders else []
        found = [[path for path in paths if path.suffix.lower() == ".parquet"] for paths in (beside, below)]
        shards[split] = sorted(found[0] or found[1], key=lambda path: natural(path.name))
    return shards


def parquet_problem(path: Path) -> str | None:
    """Why this Parquet file is no CIFAR-10, from its schema alone; None if it is, or where reading it will tell."""
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


def _read_shard(path: Path) -> tuple[list[bytes], np.ndarray]:
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
    labels = checked_labels(label.to_numpy(), len(table), f"{path}, column label of type {label.type}")
    return image.to_pylist(), labels


def read_parquet(folder: Path) -> ImageSet:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(f"{folder}: reading Parquet files needs pyarrow. Run: pip install pyarrow.") from error
    parts, kinds = [], Counter()
    for split, shards in parquet_shards(folder).items():
        if not shards:
            raise DataError(f"{folder}: no {split}*.parquet beside the other split.")
        contents = [_read_shard(path) for path in shards]
        images = [image for encoded, _ in contents for image in encoded]
        names = [f"{path}, row {i}" for path, (rows, _) in zip(shards, contents, strict=True) for i in range(len(rows))]
        pixels, found = _decode(images, names, split)
        parts.append((pixels, np.concatenate([labels for _, labels in contents])))
        kinds += found
    return cifar10(*parts, folder, *_described("Parquet", kinds))
