"""Reading and writing rosbag2 recordings with ``rosbags``, with this package's messages
registered.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from sensor_msgs.msg import CompressedImage, Image

from specprune_ros.bounded_files import MEBIBYTE, boundary, read_yaml
from specprune_ros.nodes.common.images import to_rgb
from specprune_ros.nodes.common.remapping import share

MOST_MESSAGE = 72 << 20  # bytes of a recorded message: a raw image of 4096 pixels a side
MOST_METADATA = 16 * MEBIBYTE  # bytes of metadata.yaml, which names every file and every topic
JPEG_QUALITY = 85


# In a recording's metadata: the checkpoint's folder that was running, empty for random weights.
WEIGHTS = 'specprune_weights'
SHIPPED = 'shipped'


def bundled_weights() -> str:
    """Folder of the policy trained for the simulated arm; empty where none was shipped."""
    folder = Path(__file__).parents[1] / 'sim' / 'weights'
    return str(folder) if folder.is_dir() and any(folder.iterdir()) else ''


class BagError(ValueError):
    """A recording that cannot be read; the message names the file and the reason."""


def type_name(kind: type) -> str:
    """The name of a message class, such as ``sensor_msgs/msg/Image``."""
    package = kind.__module__.split('.')[0]
    return f'{package}/msg/{kind.__name__}'


def typestore() -> Typestore:
    """Message definitions of ROS 2 and of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted((share() / 'msg').glob('*.msg')):
        name = f'specprune_ros/msg/{path.stem}'
        store.register(get_types_from_msg(path.read_text(), name))
    return store


class BagWriter:
    """Writes rclpy messages to an MCAP recording. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._store = typestore()
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def note(self, name: str, value: str) -> None:
        """Keep a text in the recording's metadata (``custom_data``)."""
        self._writer.set_custom_data(name, value)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Append a message received at ``stamp_ns``."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, type_name(type(message)), typestore=self._store
            )
        self._writer.write(self._connections[topic], stamp_ns, serialize_message(message))


def own_weights(bag: BagReader, simulated: bool) -> tuple[str, str]:
    """The checkpoint that a recording belongs to (empty: random weights), and why that one.

    What ran when the demo recorded it; for another recording of the simulated arm the policy that
    comes with the package. Raises :class:`BagError` where what ran is not here.
    """
    noted = bag.notes().get(WEIGHTS)
    if noted == SHIPPED or (noted is None and simulated):
        if bundled_weights():
            return bundled_weights(), 'the policy that comes with the package'
        noted = None
    if noted:
        if not Path(noted).is_dir():
            raise BagError(
                f'{bag.path}: recorded with the checkpoint {noted}, which is not here; give '
                '--checkpoint'
            )
        return noted, 'the checkpoint that was running when it was recorded'
    why = 'as when it was recorded' if noted == '' else 'the recording names no checkpoint'
    return '', why


@dataclass(frozen=True)
class Recorded:
    """One message of a recording."""

    topic: str
    stamp_ns: int
    message: Any


class BagReader:
    """Reads messages of known classes from an MCAP or sqlite3 recording. Use as a context manager.

    Raises :class:`BagError` for a path that is no recording.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise BagError(f'{path}: no such file or folder')
        # A recording is a folder with metadata.yaml; a data file of one can be read by itself.
        try:
            self._reader = AnyReader([path], default_typestore=typestore())
            self._reader.open()
        except Exception as error:  # readers of four formats, and what each may meet
            raise BagError(
                f'{path}: not a rosbag2 recording (a folder with metadata.yaml and MCAP or '
                f'sqlite3 data, or one such file): {error}'
            ) from error
        self.path = path

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()

    @property
    def duration(self) -> float:
        """Seconds from the first to the last message."""
        return self._reader.duration / 1e9

    def notes(self) -> dict[str, str]:
        """Texts in the metadata (``custom_data``); none where one data file is read by itself.
        Raises :class:`BagError`.
        """
        file = self.path / 'metadata.yaml'
        if not file.is_file():
            return {}
        with boundary(file, BagError):
            tree = read_yaml(file, MOST_METADATA)
        held = tree.get('rosbag2_bagfile_information') if isinstance(tree, dict) else None
        found = held.get('custom_data') if isinstance(held, dict) else None
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def topics(self) -> dict[str, str]:
        """Type name by topic."""
        return {connection.topic: connection.msgtype for connection in self._reader.connections}

    @property
    def start_ns(self) -> int:
        """When the first message was received."""
        return self._reader.start_time

    def messages(
        self, classes: dict[str, type], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[Recorded]:
        """Messages of the topics in ``classes`` (topic to message class), in time order, received
        from ``start_ns`` on and before ``stop_ns``. Raises :class:`BagError`.
        """
        chosen = [c for c in self._reader.connections if c.topic in classes]
        found = self._reader.messages(chosen, start_ns, stop_ns)
        while True:
            with boundary(self.path, BagError):  # a damaged chunk shows only where it is read
                item = next(found, None)
            if item is None:
                return
            connection, stamp, data = item
            if len(data) > MOST_MESSAGE:
                raise BagError(
                    f'{self.path}: a message of {len(data)} bytes on {connection.topic}; at most '
                    f'{MOST_MESSAGE} are read'
                )
            try:
                message = deserialize_message(bytes(data), classes[connection.topic])
            except Exception as error:  # the middleware's own errors have no common type
                raise BagError(
                    f'{self.path}: a message on {connection.topic} at {stamp} ns does not decode '
                    f'as {connection.msgtype}: {error}'
                ) from error
            yield Recorded(connection.topic, stamp, message)


def jpeg(message: Image) -> CompressedImage:
    """The same image as a JPEG, for recordings that stay small."""
    return jpeg_of(to_rgb(message), message.header)


def jpeg_of(pixels: np.ndarray, header: Any) -> CompressedImage:
    """A JPEG message from uint8 ``[height, width, 3]``."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format='JPEG', quality=JPEG_QUALITY)
    message = CompressedImage(format='jpeg')
    message.header = header
    message.data = buffer.getvalue()
    return message
