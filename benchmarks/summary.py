"""The measured part of README and docs (measurements, bench), from the recorded results.

    python benchmarks/summary.py

prints them; a test compares them with the documents.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / 'results'


def read(name: str) -> dict[str, Any]:
    """One recorded result."""
    return json.loads((RESULTS / f'{name}.json').read_text())


def overhead() -> list[str]:
    """What the node adds to the policy's own time."""
    result = read('node_overhead')
    lines = [
        '**The node.** Time from the image really used to the chunk received, less the '
        "policy's own time, two cameras of 224 x 224 at 30 Hz "
        f'({where(result)}, `{result["command"]}`):',
        '',
        '| query rate | chunks | p50 | p90 | p99 | max |',
        '|---|---|---|---|---|---|',
    ]
    for row in result['rows']:
        times = row['overhead_to_reception_ms']
        rate = f'{row["query_rate"]:.0f} Hz' if row['query_rate'] else 'every image'
        cells = ' | '.join(f'{times[key]:.1f} ms' for key in ('p50', 'p90', 'p99', 'max'))
        lines.append(f'| {rate} | {row["chunks"]} | {cells} |')
    return lines


def images() -> list[str]:
    """Large images over DDS."""
    result = read('image_rate')
    lines = [
        f'**Large images.** 640 x 480 at 30 Hz on two cameras, best effort ({where(result)}, '
        f'`{result["command"]}`):',
        '',
        '| Fast DDS | received a second |',
        '|---|---|',
    ]
    for row in result['rows']:
        rates = ', '.join(f'{name} {rate:.1f}' for name, rate in row['received_rate_mean'].items())
        lines.append(f'| {row["profile"]} | {rates} |')
    return lines


def pixels() -> list[str]:
    """OpenCV against what it replaced."""
    result = read('pixels')
    cost = result['libraries']['opencv']
    lines = [
        '**OpenCV** against the NumPy and Pillow code that it replaced, CPU time on images of '
        f'640 x 480 ({where(result)}, shared machine, `{result["command"]}`). It adds '
        f'{cost["size_mb"]:.0f} MB installed, {cost["import_cpu_ms"]:.0f} ms of CPU at start-up '
        f'and {cost["memory_mib"]:.0f} MiB of memory:',
        '',
        '| | NumPy, Pillow | OpenCV | largest difference of a pixel |',
        '|---|---|---|---|',
    ]
    for row in result['rows']:
        lines.append(
            f'| {row["task"]} | {row["numpy_pillow_ms"]:.2f} ms | {row["opencv_ms"]:.2f} ms | '
            f'{row["largest_difference"]} |'
        )
    return lines


def pruners() -> list[str]:
    """Every pruner against dense, in one interleaved run."""
    result = read('pruners_oft_medium_cpu')
    lines = [
        "**The pruners.** The preset `oft-medium` (OFT's 605 rows, 32 decoder layers, random "
        'weights), every method interleaved in one run '
        f'({where(result)}, `{result["command"]}`). The speed-up is end to end, against dense in '
        'the same round; the FLOPs are those of the whole query, towers included. Speed says '
        'nothing of success.',
        '',
        '| pruner | vision tokens, mean | FLOPs | p50 | speed-up (quartiles) |',
        '|---|---|---|---|---|',
    ]
    for row in result['rows']:
        low, high = row['speedup_low'], row['speedup_high']
        lines.append(
            f'| {row["pruner"]} | {row["tokens_mean"]:.0f} | {row["flops_ratio"]:.0%} | '
            f'{row["ms_p50"]:.0f} ms | {row["speedup"]:.2f} ({low:.2f} to {high:.2f}) |'
        )
    return lines


def engine() -> list[str]:
    """Stock loop, transformers' loop, dense and pruned, in one interleaved run."""
    result = read('engine_oft_medium_cpu')
    first = result['rows'][0]
    lines = [
        '**The engine.** Four ways to run one query of `oft-medium` in float32, interleaved '
        f'({first["queries"]} rounds, {first["device"]}, {result["date"]}, '
        f'`{result["command"]}`). Stock: attention maps in every layer, as published pruning '
        'codes run; transformers: its own LlamaModel with SDPA. Floor: the least time that the '
        'operations and bytes allow on this machine. Only the ratio of the last two rows is due '
        'to pruning.',
        '',
        '| decoder | tokens, mean | p50 | p90 | max | decoder p50 | x stock | x dense (quartiles) '
        '| p50 / floor |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    loops = {'stock': 'stock loop', 'transformers': "transformers' loop", 'eager': 'this package'}
    order = {'stock': 0, 'transformers': 1, 'eager': 2}
    for row in sorted(result['rows'], key=lambda row: order[row['mode']]):
        times = ' | '.join(
            f'{row[key]:.0f} ms' for key in ('ms_p50', 'ms_p90', 'ms_max', 'ms_decoder_p50')
        )
        lines.append(
            f'| {row["pruner"]}, {loops[row["mode"]]} | {row["tokens_mean"]:.0f} | {times} | '
            f'{row["speedup_stock"]:.2f} | {row["speedup"]:.2f} ({row["speedup_low"]:.2f} to '
            f'{row["speedup_high"]:.2f}) | {row["distance"]:.2f} |'
        )
    return lines


def gpu() -> list[str]:
    """The released sizes on a GPU."""
    result = read('gpu')
    found = result['models']
    lines = [
        '**A GPU.** The released sizes with random weights in bfloat16, one query at a time '
        f'({card(result)}, PyTorch {result["torch"]}, {result["date"]}, '
        f'`{result["command"]}`). In turns: the stock loop and CUDA graphs, images coming with '
        'the query. Node: nothing beside, images prepared when they arrived.',
        '',
        '| model | stock loop | dense | specprune | x stock | x dense (quartiles) | operations '
        '| in float8 | node: dense | specprune | x dense | p99 | memory beside the weights |',
        '|---' * 13 + '|',
    ]
    for name, each in found.items():
        rows = {(row['pruner'], row['mode']): row for row in each['rows']}
        stock, dense, ours = (
            rows[key] for key in (('dense', 'stock'), ('dense', 'graph'), ('specprune', 'graph'))
        )
        low, high = ours['speedup_low'], ours['speedup_high']
        node, made = {row['mode']: row for row in each['node']}, each['figures']
        lines.append(
            f'| `{name}` | {stock["ms_p50"]:.1f} ms | {dense["ms_p50"]:.1f} ms | '
            f'{ours["ms_p50"]:.1f} ms | {ours["speedup_stock"]:.2f} | {ours["speedup"]:.2f} '
            f'({low:.2f} to {high:.2f}) | {ours["flops_ratio"]:.0%} | {made["fp8_ms"]:.1f} ms | '
            f'{node["dense"]["ms_p50"]:.1f} ms | {node["coarse"]["ms_p50"]:.1f} ms | '
            f'{made["node_over_dense"]:.2f} | {node["coarse"]["ms_p99"]:.1f} ms | '
            f'{made["memory_gib"]:.1f} GiB |'
        )
    name, each = next(iter(found.items()))
    ours = next(r for r in each['rows'] if (r['pruner'], r['mode']) == ('specprune', 'graph'))
    least, most = each['sweep'][0], each['sweep'][-1]
    lines += [
        '',
        f'Half the operations are not half the time there: of the pruned `{name}` query '
        f'{ours["ms_vision_p50"]:.1f} ms are the towers, which are not pruned, and its '
        f'{ours["ms_decoder_p50"]:.1f} ms of decoder are mostly spent on reading weights (the '
        f'decoder takes {most["ms_p50"]:.1f} ms with all {most["rows"]} rows, and still '
        f'{least["ms_p50"]:.1f} ms with {least["rows"]}). `db-oft-7b` is DB-OFT with its Linear '
        'head; the published files have the DiT head (`db-oft-dit-7b`), whose ten steps pruning '
        'leaves alone, so that 80 % of the operations are left: unmeasured on a GPU.',
    ]
    return lines


def gpu_rows() -> str:
    """What fewer rows save on a GPU: a paragraph of docs/how-to/bench.md."""
    result = read('gpu')
    each = result['models']['openvla-oft-7b']
    took = {row['rows']: row['ms_p50'] for row in each['sweep']}
    chosen = (96, 128, 225, 321, 417, 513, 605)
    some = ', '.join(f'{took[rows]:.1f} ms with {rows}' for rows in chosen)
    tokens = {row['pruner']: row['tokens_mean'] for row in each['rows']}
    return textwrap.fill(
        f'**Measured** ({card(result)}, {result["date"]}, `benchmarks/results/gpu.json`), the '
        f'decoder of OpenVLA-OFT by rows: {some}. So fewer rows pay less and less, '
        f'and there is hardly a flat part: SpecPrune keeps {tokens["specprune"]:.0f} tokens '
        f'there in the mean instead of {tokens["specprune:paper"]:.0f}.',
        width=116,
        break_long_words=False,
        break_on_hyphens=False,
    )


def closed_loop() -> list[str]:
    """Success of the shipped policy, and what pruning costs of it."""
    result = read('fidelity_main')
    by = {(row['pruner'], row['task']): row for row in result['rows']}
    slack = by['specprune, slack', 'all']
    tasks = [t for t in dict.fromkeys(row['task'] for row in result['rows']) if t != 'all']
    lines = [
        '**Success.** The shipped policy in closed loop in the simulated arm, for every row the '
        f'first episodes of the same held-out list ({where(result)}, `{result["command"]}`), the '
        'difference with its 95 % interval. FLOPs are those of the queries themselves; the dense '
        f'passes between them (slack) add {slack["refresh_flops"]:.0%} of dense, for which no '
        'query waits. docs/explanation/fidelity.md has every method, and what speaks against this '
        'one.',
        '',
        f'| pruner | {" | ".join(tasks)} | against dense, all | FLOPs |',
        '|---' * (len(tasks) + 3) + '|',
    ]
    for label in dict.fromkeys(row['pruner'] for row in result['rows']):
        cells = []
        for task in tasks:
            row = by[label, task]
            cells.append(f'{row["successes"]} of {row["episodes"]}')
        whole, gain = by[label, 'all'], ''
        if 'paired_loss' in whole:
            # 0 - x, as -x may be minus zero
            low, high = (0 - 100 * whole[f'paired_loss_{end}'] for end in ('high', 'low'))
            gain = f'{0 - 100 * whole["paired_loss"]:+.1f} points ({low:+.1f} to {high:+.1f})'
        lines.append(f'| {label} | {" | ".join(cells)} | {gain} | {whole["flops_ratio"]:.0%} |')
    return lines


def demo() -> list[str]:
    """The demo's instructions, pruned and dense, on one machine (README)."""
    result = read('demo')
    lines = [
        f'**The demo.** `{result["command"]}` ({where(result)}): each instruction from the same '
        'scene, pruned and dense, one try each; tokens and operations are means over its queries, '
        "the dense first one included, milliseconds the median of the policy's own time.",
        '',
        '| instruction | pruner | result | vision tokens | operations | query |',
        '|---|---|---|---|---|---|',
    ]
    for attempt in result['attempts']:
        name = 'pruned' if attempt['pruner'] == 'specprune' else attempt['pruner']
        lines.append(
            f'| {attempt["instruction"]} | {name} | {attempt["outcome"].replace("_", " ")}, '
            f'{attempt["seconds"]:.1f} s | {attempt["tokens_mean"]:.0f} | '
            f'{attempt["flops_ratio"]:.0%} | {attempt["query_ms_p50"]:.0f} ms |'
        )
    lines += ['', f'Simulated time ran at {result["real_time_factor"]:.2f} of real time.']
    return lines


def cpu_options() -> str:
    """What a CPU's options buy: a paragraph of docs/how-to/bench.md."""
    result = read('cpu_options')
    by = {(row['option'], row['pruner']): row for row in result['rows']}

    def gain(option: str) -> str:
        dense, pruned = by[option, 'dense'], by[option, 'specprune']
        return f'{dense["speedup"]:.2f} dense and {pruned["speedup"]:.2f} pruned'

    moved = [by['bfloat16', pruner]['action_deviation'] for pruner in ('dense', 'specprune')]
    return textwrap.fill(
        f'Recorded ({where(result)}, `{result["model"]}`, `{result["command"]}`), speed '
        f'over plain float32: weights packed for oneDNN {gain("packed")}; bfloat16 '
        f'{gain("bfloat16")}, packed too {gain("bfloat16_packed")}; channels-last images '
        f'{gain("channels_last")}; torch.compile {gain("compile")}. So neither of the last two '
        'is used on a CPU, and weights are packed (x86; held twice, so not where memory is '
        'short). '
        'bfloat16 pays where the CPU has units for it, and moves the actions '
        f'(in the median query by at most {moved[0]:.2f} dense and {moved[1]:.2f} pruned with '
        "these random weights, in action units): it is taken for a checkpoint of the models' "
        'authors, who run theirs in it, and not for policies whose success was measured in '
        'float32.',
        width=116,
        break_long_words=False,
        break_on_hyphens=False,
    )


def where(result: dict[str, Any]) -> str:
    """The machine and the day."""
    return f'{result["machine"]["cpu"]}, {result["date"]}'


def card(result: dict[str, Any]) -> str:
    """The name of the GPU."""
    return result['device'].partition('(')[2].rstrip(')')


def headline() -> str:
    """What the README shows."""
    return '\n\n'.join('\n'.join(part) for part in (demo(), engine(), gpu(), closed_loop())) + '\n'


def markdown() -> str:
    """docs/reference/measurements.md."""
    parts = [engine(), gpu(), pruners(), closed_loop(), overhead(), images(), pixels()]
    return '\n\n'.join('\n'.join(part) for part in parts) + '\n'


if __name__ == '__main__':
    print(markdown())
    print(cpu_options())
    print(gpu_rows())
