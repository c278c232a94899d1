"""Subscriptions that refuse a message by its length before it is decoded.

Decoding builds a Python object for every element of a message and holds the interpreter meanwhile:
3 microseconds a string, 2.5 s for a diagnostics message of 17 MB. Bytes cost a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rclpy.serialization import deserialize_message

from specprune_ros.policy.input_limits import MAX_SIDE
from specprune_ros.robot.description import MAX_URDF

KIB = 1024
SMALL = 4 * KIB  # poses, twists, flags, a driver's status: numbers and a frame's name
DESCRIPTION = MAX_URDF + KIB
# Most bytes of one message by the name of its type; SMALL of others. docs/explanation/security.md
# shows them.
MOST = {
    'ActionChunk': 128 * KIB,
    'CameraInfo': 16 * KIB,
    'CompressedImage': 16 * KIB * KIB,
    'DiagnosticArray': 32 * KIB,
    'Image': 4 * MAX_SIDE * MAX_SIDE + SMALL,
    'JointState': 64 * KIB,
    'String': 64 * KIB,
}


def subscribe(
    node: Any,
    kind: type,
    topic: str,
    callback: Callable[..., None],
    qos: Any,
    refused: Callable[[str], None],
    most: int = 0,
    mentions: str = '',
    published: bool = False,
) -> Any:
    """A subscription whose ``callback`` gets messages of at most ``most`` bytes on the wire (0:
    what :data:`MOST` says of the type).

    ``refused`` gets the reason of a drop. With ``mentions``, messages that do not hold that
    text are passed over undecoded and unmentioned. With ``published``, ``callback`` also gets the
    time at which its publisher sent the message (ns, by that clock; 0: unknown).
    """
    wanted, most = mentions.encode(), most or MOST.get(kind.__name__, SMALL)

    def on_bytes(raw: bytes, info: Mapping[str, Any]) -> None:
        if len(raw) > most:
            refused(f'a message of {len(raw)} bytes was not read; at most {most}')
            return
        if wanted not in raw:
            return
        try:
            message = deserialize_message(raw, kind)
        except Exception as error:  # whatever the middleware raises for bytes that are no message
            refused(f'a message of {len(raw)} bytes cannot be decoded: {error}')
            return
        if published:
            callback(message, int(info['source_timestamp']))
        else:
            callback(message)

    return node.create_subscription(kind, topic, on_bytes, qos, raw=True)
