"""Past images by time: what V_dynamic compares the newest image with."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from specprune_ros.policy.observation import CameraImage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CAPACITY = 64


class Frame:
    """An image as it came until somebody looks at it, from then on as the policy sees it, which
    is all that anybody compares and mostly much smaller.

    It is prepared once, by the thread that looks first; another one waits. On a GPU each thread
    may work in a stream of its own: who looks has its stream wait until the image is there, and
    must hold the image until that stream is done with it.
    """

    def __init__(self, image: CameraImage) -> None:
        self.stamp_ns = image.stamp_ns
        self.image: CameraImage | None = image
        self._of = weakref.ref(image)
        self._one = Lock()
        self._seen: Tensor | None = None
        self._there: torch.cuda.Event | None = None

    def shows(self, image: CameraImage) -> bool:
        """Whether this is what ``image``, and no other of the same time, became."""
        return self._of() is image

    def get_preprocessed(self, prepare: Callable[[CameraImage], Tensor]) -> Tensor:
        """The image as the policy sees it, uint8 ``[S, S, 3]``, for the current stream;
        ``prepare`` is called the first time only (again where it raised).
        """
        with self._one:
            if self._seen is None:
                assert self.image is not None
                seen = prepare(self.image)
                if seen.is_cuda:
                    import torch

                    self._there = torch.cuda.Event()
                    self._there.record(torch.cuda.current_stream(seen.device))
                self._seen, self.image = seen, None
            seen = self._seen
        if self._there is not None:
            import torch

            self._there.wait(torch.cuda.current_stream(seen.device))
        return seen


class FrameHistory:
    """A time-stamped ring of images per camera. Pushed from callbacks, read by the inference
    thread.

    ``span_ns`` is how far back images are kept (20 control steps in this package), ``CAPACITY``
    bounds their number whatever the camera rate. The newest image is known even where it was
    thinned out or everything was forgotten, so that nobody prepares it again.
    """

    def __init__(self, span_ns: int, apart_ns: int = 1) -> None:
        self._span_ns = span_ns
        self._apart_ns = max(apart_ns, 1)
        self._lock = Lock()
        self._rings: dict[str, deque[Frame]] = {}
        self._newest: dict[str, Frame] = {}

    def push(self, camera: str, image: CameraImage) -> None:
        """Store an image, unless one taken within ``apart_ns`` before it is there.

        Images stamped after it are let go: a single stamp from the future must not keep every
        true image out. Messages that merely came late are not for this ring.
        """
        with self._lock:
            ring = self._rings.setdefault(camera, deque(maxlen=CAPACITY))
            if any(frame.shows(image) for frame in ring):
                return
            newest = self._newest.get(camera)
            if newest is None or not newest.shows(image):
                newest = self._newest[camera] = Frame(image)
            while ring and ring[-1].stamp_ns > image.stamp_ns:
                ring.pop()
            if ring and image.stamp_ns - ring[-1].stamp_ns < self._apart_ns:
                return
            ring.append(newest)
            oldest = image.stamp_ns - self._span_ns
            while len(ring) > 1 and ring[1].stamp_ns <= oldest:
                ring.popleft()

    def at(self, camera: str, stamp_ns: int, before_ns: int) -> Frame | None:
        """The newest image taken at or before ``stamp_ns``, else the oldest one before
        ``before_ns``.

        ``None`` where nothing is older than ``before_ns``: there is no past to compare with.
        """
        with self._lock:
            past = [p for p in self._rings.get(camera, ()) if p.stamp_ns < before_ns]
        if not past:
            return None
        older = [p for p in past if p.stamp_ns <= stamp_ns]
        return older[-1] if older else past[0]

    def between(self, first_ns: int, last_ns: int) -> list[tuple[str, Frame]]:
        """Camera and image of everything kept that was taken from ``first_ns`` to ``last_ns``."""
        with self._lock:
            return [
                (camera, frame)
                for camera, ring in self._rings.items()
                for frame in ring
                if first_ns <= frame.stamp_ns <= last_ns
            ]

    def of(self, camera: str, image: CameraImage) -> Frame | None:
        """Where this very image is kept; ``None`` where it was let go."""
        with self._lock:
            newest = self._newest.get(camera)
            if newest is not None and newest.shows(image):
                return newest
            ring = self._rings.get(camera, ())
            return next((frame for frame in reversed(ring) if frame.shows(image)), None)

    def clear(self) -> None:
        """Forget every image."""
        with self._lock:
            self._rings.clear()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(ring) for ring in self._rings.values())
