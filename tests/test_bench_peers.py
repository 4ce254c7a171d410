"""tests/bench/bench_peers.py with the tiniest settings: the tables, and that contenders do the same work; never how
fast anything is."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

import bench_peers
from bench_q2 import TINY
from helpers.vit.image_set import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:.*cannot import name '_C'.*")
RATES = ["contender", "setting", "n", "median {}", "min", "max", "ratio to ours"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders with 30 images of noise each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def run(out, part, *options):
    """(rows of the CSV, text of the Markdown file), after the checks that hold for every part."""
    bench_peers.main(["--parts", part, "--out", str(out), "--repeats", "1", "--sizes", "tiny", *options])
    stem = out / f"bench_peers_{part.replace('-', '_')}"
    with stem.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    text = stem.with_suffix(".md").read_text()
    assert f"| {' | '.join(rows[0])} |" in text and text.count("\n| ") == len(rows) + 2
    for piece in (f"--parts {part}", "device: ", " cores, ", "torch ", "load average", "before"):
        assert piece in text.split("\n| ")[0]
    for row in rows:
        assert row["contender"] and row["setting"]
        assert all(float(v) >= 0 for k, v in row.items() if k not in ("contender", "setting"))
    return rows, text


def check_rates(rows, unit, contenders, *more, n="1"):
    assert list(rows[0]) == [name.format(unit) for name in RATES] + list(more)
    assert len({row["contender"] for row in rows}) == contenders
    for row in rows:
        assert 0 < float(row["min"]) <= float(row[f"median {unit}"]) <= float(row["max"])
        assert float(row["ratio to ours"]) > 0 and row["n"] == n
    assert float(rows[0]["ratio to ours"]) == 1


def test_q1_epoch(tmp_path):
    sizes = ["--models", "32x1p16", "16x1p8", "--epoch-images", "64", "32", "--batch", "32", "--workers", "0"]
    rows, _ = run(tmp_path, "q1-epoch", "--repeats", "2", *sizes)
    check_rates(rows, "images/s", 3, n="2")
    assert len(rows) == 6 and [len({r["setting"] for r in rows[i : i + 3]}) for i in (0, 3)] == [1, 1]


def test_q1_accuracy(tmp_path, images):
    sizes = ["--accuracy-model", "16x1p16", "--minutes", "0.01", "--workers", "0", "--train-size", "200"]
    rows, text = run(tmp_path, "q1-accuracy", "--data-root", str(images), "--seeds", "0", "1", *sizes)
    expected = ["contender", "setting", "seed", "accuracy, %", "raw, %", "EMA, %", "images seen", "epochs", "seconds"]
    assert list(rows[0]) == expected
    assert [row["seed"] for row in rows] == ["0"] * 3 + ["1"] * 3 and len({row["contender"] for row in rows}) == 3
    for row in rows:
        assert 0 <= float(row["accuracy, %"]) <= 100 and int(row["images seen"]) > 0 and float(row["seconds"]) > 0
    assert "on 60 images held out of the 300 training images" in text and "synthetic" not in text


def test_q2_images(tmp_path):
    rows, _ = run(tmp_path, "q2-images", "--phrases", "2", "--boxes", "2", "--image-size", "160", "120")
    check_rates(rows, "images/s", 2, "masks")
    assert [row["masks"] for row in rows] == ["4", "4"]


def test_q2_video(tmp_path, monkeypatch, capsys):
    def here(job):
        jobs.append(job)
        capsys.readouterr()
        bench_peers.main(["--one", json.dumps(job)])
        return json.loads(capsys.readouterr().out)

    jobs = []
    monkeypatch.setattr(bench_peers, "in_its_own_process", here)
    rows, text = run(tmp_path, "q2-video", "--frames", "3", "--objects", "2", "--video-size", "128", "96")
    check_rates(rows, "frames/s", 2, "peak MiB", "of which the video")
    assert all(int(row["peak MiB"]) > 50 for row in rows) and [job["name"] for job in jobs] == [*bench_peers.TRACKERS]
    assert "all 6 masks are equal, pixel by pixel" in text
    assert re.search(r"ours decodes in [\d.]+ ms .* normalises in [\d.]+; sam2's does all three in [\d.]+", text)


def test_masks_follow_the_objects(tmp_path):
    """Equal masks would say little if all of them were empty."""
    boxes = bench_peers.draw_clip(tmp_path, 4, 96, 128, 1)
    masks = bench_peers.track_lazily(bench_peers.load_segmenter(TINY, bench_peers.pick_compute()), tmp_path, boxes)
    assert masks.shape == (4, 1, 96, 128) and masks.dtype == bool and masks.any((2, 3)).all()
    y, x = np.nonzero(masks[0, 0])
    assert np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - boxes[0]).max() < 8
    assert bench_peers.agreement(masks, masks) == "all 4 masks are equal, pixel by pixel"
    assert bench_peers.agreement(masks, ~masks) == "0.000 % of the masks' pixels are equal"


def made_up(ours, peer, n=3):
    """Rows of two contenders from their (median, min, max)."""
    pairs = (("ours", ours), ("loop", peer))
    return [
        {"contender": name, "setting": "s", "n": n, "median x/s": a, "min": low, "max": high}
        for name, (a, low, high) in pairs
    ]


UNSURE = "(the ranges of the 3 runs overlap)"


def test_sizes_are_read_and_mistakes_named():
    assert bench_peers.parse_size("192x9p4") == (192, 9, 4)
    with pytest.raises(bench_peers.argparse.ArgumentTypeError, match="give width, depth and patch as in 192x9p4"):
        bench_peers.parse_size("192")
