"""Where fewer tokens stop paying on a device: the decoder timed against the rows it is given.

While GEMMs are limited by arithmetic, time falls with the rows; once reading the weights takes
longer than using them it does not, and tokens are thrown away for nothing. Where that is depends
on device, number format and model, so it is measured, and kept in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.bench.ceilings import settle
from specprune_ros.pruning.interface import (
    PassOutcome,
    PruneSchedule,
    RowGroup,
    Selection,
    TokenLayout,
)

WORTH = 0.05  # a difference below this share of the decoder's time is no gain


@dataclass(frozen=True)
class Sweep:
    """``tokens`` vision tokens, ascending, the ``rows`` of the whole sequence with them, and the
    decoder's median time in ``ms``. ``date`` is the day of measurement.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    ms: tuple[float, ...]
    date: str

    @property
    def floor(self) -> int:
        """Position of the most tokens that are within 5 % of the fastest: fewer buy nothing."""
        limit = (1 + WORTH) * min(self.ms)
        return max(i for i, ms in enumerate(self.ms) if ms <= limit)

    @property
    def floor_tokens(self) -> int:
        """Vision tokens below which pruning buys nothing."""
        return self.tokens[self.floor]

    @property
    def floor_rows(self) -> int:
        """Rows of the whole sequence below which pruning buys nothing."""
        return self.rows[self.floor]

    def told(self) -> str:
        """The finding as a sentence."""
        if self.floor == 0:
            return f'fewer tokens paid down to the least tried: {self.rows[0]} rows'
        return (
            f'below {self.floor_rows} rows ({self.floor_tokens} vision tokens) fewer buy nothing'
        )


class Keep:
    """A pass that keeps ``count`` vision rows, evenly spaced, before layer 1."""

    def __init__(self, layout: TokenLayout, count: int, device: torch.device) -> None:
        self.schedule = PruneSchedule(prune={0: count})
        places = torch.arange(count, device=device) * layout.vision_tokens // count
        self._selection = Selection(places)

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Nothing is listened to."""

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """The same rows for every query."""
        return self._selection

    def finish(self) -> PassOutcome:
        """Nothing to report."""
        return PassOutcome()


@torch.inference_mode()
def sweep(loaded: LoadedModel, instruction: str, step: int, rounds: Iterable[int]) -> Sweep:
    """Time the decoder at every multiple of ``step`` vision tokens up to all of them, once per
    round in turning order, on random rows. Raises ``ValueError`` for a step out of range.
    """
    model = loaded.model
    layout = model.layout(loaded.tokenizer.encode(instruction))
    if not 1 <= step <= layout.vision_tokens:
        raise ValueError(f'sweep step {step}: must be 1..{layout.vision_tokens} vision tokens')
    tokens = sorted({*range(step, layout.vision_tokens, step), layout.vision_tokens})
    weight = model.decoder.norm.weight
    hidden = torch.randn(1, layout.length, weight.shape[0]).to(weight.device, weight.dtype)
    passes = [Keep(layout, count, weight.device) for count in tokens]
    seconds: list[list[float]] = [[] for _ in passes]

    def once(keep: Keep) -> float:
        settle(weight.device)
        begin = time.perf_counter()
        model.decoder(hidden, layout, keep, None, model.read(layout))
        settle(weight.device)
        return time.perf_counter() - begin

    once(passes[0])
    for number in rounds:
        for turn in range(len(passes)):
            place = (turn + number) % len(passes)
            seconds[place].append(once(passes[place]))
    others = layout.length - layout.vision_tokens
    return Sweep(
        tokens=tuple(tokens),
        rows=tuple(others + count for count in tokens),
        ms=tuple(round(1000 * float(np.median(each)), 4) for each in seconds),
        date=time.strftime('%Y-%m-%d'),
    )


def cache_file() -> Path:
    """Where sweeps are kept: the user's cache folder (XDG base directory specification)."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'specprune_ros' / 'sweeps.json'


def key(device: str, model: str, dtype: str) -> str:
    """Under which a sweep is kept: what its times depend on."""
    return f'{model}, {dtype}, {device}, torch {torch.__version__}'


def known(name: str) -> Sweep | None:
    """The kept sweep of that key; ``None`` where there is none or the file is damaged."""
    found = _read().get(name)
    try:
        sizes = {field: tuple(found[field]) for field in ('tokens', 'rows', 'ms')}
        return Sweep(**sizes, date=str(found['date'])) if all(sizes.values()) else None
    except (TypeError, KeyError):
        return None


def keep(name: str, result: Sweep) -> Path:
    """Keep a sweep under a key and return the file. Raises ``OSError``."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f'.{os.getpid()}')
    fresh.write_text(json.dumps({**_read(), name: asdict(result)}, indent=1) + '\n')
    fresh.replace(path)  # whole or not at all, whoever else writes
    return path


def _read() -> dict[str, dict]:
    try:
        held = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
