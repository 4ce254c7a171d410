"""The notebook as a user runs it, and the promises that its form makes."""

import ast
import builtins
import csv
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import nbload
import nbrun
from helpers.vit import data
from helpers.vit.config import OTHER_SETTINGS

ROOT = nbload.ROOT
TINY = {"amp": False, "embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "batch_size": 64}
SHORT = {"epochs": 2, "val_size": 100, "max_minutes": 5}
# fmt: off
Q1_CELL = [  # what people change; the others are in the recipe's table alone
    "data_root", "out_dir", "preset", "download", "seed", "resume", "checkpoint", "pictures", "all_gpus", "max_minutes",
    "epochs", "lr",
]
Q1_PARAMETERS = [
    "data_root", "out_dir", "preset", "download", "seed", "resume", "init_weights", "checkpoint", "pictures",
    "max_minutes", "compile", "img_size", "patch_size", "patch_stride",
    "embed_dim", "depth", "num_heads", "mlp_ratio", "pool", "drop_path", "epochs",
    "batch_size", "lr", "min_lr", "weight_decay", "warmup_epochs", "layer_decay", "clip_grad", "randaug_n", "randaug_m",
    "erase_prob", "mixup", "cutmix", "mix_off_epochs", "label_smoothing", "ema_decay", "amp", "val_size", "tta",
    "train_size",
]
SUMMARY_KEYS = [
    "dataset", "config", "parameters", "epochs_run", "seconds", "images_per_second", "best_val_accuracy",
    "test_accuracy", "test_accuracy_tta", "per_class_accuracy", "selected_weights", "device", "precision", "versions",
    "seed", "stopped_by",
]
# fmt: on
FIGURES = ["data", "augmentation", "schedule", "curves", "classes", "calibration", "mistakes", "attention"]


def papermill(notebook: str, out: Path, cwd: Path = ROOT, **parameters) -> subprocess.CompletedProcess:
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return nbrun.execute(notebook, out, parameters | {"out_dir": out}, cwd, environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """q1 without a data set, everything in the recipe turned on, in a folder of its own."""
    out = tmp_path_factory.mktemp("q1") / "out"
    recipe = {
        "randaug_n": 2,
        "erase_prob": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "drop_path": 0.1,
        "mix_off_epochs": 1,
        "label_smoothing": 0.1,
    }
    everything = TINY | SHORT | recipe | {"train_size": 1000}
    done = papermill("q1.ipynb", out, download=False, cwd=tmp_path_factory.mktemp("elsewhere"), **everything)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_q1_writes_what_it_promises(run):
    summary = json.loads((run / "run_summary.json").read_text())
    assert not set(SUMMARY_KEYS) - set(summary)
    assert summary["dataset"].keys() >= {"name", "source", "train", "val", "test"}
    assert (summary["dataset"]["train"], summary["dataset"]["val"]) == (1000, 100) and "synthetic" in summary[
        "dataset"
    ]["name"]
    assert set(Q1_PARAMETERS) <= set(summary["config"]) and summary["config"]["mixup"] == 0.8
    assert summary["epochs_run"] == 2 and summary["stopped_by"] == "epochs" and summary["seconds"] > 0
    assert (
        summary["selected_weights"] in ("ema", "raw")
        and summary["precision"] == "fp32"
        and summary["skipped_steps"] == 0
    )
    assert 0 <= summary["test_accuracy"] <= 100 and 0 <= summary["test_accuracy_tta"] <= 100
    assert set(summary["per_class_accuracy"]) == set(data.load_images(None, False, default_roots=()).classes)
    assert summary["images_per_second"] > 10 and summary["versions"]["torch"] == torch.__version__.split("+")[0]
    mean = np.mean(list(summary["per_class_accuracy"].values()))
    assert mean == pytest.approx(summary["test_accuracy"], abs=0.5)  # the classes are balanced


@pytest.mark.slow
def test_q1_history_has_a_row_an_epoch(run):
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert all(
        row.keys() >= {"loss", "val_accuracy", "ema_accuracy", "lr", "images_per_second", "seconds"} for row in rows
    )
    best = max(float(row[key]) for row in rows for key in ("val_accuracy", "ema_accuracy"))
    assert json.loads((run / "run_summary.json").read_text())["best_val_accuracy"] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_q1_figures_are_pictures_with_something_on_them(run, name):
    pixels = np.asarray(Image.open(run / f"{name}.png").convert("L"))
    assert min(pixels.shape) > 100 and pixels.std() > 5
    assert (run / f"{name}.png").stat().st_size < 1_000_000


@pytest.mark.slow
def test_q1_says_loudly_that_shapes_are_not_cifar(run):
    assert "not cifar-10" in nbrun.printed(run).lower()


@pytest.mark.slow
def test_q1_best_checkpoint_is_self_contained_and_evaluates_to_the_same(run, q1, tmp_path):
    best = torch.load(run / "best_vit_cifar10.pth", weights_only=True)
    assert best.keys() >= {"model", "config", "mean", "std"}
    summary = json.loads((run / "run_summary.json").read_text())
    # Nothing of the model is given: its measures come from the file. Another seed must not change what is evaluated.
    done = papermill(
        "q1.ipynb", tmp_path, tmp_path, download=False, checkpoint=run / "best_vit_cifar10.pth", tta=0, amp=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((tmp_path / "evaluation" / "run_summary.json").read_text())
    assert again["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert again["test_accuracy_tta"] is None and again["parameters"] == summary["parameters"]
    assert again["run"] == summary["run"]
    assert not (tmp_path / "last.pth").exists() and not (tmp_path / "best_vit_cifar10.pth").exists()


@pytest.mark.slow
def test_q1_resumes_what_it_finds(run, tmp_path):
    for name in ("last.pth", "best_vit_cifar10.pth"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / "run_summary.json").read_text())["config"]
    same = {
        name: config[name]
        for name in Q1_PARAMETERS
        if config[name] is not None and name not in ("out_dir", "epochs", "resume", "data_root")
    }
    done = papermill("q1.ipynb", tmp_path, tmp_path, resume=True, epochs=3, **same)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed after 30 steps" in nbrun.printed(tmp_path)
    assert json.loads((tmp_path / "run_summary.json").read_text())["epochs_run"] == 3
    refused = papermill("q1.ipynb", tmp_path, tmp_path, resume=True, epochs=3, **same | {"lr": 0.5})
    assert refused.returncode and "lr=" in refused.stderr and "resume=False" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"checkpoint": "/nowhere/best.pth"}, "/nowhere/best.pth: no such checkpoint"),
        ({"patch_size": 5}, "patch_size=5: expected a divisor of img_size"),
        ({"preset": "fast"}, "preset='fast'"),
        ({"epoch": 3}, "'epoch' is no setting: did you mean 'epochs'?"),
    ],
)
def test_q1_complains_clearly(tmp_path, parameters, complaint):
    done = papermill("q1.ipynb", tmp_path, download=False, **parameters)
    assert done.returncode and complaint in done.stderr


@pytest.mark.slow
def test_q1_runs_as_a_script(tmp_path):
    parameters = TINY | SHORT | {"epochs": 1, "train_size": 200, "tta": 0, "download": False}
    nbrun.export("q1.ipynb", tmp_path, parameters | {"out_dir": tmp_path / "out"})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "prepared.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "run_summary.json").is_file()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, in a folder for each and no split."""
    root, found = tmp_path_factory.mktemp("digits"), load_digits()
    for i, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(root / str(label) / f"{i}.png")
    return root


@pytest.mark.slow
def test_q1_learns_classes_of_ones_own(digits, tmp_path):
    """Chance is 10 %; logistic regression on the same pixels reaches some 96 %."""
    small = {"amp": False, "img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4, "drop_path": 0}
    schedule = {"epochs": 25, "batch_size": 32, "lr": 2e-3, "val_size": 150, "max_minutes": 2, "tta": 0}
    done = papermill("q1.ipynb", tmp_path, tmp_path, data_root=digits, preset="quick", **small, **schedule)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert summary["dataset"]["train"] + summary["dataset"]["val"] + summary["dataset"]["test"] == 1797
    assert summary["per_class_accuracy"].keys() == set("0123456789") and summary["test_accuracy"] > 70
    assert "a fifth" in " ".join(summary["dataset"]["notes"]) and "1,797" in " ".join(summary["dataset"]["notes"])


# ------------------------------------------------------------------------------------------ its form


def test_parameters_are_literals_under_their_promised_names():
    (cell,) = [cell for cell in nbload.code_cells("q1.ipynb") if "parameters" in cell["metadata"].get("tags", [])]
    assignments = ast.parse(cell["source"]).body
    names = [node.targets[0].id for node in assignments]
    assert names == Q1_CELL
    assert not set(Q1_PARAMETERS) - set(nbload.load("q1.ipynb").RECIPE) - {*OTHER_SETTINGS, "preset"}
    for node in assignments:
        ast.literal_eval(node.value)


FORM = {"q1.ipynb": (35, 30, 12), "q2.ipynb": (30, 25, 10)}  # longest cell, cells, median


@pytest.mark.parametrize("name", ["q1.ipynb", "q2.ipynb"])
def test_a_notebook_keeps_to_its_form(name):
    notebook = nbformat.read(ROOT / name, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    lengths = [len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code"]
    longest, count, median = FORM[name]
    assert max(lengths) <= longest and len(lengths) <= count, (max(lengths), len(lengths))
    assert statistics.median(lengths) <= median, statistics.median(lengths)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
    assert (ROOT / name).stat().st_size < 4_000_000


def test_both_notebooks_find_the_project_in_the_same_few_lines():
    one, other = (nbload.code_cells(name)[0]["source"] for name in FORM)
    assert one == other and len(one.splitlines()) <= 20


@pytest.mark.parametrize(("name", "figures"), [("q1.ipynb", len(FIGURES)), ("q2.ipynb", 6)])
def test_the_committed_figures_are_small(name, figures):
    notebook = nbformat.read(ROOT / name, 4)
    pictures = [
        o.data["image/png"] for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= figures
    assert all(len(picture) < 1_400_000 for picture in pictures)  # base64 of 1 MB
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert all(len(o.data.get("text/plain", "")) < 500 for o in shown)  # which a log shows in place of pictures


def test_the_training_of_q1_can_be_read_at_a_sitting():
    """From the first line of the recipe's section to the cell that trains."""
    cells = nbformat.read(ROOT / "q1.ipynb", 4).cells
    headings = [i for i, cell in enumerate(cells) if cell.source.startswith("## ")]
    first, last = (next(i for i in headings if cells[i].source.startswith(f"## {n}")) for n in (4, 6))
    lengths = [len(cell.source.splitlines()) for cell in cells[first:last] if cell.cell_type == "code"]
    assert sum(lengths) <= 180 and max(lengths) <= 25, (sum(lengths), lengths)


@pytest.mark.parametrize("name", ["q1.ipynb", "q2.ipynb"])
def test_functions_of_a_notebook_take_arguments_not_globals(name):
    """A name that a function reads is a builtin, an import, a definition or a constant: just those are loaded."""
    defined = vars(nbload.load(name))
    for cell in nbload.code_cells(name):
        body = ast.parse(cell["source"]).body
        methods = [node for part in body if isinstance(part, ast.ClassDef) for node in part.body]
        for function in (node for node in body + methods if isinstance(node, ast.FunctionDef)):
            nodes = list(ast.walk(function))
            names = [node for node in nodes if isinstance(node, ast.Name)]
            own = {node.arg for node in nodes if isinstance(node, ast.arg)}
            own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
            own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ExceptHandler)}
            own |= {part.asname or part.name for node in nodes if isinstance(node, ast.Import) for part in node.names}
            read = {node.id for node in names if isinstance(node.ctx, ast.Load)} - own
            assert not {n for n in read if n not in defined and n not in dir(builtins)}, function.name


@pytest.mark.slow
def test_executed_figures_show_where_they_come_from(run):
    """The footer of a figure: dark text on white at the bottom, absent when the figure is cut above it."""
    pixels = np.asarray(Image.open(run / "curves.png").convert("L"))
    assert (pixels[-25:] < 160).any()
    header = (run / "curves.png").read_bytes()[16:24]
    assert struct.unpack(">II", header) == (pixels.shape[1], pixels.shape[0])
