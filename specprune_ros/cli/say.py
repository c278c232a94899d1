"""``specprune say``: give a running policy another instruction."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser('say', help='give a running policy another instruction')
    parser.add_argument('text', help='what the robot should do')
    parser.add_argument('--topic', default='/specprune_node/instruction')
    parser.add_argument('--domain', type=int, help='ROS domain (default: ROS_DOMAIN_ID)')
    parser.add_argument(
        '--json', type=Path, help='write what was said, and whether it was received'
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.apps.say import say
    from specprune_ros.cli.output import working, write_json

    if args.domain is not None:
        os.environ['ROS_DOMAIN_ID'] = str(args.domain)
    with working(f'looking for a policy on {args.topic}'):
        received = say(args.text, args.topic)
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'  # empty is unset, as for ROS itself
    write_json(
        args.json,
        {'text': args.text, 'topic': args.topic, 'domain': int(domain), 'received': received},
    )
    if received:
        return 0
    print(f'nobody listens on {args.topic} in ROS domain {domain}')
    return 1
