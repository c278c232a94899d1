"""``specprune doctor``: whether an arm is ready, and what to do where it is not."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from specprune_ros.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'doctor',
        parents=[options.robot(), options.checkpoint()],
        help='say what an arm lacks before it may move: topics, clocks, frames, joints, limits',
    )
    parser.add_argument('--checkpoint', type=Path, help='whether this one fits the arm, too')
    parser.add_argument(
        '--seconds', type=float, default=5.0, help='how long to listen (default 5)'
    )
    parser.add_argument('--json', type=Path, help='write the rows to this file')
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0 where nothing is red, 1 where something is."""
    from specprune_ros.apps.doctor import DoctorOptions, run_doctor

    names = [field.name for field in dataclasses.fields(DoctorOptions)]
    return run_doctor(DoctorOptions(**{name: getattr(args, name) for name in names}))
