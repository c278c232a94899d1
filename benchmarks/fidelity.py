"""The tables of docs/explanation/fidelity.md, from recorded runs of `specprune eval`.

    python benchmarks/fidelity.py --plot docs/curves.png

prints them and draws the curves; a test compares them with the page. `results/fidelity_NAME.json`
is what `specprune eval --json` wrote, of the curves one for each family.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / 'results'
TABLES = ('main', 'pruners')
CURVES = ('move', 'lift', 'put', 'two_step')
LONGEST = 'put the red cube on the blue plate'


def read(name: str) -> dict[str, Any]:
    """One recorded run."""
    return json.loads((RESULTS / f'fidelity_{name}.json').read_text())


def markdown(name: str) -> str:
    """The table of one run: a row per setting, a column per family."""
    result = read(name)
    rows = result['rows']
    tasks = list(dict.fromkeys(row['task'] for row in rows))
    pooled = tasks[-1]  # over all families, where there are several
    by = {(row['pruner'], row['task']): row for row in rows}
    head = ['pruner', *(f'{task}' for task in tasks), 'below dense', 'above random', 'tokens']
    head += ['FLOPs', 'decoder', 'recall', 'off dense']
    lines = [
        source(result),
        '',
        '| ' + ' | '.join(head) + ' |',
        '|' + '---|' * len(head),
    ]
    for label in dict.fromkeys(row['pruner'] for row in rows):
        whole = by[label, pooled]
        cells = [label]
        for task in tasks:
            row = by.get((label, task))
            cells.append('' if row is None else success(row))
        cells += [points(whole, 'paired_loss'), points(whole, 'against_gain')]
        cells += [f'{whole["tokens_mean"]:.0f}', f'{whole["flops_ratio"]:.0%}']
        decoder = whole.get('decoder_flops')
        cells.append('' if decoder is None else f'{decoder:.0%}')
        recall = whole['recall']
        cells.append('' if recall is None else f'{recall:.0%}')
        cells.append('' if whole['action_deviation'] is None else millimetres(whole))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def curve_rows() -> list[dict[str, Any]]:
    """The rows of the recorded curves, family after family."""
    return [row for family in CURVES for row in read(f'curves_{family}')['rows']]


def curves() -> str:
    """A row per method, from many tokens to few: operations and successes. The short families
    together: operations and distances are means over them.
    """
    lines = [
        *(f'{source(read(f"curves_{family}"))}\\' for family in CURVES[:-1]),
        source(read(f'curves_{CURVES[-1]}')),
    ]
    points = curve_points()
    width = max(map(len, points.values()))
    lines += [
        '',
        '| families | method | operations: successes, off dense |' + ' |' * (width - 1),
        '|' + '---|' * (width + 2),
    ]
    for (families, curve), some in points.items():
        cells = []
        for point in some:
            done = f'{point["successes"]} of {point["episodes"]}'
            cells.append(f'{percent(point["flops_ratio"])}: **{done}**')
            if point['action_deviation'] is not None:
                cells[-1] += f', {millimetres(point)}'
        cells += [''] * (width - len(cells))
        lines.append(f'| {families} | {curve or "dense"} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def curve_points() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Points of each curve by families and method, from many operations to few."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    recorded = curve_rows()
    for families in (CURVES[:-1], CURVES[-1:]):
        rows = [row for row in recorded if row['task'] in families]
        for label in dict.fromkeys(row['pruner'] for row in rows):
            some = [row for row in rows if row['pruner'] == label]
            off = [row['action_deviation'] for row in some]
            point = {
                name: sum(row[name] for row in some) for name in ('successes', 'episodes')
            } | {
                'flops_ratio': fmean(row['flops_ratio'] for row in some),
                'action_deviation': None if None in off else fmean(off),
            }
            found.setdefault((', '.join(families), some[0]['curve']), []).append(point)
    for line in found.values():
        line.sort(key=lambda point: -point['flops_ratio'])
    return found


def pooled(label: str, name: str) -> float:
    """Mean of ``name`` over all queries of a row of the main table, not over its episodes."""
    rows = [row for row in read('main')['rows'] if row['pruner'] == label and row['task'] != 'all']
    queries = [row['queries'] * row['episodes'] for row in rows]
    return sum(n * row[name] for n, row in zip(queries, rows, strict=True)) / sum(queries)


def source(result: dict[str, Any]) -> str:
    """Machine, day, seeds and command of a run."""
    return (
        f'*{result["machine"]["cpu"]}, {result["date"]}, seeds {result["seeds"]}, '
        f'`{result["command"]}`*'
    )


def millimetres(row: dict[str, Any]) -> str:
    """How far a row is off dense."""
    return f'{1e3 * row["action_deviation"]:.1f} mm'


def percent(share: float) -> str:
    """A share as prose writes it."""
    return f'{share:.0%}'.replace('%', ' %')


def foretold() -> str:
    """What the previous query foretells, of some of the layers that prior_recall.py measured."""
    lines = [
        '| attention of | recall, k 24 | k 30 | k 40 | mass, k 30 '
        '| prior averaged over queries, k 30 |',
        '|' + '---|' * 6,
    ]
    names = {'text': 'the words', 'action': 'the action rows'}
    for row in json.loads((RESULTS / 'prior_recall.json').read_text())['rows']:
        layers = row['layers']
        if len(layers) == 1 and (row['rows'] == 'action' or layers[0] not in (1, 4, 6, 8, 12, 16)):
            continue
        which = f'layer{"s" * (len(layers) > 1)} {" and ".join(map(str, layers))}'
        prior = ' (V_global)' if len(layers) > 1 and row['rows'] == 'text' else ''
        shares = ('recall_24', 'recall_30', 'recall_40', 'mass_30', 'averaged_30')
        cells = ' | '.join(percent(row[name]) for name in shares)
        lines.append(f'| {names[row["rows"]]}, {which}{prior} | {cells} |')
    return '\n'.join(lines)


def floor() -> float:
    """Share of the dense operations that the shipped policy keeps with no vision token left.

    All go after the second of its layers, where SpecPrune's static prune is; towers, words,
    state and action rows stay.
    """
    import torch

    from specprune_ros.models.build import build
    from specprune_ros.models.decoder import LayerRows
    from specprune_ros.models.flops import count, dense_flops
    from specprune_ros.models.tokens import PromptTokenizer
    from specprune_ros.sim.training.export import check_shipped
    from specprune_ros.sim.training.recipe import Recipe, policy_config, tokenizer

    config = policy_config(Recipe.from_dict(check_shipped()['recipe']))
    model = build(config, 0, torch.device('cpu'))
    layout = model.layout(PromptTokenizer(tokenizer(), config.template).encode(LONGEST))
    requested = layout.action[1] - layout.action[0]
    work = []
    for layer in range(1, layout.depth + 1):
        rows = layout.length - (0 if layer <= 2 else layout.vision_tokens)
        work.append(LayerRows(rows, requested if layer == layout.depth else rows, rows))
    return count(config, work).macs / dense_flops(config, layout).macs


def success(row: dict[str, Any]) -> str:
    """Rate, interval and count."""
    return (
        f'**{100 * row["success_rate"]:.1f}** ({100 * row["ci_low"]:.0f} to '
        f'{100 * row["ci_high"]:.0f}, {row["episodes"]})'
    )


def points(row: dict[str, Any], name: str) -> str:
    """A paired difference in percentage points with its interval and p."""
    if name not in row:
        return ''
    p = row[f'{name}_p']
    chance = 'p < 0.001' if p < 0.001 else f'p = {p:.3f}'
    low, high = 100 * row[f'{name}_low'], 100 * row[f'{name}_high']
    return f'{100 * row[name]:+.1f} ({low:+.1f} to {high:+.1f}), {chance}'


def main() -> None:
    """Print the tables and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--plot', type=Path, help='draw the curves of all families here')
    args = parser.parse_args()
    if args.plot:
        from specprune_ros.sim.evaluation.plot import draw_curves

        draw_curves(curve_rows(), args.plot)
    print(f'no vision token left after layer 2: {floor():.0%} of the dense operations\n')
    for table in TABLES:
        print(f'{table}\n\n{markdown(table)}\n')
    print(f'curves\n\n{curves()}\n')
    print(foretold())


if __name__ == '__main__':
    main()
