"""What a reader of a data set returns, raises and checks with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    held_out: bool = False  # whether the test images were taken from CIFAR-10's training images


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    # copies: the arrays may be transposed, or read-only views of a file's bytes
    return torch.from_numpy(np.array(images, np.uint8, order="C")), torch.from_numpy(np.array(labels, np.int64))


def checked_labels(values: object, count: int, where: str) -> np.ndarray:
    """int64 [count] from what a file holds as labels."""
    labels = np.asarray(values)
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


def cifar10(
    train: Part, test: Part, path: Path, layout: str, notes: Sequence[str] = (), held_out: bool = False
) -> ImageSet:
    """The checks that every layout ends with; `held_out` says that `test` was taken from the training images."""
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
