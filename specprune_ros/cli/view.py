"""``specprune view``: a page in the browser that shows the arm and the policy."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from specprune_ros.cli import options

NODES = {'policy': 'specprune_node', 'executor': 'chunk_executor'}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'view',
        parents=[options.robot('sim_arm')],
        help='show and steer running nodes in the browser, or look through a recording',
    )
    parser.add_argument('--bag', type=Path, help='an MCAP or sqlite3 recording instead of nodes')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='interface to listen on; any but the loopback one needs the token that is printed',
    )
    parser.add_argument('--port', type=int, default=8080, help='first port to try (default 8080)')
    for node, name in NODES.items():
        parser.add_argument(
            f'--{node}', default='', help=f'its node (default: {name} in --namespace)'
        )
    parser.add_argument(
        '--arm',
        default='auto',
        help='name of the simulated arm, empty for none; auto: sim_arm beside the policy, with '
        'its profile',
    )
    parser.add_argument(
        '--image-transport',
        default='profile',
        choices=('profile', 'raw', 'compressed'),
        help='form of the images, if another than the profile names: of specprune replay, the '
        "recording's; of --bag, whichever is there",
    )
    parser.add_argument('--json', type=Path, help="write the page's address here")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.apps.view import ViewOptions, run_view
    from specprune_ros.robot.profile import ProfileError

    for node, name in NODES.items():
        if not getattr(args, node):
            setattr(args, node, f'{args.namespace}/{name}')
    chosen = {field.name: getattr(args, field.name) for field in fields(ViewOptions)}
    try:
        return run_view(ViewOptions(**chosen))
    except (ProfileError, OSError) as error:
        print(error)
        return 2
