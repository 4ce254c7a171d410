"""Files that are whole or absent, checkpoints that execute nothing, random state that continues."""

import errno
import os
import pickle
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import budget
from helpers import checkpoint as ckpt


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


def test_a_full_disk_is_a_clear_error_or_a_warning(tmp_path, monkeypatch, capsys):
    path = tmp_path / "last.pth"
    ckpt.save_checkpoint({"step": 1}, path)

    def full(content, target):
        target.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last\.pth could not be written \([\d,]+ MiB free there\)"):
        ckpt.save_checkpoint({"step": 2}, path)
    assert ckpt.try_save({"step": 2}, path) is False
    assert "warning" in capsys.readouterr().out
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
    ckpt.save_checkpoint({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=f"has no 'model', 'config'{advice}"):
        ckpt.load_checkpoint(path, "model", "config")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"a\.pth \([\d,]+ bytes\) is truncated or not a checkpoint{advice}"):
        ckpt.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=f"not a checkpoint of this notebook{advice}"):
        ckpt.load_checkpoint(path, "model")


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_random_state_continues_through_a_file(tmp_path):
    ckpt.seed_everything(3)
    draw()
    ckpt.save_checkpoint(ckpt.get_rng_state(), tmp_path / "rng.pth")
    expected = [draw() for _ in range(3)]
    ckpt.seed_everything(4)
    ckpt.set_rng_state(ckpt.load_checkpoint(tmp_path / "rng.pth"))
    assert [draw() for _ in range(3)] == expected
    ckpt.seed_everything(3)
    draw()
    assert [draw() for _ in range(3)] == expected


@dataclass
class State:
    model: torch.nn.Module
    plan: budget.Plan
    counts: torch.Tensor
    twin: torch.nn.Module = field(metadata={"saved": False})
    step: int = 0
    history: list = field(default_factory=list)


def test_pack_and_unpack_are_inverse(tmp_path):
    state = State(
        torch.nn.Linear(2, 3), budget.Plan(1, 2, 3, 4), torch.tensor([1, 2]), torch.nn.Linear(1, 1), 5, [{"loss": 1.0}]
    )
    ckpt.save_checkpoint(ckpt.pack(state), tmp_path / "state.pth")
    twin = torch.nn.Linear(1, 1)
    other = State(torch.nn.Linear(2, 3), budget.Plan(0, 0, 0, 0), torch.zeros(2, dtype=torch.long), twin)
    ckpt.unpack(other, ckpt.load_checkpoint(tmp_path / "state.pth"))
    assert torch.equal(other.model.weight, state.model.weight)
    assert (other.plan, other.step, other.history, other.counts.tolist()) == (state.plan, 5, [{"loss": 1.0}], [1, 2])
    assert other.twin is twin
