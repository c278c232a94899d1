"""The streams of this package on a GPU, and two parts of a query in two of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TypeVar

import torch

First, Second = TypeVar('First'), TypeVar('Second')


def stream_for(role: str, device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """The one stream of that role on a GPU.

    PyTorch hands out 32 in turn and keeps a workspace of cuBLAS for each for ever: made anew for
    each engine they would take memory, and in the end one would be another's, captured with it.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    return _stream(role, index, priority)


@lru_cache
def _stream(role: str, index: int, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(torch.device('cuda', index), priority=priority)


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
    """What both return, ready for the current stream.

    Small GEMMs, such as those of a vision tower, leave much of a GPU idle. While a CUDA graph is
    captured ``second`` goes to the side stream and becomes a branch of the graph. Elsewhere they
    run one after the other: launched one by one, kernels wait for the host anyway.
    """
    side = _HERE.stream
    if side is None:
        return first(), second()
    here = torch.cuda.current_stream(side.device)
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            beside = second()
        made = first()
    except BaseException:
        with suppress(RuntimeError):  # a capture cannot end while a branch is left open
            here.wait_stream(side)
        raise
    here.wait_stream(side)
    return made, beside
