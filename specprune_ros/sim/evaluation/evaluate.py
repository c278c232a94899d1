"""Closed-loop success of a policy, with the controls that show whether it looks and listens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import EXECUTED, EpisodeResult, play
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.evaluation.proportions import wilson
from specprune_ros.sim.evaluation.settings import CONTROLS
from specprune_ros.sim.tasks.tasks import Episode, make_episode, wrong_colour

TUNING_SEED, REPORT_SEED = 500_000, 0  # settings are chosen on one set, reported on another


@dataclass(frozen=True)
class Row:
    """Success of one family under one control; ``low`` and ``high`` bound 95 % (Wilson)."""

    family: str
    control: str
    episodes: int
    successes: int
    low: float
    high: float
    outcomes: tuple[str, ...]
    mean_steps: float

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.episodes


def play_control(
    world: World,
    runner: PolicyRunner,
    episode: Episode,
    control: str,
    executed: int = EXECUTED,
    watches: bool = True,
) -> EpisodeResult:
    """Play one episode under one control, nothing remembered from the one before.

    ``watches``: the images between queries reach the frame history too.
    """
    runner.reset()
    return play(
        world,
        episode,
        runner,
        executed,
        blind=control == 'blind',
        instruction=wrong_colour(episode) if control == 'wrong colour' else None,
        watch=runner.watch if watches else None,
        control_hz=runner.policy.config.control_hz,
        slack=runner.refresh if runner.policy.params.refresh_when == 'slack' else None,
    )


def run_row(
    world: World,
    runner: PolicyRunner,
    family: str,
    control: str,
    seeds: Sequence[int],
    executed: int = EXECUTED,
    tick: Callable[[EpisodeResult], None] = lambda played: None,
) -> Row:
    """Play the episodes of ``seeds`` under one control; the same seeds give paired rows."""
    if control not in CONTROLS:
        raise ValueError(f'control: {control!r}, want one of {list(CONTROLS)}')
    done: list[EpisodeResult] = []
    for seed in seeds:
        done.append(play_control(world, runner, make_episode(seed, family), control, executed))
        tick(done[-1])
    won = [played for played in done if played.success]
    low, high = wilson(len(won), len(done))
    steps = sum(played.steps for played in won) / len(won) if won else math.nan
    outcomes = tuple(played.outcome for played in done)
    return Row(family, control, len(done), len(won), low, high, outcomes, steps)
