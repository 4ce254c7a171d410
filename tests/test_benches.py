"""tests/bench/ in its smallest sizes: what is run, and what the tables hold; never how fast anything is."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import ablate_tracks
import bench_common
import bench_q1
import bench_q2
import gpu
from helpers.common.device import pick_compute
from helpers.vit.image_set import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:.*cannot import name '_C'.*")
RATES = ["contender", "setting", "unit", "n", "min", "median", "max"]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(bench, part, out, *options):
    """The rows of the table that a bench writes for one part."""
    bench.main(["--parts", part, "--out", str(out), "--repeats", "1", *options])
    rows, text = table(out / f"{bench.__name__}_{part}.csv"), (out / f"{bench.__name__}_{part}.md").read_text()
    assert f"| {' | '.join(rows[0])} |" in text and text.count("\n| ") == len(rows) + 2
    assert (
        text.startswith(f"`python tests/bench/{bench.__name__}.py --parts {part} ")
        and " cores, " in text
        and "torch " in text
    )
    for row in rows:
        if "min" in row:
            assert 0 < float(row["min"]) <= float(row["median"]) <= float(row["max"])
    return rows


def test_contenders_take_turns_and_the_first_turn_is_not_counted(tmp_path, capsys):
    turns, before = [], torch.get_num_threads()
    contenders = [
        bench_common.Contender(name, lambda name=name: turns.append((name, torch.get_num_threads())) or 5, threads)
        for name, threads in (("one", 1), ("other", None))
    ]
    rows = bench_common.take_turns("a setting", "images/s", contenders, 3)
    assert turns == 4 * [("one", 1), ("other", before)] and torch.get_num_threads() == before
    assert [list(row) for row in rows] == [RATES, RATES] and {row["n"] for row in rows} == {3}
    bench_common.report("name", "part", rows, tmp_path, ["--out", "a folder"])
    text = (tmp_path / "name_part.md").read_text()
    assert text == capsys.readouterr().out[:-1] and text.startswith("`python tests/bench/name.py --out 'a folder'`\n")
    assert [row["contender"] for row in table(tmp_path / "name_part.csv")] == ["one", "other"]


def test_spread_has_three_digits_or_more():
    assert bench_common.spread([1234.56, 0.12345, 9.8765]) == {"n": 3, "min": 0.123, "median": 9.88, "max": 1235}


def test_sizes_are_read_and_mistakes_named():
    assert bench_q1.parse_size("192x9p4") == (192, 9, 4)
    with pytest.raises(bench_q1.argparse.ArgumentTypeError, match="give width, depth and patch as in 192x9p4"):
        bench_q1.parse_size("192")


def test_variants_differ_in_what_they_say(q1):
    """Replaced functions are those of the notebook, changed settings are settings."""
    for variants in gpu.COMPARISONS.values():
        for changed, replaced in variants.values():
            assert not set(changed) - set(q1.RECIPE)
            assert all(hasattr(q1, name) for name in set(replaced) - {"beta2"})
    plain = gpu.notebook({"fresh_weights": "plain_init", "beta2": 0.5})
    found = bench_q1.load_images(None, False)
    run = gpu.new_run(plain, gpu.SMALL | {"batch_size": 16}, found, pick_compute())
    assert plain.fresh_weights is gpu.plain_init and {g["betas"] for g in run.optimizer.param_groups} == {(0.9, 0.5)}
    x = torch.randn(4, 3, 32, 32)
    sizes, first = gpu.stream(run.model, x), run.model.eval().embed(x)  # before and after each block
    expected = [first.pow(2).mean().sqrt().item(), run.model.blocks[0](first).pow(2).mean().sqrt().item()]
    assert [size for size, _ in sizes][:2] == pytest.approx(expected, abs=1e-3) and len(sizes) == 3


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders with 30 images of noise each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.slow
def test_q1_beside_what_people_use(tmp_path, images):
    rows = run(bench_q1, "augmentation", tmp_path, "--images", "16")
    assert len(rows) == 10 and list(rows[0]) == RATES
    sizes = ["--models", "32x1p16", "16x1p8", "--epoch-images", "64", "32", "--batch", "32", "--workers", "0"]
    rows = run(bench_q1, "epoch", tmp_path, *sizes)
    assert (
        len(rows) == 6 and len({row["contender"] for row in rows}) == 3 and len({row["setting"] for row in rows}) == 2
    )
    sizes = ["--accuracy-model", "16x1p16", "--minutes", "0.1", "--workers", "0", "--train-size", "200"]
    rows = run(bench_q1, "accuracy", tmp_path, "--data-root", str(images), "--seeds", "0", "1", *sizes)
    assert [row["seed"] for row in rows] == ["0"] * 3 + ["1"] * 3 and len({row["contender"] for row in rows}) == 3
    assert all(0 <= float(row["EMA, %"]) <= 100 and int(row["images seen"]) > 0 for row in rows)
    assert "60 held out" in rows[0]["setting"]


@pytest.mark.slow
def test_q2_beside_what_people_use(tmp_path, monkeypatch):
    # here, since a process of its own takes half a minute to import what is imported already
    monkeypatch.setattr(bench_q2, "in_its_own_process", lambda _, job, **_env: bench_q2.JOBS[job.pop("part")](**job))
    tiny = ["--sizes", "tiny", "--image-sizes", "160x120", "--phrases", "2"]
    rows = run(bench_q2, "stages", tmp_path, *tiny)
    assert len(rows) == 2 and all(float(row["sam2_encode"]) > 0 and int(row["peak MiB"]) > 50 for row in rows)
    rows = run(bench_q2, "phrases", tmp_path, *tiny, "--boxes", "2")
    assert [row["masks"] for row in rows] == ["4", "4"]
    rows = run(bench_q2, "folder", tmp_path, *tiny, "--images", "3", "--repeats", "1", "--batch-size", "2")
    assert [row["contender"][-12:] for row in rows] == ["batch_size=1", "batch_size=2", "batch_size=4", "er the other"]
    rows = run(bench_q2, "tracking", tmp_path, *tiny, "--frames", "3", "--objects", "2", "--video-size", "128x96")
    assert list(rows[0])[:7] == RATES and [row["equal, %"] for row in rows] == ["100.0", "100.0"]
    rows = run(bench_q2, "length", tmp_path, *tiny, "--lengths", "3")
    assert [row["objects"] for row in rows] == ["2"]
    monkeypatch.setattr(bench_q2, "WAITING", {"one way": {}})
    rows = run(bench_q2, "threads", tmp_path, *tiny, "--frames", "1")
    assert [row["beside"] for row in rows] == ["0 busy processes", f"{os.cpu_count()} busy processes"]


@pytest.mark.slow
def test_masks_follow_the_objects(tmp_path):
    """Equal masks would say little if all of them were empty."""
    boxes = bench_q2.draw_clip(tmp_path, 4, 96, 128, 1)
    masks = bench_q2.track_lazily(bench_q2.load_sam2(bench_q2.TINY, pick_compute()), tmp_path, boxes)
    assert masks.shape == (4, 1, 96, 128) and masks.dtype == bool and masks.any((2, 3)).all()
    assert np.abs(np.array(bench_q2.mask_box(masks[0, 0])) - boxes[0]).max() < 8


SMALL = ["--small", "--minutes", "600", "--set", "batch_size=16", "train_size=64", "val_size=100"]


@pytest.mark.slow
@pytest.mark.parametrize("part", list(gpu.COMPARISONS))
def test_comparisons_train_each_variant_on_equally_many_images(tmp_path, part):
    names = list(gpu.COMPARISONS[part])
    few = [*names[:2], *(name for name in names[2:] if "ViT" in name)]
    given = ["--part", part, *SMALL, "--epochs", "1", "--out", str(tmp_path)]
    gpu.main([*given, "--only", *few[:1]])
    gpu.main([*given, "--only", *few])  # goes on from what the table has
    rows = table(tmp_path / f"{part}.csv")
    assert [row["variant"] for row in rows] == few and {row["images"] for row in rows} == {"64"}
    assert all(0 <= float(row["val"]) <= 100 and float(row["stream"]) > 0 for row in rows)
    logged = [json.loads(line) for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()]
    assert [line["variant"] for line in logged] == few and all(len(line["stream"]) == 3 for line in logged)


@pytest.mark.slow
def test_speed_a_long_run_and_how_hard_its_images_are(tmp_path):
    gpu.main(["--part", "engine", "--small", "--out", str(tmp_path)])
    (row,) = table(tmp_path / "engine.csv")
    assert row["model"] == "48x2 p8" and row["way"] == "eager" and 0 < float(row["min"]) <= float(row["max"])
    given = ["--part", "train", *SMALL, "epochs=2", "--out", str(tmp_path)]
    for _ in range(2):  # the second time resumed where it ended
        gpu.main(given)
        summary = json.loads((tmp_path / "run_summary.json").read_text())
        assert summary["steps"] == 8 and summary["stopped_by"] == "epochs"
        assert 0 <= summary["test_accuracy_tta"] <= 100
    half = torch.load(tmp_path / "best_fp16.pth", weights_only=True)["model"]
    assert {value.dtype for value in half.values()} == {torch.float16}
    rows = run(bench_q1, "hardness", tmp_path, "--weights", str(tmp_path / "best_fp16.pth"))
    assert [row["beside crop and flip"] for row in rows] == 2 * ["none", "RandAugment", "erasing", "both"]
    assert all(0 <= float(row[f"{who}, % right"]) <= 100 for row in rows for who in ("q1", "timm"))


# ---- the tracker's rules ----


def test_a_rule_is_compared_object_by_object():
    """By hand: two objects, of which one is worse and gets a second id without the rule."""
    rows = [
        {
            "left out": rule,
            "clip": (0, i),
            "object": (0, i, 0),
            "j": j,
            "switched": switched,
            "late": i == 1,
            "delay": 7,
        }
        for rule, values in ((ablate_tracks.ALL, (0.9, 0.8)), ("look back", (0.9, 0.6)))
        for i, (j, switched) in enumerate(zip(values, (False, rule == "look back"), strict=True))
    ]
    one, other = ablate_tracks.summary(rows, every=6)
    assert (one["mean J"], one["difference"], one["clips that differ"]) == (0.85, 0, 0)
    assert (other["mean J"], other["difference"], other["its spread"]) == (0.75, -0.1, 0.1)
    assert other["clips that differ"] == 1 and other["ids that change, %"] == 50
    assert other["late ones found in time, %"] == 0


@pytest.mark.slow
def test_replayed_tracks_are_those_of_the_tracker(monkeypatch):
    """And every rule that is left out is put back."""
    monkeypatch.setattr(ablate_tracks.mv, "FRAMES", 24)
    monkeypatch.setattr(ablate_tracks.tracks, "VideoTracker", ablate_tracks.VideoTracker)
    ablate_tracks.start_worker()
    again = [*ablate_tracks.RULES, ablate_tracks.ALL]
    rows = ablate_tracks.measure_clip((5, 0), 6, again)
    objects = len({row["object"] for row in rows})
    assert len(rows) == len(again) * objects and rows[:objects] == rows[-objects:]
    ablate_tracks.tracks.VideoTracker = ablate_tracks.VideoTracker
    plain = ablate_tracks.measure_clip((5, 0), 6, [ablate_tracks.ALL])
    assert plain == rows[:objects]
