"""The LIBERO bed of ``specprune eval``: the authors' protocol with any pruner (docs/how-
to/libero.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specprune_ros.policy.policy import Policy
    from specprune_ros.sim.evaluation.settings import EvaluationSetting
    from specprune_ros.sim.evaluation.trials import TrialFile
    from specprune_ros.sim.libero.suites import Suite


def evaluate(args: argparse.Namespace, settings: Sequence[EvaluationSetting]) -> dict[str, Any]:
    """Play what is missing of a suite and return rows: one per task, and one over all.

    ``args.episodes`` are trials of each task. Raises :class:`.MissingLibero`, ``ValueError`` and
    the loader's errors.
    """
    from specprune_ros.policy.build import build_policy
    from specprune_ros.sim.evaluation.results import table_rows
    from specprune_ros.sim.evaluation.trials import TrialFile, checkpoint_hash, weights_hash
    from specprune_ros.sim.libero.library import check_libero
    from specprune_ros.sim.libero.suites import check_policy, suite

    chosen = suite(args.suite)
    if not 1 <= args.episodes <= chosen.trials:
        raise ValueError(
            f'--episodes {args.episodes}: {chosen.name} has 1 to {chosen.trials} a task'
        )
    notes = check_libero()
    if args.checkpoint is None:
        raise ValueError(f'--checkpoint: want the folder of a checkpoint trained on {chosen.name}')
    policy = build_policy(
        str(args.checkpoint), device=args.device, unnorm_key=chosen.name, progress=True
    )
    policy.wants_overlay = False
    check_policy(policy, chosen, args.executed)
    # There are no colours to confuse in LIBERO's instructions.
    rows = [setting for setting in settings if setting.control != 'wrong colour']
    for setting in rows:
        policy.check_params(setting.params)
    weights = f'{checkpoint_hash(args.checkpoint)} {policy.device.type}'
    done = TrialFile(args.work / 'trials.jsonl')
    played, started = 0, time.monotonic()
    if not args.report_only:
        for task in range(chosen.tasks):
            played += _play_task(args, chosen, task, policy, rows, weights, done)
    families = [f'{chosen.name}/{task}' for task in range(chosen.tasks)]
    trials = range(args.episodes)
    keys = {setting.key(weights, args.executed) for setting in rows}
    there = sum(len(done.of(key, family, trials)) for key in keys for family in families)
    seconds = time.monotonic() - started
    print(f'reused {there - played}, played {played} episodes in {seconds:.0f} s')
    made = table_rows(
        rows, families, trials, done, weights, args.executed, args.deviation_episodes
    )
    return {
        'weights': weights_hash(args.checkpoint),
        'suite': chosen.name,
        'libero': notes,
        'reused': there - played,
        'played': played,
        'rows': made,
    }


def _play_task(
    args: argparse.Namespace,
    chosen: Suite,
    task: int,
    policy: Policy,
    settings: Sequence[EvaluationSetting],
    weights: str,
    done: TrialFile,
) -> int:
    """Play the missing trials of one task in one simulator; returns how many."""
    from tqdm import tqdm

    from specprune_ros.policy.result import PolicyResult
    from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
    from specprune_ros.sim.evaluation.trials import summed_up
    from specprune_ros.sim.libero.episodes import LiberoTask

    family = f'{chosen.name}/{task}'
    keys = {setting.label: setting.key(weights, args.executed) for setting in settings}

    def measures(setting: EvaluationSetting, trial: int) -> bool:
        return trial < args.deviation_episodes and setting.measurable

    todo = [
        (setting, trial)
        for setting in settings
        for trial in range(args.episodes)
        if done.lacks(keys[setting.label], family, trial, measures(setting, trial))
    ]
    if not todo:
        return 0
    results: list[PolicyResult] = []
    runner = PolicyRunner(policy, results.append)
    with LiberoTask(chosen, task) as bed:
        for setting, trial in tqdm(todo, desc=bed.instruction, file=sys.stderr):
            if policy.params != setting.params:
                policy.set_params(setting.params)
            policy.measure_deviation = measures(setting, trial)
            results.clear()
            before = policy.refreshes.flops  # of the episode before, reported by this one's first
            played = bed.play(runner, trial, args.executed, blind=setting.control == 'blind')
            key = keys[setting.label]
            rest = policy.refreshes.flops - before
            done.add([summed_up(key, family, trial, played, results, policy.config, rest)])
    return len(todo)
