"""Decodes compressed images in a thread of its own, the newest of each camera."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from specprune_ros.nodes.common.images import ImageError

LONGEST = 0.5  # s; an image that took longer to decode is of no use to a policy


class ImageDecoder:
    """``done(camera, message, pixels or error)`` is called in the node's thread.

    While one image is being decoded, a newer one of the same camera replaces the one that waits.
    Decoders give the interpreter back while they work, so that neither callbacks nor queries wait.
    """

    def __init__(
        self,
        node: Any,
        decode: Callable[[Any], np.ndarray],
        done: Callable[[str, Any, np.ndarray | ImageError], None],
    ) -> None:
        self._node, self._decode, self._done = node, decode, done
        self._waiting: dict[str, Any] = {}
        self._found: deque[tuple[str, Any, np.ndarray | ImageError]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._guard = node.create_guard_condition(self._deliver)
        self._thread = threading.Thread(target=self._work, name='image decoder', daemon=True)
        self._thread.start()

    def put(self, camera: str, message: Any) -> None:
        """Decode a message, unless a newer one of this camera comes before its turn."""
        with self._changed:
            self._waiting[camera] = message
            self._changed.notify()

    def close(self) -> None:
        """Stop; what is being decoded is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(LONGEST)
        self._node.destroy_guard_condition(self._guard)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                camera = next(iter(self._waiting))
                message = self._waiting.pop(camera)
            found: np.ndarray | ImageError
            begin = time.monotonic()
            try:
                found = self._decode(message)
                took = time.monotonic() - begin
                if took > LONGEST:
                    found = ImageError(f'took {took:.1f} s to decode; at most {LONGEST} s')
            except ImageError as error:
                found = error
            with self._changed:
                if self._closed:
                    return
                self._found.append((camera, message, found))
                self._guard.trigger()

    def _deliver(self) -> None:
        while self._found:
            self._done(*self._found.popleft())
