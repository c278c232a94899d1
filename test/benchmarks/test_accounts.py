"""The accounts the fault suite and the period benchmark judge by."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

SECOND = 1_000_000_000
PERIOD = 10_000_000  # ns


@pytest.fixture
def axis():
    """An account with one chunk of 8 steps of 50 ms, observed at time 1 s."""
    from builtin_interfaces.msg import Duration, Time
    from fault_rig import Axis
    from specprune_ros.msg import ActionChunk

    from specprune_ros.robot import chunk as chunks

    made = Axis(chunks.ChunkRules(('base',), (), (chunks.KIND_EE_DELTA,)), sim_time=False)
    message = ActionChunk(
        sequence=1,
        step_dt=Duration(nanosec=50_000_000),
        horizon=8,
        dims=['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'],
        kind=ActionChunk.KIND_EE_DELTA,
        rotation=ActionChunk.ROTATION_VECTOR,
        reference=ActionChunk.REFERENCE_PREVIOUS_STEP,
        data=[0.0] * 56,
        gripper_dim=6,
    )
    message.header.stamp, message.header.frame_id = Time(sec=1), 'base'
    made.chunk(message)
    return made


def send(axis, milliseconds, written_late=0):
    from fault_rig import Sent

    decided = SECOND + milliseconds * 1_000_000
    at = decided + written_late * 1_000_000
    return axis.command(Sent(at, decided, (0.1, 0.0, 0.0), (0.0, 0.0, 0.0)))


def test_the_queue_runs_dry_when_its_last_row_was_executed(axis):
    assert all(send(axis, t) is None for t in range(10, 410, 10))
    assert [send(axis, t) for t in (415, 425)] == pytest.approx([0.005, 0.015], abs=1e-6)


def test_a_command_written_late_is_late(axis):
    for t in range(10, 420, 10):
        send(axis, t)
    assert send(axis, 420, written_late=300) == pytest.approx(0.31, abs=1e-6)


def test_an_executor_that_was_held_up_still_has_what_it_did_not_execute(axis):
    assert all(send(axis, t) is None for t in range(10, 110, 10))
    # 300 ms in which one step of 50 ms counts as executed: 250 ms are left.
    assert all(send(axis, t) is None for t in range(400, 660, 10))
    assert send(axis, 670) == pytest.approx(0.01, abs=1e-6)


def test_waiting_for_a_core_is_counted_by_name_and_process():
    from core_waits import Waits, run_delay

    me = os.getpid()
    assert run_delay(me, me) >= 0
    assert run_delay(2**22 + 1, 1) is None
    waits = Waits(lambda: {'me': (me, me)})
    waits.close()
    waits._rows.clear()
    for at, row in (
        (1, {'a': (7, 100), 'b': (8, 0)}),
        (2, {'a': (7, 300)}),
        (3, {'a': (9, 50)}),  # another process by that name: what it waited before is not known
        (4, {'a': (9, 90)}),
    ):
        waits._rows.append((at, row))
    assert waits.between('a', 2, 4) * SECOND == pytest.approx(240)
    assert waits.between('a', 3, 4) * SECOND == pytest.approx(40)
    assert waits.between('b', 1, 4) == 0.0


def test_a_pause_after_the_stop_action_is_no_period():
    from period import intervals

    commands = [(0, False), (10, False), (20, True), (500, False), (560, False)]
    found = intervals([(at * 1_000_000, rest) for at, rest in commands])
    assert found == pytest.approx([0.01, 0.01, 0.06])
