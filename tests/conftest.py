import pytest
import torch

import nbload
from albums import album  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def q1():
    """The definitions of q1.ipynb."""
    return nbload.load("q1.ipynb")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
