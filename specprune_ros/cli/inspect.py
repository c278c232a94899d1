"""``specprune inspect``: what a checkpoint folder holds, and whether the node could load it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprune_ros.cli import options

if TYPE_CHECKING:
    from specprune_ros.models.checkpoint.report import Report

SHOWN = 12  # lines of a long list of tensors


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'inspect',
        parents=[options.checkpoint()],
        help='say what a checkpoint folder holds and whether it would load',
    )
    parser.add_argument('path', type=Path, help='local folder of a downloaded checkpoint')
    parser.add_argument('--json', type=Path, help='write the report to this file')
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0 where ``model.path`` would work, 1 where it would not."""
    from specprune_ros.models.checkpoint.report import Report

    data = options.inspected(args)
    report = Report.from_dict(data)
    show(report)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(data, indent=1), encoding='utf-8')
    return 0 if report.ok else 1


def show(report: Report) -> None:
    """Print a report for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from specprune_ros.models.checkpoint.report import human

    out = Console(soft_wrap=True)
    out.width = max(out.width, 120)
    out.print(f'[bold]{escape(str(report.path))}[/]: {report.family or "unknown"}')
    facts = Table('', 'value', 'read from')
    for fact in report.facts:
        facts.add_row(fact.name, escape(str(fact.value)), escape(fact.source))
    if report.facts:
        out.print(facts)
    if report.meaning:
        table = Table('an action', 'value', 'who says so', title='What an action means')
        for fact in report.meaning:
            table.add_row(fact.name, escape(str(fact.value)), escape(fact.source))
        out.print(table)
    if report.parameters:
        sizes = ', '.join(f'{human(size)} in {name}' for name, size in report.memory().items())
        out.print(f'{report.parameters:,} parameters: {sizes}')
    if report.statistics_keys:
        out.print(escape(f'statistics: {", ".join(report.statistics_keys)}'))
    for reason, count in sorted(report.dropped.items()):
        out.print(f'{count} tensors not used ({reason})')
    for title, names in (('missing', report.missing), ('unexpected', report.unexpected)):
        for name in names[:SHOWN]:
            out.print(escape(f'{title}: {name}'))
        if len(names) > SHOWN:
            out.print(f'{title}: and {len(names) - SHOWN} more (all of them with --json)')
    for note in report.notes:
        out.print(f'note: {escape(note)}')
    for problem in report.problems:
        out.print(f'[red]problem[/]: {escape(problem)}')
    verdict = '[green]would load[/]' if report.ok else '[red]would not load[/]'
    out.print(f'{verdict} (weights are read, and checked for NaN, only when loading)')
