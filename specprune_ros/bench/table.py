"""A race in numbers: times, operations and bytes, and what the device allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from specprune_ros.bench.race import Contestant
from specprune_ros.bench.roofline import Ceilings, weight_traffic
from specprune_ros.models.accel.fp8 import number_format
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.flops import Flops, count, dense_flops, scheduled_work
from specprune_ros.models.presets import BENCH_INSTRUCTION, preset
from specprune_ros.policy.device import device_name
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.registry import pruner

STAGES = ('vision', 'decoder', 'head')


def table(entered: list[Contestant], model: str, ceilings: Ceilings) -> list[dict[str, Any]]:
    """One row per contestant, in their order; the first is what speed-ups are against.

    ``speedup`` is the median over rounds of dense time over this one's in the same round, with its
    quartiles: a graph's against the dense graph, everybody else's against dense as it is queried.
    ``speedup_stock``: the same against the stock loop, where that ran. ``flops_ratio``
    counts the whole query; ``flops_ratio_decoder`` the language model alone, as the papers do, and
    ``flops_ratio_7b`` the same at OpenVLA-OFT's size (where the model has its depth). ``floor_ms``
    is the sum over stages of the longer of operations at the GEMM ceiling and weights read at the
    memory ceiling.
    """
    stock = next((c for c in entered if c.mode == 'stock'), None)
    graph = next((c for c in entered if (c.label, c.mode) == ('dense', 'graph')), entered[0])
    return [
        _row(c, graph if c.mode == 'graph' else entered[0], stock, model, ceilings)
        for c in entered
    ]


def _row(
    c: Contestant, dense: Contestant, stock: Contestant | None, model: str, ceilings: Ceilings
) -> dict[str, Any]:
    weight = next(c.policy.loaded.model.parameters())
    ms = 1000 * np.array(c.seconds)
    ratios = np.array(dense.seconds) / np.array(c.seconds)
    tokens = [r.tokens.mean for r in c.results]
    row = {
        'model': model,
        'pruner': c.label,
        'mode': c.mode,
        'device': device_name(str(weight.device)),
        'dtype': number_format(c.policy.loaded.model.decoder),
        'tokens_in': c.results[-1].tokens.total,
        'tokens_mean': round(float(np.mean(tokens)), 2),
        'flops_ratio': round(float(np.mean([r.flops_ratio for r in c.results])), 4),
        **{f'ms_p{p}': round(float(np.percentile(ms, p)), 3) for p in (50, 90, 99)},
        'ms_max': round(float(ms.max()), 3),
        'speedup': round(float(np.median(ratios)), 3),
        'speedup_low': round(float(np.percentile(ratios, 25)), 3),
        'speedup_high': round(float(np.percentile(ratios, 75)), 3),
        'speedup_stock': None,
        'action_deviation': c.deviation,
        'queries': len(c.seconds),
        'trouble': c.policy.engine_trouble,
    }
    if stock is not None:
        against = np.array(stock.seconds) / np.array(c.seconds)
        row['speedup_stock'] = round(float(np.median(against)), 3)
    return row | _work(c, ceilings, row['ms_p50'])


def _work(c: Contestant, ceilings: Ceilings, total_ms: float) -> dict[str, Any]:
    """Stage times, operations and bytes, and how far they are from what the device can do."""
    policy, config = c.policy, c.policy.config
    layout = policy.layout(BENCH_INSTRUCTION)
    full = preset('openvla-oft-7b')
    comparable = layout.depth == full.decoder.depth and not layout.causal
    queried = [result for result in c.results if result.mode is not Mode.SKIPPED]
    idle = len(c.results) - len(queried)  # queries answered without the model (SP-VLA)
    ratios, ratios_7b = [0.0] * idle, [0.0] * idle
    flops, bytes_ = [], []
    for result in queried:
        after = dict(zip(result.tokens.layers, result.tokens.after, strict=True))
        spent, work = account(c, config, layout, after)
        ratios.append(decoder_ratio(spent, config, layout))
        at_7b, _ = account(c, full, layout, after)
        ratios_7b.append(decoder_ratio(at_7b, full, layout) if comparable else np.nan)
        macs = (spent.vision + spent.projector, spent.decoder + spent.observing, spent.head)
        flops.append([2 * m for m in macs])
        read = weight_traffic(policy.loaded.model, work)
        bytes_.append([getattr(read, stage) for stage in STAGES])
    if not queried:
        return {}
    per_stage = list(zip(np.mean(flops, 0), np.mean(bytes_, 0), strict=True))
    stages = {
        stage: 1000 * float(np.median([getattr(result.times, stage) for result in queried]))
        for stage in ('preprocess', *STAGES)
    }
    decoder_flops, decoder_bytes = per_stage[1]
    floors = [1000 * ceilings.floor(f, b) for f, b in per_stage]
    floor = sum(floors)
    seconds = stages['decoder'] / 1000
    return {
        'flops_ratio_decoder': round(float(np.mean(ratios)), 4),
        'flops_ratio_7b': round(float(np.mean(ratios_7b)), 4) if comparable else None,
        **{f'ms_{stage}_p50': round(value, 3) for stage, value in stages.items()},
        'gflops': round(float(sum(f for f, _ in per_stage)) / 1e9, 3),
        'gbytes': round(float(sum(b for _, b in per_stage)) / 1e9, 4),
        'tflops': round(float(sum(f for f, _ in per_stage)) / total_ms / 1e9, 4),
        'tflops_decoder': round(float(decoder_flops) / seconds / 1e12, 4),
        'gbs_decoder': round(float(decoder_bytes) / seconds / 1e9, 3),
        'intensity_decoder': round(float(decoder_flops / decoder_bytes), 2),
        'ceiling_tflops': round(ceilings.tflops, 4),
        'ceiling_gbs': round(ceilings.gbs, 2),
        'floor_ms': round(floor, 3),
        'distance': round(total_ms / floor, 3),
        **({} if config.flow is None else _expert(per_stage[2], stages['head'], floors)),
    }


def _expert(head: tuple[float, float], ms: float, floors: list[float]) -> dict[str, Any]:
    """What the action expert reached, apart from the prefix, and the floor of each stage."""
    flops, bytes_ = head
    return {
        'tflops_expert': round(float(flops) / ms / 1e9, 4),
        'gbs_expert': round(float(bytes_) / ms / 1e6, 3),
        'intensity_expert': round(float(flops / bytes_), 2),
        **{
            f'floor_ms_{stage}': round(value, 3)
            for stage, value in zip(('vision', 'prefix', 'expert'), floors, strict=True)
        },
    }


def account(
    contestant: Contestant, config: PolicyConfig, layout: TokenLayout, after: Mapping[int, int]
) -> tuple[Flops, list[LayerRows]]:
    """Operations of one query at the size of ``config``, and the rows of each layer."""
    if contestant.mode not in ('eager', 'graph'):
        rows = layout.length
        work = [LayerRows(rows, rows, rows)] * layout.depth
        return count(config, work), work
    params = contestant.policy.params
    # A query that did not prune at all was dense, whatever the method announces for others.
    mode = Mode.COARSE if after else Mode.DENSE
    schedule = pruner(params.pruner).plan(layout, params, mode)
    work, observed = scheduled_work(layout, schedule, after)
    return count(config, work, observed), work


def decoder_ratio(spent: Flops, config: PolicyConfig, layout: TokenLayout) -> float:
    """Decoder operations, side products included, over dense."""
    return (spent.decoder + spent.observing) / dense_flops(config, layout).decoder
