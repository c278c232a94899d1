"""The simulated arm, the policy and the executor.

    ros2 launch specprune_ros demo.launch.py instruction:='lift the blue cube'
    ros2 topic echo /sim_arm/verdict
    ros2 topic pub -1 /specprune_node/instruction std_msgs/msg/String "data: lift the red cube"

``make demo`` says three instructions without launch, records it and sums it up.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, ThisLaunchFileDir
from launch_ros.actions import Node

from specprune_ros.apps.demo.app import bundled_recording, bundled_weights
from specprune_ros.nodes.common.remapping import ros_arguments
from specprune_ros.sim.arm.render_backend import prepare

ARM = 'sim_arm'
STOP_PATIENCE = '15'  # s from SIGINT to SIGTERM
ARGUMENTS = (
    DeclareLaunchArgument(
        'checkpoint',
        default_value=bundled_weights(),
        description='Folder of the model; by default the one trained in this simulator. Empty: a '
        'tiny model with random weights, which moves the arm but does not do what is said.',
    ),
    DeclareLaunchArgument(
        'instruction', default_value='lift the red cube', description='Instruction to begin with.'
    ),
    DeclareLaunchArgument('seed', default_value='0', description='Seed of the scene.'),
    DeclareLaunchArgument(
        'dry_run',
        default_value='false',
        choices=('true', 'false'),
        description='true: the executor sends nothing, so the arm stays where it is.',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='false',
        choices=('true', 'false'),
        description='true: the arm publishes its simulated time on /clock, and the nodes follow.',
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value=str(Path(__file__).resolve().parents[1] / 'config' / 'demo.yaml'),
        description='Parameters of the policy and the executor.',
    ),
    DeclareLaunchArgument(
        'view',
        default_value='false',
        choices=('true', 'false'),
        description='A page in the browser that shows and steers it (docs/how-to/view.md).',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=('debug', 'info', 'warn', 'error', 'fatal'),
        description='Least severe message of the policy and the executor that is shown.',
    ),
)


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    forwarded = [name for name in (a.name for a in ARGUMENTS) if name != 'seed']
    return LaunchDescription(
        [
            *ARGUMENTS,
            OpaqueFunction(function=check_seed),
            # First, because it also sets the DDS profile, which the cameras need.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(
                    PathJoinSubstitution([ThisLaunchFileDir(), 'specprune.launch.py'])
                ),
                launch_arguments=[
                    ('robot', ARM),
                    *((name, LaunchConfiguration(name)) for name in forwarded),
                ],
            ),
            OpaqueFunction(function=arm),
        ]
    )


def check_seed(context: LaunchContext) -> None:
    """Before anything starts. Raises ``ValueError`` naming the argument."""
    seed = context.launch_configurations['seed']
    if not seed.isdigit():
        raise ValueError(f"seed:='{seed}': a whole number of at least 0 is needed")


def arm(context: LaunchContext) -> list[Any]:
    """The arm; its cameras from a recording where nothing renders. Both start by themselves."""
    given = context.launch_configurations
    missing = prepare()
    actions: list[Any] = [
        Node(
            package='specprune_ros',
            executable=ARM,
            name=ARM,
            # Not as parameters: launch would read texts such as '1e3' or 'pick: red' as YAML.
            ros_arguments=ros_arguments(
                {'~/instruction': '/specprune_node/instruction'},
                {
                    'seed': int(given['seed']),
                    'render': not missing,
                    # What is asked for is there, and judged.
                    'scene_for': [given['instruction']],
                    'instruction': given['instruction'],
                    'publish_clock': given['use_sim_time'] == 'true',
                },
            )[1:],
            output='screen',
            on_exit=died,
            sigterm_timeout=STOP_PATIENCE,
        )
    ]
    if missing:
        get_logger('demo.launch').warning(
            f'{missing} Cameras are played from a recording instead.'
        )
        actions += [
            Node(
                executable=sys.executable,
                arguments=['-m', 'specprune_ros.apps.image_playback'],
                name='play',
                exec_name='play',
                parameters=[
                    {
                        'recording': str(bundled_recording()),
                        'use_sim_time': given['use_sim_time'] == 'true',
                    }
                ],
                output='screen',
                on_exit=died,
                sigterm_timeout=STOP_PATIENCE,
            ),
        ]
    return actions


def died(event: ProcessExited, context: LaunchContext) -> None:
    """A node ended although nobody asked for it: end the launch with an error."""
    if not context.is_shutdown:
        raise RuntimeError(f'{event.process_name} ended with status {event.returncode}')
