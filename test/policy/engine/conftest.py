"""Lets the tests of this folder import its ``tape``, and keeps their tiny models on one thread."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope='module')
def always_one_thread(one_thread):
    """For every test here."""
