"""The simulated arm as URDF text, for ``robot_description``; same numbers as the scene."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

from specprune_ros.sim.arm import rizon4, scene

BASE_FRAME, TCP_FRAME = 'base_link', 'tcp'


def _text(values: tuple[float, ...]) -> str:
    return ' '.join(f'{value:.15g}' for value in values)


def _link(
    name: str,
    mass: float,
    centre: tuple[float, ...],
    inertia: tuple[float, float, float],
    visuals: str,
) -> str:
    ixx, iyy, izz = inertia
    return (
        f'<link name="{name}"><inertial><origin xyz="{_text(centre)}"/><mass value="{mass}"/>'
        f'<inertia ixx="{ixx:.6g}" ixy="0" ixz="0" iyy="{iyy:.6g}" iyz="0" izz="{izz:.6g}"/>'
        f'</inertial>{visuals}</link>'
    )


def _fixed(
    name: str, parent: str, child: str, z: float, pitch: float = 0.0, yaw: float = 0.0
) -> str:
    return (
        f'<joint name="{name}" type="fixed"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="0 0 {z:.15g}" rpy="0 {pitch:.15g} {yaw:.15g}"/></joint>'
    )


def _visual(origin: str, shape: str, rgba: str) -> str:
    return (
        f'<visual><origin {origin}/><geometry>{shape}</geometry>'
        f'<material name="{rgba.replace(" ", "_")}"><color rgba="{rgba}"/></material></visual>'
    )


def _visuals(geoms: list[ElementTree.Element]) -> str:
    """The scene's shapes of one body, which has the same frame as the link."""
    parts = []
    for geom in geoms:
        size = [float(value) for value in geom.get('size', '').split()]
        rgba = geom.get('rgba', '')
        if geom.get('type') == 'box':
            sides = _text(tuple(2 * half for half in size))
            parts.append(_visual(f'xyz="{geom.get("pos")}"', f'<box size="{sides}"/>', rgba))
            continue
        ends = [float(value) for value in geom.get('fromto', '').split()]
        low, high = ends[:3], ends[3:]
        along = [b - a for a, b in zip(low, high, strict=True)]
        length = math.sqrt(sum(c * c for c in along))
        middle = _text(tuple((a + b) / 2 for a, b in zip(low, high, strict=True)))
        # A URDF cylinder lies along z: pitch it down to the direction, then yaw it there.
        pitch, yaw = math.acos(along[2] / length), math.atan2(along[1], along[0])
        parts.append(
            _visual(
                f'xyz="{middle}" rpy="0 {pitch:.15g} {yaw:.15g}"',
                f'<cylinder radius="{size[0]}" length="{length:.15g}"/>',
                rgba,
            )
        )
        if geom.get('type') == 'capsule':
            ball = f'<sphere radius="{size[0]}"/>'
            parts += [_visual(f'xyz="{_text(tuple(end))}"', ball, rgba) for end in (low, high)]
    return ''.join(parts)


def urdf(name: str = 'rizon4_like') -> str:
    """URDF of arm and gripper: ``base_link``, ``link1..7``, ``flange``, fingers and ``tcp``.

    Joints are :data:`.rizon4.JOINT_NAMES`, in that order. ``tcp`` lies between the finger tips,
    its x axis points out of the tool and y is the direction the fingers move in.
    """
    shapes = scene.arm_shapes()
    parts = [f'<link name="{BASE_FRAME}">{_visuals(shapes[BASE_FRAME])}</link>']
    parent = BASE_FRAME
    for index, joint in enumerate(rizon4.JOINTS, start=1):
        child = f'link{index}'
        parts.append(
            _link(
                child,
                joint.mass,
                joint.centre,
                rizon4.link_inertia(joint.mass),
                _visuals(shapes[child]),
            )
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
            _visuals(shapes['hand']),
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
                _visuals(shapes[child]),
            )
            + f'<joint name="{joint}" type="prismatic"><parent link="flange"/>'
            f'<child link="{child}"/><origin xyz="0 0 {rizon4.FINGER_REACH - 0.004:.15g}"/>'
            f'<axis xyz="0 {side} 0"/><limit lower="0" upper="{rizon4.FINGER_STROKE}" '
            f'effort="{rizon4.FINGER_FORCE}" velocity="{rizon4.FINGER_SPEED}"/></joint>'
        )
    parts.append(f'<link name="{TCP_FRAME}"/>')
    parts.append(_fixed('tcp_joint', 'flange', TCP_FRAME, rizon4.TCP_REACH, pitch=-math.pi / 2))
    return f'<?xml version="1.0"?><robot name="{name}">{"".join(parts)}</robot>'
