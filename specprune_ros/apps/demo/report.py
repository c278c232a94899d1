"""What the demo shows while it runs and leaves behind: lines, tables, JSON, strip and GIF."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from specprune_ros.apps.demo.demo_sequence import DEMO, DENSE, PERSON, PRUNED, Attempt
from specprune_ros.apps.monitor import Monitor
from specprune_ros.bench.host_info import as_json, host_info

KEEPS_UP = 0.95  # real-time factor
RANDOM_WEIGHTS = (
    '[yellow]The weights are seeded random numbers: the arm moves, but it does not do '
    'what the instruction says.[/] What is real here: ROS 2 and DDS, the cameras, the pruned '
    'forward pass and its costs.'
)


def invitation() -> str:
    """How to say something to the arm from another terminal."""
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    return f'.venv/bin/specprune say --domain {domain} "lift the green cube"'


def line(monitor: Monitor, elapsed: float) -> str:
    """One line for outputs that are no terminal."""
    numbers = monitor.tally.numbers()
    latency = numbers['latency_ms']
    return (
        f'{elapsed:5.0f} s  {numbers["chunks"]:4d} chunks  '
        + (f'latency {latency["p50"]:.0f} ms  ' if latency else '')
        + f'tokens {numbers["tokens_mean"] or 0:.0f} of {numbers["tokens_in"]}  '
        + monitor.diagnosis
    )


def status(monitor: Monitor, attempts: Sequence[Attempt], elapsed: float, seconds: float) -> Group:
    """The live display."""
    numbers, last = monitor.tally.numbers(), monitor.tally.last
    table = Table(show_header=False, box=None, padding=(0, 2))
    for attempt in attempts[-6:]:
        table.add_row(
            escape(f'"{attempt.instruction}"'), escape(f'{attempt.pruner}: {attempt.summary}')
        )
    table.add_row(
        'chunks', f'{numbers["chunks"]}, {monitor.chunk_rate.rate(time.monotonic()):.1f} a second'
    )
    if numbers['latency_ms'] and numbers['query_ms'] and last is not None:
        latency, query = numbers['latency_ms'], numbers['query_ms']
        table.add_row('latency', f'p50 {latency["p50"]:.1f} ms, p99 {latency["p99"]:.1f} ms')
        table.add_row('policy', f'p50 {query["p50"]:.1f} ms, p99 {query["p99"]:.1f} ms')
        kept = ' > '.join(str(n) for n in (last.tokens_in, *last.tokens_after))
        table.add_row('vision tokens', kept)
        table.add_row('FLOPs', f'{last.flops_ratio:.0%} of dense')
        table.add_row('mode', last.reason)
        table.add_row('speed', f'{last.speed_translation:.3f} m/s from {last.speed_source}')
    rates = ', '.join(f'{name} {rate} Hz' for name, rate in monitor.image_rates.items())
    table.add_row('images', rates or 'waiting')
    table.add_row('health', monitor.diagnosis)
    table.add_row('say something', invitation())
    if seconds == math.inf:
        return Group(table, 'until Ctrl-C')
    return Group(table, ProgressBar(total=seconds, completed=elapsed, width=60))


def outcomes(attempts: Sequence[Attempt], not_reached: Sequence[tuple[str, str]]) -> Table:
    """Each instruction of the sequence with the pruner and dense, then what people said.

    Costs are the means of both, with a stroke between.
    """
    table = Table(title='Instructions and results', title_justify='left')
    table.add_column('instruction')
    for name in (PRUNED, DENSE):
        table.add_column(name)
    for name in ('tokens', 'FLOPs', 'p50, ms'):
        table.add_column(name, justify='right', no_wrap=True)
    done = {(a.instruction, a.pruner): a for a in attempts if a.said_by == DEMO}
    instructions = [a.instruction for a in done.values()] + [words for words, _ in not_reached]
    for words in dict.fromkeys(instructions):
        pair = [done.get((words, pruner)) for pruner in (PRUNED, DENSE)]
        table.add_row(
            escape(words), *(_coloured(a) if a else 'not reached' for a in pair), *_costs(pair)
        )
    for attempt in attempts:
        if attempt.said_by == PERSON:
            pair = [attempt if attempt.pruner == name else None for name in (PRUNED, DENSE)]
            cells = (_coloured(a) if a else '' for a in pair)
            table.add_row(f'you: {escape(attempt.instruction)}', *cells, *_costs(pair))
    return table


def comparison(attempts: Sequence[Attempt]) -> Table:
    """The sequence in all, pruned against dense: instructions that both were given."""
    done = {(a.instruction, a.pruner): a for a in attempts if a.said_by == DEMO and not a.cut}
    both = [words for words, name in done if name == PRUNED and (words, DENSE) in done]
    table = Table(title='Pruned against dense', title_justify='left')
    table.add_column('')
    for name in (PRUNED, DENSE, 'share'):
        table.add_column(name, justify='right', no_wrap=True)
    sides = [[done[words, name] for words in both] for name in (PRUNED, DENSE)]
    table.add_row(
        'success', *(f'{sum(a.verdict.success for a in s)} of {len(s)}' for s in sides), ''
    )
    for label, name, pattern in (
        ('vision tokens, mean over layers and queries', 'tokens_mean', '{:.0f}'),
        ('operations of a query, first ones included', 'flops_ratio', '{:.0%}'),
        ("the policy's own time of a query, p50, ms", 'query_ms_p50', '{:.0f}'),
        ('time to the end, simulated s', 'simulated_seconds', '{:.1f}'),
    ):
        pruned, dense = (_over_queries(side, name) for side in sides)
        if pruned is not None and dense:
            table.add_row(
                label, pattern.format(pruned), pattern.format(dense), f'{pruned / dense:.0%}'
            )
    return table


def _over_queries(attempts: Sequence[Attempt], name: str) -> float | None:
    """Mean of a number over all queries of some attempts (median times: weighted by queries)."""
    known = [(a.queries, getattr(a, name)) for a in attempts if getattr(a, name) is not None]
    total = sum(queries for queries, _ in known)
    return sum(queries * value for queries, value in known) / total if total else None


def real_time_factor(attempts: Sequence[Attempt]) -> float | None:
    """Simulated seconds a second while instructions were followed."""
    known = [(a.seconds_taken, a.real_time_factor) for a in attempts if a.real_time_factor]
    total = sum(seconds for seconds, _ in known)
    return sum(seconds * factor for seconds, factor in known) / total if total else None


def _coloured(attempt: Attempt) -> str:
    style = 'green' if attempt.verdict.success else 'yellow'
    return f'[{style}]{escape(attempt.summary)}[/]'


def _costs(pair: Sequence[Attempt | None]) -> tuple[str, str, str]:
    """Tokens, FLOPs and time of both, with a stroke between."""

    def both(name: str, pattern: str) -> str:
        values = [getattr(attempt, name) if attempt else None for attempt in pair]
        return '/'.join('-' if value is None else pattern.format(value) for value in values)

    return (
        both('tokens_mean', '{:.0f}'),
        both('flops_ratio', '{:.0%}'),
        both('query_ms_p50', '{:.0f}'),
    )


def report(
    numbers: dict[str, Any],
    monitor: Monitor,
    attempts: Sequence[Attempt],
    not_reached: Sequence[tuple[str, str]],
    out: Path,
    file: Path,
    console: Console,
) -> None:
    """Write JSON, strip and GIF, and print the tables.

    ``numbers`` are what only the demo knows: weights, cameras, exit states and the like.
    """
    numbers = {
        **monitor.tally.numbers(),
        **numbers,
        'attempts': [attempt.numbers() for attempt in attempts],
        'not_reached': [{'instruction': w, 'pruner': p} for w, p in not_reached],
        'real_time_factor': real_time_factor(attempts),
        'machine': host_info(),
    }
    made = [file]
    if monitor.gif.frames:
        numbers['strip'], numbers['gif'] = str(out / 'demo.png'), str(out / 'demo.gif')
        monitor.gif.save_strip(out / 'demo.png')
        monitor.gif.save_gif(out / 'demo.gif')
        made += [out / 'demo.png', out / 'demo.gif']
    numbers['recording'] = str(out / 'bag')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_json(numbers))
    if attempts or not_reached:
        console.print(outcomes(attempts, not_reached))
        console.print(comparison(attempts))
    console.print(_costs_in_all(numbers))
    console.print('written: ' + ', '.join(str(path) for path in (*made, out / 'bag')))


def _costs_in_all(numbers: dict[str, Any]) -> Table:
    table = Table(title='What the demo did', show_header=False, title_justify='left')
    table.add_row('chunks', str(numbers['chunks']))
    if numbers['latency_ms']:
        for name, label in (
            ('latency_ms', 'image taken to chunk received, simulated time'),
            ('query_ms', "the policy's own time"),
            ('overhead_ms', 'the rest: DDS, callbacks, threads'),
        ):
            times = numbers[name]
            # The rest is unknown where simulated time was slowed down.
            if times and (name != 'overhead_ms' or (numbers['real_time_factor'] or 0) >= KEEPS_UP):
                table.add_row(label, f'p50 {times["p50"]:.1f} ms, p99 {times["p99"]:.1f} ms')
        table.add_row('vision tokens in', str(numbers['tokens_in']))
        pruned = numbers['tokens_mean_pruned_queries']
        if pruned is not None:
            table.add_row('vision tokens, mean over layers of pruned queries', f'{pruned:.0f}')
        table.add_row('modes', ', '.join(f'{k} {v}' for k, v in numbers['modes'].items()))
        table.add_row('episodes (memory resets)', str(numbers['episodes']))
    factor = numbers['real_time_factor']
    if factor is not None:
        slow = ': this machine cannot keep up, so simulated time was slowed down'
        table.add_row('real-time factor', f'{factor:.2f}' + slow * (factor < KEEPS_UP))
    table.add_row('weights', numbers['weights'])
    table.add_row('machine', f'{numbers["device"]}, {numbers["machine"]["cpu"]}')
    return table


def memory_growth(values: list[int]) -> dict[str, float] | None:
    """Resident memory in MiB at the first minute (or the middle of a short run) and at the end."""
    if len(values) < 4:
        return None
    start = min(60, len(values) // 2)
    first, last = values[start] / 2**20, values[-1] / 2**20
    return {'after_first_minute': first, 'end': last, 'growth': last / first - 1 if first else 0.0}
