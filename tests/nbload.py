"""A notebook's definitions, for tests and benches; the project's own folder is put on their path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.common.notebooks import ROOT, code_cells, load  # noqa: F401
