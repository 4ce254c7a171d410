"""tests/bench/gpu.py in its smallest size: what a GPU will be asked runs, and its tables hold what they should."""

import csv
import json

import pytest
import torch

import gpu

TINY = ["--small", "--limit", "300", "--minutes", "5"]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("part", ["recipe", "rates", "choices", "quick"])
def test_comparisons_train_each_variant_on_equally_many_images(tmp_path, part, monkeypatch):
    names = list(gpu.COMPARISONS[part])
    few = [*names[:2], *(name for name in names[2:] if "ViT" in name)]
    given = ["--part", part, *TINY, "--epochs", "1", "--out", str(tmp_path), "--set", "batch_size=16", "train_size=64"]
    gpu.main([*given, "--only", *few[:1]])
    gpu.main([*given, "--only", *few])  # goes on from what the table has
    rows = table(tmp_path / f"{part}.csv")
    assert [row["variant"] for row in rows] == few and {row["images"] for row in rows} == {"64"}
    assert all(0 <= float(row["val"]) <= 100 and float(row["stream"]) > 0 for row in rows)
    assert {row["device"] for row in rows} == {gpu.pick_compute().name}
    logged = [json.loads(line) for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()]
    assert [line["variant"] for line in logged] == few and all(len(line["stream"]) == 3 for line in logged)


def test_variants_differ_in_what_they_say(q1):
    """Replaced functions are those of the notebook, changed settings are settings."""
    for variants in gpu.COMPARISONS.values():
        for changed, replaced in variants.values():
            assert not set(changed) - set(q1.RECIPE)
            assert all(hasattr(q1, name) for name in set(replaced) - {"beta2"})
    plain = gpu.notebook({"init_weights": "plain_init", "beta2": 0.5})
    run = gpu.new_run(plain, gpu.SMALL | {"batch_size": 16}, gpu.read_images(None, 100), gpu.pick_compute())
    assert plain.init_weights is gpu.plain_init and {g["betas"] for g in run.optimizer.param_groups} == {(0.9, 0.5)}


def test_the_stream_is_measured_before_and_after_each_block(q1):
    found = gpu.read_images(None, 100)
    run = gpu.new_run(q1, gpu.SMALL | {"batch_size": 16}, found, gpu.pick_compute())
    x, sizes = torch.randn(4, 3, 32, 32), gpu.stream(run.model, torch.zeros(1, 3, 32, 32))
    first = run.model.eval().embed(x)
    expected = [first.pow(2).mean().sqrt().item(), run.model.blocks[0](first).pow(2).mean().sqrt().item()]
    assert [size for size, _ in gpu.stream(run.model, x)][:2] == pytest.approx(expected, abs=1e-3)
    assert len(sizes) == 3 and all(largest >= size for size, largest in sizes)


def test_speed_and_a_long_run(tmp_path):
    gpu.main(["--part", "engine", *TINY, "--out", str(tmp_path)])
    (row,) = table(tmp_path / "engine.csv")
    assert row["model"] == "48x2 p8" and float(row["step_ms"]) > 0 and row["way"] == "eager"
    given = ["--part", "train", *TINY, "--out", str(tmp_path), "--set", "batch_size=16", "epochs=2", "train_size=64"]
    gpu.main(given)
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert summary["steps"] == 8 and summary["stopped_by"] == "epochs" and 0 <= summary["test_accuracy_tta"] <= 100
    half = torch.load(tmp_path / "best_fp16.pth", weights_only=True)["model"]
    assert {value.dtype for value in half.values()} == {torch.float16}
    gpu.main(given)  # resumed where it ended
    assert json.loads((tmp_path / "run_summary.json").read_text())["steps"] == 8


def test_how_hard_augmented_images_are(tmp_path):
    """Of drawn shapes, to a model trained on them for a moment; the table is what matters here."""
    tiny = ["--out", str(tmp_path), "--set", "batch_size=16", "epochs=1", "train_size=64"]
    gpu.main(["--part", "train", *TINY, *tiny])
    gpu.main(["--part", "hardness", *TINY, "--weights", str(tmp_path / "best_fp16.pth"), "--out", str(tmp_path)])
    rows = table(tmp_path / "hardness.csv")
    assert len(rows) == 8 and [row["beside crop and flip"] for row in rows[:4]] == [
        "none",
        "RandAugment",
        "erasing",
        "both",
    ]
    assert all(0 <= float(row[f"{who}, % right"]) <= 100 for row in rows for who in ("q1", "timm"))


def test_the_figures_of_what_was_measured(tmp_path):
    gpu.main(["--part", "figures", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.png", "gpu_run.png"}
