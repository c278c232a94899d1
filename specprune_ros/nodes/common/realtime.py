"""Keeps a control loop on time: real-time priority, and no garbage collection of what stays."""

from __future__ import annotations

import gc
import os
from pathlib import Path


def request_priority(priority: int) -> str:
    """Put every thread of this process under the real-time scheduler; what came of it, in words.

    All of them, the middleware's too: a loop of high priority else waits for a lock that a thread
    of usual priority holds and gets no core to give back (measured: 0.8 s on a busy machine).
    Threads made later inherit it.
    """
    if priority <= 0:
        return 'usual priority'
    try:
        threads = [int(path.name) for path in Path('/proc/self/task').iterdir()] or [0]
    except OSError:
        threads = [0]
    try:
        for thread in threads:
            _raise(thread, priority)
    except (OSError, AttributeError) as error:
        return f'no real-time priority ({error})'
    return f'real-time priority {priority}'


def _raise(thread: int, priority: int) -> None:
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except ProcessLookupError:
        return  # it has ended meanwhile


def release_heap() -> None:
    """Undo :func:`freeze_gc`: what was left out may have become garbage."""
    gc.unfreeze()
    gc.collect()


def freeze_gc() -> None:
    """Collect garbage once and leave what is alive now out of every later collection.

    Modules and classes stay as long as the process; walking through them takes the loop's time
    (measured: 0.1 s and more on a busy machine).
    """
    gc.collect()
    gc.freeze()
