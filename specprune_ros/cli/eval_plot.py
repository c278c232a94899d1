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

    asked = [row for row in rows if row['control'] == 'asked']
    tasks = list(dict.fromkeys(row['task'] for row in asked))
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks) + 0.8, 4.6), sharey=True, squeeze=False
    )
    for task, panel in zip(tasks, panels[0], strict=True):
        some = [row for row in asked if row['task'] == task]
        _panel(panel, some)
        panel.set_title({'all': 'all families'}.get(task, task))
    panels[0][0].set_ylabel('closed-loop success (95 % Wilson interval)')
    figure.supxlabel('operations of a query, share of dense')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    by_label = {row['pruner']: row for row in rows}
    texts = []
    for row in rows:
        label, x, y = row['pruner'], row['flops_ratio'], row['success_rate']
        colour = ORANGE if label.startswith('random') else GREY
        if 'against' in row:
            colour = BLUE
            other = by_label.get(row['against'])
            if other:
                panel.plot([x, other['flops_ratio']], [y, other['success_rate']], '-', c='0.8')
        if label == 'dense':
            colour = 'black'
            panel.axhline(y, color='0.85', lw=1, zorder=0)
        error = [[max(0.0, y - row['ci_low'])], [max(0.0, row['ci_high'] - y)]]
        panel.errorbar(x, y, error, fmt='o', ms=5, color=colour, capsize=2, lw=1)
        texts.append((x, y, label, colour))
    _write(panel, texts)
    panel.set_ylim(-0.03, 1.05)
    panel.yaxis.set_major_formatter('{x:.0%}')
    panel.xaxis.set_major_formatter('{x:.0%}')
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)


def _write(panel: Any, texts: list[tuple[float, float, str, str]]) -> None:
    """Names beside the points, moved down where they would lie on one another."""
    taken: list[tuple[float, float]] = []
    for x, y, label, colour in sorted(texts, key=lambda item: -item[1]):
        at = y
        while any(abs(x - other) < 0.12 and abs(at - height) < 0.035 for other, height in taken):
            at -= 0.012
        taken.append((x, at))
        panel.annotate(
            label, (x, y), (x + 0.006, at), fontsize=6.5, color=colour, va='center', ha='left'
        )
