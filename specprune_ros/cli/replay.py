"""``specprune replay``: a recorded rosbag through a live policy node."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from specprune_ros.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'replay',
        parents=[options.robot('sim_arm'), options.param('parameter of the node')],
        help='play a rosbag2 recording through a live policy node, with /clock',
    )
    parser.add_argument(
        'bag', type=Path, help='an MCAP or sqlite3 recording: its folder, or one file'
    )
    parser.add_argument(
        '--checkpoint',
        default='',
        help="checkpoint folder (default: the recording's own, which the demo notes; for other "
        "recordings of the simulated arm the package's policy; else random weights)",
    )
    parser.add_argument('--instruction', default='', help='instruction, where the bag holds none')
    parser.add_argument('--rate', type=float, default=1.0, help='speed of time (default 1)')
    parser.add_argument(
        '--header-clock',
        action='store_true',
        help="time goes by the messages' own stamps, for recordings made in simulated time",
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file')
    parser.add_argument(
        '--log', type=Path, default=Path('out/log'), help='folder for the node log'
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import yaml

    from specprune_ros.apps.replay import ReplayOptions, run_replay
    from specprune_ros.nodes.common.remapping import load_profile
    from specprune_ros.robot.profile import ProfileError

    if not 0 < args.rate < float('inf'):
        print(f'--rate is {args.rate}; a number above 0 is needed')
        return 2
    parameters: dict[str, Any] = {'model.path': args.checkpoint, 'instruction': args.instruction}
    for pair in args.param:
        name, found, value = pair.partition('=')
        if not found:
            print(f"--param '{pair}': write NAME=VALUE")
            return 2
        parameters[name] = yaml.safe_load(value)
    try:
        profile = load_profile(args.robot, args.robot_sn, args.namespace)
    except ProfileError as error:
        print(error)
        return 2
    return run_replay(
        ReplayOptions(
            args.bag,
            profile,
            parameters,
            args.rate,
            args.json,
            args.log,
            args.header_clock,
            args.namespace,
        )
    )
