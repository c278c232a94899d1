"""What one query gave: the actions, and an account of what pruning did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from specprune_ros.policy.overlay import Overlay
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.interface import Mode

if TYPE_CHECKING:
    from specprune_ros.policy.forward_step import StepDetails


MAX_ACTION = 1000.0  # m or rad of one action; the executor refuses more


class PolicyError(RuntimeError):
    """There are no actions that an arm may be given; the message says why."""


def check_actions(
    normalised: np.ndarray, actions: np.ndarray, scale: Sequence[float], limit: float
) -> None:
    """Raise :class:`PolicyError` unless the model's ``normalised`` actions are finite and within
    ``limit``, and the robot's ``actions`` made of them, times ``scale`` (m, rad), are within
    reason.
    """
    if not np.isfinite(normalised).all():
        raise PolicyError('the model gave actions that are not finite; nothing was sent')
    largest = float(np.abs(normalised).max())
    if largest > limit:
        raise PolicyError(
            f'the model gave a normalised action of {largest:.1f}; more than {limit:g} is not '
            'believed (max_normalised_action)'
        )
    with np.errstate(over='ignore', invalid='ignore'):
        largest = float(np.abs(actions * np.asarray(scale)).max())
    if not largest <= MAX_ACTION:
        raise PolicyError(
            f'the statistics make an action of {largest:g} of what the model gave; at most '
            f'{MAX_ACTION:g} (m, rad); nothing was sent'
        )


@dataclass(frozen=True)
class StageTimes:
    """Wall time of each stage of a query, in seconds; ``total`` is the policy's own time, with the
    account of what was pruned.
    """

    preprocess: float
    vision: float
    decoder: float
    head: float
    total: float


@dataclass(frozen=True)
class TokenCounts:
    """Vision tokens of one query.

    ``sets`` counts what each set requested (sets overlap), ``union`` those in at least one.
    ``layers`` are the boundaries at which tokens were dropped, ``after`` what was left after each.
    ``mean`` is averaged over the decoder's layers.
    """

    total: int
    sets: Mapping[str, int]
    union: int
    layers: tuple[int, ...]
    after: tuple[int, ...]
    mean: float


@dataclass(frozen=True)
class Thresholds:
    """The controller's numbers in SI: fine mode's largest translation (m/s) and rotation (rad/s),
    and the displacement (m) that counts as one in the look-back.
    """

    v_t: float
    v_r: float
    history_unit: float


@dataclass(frozen=True)
class Refreshes:
    """Dense passes between the previous query and this one, off its critical path.

    ``done`` of them ended and gave this query its prior, at the cost of ``flops`` operations and
    ``seconds``; ``given_up`` were stopped because a query was due.
    """

    done: int = 0
    given_up: int = 0
    flops: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class PolicyResult:
    """The actions of one query, float64 ``[chunk, action_dim]`` in action units, and its account.

    ``reset`` says why memory was forgotten before this query (``None``: it was not).
    ``history_steps`` and ``history_age`` (seconds) tell which past image was compared with,
    ``None`` without one. ``action_deviation`` is the largest absolute difference from a dense pass
    per action dimension, where that was requested.
    ``normalised`` are the actions as the model gave them, what a next chunk goes on from.
    ``kept_recall`` is the share of what that dense pass attended to most that was kept.
    ``overlay`` is ``None`` where the model was not run or nobody subscribes. ``details`` are there
    where they were requested.
    """

    actions: np.ndarray
    episode: int
    params_version: int
    pruner: str
    mode: Mode
    reason: str
    reset: str | None
    speed: SpeedSample | None
    tokens: TokenCounts
    alpha: float
    budgets: tuple[int, int, int]
    history_steps: int | None
    history_age: float | None
    thresholds: Thresholds
    prior_valid: bool
    prior_recall: float | None
    flops: float
    flops_ratio: float
    times: StageTimes
    device: str
    overlay: Overlay | None
    normalised: np.ndarray | None = None
    action_deviation: np.ndarray | None = None
    kept_recall: float | None = None
    refreshes: Refreshes = Refreshes()
    notes: tuple[str, ...] = field(default=())
    details: StepDetails | None = None
