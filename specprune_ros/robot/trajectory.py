"""What a joint trajectory controller is sent for one control period's command.

Two points: where the joints are ``reach`` seconds on, and the same motion brought to rest. Each
message replaces the one before it, so the second point is reached only when the stream ends: the
arm then comes to rest by itself, and controllers that refuse a trajectory ending in motion
(``allow_nonzero_velocity_at_trajectory_end`` false) take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specprune_ros.robot.safety import Command, JointLimit

REST_S = 0.1  # s, shortest time to come to rest in after the last point


@dataclass(frozen=True)
class Point:
    """Joint positions (rad) and velocities (rad/s) ``seconds`` from now."""

    seconds: float
    positions: tuple[float, ...]
    velocities: tuple[float, ...]


def points(
    command: Command, limits: Mapping[str, JointLimit], reach: float, period: float
) -> tuple[Point, ...]:
    """The points of a joint command that passed the safety filter; of one at rest the last."""
    at, speeds = command.positions, command.velocities
    if not any(speeds):
        return (Point(REST_S, at, speeds),)
    ahead = reach - period
    brake = REST_S
    for name, v in zip(command.joints, speeds, strict=True):
        brake = max(brake, abs(v) / limits[name].acceleration)
    moving, resting = [], []
    for name, q, v in zip(command.joints, at, speeds, strict=True):
        limit = limits[name]
        # Clamped outwards only: a joint outside its range is not thrown back into it.
        low, high = min(limit.lower, q), max(limit.upper, q)
        moving.append(min(max(q + v * ahead, low), high))
        resting.append(min(max(moving[-1] + 0.5 * v * brake, low), high))
    return (
        Point(reach, tuple(moving), speeds),
        Point(reach + brake, tuple(resting), (0.0,) * len(resting)),
    )
