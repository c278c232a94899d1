"""``specprune describe``: what a checkpoint's actions mean, as the file that states it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from specprune_ros.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'describe',
        parents=[options.checkpoint()],
        help='write the specprune.json of a checkpoint: what its actions mean, and what to state',
    )
    parser.add_argument('path', type=Path, help='local folder of a downloaded checkpoint')
    parser.add_argument('--json', type=Path, help='write it to this file as well')
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0 where everything is known, 1 where something must be stated or is wrong."""
    from specprune_ros.models.checkpoint.action_meaning import describe

    data = options.inspected(args)
    if data['config'] is None:
        print('\n'.join(data['problems']), file=sys.stderr)
        return 1
    text = json.dumps(describe(data), indent=1)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(f'{text}\n', encoding='utf-8')
    for fact in data['meaning']:
        print(f'{fact["name"]}: {fact["value"]} [{fact["source"]}]', file=sys.stderr)
    for name in data['unstated']:
        print(f'state {name}: it is null in the file', file=sys.stderr)
    for problem in data['problems']:
        print(problem, file=sys.stderr)
    return 0 if data['ok'] and not data['unstated'] else 1
