"""A query as the engine takes it: what is known beforehand, and the tensors that change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from specprune_ros.models.decoder import KVCache
from specprune_ros.models.tokens import Prompt
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner

# What the controller, the history and the memory decide with, before a pass and on the host: no
# tensor of the pass depends on it once mode and reference picture are chosen.
BEFORE_THE_PASS = (
    'preset', 'mode', 'first_dense', 'refresh_period', 'refresh_change', 'reset_gap',
    'history_slope', 'history_intercept', 'history_offset', 'history_unit', 'history_min',
    'history_max', 'v_t_threshold', 'v_r_threshold', 'dz_threshold', 'v_t_exit', 'v_r_exit',
    'dz_exit', 'controller_rule', 'v_xy_threshold', 'controller_warmup', 'speed_max_age',
    'scheduler', 'scheduler_size', 'scheduler_v_min', 'scheduler_v_max', 'scheduler_share',
    'scheduler_strength',
)  # fmt: skip
_PLAIN = PruningParams()


@dataclass(frozen=True)
class Form:
    """Everything about a query that is fixed when it is captured; equal forms share a graph.

    ``compared``: a past picture is there. ``carried``: name, shape and dtype of what the previous
    query left.
    """

    layout: TokenLayout
    params: PruningParams
    mode: Mode
    compared: bool
    carried: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Question:
    """The tensors of one query, and what only the host reads.

    On the model's device, but for ``proprio``, which may lie on the host.

    ``pictures``: uint8 ``[cameras, S, S, 3]`` as the policy sees them; ``then``: the same of the
    reference moment, or ``None``. ``ids``: int64 ``[1, P]`` of ``prompt``. ``proprio``: float32
    ``[proprio_dim]``, normalised, or ``None``. ``noise``: float32 ``[K, D]`` of a diffusion head,
    or ``None``. ``carry``: what this pruner's previous pass returned. ``cache``, ``seed``,
    ``speed_xyz`` (m/s) and ``displacement`` (m) are for pruners that keep state on the host.
    """

    pictures: Tensor
    prompt: Prompt
    ids: Tensor
    then: Tensor | None = None
    proprio: Tensor | None = None
    noise: Tensor | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    cache: KVCache | None = None
    seed: int = 0
    speed_xyz: float | None = None
    displacement: float | None = None

    def form(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> Form:
        """The form of this question when it is asked so."""
        carried = tuple(
            (name, tuple(value.shape), value.dtype) for name, value in sorted(self.carry.items())
        )
        return Form(layout, _of_the_pass(params), mode, self.then is not None, carried)

    def tensors(self) -> dict[str, Tensor]:
        """What changes from query to query of one form, by name."""
        named = {
            'pictures': self.pictures,
            'then': self.then,
            'ids': self.ids,
            'proprio': self.proprio,
            'noise': self.noise,
            **{f'carry.{name}': value for name, value in self.carry.items()},
        }
        return {name: value for name, value in named.items() if value is not None}

    def on(self, device: torch.device) -> Question:
        """This question with all of it on the device."""
        if self.proprio is None or self.proprio.device == device:
            return self
        return replace(self, proprio=self.proprio.to(device))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Question:
        """This question with other tensors of the same names."""
        carry = {name: tensors[f'carry.{name}'] for name in self.carry}
        plain = {n: t for n, t in tensors.items() if not n.startswith('carry.')}
        return replace(self, carry=carry, **plain)


@lru_cache(maxsize=64)
def _of_the_pass(params: PruningParams) -> PruningParams:
    """``params`` with everything that no pass reads as it is by default."""
    return replace(params, **{name: getattr(_PLAIN, name) for name in BEFORE_THE_PASS})


def compares(params: PruningParams) -> bool:
    """Whether a query with these parameters looks at a past picture."""
    return params.refresh_change < 1.0 or getattr(pruner(params.pruner), 'uses_similarity', False)
