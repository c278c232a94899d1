"""Between ROS images and numpy, without cv_bridge (which ties numpy to one major version)."""

from __future__ import annotations

import array
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from specprune_ros.bounded_files import one_line
from specprune_ros.policy.image_bytes import ImageError, check_size, decode

LONGEST = 0.5  # s; an image that took longer to decode is of no use to a policy
# Channels per pixel, and OpenCV's conversion to RGB.
ENCODINGS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
}


def to_rgb(message: Image) -> np.ndarray:
    """Decode a raw image to uint8 ``[height, width, 3]`` RGB, honouring the row stride.

    Raises :class:`ImageError` for an unknown encoding, an impossible size, or data that do not
    fill the rows announced.
    """
    if message.encoding not in ENCODINGS:
        raise ImageError(
            f"encoding '{one_line(message.encoding, 40)}' is not read; use one of "
            f'{", ".join(ENCODINGS)}'
        )
    channels, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    check_size(width, height)
    if step < width * channels:
        raise ImageError(
            f'step is {step} bytes, but {width} {message.encoding} pixels need {width * channels}'
        )
    if len(message.data) != step * height:
        raise ImageError(
            f'data has {len(message.data)} bytes, but step {step} x height {height} '
            f'is {step * height}'
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)
    return np.array(pixels) if conversion is None else cv2.cvtColor(pixels, conversion)


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """Decode a JPEG or PNG image as :func:`decode` does. Raises :class:`ImageError`."""
    try:
        return decode(bytes(message.data))
    except ImageError as error:
        raise ImageError(
            f"compressed image (format '{one_line(message.format, 40)}') is no readable JPEG or "
            f'PNG: {one_line(error)}'
        ) from error


def to_message(pixels: np.ndarray) -> Image:
    """A raw rgb8 image message from uint8 ``[height, width, 3]``; the header is left to the
    caller.
    """
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    # rclpy copies an array.array whole, but checks any other sequence element by element.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).tobytes())
    message.data = data
    return message


class ImageDecoder:
    """Decodes compressed images in a thread of its own, the newest of each camera.

    ``done(camera, message, pixels or error)`` is called in the node's thread.

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
