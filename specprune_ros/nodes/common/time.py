"""Between time messages and nanoseconds, the one form all stamps are compared in."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Time

SECOND_NS = 1_000_000_000


def nanoseconds(stamp: Any) -> int:
    """A time message in nanoseconds. Never raises: a senseless stamp is for the age checks."""
    return stamp.sec * SECOND_NS + stamp.nanosec


def stamp_ns(message: Any) -> int:
    """A message's header stamp in nanoseconds."""
    return nanoseconds(message.header.stamp)


def time_message(nanoseconds: int) -> Time:
    """A time message; times before the epoch become zero, which is all that robots expect."""
    seconds, rest = divmod(max(nanoseconds, 0), SECOND_NS)
    return Time(sec=seconds, nanosec=rest)
