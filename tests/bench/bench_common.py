"""What the benches share: contenders that take turns, processes of their own where memory counts, and tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # for the benches too, which import this module first

import nbload  # noqa: F401 (for the benches)
from helpers.common import environment
from helpers.common.device import Compute, cpu_name, pick_compute
from helpers.common.files import write_csv


@dataclass
class Contender:
    """One way to do the work: `run()` does it once and returns how much that was, in images or frames. `threads`: what
    torch is told to use; None: as many as before."""

    name: str
    run: Callable[[], int]
    threads: int | None = None


def take_turns(
    setting: str, unit: str, contenders: Sequence[Contender], repeats: int, warm_up: bool = True
) -> list[dict]:
    """Run the contenders in turns, `repeats` times each, so that whatever else the machine does hits all alike; the
    first turn, which loads, allocates and starts workers, is not timed. Returns a table row for each."""
    rates, threads = [[] for _ in contenders], torch.get_num_threads()
    for turn in range(-1 if warm_up else 0, repeats):
        for contender, own in zip(contenders, rates, strict=True):
            torch.set_num_threads(contender.threads or threads)
            began = time.perf_counter()
            done = contender.run()
            if turn >= 0:
                own.append(done / (time.perf_counter() - began))
    torch.set_num_threads(threads)
    return [
        {"contender": contender.name, "setting": setting, "unit": unit, **spread(own)}
        for contender, own in zip(contenders, rates, strict=True)
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """How many values, and their least, median and greatest with three digits or more."""
    columns = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {"n": len(values)} | {k: round(v) if v >= 100 else float(f"{v:.3g}") for k, v in columns.items()}


def precisions(names: Sequence[str]) -> list[Compute]:
    """The device at each precision asked for; a CPU has float32 only."""
    return [pick_compute(name) for name in names] if torch.cuda.is_available() else [pick_compute("fp32")]


def in_its_own_process(script: str, job: dict, **variables: str) -> dict:
    """What `script --job JSON` prints last, a JSON object, when it runs in a fresh process with these variables of the
    environment besides."""
    command = [sys.executable, script, "--job", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep as many cores busy with other work, meanwhile."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def peak_memory() -> dict[str, int]:
    """MiB that this process (of Linux) and the GPU have needed at most."""
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
    gpu = {"peak GPU MiB": torch.cuda.max_memory_allocated() // 2**20} if torch.cuda.is_available() else {}
    return {"peak MiB": peak, **gpu}


def report(script: str, part: str, rows: list[dict], out: Path | None, given: Sequence[str]) -> None:
    """Print rows with equal keys as a Markdown table, under what they depend on; with `out` also write it there, as
    {script}_{part}.md and .csv."""
    versions = environment.versions("torch", "torchvision", "timm", "transformers", "sam2", "pillow", "av", "numpy")
    above = [
        f"`{shlex.join(['python', f'tests/bench/{script}.py', *given])}`",
        f"{date.today()}, {pick_compute('fp32').name}; {cpu_name()}, {os.cpu_count()} cores, {platform.system()}; "
        f"load average after the run: {os.getloadavg()[0]:.1f}",
        ", ".join(f"{package} {version}" for package, version in versions.items()),
    ]
    cells = [list(rows[0]), ["---"] * len(rows[0])]
    cells += [[f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in rows]
    text = "\n\n".join([*above, "\n".join(f"| {' | '.join(line)} |" for line in cells)]) + "\n"
    print(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{script}_{part}.md").write_text(text, encoding="utf-8")
        write_csv(rows, out / f"{script}_{part}.csv")
