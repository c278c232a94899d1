"""What ``specprune bench`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from specprune_ros.bench.measure import Result

LOOPS = {'stock': ' (stock loop)', 'eager': '', 'graph': ' (graph)'}


def print_tables(result: Result) -> None:
    """Times and speed-ups, then stages and rates, then the sweep."""
    console = Console()
    console.width = max(console.width, 136)
    console.print(_times(result.rows))
    console.print(_rates(result.rows))
    for row in result.rows:
        if row['trouble']:
            console.print(f'{name(row)}: {row["trouble"]}')
    if result.sweep_rows:
        console.print(_sweep(result.sweep_rows))
    if result.sweep:
        console.print(f'Decoder swept {result.sweep.date}: {result.sweep.summary()}.')
    if result.peak_mib is not None:
        console.print(
            f'Device memory: {result.weights_mib:.0f} MiB of weights, '
            f'{result.peak_mib - result.weights_mib:.0f} MiB more at the most.'
        )


def name(row: dict[str, Any]) -> str:
    """How a row is called: the pruner, and the loop that ran where it is not this package's."""
    return row['pruner'] + LOOPS.get(row['mode'], f' ({row["mode"]})')


def _times(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    what = f'{first["model"]}, {first["dtype"]}, {first["device"]}'
    table = Table(
        title=f'{what}, {first["queries"]} queries',
        caption='Speed-ups are medians over rounds, end to end, against the stock loop and '
        'against dense in this package (a graph against the dense graph), quartiles in brackets. '
        'FLOPs of the whole query; decoder: the language model alone, as the papers count; 7B: '
        'the same at OpenVLA-OFT-7B.',
    )
    table.add_column('', no_wrap=True)
    for title in (
        'tokens', 'FLOPs', 'decoder', '7B', 'p50', 'p90', 'p99', 'max', 'x stock', 'x dense',
        'deviation',
    ):  # fmt: skip
        table.add_column(title, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(
            name(row),
            f'{row["tokens_mean"]:.0f}',
            f'{row["flops_ratio"]:.0%}',
            _or_blank(row.get('flops_ratio_decoder'), '.0%'),
            _or_blank(row.get('flops_ratio_7b'), '.0%'),
            *(_ms(row[key]) for key in ('ms_p50', 'ms_p90', 'ms_p99', 'ms_max')),
            _or_blank(row['speedup_stock'], '.2f'),
            f'{row["speedup"]:.2f} ({row["speedup_low"]:.2f}-{row["speedup_high"]:.2f})',
            _or_blank(row['action_deviation'], '.2g'),
        )
    return table


def _rates(rows: list[dict[str, Any]]) -> Table:
    first = next((row for row in rows if 'ceiling_tflops' in row), {})
    table = Table(
        title=''
        if not first
        else f'This device, measured in this run: '
        f'{1000 * first["ceiling_tflops"]:.1f} GFLOP/s (GEMM), {first["ceiling_gbs"]:.1f} GB/s '
        f'(memory); copies {first["ms_copies"]:.3f} ms',
        caption='Milliseconds of each stage (p50); decoder rates from operations done and weights '
        'read; floor: the sum over stages of the longer of both at those ceilings.',
    )
    table.add_column('', no_wrap=True)
    for title in (
        'images', 'vision', 'decoder', 'head', 'GFLOP', 'decoder GFLOP/s', 'GB/s', 'FLOP/byte',
        'floor ms', 'p50/floor',
    ):  # fmt: skip
        table.add_column(title, justify='right', no_wrap=True)
    for row in rows:
        if 'floor_ms' not in row:
            continue
        stages = ('preprocess', 'vision', 'decoder', 'head')
        table.add_row(
            name(row),
            *(_ms(row[f'ms_{stage}_p50']) for stage in stages),
            f'{row["gflops"]:.1f}',
            f'{1000 * row["tflops_decoder"]:.1f}',
            f'{row["gbs_decoder"]:.2f}',
            f'{row["intensity_decoder"]:.0f}',
            _ms(row['floor_ms']),
            f'{row["distance"]:.2f}',
        )
    return table


def _sweep(rows: list[dict[str, Any]]) -> Table:
    table = Table(title='Decoder against tokens kept from layer 1 on (p50)')
    for title in ('vision tokens', 'rows', 'ms', 'x all'):
        table.add_column(title, justify='right')
    for row in rows:
        cells = (row['tokens_mean'], row['rows'], _ms(row['ms_p50']), f'{row["speedup"]:.2f}')
        table.add_row(*map(str, cells))
    return table


def _ms(value: float) -> str:
    return f'{value:.2f}' if value < 10 else f'{value:.0f}' if value >= 1000 else f'{value:.1f}'


def _or_blank(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def draw_roofline(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw to ``path`` what the decoder reached of what the device can do.

    Across: operations per byte of weights read. Up: operations a second. Of a flow policy the
    prefix is filled, its action expert hollow. The line is the lower of the two measured ceilings;
    a point below it is time that is neither arithmetic nor memory.
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
        for part, time, fill, label in (
            ('decoder', 'decoder', 'full', name(row)),
            ('expert', 'head', 'none', '  its expert'),
        ):
            if f'intensity_{part}' not in row:
                continue
            intensity, reached = row[f'intensity_{part}'], 1e3 * row[f'tflops_{part}']
            axes.plot(
                intensity,
                reached,
                'os^Dv'[number % 5],
                color=colours(number % 20),
                fillstyle=fill,
                label=f'{label}: {row[f"ms_{time}_p50"]:.4g} ms, '
                f'{reached / min(peak, intensity * memory):.0%}',
            )
    axes.set_xlabel('operations per byte of weights read (FLOP/byte)')
    axes.set_ylabel('GFLOP/s of the decoder')
    axes.set_title(f'{first["model"]}, {first["dtype"]}\n{first["device"]}', fontsize='medium')
    axes.legend(fontsize='small', loc='lower right')
    axes.grid(which='major', linewidth=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
