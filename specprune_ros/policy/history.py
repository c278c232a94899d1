"""Past pictures by time: what V_dynamic compares the newest picture with."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from specprune_ros.policy.observation import Picture

CAPACITY = 64


class Frame:
    """A picture as it came until somebody looks at it, from then on as the policy sees it, which
    is all that anybody compares and mostly much smaller.

    It is prepared once, by the thread that looks first; another one waits. On a GPU each thread
    may work in a stream of its own: who looks has its stream wait until the picture is there, and
    must hold the picture until that stream is done with it.
    """

    def __init__(self, picture: Picture) -> None:
        self.stamp_ns = picture.stamp_ns
        self.picture: Picture | None = picture
        self._of = weakref.ref(picture)
        self._one = Lock()
        self._seen: Tensor | None = None
        self._there: torch.cuda.Event | None = None

    def shows(self, picture: Picture) -> bool:
        """Whether this is what ``picture``, and no other of the same time, became."""
        return self._of() is picture

    def look(self, prepare: Callable[[Picture], Tensor]) -> Tensor:
        """The picture as the policy sees it, uint8 ``[S, S, 3]``, for the current stream;
        ``prepare`` is called the first time only (again where it raised).
        """
        with self._one:
            if self._seen is None:
                assert self.picture is not None
                seen = prepare(self.picture)
                if seen.is_cuda:
                    self._there = torch.cuda.Event()
                    self._there.record(torch.cuda.current_stream(seen.device))
                self._seen, self.picture = seen, None
            seen = self._seen
        if self._there is not None:
            self._there.wait(torch.cuda.current_stream(seen.device))
        return seen


class FrameHistory:
    """A time-stamped ring of pictures per camera. Pushed from callbacks, read by the inference
    thread.

    ``span_ns`` is how far back pictures are kept (20 control steps in this package), ``CAPACITY``
    bounds their number whatever the camera rate. The newest picture is known even where it was
    thinned out or everything was forgotten, so that nobody prepares it again.
    """

    def __init__(self, span_ns: int, apart_ns: int = 1) -> None:
        self._span_ns = span_ns
        self._apart_ns = max(apart_ns, 1)
        self._lock = Lock()
        self._rings: dict[str, deque[Frame]] = {}
        self._newest: dict[str, Frame] = {}

    def push(self, camera: str, picture: Picture) -> None:
        """Store a picture, unless one taken within ``apart_ns`` before it is there.

        Pictures stamped after it are let go: a single stamp from the future must not keep every
        true picture out. Messages that merely came late are not for this ring.
        """
        with self._lock:
            ring = self._rings.setdefault(camera, deque(maxlen=CAPACITY))
            if any(frame.shows(picture) for frame in ring):
                return
            newest = self._newest.get(camera)
            if newest is None or not newest.shows(picture):
                newest = self._newest[camera] = Frame(picture)
            while ring and ring[-1].stamp_ns > picture.stamp_ns:
                ring.pop()
            if ring and picture.stamp_ns - ring[-1].stamp_ns < self._apart_ns:
                return
            ring.append(newest)
            oldest = picture.stamp_ns - self._span_ns
            while len(ring) > 1 and ring[1].stamp_ns <= oldest:
                ring.popleft()

    def at(self, camera: str, stamp_ns: int, before_ns: int) -> Frame | None:
        """The newest picture taken at or before ``stamp_ns``, else the oldest one before
        ``before_ns``.

        ``None`` where nothing is older than ``before_ns``: there is no past to compare with.
        """
        with self._lock:
            past = [p for p in self._rings.get(camera, ()) if p.stamp_ns < before_ns]
        if not past:
            return None
        older = [p for p in past if p.stamp_ns <= stamp_ns]
        return older[-1] if older else past[0]

    def of(self, camera: str, picture: Picture) -> Frame | None:
        """Where this very picture is kept; ``None`` where it was let go."""
        with self._lock:
            newest = self._newest.get(camera)
            if newest is not None and newest.shows(picture):
                return newest
            ring = self._rings.get(camera, ())
            return next((frame for frame in reversed(ring) if frame.shows(picture)), None)

    def clear(self) -> None:
        """Forget every picture."""
        with self._lock:
            self._rings.clear()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(ring) for ring in self._rings.values())
