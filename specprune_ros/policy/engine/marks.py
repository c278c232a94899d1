"""When the stages of a query ended, without making the device wait for the host."""

from __future__ import annotations

import time

import torch

STAGES = 4  # preprocess, vision, decoder, head: of StageTimes, in order


class HostMarks:
    """Marks by the host's clock, for a device that is done when a call returns."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def mark(self) -> None:
        """A stage begins or ends here."""
        self._times.append(time.perf_counter())

    def seconds(self) -> tuple[float, ...]:
        """Seconds between marks."""
        return tuple(b - a for a, b in zip(self._times, self._times[1:], strict=False))


class CudaMarks:
    """Marks by events in the stream.

    ``external`` ones become nodes of a graph that is being captured, so that every replay sets
    them anew.
    """

    def __init__(self, external: bool = False) -> None:
        self._events = [
            torch.cuda.Event(enable_timing=True, external=external) for _ in range(STAGES + 1)
        ]
        self._next = 0

    def mark(self) -> None:
        """A stage begins or ends here in the current stream."""
        self._events[self._next].record()
        self._next += 1

    def seconds(self) -> tuple[float, ...]:
        """Seconds between marks; the device must have passed the last one."""
        pairs = zip(self._events, self._events[1:], strict=False)
        return tuple(a.elapsed_time(b) / 1000 for a, b in pairs)


Marks = HostMarks | CudaMarks


def marks_on(device: torch.device) -> Marks:
    """Marks for a query that is not captured."""
    return CudaMarks() if device.type == 'cuda' else HostMarks()
