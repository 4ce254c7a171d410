import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parent.parent)]

import nbload


@pytest.fixture(scope="session")
def q1():
    """The definitions of q1.ipynb."""
    return nbload.load("q1.ipynb")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
