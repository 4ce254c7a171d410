"""tests/bench/bench_q1.py with the tiniest settings: what it runs and what its tables hold; never how fast it is."""

import csv

import pytest
import torch

import bench_q1


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_tables_name_their_command_and_machine(tmp_path):
    given = ["--parts", "augmentation", "--images", "16", "--repeats", "1", "--out", str(tmp_path / "a folder")]
    bench_q1.main(given)
    stem = tmp_path / "a folder" / "bench_q1_augmentation"
    text = stem.with_suffix(".md").read_text()
    first, *others = text.split("\n| ")[0].splitlines()
    assert first == f"`python tests/bench/bench_q1.py {' '.join(given[:-1])} '{given[-1]}'`"
    assert " cores, " in others[1] and "torch " in others[3]
    with stem.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and text.count("\n| ") == 14
    assert all(0 < int(row["min"]) <= int(row["median images/s"]) <= int(row["max"]) for row in rows)


def test_what_is_measured_is_the_notebooks_own_function(q1, monkeypatch):
    seen, augment = [], q1.augment

    def spy(images, cfg, scale):
        done = augment(images, cfg, scale)
        seen.append((cfg.randaug_n, cfg.randaug_m, cfg.erase_prob, *done.shape))
        return done

    monkeypatch.setattr(q1, "augment", spy)
    assert bench_q1.ours(q1, bench_q1.load_images(None, 20), 16)() == 20
    assert seen == [(2, 9.0, 0.25, 16, 3, 32, 32), (2, 9.0, 0.25, 4, 3, 32, 32)]
