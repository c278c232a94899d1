"""``specprune say``: give a running policy another instruction."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from specprune_ros.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'say',
        parents=[options.namespace()],
        help='give a running policy another instruction',
    )
    parser.add_argument('text', help='what the robot should do')
    parser.add_argument(
        '--topic', default='', help='default: specprune_node/instruction in --namespace'
    )
    parser.add_argument('--domain', type=int, help='ROS domain (default: ROS_DOMAIN_ID)')
    parser.add_argument(
        '--json', type=Path, help='write what was said, and whether it was received'
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.apps.say import say
    from specprune_ros.cli.output import working, write_json

    topic = args.topic or f'{args.namespace}/specprune_node/instruction'
    if args.domain is not None:
        os.environ['ROS_DOMAIN_ID'] = str(args.domain)
    with working(f'looking for a policy on {topic}'):
        received = say(args.text, topic)
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'  # empty is unset, as for ROS itself
    write_json(
        args.json,
        {'text': args.text, 'topic': topic, 'domain': int(domain), 'received': received},
    )
    if received:
        return 0
    print(f'nobody listens on {topic} in ROS domain {domain}')
    return 1
