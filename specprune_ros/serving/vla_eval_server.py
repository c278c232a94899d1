"""A model server for the evaluation harness ``vla-eval`` that queries a policy server of ours.

``python -m specprune_ros.serving.vla_eval_server --args.url=ws://HOST:8000 --port=8001`` in an
environment with ``vla-eval`` (no PyTorch is needed there); ``vla-eval run`` is then pointed at
port 8001. Every episode is a session of the policy server, so that shards share one
GPU and run as batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from anyio.to_thread import run_sync
from vla_eval.model_servers.base import ModelServer, SessionContext
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import (
    GRIPPER_01,
    GRIPPER_CLOSE_01,
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    RAW,
    ROTATION_AA,
    ROTATION_EULER,
    STATE_EEF_POS_AA_GRIP,
    DimSpec,
)

from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.robot.geometry import from_rotation_vector, norm, rotation_between
from specprune_ros.serving.client import RemotePolicy

# What a benchmark's gripper receives, from this policy's 0 (closed) to 1 (open).
GRIPPERS = {'close_positive': GRIPPER_CLOSE_POS, 'close_01': GRIPPER_CLOSE_01}
ROTATIONS = {'vector': ROTATION_AA, 'euler_xyz': ROTATION_EULER}
POSE_STATE = 8  # numbers of a state: position (m), axis times angle (rad), two fingers


class _Robot:
    """One episode of a session of the harness: its connection, its clock, and what is left of its
    chunk.
    """

    def __init__(self, policy: RemotePolicy, episode: str) -> None:
        self.policy, self.episode = policy, episode
        self.stamp_ns = 0
        self.chunk = np.empty((0, policy.config.action_dim))
        self.before: np.ndarray | None = None  # the last step's state

    def act(self, seen: dict[str, Any], executed: int) -> np.ndarray:
        """The next action row ``[action_dim]``; queries the server where the chunk is used up."""
        policy, config = self.policy, self.policy.config
        self.stamp_ns += round(policy.step_dt * SECOND_NS)
        shown = list(seen['images'].values())
        if len(shown) < len(config.cameras):
            raise ValueError(
                f'the benchmark sends {len(shown)} images ({", ".join(seen["images"])}), the '
                f'policy reads {len(config.cameras)}: {", ".join(config.cameras)}'
            )
        images = {
            camera: CameraImage(np.ascontiguousarray(image), self.stamp_ns)
            for camera, image in zip(config.cameras, shown, strict=False)
        }
        state = _state(seen, config.proprio_dim)
        speed = self._speed(state)
        for camera, image in images.items():
            policy.history.push(camera, image)
        if not len(self.chunk):
            observation = Observation(
                images=images,
                instruction=str(seen.get('task_description', '')),
                proprio=state,
                speed=speed,
                position=state[:3] if state is not None and len(state) == POSE_STATE else None,
            )
            rows = executed or config.chunk
            policy.query_period = rows * policy.step_dt  # however long: no pause
            self.chunk = policy.act(observation).actions[:rows]
        row, self.chunk = self.chunk[0], self.chunk[1:]
        return row

    def _speed(self, state: np.ndarray | None) -> SpeedSample | None:
        """End-effector speed from two states, ``None`` where a state holds no pose."""
        before, self.before = self.before, state
        if state is None or len(state) != POSE_STATE:
            return None
        if before is None:
            return SpeedSample(0.0, 0.0, 0.0, 'benchmark')
        rate = self.policy.config.control_hz
        moved = (state[:3] - before[:3]) * rate
        first, second = (from_rotation_vector(s[3:6].tolist()) for s in (before, state))
        turned = norm(rotation_between(first, second)) * rate
        return SpeedSample(float(np.linalg.norm(moved)), turned, float(moved[2]), 'benchmark')


def _state(seen: dict[str, Any], wanted: int) -> np.ndarray | None:
    if not wanted:
        return None
    for key in ('states', 'state'):
        if seen.get(key) is not None:
            return np.asarray(seen[key], np.float64)
    return None  # the observation's own check says so


class SpecPruneModelServer(ModelServer):
    """Forwards the harness's observations to a policy server, chunk by chunk.

    ``url`` and ``api_key`` are the policy server's. ``executed`` rows of a chunk are played before
    the next query (0: all). ``gripper``: how the benchmark closes it, ``close_positive``
    (1 closed, -1 open: LIBERO, SimplerEnv), ``close_01`` (1 closed, 0 open) or ``as_is``.
    ``timeout`` of a query in seconds.
    """

    def __init__(
        self,
        url: str,
        api_key: str = '',
        executed: int = 0,
        gripper: str = 'close_positive',
        timeout: float = 60.0,
    ) -> None:
        if gripper not in (*GRIPPERS, 'as_is'):
            raise ValueError(f'gripper {gripper!r} is none of {", ".join(GRIPPERS)}, as_is')
        self._url, self._api_key, self._timeout = url, api_key, timeout
        self._executed, self._gripper = executed, gripper
        self._robots: dict[str, _Robot] = {}
        first = self._connect()  # a server that is not there is said now
        self.config = first.config
        first.close()

    def _connect(self) -> RemotePolicy:
        return RemotePolicy(self._url, self._api_key, timeout=self._timeout)

    def get_observation_params(self) -> dict[str, Any]:
        """What benchmarks are requested to send; those without such an option leave it out."""
        params: dict[str, Any] = {}
        if len(self.config.cameras) > 1:
            params['send_wrist_image'] = True
        if self.config.proprio_dim:
            params['send_state'] = True
        if self.config.family == 'openvla-oft':
            # As in its authors' runs: the checkpoints' statistics reach beyond pi.
            params.update(env_seed=0, quat_no_antipodal=True)
        return params

    def get_action_spec(self) -> dict[str, DimSpec]:
        """What the actions mean."""
        action = self.config.action
        if action.kind != 'ee_delta' or action.rotation not in ROTATIONS:
            return {'actions': RAW}
        gripper = GRIPPERS.get(self._gripper, GRIPPER_01)
        return {
            'position': POSITION_DELTA,
            'rotation': ROTATIONS[action.rotation],
            'gripper': gripper,
        }

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """What the policy reads."""
        spec = {'image': IMAGE_RGB, 'language': LANGUAGE}
        if self.config.proprio_dim == POSE_STATE:
            spec['state'] = STATE_EEF_POS_AA_GRIP
        return spec

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Begin an episode of a session. The one before is over: one that failed is not ended."""
        last = self._robots.pop(ctx.session_id, None)
        if last is not None:
            await run_sync(last.policy.close)
        robot = _Robot(await run_sync(self._connect), ctx.episode_id)
        self._robots[ctx.session_id] = robot

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Close the episode's connection: the harness does not say which episode is the last."""
        robot = self._robots.get(ctx.session_id)
        # After a time-out the harness connects again as the same session, and what it left ends
        # later than its next episode begins.
        if robot is not None and robot.episode == ctx.episode_id:
            del self._robots[ctx.session_id]
            await run_sync(robot.policy.close)

    async def on_observation(self, obs: dict[str, Any], ctx: SessionContext) -> None:
        """Answer with one row."""
        robot = self._robots.get(ctx.session_id)
        if robot is None or robot.episode != ctx.episode_id:
            raise ValueError('this episode is over, or did not begin')
        row = await run_sync(robot.act, obs, self._executed)
        await ctx.send_action({'actions': self._for_benchmark(row)})

    def _for_benchmark(self, row: np.ndarray) -> np.ndarray:
        row, dim = row.astype(np.float32), self.config.action.gripper_dim
        if self._gripper != 'as_is' and dim >= 0:
            closed = row[dim] > self.config.action.gripper_threshold
            if self.config.action.gripper_sense == 'one_is_open':
                closed = not closed
            row[dim] = 1.0 if closed else {'close_positive': -1.0, 'close_01': 0.0}[self._gripper]
        return row


if __name__ == '__main__':
    run_server(SpecPruneModelServer)
