"""The simulated arm, the policy and the executor.

    ros2 launch specprune_ros demo.launch.py instruction:='lift the blue cube'
    ros2 topic echo /sim_arm/verdict
    ros2 topic pub -1 /specprune_node/instruction std_msgs/msg/String "data: lift the red cube"

``make demo`` gives three instructions without launch, records it and sums it up.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch.logging import get_logger

from specprune_ros.apps.bringup import arm_nodes, declare, environment, helper
from specprune_ros.apps.demo.app import bundled_recording, bundled_weights
from specprune_ros.apps.launch_arguments import (
    ARGUMENTS,
    ARM,
    POLICY,
    Argument,
    check,
    whole_number,
)
from specprune_ros.nodes.common.remapping import ros_arguments, share
from specprune_ros.sim.arm.render_backend import prepare

# What the simulated arm decides by itself is no argument here.
FIXED = {'robot': ARM, 'robot_sn': '', 'executor': 'true'}
OWN = {
    'checkpoint': Argument(
        'Folder of the model; by default the one trained in this simulator. Empty: a tiny model '
        'with random weights, which moves the arm but does not do what is said.',
        bundled_weights(),
    ),
    'instruction': replace(ARGUMENTS['instruction'], default='lift the red cube'),
    'params_file': replace(
        ARGUMENTS['params_file'], default=str(share() / 'config' / 'demo.yaml')
    ),
    'seed': Argument('Seed of the scene, 0 or more.', '0'),
}


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    names = [name for name in ARGUMENTS if name not in FIXED]
    return LaunchDescription(
        # The environment first: the DDS profile is what the cameras need.
        [*declare(*names, **OWN), *environment(), OpaqueFunction(function=nodes)]
    )


def nodes(context: LaunchContext) -> list[Any]:
    """The arm, which starts by itself, with the nodes that drive it; cameras from a recording
    where nothing renders.
    """
    given = context.launch_configurations
    seed = whole_number('seed', given['seed'], 0)
    arm = check({**given, **FIXED}, given.get('ros_namespace', ''))
    missing = prepare()
    actions = [
        *arm_nodes(arm),
        helper(
            arm.given,
            ARM,
            arm.namespace,
            executable=ARM,
            # Not as parameters: launch would read texts such as '1e3' or 'pick: red' as YAML.
            ros_arguments=ros_arguments(
                {'~/instruction': f'{POLICY}/instruction'},
                {
                    'seed': seed,
                    'render': not missing,
                    # What is instructed is there, and judged.
                    'scene_for': [arm.given['instruction']],
                    'instruction': arm.given['instruction'],
                    'publish_clock': arm.on('use_sim_time'),
                },
            )[1:],
        ),
    ]
    if missing:
        get_logger('demo.launch').warning(
            f'{missing} Cameras are played from a recording instead.'
        )
        actions.append(
            helper(
                arm.given,
                'play',
                arm.namespace,
                package=None,
                executable=sys.executable,
                arguments=['-P', '-m', 'specprune_ros.apps.image_playback'],
                exec_name='play',
                ros_arguments=ros_arguments(
                    {},
                    {
                        'recording': str(Path(bundled_recording())),
                        'use_sim_time': arm.on('use_sim_time'),
                    },
                )[1:],
            )
        )
    return actions
