"""The numbers of the simulated arm: a Flexiv Rizon4 as published, with a plain two-finger gripper.

Kinematics, limits and masses are the vendor's published values; shapes are our own primitives, so
the arm is "Rizon4-like". The scene (:mod:`.scene`) and the URDF (:mod:`.urdf`) are both made from
this table, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Joint:
    """One revolute joint and the link it moves (SI units, radians).

    ``offset`` and ``rpy`` place the joint in its parent link (roll, pitch, yaw about fixed axes).
    ``centre`` is the centre of mass in the link's own frame.
    """

    name: str
    offset: tuple[float, float, float]
    rpy: tuple[float, float, float]
    axis: tuple[int, int, int]
    lower: float
    upper: float
    torque: float
    velocity: float
    mass: float
    centre: tuple[float, float, float]


_Y, _Z, _PI = (0, 1, 0), (0, 0, 1), math.pi

JOINTS = (
    Joint('joint1', (0, 0, 0.155), (0, 0, -_PI), _Z, -2.8798, 2.8798, 123, 2.0944, 3.6,
          (0, 0.015, 0.12)),
    Joint('joint2', (0, 0.03, 0.21), (0, 0, 0), _Y, -2.3562, 2.3562, 123, 2.0944, 2.7,
          (0, 0.02, 0.1)),
    Joint('joint3', (0, 0.035, 0.205), (0, 0, 0), _Z, -3.0543, 3.0543, 64, 2.4435, 2.4,
          (-0.01, -0.015, 0.1)),
    Joint('joint4', (-0.02, -0.03, 0.19), (0, 0, -_PI), _Y, -1.9548, 2.7751, 64, 2.4435, 2.4,
          (-0.01, 0.015, 0.1)),
    Joint('joint5', (-0.02, 0.025, 0.195), (0, 0, -_PI), _Z, -3.0543, 3.0543, 39, 4.8869, 2.3,
          (0, 0.015, 0.1)),
    Joint('joint6', (0, 0.03, 0.19), (0, 0, 0), _Y, -1.4835, 4.6251, 39, 4.8869, 2.2,
          (-0.01, 0.04, 0.06)),
    Joint('joint7', (-0.015, 0.073, 0.11), (0, -_PI / 2, 0), _Z, -3.0543, 3.0543, 39, 4.8869, 0.8,
          (0, 0, 0.04)),
)  # fmt: skip

FLANGE = 0.081  # m along z of link 7, turned by pi about z
HOME = tuple(math.radians(angle) for angle in (0, -40, 0, 90, 0, 40, 0))  # tool straight down

FINGER_NAMES = ('finger_joint1', 'finger_joint2')
FINGER_STROKE = 0.04  # m each, so the gripper opens to 0.08 m
FINGER_SPEED = 0.15  # m/s each
FINGER_FORCE = 30.0  # N each
FINGER_MASS = 0.05  # kg each
FINGER_REACH = 0.085  # m from the flange to where the fingers start
HAND_MASS = 0.7  # kg
TCP_REACH = 0.145  # m from the flange to the tool centre point between the finger tips

JOINT_NAMES = tuple(joint.name for joint in JOINTS) + FINGER_NAMES


def link_inertia(mass: float) -> tuple[float, float, float]:
    """Principal moments, kg m^2, of a link taken as a 0.2 m rod of 0.05 m radius along z."""
    across = mass * (3 * 0.05**2 + 0.2**2) / 12
    return across, across, mass * 0.05**2 / 2


def box_inertia(mass: float, half: tuple[float, float, float]) -> tuple[float, float, float]:
    """Principal moments, kg m^2, of a box with the given half sizes in metres."""
    x, y, z = ((2 * size) ** 2 for size in half)
    return mass * (y + z) / 12, mass * (x + z) / 12, mass * (x + y) / 12


HAND_HALF = (0.024, 0.052, 0.0425)
FINGER_HALF = (0.011, 0.007, 0.034)
