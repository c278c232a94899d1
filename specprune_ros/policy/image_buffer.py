"""The images of the last moments, each preprocessed once: the one owner of images.

Callbacks push, the inference thread reads. An image is preprocessed by whoever needs it first: the
query, or a thread that does it on arrival, so that a query finds it ready.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from specprune_ros.policy.observation import CameraImage

if TYPE_CHECKING:  # a client of a policy server has no PyTorch
    import torch
    from torch import Tensor

CAPACITY = 64  # images per camera, whatever its rate
LATE_NS = 500_000_000  # an image older than the newest by less came late

Preprocess = Callable[[str, CameraImage], 'Tensor']


class Frame:
    """An image as it came until somebody needs it, from then on as the policy sees it, which is
    all that anybody compares and mostly much smaller.

    It is preprocessed once, by the thread that needs it first; another one waits. On a GPU each
    thread may work in a stream of its own: the reader's stream waits until the image is there, and
    the reader must hold the image until that stream is done with it.
    """

    def __init__(self, image: CameraImage) -> None:
        self.stamp_ns = image.stamp_ns
        self.image: CameraImage | None = image
        self.source = weakref.ref(image)  # tells it from another one of the same time
        self._one = threading.Lock()
        self._seen: Tensor | None = None
        self._there: torch.cuda.Event | None = None

    def get_preprocessed(self, preprocess: Preprocess, camera: str) -> Tensor:
        """The image as the policy sees it, uint8 ``[S, S, 3]``, for the current stream;
        ``preprocess`` is called the first time only (again where it raised).
        """
        with self._one:
            if self._seen is None:
                assert self.image is not None
                seen = preprocess(camera, self.image)
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


class ImageBuffer:
    """A time-stamped ring of images per camera. Pushed from callbacks, read by the inference
    thread.

    ``preprocess`` turns a camera's image into what the policy sees (``None``: not needed here);
    ``span_ns`` is how far back images are kept (20 control steps in this package), ``CAPACITY``
    bounds their number whatever the camera rate. The newest image is known even where it was
    thinned out or everything was forgotten, so that it is never preprocessed again.
    """

    def __init__(
        self, span_ns: int, apart_ns: int = 1, preprocess: Preprocess | None = None
    ) -> None:
        self._preprocess = preprocess
        self._span_ns = span_ns
        self._apart_ns = max(apart_ns, 1)
        self._lock = threading.Lock()
        self._rings: dict[str, deque[Frame]] = {}
        self._newest: dict[str, Frame] = {}
        self._prefetch: _Prefetch | None = None

    def push(self, camera: str, image: CameraImage) -> None:
        """Store an image, unless one taken within ``apart_ns`` before it is there.

        Images stamped after it are let go: a single stamp from the future must not keep every
        true image out. One that merely came late (``LATE_NS``) changes nothing.
        """
        with self._lock:
            ring = self._rings.setdefault(camera, deque(maxlen=CAPACITY))
            if ring and 0 < ring[-1].stamp_ns - image.stamp_ns < LATE_NS:
                return
            newest = self._newest.get(camera)
            if newest is None or newest.source() is not image:
                if any(frame.source() is image for frame in ring):
                    return
                newest = self._newest[camera] = Frame(image)
                prefetch = self._prefetch  # another thread may stop it
                if prefetch is not None:
                    prefetch.offer(camera, newest)
            elif ring and ring[-1] is newest:
                return
            while ring and ring[-1].stamp_ns > image.stamp_ns:
                ring.pop()
            if ring and image.stamp_ns - ring[-1].stamp_ns < self._apart_ns:
                return
            ring.append(newest)
            oldest = image.stamp_ns - self._span_ns
            while len(ring) > 1 and ring[1].stamp_ns <= oldest:
                ring.popleft()

    def preprocessed(self, camera: str, image: CameraImage) -> Tensor:
        """One image as the policy sees it, uint8 ``[S, S, 3]`` on the device. Any thread.

        Raises what ``preprocess`` raises.
        """
        frame = self.of(camera, image)
        if frame is None:  # let go already
            return self._preprocess(camera, image)
        return frame.get_preprocessed(self._preprocess, camera)

    def of(self, camera: str, image: CameraImage) -> Frame | None:
        """Where this very image is kept; ``None`` where it was let go."""
        with self._lock:
            newest = self._newest.get(camera)
            if newest is not None and newest.source() is image:
                return newest
            ring = self._rings.get(camera, ())
            return next((frame for frame in reversed(ring) if frame.source() is image), None)

    def at(self, camera: str, stamp_ns: int, before_ns: int) -> Frame | None:
        """The newest image taken at or before ``stamp_ns``, else the oldest one before
        ``before_ns``.

        ``None`` where nothing is older than ``before_ns``: there is no past to compare with.
        """
        with self._lock:
            past = [frame for frame in self._rings.get(camera, ()) if frame.stamp_ns < before_ns]
        if not past:
            return None
        older = [frame for frame in past if frame.stamp_ns <= stamp_ns]
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

    def clear(self) -> None:
        """Forget every past image."""
        with self._lock:
            self._rings.clear()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(ring) for ring in self._rings.values())

    def prefetch(self, device: torch.device | str) -> None:
        """Preprocess images on arrival from now on, in a thread of its own."""
        self.stop_prefetch()
        self._prefetch = _Prefetch(self._preprocess, device)
        self._prefetch.start()

    def stop_prefetch(self, timeout: float = 5.0) -> None:
        """Leave images to the queries again, after the one under way."""
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is not None:
            prefetch.close(timeout)

    @property
    def prefetch_trouble(self) -> str | None:
        """Why the last image could not be preprocessed on arrival (empty: it could); ``None``
        where that is not tried.
        """
        prefetch = self._prefetch
        return None if prefetch is None else prefetch.trouble


class _Prefetch(threading.Thread):
    """Preprocesses the newest image of each camera; see :class:`ImageBuffer`.

    One image per camera may wait, and a newer one takes its place; cameras take turns. A GPU
    works in a stream beside the queries'. What cannot be preprocessed is left to the query, which
    says why. The similarity of two frames stays in the query: which past image it compares with
    depends on how far the end effector has come, and on a GPU it is part of the captured graph.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device | str) -> None:
        super().__init__(name='prefetch', daemon=True)
        import torch

        self._preprocess = preprocess
        place = torch.device(device)
        self._stream = None
        if place.type == 'cuda':
            from specprune_ros.models.accel.streams import stream_for

            self._stream = stream_for('prefetch', place)
        self._changed = threading.Condition()
        self._waiting: dict[str, Frame] = {}
        self._closed = False
        self.trouble = ''

    def offer(self, camera: str, frame: Frame) -> None:
        """An image arrived. Returns at once; any thread."""
        with self._changed:
            # An older one of this camera keeps its turn for the newer.
            self._waiting[camera] = frame
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Forget what waits and end after the image under way."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Thread body."""
        with nullcontext() if self._stream is None else _entered(self._stream):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting)
                    if self._closed:
                        return
                    camera = next(iter(self._waiting))
                    frame = self._waiting.pop(camera)
                try:
                    frame.get_preprocessed(self._preprocess, camera)
                    self.trouble = ''
                except Exception as error:  # the query will meet it, and refuse
                    self.trouble = f'{camera}: {error}'.partition('\n')[0]
                del frame


def _entered(stream: torch.cuda.Stream) -> AbstractContextManager[None]:
    import torch

    return torch.cuda.stream(stream)
