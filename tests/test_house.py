"""Who may know whom: the rooms of helpers/, held against the imports that are there; and what make is told to do."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import helpers
from nbload import ROOT, code_cells

MAY_KNOW = {
    "common": {"common"},
    "shapes": {"common", "shapes"},
    "vit": {"common", "shapes", "vit"},
    "segment": {"common", "shapes", "segment"},
}
NOTEBOOKS = {"q1.ipynb": MAY_KNOW["vit"], "q2.ipynb": MAY_KNOW["segment"]}


def rooms_imported(source: str) -> set[str]:
    """Rooms of helpers that a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            names |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("helpers.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports would pass unseen"
    return names


@pytest.mark.parametrize("room", list(MAY_KNOW))
def test_a_room_knows_no_others_than_it_may(room):
    modules = list((ROOT / "helpers" / room).glob("*.py"))
    assert len(modules) > 1
    for module in modules:
        assert rooms_imported(module.read_text()) <= MAY_KNOW[room], module.name


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_a_notebook_enters_by_its_own_doors(name):
    source = "\n".join(cell["source"] for cell in code_cells(name))
    assert rooms_imported(source) <= NOTEBOOKS[name]


def test_every_module_stands_in_the_index():
    listed = set(re.findall(r"\w+", helpers.__doc__))
    modules = {path.stem for path in (ROOT / "helpers").glob("*/*.py")} - {"__init__"}
    assert modules <= listed
    assert not list(Path(helpers.__file__).parent.glob("[!_]*.py"))  # none outside the rooms


@pytest.mark.parametrize(
    ("given", "models", "fetches"),
    [
        ([], "auto", False),
        (["IMAGE=photos", "PROMPT=cat"], "full", True),
        (["VIDEO=a.mp4", "PROMPT=cat"], "full", True),
        (["IMAGE=photos", "MODELS=tiny"], "tiny", False),
        (["MODELS=auto"], "auto", True),
    ],
)
def test_make_q2_uses_the_real_models_on_files_of_ones_own(given, models, fetches):
    done = subprocess.run(["make", "-n", "q2", *given], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'-r models "{models}"' in done.stdout and ("download False" not in done.stdout) == fetches
    assert ("-m helpers.segment.weights" in done.stdout) == (models == "full")
