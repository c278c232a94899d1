"""A recording played through the policy, the executor in dry run beside it.

    ros2 launch specprune_ros replay.launch.py bag:=/data/run1 robot:=sim_arm

Needs rosbag2 (``ros2 bag``), as a ROS host has it. Elsewhere: ``specprune replay BAG``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.logging import launch_config
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import StateTransition
from std_msgs.msg import String

from specprune_ros.apps.bag import BagReader
from specprune_ros.apps.bringup import arm_nodes, declare, environment
from specprune_ros.apps.launch_arguments import (
    ARGUMENTS,
    POLICY,
    SHUTDOWN,
    Argument,
    ArgumentError,
    check,
    rate,
    read_profile,
)
from specprune_ros.apps.replay import choose_topics
from specprune_ros.nodes.common.remapping import ALLOWED

CLOCK_RATE = 100.0  # Hz
DISCOVERY = 2.0  # s from ros2 bag's publishers to its first message, which is often a latched one
DRAIN = 1.0  # s for the last chunk
# What a recording decides is no argument here; its topics are played where they were recorded.
FIXED = {
    'use_sim_time': 'true',
    'dry_run': 'true',
    'namespace': '/',
    'autostart': 'true',
    'on_failure': SHUTDOWN,
    'random_weights': ALLOWED,
}
OWN = {
    'bag': Argument('Folder of the recording (MCAP or sqlite3).', None),
    'rate': Argument('Speed of time, above 0.', '1.0'),
    'instruction': Argument(
        'Instruction, where the recording holds none on /specprune_node/instruction.'
    ),
}


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    names = [name for name in ARGUMENTS if name not in (*FIXED, 'image_transport')]
    return LaunchDescription(
        [*declare(*names, **OWN), *environment(), OpaqueFunction(function=replay)]
    )


def replay(context: LaunchContext) -> list[Any]:
    """The nodes on recorded time; once the policy is active the player; at its end the end."""
    given = {**context.launch_configurations, **FIXED}
    check(given)
    speed = rate(given['rate'])
    folder = Path(given['bag']).expanduser().absolute()
    if not folder.is_dir():
        raise ArgumentError(f"bag:='{given['bag']}': no folder {folder}")
    profile, _ = read_profile(given['robot'], given['robot_sn'])
    with BagReader(folder) as bag:
        topics, parameters = choose_topics(bag, profile)
    arm = check({**given, 'image_transport': parameters['image_transport']})
    need_rosbag2()
    overrides = Path(launch_config.log_dir) / f'replay_qos_{os.getpid()}.yaml'
    overrides.write_text(yaml.safe_dump(latched_topics(topics)))
    player = ExecuteProcess(
        cmd=play_command(folder, topics, speed, overrides),
        output='screen',
        on_exit=played,
    )
    return [
        # Until the policy listens there is nothing to play to.
        RegisterEventHandler(
            OnStateTransition(matcher=policy_is_active, handle_once=True, entities=[player])
        ),
        *arm_nodes(arm),
    ]


def played(event: ProcessExited, context: LaunchContext) -> list[Any]:
    """The player ended: at the end of the recording, or because it could not play it."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f'ros2 bag play ended with status {event.returncode}')
    return [TimerAction(period=DRAIN, actions=[Shutdown(reason='the recording has ended')])]


def need_rosbag2() -> None:
    """Raise where ``ros2 bag`` is missing, and say what to do."""
    try:
        get_package_prefix('ros2bag')
    except PackageNotFoundError:
        distro = os.environ.get('ROS_DISTRO', '$ROS_DISTRO')
        raise RuntimeError(
            'replay.launch.py plays with rosbag2, which is not installed here: '
            f'sudo apt install ros-{distro}-ros2bag ros-{distro}-rosbag2-storage-mcap, or use '
            '`specprune replay BAG`, which needs neither'
        ) from None


def play_command(folder: Path, topics: dict[str, type], rate: float, overrides: Path) -> list[str]:
    """``ros2 bag play`` with a clock, of the inputs only: recorded chunks must not come again."""
    return [
        *('ros2', 'bag', 'play', str(folder)),
        *('--clock', str(CLOCK_RATE)),
        *('--rate', str(rate)),
        *('--delay', str(DISCOVERY)),
        *('--qos-profile-overrides-path', str(overrides)),
        '--disable-keyboard-controls',
        *('--topics', *topics),
    ]


def latched_topics(topics: dict[str, type]) -> dict[str, Any]:
    """Instruction and robot description for those who come late, whatever was recorded."""
    profile = {
        'history': 'keep_last',
        'depth': 1,
        'reliability': 'reliable',
        'durability': 'transient_local',
    }
    return {topic: dict(profile) for topic, kind in topics.items() if kind is String}


def policy_is_active(event: Any) -> bool:
    """Whether this is the policy saying that it works."""
    return (
        isinstance(event, StateTransition)
        and event.goal_state == 'active'
        and event.action.node_name.endswith(f'/{POLICY}')
    )
