"""The simulated arm as URDF text, for ``robot_description``; same numbers as the scene."""

from __future__ import annotations

import math

from specprune_ros.sim.arm import rizon4

BASE_FRAME, TCP_FRAME = 'base_link', 'tcp'


def _text(values: tuple[float, ...]) -> str:
    return ' '.join(f'{value:.15g}' for value in values)


def _link(
    name: str,
    mass: float,
    centre: tuple[float, ...],
    inertia: tuple[float, float, float],
    shape: str = '',
) -> str:
    ixx, iyy, izz = inertia
    visual = f'<visual>{shape}</visual>' if shape else ''
    return (
        f'<link name="{name}"><inertial><origin xyz="{_text(centre)}"/><mass value="{mass}"/>'
        f'<inertia ixx="{ixx:.6g}" ixy="0" ixz="0" iyy="{iyy:.6g}" iyz="0" izz="{izz:.6g}"/>'
        f'</inertial>{visual}</link>'
    )


def _fixed(
    name: str, parent: str, child: str, z: float, pitch: float = 0.0, yaw: float = 0.0
) -> str:
    return (
        f'<joint name="{name}" type="fixed"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="0 0 {z:.15g}" rpy="0 {pitch:.15g} {yaw:.15g}"/></joint>'
    )


def _box(half: tuple[float, float, float], centre: tuple[float, ...]) -> str:
    size = _text(tuple(2 * h for h in half))
    return f'<origin xyz="{_text(centre)}"/><geometry><box size="{size}"/></geometry>'


def urdf(name: str = 'rizon4_like') -> str:
    """URDF of arm and gripper: ``base_link``, ``link1..7``, ``flange``, fingers and ``tcp``.

    Joints are :data:`.rizon4.JOINT_NAMES`, in that order. ``tcp`` lies between the finger tips,
    its x axis points out of the tool and y is the direction the fingers move in.
    """
    parts = [f'<link name="{BASE_FRAME}"/>']
    parent = BASE_FRAME
    for index, joint in enumerate(rizon4.JOINTS, start=1):
        child = f'link{index}'
        rod = (
            '<origin xyz="0 0 0.1"/><geometry><cylinder radius="0.05" length="0.2"/></geometry>'
            if index < len(rizon4.JOINTS)
            else '<geometry><cylinder radius="0.042" length="0.1"/></geometry>'
        )
        parts.append(
            _link(child, joint.mass, joint.centre, rizon4.link_inertia(joint.mass), rod)
            + f'<joint name="{joint.name}" type="revolute"><parent link="{parent}"/>'
            f'<child link="{child}"/>'
            f'<origin xyz="{_text(joint.offset)}" rpy="{_text(joint.rpy)}"/>'
            f'<axis xyz="{_text(joint.axis)}"/>'
            f'<limit lower="{joint.lower}" upper="{joint.upper}" effort="{joint.torque}" '
            f'velocity="{joint.velocity}"/></joint>'
        )
        parent = child
    hand, finger = rizon4.HAND_HALF, rizon4.FINGER_HALF
    parts.append(
        _link(
            'flange',
            rizon4.HAND_MASS,
            (0, 0, 0.045),
            rizon4.box_inertia(rizon4.HAND_MASS, hand),
            _box(hand, (0, 0, hand[2])),
        )
        + _fixed('flange_joint', parent, 'flange', rizon4.FLANGE, yaw=math.pi)
    )
    for joint, side in zip(rizon4.FINGER_NAMES, (1, -1), strict=True):
        child = 'finger_left' if side > 0 else 'finger_right'
        centre = (0, side * finger[1], finger[2])
        parts.append(
            _link(
                child,
                rizon4.FINGER_MASS,
                centre,
                rizon4.box_inertia(rizon4.FINGER_MASS, finger),
                _box(finger, centre),
            )
            + f'<joint name="{joint}" type="prismatic"><parent link="flange"/>'
            f'<child link="{child}"/><origin xyz="0 0 {rizon4.FINGER_REACH - 0.004:.15g}"/>'
            f'<axis xyz="0 {side} 0"/><limit lower="0" upper="{rizon4.FINGER_STROKE}" '
            f'effort="{rizon4.FINGER_FORCE}" velocity="{rizon4.FINGER_SPEED}"/></joint>'
        )
    parts.append(f'<link name="{TCP_FRAME}"/>')
    parts.append(_fixed('tcp_joint', 'flange', TCP_FRAME, rizon4.TCP_REACH, pitch=-math.pi / 2))
    return f'<?xml version="1.0"?><robot name="{name}">{"".join(parts)}</robot>'
