"""A notebook as a script under torchrun, for the GPUs that the notebook's own process does not use."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helpers.common.notebooks import ROOT


def launch_notebook(name: str, settings: Mapping[str, Any], out: Path) -> None:
    """Run a notebook as last saved (the open one where Jupyter says which that is, else `name` here or in the project)
    with these settings in a process for each GPU; its script is left in `out`."""
    notebook = Path(os.environ.get("JPY_SESSION_NAME", name))
    notebook = notebook if notebook.is_file() else ROOT / name
    print(f"running {notebook} as last saved, in a process for each GPU")
    settings = {name: value for name, value in settings.items() if name not in ("given", "all_gpus")}
    script = export_script(notebook, settings, out / "train_on_all_gpus.py")
    launch(script, max(1, torch.cuda.device_count()))


def export_script(notebook: Path, parameters: Mapping[str, Any], script: Path) -> Path:
    """Write a notebook's code cells as a Python script, `parameters` (literals) set after the cell tagged so. What only
    IPython understands (`!pip install …`, `%cd …`) becomes a `pass`."""
    from IPython.core.inputtransformer2 import TransformerManager

    parts, tagged = [], False
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            python = TransformerManager().transform_cell("".join(cell["source"]))
            parts.append(re.sub(r"^(\s*).*get_ipython\(\)\..*", r"\1pass", python, flags=re.MULTILINE))
            if "parameters" in cell["metadata"].get("tags", []):
                parts += [f"{name} = {value!r}\n" for name, value in parameters.items()]
                tagged = True
    if not tagged:
        raise ValueError(f"{notebook} has no cell tagged 'parameters': give the path of this project's notebook")
    script.write_text("\n".join(parts), "utf-8")
    return script


def launch(script: Path, processes: int) -> None:
    """Run `script` under torchrun in `processes` processes of this machine, printing what they print line by line;
    raises `RuntimeError` when one fails. An interrupt ends all of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    environment |= {"TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}  # a log has no bars, and no notebook to draw into
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen([*command, str(script)], env=environment, **pipes) as process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()  # torchrun passes it on to its processes
            raise
    if process.returncode:
        raise RuntimeError(f"torchrun ended with status {process.returncode}: the reason is in the log above")
