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
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.logging import launch_config
from launch.substitutions import ThisLaunchFileDir
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import StateTransition
from std_msgs.msg import String

from specprune_ros.apps.bag import BagReader
from specprune_ros.apps.replay import POLICY, choose_topics
from specprune_ros.nodes.common.remapping import ALLOWED, profile_path
from specprune_ros.robot.profile import load

CLOCK_RATE = 100.0  # Hz
DISCOVERY = 2.0  # s from ros2 bag's publishers to its first message, which is often a latched one
DRAIN = 1.0  # s for the last chunk
ARGUMENTS = (
    DeclareLaunchArgument('bag', description='Folder of the recording (MCAP or sqlite3).'),
    DeclareLaunchArgument(
        'robot',
        default_value='sim_arm',
        description='The arm it was recorded on: a profile of the package or a YAML file.',
    ),
    DeclareLaunchArgument(
        'robot_sn',
        default_value='',
        description="The robot's serial number, for profiles with {robot_sn}.",
    ),
    DeclareLaunchArgument(
        'checkpoint',
        default_value='',
        description='Folder of the model. Empty: a tiny model with random weights.',
    ),
    DeclareLaunchArgument(
        'instruction',
        default_value='',
        description='Instruction, where the recording holds none on /specprune_node/instruction.',
    ),
    DeclareLaunchArgument('rate', default_value='1.0', description='Speed of time, above 0.'),
    DeclareLaunchArgument(
        'executor',
        default_value='true',
        choices=('true', 'false'),
        description='true: also the executor, which shows on ~/dry_run/... what it would send.',
    ),
    DeclareLaunchArgument(
        'params_file', default_value='', description='Parameters of the policy and the executor.'
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=('debug', 'info', 'warn', 'error', 'fatal'),
        description='Least severe message of the nodes that is shown.',
    ),
)


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=replay)])


def replay(context: LaunchContext) -> list[Any]:
    """The nodes on recorded time; once the policy is active the player; at its end the end."""
    given = context.launch_configurations
    need_rosbag2()
    rate = float(given['rate'])
    if not rate > 0:
        raise ValueError(f"rate:='{given['rate']}': a number above 0 is needed")
    folder = Path(given['bag']).expanduser().absolute()
    arguments = {'robot_sn': given['robot_sn']} if given['robot_sn'] else {}
    profile = load(profile_path(given['robot']), arguments)
    with BagReader(folder) as bag:
        topics, parameters = choose_topics(bag, profile)
    overrides = Path(launch_config.log_dir) / f'replay_qos_{os.getpid()}.yaml'
    overrides.write_text(yaml.safe_dump(latched_topics(topics)))
    player = ExecuteProcess(
        cmd=play_command(folder, topics, rate, overrides),
        output='screen',
        on_exit=played,
    )
    passed = ('robot', 'robot_sn', 'checkpoint', 'instruction', 'executor', 'params_file')
    return [
        # Until the policy listens there is nothing to play to.
        RegisterEventHandler(
            OnStateTransition(matcher=policy_is_active, handle_once=True, entities=[player])
        ),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource([ThisLaunchFileDir(), '/specprune.launch.py']),
            launch_arguments=[
                *((name, given[name]) for name in (*passed, 'log_level')),
                ('image_transport', parameters['image_transport']),
                ('use_sim_time', 'true'),
                ('dry_run', 'true'),
                ('random_weights', ALLOWED),
            ],
        ),
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
