"""A data set's tables of images and labels, decoded, checked and joined to tensors; every reader ends here."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from helpers.common.files import DataError, natural, some
from helpers.vit.layouts import CLASSES, SOME_OF_CIFAR100, are_cifar10, cifar10_name, class_key

PIXEL_SHAPES = ((3072,), (3, 32, 32), (32, 32, 3))  # of an image in an array
SIZES = {"train": 50_000, "test": 10_000}  # CIFAR-10's and CIFAR-100's
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "TGA")
MAX_CLASSES = 1000


class Table(NamedTuple):
    """Images with their labels, as one file or folder has them."""

    images: object  # an array of pixels, or a list of image files (Path, or their bytes)
    labels: object  # as many integers, or names of classes
    where: str  # for errors


class Reading(NamedTuple):
    """What a reader found in a folder or file; image files are not opened yet."""

    path: Path
    layout: str
    splits: Mapping[str, Sequence[Table]]  # of "train", "val", "test"
    classes: Sequence[str] | None = None  # in the order of the numbers; None: labels are names, or CIFAR-10's numbers
    left_out: Sequence[str] = ()  # names of files

    def class_names(self) -> list[str]:
        """The classes of the training images: as recorded, or as the labels have them, or CIFAR-10's."""
        tables = self.splits.get("train") or [*chain(*self.splits.values())]
        names = {label for table in tables for label in table.labels if isinstance(label, str)}
        return [*(self.classes if self.classes is not None else ())] or sorted(names, key=natural) or [*CLASSES]


@dataclass(frozen=True)
class ImageSet:
    """Training and test images in memory, on the CPU, in the order of their source."""

    train_images: Tensor  # uint8 [N, 3, S, S], RGB, contiguous; no images where only the test set was asked for
    train_labels: Tensor  # int64 [N], 0 … len(classes) - 1
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]  # in the order of the labels
    name: str
    source: str  # where from and in which layout, or how it was made: to be shown beside every figure
    notes: tuple[str, ...] = ()  # what a reader of a figure must know, e.g. that the test set is a held-out fifth
    held_out: bool = False  # the test images were taken from the training images


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 and int64, copied where the arrays are transposed, or read-only views of a file's bytes."""
    return torch.from_numpy(np.require(images, np.uint8, ["C", "W"])), torch.from_numpy(np.array(labels, np.int64))


def assemble(reading: Reading, img_size: int = 32, training: bool = True) -> ImageSet:
    """Decode and check what was read. Images that are not all 32x32 are made `img_size` pixels wide and high. Without a
    test set "val" is it, or else a fifth of the images; without `training` the test images alone are decoded.

    Raises `DataError` for images and labels that do not fit each other or the memory, and for classes without images.
    """
    path, notes = reading.path, []
    tables = _chosen_splits(reading, training, notes)
    names = reading.class_names()
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{path}: {some(names)}: {len(names):,} classes; from 2 to {MAX_CLASSES:,} can be learnt.")
    labels = {split: np.concatenate([_numbers(table, names) for table in group]) for split, group in tables.items()}
    pixels, kinds = _pixels(tables, img_size, path, notes)
    classes, name = _identified(reading, pixels, labels, notes)

    parts = {split: (pixels[split], labels[split]) for split in tables}
    held_out = "test" not in parts
    if held_out:
        parts = _hold_out_a_fifth(*parts["train"], len(classes))
        few, total = len(parts["test"][1]), len(labels["train"])
        notes.append(
            f"no test images with labels: {few:,} of {total:,}, a fifth of each class, are the test set instead"
        )
    for split, (images, numbers) in parts.items():
        empty = [classes[c] for c in np.flatnonzero(np.bincount(numbers, minlength=len(classes)) == 0)]
        if empty:
            raise DataError(f"{path}: the {split} set of {len(numbers):,} images has none of class {some(empty, 10)}.")
        if images.min() == images.max():
            raise DataError(f"{path}: all pixels of the {split} set are {images.min()}.")
        if images.max() <= 1:
            raise DataError(f"{path}: the pixels of the {split} set are 0 or 1. Were they divided by 255 before?")
    parts.setdefault("train", [array[:0] for array in parts["test"]])
    _note_copies(*(parts[split][0] for split in ("train", "test")), notes)
    if kinds["JPEG"] and name.startswith("CIFAR-"):
        notes.append(f"{kinds['JPEG']:,} of {kinds.total():,} image files are JPEG, not {name}'s exact pixels")
    if reading.left_out:
        notes.append(f"{len(reading.left_out):,} files or folders were left out: {some(reading.left_out, 3)}")
    source = f"{path} ({reading.layout}{', ' if kinds else ''}{' and '.join(sorted(kinds))})"
    train, test = tensors(*parts["train"]), tensors(*parts["test"])
    return ImageSet(*train, *test, tuple(classes), name, source, tuple(notes), held_out)


def _chosen_splits(reading: Reading, training: bool, notes: list[str]) -> dict[str, Sequence[Table]]:
    """The tables of "train" and "test" that are needed; without "test" those of "val" are in its place."""
    found = {split: group for split, group in reading.splits.items() if any(len(table.labels) for table in group)}
    if not found or (training and "train" not in found):
        there = f"no images for training, only {' and '.join(found)}" if found else "no images"
        raise DataError(f"{reading.path}: {there}. Give a folder with all, or training images as well as a test set.")
    test = next((split for split in ("test", "val") if split in found), None)
    if "val" in found:
        notes.append(
            "the validation images are " + ("not used" if test == "test" else "the test set: there is no other")
        )
    chosen = {"train": found["train"]} if training or not test else {}
    return chosen | ({"test": found[test]} if test else {})


def _numbers(table: Table, names: Sequence[str]) -> np.ndarray:
    """int64 [N]: a table's labels as numbers of the classes, which CIFAR-10 has in its own order, others in `names`'."""
    images, values, where = table
    try:
        labels = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: the labels are no numbers ({error}).") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.size and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
        labels = labels.argmax(1)  # one-hot
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iuU"):
        raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [N] or one-hot.")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(images):,} images but {len(labels):,} labels.")

    key = cifar10_name if are_cifar10(names) else class_key
    number = {key(name): k for k, name in enumerate(CLASSES if key is cifar10_name else names)}
    if len(number) < len(names):
        raise DataError(f"{where}: of the classes {some(names, 20)} two are the same.")
    if labels.dtype.kind == "U":
        if unknown := sorted({str(name) for name in labels if key(name) not in number}):
            raise DataError(f"{where}: label {some(unknown)} is none of the classes {some(names, 10)}.")
        return np.array([number[key(name)] for name in labels], np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if wrong.size:
        first = f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … {len(names) - 1}"
        hint = " Is it CIFAR-100?" if len(names) == 10 and 10 <= labels.max() <= 99 else ""
        hint = " Are they counted from 1?" if labels.min() >= 1 and labels.max() == len(names) else hint
        raise DataError(f"{where}: {first} ({wrong.size:,} such labels).{hint}")
    return np.array([number[key(name)] for name in names], np.int64)[labels.astype(np.int64)]


def _identified(reading: Reading, pixels: Mapping, labels: Mapping, notes: list[str]) -> tuple[Sequence[str], str]:
    """(classes, name) of CIFAR-10 or -100 if it is one, else the name of its folder."""
    names = reading.class_names()
    classes = CLASSES if are_cifar10(names) else tuple(unicodedata.normalize("NFC", name).strip() for name in names)
    sizes = {split: len(numbers) for split, numbers in labels.items()}
    too_many = any(size > SIZES[split] for split, size in sizes.items())
    # numbers for names may stand for any ten things: the images decide
    if [name.lstrip("0") or "0" for name in names] == [*"0123456789"] and not too_many:
        if all(x.shape[-1] == 32 and (x[:, 0] != x[:, 1]).any() for x in pixels.values()):
            classes = CLASSES
            notes.append("the classes 0 … 9 of 32x32 colour images are taken for CIFAR-10's, in its order")
    part = [f"{size:,} of {SIZES[split]:,} {split} images" for split, size in sizes.items() if size != SIZES[split]]
    hundred = len(classes) == 100 and {*classes} >= SOME_OF_CIFAR100
    if (classes == CLASSES or hundred) and not too_many:
        name = "CIFAR-100" if hundred else "CIFAR-10"
        notes += [f"part of {name}: {' and '.join(part)}"] if part else []
        return classes, name
    if (
        too_many
        and classes == CLASSES
        and not reading.classes
        and not isinstance(reading.splits["train"][0].labels[0], str)
    ):
        raise DataError(f"{reading.path}: {' and '.join(part)} in CIFAR-10. Is it another data set?")
    known = len({*map(cifar10_name, classes)} & {*CLASSES})
    more = f", of which CIFAR-10 has {known}{' (and fewer images)' if too_many else ''}" if known >= 5 else ""
    notes.append(f"{len(classes)} classes: {some(classes, 10)}{more}")
    return classes, reading.path.resolve().name


def _hold_out_a_fifth(images: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    test, rng = np.zeros(len(labels), dtype=bool), np.random.default_rng(0)  # fixed, so that runs compare
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: max(1, len(members) // 5)]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _note_copies(train: np.ndarray, test: np.ndarray, notes: list[str]) -> None:
    """Note a tenth or more of test images that are training images, and of training images that are there twice."""
    hashes, test_hashes = ([hash(image.tobytes()) for image in images] for images in (train, test))
    known = {*hashes}
    shared, doubled = sum(image in known for image in test_hashes), len(train) - len(known)
    if 10 * shared >= len(test):
        notes.append(f"{shared:,} of the {len(test):,} test images are training images too: accuracies mean little")
    if 10 * doubled >= len(train) > 0:
        notes.append(f"{doubled:,} of the {len(train):,} training images are copies of others")


def _pixels(
    tables: Mapping[str, Sequence[Table]], img_size: int, path: Path, notes: list[str]
) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """({split: uint8 [N, 3, S, S]}, how many files are of which kind); S is 32 where all images are, else `img_size`."""
    if not any(isinstance(table.images, list) for group in tables.values() for table in group):
        return {
            split: np.concatenate([_checked_pixels(t, notes) for t in group]) for split, group in tables.items()
        }, Counter()
    count = sum(len(table.images) for group in tables.values() for table in group)
    _check_memory(tables, count, img_size, path)
    decoded = {split: _decode_all(group, split, img_size) for split, group in tables.items()}
    kinds = Counter(kind for images in decoded.values() for _, kind, _ in images)
    sizes = Counter("{}x{}".format(*size) for images in decoded.values() for *_, size in images)
    side = 32 if {*sizes} == {"32x32"} else img_size
    changed = Counter({size: n for size, n in sizes.items() if size != f"{side}x{side}"})
    if changed:
        listed = some([size for size, _ in changed.most_common()], 3)
        how = f"resized to {side}x{side} by their shorter side, the middle is kept"
        notes.append(f"{changed.total():,} of {count:,} images were {how}; they had {listed} pixels")
    return {split: _stacked(images, side) for split, images in decoded.items()}, kinds


def _stacked(images: list, side: int) -> np.ndarray:
    """uint8 [N, 3, side, side]; the list is emptied on the way, since there may not be room for both."""
    stacked = np.empty((len(images), 3, side, side), np.uint8)
    for row in reversed(stacked):
        pixels = images.pop()[0]
        if len(pixels) != side:  # 32x32, among others
            pixels = np.asarray(ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.BICUBIC))
        row[:] = pixels.transpose(2, 0, 1)
    return stacked


def free_memory() -> float:
    """Bytes of memory that can be had now; infinite where the system does not tell."""
    with contextlib.suppress(OSError):  # Linux; what it lends to its cache of files can be had
        if found := re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text()):
            return 1024 * int(found[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def _check_memory(tables: Mapping[str, Sequence[Table]], count: int, img_size: int, path: Path) -> None:
    """Raise `DataError` unless there is room for the images and a copy of them, which is made when some are held out."""
    sources = [
        image for group in tables.values() for table in group for image in table.images[:: len(table.images) // 3 + 1]
    ]
    small = all(isinstance(found := _decode(image, 32), str) or found[2] == (32, 32) for image in sources[:50])
    side, room = 32 if small else img_size, free_memory()
    need = 2 * count * 3 * side**2
    if need > room:
        largest = math.isqrt(int(room / (6 * count)))
        advice = f"Set img_size to {largest} at most, or give fewer images" if not small else "Give fewer images"
        what = f"{count:,} images of {side}x{side} pixels, and a copy of them, are {need / 1e9:,.1f} GB"
        raise DataError(f"{path}: {what}; {room / 1e9:,.1f} GB of memory are free. {advice}.")


def _checked_pixels(table: Table, notes: list[str]) -> np.ndarray:
    """uint8 [N, 3, 32, 32] from an array of numbers from 0 to 255, or from 0 to 1, in any of the usual shapes."""
    values = table.images
    shape = getattr(values, "shape", ())[1:]
    usual = shape in PIXEL_SHAPES and values.dtype.kind in "iuf"
    low, high = (values.min(), values.max()) if usual and values.size else (0, 0)
    if not usual or not 0 <= low <= high <= 255:
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        got += f" from {low:g} to {high:g}" if usual else ""
        expected = "numbers from 0 to 255 (or to 1), not normalised, as [N, 3072], [N, 3, 32, 32] or [N, 32, 32, 3]"
        raise DataError(f"{table.where}: the images are {got}, expected {expected}.")
    if values.dtype.kind == "f":
        factor = 255 if high <= 1 and (values % 1).any() else 1
        notes += ["pixels from 0 to 1 were multiplied by 255"] if factor == 255 else []
        values = np.concatenate([np.rint(part * factor).astype(np.uint8) for part in np.array_split(values, 50)])
    if shape == (3072,) and _channels_last(values):
        notes.append("pixels in rows of 3072 are taken to be red, green, blue by turns, by how smooth that is")
        shape, values = (32, 32, 3), values.reshape(-1, 32, 32, 3)
    return values.transpose(0, 3, 1, 2) if shape == (32, 32, 3) else values.reshape(-1, 3, 32, 32)


def _channels_last(rows: np.ndarray) -> bool:
    """Tell whether rows [N, 3072] resemble themselves one image row further on if there are three values to a pixel."""
    some_rows = rows[:1000].astype(np.float32)
    change = {step: np.abs(some_rows[:, step:] - some_rows[:, :-step]).mean() for step in (32, 96)}
    return bool(change[96] < 0.8 * change[32])


@functools.cache
def formats() -> tuple[str, ...]:
    """The kinds of image file that are read: of those which Pillow knows here, none that runs other programs."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@functools.cache
def image_endings() -> frozenset[str]:
    """How the names of image files end, in lower case."""
    formats()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def _decode_all(group: Sequence[Table], split: str, img_size: int) -> list[tuple[np.ndarray, str, tuple[int, int]]]:
    """`_decode` of tables of image files, in their order."""
    sources = [source for table in group for source in table.images]
    names = (f if isinstance(f, Path) else f"{table.where}, row {i}" for table in group for i, f in enumerate(table[0]))
    formats()  # once, before the threads do
    decode = functools.partial(_decode, img_size=img_size)
    results = thread_map(decode, sources, max_workers=16, desc=f"reading {split}", unit="img")
    problems = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if problems:
        raise DataError(f"{some(problems)}. {len(problems):,} of {len(sources):,} images cannot be used.")
    return results


def _decode(source: Path | bytes, img_size: int) -> tuple[np.ndarray, str, tuple[int, int]] | str:
    """(uint8 [S, S, 3], kind such as "PNG", size before) of one image, or what is wrong with it; S is 32 or `img_size`."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        if not isinstance(data, bytes):
            return f"is {type(data).__name__}, not the bytes of an image"
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            size, kind = image.size, "JPEG" if image.format == "MPO" else image.format
            if image.mode[0] in "IF":
                return f"has mode {image.mode}, more than 8 bits a pixel"
            if size != (32, 32):
                image.draft("RGB", (2 * img_size, 2 * img_size))  # a large photo need not be decoded in full
            pixels = ImageOps.exif_transpose(image).convert("RGB")
            if size != (32, 32):
                pixels = ImageOps.fit(pixels, (img_size, img_size), Image.Resampling.BICUBIC)
            return np.asarray(pixels), kind, size
    except UnidentifiedImageError:
        return "is no readable image"
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        return str(error) or type(error).__name__
