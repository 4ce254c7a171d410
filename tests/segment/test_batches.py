"""Images that go through the networks together: groups, results in order, memory that is short, threads."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.common.device import Compute
from helpers.segment.batches import MOST_WAITING, Batches, default_batch_size, read_rows


def test_items_are_grouped_by_kind_and_none_is_lost():
    items = [(kind, i) for i, kind in enumerate("aabacbbaaacab")]
    groups = list(Batches(3).group(items, key=lambda item: item[0]))
    assert all(len({kind for kind, _ in group}) == 1 and len(group) <= 3 for group in groups)
    assert sorted(item for group in groups for item in group) == sorted(items)
    assert groups[0] == [("a", 0), ("a", 1), ("a", 3)]  # as soon as it is full
    assert [len(group) for group in Batches(1).group(items, key=lambda item: item[0])] == [1] * len(items)


def test_images_of_many_sizes_do_not_all_wait_in_memory():
    taken, done = [], 0
    for group in Batches(4).group((taken.append(i) or i for i in range(1000)), key=lambda number: number):
        done += len(group)
        assert len(taken) - done <= 4 * MOST_WAITING
    assert done == 1000


def test_what_is_too_much_for_the_memory_is_done_in_halves_from_there_on(capsys):
    sizes = []

    def function(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in items]

    batches = Batches(8)
    assert batches.run(function, list(range(8))) == list(range(0, 80, 10))
    assert sizes == [8, 4, 2, 2, 2, 2] and batches.size == 2
    assert batches.run(function, [1, 2, 3]) == [10, 20, 30]  # was collected before
    assert sizes[6:] == [2, 1]
    assert "out of memory with 8 images at once: from here on 4" in capsys.readouterr().out

    def never(items):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        batches.run(never, [1, 2])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_results_ahead_belong_to_their_items_and_few_items_wait(size):
    calls, taken = [], []

    def items():
        for i in range(11):
            taken.append(i)
            yield i

    def function(wanted):
        calls.append(wanted)
        return [-i for i in wanted]

    seen = []
    for item, result in Batches(size).look_ahead(items(), lambda i: i % 3 == 1, function):
        seen.append((item, result))
        assert len(taken) - len(seen) < 3 * size
    assert seen == [(i, -i if i % 3 == 1 else None) for i in range(11)]
    assert [i for wanted in calls for i in wanted] == [1, 4, 7, 10] and max(map(len, calls)) == size


def test_images_are_read_in_order_and_one_that_cannot_be_read_says_why(tmp_path, capsys):
    rows = []
    for i in range(20):
        path = tmp_path / f"{i}.png"
        rows.append({"image": str(path), "skipped": ""})
        if i == 7:
            path.write_text("no image")
        else:
            Image.fromarray(np.full((2, 3, 3), i, np.uint8)).save(path)
    read = list(read_rows(rows))
    assert [image[0, 0, 0] for _, image in read] == [i for i in range(20) if i != 7]
    assert all(row["image"].endswith(f"/{image[0, 0, 0]}.png") for row, image in read)
    assert "7.png" in rows[7]["skipped"] and capsys.readouterr().out == f"skipped: {rows[7]['skipped']}\n"
    assert list(read_rows([])) == []


def test_the_batch_size_is_by_the_device(monkeypatch):
    class Card:
        total_memory = 15.8e9

    assert default_batch_size(Compute(torch.device("cpu"), "", "fp32")) == 1
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    assert default_batch_size(Compute(torch.device("cuda"), "", "fp16")) == 4
    Card.total_memory = 85e9
    assert default_batch_size(Compute(torch.device("cuda"), "", "bf16")) == 16
