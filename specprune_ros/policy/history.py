"""Past pictures by time: what V_dynamic compares the newest picture with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

from torch import Tensor

from specprune_ros.policy.observation import Picture

CAPACITY = 64


class Frame:
    """A past picture: as it came until it is first looked at, from then on as the policy sees it,
    which is all that anybody compares and mostly much smaller. :meth:`look` and :meth:`keep` are
    for the thread that runs the policy.
    """

    def __init__(self, picture: Picture) -> None:
        self.stamp_ns = picture.stamp_ns
        self.picture: Picture | None = picture
        self._seen: Tensor | None = None

    def look(self, prepare: Callable[[Picture], Tensor]) -> Tensor:
        """The picture as the policy sees it; ``prepare`` is called the first time only."""
        if self._seen is None:
            assert self.picture is not None
            self.keep(prepare(self.picture))
        assert self._seen is not None
        return self._seen

    def keep(self, seen: Tensor) -> None:
        """Hold ``seen``, uint8 ``[S, S, 3]``, in the place of the picture it was made from."""
        self._seen, self.picture = seen, None


class FrameHistory:
    """A time-stamped ring of pictures per camera. Pushed from callbacks, read by the inference
    thread.

    ``span_ns`` is how far back pictures are kept (20 control steps in this package), ``CAPACITY``
    bounds their number whatever the camera rate.
    """

    def __init__(self, span_ns: int, apart_ns: int = 1) -> None:
        self._span_ns = span_ns
        self._apart_ns = max(apart_ns, 1)
        self._lock = Lock()
        self._rings: dict[str, deque[Frame]] = {}

    def push(self, camera: str, picture: Picture) -> None:
        """Store a picture, unless one taken within ``apart_ns`` before it is there.

        Pictures stamped after it are let go: a single stamp from the future must not keep every
        true picture out. Messages that merely came late are not for this ring.
        """
        with self._lock:
            ring = self._rings.setdefault(camera, deque(maxlen=CAPACITY))
            while ring and ring[-1].stamp_ns > picture.stamp_ns:
                ring.pop()
            if ring and picture.stamp_ns - ring[-1].stamp_ns < self._apart_ns:
                return
            ring.append(Frame(picture))
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
        """Where this very picture is kept; ``None`` where it was thinned out, let go, or seen."""
        with self._lock:
            ring = self._rings.get(camera, ())
            return next((frame for frame in reversed(ring) if frame.picture is picture), None)

    def clear(self) -> None:
        """Forget every picture."""
        with self._lock:
            self._rings.clear()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(ring) for ring in self._rings.values())
