"""``specprune jog``: the first motion of an arm, without a policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from specprune_ros.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'jog',
        parents=[options.robot()],
        help='move an arm for the first time: 2 cm along z and back, the gripper open and closed',
    )
    parser.add_argument(
        '--up', type=float, default=0.02, help='metres along +z of base_frame (default 0.02)'
    )
    parser.add_argument('--seconds', type=float, default=2.0, help='each way (default 2)')
    parser.add_argument('--no-gripper', action='store_true', help='leave the gripper alone')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='send nothing to the arm, and do not wait for a confirmation',
    )
    parser.add_argument(
        '--yes',
        action='store_true',
        help='do not wait for a confirmation; for the simulated arm, or with --fake',
    )
    parser.add_argument(
        '--fake', action='store_true', help='with --yes: the drivers are fake, no arm moves'
    )
    parser.add_argument('--json', type=Path, help='write the result to this file')
    return parser


def run(args: argparse.Namespace) -> int:
    """0: done as previewed; 1: not, and why is printed; 2: wrong arguments."""
    from specprune_ros.apps.jog import JogOptions, run_jog
    from specprune_ros.nodes.common.remapping import load_profile
    from specprune_ros.robot.profile import ProfileError

    try:
        profile = load_profile(args.robot, args.robot_sn, args.namespace)
    except ProfileError as error:
        print(error)
        return 2
    if args.yes and not (profile.simulated or args.fake):
        print(
            f'--yes: {profile.robot} may be a real arm, which a person must confirm; with drivers '
            'that are fake add --fake'
        )
        return 2
    return run_jog(
        JogOptions(
            robot=args.robot,
            robot_sn=args.robot_sn,
            namespace=args.namespace,
            up=args.up,
            seconds=args.seconds,
            gripper=not args.no_gripper,
            dry_run=args.dry_run,
            yes=args.yes,
            json=args.json,
        )
    )
