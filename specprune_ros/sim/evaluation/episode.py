"""Closed-loop episodes: any policy callable in the simulated arm, judged from its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from specprune_ros.sim.arm.world import World, rotation_vector
from specprune_ros.sim.tasks.expert import Expert
from specprune_ros.sim.tasks.tasks import CONTROL_HZ, SLOW, Episode, Judge, Outcome, Pace

# Rows of a chunk played before the next query: the whole chunk, as OpenVLA-OFT does.
EXECUTED = 8
SLACK_STEPS = 2  # control steps before a query at which its prior is made anew
MAX_SHIFT, MAX_TURN = 0.04, 0.3  # m and rad of one row that are played at most


@dataclass(frozen=True)
class EpisodeObservation:
    """What a policy is shown.

    ``images``: camera name to uint8 ``[h, w, 3]``. ``proprio``: float64 ``[8]``, tool position
    (m), rotation vector (rad), finger positions (m). ``twist``: tool velocity (m/s, rad/s),
    float64 ``[6]``. ``time`` in seconds since the episode began.
    """

    images: dict[str, np.ndarray]
    instruction: str
    proprio: np.ndarray
    twist: np.ndarray
    time: float


Actor = Callable[[EpisodeObservation], np.ndarray]
"""From an observation actions ``[K, 7]`` (m, rad, gripper 1 open), each from the one before."""


@dataclass
class EpisodeResult:
    """How an episode went. ``steps`` are control steps until the verdict."""

    outcome: Outcome
    steps: int
    queries: int
    reason: str = ''
    frames: list[dict[str, np.ndarray]] = field(default_factory=list)

    @property
    def success(self) -> bool:
        """Whether the task was done."""
        return self.outcome == 'success'


def proprioception(world: World) -> np.ndarray:
    """Float64 ``[8]``: tool position (m), rotation vector (rad), two finger positions (m)."""
    position, _ = world.tcp_pose()
    return np.concatenate(
        [position, rotation_vector(world.tcp_rotation()), world.joint_positions[7:]]
    )


def observe(world: World, instruction: str, blind: bool = False) -> EpisodeObservation:
    """What the policy would see now; ``blind`` gives black images."""
    if blind:
        black = np.zeros((*world.image_size, 3), np.uint8)
        images = dict.fromkeys(world.cameras, black)
    else:
        images = {camera: world.render(camera) for camera in world.cameras}
    return EpisodeObservation(
        images, instruction, proprioception(world), np.concatenate(world.tcp_twist()), world.time
    )


def apply(world: World, action: np.ndarray, seconds: float = 1 / CONTROL_HZ) -> None:
    """Play one action row as a constant velocity for ``seconds``; absurd sizes are cut."""
    shift, turn = np.array(action[:3]), np.array(action[3:6])
    shift *= min(1.0, MAX_SHIFT / max(float(np.linalg.norm(shift)), 1e-9))
    turn *= min(1.0, MAX_TURN / max(float(np.linalg.norm(turn)), 1e-9))
    world.command_twist(shift / seconds, turn / seconds)
    world.command_gripper(1.0 if action[6] > 0.5 else 0.0)
    world.advance(seconds)


def play(
    world: World,
    episode: Episode,
    runner: Actor,
    executed: int = EXECUTED,
    blind: bool = False,
    instruction: str | None = None,
    keep_frames: bool = False,
    watch: Callable[[EpisodeObservation], object] | None = None,
    slack: Callable[[EpisodeObservation], object] | None = None,
    control_hz: float = CONTROL_HZ,
) -> EpisodeResult:
    """Run an episode to its verdict, asking ``runner`` every ``executed`` control steps.

    ``instruction`` replaces the words shown to the runner, not the goal (controls). ``watch`` is
    shown the control steps between queries, ``slack`` the one of them from which a dense pass
    would just end before the next query (``SLACK_STEPS``). ``control_hz``: rows a second.
    """
    world.reset(episode.seed, episode.layout)
    judge = Judge(world, episode.task)
    words = episode.task.instruction if instruction is None else instruction
    played = EpisodeResult('running', 0, 0)
    chunk, row = np.empty((0, 7)), 0
    while played.outcome == 'running':
        if row >= min(executed, len(chunk)):
            seen = observe(world, words, blind)
            chunk, row = np.asarray(runner(seen), np.float64), 0
            played.queries += 1
            if keep_frames:
                played.frames.append(seen.images)
            if chunk.ndim != 2 or chunk.shape[1] != 7 or not len(chunk):
                raise ValueError(f'runner: gave shape {chunk.shape}, want [rows, 7]')
            if not np.isfinite(chunk).all():
                raise ValueError('runner: gave actions that are not finite')
        elif watch is not None or slack is not None:
            seen = observe(world, words, blind)
            if watch is not None:
                watch(seen)
            if slack is not None and row == min(executed, len(chunk)) - SLACK_STEPS:
                slack(seen)
        apply(world, chunk[row], 1 / control_hz)
        row += 1
        played.steps += 1
        played.outcome = judge.step()
    played.reason = world.collision if played.outcome == 'collision' else ''
    world.hold()
    return played


def play_expert(world: World, episode: Episode, pace: Pace = SLOW) -> EpisodeResult:
    """Run an episode with the expert, without images."""
    world.reset(episode.seed, episode.layout)
    judge, expert = Judge(world, episode.task), Expert(world, episode.task, pace)
    played = EpisodeResult('running', 0, 0)
    while played.outcome == 'running':
        apply(world, expert(), 1 / pace.control_hz)
        played.steps += 1
        played.queries += 1
        played.outcome = judge.step()
    played.reason = world.collision if played.outcome == 'collision' else ''
    return played
