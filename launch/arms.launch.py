"""Several arms from one file, each in a namespace of its own.

    ros2 launch specprune_ros arms.launch.py arms:=cell.yaml dry_run:=true

with cell.yaml naming each arm's namespace and its arguments of specprune.launch.py:

    left: {robot: moveit_servo, checkpoint: /models/oft-spatial}
    right: {robot: flexiv_rizon4, robot_sn: Rizon4-123456, checkpoint: /models/oft-spatial}

Arguments given here hold for every arm that the file says nothing else of. Each arm's driver and
cameras are expected in its namespace (docs/how-to/robots.md). When one arm's executor dies, all
stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from specprune_ros.apps.bringup import arm_nodes, declare, environment
from specprune_ros.apps.launch_arguments import ARGUMENTS, Argument, check_arms

SHARED = [name for name in ARGUMENTS if name != 'namespace']


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    arms = Argument('YAML file: each namespace with the arguments of its arm.', None)
    return LaunchDescription(
        [*declare(*SHARED, arms=arms), *environment(), OpaqueFunction(function=nodes)]
    )


def nodes(context: LaunchContext) -> list[Any]:
    """The nodes of every arm, once the arguments of all have been checked."""
    given = context.launch_configurations
    file = Path(given['arms']).expanduser().absolute()
    shared = {name: given[name] for name in SHARED}
    arms = check_arms(file, shared, given.get('ros_namespace', ''))
    return [action for arm in arms for action in arm_nodes(arm)]
