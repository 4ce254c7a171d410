"""Files that are whole or absent, checkpoints that execute nothing, random state that continues."""

import errno
import json
import math
import os
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.common.device import seed_everything
from helpers.vit import best_weights
from helpers.vit import checkpoint as ckpt
from helpers.vit.config import MEASURES
from test_recipe import Poisoned, make_run


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), ckpt.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with ckpt.atomic_path(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    with ckpt.atomic_path(tmp_path / "new" / "a.bin") as temporary:
        temporary.write_bytes(b"1")
        assert not (tmp_path / "new" / "a.bin").exists()
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"1"


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, capsys):
    path = tmp_path / "last.pth"
    assert ckpt.try_save({"step": 1}, path)

    def full(content, target):
        target.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert ckpt.try_save({"step": 2}, path) is False
    said = capsys.readouterr().out
    assert re.search(r"warning: .*last\.pth could not be written \([\d,]+ MiB free there\): .*No space left", said)
    assert ckpt.load_checkpoint(path, "step") == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.pth"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if protocol == "torch":
        torch.save({"model": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Malicious()}))
    with pytest.raises(ValueError, match=r"bad\.pth") as caught:
        ckpt.load_checkpoint(path)
    assert "weights_only" not in str(caught.value)  # no advice to switch it off
    assert not (tmp_path / "owned").exists()


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "a.pth"
    advice = ".*; give another file as checkpoint=, .* resume=False$"
    looked = re.escape(f"(looked for from {Path.cwd()})")
    with pytest.raises(FileNotFoundError, match=rf"a\.pth: no such checkpoint {looked}{advice}"):
        ckpt.load_checkpoint(path)
    ckpt.try_save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=f"has no model, config{advice}"):
        ckpt.load_checkpoint(path, "model", "config")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"a\.pth \([\d,]+ bytes\) is truncated or not a checkpoint{advice}"):
        ckpt.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=f"not a checkpoint of this notebook{advice}"):
        ckpt.load_checkpoint(path, "model")


def draw():
    return random.random(), torch.rand(1).item()


def test_random_state_continues_through_a_file(tmp_path):
    seed_everything(3)
    draw()
    ckpt.try_save(ckpt.get_rng_state(), tmp_path / "rng.pth")
    expected = [draw() for _ in range(3)]
    seed_everything(4)
    ckpt.set_rng_state(ckpt.load_checkpoint(tmp_path / "rng.pth"))
    assert [draw() for _ in range(3)] == expected
    seed_everything(3)
    draw()
    assert [draw() for _ in range(3)] == expected


def test_a_resumed_run_goes_on_as_the_saved_one(q1, tmp_path):
    run, other = make_run(q1), make_run(q1)
    x, y = next(q1.batches(run, torch.arange(16)[None]))
    for _ in range(2):
        q1.train_step(run, x, y)
    run.step, run.history = 2, [{"loss": 1.0}]
    ckpt.save_last(run, tmp_path / "last.pth")
    ckpt.resume(other, tmp_path / "last.pth")
    assert (other.step, other.history, other.id) == (2, [{"loss": 1.0}], run.id)
    for a, b in ((run, other), (run, other)):  # the same, and so after another step
        assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
        assert all(torch.equal(v, b.ema.state_dict()[k]) for k, v in a.ema.state_dict().items())
        q1.train_step(a, x, y), q1.train_step(b, x, y)


def test_resuming_says_what_it_does(q1, tmp_path, capsys):
    run = make_run(q1)
    ckpt.resume(run, tmp_path / "last.pth")
    assert "there is no" in capsys.readouterr().out
    run.step = 7
    ckpt.save_last(run, tmp_path / "last.pth")
    other = make_run(q1, precision="fp16")  # on another kind of device
    ckpt.resume(other, tmp_path / "last.pth")
    assert other.step == 7 and other.scaler.get_scale() == 2.0**16
    assert "resumed after 7 steps" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"last\.pth is of a run with depth=2 \(now 3\)"):
        ckpt.resume(make_run(q1, depth=3), tmp_path / "last.pth")


def images(classes, source="data", held_out=False):
    return SimpleNamespace(
        classes=classes, source=source, held_out=held_out, train_images=torch.zeros(3, dtype=torch.uint8)
    )


def stored(**changes):
    """What a checkpoint holds, as far as it is looked at."""
    content = dict.fromkeys(("weights", "epoch", "val_accuracy"), 0) | {"classes": ["cat", "dog"], "run": "a" * 12}
    content |= {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1), "model": {"w": torch.zeros(2)}}
    return content | {"config": dict.fromkeys(MEASURES, 1)} | changes


def test_weights_to_be_tested_are_of_these_classes_and_of_this_run(tmp_path, capsys):
    ckpt.try_save(stored(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth knows .*cat, dog; .* in data show car: set data_root to"):
        best_weights.load_best(tmp_path / "other.pth", images(["car"]), None)
    with pytest.raises(RuntimeError, match="run bbb has no weights yet"):
        best_weights.load_best(tmp_path / "other.pth", images(["cat", "dog"]), SimpleNamespace(id="bbb", best=None))
    assert best_weights.load_best(tmp_path / "other.pth", images(["cat", "dog"]), None)["classes"] == ["cat", "dog"]
    assert not capsys.readouterr().out
    best_weights.load_best(tmp_path / "other.pth", images(["cat", "dog"], held_out=True), None)
    assert "warning: these test images" in capsys.readouterr().out


BROKEN = {
    r"is not of this notebook's model: its config has no pool": {"config": dict.fromkeys({*MEASURES} - {"pool"}, 1)},
    r"1 of 2 weights are not finite \(b\): train anew": {"model": {"a": torch.zeros(1), "b": torch.tensor([math.inf])}},
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, said):
    ckpt.try_save(stored(**BROKEN[said]), tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=rf"bad\.pth:? {said}"):
        best_weights.load_best(tmp_path / "bad.pth", images(["cat", "dog"]), None)


def test_images_are_of_the_size_that_the_checkpoint_was_trained_on(tmp_path):
    ckpt.try_save(stored(config={"img_size": 48}), tmp_path / "a.pth")
    assert best_weights.image_size(SimpleNamespace(checkpoint=str(tmp_path / "a.pth"), img_size=32)) == 48
    assert best_weights.image_size(SimpleNamespace(checkpoint=None, img_size=64)) == 64


def test_weights_that_could_not_be_written_are_tested_from_memory(q1, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, save = make_run(q1, n=160), torch.save
    monkeypatch.setattr(torch, "save", full)
    q1.train(run, tmp_path)
    assert not (tmp_path / ckpt.BEST).exists()
    best = best_weights.load_best(tmp_path / ckpt.BEST, images(run.classes), run)
    assert best["run"] == run.id
    monkeypatch.setattr(torch, "save", save)  # room again
    ckpt.finish(run, None, tmp_path)
    again = best_weights.load_best(tmp_path / ckpt.BEST, images(run.classes), None)
    assert again is not best and all(torch.equal(v, best["model"][k]) for k, v in again["model"].items())


def scores(val, val_loss, ema, ema_loss):
    return {"val_accuracy": val, "val_loss": val_loss, "ema_accuracy": ema, "ema_loss": ema_loss}


def test_of_equal_accuracies_the_lower_loss_decides_then_the_later_epoch(q1, tmp_path):
    run, path = make_run(q1), tmp_path / ckpt.BEST
    kept = [
        ckpt.save_best(run, scores(*numbers), path)
        for numbers in (
            (50, 2.0, 40, 1.0),
            (50, 1.9, 50, 2.0),  # a lower loss
            (50, 1.9, 50, 1.9),  # as good, and later: the EMA first
            (50, 1.95, 50, 1.95),
            (49, 0.1, 49, 0.1),
            (60, 3.0, 59, 0.1),
        )
    ]
    assert kept == [" *raw", " *raw", " *ema", "", "", " *raw"]
    assert (run.best["val_accuracy"], run.best["val_loss"]) == (60, 3.0)
    assert torch.load(path, weights_only=True)["val_loss"] == 3.0


def test_weights_that_are_not_finite_are_not_kept(q1, tmp_path):
    run, path = make_run(q1), tmp_path / ckpt.BEST
    with torch.no_grad():
        run.model.head.bias[0] = math.nan
    assert ckpt.save_best(run, scores(90, 0.1, 80, 0.2), path) == " *ema"
    with torch.no_grad():
        run.ema.head.bias[0] = math.inf
    assert ckpt.save_best(run, scores(90, 0.1, 85, 0.2), path) == "" and run.best["val_accuracy"] == 80
    assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["model"].values())


def test_a_summary_says_which_run_and_how_many_steps_were_skipped(q1, tmp_path, capsys):
    run = make_run(q1, n=160)
    run.forward = Poisoned(run.model, {3, 4})
    q1.train(run, tmp_path)
    dataset = SimpleNamespace(name="n", source="s", notes=(), test_labels=[1])
    results = {"test_accuracy": 81.234, "test_accuracy_tta": 82.0}
    ckpt.write_summary(tmp_path / "run_summary.json", run.compute, dataset, run.best, results, run)
    printed = capsys.readouterr().out
    assert "20 steps, 2 of them skipped (gradients not finite)" in printed
    which = {"raw": "raw", "ema": "EMA"}[run.best["weights"]]
    assert f"test accuracy 81.23 % (82.00 % with TTA) on 1 images of n, by the {which} weights of epoch " in printed
    summary = json.loads((tmp_path / "run_summary.json").read_text())
    assert summary["run"] == run.id and summary["skipped_steps"] == 2


def test_last_pth_is_written_twice_a_minute_and_at_the_end(q1, tmp_path, monkeypatch):
    run, written = make_run(q1, n=160, epochs=6), []
    monkeypatch.setattr(
        ckpt, "save_last", lambda run, path: (setattr(run, "saved", run.seconds), written.append(run.step))
    )
    seconds = [0.0]
    monkeypatch.setattr(q1.Clock, "seconds", lambda clock: seconds.__setitem__(0, seconds[0] + 1e-3) or seconds[0])
    monkeypatch.setattr(
        q1,
        "train_epoch",
        lambda run, step, epoch=q1.train_epoch: (seconds.__setitem__(0, seconds[0] + 12), epoch(run, step))[1],
    )
    q1.train(run, tmp_path)
    assert written == [10, 40, 60]  # after 12, 48 and 72 seconds
