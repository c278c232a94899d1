"""The parameters of ``chunk_executor``."""

from __future__ import annotations

from specprune_ros.nodes.common.parameters import ParameterSpec
from specprune_ros.robot import timeline

SETTINGS = (
    ParameterSpec('profile', 'sim_arm', 'Robot profile: a YAML file, or a name in config/robots.'),
    ParameterSpec('robot_sn', '', "The robot's serial number, for profiles that hold {robot_sn}."),
    ParameterSpec(
        'dry_run',
        False,
        'Send nothing to the arm: follow a virtual pose from the measured one, and publish on '
        '~/dry_run/... what would be sent and where the arm would be.',
    ),
    ParameterSpec(
        'joining',
        '',
        "How a chunk joins the motion under way; empty takes the profile's rule.",
        choices=('', *timeline.JOINING_RULES),
    ),
    ParameterSpec(
        'policy',
        'specprune_node',
        'Node whose errors on /diagnostics stop the arm, in the own namespace unless it begins '
        'with /; empty listens to none.',
    ),
    ParameterSpec(
        'realtime_priority',
        20,
        'Real-time priority (SCHED_FIFO) of this process where the system grants it, so that a '
        'busy machine delays no stop; 0 requests none.',
        low=0,
        high=90,
    ),
    ParameterSpec(
        'supervisor_limit',
        0.2,
        'Without a sign of life from this process for so long while the arm moves, its supervisor '
        'stops the arm; it does so at once when this process ends. 0 starts no supervisor.',
        unit='s',
        low=0.0,
        high=2.0,
    ),
)
