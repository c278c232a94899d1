"""The table that ``specprune eval`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One table per task, dense first."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for task in dict.fromkeys(row['task'] for row in rows):
        some = [row for row in rows if row['task'] == task]
        table = Table(title=f'{task}: closed-loop success', title_justify='left')
        for name in ('pruner', 'success', '95 %', 'below dense', 'p', 'above random', 'p'):
            table.add_column(name, justify='left' if name == 'pruner' else 'right')
        for name in ('steps', 'queries', 'tokens', 'FLOPs', 'recall', 'off dense', 'ms'):
            table.add_column(name, justify='right')
        for row in some:
            table.add_row(*cells(row))
        console.print(table)
    console.print(
        '95 %: Wilson. below dense, above random: percentage points on the same episodes, p by '
        "McNemar's exact test. FLOPs: of the whole query, towers included. recall: share of what "
        'the deep layers attend to that the previous query foretold. off dense: largest '
        'difference of a translation row from dense at the same look.',
        style='dim',
    )


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    return [
        row['pruner'],
        f'{row["successes"]}/{row["episodes"]} = {row["success_rate"]:.1%}',
        f'{row["ci_low"]:.1%} to {row["ci_high"]:.1%}',
        _points(row, 'paired_loss'),
        _p(row, 'paired_loss'),
        _points(row, 'against_gain'),
        _p(row, 'against_gain'),
        _number(row['steps'], '.0f'),
        _number(row['queries'], '.1f'),
        _number(row['tokens_mean'], '.0f'),
        _number(row['flops_ratio'], '.0%'),
        _number(row['recall'], '.0%'),
        '' if row['action_deviation'] is None else f'{1e3 * row["action_deviation"]:.1f} mm',
        _number(row['ms_p50'], '.1f'),
    ]


def _points(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ''
    low, high = 100 * row[f'{name}_low'], 100 * row[f'{name}_high']
    return f'{100 * row[name]:+.1f} ({low:+.1f} to {high:+.1f})'


def _p(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ''
    p = row[f'{name}_p']
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def _number(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)
