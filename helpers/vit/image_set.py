"""What a reader of a data set returns, and what every reader checks and decodes with."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from helpers.common.files import DataError, some

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Part = tuple[np.ndarray, np.ndarray]  # one split: images uint8 [N, 3, 32, 32], labels int64 [N]


@dataclass(frozen=True)
class ImageSet:
    """Training and test images in memory, on the CPU, in the order of their source: class folders give one class
    after the other."""

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


def cifar10(
    train: Part, test: Part, path: Path, layout: str, notes: Sequence[str] = (), held_out: bool = False
) -> ImageSet:
    """The set from its two checked parts; `DataError` where it has too many images, or a class without any."""
    for split, (_, labels) in (("training", train), ("test", test)):
        empty = [CLASSES[c] for c in np.flatnonzero(np.bincount(labels, minlength=10) == 0)]
        if empty:
            raise DataError(f"{path}: the {split} set of {len(labels):,} images has none of class {some(empty, 10)}.")
    counts = [("training", len(train[1]), 50_000), ("test", len(test[1]), 10_000)]
    if held_out:
        counts = [("labelled", len(train[1]) + len(test[1]), 50_000)]
    for what, have, full in counts:
        if have > full:
            raise DataError(f"{path}: {have:,} {what} images, but CIFAR-10 has {full:,}. Is it another data set?")
    partly = [f"{have:,} of {full:,} {what} images" for what, have, full in counts if have < full]
    if partly:
        notes = (f"part of CIFAR-10: {' and '.join(partly)}", *notes)
    source = f"{path} ({layout})"
    return ImageSet(*tensors(*train), *tensors(*test), CLASSES, "CIFAR-10", source, tuple(notes), held_out)


# ---- arrays ----


def checked_pixels(values: object, where: str) -> np.ndarray:
    """uint8 [N, 3, 32, 32] from an array of whole numbers from 0 to 255 in any of the usual shapes."""
    shape = getattr(values, "shape", ())[1:]
    if shape not in ((3072,), (3, 32, 32), (32, 32, 3)):
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"{where} is {got}, expected [N, 3072], [N, 3, 32, 32] or [N, 32, 32, 3].")
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 255):
        got = f"{values.dtype} from {values.min()} to {values.max()}"
        raise DataError(f"{where} is {got}. Save the pixels as uint8, 0 … 255, not normalised.")
    return values.transpose(0, 3, 1, 2) if shape == (32, 32, 3) else values.reshape(-1, 3, 32, 32)


def checked_labels(values: object, count: int, where: str) -> np.ndarray:
    """int64 [count] from what a file holds as labels."""
    try:
        labels = np.asarray(values)
    except ValueError as error:  # lists of unequal length
        raise DataError(f"{where}: labels are no flat list of numbers.") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [N] or [N, 1].")
    if len(labels) != count:
        raise DataError(f"{where}: {count:,} images but {len(labels):,} labels.")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        hint = " Is it CIFAR-100?" if 10 <= labels.max() <= 99 else ""
        first = f"label {labels[wrong[0]]} of image {wrong[0]}"
        raise DataError(f"{where}: {first} is not in 0 … 9 ({wrong.size:,} such labels).{hint}")
    return labels.astype(np.int64)


# ---- image files ----


def decode_images(
    sources: Sequence[Path | bytes], names: Sequence[object], what: str
) -> tuple[np.ndarray, Counter[str]]:
    """(uint8 [N, 3, 32, 32], how many images of each kind) from files or bytes, in their order; `names` for errors."""
    Image.preinit()  # once, before the threads do
    few = len(sources) < 5_000  # decoded in a second: a bar would only flicker
    results = thread_map(_decode, sources, max_workers=16, desc=f"reading {what}", unit="img", disable=few)
    problems = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if problems:
        raise DataError(f"{some(problems)}. {len(problems):,} of {len(sources):,} images cannot be used.")
    return np.stack([pixels for pixels, _ in results]).transpose(0, 3, 1, 2), Counter(kind for _, kind in results)


def _decode(source: Path | bytes) -> tuple[np.ndarray, str] | str:
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


def described(layout: str, kinds: Counter[str], others: Sequence[Path] = ()) -> tuple[str, list[str]]:
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
