"""A data set's tables of images and labels, decoded, checked and joined to tensors; every reader ends here."""

import functools
import io
import math
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

from helpers.common.files import DataError, free_memory, natural, some
from helpers.common.images import open_image, to_upright_rgb
from helpers.vit.layouts import CLASSES, SOME_OF_CIFAR100, are_cifar10, cifar10_name

SIZES = {"train": 50_000, "test": 10_000}  # CIFAR-10's and CIFAR-100's
MAX_CLASSES = 1000


class Table(NamedTuple):
    """Images with their labels, as one file or folder has them."""

    images: object  # an array uint8 [N, 3, 32, 32], or a list of image files (Path, or their bytes)
    labels: object  # as many integers, or names of classes
    where: str  # for errors


class Reading(NamedTuple):
    """What a reader found in a folder or file; image files are not opened yet."""

    path: Path
    layout: str
    splits: Mapping[str, Sequence[Table]]  # of "train", "val", "test"
    classes: Sequence[str] = ()  # in the order of the numbers; without: labels are names, or CIFAR-10's numbers
    left_out: Sequence[str] = ()  # names of files

    def class_names(self) -> list[str]:
        """The classes of the training images: as recorded, or as the labels have them; empty for numbers."""
        tables = self.splits.get("train") or chain(*self.splits.values())
        names = {label for table in tables for label in table.labels if isinstance(label, str)}
        return [*self.classes] or sorted(names, key=natural)


@dataclass(frozen=True)
class ImageSet:
    """Training and test images in memory, on the CPU, in the order of their source."""

    train_images: Tensor  # uint8 [N, 3, S, S], RGB, contiguous; none where only the test set was asked for
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
    path, recorded, notes = reading.path, reading.class_names(), []
    names = recorded or [*CLASSES]
    tables = _chosen_splits(reading, training, notes)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{path}: {len(names):,} classes, {some(names)}; from 2 to {MAX_CLASSES:,} can be learnt.")
    # labels first: decoding takes longer
    labels = {split: np.concatenate([_numbers(table, names) for table in group]) for split, group in tables.items()}
    pixels, kinds = _pixels(tables, img_size, path, notes)
    classes, name = _identified(path, recorded, {split: len(numbers) for split, numbers in labels.items()}, notes)

    parts = {split: (pixels[split], labels[split]) for split in tables}
    held_out = "test" not in parts
    if held_out:
        parts = _hold_out_a_fifth(*parts["train"], len(classes))
        few, total = len(parts["test"][1]), len(labels["train"])
        notes.append(f"no test images with labels: {few:,} of {total:,}, a fifth of each class, are the test set")
    for split, (_, numbers) in parts.items():
        empty = [classes[c] for c in np.flatnonzero(np.bincount(numbers, minlength=len(classes)) == 0)]
        if empty:
            raise DataError(f"{path}: the {split} set of {len(numbers):,} images has none of class {some(empty, 10)}.")
    parts.setdefault("train", [array[:0] for array in parts["test"]])
    # a test set that is a part of the training set is a slip that happens
    seen = {hash(image.tobytes()) for image in parts["train"][0]}
    again = sum(hash(image.tobytes()) in seen for image in parts["test"][0])
    if 10 * again >= len(parts["test"][0]):
        notes.append(f"{again:,} of the test images are training images too: their accuracy says little")
    if kinds["JPEG"] and name.startswith("CIFAR-"):
        notes.append(f"{kinds['JPEG']:,} of {kinds.total():,} image files are JPEG, not {name}'s exact pixels")
    if reading.left_out:
        notes.append(f"{len(reading.left_out):,} files were left out: {some(reading.left_out, 3)}")
    source = f"{path} ({reading.layout}{', ' if kinds else ''}{' and '.join(sorted(kinds))})"
    train, test = tensors(*parts["train"]), tensors(*parts["test"])
    return ImageSet(*train, *test, tuple(classes), name, source, tuple(dict.fromkeys(notes)), held_out)


def _chosen_splits(reading: Reading, training: bool, notes: list[str]) -> dict[str, Sequence[Table]]:
    """The tables of "train" and "test" that are needed; without "test" those of "val" are in its place."""
    found = {split: group for split, group in reading.splits.items() if any(len(table.labels) for table in group)}
    if not found or (training and "train" not in found):
        there = f"a {' and a '.join(found)} set, but nothing to train on" if found else "no images"
        raise DataError(f"{reading.path}: {there}. Give the folder that holds all.")
    test = next((split for split in ("test", "val") if split in found), None)
    if "val" in found:
        notes.append(f"the validation images are {'not used' if test == 'test' else 'the test set: there is no other'}")
    chosen = {"train": found["train"]} if training or not test else {}
    return chosen | ({"test": found[test]} if test else {})


def _numbers(table: Table, names: Sequence[str]) -> np.ndarray:
    """int64 [N]: a table's labels as numbers of the classes, which are in the order of `names`, or in CIFAR-10's."""
    images, values, where = table
    labels = np.asarray(values)
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
    # the same class may be written in several ways
    key = cifar10_name if are_cifar10(names) else str.casefold
    number = {key(name): k for k, name in enumerate(CLASSES if key is cifar10_name else names)}
    if labels.dtype.kind == "U":
        if unknown := sorted({str(name) for name in labels if key(name) not in number}):
            raise DataError(f"{where}: label {some(unknown)} is none of the classes {some(names, 10)}.")
        return np.array([number[key(name)] for name in labels], np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if wrong.size:
        hint = " Is it CIFAR-100?" if len(names) == 10 and 10 <= labels.max() <= 99 else ""
        hint = " Are they counted from 1?" if labels.min() >= 1 and labels.max() == len(names) else hint
        first = f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … {len(names) - 1}"
        raise DataError(f"{where}: {first} ({wrong.size:,} such labels).{hint}")
    return np.array([number[key(name)] for name in names])[labels.astype(np.int64)]


def _identified(path: Path, recorded: Sequence[str], sizes: Mapping, notes: list[str]) -> tuple[Sequence[str], str]:
    """(classes, name) of CIFAR-10 or -100 if it is one, else the name of its folder."""
    classes = CLASSES if are_cifar10(recorded or CLASSES) else recorded
    hundred = len(classes) == 100 and {*classes} >= SOME_OF_CIFAR100
    counts = [f"{size:,} of {SIZES[split]:,} {split} images" for split, size in sizes.items()]
    if (classes == CLASSES or hundred) and all(size <= SIZES[split] for split, size in sizes.items()):
        name = "CIFAR-100" if hundred else "CIFAR-10"
        notes += [f"part of {name}: {' and '.join(counts)}"] if any(sizes[k] < SIZES[k] for k in sizes) else []
        return classes, name
    if not recorded:
        raise DataError(f"{path}: {' and '.join(counts)} in CIFAR-10. Is it another data set?")
    notes.append(f"{len(classes)} classes: {some(classes, 10)}")
    return classes, path.resolve().name


def _hold_out_a_fifth(images: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    test, rng = np.zeros(len(labels), dtype=bool), np.random.default_rng(0)  # fixed, so that runs compare
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: max(1, len(members) // 5)]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _pixels(
    tables: Mapping[str, Sequence[Table]], img_size: int, path: Path, notes: list[str]
) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """({split: uint8 [N, 3, S, S]}, how many files are of which kind). S is 32 where the first image of every folder or
    file has 32x32 pixels, else `img_size`."""
    every = [table for group in tables.values() for table in group if len(table.images)]
    if not any(isinstance(table.images, list) for table in every):
        return {k: np.concatenate([table.images for table in group]) for k, group in tables.items()}, Counter()
    sources = [source for table in every for source in table.images]
    # room for the images and a copy of them, which is made when some are held out
    count, room, first = len(sources), free_memory(), np.empty((3, 32, 32), np.uint8)
    side = 32 if all(_decode(table.images[0], first, [])[-1] == "32x32" for table in every) else img_size
    need = 6 * count * side**2
    if need > room:
        step = "" if side == 32 else f"img_size of {math.isqrt(int(room / (6 * count)))} at most, or "
        what = f"{count:,} images of this size, and a copy of them, are {need / 1e9:,.1f} GB"
        raise DataError(f"{path}: {what}; {room / 1e9:,.1f} GB of memory are free: give {step}fewer images.")

    rows, remarks = np.empty((count, 3, side, side), np.uint8), []
    decode = functools.partial(_decode, remarks=remarks)
    results = thread_map(decode, sources, rows, max_workers=16, desc="reading", unit="img")
    names = (f if isinstance(f, Path) else f"{table.where}, row {i}" for table in every for i, f in enumerate(table[0]))
    problems = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if problems:
        raise DataError(f"{some(problems)}. {len(problems):,} of {count:,} images cannot be used.")
    kinds, sizes = map(Counter, zip(*results, strict=True))
    if others := [size for size, _ in sizes.most_common() if size != f"{side}x{side}"]:
        how = f"{sum(sizes[size] for size in others):,} of {count:,} images were resized to {side}x{side}"
        notes.append(f"{how} by their shorter side, the middle kept; they had {some(others, 3)} pixels")
    notes += [f"{len(remarks):,} images have more than 8 bits, such as: {remarks[0]}"] if remarks else []
    ends = np.cumsum([sum(len(table.images) for table in group) for group in tables.values()])
    return dict(zip(tables, np.split(rows, ends[:-1]), strict=True)), kinds


def _decode(source: Path | bytes, row: np.ndarray, remarks: list[str]) -> tuple[str, str] | str:
    """Decode an image into `row`, uint8 [3, S, S], and return (kind such as "PNG", size such as "48x64"), or what is
    wrong with it."""
    try:
        with open_image(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            size, kind, side = image.size, "JPEG" if image.format == "MPO" else image.format, len(row[0])
            if size != (side, side):
                image.draft("RGB", (2 * side, 2 * side))  # a large JPEG need not be decoded in full
            pixels = to_upright_rgb(image, remarks)
        row[:] = (pixels if size == (side, side) else fitted(Image.fromarray(pixels), side)).transpose(2, 0, 1)
        return kind, "{}x{}".format(*size)
    except UnidentifiedImageError:
        return "is no readable image (PNG, JPEG, …)"
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        return str(error) or type(error).__name__


def fitted(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: the shorter side resized, and the middle cut out."""
    return np.array(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))
