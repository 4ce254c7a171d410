"""A notebook's definitions as a module, so that the notebook is the only place where they stand.

q2 = load("q2.ipynb")
q2.segment(...)
"""

from __future__ import annotations

import ast
import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def code_cells(name: str) -> list[dict]:
    """The code cells of a notebook of this project, as nbformat stores them, with `source` as one string."""
    cells = json.loads((ROOT / name).read_text("utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def _is_constant(node: ast.stmt) -> bool:
    if not (isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def load(name: str) -> types.ModuleType:
    """Execute the imports, functions, classes and UPPER_CASE literal constants of a notebook; return them as a module.

    All else (finding files, loading models, training, drawing) is left out, so this takes as long as the imports do.
    """
    module = types.ModuleType(Path(name).stem)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for cell in code_cells(name):
        tree = ast.parse(cell["source"], f"{name}[{cell['id']}]")
        tree.body = [node for node in tree.body if isinstance(node, _DEFINITIONS) or _is_constant(node)]
        exec(compile(tree, f"{name}[{cell['id']}]", "exec"), module.__dict__)
    return module
