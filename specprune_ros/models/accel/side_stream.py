"""Two parts of a query that do not depend on each other, at the same time on one GPU.

Small GEMMs, such as those of a vision tower, leave much of a GPU idle. While a CUDA graph is
captured the second part goes to a stream of its own, and becomes a branch of the graph. Elsewhere
the parts run one after the other: launched one by one, kernels wait for the host anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

First, Second = TypeVar('First'), TypeVar('Second')


class _Here(threading.local):
    """The side stream of this thread's capture."""

    stream: torch.cuda.Stream | None = None


_HERE = _Here()


@contextmanager
def side_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Where second parts go, in this thread, until it is left. Nobody else may use ``stream``:
    what another thread launched in it would be captured too.
    """
    _HERE.stream = stream
    try:
        yield
    finally:
        _HERE.stream = None


def both(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """What both return, ready for the current stream."""
    side = _HERE.stream
    if side is None:
        return first(), second()
    here = torch.cuda.current_stream(side.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        beside = second()
    made = first()
    here.wait_stream(side)
    return made, beside
