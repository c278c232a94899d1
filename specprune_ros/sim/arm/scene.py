"""The MuJoCo scene as MJCF text: Rizon4-like arm, gripper, table, cubes, plates, two cameras.

Primitives only, few triangles, no shadows or reflections: software rendering is paid per vertex
and per pass. World and arm base share one frame; the table top is z = 0, x points forward.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np

from specprune_ros.robot.geometry import from_euler_xyz
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.layout import (
    CUBE_HALF,
    CUBES,
    DISTRACTORS,
    PLATE_HEIGHT,
    PLATE_RADIUS,
    PLATES,
)

CAMERAS = ('agent', 'wrist')
AGENT_POSITION, AGENT_TARGET, AGENT_FOVY = (1.30, -0.113, 0.70), (0.50, -0.113, 0.085), 39.0
MAX_IMAGE = 1920  # pixels, widest or highest image the off-screen buffer can hold

_STIFFNESS = (6000, 6000, 4000, 4000, 2000, 2000, 1000)  # Nm/rad
_DAMPING = (600, 600, 350, 350, 120, 120, 50)  # Nm s/rad
_ARM, _DARK, _ACCENT = '0.90 0.91 0.93 1', '0.16 0.17 0.19 1', '0.10 0.42 0.75 1'


def stiffness() -> tuple[int, ...]:
    """Position gains of the seven servos, Nm/rad."""
    return _STIFFNESS


def damping() -> tuple[int, ...]:
    """Velocity gains of the seven servos, Nm s/rad."""
    return _DAMPING


def _text(values: Sequence[float]) -> str:
    return ' '.join(f'{value:.6g}' for value in values)


def look_at(eye: Sequence[float], target: Sequence[float]) -> tuple[float, ...]:
    """MuJoCo's ``xyaxes`` (6) of a camera at ``eye`` that looks at ``target``, upright."""
    forward = [t - e for t, e in zip(target, eye, strict=True)]
    size = math.sqrt(sum(f * f for f in forward))
    fx, fy, fz = (f / size for f in forward)
    flat = math.hypot(fx, fy)
    x = (fy / flat, -fx / flat, 0.0)
    z = (-fx, -fy, -fz)
    y = (z[1] * x[2] - z[2] * x[1], z[2] * x[0] - z[0] * x[2], z[0] * x[1] - z[1] * x[0])
    return (*x, *y)


def _geom(kind: str, **attributes: str) -> str:
    fields = ' '.join(f'{key}={quoteattr(value)}' for key, value in attributes.items())
    return f'<geom type="{kind}" {fields}/>'


def _link_geoms(index: int) -> str:
    """Shapes of link ``index`` (0 is the base): a rod to the next joint and a dark ring on it."""
    joints = rizon4.JOINTS
    radius = (0.075, 0.068, 0.062, 0.056, 0.052, 0.048, 0.045, 0.042)[index]
    if index == len(joints):
        return _geom('cylinder', **{'class': 'robot'}, fromto='0 0 -0.03 0 0 0.05', size='0.042',
                     rgba=_ARM) + _geom(
            'cylinder', **{'class': 'robot'}, fromto='0 0 0.05 0 0 0.081', size='0.036', rgba=_DARK
        )  # fmt: skip
    joint = joints[index]
    end = joint.offset
    shapes = []
    if index == 0:
        shapes.append(_geom('cylinder', **{'class': 'robot'}, fromto='0 0 0 0 0 0.03',
                            size='0.1', rgba=_DARK))  # fmt: skip
        shapes.append(
            _geom(
                'cylinder',
                **{'class': 'robot'},
                fromto='0 0 0.03 0 0 0.15',
                size='0.075',
                rgba=_ARM,
            )
        )
    else:
        shapes.append(
            _geom('capsule', **{'class': 'robot'}, fromto=f'0 0 0 {_text(end)}',
                  size=f'{radius}', rgba=_ARM)
        )  # fmt: skip
    along = {'z': (0, 0, 0.012), 'y': (0, 0.058, 0)}
    reach = along['y'] if joint.axis == (0, 1, 0) else along['z']
    ring = radius * (0.78 if joint.axis == (0, 1, 0) else 1.04)
    low = _text([e - r for e, r in zip(end, reach, strict=True)])
    high = _text([e + r for e, r in zip(end, reach, strict=True)])
    colour = _ACCENT if joint.axis == (0, 1, 0) else _DARK
    shapes.append(
        _geom(
            'cylinder',
            **{'class': 'skin'},
            fromto=f'{low} {high}',
            size=f'{ring:.4f}',
            rgba=colour,
        )
    )
    return ''.join(shapes)


def _gripper() -> str:
    hand, finger = rizon4.HAND_HALF, rizon4.FINGER_HALF
    parts = [
        f'<body name="hand" pos="0 0 {rizon4.FLANGE}" quat="0 0 0 1">',
        f'<inertial pos="0 0 0.045" mass="{rizon4.HAND_MASS}" '
        f'diaginertia="{_text(rizon4.box_inertia(rizon4.HAND_MASS, hand))}"/>',
        _geom('box', **{'class': 'robot'}, pos=f'0 0 {hand[2]}', size=_text(hand), rgba=_DARK),
        _geom('box', **{'class': 'skin'}, pos=f'0 0 {hand[2]}',
              size=_text((hand[0] + 0.001, hand[1] + 0.001, 0.007)), rgba=_ACCENT),
        # x out of the tool: the rotation vector then has no jump near "tool down".
        f'<site name="tcp" pos="0 0 {rizon4.TCP_REACH}" quat="1 0 -1 0"/>',
        # Beside the hand, tilted so that the finger tips and what is ahead of them are in view.
        '<camera name="wrist" pos="-0.09 0 0.03" xyaxes="0 -1 0 -0.985 0 0.174" fovy="84"/>',
        _geom('box', **{'class': 'skin'}, pos='-0.055 0 0.026', size='0.032 0.014 0.012',
              rgba=_DARK),
    ]  # fmt: skip
    for name, joint, side in zip(('left', 'right'), rizon4.FINGER_NAMES, (1, -1), strict=True):
        centre = f'0 {side * finger[1]} {finger[2]}'
        parts.append(
            f'<body name="finger_{name}" pos="0 0 {rizon4.FINGER_REACH - 0.004}">'
            f'<inertial pos="{centre}" mass="{rizon4.FINGER_MASS}" '
            f'diaginertia="{_text(rizon4.box_inertia(rizon4.FINGER_MASS, finger))}"/>'
            f'<joint name="{joint}" type="slide" axis="0 {side} 0" '
            f'range="0 {rizon4.FINGER_STROKE}" damping="8" armature="0.05"/>'
            + _geom(
                'box',
                **{'class': 'finger'},
                pos=centre,
                size=_text(finger),
                rgba='0.30 0.31 0.34 1',
            )
            + '</body>'
        )
    parts.append('</body>')
    return ''.join(parts)


def _arm() -> str:
    parts = ['<body name="base_link">', _link_geoms(0)]
    for index, joint in enumerate(rizon4.JOINTS, start=1):
        parts.append(
            f'<body name="link{index}" pos="{_text(joint.offset)}" '
            f'quat="{_text(np.roll(from_euler_xyz(*joint.rpy), 1))}" gravcomp="1">'
            f'<inertial pos="{_text(joint.centre)}" mass="{joint.mass}" '
            f'diaginertia="{_text(rizon4.link_inertia(joint.mass))}"/>'
            f'<joint name="{joint.name}" axis="{_text(joint.axis)}" '
            f'range="{joint.lower} {joint.upper}" armature="0.1" damping="1"/>'
        )
        parts.append(_link_geoms(index))
    gripper = _gripper().replace('<body ', '<body gravcomp="1" ')
    parts.append(gripper + '</body>' * len(rizon4.JOINTS) + '</body>')
    return ''.join(parts)


def arm_shapes() -> dict[str, list[ElementTree.Element]]:
    """The ``geom`` elements of each body of the arm, in the body's frame, by the body's name."""
    bodies = ElementTree.fromstring(_arm()).iter('body')
    return {body.get('name', ''): body.findall('geom') for body in bodies}


def _things() -> str:
    parts = []
    for index in range(CUBES):
        parts.append(
            f'<body name="cube{index}"><freejoint/>'
            f'<geom class="thing" name="cube{index}" type="box" size="{_text([CUBE_HALF] * 3)}" '
            f'mass="0.06"/></body>'
        )
    for index in range(DISTRACTORS):
        shape = 'type="cylinder" size="0.018 0.03"' if index % 2 else 'type="sphere" size="0.022"'
        parts.append(
            f'<body name="distractor{index}"><freejoint/><geom class="thing" '
            f'name="distractor{index}" {shape} mass="0.06" condim="6" '
            f'friction="1 0.01 0.01"/></body>'
        )
    for index in range(PLATES):
        parts.append(
            f'<body name="plate{index}" mocap="true">'
            f'<geom class="thing" name="plate{index}" type="cylinder" '
            f'size="{PLATE_RADIUS} {PLATE_HEIGHT / 2}"/>'
            f'<geom class="skin" name="plate{index}_rim" type="cylinder" '
            f'size="{PLATE_RADIUS * 0.72:.4f} {PLATE_HEIGHT / 2 + 0.0006:.5f}" rgba="1 1 1 1"/>'
            '</body>'
        )
    return ''.join(parts)


def _actuators() -> str:
    parts = []
    for joint, kp, kd in zip(rizon4.JOINTS, _STIFFNESS, _DAMPING, strict=True):
        parts.append(
            f'<general name="{joint.name}" joint="{joint.name}" gainprm="{kp}" biastype="affine" '
            f'biasprm="0 {-kp} {-kd}" forcerange="{-joint.torque} {joint.torque}"/>'
        )
    for name in rizon4.FINGER_NAMES:
        force = rizon4.FINGER_FORCE
        parts.append(
            f'<general name="{name}" joint="{name}" gainprm="2000" biastype="affine" '
            f'biasprm="0 -2000 -60" ctrlrange="-0.01 {rizon4.FINGER_STROKE}" '
            f'forcerange="{-force} {force}"/>'
        )
    return ''.join(parts)


def scene_xml(timestep: float = 0.004) -> str:
    """The whole scene; ``timestep`` is the physics step in seconds."""
    return f"""
<mujoco model="rizon4_like_table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="{MAX_IMAGE}" offheight="{MAX_IMAGE}" fovy="45"/>
    <quality offsamples="0" shadowsize="0" numslices="20" numstacks="8" numquads="1"/>
    <headlight ambient="0.40 0.40 0.40" diffuse="0.16 0.16 0.16" specular="0 0 0"/>
    <map znear="0.02" zfar="12"/>
  </visual>
  <statistic center="0.5 -0.1 0.2" extent="1"/>
  <default>
    <default class="robot">
      <geom contype="1" conaffinity="2" friction="0.6 0.01 0.001"/>
    </default>
    <default class="finger">
      <geom contype="1" conaffinity="2" friction="1.6 0.02 0.001" condim="4" priority="1"
            solref="0.006 1" solimp="0.95 0.99 0.001"/>
    </default>
    <default class="thing">
      <geom contype="2" conaffinity="3" friction="0.9 0.01 0.001" condim="4"/>
    </default>
    <default class="skin">
      <geom contype="0" conaffinity="0" mass="0" group="1"/>
    </default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.86 0.90 0.94"
             rgb2="0.60 0.66 0.74" width="64" height="384"/>
    <material name="matte" specular="0" shininess="0" reflectance="0"/>
    <material name="floor" specular="0" reflectance="0" rgba="0.50 0.53 0.58 1"/>
  </asset>
  <worldbody>
    <light name="lamp" pos="0.9 -0.7 2.0" dir="-0.25 0.4 -1.5" directional="true"
           diffuse="0.50 0.50 0.48" specular="0.15 0.15 0.15" castshadow="false"/>
    <geom name="floor" type="plane" size="4 4 1" pos="0 0 -0.74" material="floor"
          contype="0" conaffinity="0"/>
    <geom name="table" type="box" size="0.56 0.62 0.02" pos="0.40 -0.113 -0.02" material="matte"
          rgba="0.72 0.62 0.50 1" contype="2" conaffinity="3" friction="0.9 0.01 0.001"/>
    <geom class="skin" type="box" size="0.05 0.05 0.35" pos="-0.09 -0.66 -0.39"
          rgba="0.35 0.36 0.38 1"/>
    <geom class="skin" type="box" size="0.05 0.05 0.35" pos="-0.09 0.43 -0.39"
          rgba="0.35 0.36 0.38 1"/>
    <camera name="agent" pos="{_text(AGENT_POSITION)}" fovy="{AGENT_FOVY}"
            xyaxes="{_text(look_at(AGENT_POSITION, AGENT_TARGET))}"/>
    {_arm()}
    {_things()}
  </worldbody>
  <actuator>{_actuators()}</actuator>
</mujoco>
"""
