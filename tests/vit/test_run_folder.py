"""Two runs and one folder: none reads the other's files as its own, and none loses its own."""

import csv
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import nbrun
from helpers.vit import best_weights, run_folder
from helpers.vit import checkpoint as ckpt
from nbload import ROOT
from test_recipe import make_run
from train_claimed import DATASET

DRIVER = Path(__file__).with_name("train_claimed.py")
FRESH = SimpleNamespace(resume=False, checkpoint=None)


@pytest.fixture(autouse=True)
def unlocked():
    yield
    run_folder.release()


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ids_in(folder: Path) -> set:
    """The ids in the files of a run."""
    ids = {torch.load(folder / name, weights_only=True)["run"] for name in (ckpt.BEST, ckpt.LAST)}
    return ids | {row["run"] for row in rows_of(folder / "history.csv")}


def trained(q1, out, **changes):
    run = make_run(q1, n=160, **changes)
    run_folder.claim(out, FRESH)
    q1.train(run, out)
    return run


def test_all_files_carry_the_id_of_their_run(q1, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = trained(q1, tmp_path)
    assert len(one.id) == 12 and int(one.id, 16) >= 0 and ids_in(tmp_path) == {one.id}
    assert make_run(q1).id != make_run(q1).id  # of the same seed
    torch.set_rng_state(state)
    before = torch.get_rng_state()
    run_folder.new_id()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_keeps_its_id_wherever_it_goes_on(q1, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one = trained(q1, tmp_path / "a")
    two = make_run(q1, n=160, epochs=4, resume=str(tmp_path / "a" / "last.pth"), init_weights=None, checkpoint=None)
    run_folder.claim(tmp_path / "b", two.cfg)
    ckpt.begin(two, tmp_path / "b")
    q1.train(two, tmp_path / "b")
    assert two.id == one.id and ids_in(tmp_path / "b") == {one.id} and two.step == 40
    assert len(rows_of(tmp_path / "b" / "history.csv")) == 4
    assert len(rows_of(tmp_path / "a" / "history.csv")) == 2  # nothing is written where it came from
    # in its own folder it goes on as well, and nothing is moved
    three = make_run(q1, n=160, epochs=5, resume=True, init_weights=None, checkpoint=None)
    run_folder.claim(tmp_path / "b", three.cfg)
    ckpt.begin(three, tmp_path / "b")
    q1.train(three, tmp_path / "b")
    assert three.step == 50 and not (tmp_path / "b" / "earlier").exists()


def test_training_again_in_the_same_notebook_keeps_what_was_trained(q1, tmp_path):
    first = trained(q1, tmp_path)
    second = make_run(q1, n=160, resume=False, init_weights=None, checkpoint=None)
    ckpt.begin(second, tmp_path)
    q1.train(second, tmp_path)
    assert ids_in(tmp_path) == {second.id} and ids_in(tmp_path / "earlier" / first.id) == {first.id}


def test_a_finished_run_is_kept_and_told(q1, tmp_path, capsys):
    one = trained(q1, tmp_path)
    (tmp_path / "curves.png").write_bytes(b"its figure")
    (tmp_path / "mine.txt").write_text("not a file of a run")
    capsys.readouterr()
    two = trained(q1, tmp_path, lr=1e-9, min_lr=0)
    said = capsys.readouterr().out
    kept = tmp_path / "earlier" / one.id
    best = max(float(row[name]) for row in rows_of(kept / "history.csv") for name in ("val_accuracy", "ema_accuracy"))
    assert f"had the run {one.id} (2 epochs, {best:.2f} % of the held-out images right" in said and str(kept) in said
    assert ids_in(kept) == {one.id} and ids_in(tmp_path) == {two.id}
    assert (kept / "curves.png").is_file() and (tmp_path / "mine.txt").is_file()
    three = trained(q1, tmp_path)
    assert ids_in(tmp_path / "earlier" / two.id) == {two.id} and ids_in(tmp_path) == {three.id}


def test_files_from_before_runs_had_an_id_are_kept_by_their_date(tmp_path, capsys):
    (tmp_path / "best_vit_cifar10.pth").write_bytes(b"old")
    os.utime(tmp_path / "best_vit_cifar10.pth", (0, 1e9))
    run_folder.claim(tmp_path, FRESH)
    (kept,) = (tmp_path / "earlier").iterdir()
    assert kept.name.startswith("2001-09-") and (kept / "best_vit_cifar10.pth").read_bytes() == b"old"
    assert "(no history, 2001-09-" in capsys.readouterr().out
    (tmp_path / "history.csv").write_text("run,epoch,val_accuracy,ema_accuracy\n../../x,1,2,3\n")
    run_folder.claim(tmp_path, FRESH)
    assert not (tmp_path.parent / "x").exists() and len([*(tmp_path / "earlier").iterdir()]) == 2


def test_a_folder_in_use_is_refused(tmp_path):
    """Another open file holds the lock here, as another process would."""
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(RuntimeError, match="in use by another process that trains: give another out_dir"):
        run_folder.claim(tmp_path, FRESH)
    fcntl.flock(other, fcntl.LOCK_UN)
    run_folder.claim(tmp_path, FRESH)
    run_folder.claim(tmp_path, FRESH)  # cells that run again are not a second one
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run_folder.release()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    run_folder.claim(tmp_path, FRESH)


def test_a_run_resumed_over_anothers_best_does_not_take_it_for_its_own(q1, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = trained(q1, tmp_path / "other")
    run = trained(q1, tmp_path)
    (tmp_path / "other" / ckpt.BEST).replace(tmp_path / ckpt.BEST)
    resumed = make_run(q1, n=160, epochs=3, resume=True, init_weights=None, checkpoint=None)
    ckpt.begin(resumed, tmp_path)
    assert resumed.best is None and f"is of another run ({other.id}, not {run.id})" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=f"run {run.id} has no weights yet"):
        best_weights.load_best(tmp_path / ckpt.BEST, DATASET, resumed)
    q1.train(resumed, tmp_path)
    assert ids_in(tmp_path) == {run.id}
    (kept,) = (tmp_path / "earlier").glob(f"*/{ckpt.BEST}")
    assert torch.load(kept, weights_only=True)["run"] == other.id


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out_dir='.*file': nothing can be written there .*another"):
        run_folder.check_writable(tmp_path / "file")
    run_folder.check_writable(tmp_path / "new" / "folder")
    assert not [*(tmp_path / "new" / "folder").iterdir()]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_folder.check_writable(tmp_path)


# ------------------------------------------------------------------------------------------ processes, notebooks


def start(out: Path, seed: int, epochs: int) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(DRIVER), str(out), str(seed), str(epochs)]
    return subprocess.Popen(command, cwd=DRIVER.parent, env=os.environ | {"PYTHONUNBUFFERED": "1"}, **pipes)


@pytest.mark.slow
def test_two_runs_at_once_and_one_after_a_kill(tmp_path):
    first = start(tmp_path, 0, 100_000)
    run_id = next(line for line in iter(first.stdout.readline, "") if line.startswith("run ")).split()[1]
    next(line for line in iter(first.stdout.readline, "") if line.startswith("epoch 1:"))
    output, errors = (second := start(tmp_path, 1, 2)).communicate(timeout=300)
    assert second.returncode and "is in use by another process" in errors and "epoch" not in output
    assert ids_in(tmp_path) == {run_id}
    first.kill()
    first.communicate()
    output, errors = (second := start(tmp_path, 1, 2)).communicate(timeout=300)  # the lock ended with its process
    assert second.returncode == 0, errors
    assert ids_in(tmp_path / "earlier" / run_id) == {run_id}
    (tested,) = [line.split() for line in output.splitlines() if line.startswith("tested")]
    own = [line.split()[1] for line in output.splitlines() if line.startswith("run ")]
    assert ids_in(tmp_path) == {*own} and tested[1] == own[0]
    assert tested[2] == tested[3]  # the accuracy of the file is that of its weights


@pytest.mark.slow
def test_run_all_in_the_folder_of_a_finished_run_then_an_evaluation(tmp_path):
    tiny = {"amp": False, "embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "train_size": 200, "tta": 0}
    tiny |= {"epochs": 1, "val_size": 100, "download": False, "out_dir": tmp_path / "out"}
    summaries, out = [], tmp_path / "out"
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photos" / "a photo.png")
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    worse = {"lr": 1e-9, "min_lr": 0, "pictures": tmp_path / "photos"}
    for changes in ({}, worse, {"checkpoint": out / ckpt.BEST}):
        done = nbrun.execute("q1.ipynb", tmp_path, tiny | changes, tmp_path, environment)
        assert done.returncode == 0, done.stderr[-3000:]
        summaries.append(json.loads((out / "run_summary.json").read_text()))
        if changes == worse:
            said = nbrun.printed(tmp_path)
    first, second = summaries[:2]
    kept = out / "earlier" / first["run"]
    assert json.loads((kept / "run_summary.json").read_text()) == first
    assert {"data.png", "curves.png", "attention.png"} <= {path.name for path in kept.iterdir()}
    assert f"had the run {first['run']}" in said and re.search(r"/photos/a photo\.png: \w+ \d+\.\d %, ", said, re.M)
    assert (out / "pictures.png").is_file() and len(rows_of(out / "predictions.csv")) == 1
    assert ids_in(kept) == {first["run"]} and ids_in(out) == {second["run"]}
    # the evaluation has written below the folder, and the files of the training are as they were
    evaluated = json.loads((out / "evaluation" / "run_summary.json").read_text())
    assert evaluated["run"] == second["run"] and evaluated["test_accuracy"] == second["test_accuracy"]
    assert summaries[2] == second and "To classify pictures of your own" in nbrun.printed(tmp_path)
