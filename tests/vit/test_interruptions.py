"""Kill a run, fill its disk: what is on disk stays usable, and a resumed run ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("train_tiny.py")
EPOCHS = 20  # twice as many as the kills below should reach, so that no change of speed lets a run end before its kill


def start(out: Path, *arguments: int) -> subprocess.Popen:
    command = [sys.executable, str(DRIVER), str(out), *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # each line of the log as soon as it is printed
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=DRIVER.parent, env=environment, **pipes)


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def wait_for_line(process: subprocess.Popen, beginning: str) -> float:
    """Read the log up to the next line with this beginning; returns the seconds that took."""
    began = time.perf_counter()
    for line in iter(process.stdout.readline, ""):
        if line.startswith(beginning):
            return time.perf_counter() - began
    pytest.fail(f"the run ended before it printed {beginning!r}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    finish(start(out, EPOCHS))
    return torch.load(out / "end.pth", weights_only=True)


def test_killed_three_times_and_resumed_ends_with_the_same_bits(uninterrupted, tmp_path):
    """At any moment of an epoch, as long as the one before took: while it trains, validates, or writes its files."""
    moments = random.Random(0)
    for _ in range(3):
        process = start(tmp_path, EPOCHS)
        wait_for_line(process, "training")
        for _ in range(moments.randint(1, 3)):
            an_epoch = wait_for_line(process, "epoch ")
        time.sleep(moments.uniform(0, 1) * an_epoch)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        for path in tmp_path.glob("[!.]*.pth"):  # those under their final names are whole at every moment
            torch.load(path, weights_only=True)
    finish(start(tmp_path, EPOCHS))
    assert not list(tmp_path.glob(".*"))  # what was half written when the process died has been cleared away
    for ours, theirs in zip(torch.load(tmp_path / "end.pth", weights_only=True), uninterrupted, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    output, errors = start(tmp_path, 3, 20_000).communicate(timeout=900)
    assert output.count("could not be written") >= 2 and "MiB free there" in output, errors
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert last["step"] == 10  # the first epoch's; the others did not fit
    assert set(torch.load(tmp_path / "best_vit_cifar10.pth", weights_only=True)) >= {"model", "config", "mean", "std"}
    assert not list(tmp_path.glob(".*.part*"))
    (tmp_path / "end.pth").unlink(missing_ok=True)
    finish(start(tmp_path, 3))  # room again: it goes on from there
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 30
