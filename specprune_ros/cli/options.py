"""Options that several commands have, as parsers to take as ``parents``, and how they are read."""

from __future__ import annotations

import argparse
import json
from typing import Any


def robot(default: str = '') -> argparse.ArgumentParser:
    """``--robot`` (must be given without a ``default``), ``--robot-sn`` and ``--namespace``."""
    parser = argparse.ArgumentParser(add_help=False, parents=[namespace()])
    parser.add_argument(
        '--robot',
        default=default,
        required=not default,
        help='robot profile: a name or a YAML file',
    )
    parser.add_argument('--robot-sn', default='', help='serial number for profiles that need one')
    return parser


def namespace() -> argparse.ArgumentParser:
    """``--namespace``, absolute; empty at the root."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        '--namespace',
        default='',
        type=_namespace,
        help="of the arm, where it has one (arms.launch.py's names)",
    )
    return parser


def _namespace(text: str) -> str:
    """A namespace from the root on; empty at the root."""
    from specprune_ros.apps.launch_arguments import ArgumentError, absolute

    try:
        return absolute(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def checkpoint() -> argparse.ArgumentParser:
    """What a checkpoint's files leave open: ``--unnorm-key`` and ``--platform``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--unnorm-key', default=None, help='which robot of the statistics')
    parser.add_argument('--platform', help='robot or benchmark the checkpoint was trained for')
    return parser


def device() -> argparse.ArgumentParser:
    """Where a model runs: ``--device`` and ``--dtype``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:N or auto')
    parser.add_argument('--dtype', default='auto', help='float32, bfloat16, float16 or auto')
    return parser


def param(meaning: str) -> argparse.ArgumentParser:
    """``--param NAME=VALUE``, again and again; read it with :func:`parse_changes`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--param', action='append', default=[], metavar='NAME=VALUE', help=meaning)
    return parser


def parse_changes(items: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` items to parameters; VALUE is read as JSON, else taken as text."""
    changes: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition('=')
        if not equals:
            raise SystemExit(f'--param {item}: must be NAME=VALUE')
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def inspected(args: argparse.Namespace) -> dict[str, Any]:
    """The report on the checkpoint at ``args.path``, made in a limited child process."""
    from specprune_ros.models.checkpoint.limited_inspection import inspect_limited

    overrides = {'platform': args.platform} if args.platform else None
    return inspect_limited(args.path, args.unnorm_key, overrides)
