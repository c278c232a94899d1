"""The roofline of a bench run: what the decoder reached of what the device can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specprune_ros.bench.report import name


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the rows of :func:`specprune_ros.cli.bench.bench` to ``path``.

    Across: operations per byte of weights read. Up: operations a second. Of a flow policy the
    prefix is filled, its action expert hollow. The line is the lower of
    the two measured ceilings; a point below it is time that is neither arithmetic nor memory.
    Raises ``ValueError`` for an ending that matplotlib does not know, ``OSError`` where it cannot
    write.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    points = [row for row in rows if 'floor_ms' in row]
    if not points:
        raise ValueError('no query ran the model, so there is nothing to draw')
    first = points[0]
    peak, memory = 1e3 * first['ceiling_tflops'], first['ceiling_gbs']
    names = ('intensity_decoder', 'intensity_expert')
    across = np.array([row[each] for row in points for each in names if each in row])
    edge = peak / memory
    span = np.geomspace(0.3 * min(edge, across.min()), 3 * max(edge, across.max()), 200)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    axes.loglog(span, np.minimum(peak, span * memory), color='black', label='measured ceilings')
    axes.axvline(edge, color='grey', linewidth=0.8, linestyle=':')
    colours = pyplot.get_cmap('tab20')
    for number, row in enumerate(points):
        reached = 1e3 * row['tflops_decoder']
        share = reached / min(peak, row['intensity_decoder'] * memory)
        axes.plot(
            row['intensity_decoder'],
            reached,
            'os^Dv'[number % 5],
            color=colours(number % 20),
            label=f'{name(row)}: {row["ms_decoder_p50"]:.4g} ms, {share:.0%}',
        )
        if 'intensity_expert' in row:
            reached = 1e3 * row['tflops_expert']
            share = reached / min(peak, row['intensity_expert'] * memory)
            axes.plot(
                row['intensity_expert'],
                reached,
                'os^Dv'[number % 5],
                color=colours(number % 20),
                fillstyle='none',
                label=f'  its expert: {row["ms_head_p50"]:.4g} ms, {share:.0%}',
            )
    axes.set_xlabel('operations per byte of weights read (FLOP/byte)')
    axes.set_ylabel('GFLOP/s of the decoder')
    axes.set_title(f'{first["model"]}, {first["dtype"]}\n{first["device"]}', fontsize='medium')
    axes.legend(fontsize='small', loc='lower right')
    axes.grid(which='major', linewidth=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
