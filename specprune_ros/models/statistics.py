"""Scales of proprioception and actions, as the checkpoints' ``dataset_statistics.json`` give
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specprune_ros.bounded_files import boundary, read_json

Array = NDArray[np.float64]


# Of the checkpoints that read eight: tool position, rotation vector, two fingers.
PROPRIO_NAMES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'finger 1', 'finger 2')
NEARLY_ALL = 2.5  # standard deviations that 99 % of the values lie within
MOST = 1e6  # of a statistic's magnitude: millimetres, encoder ticks


class StatisticsError(ValueError):
    """Statistics that are missing, broken or of another robot; the message says what would be
    right.
    """


@dataclass(frozen=True)
class Statistics:
    """Affine scales between raw and normalised values, all float64.

    Proprioception in: x' = clip(2 (x - low) / (high - low + eps) - 1, -1, 1). Actions out: a
    = (a' + 1) / 2 (high - low + eps) + low where ``action_mask``, else a' unchanged.
    ``clip_actions`` clips a' to [-1, 1] first (CogACT, DB-OFT; OFT does not clip). ``binarise``
    is the action dimension that becomes 0 or 1 at 0.5 (CogACT's gripper), before un-normalising.
    ``clip_proprio`` off leaves proprioception beyond the bounds as it is (pi0). Mean and standard
    deviation are the bounds mean - std and mean + std: ``action_reach`` and ``proprio_reach`` say
    how many times the width of the bounds the data have, then ``NEARLY_ALL``. A ``None`` scale
    passes values through.
    """

    action_low: Array | None
    action_high: Array | None
    action_mask: NDArray[np.bool_] | None = None
    proprio_low: Array | None = None
    proprio_high: Array | None = None
    epsilon: float = 1e-8
    clip_actions: bool = False
    binarise: int | None = None
    clip_proprio: bool = True
    action_reach: float = 1.0
    proprio_reach: float = 1.0
    key: str = ''

    @classmethod
    def identity(cls) -> Statistics:
        """Pass everything through."""
        return cls(None, None)

    @classmethod
    def from_json(
        cls,
        source: str | Path | Mapping[str, Any],
        key: str | None = None,
        norm: str = 'q99',
        action_dim: int | None = None,
        proprio_dim: int | None = None,
        **rules: Any,
    ) -> Statistics:
        """Read one robot's statistics from a file (or its parsed content).

        ``key`` may be left out when there is only one; ``key + '_no_noops'`` is tried as well.
        ``norm``: ``q99`` uses q01/q99, ``min_max`` uses min/max, ``identity`` nothing. Dimensions
        are checked where given (``proprio_dim`` 0 ignores proprioception). ``rules`` are further
        fields (``epsilon``, ``clip_actions``, ``binarise``). Raises ``StatisticsError``.
        """
        where = 'statistics'
        if not isinstance(source, Mapping):
            where = str(source)
            with boundary(where, StatisticsError):
                source = read_json(Path(source))
            if not isinstance(source, Mapping):
                raise StatisticsError(f'{where}: must hold an object of robots')
        if norm == 'identity':
            return cls(None, None, key=key or '', **rules)
        with boundary(where, StatisticsError):
            return cls._of(source, key, norm, action_dim, proprio_dim, where, rules)

    @classmethod
    def _of(
        cls,
        source: Mapping[str, Any],
        key: str | None,
        norm: str,
        action_dim: int | None,
        proprio_dim: int | None,
        where: str,
        rules: Mapping[str, Any],
    ) -> Statistics:
        name = choose_key(source, key, where)
        entry = source[name]
        where = f'{where}[{name!r}]'
        names = {'q99': ('q01', 'q99'), 'min_max': ('min', 'max')}
        if norm not in names:
            raise StatisticsError(f'norm must be q99, min_max or identity; is {norm!r}')
        action = _bounds(entry, 'action', names[norm], action_dim, where)
        proprio = (None, None)
        if proprio_dim != 0 and (proprio_dim is not None or 'proprio' in entry):
            proprio = _bounds(entry, 'proprio', names[norm], proprio_dim, where)
        mask = entry['action'].get('mask')
        mask = np.ones(len(action[0]), bool) if mask is None else np.asarray(mask, bool)
        if mask.shape != action[0].shape:
            raise StatisticsError(
                f'{where}: action mask has {mask.size} entries, the scales have {action[0].size}'
            )
        return cls(*action, mask, *proprio, key=name, **rules)

    def to_json(self) -> dict[str, Any]:
        """Robots as :meth:`from_json` reads them; low and high are written under both names."""
        entry: dict[str, Any] = {}
        for part, low, high in (
            ('action', self.action_low, self.action_high),
            ('proprio', self.proprio_low, self.proprio_high),
        ):
            if low is not None and high is not None:
                bounds = {'q01': low, 'min': low, 'q99': high, 'max': high}
                entry[part] = {name: value.tolist() for name, value in bounds.items()}
        if 'action' in entry and self.action_mask is not None:
            entry['action']['mask'] = self.action_mask.tolist()
        return {self.key or 'default': entry}

    def normalise_proprio(self, values: np.ndarray) -> np.ndarray:
        """Raw ``[..., P]`` to float64 in -1..1. Raises ``StatisticsError`` on a wrong length."""
        x = np.asarray(values, np.float64)
        if self.proprio_low is None or self.proprio_high is None:
            return x
        if x.shape[-1] != self.proprio_low.size:
            raise StatisticsError(
                f'proprioception has {x.shape[-1]} values, the statistics {self.key!r} '
                f'{self.proprio_low.size}'
            )
        span = self.proprio_high - self.proprio_low + self.epsilon
        scaled = 2 * (x - self.proprio_low) / span - 1
        return np.clip(scaled, -1, 1) if self.clip_proprio else scaled

    @property
    def largest_action(self) -> Array | None:
        """Of nearly all of the training data, the largest magnitude of each column ``[D]``, or
        ``None`` without its statistics.
        """
        if self.action_low is None or self.action_high is None:
            return None
        return np.abs(_widened(self.action_low, self.action_high, self.action_reach)).max(0)

    @property
    def proprio_center(self) -> Array | None:
        """The middle of each number of proprioception, or ``None`` without its statistics."""
        if self.proprio_low is None or self.proprio_high is None:
            return None
        return 0.5 * (self.proprio_low + self.proprio_high)

    def far_outside(self, values: np.ndarray) -> str:
        """Names the numbers of raw proprioception ``[P]`` that lie far from all that was seen in
        training (more than its whole range away), in words; empty: none does.
        """
        if self.proprio_low is None or self.proprio_high is None:
            return ''
        low, high = _widened(self.proprio_low, self.proprio_high, self.proprio_reach)
        x = np.asarray(values, np.float64)
        span = np.maximum(high - low, 1e-3)
        names = PROPRIO_NAMES if len(x) == len(PROPRIO_NAMES) else range(len(x))
        far = [
            f'{name} is {value:.3g} (training: {a:.3g} to {b:.3g})'
            for name, value, a, b, s in zip(names, x, low, high, span, strict=True)
            if not a - s <= value <= b + s
        ]
        if not far:
            return ''
        return (
            f'proprioception far outside the training data: {"; ".join(far)}. Another unit '
            '(millimetres, degrees), base frame or convention?'
        )

    def unnormalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Model output ``[..., D]`` to float64 in the statistics' own action units."""
        a = np.asarray(actions, np.float64)
        if self.clip_actions:
            a = np.clip(a, -1, 1)
        if self.binarise is not None:
            a = a.copy()
            a[..., self.binarise] = a[..., self.binarise] >= 0.5
        if self.action_low is None or self.action_high is None:
            return a
        if a.shape[-1] != self.action_low.size:
            raise StatisticsError(
                f'actions have {a.shape[-1]} dimensions, the statistics {self.key!r} '
                f'{self.action_low.size}'
            )
        span = self.action_high - self.action_low + self.epsilon
        return np.where(self.action_mask, 0.5 * (a + 1) * span + self.action_low, a)

    def normalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`unnormalise_actions` without clipping, for training labels."""
        a = np.asarray(actions, np.float64)
        if self.action_low is None or self.action_high is None:
            return a
        span = self.action_high - self.action_low + self.epsilon
        span = np.where(span == 0, 1.0, span)  # a column that never changed
        return np.where(self.action_mask, 2 * (a - self.action_low) / span - 1, a)


def _widened(low: Array, high: Array, times: float) -> Array:
    """Bounds ``[2, n]`` so many times as far apart."""
    more = (times - 1) * (high - low) / 2
    return np.stack((low - more, high + more))


def choose_key(entries: Mapping[str, Any], key: str | None, where: str) -> str:
    """The robot to use. Raises ``StatisticsError`` listing the choices when it is not clear."""
    keys = [name for name, entry in entries.items() if isinstance(entry, Mapping)]
    if key is not None and key != '':
        for name in (key, f'{key}_no_noops'):
            if name in keys:
                return name
        raise StatisticsError(f'{where}: no key {key!r}; there are {sorted(keys)}')
    if len(keys) != 1:
        raise StatisticsError(
            f'{where}: holds {len(keys)} robots, give unnorm_key as one of {sorted(keys)}'
        )
    return keys[0]


def _bounds(
    entry: Mapping[str, Any],
    part: str,
    names: tuple[str, str],
    dim: int | None,
    where: str,
) -> tuple[Array, Array]:
    if not isinstance(entry.get(part), Mapping):
        raise StatisticsError(f'{where}: {part} is missing')
    found = []
    for name in names:
        if name not in entry[part]:
            raise StatisticsError(f'{where}: {part}.{name} is missing')
        try:
            found.append(np.asarray(entry[part][name], np.float64))
        except (TypeError, ValueError) as error:
            raise StatisticsError(f'{where}: {part}.{name} must be a list of numbers') from error
        if found[-1].ndim != 1 or not np.isfinite(found[-1]).all():
            raise StatisticsError(f'{where}: {part}.{name} must be a list of finite numbers')
        if np.abs(found[-1]).max(initial=0.0) > MOST:
            raise StatisticsError(f'{where}: {part}.{name} holds numbers above {MOST:g}')
    low, high = found
    if low.shape != high.shape or (low > high).any():
        raise StatisticsError(f'{where}: {part}.{names[0]} must not exceed {part}.{names[1]}')
    if dim is not None and low.size != dim:
        raise StatisticsError(
            f'{where}: {part} has {low.size} dimensions, the model {dim}: these statistics belong '
            'to another robot'
        )
    return low, high
