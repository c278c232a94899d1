"""Poses, twists and rotations; the one place with rotation algebra, which is Pinocchio's.

Quaternions are unit ``(x, y, z, w)``, rotation vectors are axis times angle in radians, all as
tuples. Pinocchio because these run at 100 Hz on single rotations: about 1 us a call, where SciPy
takes 15 to 30.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

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


def _eigen(q: Sequence[float]) -> pin.Quaternion:
    return pin.Quaternion(q[3], q[0], q[1], q[2])


def _tuple(q: pin.Quaternion) -> Quaternion:
    return tuple(q.coeffs().tolist())


def normalised(q: Sequence[float]) -> Quaternion:
    """Unit quaternion along ``q``; the identity where its length is zero or not finite."""
    length = math.hypot(*q)
    if not (length > 0.0 and math.isfinite(length)):
        return IDENTITY
    return (q[0] / length, q[1] / length, q[2] / length, q[3] / length)


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Rotation ``b`` followed by ``a``."""
    return _tuple(_eigen(a) * _eigen(b))


def inverse(q: Quaternion) -> Quaternion:
    """The opposite rotation."""
    return (-q[0], -q[1], -q[2], q[3])


def rotate(q: Quaternion, v: Vector) -> Vector:
    """Vector ``v`` turned by ``q``."""
    return tuple((_eigen(q) * np.array(v)).tolist())


def from_rotation_vector(v: Sequence[float]) -> Quaternion:
    """Quaternion of a rotation vector; the identity where it is not finite."""
    angle = math.hypot(*v)
    if angle < 1e-8:  # in double precision the series of first order
        return normalised((0.5 * v[0], 0.5 * v[1], 0.5 * v[2], 1.0))
    turn = pin.AngleAxis(angle, np.array(v) / angle)
    return normalised(pin.Quaternion(turn).coeffs().tolist())


def rotation_vector(q: Quaternion, shorter: bool = True) -> Vector:
    """Rotation vector of a unit quaternion.

    The shorter way round (angle at most pi), or as the quaternion's sign says (at most 2 pi).
    """
    turn = pin.AngleAxis(_eigen(q))
    angle = turn.angle if shorter or q[3] >= 0.0 else turn.angle - math.tau
    return tuple((angle * turn.axis).tolist())


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
    return _tuple(pin.Quaternion(pin.rpy.rpyToMatrix(roll, pitch, yaw)))


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
    return Pose(
        add(scale(a.position, 1.0 - share), scale(b.position, share)),
        normalised(_tuple(_eigen(a.orientation).slerp(share, _eigen(b.orientation)))),
    )
