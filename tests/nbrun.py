"""Execute a notebook of this project as a user does, with papermill in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat

from nbload import ROOT


def execute(name: str, out: Path, parameters: dict, cwd: Path, environment: dict) -> subprocess.CompletedProcess:
    """The executed copy is OUT/executed.ipynb."""
    out.mkdir(parents=True, exist_ok=True)
    given = [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "python3", str(ROOT / name)]
    command += [str(out / "executed.ipynb"), *given]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def export(name: str, folder: Path, parameters: dict) -> Path:
    """Write the notebook as a script, FOLDER/prepared.py: the way to a run without Jupyter."""
    given = [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    prepare = [sys.executable, "-m", "papermill", "--prepare-only", "--no-progress-bar", str(ROOT / name)]
    convert = [sys.executable, "-m", "nbconvert", "--to", "script", "prepared.ipynb"]
    for command in ([*prepare, "prepared.ipynb", *given], convert):
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "prepared.py"


def printed(out: Path) -> str:
    """What the executed copy printed."""
    cells = nbformat.read(out / "executed.ipynb", 4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
