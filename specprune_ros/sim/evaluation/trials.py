"""Closed-loop episodes of many settings, played in several processes and kept on disk.

Every finished episode is a line of a file, so an interrupted evaluation goes on where it was, and
a table can grow. The same seeds are played for every setting, a few seeds at a time over all
settings, so that comparisons stay paired wherever it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from specprune_ros.bounded_files import boundary, file_hash, parse_json, read_text
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.flops import count
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.result import PolicyResult
from specprune_ros.pruning.registry import uses_similarity
from specprune_ros.sim.arm.render_backend import choose
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import EXECUTED, EpisodeResult
from specprune_ros.sim.evaluation.evaluate import play_control
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.evaluation.settings import EvaluationSetting
from specprune_ros.sim.processes import in_processes
from specprune_ros.sim.tasks.tasks import make_episode

MOST = 256 << 20  # bytes of a file of trials
RECORDS = ('recipe.json', 'trainer_state.json')  # of how a checkpoint was made
AT_ONCE = 5  # seeds of one job


@dataclass(frozen=True)
class Trial:
    """One episode of one setting.

    ``key`` names the setting (:meth:`EvaluationSetting.key`). ``steps`` are control steps.
    ``tokens``, ``flops`` (share of dense), ``decoder_flops`` (the same of the decoder alone, with
    what the pruner computes beside it) and ``recall`` are means over the queries,
    ``milliseconds`` their median; ``deviation`` is the mean of the largest difference in metres
    from dense, along any axis of any row, of the same query. NaN where nothing was measured.
    ``refresh_flops``: what was spent in the slack, over as many dense queries.
    """

    key: str
    family: str
    seed: int
    outcome: str
    steps: int
    queries: int
    tokens: float
    flops: float
    recall: float
    deviation: float
    milliseconds: float
    refresh_flops: float = 0.0
    decoder_flops: float = math.nan

    def check(self) -> None:
        """Raise ``ValueError`` for a field of another type."""
        kinds = {'str': str, 'int': int, 'float': int | float}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, kinds[str(field.type)]):
                raise ValueError(f'{field.name} is {value!r:.60}')

    @property
    def success(self) -> bool:
        """Whether the task was done."""
        return self.outcome == 'success'


class TrialFile:
    """Trials on disk, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: dict[tuple[str, str, int], Trial] = {}
        if path.exists():
            for number, line in enumerate(read_text(path, MOST).splitlines(), start=1):
                self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        # Only a run that was killed while writing leaves a broken line, at the end.
        where = f'{self.path}, line {number}'
        with boundary(where, cure='no trial; delete that line'):
            trial = Trial(**parse_json(line, where))
            trial.check()
        self.trials[trial.key, trial.family, trial.seed] = trial

    def add(self, trials: Iterable[Trial]) -> None:
        """Remember and write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open('a', encoding='utf-8') as file:
            for trial in trials:
                self.trials[trial.key, trial.family, trial.seed] = trial
                file.write(json.dumps(asdict(trial)) + '\n')

    def lacks(self, key: str, family: str, seed: int, deviation: bool) -> bool:
        """Whether a trial is still to be played; with ``deviation`` one that was compared with
        dense.
        """
        trial = self.trials.get((key, family, seed))
        return trial is None or (deviation and math.isnan(trial.deviation))

    def of(self, key: str, family: str, seeds: Iterable[int]) -> dict[int, Trial]:
        """The trials there are, by seed."""
        found = ((seed, self.trials.get((key, family, seed))) for seed in seeds)
        return {seed: trial for seed, trial in found if trial is not None}


class Player:
    """A policy and a simulated arm that play trials of any setting."""

    def __init__(self, checkpoint: Path, executed: int = EXECUTED) -> None:
        choose()
        self.executed = executed
        self.weights = checkpoint_hash(checkpoint)
        self.policy: Policy = build_policy(str(checkpoint), device='cpu', threads=1)
        self.policy.wants_overlay = False
        self._results: list[PolicyResult] = []
        self._actor = PolicyRunner(self.policy, self._results.append)
        self._world = World(cameras=self.policy.config.cameras)

    def close(self) -> None:
        """Free the renderer."""
        self._world.close()

    def __call__(
        self, setting: EvaluationSetting, family: str, seed: int, deviation: bool = False
    ) -> Trial:
        """Play one episode; ``deviation`` requests the comparison with dense at every query.

        Raises ``ParamError`` for parameters that do not go with the policy.
        """
        if self.policy.params != setting.params:
            self.policy.set_params(setting.params)
        self.policy.measure_deviation = deviation and setting.measurable
        self._results.clear()
        before = self.policy.refreshes.flops  # of the episode before, reported by this one's first
        played = play_control(
            self._world,
            self._actor,
            make_episode(seed, family),
            setting.control,
            self.executed,
            # Images between queries only matter to a pruner that looks back at them.
            watches=uses_similarity(setting.params) or setting.params.refresh_change < 1.0,
        )
        key = setting.key(self.weights, self.executed)
        rest = self.policy.refreshes.flops - before
        return summed_up(key, family, seed, played, self._results, self.policy.config, rest)


def summed_up(
    key: str,
    family: str,
    seed: int,
    played: EpisodeResult,
    results: Sequence[PolicyResult],
    config: PolicyConfig,
    refresh_flops: float = 0.0,
) -> Trial:
    """The trial that an episode and the results of its queries by a policy make.

    ``refresh_flops``: of refreshes that no result reports, less those of an earlier episode.
    """
    others = count(config, ()).flops  # towers, projector, head: nothing prunes them
    return Trial(
        key=key,
        family=family,
        seed=seed,
        outcome=played.outcome,
        steps=played.steps,
        queries=played.queries,
        tokens=_mean(r.tokens.mean for r in results),
        flops=_mean(r.flops_ratio for r in results),
        decoder_flops=_mean(
            (r.flops - others) / (r.flops / r.flops_ratio - others)
            for r in results
            if r.flops_ratio
        ),
        recall=_mean(r.prior_recall for r in results),
        deviation=_mean(
            None if r.action_deviation is None else float(r.action_deviation[:3].max())
            for r in results
        ),
        refresh_flops=(sum(r.refreshes.flops for r in results) + refresh_flops)
        / max(sum(r.flops / r.flops_ratio for r in results if r.flops_ratio), 1.0),
        milliseconds=1e3 * float(np.median([r.times.total for r in results] or [math.nan])),
    )


def weights_hash(checkpoint: Path) -> str:
    """Digest of the weights in a checkpoint folder. Raises ``FileNotFoundError`` for none."""
    files = sorted([*checkpoint.glob('*.safetensors'), *checkpoint.glob('*.pt')])
    if not files:
        raise FileNotFoundError(
            f'{checkpoint}: no *.safetensors or *.pt file; want a checkpoint folder'
        )
    return '-'.join(file_hash(path)[:16] for path in files)


def checkpoint_hash(checkpoint: Path) -> str:
    """Digest of all files in a checkpoint folder that say how its policy acts: the weights, and
    what they are read with. Raises ``FileNotFoundError`` where there are no weights.
    """
    made = hashlib.sha256(weights_hash(checkpoint).encode())
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in ('.json', '.model') and path.name not in RECORDS and path.is_file():
            made.update(f'{path.name} {file_hash(path)}'.encode())
    return made.hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """Some seeds of one setting and family; those below ``deviation_below`` measure deviation."""

    setting: EvaluationSetting
    family: str
    seeds: tuple[int, ...]
    deviation_below: int


def jobs(
    settings: Sequence[EvaluationSetting],
    families: Sequence[str],
    seeds: range,
    done: TrialFile,
    weights: str,
    executed: int = EXECUTED,
    deviation_episodes: int = 20,
) -> Iterator[Job]:
    """What is still to be played, a few seeds at a time over all settings."""
    # Two labels may name the same thing: one of the alphas is the default.
    once = {setting.key(weights, executed): setting for setting in reversed(settings)}
    for first in range(seeds.start, seeds.stop, AT_ONCE):
        some = range(first, min(first + AT_ONCE, seeds.stop))
        for key, setting in reversed(once.items()):
            for family in families:
                below = seeds.start + deviation_episodes
                missing = tuple(
                    seed
                    for seed in some
                    if done.lacks(key, family, seed, seed < below and setting.measurable)
                )
                if missing:
                    yield Job(setting, family, missing, below)


_player: Player | None = None  # of a worker process


def _begin(checkpoint: Path, executed: int) -> None:
    global _player
    _player = Player(checkpoint, executed)


def _play(job: Job) -> list[Trial]:
    assert _player is not None
    return play_job(_player, job)


def play_job(player: Player, job: Job) -> list[Trial]:
    """The trials of a job."""
    return [
        player(job.setting, job.family, seed, seed < job.deviation_below) for seed in job.seeds
    ]


def play_all(
    todo: Sequence[Job],
    done: TrialFile,
    checkpoint: Path,
    processes: int,
    executed: int = EXECUTED,
    tick: Callable[[int], None] = lambda played: None,
) -> None:
    """Play ``todo`` in ``processes`` processes (0: one per core); ``tick`` receives how many more
    were played.
    """
    for trials in in_processes(_play, todo, processes, _begin, checkpoint, executed):
        done.add(trials)
        tick(len(trials))


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan
