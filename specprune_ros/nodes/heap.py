"""Gives memory that the C library keeps back to the system, so that a long run stays flat.

Pictures are allocated by one thread and freed by another, between tensors of every size: without
this a node's resident memory creeps up by a tenth within a quarter of an hour, and nothing leaks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def find_trim() -> Callable[[], None]:
    """``malloc_trim`` of glibc, or nothing to call where the C library has none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    trim.argtypes = [ctypes.c_size_t]
    return lambda: trim(0)
