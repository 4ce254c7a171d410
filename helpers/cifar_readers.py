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

from helpers.image_set import CLASSES, DataError, ImageSet, checked_labels, cifar10, listing, natural, some

HOLD_OUT_SEED = 0  # which labelled images of the competition become the test set; fixed, so that runs compare
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
CHANNELS_AXIS = {(3, 32, 32): 1, (32, 32, 3): 3}


# ------------------------------------------------------------------------------------- image files


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
        raise DataError(
            f"{some(problems)}. {len(problems):,} of {len(sources):,} images cannot be used: replace them from a fresh "
            "copy of CIFAR-10, or remove them with their labels."
        )
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
    files = sorted(listing(folder)[1].values(), key=lambda path: natural(path.name))
    images = [path for path in files if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    return images, [path for path in files if path.suffix.lower() not in (".png", ".jpg", ".jpeg")]


def _lower(paths: dict[str, Path]) -> dict[str, Path]:
    return {name.lower(): path for name, path in paths.items()}


def read_folders(root: Path) -> ImageSet:
    splits = _lower(listing(root)[0])
    parts, kinds, others = [], Counter(), []
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{root}: no {split}/ folder beside the other one. Both train/ and test/ are needed.")
        folders = _lower(listing(splits[split])[0])
        missing = [f"missing {name}" for name in CLASSES if name not in folders]
        unknown = [f"unknown {path.name}" for name, path in folders.items() if name not in CLASSES]
        if missing or unknown:
            raise DataError(
                f"{splits[split]}: wrong class folders: {some(missing + sorted(unknown), 15)}. "
                f"Expected exactly: {', '.join(CLASSES)}."
            )
        files, labels = [], []
        for label, name in enumerate(CLASSES):
            images, rest = _images_in(folders[name])
            if not images:
                raise DataError(f"{folders[name]}: no PNG or JPEG file in this class folder. Complete this copy.")
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
        raise DataError(f"{root}: no trainLabels.csv. It comes with the competition's data; put it beside train/.")
    if train is None:
        packed = next((path for name, path in files.items() if name.startswith("train.")), None)
        step = f"Unpack {packed.name} (pip install py7zr; py7zr x {packed})" if packed else "Put the images there"
        raise DataError(f"{root}: {table.name}, but no train/ folder beside it. {step}, next to a copy of the table.")
    if not _images_in(train)[0] and "train" in listing(train)[0]:
        train = train / "train"  # some tools unpack train.7z into train/train
    label_of = _read_label_table(table)
    images, others = _images_in(train)
    path_of = {path.stem: path for path in images}
    for problem, culprits, step in (
        ("have the id of another", [p.name for p in images if path_of[p.stem] != p], "Keep one of each"),
        ("are missing", [f"{i}.png" for i in label_of if i not in path_of], "Unpack all training images"),
        ("have no row", [p.name for p in images if p.stem not in label_of], "Use the table that came with the images"),
    ):
        if culprits:
            raise DataError(
                f"{len(culprits):,} of the {max(len(images), len(label_of)):,} images in {train} {problem}, going by "
                f"{table.name}: {some(sorted(culprits, key=natural))}. {step}."
            )
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
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no readable CSV ({error}). Use the table of the competition.") from error
    if len(rows) < 2 or [cell.lower() for cell in rows[0]] != ["id", "label"]:
        raise DataError(f"{table}: {len(rows)} lines, the first is {rows[:1]}; expected id,label and then no rows")
    return {}
