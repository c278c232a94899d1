"""``specprune params``: every parameter of the node, as YAML or Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser('params', help='print every parameter of the node')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--yaml', action='store_true', help='as config/specprune.yaml (default)')
    form.add_argument('--markdown', action='store_true', help='as docs/reference/parameters.md')
    parser.add_argument('--json', type=Path, help='write every parameter to this file as well')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.cli.output import write_json
    from specprune_ros.nodes.policy_node.parameter_tables import as_data, as_markdown, as_yaml

    write_json(args.json, as_data())
    print(as_markdown() if args.markdown else as_yaml(), end='')
    return 0
