"""Keeps the tiny models of these tests on one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices are slower on many threads, much slower where others want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
