"""Poses, twists and rotations as plain tuples.

Quaternions are unit ``(x, y, z, w)``, rotation vectors are axis times angle in radians. Plain
floats instead of arrays: at 100 Hz these run on single vectors, where an array costs more than
the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]

ZERO: Vector = (0.0, 0.0, 0.0)
IDENTITY: Quaternion = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Pose:
    """Position in metres and orientation as a unit quaternion ``(x, y, z, w)``."""

    position: Vector
    orientation: Quaternion = IDENTITY

    def finite(self) -> bool:
        """Whether every number is finite and the quaternion has unit length within 1e-2."""
        return (
            all_finite(self.position)
            and all_finite(self.orientation)
            and abs(math.sqrt(sum(c * c for c in self.orientation)) - 1.0) < 1e-2
        )


@dataclass(frozen=True)
class Twist:
    """Linear velocity in m/s and angular velocity in rad/s, both along the axes of one frame."""

    linear: Vector = ZERO
    angular: Vector = ZERO

    @property
    def six(self) -> tuple[float, ...]:
        """``(vx, vy, vz, wx, wy, wz)``."""
        return self.linear + self.angular

    @classmethod
    def of(cls, six: Sequence[float]) -> Twist:
        """From six numbers."""
        return cls(_three(six[0:3]), _three(six[3:6]))

    def finite(self) -> bool:
        """Whether every number is finite."""
        return all_finite(self.linear) and all_finite(self.angular)


def _three(values: Sequence[float]) -> Vector:
    return (float(values[0]), float(values[1]), float(values[2]))


def all_finite(values: Iterable[float]) -> bool:
    """Whether no number is NaN or infinite."""
    return all(math.isfinite(v) for v in values)


def norm(vector: Sequence[float]) -> float:
    """Euclidean length."""
    return math.hypot(*vector)


def add(a: Vector, b: Vector) -> Vector:
    """Sum."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def subtract(a: Vector, b: Vector) -> Vector:
    """Difference ``a - b``."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scale(a: Vector, factor: float) -> Vector:
    """Vector times number."""
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def normalised(q: Sequence[float]) -> Quaternion:
    """Unit quaternion along ``q``; the identity where its length is zero or not finite."""
    length = math.sqrt(sum(c * c for c in q))
    if not (length > 0.0 and math.isfinite(length)):
        return IDENTITY
    return (q[0] / length, q[1] / length, q[2] / length, q[3] / length)


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Rotation ``b`` followed by ``a``."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def inverse(q: Quaternion) -> Quaternion:
    """The opposite rotation."""
    return (-q[0], -q[1], -q[2], q[3])


def rotate(q: Quaternion, v: Vector) -> Vector:
    """Vector ``v`` turned by ``q``."""
    x, y, z, w = q
    tx = 2.0 * (y * v[2] - z * v[1])
    ty = 2.0 * (z * v[0] - x * v[2])
    tz = 2.0 * (x * v[1] - y * v[0])
    return (
        v[0] + w * tx + y * tz - z * ty,
        v[1] + w * ty + z * tx - x * tz,
        v[2] + w * tz + x * ty - y * tx,
    )


def from_rotation_vector(v: Sequence[float]) -> Quaternion:
    """Quaternion of a rotation vector."""
    angle = math.hypot(*v)
    # Below 1e-8 the series 1/2 - angle^2/48 equals 1/2 in double precision.
    factor = 0.5 if angle < 1e-8 else math.sin(0.5 * angle) / angle
    return normalised((v[0] * factor, v[1] * factor, v[2] * factor, math.cos(0.5 * angle)))


def rotation_vector(q: Quaternion) -> Vector:
    """Rotation vector of a unit quaternion, the shorter way round (angle at most pi)."""
    x, y, z, w = q if q[3] >= 0.0 else (-q[0], -q[1], -q[2], -q[3])
    sine = math.hypot(x, y, z)
    factor = 2.0 if sine < 1e-12 else 2.0 * math.atan2(sine, w) / sine
    return (x * factor, y * factor, z * factor)


def rotation_vector_near(q: Quaternion, near: Sequence[float]) -> Vector:
    """The rotation vector of a unit quaternion that is nearest to ``near``, whole turns added.

    A tool pointing down is half a turn away, where the shorter way jumps between two ends;
    checkpoints were trained on vectors that go on past pi (robosuite's ``quat2axisangle``).
    """
    vector = rotation_vector(q)
    angle = norm(vector)
    if angle < 1e-9:
        return vector
    others = (scale(vector, 1.0 + turn * math.tau / angle) for turn in (-1.0, 0.0, 1.0))
    return min(others, key=lambda v: math.dist(v, near))


def from_euler_xyz(roll: float, pitch: float, yaw: float) -> Quaternion:
    """Quaternion of fixed-axis roll, pitch, yaw: about x, then y, then z of the same frame."""
    qx = (math.sin(0.5 * roll), 0.0, 0.0, math.cos(0.5 * roll))
    qy = (0.0, math.sin(0.5 * pitch), 0.0, math.cos(0.5 * pitch))
    qz = (0.0, 0.0, math.sin(0.5 * yaw), math.cos(0.5 * yaw))
    return multiply(qz, multiply(qy, qx))


def rotation_between(a: Quaternion, b: Quaternion) -> Vector:
    """Rotation vector, along the axes of the common frame, that turns ``a`` into ``b``."""
    return rotation_vector(multiply(b, inverse(a)))


def integrate(pose: Pose, twist: Twist, seconds: float) -> Pose:
    """Pose after moving with a constant twist, both along the axes of the same frame."""
    return Pose(
        add(pose.position, scale(twist.linear, seconds)),
        normalised(
            multiply(from_rotation_vector(scale(twist.angular, seconds)), pose.orientation)
        ),
    )


def twist_between(a: Pose, b: Pose, seconds: float) -> Twist:
    """Constant twist that brings pose ``a`` to pose ``b`` in ``seconds``."""
    return Twist(
        scale(subtract(b.position, a.position), 1.0 / seconds),
        scale(rotation_between(a.orientation, b.orientation), 1.0 / seconds),
    )


def blend(a: Pose, b: Pose, share: float) -> Pose:
    """Pose a ``share`` (0 to 1) of the way from ``a`` to ``b``: straight line, shortest arc."""
    turn = scale(rotation_between(a.orientation, b.orientation), share)
    return Pose(
        add(scale(a.position, 1.0 - share), scale(b.position, share)),
        normalised(multiply(from_rotation_vector(turn), a.orientation)),
    )
