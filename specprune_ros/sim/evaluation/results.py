"""Rows of a closed-loop table: success with intervals, and each setting against the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from specprune_ros.sim.evaluation.episode import EXECUTED
from specprune_ros.sim.evaluation.proportions import compare, wilson
from specprune_ros.sim.evaluation.settings import DENSE, EvaluationSetting
from specprune_ros.sim.evaluation.trials import Trial, TrialFile

ALL = 'all'


def table_rows(
    settings: Sequence[EvaluationSetting],
    families: Sequence[str],
    seeds: range,
    done: TrialFile,
    weights: str,
    executed: int = EXECUTED,
    deviation_episodes: int = 20,
) -> list[dict[str, Any]]:
    """One row per setting and family, and one over all families where there are several.

    Rates are shares, ``ms_p50`` milliseconds, ``action_deviation`` metres per control step over
    the first ``deviation_episodes`` seeds of each family,
    ``flops_ratio`` the share of the dense query's operations, on the critical path, of which
    ``decoder_flops`` is the same of the decoder alone; what a prior made anew in the slack costs
    on top is ``refresh_flops``. ``paired_loss`` is dense's success
    rate less this row's on the episodes that both played, ``against`` the row's own control with
    ``against_gain`` the other way round; both with 95 % interval and McNemar's p. What was not
    measured is ``None``; a setting without episodes has no row.
    """
    groups = {family: (family,) for family in families}
    if len(families) > 1:
        groups[ALL] = tuple(families)
    played = {
        setting.label: {
            (family, seed): trial
            for family in families
            for seed, trial in done.of(setting.key(weights, executed), family, seeds).items()
        }
        for setting in settings
    }
    rows = []
    for task, members in groups.items():
        for setting in settings:
            mine = {at: t for at, t in played[setting.label].items() if at[0] in members}
            if not mine:
                continue
            rows.append(_row(task, setting, mine, seeds.start + deviation_episodes))
            if setting.label != DENSE.label and setting.control == 'instructed':
                loss = _paired(played.get(DENSE.label, {}), mine)
                rows[-1].update(_named('paired_loss', loss))
            if setting.against in played:
                gain = _paired(mine, played[setting.against])
                rows[-1].update(against=setting.against, **_named('against_gain', gain))
    return rows


def _row(
    task: str, setting: EvaluationSetting, trials: dict[Any, Trial], below: int
) -> dict[str, Any]:
    some = list(trials.values())
    won = [trial for trial in some if trial.success]
    low, high = wilson(len(won), len(some))
    return {
        'task': task,
        'pruner': setting.label,
        'control': setting.control,
        'curve': setting.curve,
        'episodes': len(some),
        'successes': len(won),
        'success_rate': len(won) / len(some),
        'ci_low': low,
        'ci_high': high,
        'collisions': sum(trial.outcome == 'collision' for trial in some),
        'steps': _mean(trial.steps for trial in won),
        'queries': _mean(trial.queries for trial in some),
        'tokens_mean': _mean(trial.tokens for trial in some),
        'flops_ratio': _mean(trial.flops for trial in some),
        'decoder_flops': _mean(trial.decoder_flops for trial in some),
        'refresh_flops': _mean(trial.refresh_flops for trial in some),
        'recall': _mean(trial.recall for trial in some),
        'action_deviation': _mean(trial.deviation for trial in some if trial.seed < below),
        'ms_p50': _median(trial.milliseconds for trial in some),
    }


def _paired(first: dict[Any, Trial], second: dict[Any, Trial]) -> Any:
    """The first's successes against the second's on the episodes of both, or ``None``."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    return compare([first[at].success for at in both], [second[at].success for at in both])


def _named(name: str, paired: Any) -> dict[str, Any]:
    if paired is None:
        return {}
    return {
        name: paired.difference,
        f'{name}_low': paired.low,
        f'{name}_high': paired.high,
        f'{name}_p': paired.p,
        f'{name}_episodes': paired.episodes,
    }


def _mean(values: Iterable[float]) -> float | None:
    known = _known(values)
    return float(np.mean(known)) if known else None


def _median(values: Iterable[float]) -> float | None:
    known = _known(values)
    return float(np.median(known)) if known else None


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
