"""Profiles of the simulated arm behind each kind of controller, and its kinematics."""

from __future__ import annotations

import numpy as np

from specprune_ros.robot import profile
from specprune_ros.robot.speed import JointSpeed
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.urdf import urdf

NAMES = tuple(joint.name for joint in rizon4.JOINTS)
HOME = np.array(rizon4.HOME)
ARM = JointSpeed(urdf(), 'tcp', base_frame='base_link')


def make_profile(adapter: str, **changes: object) -> profile.Profile:
    """A profile of the simulated arm behind another controller."""
    tree = {
        'robot': 'arm',
        'base_frame': 'base_link',
        'tool_link': 'tcp',
        'joints': list(NAMES),
        'observation': {
            'cameras': {'agent': {'topic': '/image'}},
            'joint_states': '/joint_states',
            'ee_pose': '' if adapter == profile.JOINT_TRAJECTORY else '/pose',
        },
        'command': {'adapter': adapter, 'topic': '/command', 'frame': 'base_link', 'rate': 100.0},
        'limits': {
            'translation_speed': 0.2,
            'rotation_speed': 0.8,
            'translation_acceleration': 1.5,
            'rotation_acceleration': 5.0,
            'reaction_s': 0.1 if adapter == profile.JOINT_TRAJECTORY else 0.0,
            'lead_translation': 0.05,
            'lead_rotation': 0.3,
            'workspace': {'min': [0.28, -0.45, 0.02], 'max': [0.75, 0.45, 0.7]},
            'joints': {n: {'velocity': 1.0, 'acceleration': 4.0} for n in NAMES},
        },
        'stop_action': 'zero' if adapter == profile.TWIST else 'hold',
        **changes,
    }
    return profile.parse(tree, 'test')
