"""Images that go through the networks together, while others are read on other threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from helpers.common.device import Compute
from helpers.common.images import ImageError, read_image
from helpers.common.threads import ahead

BYTES_PER_IMAGE = 4e9  # of GPU memory: images of 800 x 1333 take half of it in GroundingDINO
MOST_WAITING = 4  # batches' worth of images in memory whose batch is not full


def default_batch_size(compute: Compute) -> int:
    """1 on a CPU, where a batch is no faster; on a CUDA GPU as many as its memory has room for, at most 16."""
    if compute.device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(compute.device).total_memory
    return max(1, min(16, round(memory / BYTES_PER_IMAGE)))


class Batches:
    """Batches of at most `size` items; where the device's memory is too small for one, `size` is halved for good."""

    def __init__(self, size: int) -> None:
        self.size = size

    def group(self, items: Iterable[Any], key: Callable[[Any], Hashable]) -> Iterator[list[Any]]:
        """Yield lists of items of one key, full ones as soon as they are; where too many items wait for their like,
        the longest list, and at the end what is left."""
        waiting: dict[Hashable, list[Any]] = {}
        for item in items:
            group = waiting.setdefault(key(item), [])
            group.append(item)
            if len(group) < self.size and sum(map(len, waiting.values())) < MOST_WAITING * self.size:
                continue
            longest = max(waiting, key=lambda name: len(waiting[name]))
            yield waiting.pop(longest)
        yield from waiting.values()

    def look_ahead(
        self, items: Iterable[Any], is_wanted: Callable[[Any], bool], function: Callable[[list[Any]], list[Any]]
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (item, its result) in order, None for what is not wanted; `function` returns the results of several
        items, and those are taken from `items` before the first of them is yielded."""
        waiting: list[Any] = []
        wanted: list[Any] = []
        for item in chain(items, [None]):  # at the end what still waits
            if item is not None:
                waiting.append(item)
                wanted += [item] if is_wanted(item) else []
            if item is None or len(wanted) in (0, self.size):
                results = iter(self.run(function, wanted))
                for each in waiting:
                    yield each, next(results) if is_wanted(each) else None
                waiting, wanted = [], []

    def run(self, function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
        """Return the results of `function`, a list of one for each item, called for at most `size` items at once."""
        results: list[Any] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.size]
            try:
                results += function(batch)
                continue
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            # outside of the except clause, whose traceback would keep the tensors
            self.size = len(batch) // 2
            torch.cuda.empty_cache()
            tqdm.write(f"out of memory with {len(batch)} images at once: from here on {self.size}")
        return results


def read_rows(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield (row, image) for rows of a summary in order, images uint8 RGB [H, W, 3]; other threads read some of them
    before they are asked for. A row whose image cannot be read gets the reason as `skipped`. That is printed, and so is
    what else `read_image` has to tell."""
    for row, image, notes in ahead(_read_row, rows):
        for note in notes:
            tqdm.write(note)
        if image is not None:
            yield row, image


def _read_row(row: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None, list[str]]:
    notes: list[str] = []
    try:
        return row, read_image(row["image"], notes), notes
    except ImageError as error:
        row["skipped"] = str(error)
        return row, None, [f"skipped: {error}"]
