"""A data set's tables of images and labels, decoded, checked and joined to tensors; every reader ends here."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from helpers.common.files import DataError, some

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXEL_SHAPES = ((3072,), (3, 32, 32), (32, 32, 3))  # of an image in an array


class Table(NamedTuple):
    """Images with their labels, as one file or folder has them."""

    images: object  # an array of pixels, or a list of image files (Path, or their bytes)
    labels: object  # as many integers
    where: str  # for errors


@dataclass(frozen=True)
class ImageSet:
    """Training and test images in memory, on the CPU, in the order of their source."""

    train_images: Tensor  # uint8 [N, 3, 32, 32], RGB, contiguous
    train_labels: Tensor  # int64 [N], 0 … 9
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]  # in the order of the labels
    name: str
    source: str  # where from and in which layout, or how it was made: to be shown beside every figure
    notes: tuple[str, ...] = ()  # what a reader of a figure must know, e.g. that the test set is a held-out fifth
    held_out: bool = False  # the test images were taken from CIFAR-10's training images


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Copies as uint8 and int64: the arrays may be transposed, or read-only views of a file's bytes."""
    return torch.from_numpy(np.array(images, np.uint8, order="C")), torch.from_numpy(np.array(labels, np.int64))


def assemble(tables: Mapping[str, Sequence[Table]], path: Path, layout: str, left_out: Sequence[Path] = ()) -> ImageSet:
    """Join the tables of "train" and "test"; without "test" a fifth of the images is held out for it.

    Raises `DataError` for images and labels that are not CIFAR-10's, too many of them, or a class without any.
    """
    parts, kinds, notes = {}, Counter(), []
    for split, group in tables.items():
        files = isinstance(group[0].images, list)
        images = _decode_all(group, split, kinds) if files else np.concatenate([_checked_pixels(t) for t in group])
        parts[split] = images, np.concatenate([_checked_labels(table) for table in group])

    # more images than CIFAR-10 has are another data set, fewer are a part of it
    held_out, partly = "test" not in parts, []
    for split, (_, labels) in parts.items():
        most = {"train": 50_000, "test": 10_000}[split]
        have = f"{len(labels):,} of {most:,} {'labelled' if held_out else split} images"
        if len(labels) > most:
            raise DataError(f"{path}: {have} in CIFAR-10. Is it another data set?")
        partly += [have] if len(labels) < most else []
    if partly:
        notes.append(f"part of CIFAR-10: {' and '.join(partly)}")
    if held_out:
        parts = _hold_out_a_fifth(*parts["train"])
        few, total = len(parts["test"][1]), sum(len(labels) for _, labels in parts.values())
        notes.append(f"no labels of test images: {few:,} of {total:,} labelled ones, a fifth, are the test set instead")
    for split, (_, labels) in parts.items():
        empty = [CLASSES[c] for c in np.flatnonzero(np.bincount(labels, minlength=10) == 0)]
        if empty:
            raise DataError(f"{path}: the {split} set of {len(labels):,} images has none of class {some(empty, 10)}.")
    if kinds["JPEG"]:
        notes.append(f"{kinds['JPEG']:,} of {kinds.total():,} image files are JPEG, not CIFAR-10's exact pixels")
    if left_out:
        notes.append(f"{len(left_out):,} files that are no PNG or JPEG were left out: {some(left_out, 3)}")
    source = f"{path} ({layout}{', ' if kinds else ''}{' and '.join(sorted(kinds))})"
    train, test = tensors(*parts["train"]), tensors(*parts["test"])
    return ImageSet(*train, *test, CLASSES, "CIFAR-10", source, tuple(notes), held_out)


def _hold_out_a_fifth(images: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    test, rng = np.zeros(len(labels), dtype=bool), np.random.default_rng(0)  # fixed, so that runs compare
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: max(1, len(members) // 5)]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _checked_pixels(table: Table) -> np.ndarray:
    """uint8 [N, 3, 32, 32] from an array of whole numbers from 0 to 255 in any of the usual shapes."""
    values = table.images
    shape = getattr(values, "shape", ())[1:]
    usual = shape in PIXEL_SHAPES and values.dtype.kind in "iu"
    if not usual or (values.size and not 0 <= values.min() <= values.max() <= 255):
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        expected = "whole numbers from 0 to 255 (not normalised) as [N, 3072], [N, 3, 32, 32] or [N, 32, 32, 3]"
        raise DataError(f"{table.where}: the images are {got}, expected {expected}.")
    return values.transpose(0, 3, 1, 2) if shape == (32, 32, 3) else values.reshape(-1, 3, 32, 32)


def _checked_labels(table: Table) -> np.ndarray:
    """Integers [N] from what a file holds as labels of N images."""
    images, values, where = table
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [N] or [N, 1].")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(images):,} images but {len(labels):,} labels.")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        hint = " Is it CIFAR-100?" if 10 <= labels.max() <= 99 else ""
        first = f"label {labels[wrong[0]]} of image {wrong[0]}"
        raise DataError(f"{where}: {first} is not in 0 … 9 ({wrong.size:,} such labels).{hint}")
    return labels.astype(np.int64)


def _decode_all(group: Sequence[Table], split: str, kinds: Counter[str]) -> np.ndarray:
    """uint8 [N, 3, 32, 32] of tables of image files, in their order; counts their `kinds`."""
    sources = [source for table in group for source in table.images]
    names = (f if isinstance(f, Path) else f"{table.where}, row {i}" for table in group for i, f in enumerate(table[0]))
    Image.preinit()  # once, before the threads do
    results = thread_map(_decode, sources, max_workers=16, desc=f"reading {split}", unit="img")
    problems = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if problems:
        raise DataError(f"{some(problems)}. {len(problems):,} of {len(sources):,} images cannot be used.")
    kinds.update(kind for _, kind in results)
    return np.stack([pixels for pixels, _ in results]).transpose(0, 3, 1, 2)


def _decode(source: Path | bytes) -> tuple[np.ndarray, str] | str:
    """(uint8 [32, 32, 3], "PNG" or "JPEG") of one image, or what is wrong with it."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        if not isinstance(data, bytes):
            return f"is {type(data).__name__}, not the bytes of a PNG or JPEG"
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.size != (32, 32):  # before decoding: an image may be huge
                return "is {}x{} pixels, not 32x32".format(*image.size)
            if image.mode[0] in "IF":
                return f"has mode {image.mode}, more than 8 bits a pixel"
            return np.asarray(image.convert("RGB")), "PNG" if image.format == "PNG" else "JPEG"
    except UnidentifiedImageError:
        return "is no readable PNG or JPEG"
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        return str(error) or type(error).__name__
