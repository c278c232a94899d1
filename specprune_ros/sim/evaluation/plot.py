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
    """Draw a line per method over its retention knob: success, and the distance from dense on
    the same observation, both over the operations on the critical path. Over all families, or the
    only one.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    task = 'all' if any(row['task'] == 'all' for row in rows) else rows[0]['task']
    some = [row for row in rows if row['task'] == task and row.get('curve')]
    dense = next((r for r in rows if r['task'] == task and r['pruner'] == 'dense'), None)
    figure, (success, deviation) = pyplot.subplots(
        1, 2, figsize=(11.5, 4.6), layout='constrained', sharex=True
    )
    names = list(dict.fromkeys(row['curve'] for row in some))
    palette = pyplot.get_cmap('tab20')
    for number, name in enumerate(names):
        line = sorted((r for r in some if r['curve'] == name), key=lambda r: r['flops_ratio'])
        x = [row['flops_ratio'] for row in line]
        y = [row['success_rate'] for row in line]
        low = [max(0.0, row['success_rate'] - row['ci_low']) for row in line]
        high = [max(0.0, row['ci_high'] - row['success_rate']) for row in line]
        ours = name.startswith('specprune')
        style = {'color': palette(number % 20), 'lw': 2.2 if ours else 1.0, 'label': name}
        style['ls'] = '--' if 'random' in name or name == 'local attention' else '-'
        success.errorbar(x, y, [low, high], marker='o', ms=4, capsize=2, elinewidth=0.6, **style)
        off = [(a, 1e3 * r['action_deviation']) for a, r in zip(x, line, strict=True)
               if r['action_deviation'] is not None]  # fmt: skip
        if off:
            deviation.plot(*zip(*off, strict=True), marker='o', ms=4, **style)
    if dense is not None:
        success.axhline(dense['success_rate'], color='black', lw=1, label='dense')
    success.set_ylabel('closed-loop success, 95 % Wilson interval')
    success.yaxis.set_major_formatter('{x:.0%}')
    success.set_ylim(-0.03, 1.05)
    deviation.set_ylabel('off dense on the same observation, mm')
    for panel in (success, deviation):
        panel.set_xlabel('operations on the critical path, share of dense')
        panel.xaxis.set_major_formatter('{x:.0%}')
        panel.grid(alpha=0.25)
        panel.spines[['top', 'right']].set_visible(False)
    figure.legend(*success.get_legend_handles_labels(), loc='outside right center',
                  fontsize=8, frameon=False)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


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
