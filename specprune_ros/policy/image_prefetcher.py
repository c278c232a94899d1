"""Images prepared when they arrive, so that a query finds them ready.

The JPEG round trip, the upload, resizing and cropping happen here, once per image; the history
keeps the result. The similarity of two frames stays in the query: which past image it compares
with depends on how far the hand has come, and on a GPU it is part of the captured graph and takes
microseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from specprune_ros.policy.observation import CameraImage


class ImagePrefetcher(threading.Thread):
    """Has ``prepare`` (:meth:`Policy.look`) look at the newest image of each camera.

    One image per camera may wait, and a newer one takes its place; cameras take turns. A GPU
    works in a stream beside the queries'. What cannot be prepared is left to the query, which
    says why; :attr:`trouble` is the last reason, empty when it went well.
    """

    def __init__(
        self, prepare: Callable[[str, CameraImage], Tensor], device: torch.device | str
    ) -> None:
        super().__init__(name='arrival', daemon=True)
        self._prepare = prepare
        place = torch.device(device)
        self._stream = torch.cuda.Stream(place) if place.type == 'cuda' else None
        self._changed = threading.Condition()
        self._waiting: dict[str, CameraImage] = {}
        self._closed = False
        self.trouble = ''

    def offer(self, camera: str, image: CameraImage) -> None:
        """An image arrived. Returns at once; any thread."""
        with self._changed:
            # An older one of this camera keeps its turn for the newer.
            self._waiting[camera] = image
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Forget what waits and end after the image under way."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Thread body."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting)
                    if self._closed:
                        return
                    camera = next(iter(self._waiting))
                    image = self._waiting.pop(camera)
                try:
                    self._prepare(camera, image)
                    self.trouble = ''
                except Exception as error:  # the query will meet it, and refuse
                    self.trouble = f'{camera}: {error}'.partition('\n')[0]
                del image
