"""Grippers behind actions, with action servers over real DDS."""

from __future__ import annotations

import time

import pytest
from executor_bench import START

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]


class Gripper:
    """An action server that keeps every goal; ``refuses`` and ``aborts`` so many of them first."""

    def __init__(self, bench, kind, name, refuses=0, aborts=0):
        from rclpy.action import ActionServer, GoalResponse

        self.goals = []
        self.refuses, self.aborts = refuses, aborts
        self._kind = kind
        self._answers = GoalResponse
        self.server = ActionServer(
            bench.node, kind, name, self._execute, goal_callback=self._asked
        )

    def _asked(self, goal):
        self.goals.append(goal)
        if len(self.goals) <= self.refuses:
            return self._answers.REJECT
        return self._answers.ACCEPT

    def _execute(self, handle):
        if len(self.goals) <= self.refuses + self.aborts:
            handle.abort()
        else:
            handle.succeed()
        return self._kind.Result()


def test_flexiv_motion_grasp_and_driver_state(bench):
    """Runs where flexiv_ros2 is sourced."""
    package = pytest.importorskip('flexiv_msgs.msg', reason='flexiv_ros2 is not installed here')
    actions = pytest.importorskip('flexiv_msgs.action')
    b = bench(
        command__adapter='cartesian_motion_force', command__topic='/controller/motion',
        stop_action='hold', gripper__adapter='flexiv', gripper__name='/hand', gripper__open=0.08,
        gripper__effort=15.0, driver__ready_topic='/status',
        driver__ready_type='flexiv_operational_status', watchdog__latched=['driver_not_ready'],
        limits__lead_translation=0.5,
    )  # fmt: skip
    sent = []
    b.listen(package.CartesianMotionForce, '/controller/motion', sent)
    move, grasp = Gripper(b, actions.Move, '/hand/move'), Gripper(b, actions.Grasp, '/hand/grasp')
    b.run(0.5)
    assert sent == [] and 'nothing on /status yet' in b.health()
    status = b.node.create_publisher(package.OperationalStatus, '/status', 1)
    ready = package.OperationalStatus(driver_state=1, operational=True)
    b.run(20.0, until=lambda: status.get_subscription_count() > 0)
    status.publish(ready)
    assert b.run(20.0, until=lambda: len(sent) > 50 and move.goals), b.health()
    xs = [m.pose.position.x for _, m in sent]
    assert xs[0] == pytest.approx(START[0], abs=0.002) and xs[-1] > xs[0]
    assert sent[-1][1].wrench.force.x == 0.0 and sent[-1][1].velocity.linear.x == 0.0
    assert move.goals[0].width == pytest.approx(0.08) and len(move.goals) == 1
    b.row[6] = 0.0
    assert b.run(20.0, until=lambda: bool(grasp.goals))
    assert grasp.goals[0].force == 15.0
    begin = time.monotonic()
    status.publish(package.OperationalStatus(driver_state=2, fault=True, message='collision'))
    b.run(0.5)
    assert b.stops() == 1 and 'collision' in b.health()
    assert sent[-1][0] - begin <= 0.3  # at rest
    assert sent[-1][1].pose.position.x > START[0]
    status.publish(ready)  # recovered by itself: still waits for a person
    count = len(sent)
    b.run(0.5)
    assert len(sent) == count
    b.enable(True)
    assert b.run(20.0, until=lambda: len(sent) > count + 10), b.health()


KINDS = {
    'gripper_command': 'GripperCommand',
    'parallel_gripper_command': 'ParallelGripperCommand',
}


@pytest.mark.parametrize('adapter', KINDS)
def test_standard_gripper_actions(bench, adapter):
    """Runs where control_msgs is installed."""
    actions = pytest.importorskip('control_msgs.action', reason='control_msgs is not installed')
    b = bench(
        gripper__adapter=adapter, gripper__name='/hand', gripper__open=0.0, gripper__closed=0.8,
        gripper__effort=20.0, gripper__joint='knuckle',
    )  # fmt: skip
    b.moving()  # no server yet: the arm moves all the same
    hand = Gripper(b, getattr(actions, KINDS[adapter]), '/hand')
    assert b.run(20.0, until=lambda: bool(hand.goals))
    b.row[6] = 0.0
    assert b.run(20.0, until=lambda: len(hand.goals) > 1)
    b.run(0.5)
    assert len(hand.goals) == 2  # on change only
    command = hand.goals[1].command
    if adapter == 'gripper_command':
        assert (command.position, command.max_effort) == (0.8, 20.0)
    else:
        assert list(command.name) == ['knuckle']
        assert list(command.position) == [0.8] and list(command.effort) == [20.0]
