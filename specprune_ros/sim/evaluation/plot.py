"""Success against FLOPs, one point per pruner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

GREY, BLUE, ORANGE = '#9a9a9a', '#1f6fb4', '#d9730d'


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one panel per task, PNG or SVG by the file's name.

    SpecPrune and the random control of the same counts are joined by a line: its length is what
    choosing tokens is worth.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    plain = [row for row in rows if row['control'] == 'instructed']
    tasks = list(dict.fromkeys(row['task'] for row in plain))
    numbers = {label: n for n, label in enumerate(dict.fromkeys(r['pruner'] for r in plain), 1)}
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, grid = pyplot.subplots(
        lines,
        columns,
        figsize=(4.6 * columns + 2.4, 3.7 * lines),
        sharey=True,
        squeeze=False,
        layout='constrained',
    )
    for spare in grid.flat[len(tasks) :]:
        spare.set_visible(False)
    for task, panel in zip(tasks, grid.flat, strict=False):
        _panel(panel, [row for row in plain if row['task'] == task], numbers)
        panel.set_title({'all': 'all families'}.get(task, task), pad=14)
    figure.supylabel('closed-loop success, 95 % Wilson interval')
    figure.supxlabel('operations of a query, share of dense')
    handles = [
        pyplot.Line2D([], [], marker='o', ls='', c=_colour(label, plain), label=f'{n}  {label}')
        for label, n in numbers.items()
    ]
    figure.legend(handles=handles, loc='outside right center', fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a line per method over its retention knob, PNG or SVG by the file's name.

    A column of panels per task: above its success, below the distance from dense on the same
    observation, both over the operations on the critical path.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row['task'] for row in rows))
    figure, grid = pyplot.subplots(
        2,
        len(tasks),
        figsize=(3.9 * len(tasks) + 2.2, 7.2),
        layout='constrained',
        sharex=True,
        sharey='row',
        squeeze=False,
    )
    names = list(dict.fromkeys(row['curve'] for row in rows if row.get('curve')))
    palette = pyplot.get_cmap('tab20')
    styles = {name: _style(name, palette(number % 20)) for number, name in enumerate(names)}
    for task, success, deviation in zip(tasks, *grid, strict=True):
        success.set_title({'all': 'all families'}.get(task, task))
        some = [row for row in rows if row['task'] == task]
        for name, style in styles.items():
            line = sorted(
                (row for row in some if row.get('curve') == name), key=lambda r: r['flops_ratio']
            )
            _curve(success, deviation, line, style)
        for row in some:
            if row['pruner'] == 'dense':
                success.axhline(row['success_rate'], color='black', lw=1, label='dense')
        for panel in (success, deviation):
            panel.xaxis.set_major_formatter('{x:.0%}')
            panel.grid(alpha=0.25)
            panel.spines[['top', 'right']].set_visible(False)
    success.set_ylim(-0.03, 1.05)
    success.yaxis.set_major_formatter('{x:.0%}')
    grid[0, 0].set_ylabel('closed-loop success, 95 % Wilson interval')
    grid[1, 0].set_ylabel('off dense on the same observation, mm')
    figure.supxlabel('operations on the critical path, share of dense')
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside right center',
                  fontsize=8, frameon=False)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _style(name: str, colour: Any) -> dict[str, Any]:
    control = 'random' in name or name == 'local attention'
    return {
        'color': colour,
        'label': name,
        'lw': 2.2 if name.startswith('specprune') else 1.0,
        'ls': '--' if control else '-',
        'marker': 'o',
        'ms': 4,
    }


def _curve(
    success: Any, deviation: Any, line: Sequence[dict[str, Any]], style: dict[str, Any]
) -> None:
    """One method's line in the two panels of a task."""
    x = [row['flops_ratio'] for row in line]
    y = [row['success_rate'] for row in line]
    low = [max(0.0, row['success_rate'] - row['ci_low']) for row in line]
    high = [max(0.0, row['ci_high'] - row['success_rate']) for row in line]
    success.errorbar(x, y, [low, high], capsize=2, elinewidth=0.6, **style)
    measured = [row for row in line if row['action_deviation'] is not None]
    deviation.plot(
        [row['flops_ratio'] for row in measured],
        [1e3 * row['action_deviation'] for row in measured],
        **style,
    )


def _colour(label: str, rows: Sequence[dict[str, Any]]) -> str:
    if label == 'dense':
        return 'black'
    if label.startswith('random'):
        return ORANGE
    return BLUE if label.startswith('specprune') or _against(label, rows) else GREY


def _against(label: str, rows: Sequence[dict[str, Any]]) -> bool:
    return any('against' in row for row in rows if row['pruner'] == label)


def _panel(panel: Any, rows: Sequence[dict[str, Any]], numbers: dict[str, int]) -> None:
    by_label = {row['pruner']: row for row in rows}
    for row in rows:
        label, x, y = row['pruner'], row['flops_ratio'], row['success_rate']
        colour = _colour(label, rows)
        other = by_label.get(row.get('against', ''))
        if other:
            panel.plot([x, other['flops_ratio']], [y, other['success_rate']], '-', c='0.75')
        if label == 'dense':
            panel.axhline(y, color='0.85', lw=1, zorder=0)
        error = [[max(0.0, y - row['ci_low'])], [max(0.0, row['ci_high'] - y)]]
        panel.errorbar(x, y, error, fmt='o', ms=5, color=colour, capsize=2, lw=0.8)
    heights: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row['flops_ratio']):
        x, height = row['flops_ratio'], 1.06
        # Numbers of neighbours stand above one another, over the points.
        while any(abs(x - at) < 0.018 and abs(height - high) < 0.05 for at, high in heights):
            height += 0.055
        heights.append((x, height))
        panel.text(
            x,
            height,
            str(numbers[row['pruner']]),
            fontsize=7.5,
            ha='center',
            color=_colour(row['pruner'], rows),
        )
    panel.set_ylim(-0.03, max(height for _, height in heights) + 0.08)
    panel.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    panel.yaxis.set_major_formatter('{x:.0%}')
    panel.xaxis.set_major_formatter('{x:.0%}')
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)
