"""The policy and the executor on one arm.

    ros2 launch specprune_ros specprune.launch.py robot:=flexiv_rizon4 robot_sn:=Rizon4-123456 \
      checkpoint:=/models/oft-spatial instruction:='pick up the red block' dry_run:=true

Include it from your own launch file with ``IncludeLaunchDescription``. What is set where: topics,
frames, joints and limits by the robot profile; everything else by ``params_file``; over both, the
arguments given here.
"""

from __future__ import annotations

from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from specprune_ros.apps.bringup import arm_nodes, declare, environment
from specprune_ros.apps.launch_arguments import check


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    return LaunchDescription([*declare(), *environment(), OpaqueFunction(function=nodes)])


def nodes(context: LaunchContext) -> list[Any]:
    """Both nodes, once every argument has been checked."""
    given = context.launch_configurations
    return arm_nodes(check(given, given.get('ros_namespace', '')))
