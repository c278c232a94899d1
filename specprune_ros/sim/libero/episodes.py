"""Episodes of LIBERO, played as OpenVLA-OFT's authors evaluate theirs.

Protocol: ``experiments/robot/libero/run_libero_eval.py`` of ``moojink/openvla-oft`` at 213c5ff.
What their script does to an image after turning it, the policy does (``models/preprocess.py``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pickle import UnpicklingError
from typing import Any

import numpy as np
from torch.serialization import safe_globals

from specprune_ros.policy.result import PolicyError
from specprune_ros.robot.geometry import (
    Pose,
    Quaternion,
    normalised,
    rotation_vector,
    twist_between,
)
from specprune_ros.sim.evaluation.episode import SLACK_STEPS, EpisodeObservation, EpisodeResult
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.libero.library import MissingLibero, library, quiet
from specprune_ros.sim.libero.suites import (
    ACTION_DIM,
    CONTROL_HZ,
    EXECUTED,
    GRIPPER_DIM,
    VIEWS,
    Suite,
    check_policy,
)

IMAGE_SIZE = 256  # pixels a side, as rendered
SEED, SIMULATOR_SEED = 7, 0  # of the process, and of the simulator after it was built
REST = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # stay, fingers open

_library = cache(library)


@dataclass(frozen=True)
class LiberoEpisode:
    """One row of the protocol: initial state ``trial`` of task ``task``, both from 0."""

    suite: Suite
    task: int
    trial: int
    instruction: str


def episodes(
    suite: Suite, trials: int | None = None, tasks: Sequence[int] | None = None
) -> Iterator[LiberoEpisode]:
    """The first ``trials`` (default: all) initial states of ``tasks`` (default: all), in order.

    The same for every pruner, so rows are paired. Raises :class:`.MissingLibero` and
    ``ValueError`` for a number that the suite does not have.
    """
    trials = suite.trials if trials is None else trials
    if not 1 <= trials <= suite.trials:
        raise ValueError(f'trials: {trials}, {suite.name} has 1 to {suite.trials} a task')
    bench = _benchmark(suite)
    for task in range(bench.n_tasks) if tasks is None else tasks:
        words = _task(bench, suite, task).language
        for trial in range(trials):
            yield LiberoEpisode(suite, task, trial, words)


class LiberoTask:
    """One task in a simulator of its own; :meth:`close` it, or use it as a context manager.

    Making one imports LIBERO. Raises :class:`.MissingLibero`, and ``ValueError`` for a task that
    the suite does not have.
    """

    def __init__(self, suite: Suite, task: int) -> None:
        used, bench = _library(), _benchmark(suite)
        found = _task(bench, suite, task)
        self.suite, self.task, self.instruction = suite, task, str(found.language)
        self.states = _initial_states(bench, suite, task)
        path = os.path.join(used.path('bddl_files'), found.problem_folder, found.bddl_file)
        if not os.path.isfile(path):
            raise MissingLibero(f'{path}: this file of LIBERO is not there')
        random.seed(SEED)
        np.random.seed(SEED)
        with quiet():
            self._simulator = used.environment(
                bddl_file_name=path, camera_heights=IMAGE_SIZE, camera_widths=IMAGE_SIZE
            )
        self._rewind()

    def __enter__(self) -> LiberoTask:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the simulator."""
        self._simulator.close()

    def play(
        self,
        runner: PolicyRunner,
        trial: int,
        executed: int = EXECUTED,
        blind: bool = False,
        instruction: str | None = None,
        keep_frames: bool = False,
        watch: bool = True,
    ) -> EpisodeResult:
        """Play initial state ``trial`` to its end; ``steps`` leaves out those of waiting.

        ``executed`` rows of a chunk are played before the next query. ``blind`` shows black
        images, ``instruction`` replaces the words shown to the policy (controls). ``watch`` puts
        the images between queries into the policy's frame history; the prior is made anew
        ``SLACK_STEPS`` before a query where ``pruning.refresh_when`` is ``slack``. Raises
        :class:`.WrongPolicy`; ``ValueError`` for a trial that is not there. Actions that the
        policy itself refuses end the episode without success and with a reason.
        """
        check_policy(runner.policy, self.suite, executed)
        if not 0 <= trial < len(self.states):
            raise ValueError(f'trial: {trial}, {self._name} has 0 to {len(self.states) - 1}')
        cameras = runner.policy.config.cameras
        words = self.instruction if instruction is None else instruction
        runner.reset()
        seen = self._start(trial)
        before = seen
        for _ in range(self.suite.wait_steps):
            before, seen = seen, self._step(REST)[0]

        played = EpisodeResult('running', 0, 0)
        chunk, row = np.empty((0, ACTION_DIM)), 0
        while played.outcome == 'running':
            observation = _observe(seen, before, cameras, words, played.steps / CONTROL_HZ, blind)
            if row >= min(executed, len(chunk)):
                try:
                    chunk, row = runner(observation), 0
                except PolicyError as error:
                    # The authors' script counts an error as a failure and goes on.
                    played.outcome, played.reason = 'time_out', str(error)
                    break
                played.queries += 1
                if keep_frames:
                    played.frames.append(observation.images)
            else:
                if watch:
                    runner.watch(observation)
                if row == min(executed, len(chunk)) - SLACK_STEPS:
                    runner.refresh(observation)
            before, (seen, done) = seen, self._step(command(chunk[row]))
            row += 1
            played.steps += 1
            if done:
                played.outcome = 'success'
            elif played.steps == self.suite.max_steps:
                played.outcome = 'time_out'
        return played

    @property
    def _name(self) -> str:
        return f'{self.suite.name} task {self.task}'

    def _step(self, action: Sequence[float]) -> tuple[Mapping[str, Any], bool]:
        seen, _, done, _ = self._simulator.step(list(action))
        return seen, bool(done)

    def _rewind(self) -> None:
        self._simulator.seed(SIMULATOR_SEED)
        self._random, self._resets = np.random.get_state(), 0

    def _start(self, trial: int) -> Mapping[str, Any]:
        """What is seen in initial state ``trial``.

        Each reset draws where things without joints stand, from numpy's global generator, and the
        authors seed it once a task. So the draws before this one are made too, and nobody else's
        draws come between: a trial is the same whatever was played before it, and by whom.
        """
        if self._resets > trial:
            self._rewind()
        np.random.set_state(self._random)
        while self._resets <= trial:
            self._simulator.reset()
            self._resets += 1
        self._random = np.random.get_state()
        return self._simulator.set_init_state(self.states[trial])


def command(action: np.ndarray) -> list[float]:
    """An action row ``[7]`` with gripper 0 closed to 1 open, as the simulator's controller takes
    it: gripper -1 open, 1 closed.
    """
    row = np.array(action, np.float64)
    row[GRIPPER_DIM] = -np.sign(2.0 * row[GRIPPER_DIM] - 1.0)
    return row.tolist()


def _observe(
    seen: Mapping[str, Any],
    before: Mapping[str, Any],
    cameras: Sequence[str],
    instruction: str,
    seconds: float,
    blind: bool,
) -> EpisodeObservation:
    """What the policy is shown; ``before`` is what was seen one control step earlier."""
    images = {camera: _image(seen, view) for camera, view in zip(cameras, VIEWS, strict=False)}
    if blind:
        images = {camera: np.zeros_like(image) for camera, image in images.items()}
    proprio = np.concatenate(
        [
            np.asarray(seen['robot0_eef_pos'], np.float64),
            # Not the shorter way round: the checkpoints' statistics reach beyond pi.
            rotation_vector(_quaternion(seen), shorter=False),
            np.asarray(seen['robot0_gripper_qpos'], np.float64),
        ]
    )
    moved = twist_between(_pose(before), _pose(seen), 1.0 / CONTROL_HZ)
    return EpisodeObservation(images, instruction, proprio, np.array(moved.six), seconds)


def _image(seen: Mapping[str, Any], view: str) -> np.ndarray:
    """The image of ``view``, turned by 180 degrees as in training."""
    return np.ascontiguousarray(np.asarray(seen[view])[::-1, ::-1])


def _pose(seen: Mapping[str, Any]) -> Pose:
    x, y, z = (float(value) for value in seen['robot0_eef_pos'])
    return Pose((x, y, z), _quaternion(seen))


def _quaternion(seen: Mapping[str, Any]) -> Quaternion:
    return normalised([float(value) for value in seen['robot0_eef_quat']])


def _benchmark(suite: Suite) -> Any:
    benchmarks = _library().benchmarks
    if suite.name not in benchmarks:
        raise MissingLibero(
            f'this LIBERO has no suite {suite.name}, only {", ".join(sorted(benchmarks))}'
        )
    with quiet():
        return benchmarks[suite.name]()


def _task(bench: Any, suite: Suite, task: int) -> Any:
    if not 0 <= task < bench.n_tasks:
        raise ValueError(f'task: {task}, {suite.name} has 0 to {bench.n_tasks - 1}')
    return bench.get_task(task)


def _initial_states(bench: Any, suite: Suite, task: int) -> np.ndarray:
    """Flattened simulator states ``[trials, n]``."""
    # LIBERO calls torch.load as it was before 2.6; its files hold nothing but arrays.
    make = np.zeros(1).__reduce__()[0]
    old_name = (make, 'numpy.core.multiarray._reconstruct')  # before numpy 2
    allowed = [make, old_name, np.ndarray, np.dtype, np.dtypes.Float64DType]
    try:
        with quiet(), safe_globals(allowed):
            return np.asarray(bench.get_task_init_states(task))
    except (OSError, UnpicklingError) as error:
        raise MissingLibero(f'{suite.name} task {task}: its initial states: {error}') from error
