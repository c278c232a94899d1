"""``specprune``: the command line. Each command lives in a file of its own beside this one."""

from __future__ import annotations

import argparse
import importlib
import sys

# Order of the help text. A command's file has add_parser(subparsers) and run(args) -> exit status.
COMMANDS = (
    'demo',
    'say',
    'view',
    'replay',
    'params',
    'bench',
    'explain',
    'inspect',
    'verify',
    'train',
    'eval',
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog='specprune',
        description='Vision-language-action policies with token pruning, on ROS 2.',
    )
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name in COMMANDS:
        module = importlib.import_module(f'specprune_ros.cli.{name}')
        module.add_parser(commands).set_defaults(run=module.run)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns its exit status."""
    chosen = parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    raise SystemExit(main())
