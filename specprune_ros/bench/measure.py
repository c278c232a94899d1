"""What ``specprune bench`` measures: policies raced on one model, and the device's ceilings."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track

from specprune_ros.bench import calibration
from specprune_ros.bench.calibration import Sweep, bench_layout
from specprune_ros.bench.race import Contestant, contestants, race
from specprune_ros.bench.roofline import Ceilings, measure
from specprune_ros.bench.table import table
from specprune_ros.models.accel.device_memory import weight_bytes
from specprune_ros.models.accel.fp8 import number_format
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.engine.capture import graph_capturer_on
from specprune_ros.policy.synthetic_observations import copies_ms, observations
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.specprune import free_tokens

SWEEP_STEP, SWEEP_ROUNDS = 32, 5


@dataclass
class Result:
    """``rows`` of the race, dense first; ``sweep`` (measured now or remembered) if there is one,
    and its rows where it was measured now. ``peak_mib`` of device memory and ``weights_mib`` of
    the model; the first is ``None`` on a CPU.
    """

    rows: list[dict[str, Any]]
    sweep: Sweep | None = None
    sweep_rows: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: float | None = None
    weights_mib: float = 0.0


def bench(
    pruners: str = 'specprune',
    model: str = 'oft-medium',
    checkpoint: str = '',
    device: str = 'auto',
    dtype: str = 'auto',
    fp8: bool = False,
    threads: int = 0,
    repeats: int = 11,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    stock: bool = True,
    graphs: bool = True,
    sweep_step: int | None = None,
    progress: bool = False,
    more: Callable[[LoadedModel], Sequence[Contestant]] | None = None,
) -> Result:
    """Time the policies (``race.table`` says what a row holds). ``more`` adds contestants.

    Where it is known which tokens cost nothing on this device, measured now (``sweep_step``) or
    before, SpecPrune keeps them, unless ``changes`` say otherwise; ``free_tokens`` of a row tells.
    With ``fp8`` the stock loop, which has no float8, is left out.

    Raises ``ParamError``, ``DeviceMemoryError`` and the loader's errors, all of them
    ``ValueError``.
    """
    if repeats < 1:
        raise ValueError(f'--repeats {repeats}: at least 1')
    if torch.cuda.is_initialized():  # what an earlier model of this process took is not this one's
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first = build_policy(
        checkpoint, model, seed, device, dtype, threads=threads, progress=progress, fp8=fp8
    )
    loaded = first.loaded
    name, counts = calibration.key(loaded), []
    if sweep_step is not None:  # a bad one is refused before anything is measured
        counts = calibration.edges(calibration.bench_layout(loaded), sweep_step)
    capturer = graph_capturer_on(loaded.preprocessor.device) if graphs else None
    entered = contestants(loaded, pruners, dict(changes or {}), stock and not fp8, capturer)
    entered += [] if more is None else list(more(loaded))
    found = _sweep(loaded, name, counts, progress) if counts else calibration.known(name)
    if found is not None:
        loaded.model.latency_curve = found.latency_curve
    ceilings = _ceilings(loaded)
    scene = observations(first, BENCH_INSTRUCTION, seed)
    try:
        race(entered, scene, _progress(range(repeats), 'timing', progress))
    finally:
        for contestant in entered:  # an engine's thread would hold the model for ever
            contestant.policy.close()
    # Again at the end, and the better of both: other work on the machine only lowers a ceiling.
    ceilings = ceilings.best(_ceilings(loaded))
    rows = table(entered, checkpoint or model, ceilings)
    copied = round(copies_ms(first, next(scene)), 4)
    free = [_uses_free_tokens(contestant) for contestant in entered]
    rows = [
        {**row, 'ms_copies': copied, 'free_tokens': used}
        for row, used in zip(rows, free, strict=True)
    ]
    sweep_rows = _sweep_rows(found, rows[0]) if found and counts else []
    weights = round(weight_bytes(loaded.model) / 2**20, 1)
    return Result(rows, found, sweep_rows, _peak(loaded), weights)


def _sweep(loaded: LoadedModel, name: str, counts: Sequence[int], progress: bool) -> Sweep:
    """Measure and remember; a cache that cannot be written is only reported."""
    rounds = _progress(range(SWEEP_ROUNDS), 'sweep', progress)
    found = calibration.sweep(loaded, counts, rounds)
    try:
        calibration.keep(name, found)
    except OSError as error:
        print(f'the sweep cannot be remembered: {error}', file=sys.stderr)
    return found


def _uses_free_tokens(contestant: Contestant) -> bool:
    """Whether it keeps what costs nothing on this device."""
    policy = contestant.policy
    return free_tokens(bench_layout(policy.loaded), policy.params, Mode.COARSE) is not None


def _ceilings(loaded: LoadedModel) -> Ceilings:

    weight = loaded.model.decoder.embed_tokens.weight
    float8 = 'float8' in number_format(loaded.model.decoder)
    return measure(weight.device, weight.dtype, float8)


def _peak(loaded: LoadedModel) -> float | None:
    device = next(loaded.model.parameters()).device
    if device.type != 'cuda':
        return None
    # What is reserved: a graph's memory counts as free between its replays, and is not.
    return round(torch.cuda.max_memory_reserved(device) / 2**20, 1)


def _sweep_rows(sweep: Sweep, dense: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sweep in the shape of the other rows; ``ms_p50`` is the decoder alone."""
    same = {key: dense[key] for key in ('model', 'device', 'dtype', 'tokens_in')}
    return [
        {
            **same,
            'pruner': 'keep',
            'mode': 'sweep',
            'tokens_mean': tokens,
            'rows': rows,
            'ms_p50': ms,
            'speedup': round(sweep.ms[-1] / ms, 3),
            'floor_rows': sweep.floor_rows,
            'floor_tokens': sweep.floor_tokens,
        }
        for tokens, rows, ms in zip(sweep.tokens, sweep.rows, sweep.ms, strict=True)
    ]


def _progress(items: range, title: str, shown: bool) -> Any:
    if not shown:
        return items
    return track(items, description=title, transient=True)
