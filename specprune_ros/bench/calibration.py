"""Where fewer tokens stop paying on a device: the decoder timed against the rows it is given.

While GEMMs are limited by arithmetic, time falls with the rows, tile by tile; once reading the
weights takes longer than using them it does not fall any more, and tokens are thrown away for
nothing. Where that is depends on device, number format and model, so it is measured once and kept
in the user's cache folder. A model that knows it (``latency_curve``) plans by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specprune_ros.bounded_files import read_json, replacing
from specprune_ros.models.accel.fused import PLAIN
from specprune_ros.models.accel.packed import PackedLinear
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.device import device_name, release, settle
from specprune_ros.policy.engine.capture import graph_capturer_on
from specprune_ros.pruning.interface import (
    LatencyCurve,
    PassOutcome,
    PruneSchedule,
    RowGroup,
    Selection,
    TokenLayout,
)

CALIBRATE = ('auto', 'always', 'never')
TILE = 32  # rows; GEMM kernels cut rows into tiles of 32, 64, 128 or 256
ROUNDS = 9
LEAST_ROUNDS = 3  # of which a median still leaves out a disturbed one
LIMIT = 20.0  # s, for a node that is being activated

Record = Callable[[Callable[[], None]], Callable[[], None]]


class Log(Protocol):
    """What a ROS logger and one of Python's have in common."""

    def info(self, message: str) -> object:
        """Tell."""

    def warning(self, message: str) -> object:
        """Warn."""


@dataclass(frozen=True)
class Sweep:
    """``tokens`` vision tokens, ascending, the ``rows`` of the whole sequence with them, and the
    decoder's median time in ``ms``. ``date`` is the day of measurement.

    Raises ``ValueError`` for what is no :class:`LatencyCurve`.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    ms: tuple[float, ...]
    date: str

    def __post_init__(self) -> None:
        _ = self.latency_curve
        if len(self.tokens) != len(self.rows):
            raise ValueError(f'{len(self.tokens)} counts for {len(self.rows)} numbers of rows')

    @property
    def latency_curve(self) -> LatencyCurve:
        """The measurement as pruners plan by it."""
        return LatencyCurve(self.rows, self.ms)

    @property
    def floor_rows(self) -> int:
        """The most rows that cost no more than the fewest tried: fewer buy nothing."""
        return self.latency_curve.free(self.rows[0])

    @property
    def floor_tokens(self) -> int:
        """Vision tokens with which a sequence has so many rows."""
        return self.floor_rows - self.rows[0] + self.tokens[0]

    def summary(self) -> str:
        """The finding in words."""
        if self.floor_rows - self.rows[0] < TILE:
            return f'fewer tokens paid down to the least tried: {self.rows[0]} rows'
        if self.floor_rows == self.rows[-1]:
            return f'fewer tokens buy nothing: {self.rows[0]} rows cost what {self.rows[-1]} do'
        return (
            f'below {self.floor_rows} rows ({self.floor_tokens} vision tokens) fewer buy nothing'
        )


class EvenlySpacedPass:
    """A pass that keeps ``count`` vision rows, evenly spaced, before layer 1."""

    def __init__(self, layout: TokenLayout, count: int, device: torch.device) -> None:
        self.schedule = PruneSchedule(prune={0: count})
        places = torch.arange(count, device=device) * layout.vision_tokens // count
        self._selection = Selection(places)

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Nothing is observed to."""

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """The same rows for every query."""
        return self._selection

    def finish(self) -> PassOutcome:
        """Nothing to report."""
        return PassOutcome()


def edges(layout: TokenLayout, step: int) -> list[int]:
    """Vision tokens with which the whole sequence has a multiple of ``step`` rows, or one more,
    and all of them: the last row of every tile and the first of the next.

    Raises ``ValueError`` for a step out of range.
    """
    if not 1 <= step <= layout.length:
        raise ValueError(f'sweep step {step}: must be 1..{layout.length} rows')
    others = layout.length - layout.vision_tokens
    ends = range(step, layout.length + 1, step)
    counts = {rows - others for end in ends for rows in (end, end + 1)} | {layout.vision_tokens}
    return sorted(count for count in counts if 1 <= count <= layout.vision_tokens)


def bench_layout(loaded: LoadedModel) -> TokenLayout:
    """The layout that sweeps are made with; rows of other instructions cost the same."""
    return loaded.model.layout(loaded.tokenizer.encode(BENCH_INSTRUCTION))


def capturer(device: torch.device) -> Record:
    """What makes a run ready to be timed: on a GPU a captured graph of it, since launching its
    kernels one by one takes longer than few rows do and would hide the floor.
    """
    found = graph_capturer_on(device)
    return found.record if found else lambda run: run


@torch.inference_mode()
def sweep(
    loaded: LoadedModel,
    tokens: Sequence[int],
    rounds: Iterable[int],
    record: Record | None = None,
    limit: float = math.inf,
) -> Sweep:
    """Time the decoder on random rows at each of ``tokens`` vision tokens (ascending), once per
    round in turning order.

    After ``limit`` seconds it ends (more only where two counts take longer, or the first has to be
    compiled): counts are left out, evenly, if there is no time for three rounds of all.
    ``record`` defaults to :func:`capturer`.
    Raises what recording raises, and ``ValueError`` without tokens.
    """
    begin = time.perf_counter()
    layout, model = bench_layout(loaded), loaded.model
    weight = model.decoder.embed_tokens.weight  # pi0's norms are float32 in any format
    hidden = torch.randn(1, layout.length, weight.shape[1]).to(weight.device, weight.dtype)
    record = record or capturer(weight.device)

    def ready(count: int) -> Callable[[], None]:
        keep = EvenlySpacedPass(layout, count, weight.device)
        return record(lambda: model.decoder(hidden, layout, keep, None, layout.action) and None)

    def once(run: Callable[[], None]) -> float:
        settle(weight.device)
        start = time.perf_counter()
        run()
        settle(weight.device)
        return time.perf_counter() - start

    runs: dict[int, Callable[[], None]] = {}
    one_round = 0.0
    for count in _coarse_first(tokens):
        left = limit - (time.perf_counter() - begin)
        if len(runs) >= 2 and left < LEAST_ROUNDS * one_round:
            break
        runs[count] = ready(count)
        if len(runs) == 1:
            begin = time.perf_counter()  # kernels compiled at their first use are not this work
        once(runs[count])
        one_round += once(runs[count])
    counts = sorted(runs)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for done, number in enumerate(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - begin + one_round > limit:
            break
        turn = number % len(counts)
        for count in counts[turn:] + counts[:turn]:
            seconds[count].append(once(runs[count]))
    others = layout.length - layout.vision_tokens
    return Sweep(
        tokens=tuple(counts),
        rows=tuple(others + count for count in counts),
        ms=tuple(round(1000 * float(np.median(seconds[count])), 4) for count in counts),
        date=time.strftime('%Y-%m-%d'),
    )


def _coarse_first(counts: Sequence[int]) -> list[int]:
    """All, the last first, then every 2^n-th from coarse to fine: any beginning is spread out."""
    backwards = counts[::-1]
    places = sorted(range(1, len(counts)), key=lambda place: -(place & -place))
    return [backwards[place] for place in (0, *places)] if counts else []


def calibrate_model(loaded: LoadedModel, log: Log, limit: float = LIMIT) -> Sweep | None:
    """Let the model plan by what rows cost here: remembered, or measured now and remembered.

    ``None``, with a warning, where measuring fails; a cache that cannot be read or written is
    only warned of.
    """
    name = key(loaded)
    found = known(name, log)
    if found is not None:
        log.info(f'rows timed on this device on {found.date}: {found.summary()}')
    else:
        begin = time.perf_counter()
        device = loaded.model.decoder.norm.weight.device
        try:
            found = sweep(loaded, edges(bench_layout(loaded), TILE), range(ROUNDS), limit=limit)
        except RuntimeError as error:  # a device without graphs or room for them still answers
            log.warning(f'rows could not be timed, so no tokens are free: {error}')
            return None
        finally:
            release(device)
        took = time.perf_counter() - begin
        log.info(f'timed {len(found.rows)} numbers of rows in {took:.1f} s: {found.summary()}')
        try:
            keep(name, found)
        except OSError as error:
            log.warning(f'cannot be remembered ({error}): it will be measured again')
    loaded.model.latency_curve = found.latency_curve
    return found


def calibrator(when: str, log: Log) -> Callable[[LoadedModel], None]:
    """:func:`calibrate_model` for ``build_policy``: ``always``, ``never`` or ``auto`` (on a GPU).

    Raises ``ValueError`` for another word.
    """
    if when not in CALIBRATE:
        raise ValueError(f"calibrate '{when}' is none of {', '.join(CALIBRATE)}")

    def calibrate(loaded: LoadedModel) -> None:
        on_gpu = loaded.model.decoder.norm.weight.is_cuda
        if when == 'always' or (when == 'auto' and on_gpu):
            calibrate_model(loaded, log)

    return calibrate


def key(loaded: LoadedModel) -> str:
    """Under which a sweep is kept: what its times depend on."""
    config, decoder = loaded.config, loaded.model.decoder
    sizes = [asdict(config.decoder), config.family, config.vision_tokens, config.action_tokens]
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:12]
    tensors = [*decoder.layers.parameters(), *decoder.layers.buffers()]
    formats = sorted({str(tensor.dtype).removeprefix('torch.') for tensor in tensors})
    if decoder.layers[0].kernels is not PLAIN:
        formats.append('compiled')
    if any(isinstance(part, PackedLinear) for part in decoder.modules()):
        formats.append('packed')
    weight = decoder.norm.weight
    where = device_name(str(weight.device))
    if weight.device.type == 'cuda':  # whichever of several alike
        where = torch.cuda.get_device_name(weight.device)
    shape = f'{config.decoder.depth} x {config.decoder.width} ({digest})'
    return f'{shape}, {" + ".join(formats)}, {where}, torch {torch.__version__}'


def cache_file() -> Path:
    """Where sweeps are kept: the user's cache folder (XDG base directory specification)."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'specprune_ros' / 'sweeps.json'


def known(name: str, log: Log | None = None) -> Sweep | None:
    """The kept sweep of that key; ``None`` where there is none or it is damaged (``log`` says)."""
    try:
        found = _read().get(name)
        if found is None:
            return None
        sizes = {field: tuple(found[field]) for field in ('tokens', 'rows', 'ms')}
        return Sweep(**sizes, date=str(found['date']))
    except (OSError, ValueError, TypeError, KeyError) as error:
        if log is not None:
            log.warning(f'{cache_file()} is damaged or unreadable, so it is not used: {error!r}')
        return None


def keep(name: str, result: Sweep) -> Path:
    """EvenlySpacedPass a sweep under a key and return the file. Raises ``OSError``."""
    path = cache_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        others = _read()
    except ValueError:
        others = {}  # damaged: begin anew
    # Whole or not at all, whoever else writes.
    with replacing(path) as fresh:
        fresh.write_text(json.dumps({**others, name: asdict(result)}, indent=1) + '\n')
    return path


def _read() -> dict[str, dict]:
    """Everything kept. Raises ``OSError`` and ``ValueError`` for a file that is no such record."""
    path = cache_file()
    if not path.exists():
        return {}
    held = read_json(path)
    if not isinstance(held, dict):
        raise ValueError('not a JSON object')
    return held
