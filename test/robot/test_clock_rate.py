"""Chunks are executed by the clock; control periods are of real time, which may differ from it."""

from __future__ import annotations

import numpy as np
import pytest
from arm_profiles import ARM, HOME, NAMES, make_profile

from specprune_ros.robot import chunk as chunks
from specprune_ros.robot import geometry, profile
from specprune_ros.robot.chunk import Chunk
from specprune_ros.robot.clock_rate import ClockRate
from specprune_ros.robot.motion import ArmMotion

SECOND = 1_000_000_000
TICK = 10_000_000
DT = 0.01
WAY = 0.016  # m of the chunk, at 0.04 m per second of the clock


class Simulated:
    """An arm that is where it is commanded to, on a clock that runs at ``rate``."""

    def __init__(self, adapter: str, virtual: bool, simulated_clock: bool = True) -> None:
        self.jointed = adapter == profile.JOINT_TRAJECTORY
        arm = make_profile(adapter)
        self.motion = ArmMotion(arm, virtual=virtual, simulated_clock=simulated_clock)
        if self.jointed:
            self.motion.described(ARM)
        self.motion.begin()
        self.motion.enable(True)
        self.virtual, self.by_place = virtual, adapter != profile.TWIST
        self.now, self.real = 100 * SECOND, 7 * SECOND
        self.q, self.pose = HOME.copy(), ARM.tool_pose(NAMES, HOME)
        self.start = self.pose.position[0]
        self.speeds: list[np.ndarray] = []  # of commands, 0 where there was none

    def run(self, periods: int, rate: float) -> None:
        motion = self.motion
        for _ in range(periods):
            self.real += TICK
            self.now += round(TICK * rate)
            if self.jointed:
                motion.measured_joints(NAMES, self.q, self.now, self.now)
            else:
                motion.measured_pose(self.pose, self.now, self.now)
            command = motion.tick(self.now, self.real).command
            self.speeds.append(np.zeros(7 if self.jointed else 6))
            if command is None:
                continue
            self.speeds[-1][:] = command.velocities if self.jointed else command.twist.six
            if self.virtual:
                continue
            if self.jointed:
                self.q = np.array(command.positions)
            elif self.by_place:
                self.pose = command.pose
            else:
                self.pose = geometry.integrate(self.pose, command.twist, DT * rate)

    def chunk(self) -> None:
        rows = np.tile([WAY / 8, 0.0, 0.0, 0.0, 0.0, 0.0], (8, 1))
        chunk = Chunk(
            self.now, 'base_link', 1, 1, 0.05, 8, ('x', 'y', 'z', 'rx', 'ry', 'rz'),
            chunks.KIND_EE_DELTA, chunks.ROTATION_VECTOR, chunks.REFERENCE_PREVIOUS_STEP, rows,
        )  # fmt: skip
        self.motion.chunk(chunk, self.now)

    @property
    def moved(self) -> float:
        """Metres along x, of the arm or of the dry run."""
        pose = ARM.tool_pose(NAMES, self.q) if self.jointed else self.pose
        return (self.motion.virtual_pose or pose).position[0] - self.start


@pytest.mark.parametrize('rate', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('virtual', [False, True])
@pytest.mark.parametrize('adapter', profile.ADAPTERS)
def test_a_chunk_leads_as_far_however_fast_the_clock_runs(adapter, virtual, rate):
    world = Simulated(adapter, virtual)
    world.run(100, rate)
    world.chunk()
    world.run(150, rate)
    assert not world.motion.moving
    assert world.moved == pytest.approx(WAY, rel=0.03)
    if not world.jointed:
        fastest = max(np.linalg.norm(v[:3]) for v in world.speeds)
        assert fastest == pytest.approx(0.04 * (rate if world.by_place else 1.0), rel=0.03)


@pytest.mark.parametrize('adapter', profile.ADAPTERS)
def test_a_clock_that_changes_its_rate_or_stands_still_leads_to_no_jump(adapter):
    world = Simulated(adapter, virtual=False)
    world.run(50, 1.0)
    world.chunk()
    for periods, rate in ((10, 1.0), (10, 3.0), (5, 0.2), (150, 0.0)):
        world.run(periods, rate)
    assert not world.motion.moving  # it braked although time stood still
    assert 0.0 < world.moved < WAY
    changes = np.abs(np.diff(world.speeds, axis=0))
    most = 4.0 if world.jointed else 1.5  # rad/s^2, m/s^2
    assert (changes if world.jointed else changes[:, :3]).max() <= most * DT * (1.0 + 1e-6)


def test_a_real_clock_is_not_compared():
    """It may be set, which is no reason to hurry."""
    world = Simulated(profile.POSE, virtual=False, simulated_clock=False)
    world.run(100, 2.0)
    world.chunk()
    world.run(150, 2.0)
    assert max(v[0] for v in world.speeds) == pytest.approx(0.04)


def test_the_rate_of_a_clock_that_comes_in_steps_starts_late_and_jumps():
    clock, real, now = ClockRate(), 5 * SECOND, 0
    for _ in range(50):  # no /clock yet
        real += TICK
        clock.tick(now, real)
    seen = []
    now = 1000 * SECOND
    for i in range(300):
        real += TICK
        now += SECOND // 20 if i % 10 == 9 else 0  # 10 messages a second, at half the speed
        seen.append(clock.tick(now, real))
    assert seen[:15] == [1.0] * 15
    assert all(rate == pytest.approx(0.5, abs=0.06) for rate in seen[100:])
    for jump in (-100 * SECOND, 100 * SECOND):
        now, real = now + jump, real + TICK
        assert clock.tick(now, real) == 1.0
