"""Kill a run, fill its disk: what is on disk stays usable, and a resumed run ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

DRIVER = Path(__file__).with_name("train_tiny.py")
EPOCHS = 12


def start(out: Path, *arguments: int) -> subprocess.Popen:
    command = [sys.executable, str(DRIVER), str(out), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=DRIVER.parent)


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    began = time.perf_counter()
    process = start(out, EPOCHS)
    process.stdout.readline()
    ready = time.perf_counter()
    finish(process)
    return torch.load(out / "end.pth", weights_only=True), ready - began, time.perf_counter() - ready


def test_killed_three_times_and_resumed_ends_with_the_same_bits(uninterrupted, tmp_path):
    expected, _, training = uninterrupted
    moments = random.Random(0)
    for _ in range(3):
        process = start(tmp_path, EPOCHS)
        assert process.stdout.readline() == "training\n"
        time.sleep(moments.uniform(0.05, 0.4) * training)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        for path in tmp_path.glob("[!.]*.pth"):  # those under their final names are whole at every moment
            torch.load(path, weights_only=True)
    finish(start(tmp_path, EPOCHS))
    assert not list(tmp_path.glob(".*"))  # what was half written when the process died has been cleared away
    for ours, theirs in zip(torch.load(tmp_path / "end.pth", weights_only=True), expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    output, errors = start(tmp_path, 3, 20_000).communicate(timeout=300)
    assert output.count("could not be written") >= 2 and "MiB free there" in output, errors
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert last["step"] == 10  # the first epoch's; the others did not fit
    assert set(torch.load(tmp_path / "best_vit_cifar10.pth", weights_only=True)) >= {"model", "config", "mean", "std"}
    assert not list(tmp_path.glob(".*.part*"))
    (tmp_path / "end.pth").unlink(missing_ok=True)
    finish(start(tmp_path, 3))  # room again: it goes on from there
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 30
