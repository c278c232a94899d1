"""The simulated arm as a benchmark of the evaluation harness ``vla-eval`` (an extra).

``benchmark: specprune_ros.sim.evaluation.vla_eval_benchmark:SimArmBenchmark`` in the harness's
configuration, run with ``--no-docker``. One task per family; an episode's number is its seed, as
in ``specprune eval``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
    DimSpec,
)

from specprune_ros.sim.arm.render_backend import choose
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import EpisodeObservation, apply, observe
from specprune_ros.sim.tasks.tasks import FAMILIES, Judge, make_episode


class SimArmBenchmark(StepBenchmark):
    """Episodes of the simulated arm. ``families``: names separated by commas; ``first``: seed of
    the first episode.
    """

    render_backends = frozenset({'gpu', 'cpu'})

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """MuJoCo's renderer is chosen by what is there."""
        choose()
        return {}

    def __init__(
        self,
        families: str = ','.join(FAMILIES),
        first: int = 0,
        send_wrist_image: bool = True,
        send_state: bool = True,
    ) -> None:
        super().__init__()
        choose()
        self._families = [name.strip() for name in families.split(',')]
        self._first = first
        self._sent = (2 if send_wrist_image else 1, send_state)
        self._world = World()
        self._judge: Judge | None = None

    def get_tasks(self) -> list[dict[str, Any]]:
        """One task per family."""
        return [
            {'name': family, 'suite': 'sim_arm', 'family': family} for family in self._families
        ]

    def reset(self, task: dict[str, Any]) -> EpisodeObservation:
        """Put the scene of an episode up."""
        episode = make_episode(self._first + task.get('episode_idx', 0), task['family'])
        self._world.reset(episode.seed, episode.layout)
        self._judge = Judge(self._world, episode.task)
        self._instruction = episode.task.instruction
        return observe(self._world, self._instruction)

    def step(self, action: dict[str, Any]) -> StepResult:
        """Play one row (m, rad, gripper 1 closed, -1 open)."""
        assert self._judge is not None
        row = np.array(action['actions'], np.float64)
        row[6] = float(row[6] < 0)
        apply(self._world, row)
        outcome = self._judge.step()
        done = outcome != 'running'
        seen = observe(self._world, self._instruction)
        return StepResult(seen, float(outcome == 'success'), done, {'outcome': outcome})

    def make_obs(self, raw_obs: EpisodeObservation, task: dict[str, Any]) -> dict[str, Any]:
        """Images, instruction, state and velocity."""
        count, state = self._sent
        seen: dict[str, Any] = {
            'images': dict(list(raw_obs.images.items())[:count]),
            'task_description': raw_obs.instruction,
        }
        if state:
            seen.update(states=raw_obs.proprio, twist=raw_obs.twist)
        return seen

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        """Whether the task was done."""
        return {'success': step_result.info.get('outcome') == 'success'}

    def get_metadata(self) -> dict[str, Any]:
        """The longest episode ends by the judge, not here."""
        return {'max_steps': 1000}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """What :meth:`step` takes."""
        return {'position': POSITION_DELTA, 'rotation': ROTATION_AA, 'gripper': GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """What :meth:`make_obs` gives."""
        return {'image': IMAGE_RGB, 'language': LANGUAGE, 'state': STATE_EEF_POS_AA_GRIP}

    def cleanup(self) -> None:
        """Free the renderer."""
        self._world.close()
