"""Quality-of-service profiles, one per kind of topic."""

from __future__ import annotations

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)


def newest(reliable: bool = False) -> QoSProfile:
    """Keep only the newest message: images and high-rate state."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def every(depth: int = 10) -> QoSProfile:
    """Deliver every message: chunks, statistics, commands."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )


def latched() -> QoSProfile:
    """Deliver the last message to those who come late: instruction, robot description."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def both_durabilities() -> tuple[QoSProfile, QoSProfile]:
    """For two subscriptions of one topic: one gets what was latched before, but does not match
    publishers that latch nothing (``ros2 topic pub``); the other gets those. A message may come
    by both.
    """
    return latched(), every()
