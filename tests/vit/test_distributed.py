"""Several processes train as one does, agree on every decision, and one that dies leaves what a single one resumes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nbrun
import train_ranks
from helpers.common import distributed
from helpers.common import launch as launching
from helpers.common.launch import export_script, launch
from test_notebooks import ROOT, SHORT, SUMMARY_KEYS, TINY

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
DRIVER = Path(train_ranks.__file__)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}


def start(command: list, *arguments: object, cwd: Path = DRIVER.parent) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return output, errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory, q1):
    """What train_ranks.py gives alone, and in each of two processes: (alone, first, second, the folder of the two)."""
    out = tmp_path_factory.mktemp("runs")
    one, two = out / "one", out / "two"
    one.mkdir(), two.mkdir()
    alone = train_ranks.everything(q1, one)
    (two / "half.pth").write_bytes((one / "plain" / "half.pth").read_bytes())
    finish(start([*TORCHRUN, DRIVER], two, "everything"))
    first, second = (torch.load(two / f"rank{rank}.pth", weights_only=True) for rank in (0, 1))
    return alone, first, second, two


def assert_close(ours: dict, theirs: dict, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(runs):
    """50 losses without augmentation, and the weights that come out; a batch of 18 is shared as 8 and 10."""
    alone, first, second = (run["plain"] for run in runs[:3])
    assert len(alone["losses"]) == 50 and alone["losses"][-1] < alone["losses"][0] - 0.5
    torch.testing.assert_close(first["losses"], alone["losses"], atol=1e-4, rtol=0)
    assert torch.equal(first["losses"], second["losses"])
    for ours, theirs in zip(first["weights"], alone["weights"], strict=True):  # raw and EMA
        assert_close(ours, theirs, atol=1e-3)
    assert all(torch.equal(first["weights"][0][name], value) for name, value in second["weights"][0].items())


@pytest.mark.slow
def test_slices_of_a_batch_cover_it_without_overlap(runs):
    alone, first, second = (run["plain"] for run in runs[:3])
    for whole, one, other in zip(alone["slices"], first["slices"], second["slices"], strict=True):
        assert (len(one), len(other)) == (8, 10)
        assert torch.equal(torch.cat([one, other]), whole)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 101, 512])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shards_follow_each_other(count, size, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: size)
    slices = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        slices.append(distributed.shard(count))
    assert [i for part in slices for i in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in slices]
    assert all(length % 2 == 0 for length in lengths[:-1]) and max(lengths) - min(lengths) <= 3


@pytest.mark.slow
def test_right_answers_are_counted_over_all_processes(runs):
    """101 images, at the same weights."""
    alone, first, second = (run["plain"]["before"] for run in runs[:3])
    assert alone == first == second and 0 < alone["val_accuracy"] < 100


@pytest.mark.slow
def test_both_learn_with_augmentation_and_agree_on_the_plan(runs):
    alone, first, second = (run["augmented"] for run in runs[:3])
    best = [max(max(row["val_accuracy"], row["ema_accuracy"]) for row in run["history"]) for run in (alone, first)]
    assert min(best) > 60 and abs(best[0] - best[1]) < 20, best  # chance is 10
    assert alone["steps"] == first["steps"] == second["steps"] == 200
    assert first["best"] == second["best"] == best[1]
    accuracies = [[(row["val_accuracy"], row["ema_accuracy"]) for row in run["history"]] for run in (first, second)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_a_run_is_resumed_in_another_number_of_processes(runs, q1, tmp_path):
    alone, first, _, two = runs
    torch.testing.assert_close(first["continued"]["losses"], alone["plain"]["losses"][30:], atol=1e-4, rtol=0)
    half = torch.load(two / "plain" / "half.pth", weights_only=True)
    assert half["step"] == 30 and not any(name.startswith("module.") for name in half["model"])
    back = train_ranks.plain(q1, tmp_path, two / "plain" / "half.pth")
    torch.testing.assert_close(back["losses"], alone["plain"]["losses"][30:], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_one_process_short_of_memory_makes_all_go_in_parts(runs):
    alone, first, second = (run["run_short_of_memory"] for run in runs[:3])
    assert alone["parts"] == 8 and first["parts"] == second["parts"] == 4  # of 18 images, and of 8 and 10
    torch.testing.assert_close(first["losses"], alone["losses"], atol=1e-4, rtol=0)
    assert_close(first["weights"], alone["weights"], atol=1e-4)


@pytest.mark.slow
def test_a_bad_loss_in_one_process_is_skipped_by_all_and_ten_end_the_run(runs):
    _, first, second = (run["not_finite"] for run in runs[:3])
    assert first["error"] == second["error"] and "ten steps in a row" in first["error"]
    assert first["step"] == second["step"] == 15 and first["skipped"] == second["skipped"]
    assert all(torch.equal(first["weights"][name], value) for name, value in second["weights"].items())
    saved = torch.load(runs[3] / "not_finite" / "last.pth", weights_only=True)
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_one_process_resumes_it(q1, tmp_path):
    run = start([*TORCHRUN, DRIVER], tmp_path, "long", 20)
    while not ((tmp_path / "last.pth").is_file() and (tmp_path / "pid1").is_file()):
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    killed = time.monotonic()
    run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - killed < 30  # 2 seconds, where nothing else runs
    assert not (tmp_path / "rank0.pth").exists()
    assert 0 < train_ranks.long(q1, tmp_path, 20) < 200
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 200


@pytest.mark.slow
def test_the_notebook_runs_under_torchrun(tmp_path):
    out, parameters = tmp_path / "out", TINY | SHORT | {"epochs": 1, "train_size": 200, "tta": 0, "download": False}
    script = nbrun.export("q1.ipynb", tmp_path, parameters | {"out_dir": out})
    output, errors = finish(start([*TORCHRUN, script], cwd=tmp_path))
    assert not re.search("Traceback|Error|[Ww]arning: |destroy_process_group", errors), errors
    lines = [line for line in output.splitlines() if line.strip("= ")]
    assert len(lines) == len(set(lines)), output
    assert "2 processes" in lines[[line.startswith("local") for line in lines].index(True)]
    assert sum(line.startswith("epoch 1: loss") for line in lines) == 1
    summary = json.loads((out / "run_summary.json").read_text())
    assert not set(SUMMARY_KEYS) - set(summary) and summary["processes"] == 2 and summary["epochs_run"] == 1
    assert (out / "history.csv").read_text().count("\n") == 2 and (out / "curves.png").is_file()
    assert not list(out.glob(".*"))


# ------------------------------------------------------------------------------------------ starting it


def test_alone_nothing_happens(monkeypatch):
    for world in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False) if world is None else monkeypatch.setenv("WORLD_SIZE", world)
        assert distributed.start() is None and distributed.is_main()
    x, model = torch.ones(3), torch.nn.Linear(1, 1)
    assert distributed.all_reduce_sum(x) is x and distributed.wrap(model) is model and distributed.broadcast(x) is x
    assert (distributed.rank(), distributed.size(), distributed.shard(5)) == (0, 1, slice(0, 5))
    distributed.leave()
    distributed.barrier()


def test_what_is_wrong_with_the_start_is_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2, but RANK, LOCAL_RANK, .*start with torchrun"):
        distributed.start()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RuntimeError, match="LOCAL_RANK=1, but torch sees 1 GPUs here"):
        distributed.start()
    monkeypatch.setattr(distributed, "broadcast", lambda value: "CIFAR-10")
    distributed.check_same("CIFAR-10", "images")
    with pytest.raises(ValueError, match=r"other images \(shapes\) than process 0 \(CIFAR-10\)"):
        distributed.check_same("shapes", "images")
    monkeypatch.setattr(distributed, "size", lambda: 4)
    with pytest.raises(ValueError, match="batch_size=6: expected at least 8"):
        distributed.check_batch_size(6)


def test_launched_processes_agree_and_a_failure_ends_in_the_log(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from helpers.common import distributed as d

assert d.start() == "cpu" and d.is_launched()
rank, items = d.rank(), list("abcde")
assert d.all_reduce_sum(torch.tensor([1, rank])).tolist() == [2, 1]
assert d.all_gather([f"{rank}{item}" for item in d.share(items)]) == ["0a", "1b", "0c", "1d", "0e"]
assert d.broadcast({"rank": rank}) == {"rank": 0} and d.any_rank(rank == 1) and not d.any_rank(False)
with d.local_rank0_first():
    print("rank", rank)
network = d.wrap(torch.nn.Linear(1, 1))
network(torch.full((1, 1), 1.0 + 2 * rank)).sum().backward()
assert network.module.weight.grad.item() == 2  # the mean of 1 and 3
d.leave()
assert d.size() == 1
raise SystemExit("no more")
"""
    )
    with pytest.raises(RuntimeError, match="torchrun ended with status 1: the reason is in the log"):
        launch(script, 2)
    log = capsys.readouterr().out
    assert "no more" in log and "rank 0" in log and "rank 1" not in log and "AssertionError" not in log


@pytest.mark.slow
def test_interrupting_the_launch_ends_all_processes(tmp_path, monkeypatch):
    script, printed = tmp_path / "script.py", []
    script.write_text("import os, time\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(300)\n")

    def interrupted(line, **_):
        printed.append(line)
        if len(printed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(launching, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        launch(script, 2)
    for line in printed:
        with pytest.raises(ProcessLookupError):
            os.kill(int(line), 0)


def test_a_script_needs_a_place_for_its_parameters(tmp_path):
    (tmp_path / "bare.ipynb").write_text('{"cells": [{"cell_type": "code", "metadata": {}, "source": ["x = 1"]}]}')
    with pytest.raises(ValueError, match=r"bare\.ipynb has no cell tagged 'parameters'"):
        export_script(tmp_path / "bare.ipynb", {}, tmp_path / "bare.py")


def test_a_script_leaves_out_what_only_ipython_understands(tmp_path):
    cells = ["x = 7", "!pip install y\n%cd /z\nif x:\n    !ls\na = (x\n  % 4)", "%%bash\nls", "files = !ls\nb = a + 1"]
    cells = [{"cell_type": "code", "metadata": {}, "source": cell} for cell in cells]
    cells[0]["metadata"]["tags"] = ["parameters"]
    (tmp_path / "magic.ipynb").write_text(json.dumps({"cells": cells}))
    world = {}
    exec(export_script(tmp_path / "magic.ipynb", {"x": 11}, tmp_path / "magic.py").read_text(), world)
    assert (world["a"], world["b"]) == (3, 4)


def test_all_gpus_runs_the_notebook_with_its_settings(tmp_path, q1, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(launching, "launch", lambda *given: started.append(given))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    cfg = q1.config.make_config(q1.RECIPE, q1.PRESETS, "quick", {"lr": 0.5, "out_dir": str(tmp_path)}, 0)
    launching.launch_notebook("q1.ipynb", vars(cfg) | {"all_gpus": True}, tmp_path)
    ((script, processes),) = started
    assert processes >= 1 and f"running {ROOT / 'q1.ipynb'} as last saved" in capsys.readouterr().out
    source = script.read_text()
    compile(source, "script", "exec")
    assert source.index("\nlr = None") < source.index("\nlr = 0.5") and "\npreset = 'quick'" in source
    assert "all_gpus = True" not in source.replace("# True", "") and "given =" not in source
    mine = tmp_path / "mine.ipynb"  # the open one goes first
    mine.write_bytes((ROOT / "q1.ipynb").read_bytes())
    monkeypatch.setenv("JPY_SESSION_NAME", str(mine))
    launching.launch_notebook("q1.ipynb", vars(cfg), tmp_path)
    assert f"running {mine} as last saved" in capsys.readouterr().out
