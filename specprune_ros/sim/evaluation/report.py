"""The table that ``specprune eval`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = ('pruner', 'success', '95 %', 'below dense', 'above random', 'steps')
HEAD += ('queries', 'tokens', 'FLOPs', 'decoder', 'slack', 'recall', 'off dense', 'ms')
LEGEND = (
    '95 %: Wilson. below dense, above random: percentage points on the same episodes, p by '
    "McNemar's exact test. FLOPs: of the whole query, towers included; decoder: of it alone; "
    'slack: between queries, on top. recall: share of what the deep layers attend to that the '
    'previous query foretold. off dense: largest difference of a translation row from dense at '
    'the same observation.'
)
WIDTH = 190  # where the output is no terminal


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One table per task, dense first."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for task in dict.fromkeys(row['task'] for row in rows):
        table = Table(title=f'{task}: closed-loop success', title_justify='left')
        for number, name in enumerate(HEAD):
            table.add_column(name, justify='right' if number else 'left', no_wrap=True)
        for row in rows:
            if row['task'] == task:
                table.add_row(*cells(row))
        console.print(table)
    console.print(LEGEND, style='dim')


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    return [
        row['pruner'],
        f'{row["successes"]}/{row["episodes"]}',
        f'{100 * row["ci_low"]:.1f}..{100 * row["ci_high"]:.1f}',
        _points(row, 'paired_loss'),
        _points(row, 'against_gain'),
        _number(row['steps'], '.0f'),
        _number(row['queries'], '.1f'),
        _number(row['tokens_mean'], '.0f'),
        _number(row['flops_ratio'], '.0%'),
        _number(row.get('decoder_flops'), '.0%'),
        _number(row.get('refresh_flops') or None, '+.0%'),
        _number(row['recall'], '.0%'),
        '' if row['action_deviation'] is None else f'{1e3 * row["action_deviation"]:.1f} mm',
        _number(row['ms_p50'], '.1f'),
    ]


def _points(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ''
    low, high = 100 * row[f'{name}_low'], 100 * row[f'{name}_high']
    p = row[f'{name}_p']
    chance = '<.001' if p < 0.001 else f'{p:.3f}'.removeprefix('0')
    return f'{100 * row[name]:+.1f} ({low:+.1f}..{high:+.1f}) {chance}'


def _number(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)
