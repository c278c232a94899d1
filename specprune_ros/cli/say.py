"""``specprune say``: give a running policy another instruction."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser('say', help='give a running policy another instruction')
    parser.add_argument('text', help='what the robot should do')
    parser.add_argument('--topic', default='/specprune_node/instruction')
    parser.add_argument('--domain', type=int, help='ROS domain (default: ROS_DOMAIN_ID)')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.apps.say import say

    if args.domain is not None:
        os.environ['ROS_DOMAIN_ID'] = str(args.domain)
    if say(args.text, args.topic):
        return 0
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    print(f'nobody listens on {args.topic} in ROS domain {domain}')
    return 1
