"""``specprune params``: every parameter of the node, as YAML or Markdown."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser('params', help='print every parameter of the node')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--yaml', action='store_true', help='as config/specprune.yaml (default)')
    form.add_argument('--markdown', action='store_true', help='as docs/reference/parameters.md')
    form.add_argument('--readme', action='store_true', help='as the table in the README')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.nodes.policy_node.parameter_tables import MOST_USED, as_markdown, as_yaml

    if args.markdown:
        print(as_markdown(), end='')
    elif args.readme:
        print(as_markdown(MOST_USED), end='')
    else:
        print(as_yaml(), end='')
    return 0
