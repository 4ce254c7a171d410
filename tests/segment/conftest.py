import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """In miniatures threads cost more than they bring, most of all where other processes want the cores, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
