"""Grippers behind actions, with action servers over real DDS.

``control_msgs`` is on every ROS host and nowhere else: where it is missing, its actions are built
from their definitions, which takes a while.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_bench import START

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]

PACKAGE = {
    'package.xml': """<package format="3">
  <name>control_msgs</name><version>5.0.0</version><description>two actions</description>
  <maintainer email="nobody@example.com">nobody</maintainer><license>BSD-3-Clause</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>action_msgs</depend><depend>sensor_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
""",
    'CMakeLists.txt': """cmake_minimum_required(VERSION 3.16)
project(control_msgs)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(sensor_msgs REQUIRED)
find_package(action_msgs REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME}
  msg/GripperCommand.msg action/GripperCommand.action action/ParallelGripperCommand.action
  DEPENDENCIES action_msgs sensor_msgs)
ament_package()
""",
    'msg/GripperCommand.msg': 'float64 position\nfloat64 max_effort\n',
    'action/GripperCommand.action': 'GripperCommand command\n'
    + 2 * '---\nfloat64 position\nfloat64 effort\nbool stalled\nbool reached_goal\n',
    'action/ParallelGripperCommand.action': 'sensor_msgs/JointState command\n---\n'
    'sensor_msgs/JointState state\nbool stalled\nbool reached_goal\n---\n'
    'sensor_msgs/JointState state\n',
}


class Gripper:
    """An action server that keeps every goal; ``refuses`` and ``aborts`` so many of them first."""

    def __init__(self, bench, kind, name, refuses=0, aborts=0):
        from rclpy.action import ActionServer, GoalResponse

        self.goals = []
        self.refuses, self.aborts = refuses, aborts
        self._kind = kind
        self._answers = GoalResponse
        self.server = ActionServer(
            bench.node, kind, name, self._execute, goal_callback=self._requested
        )
        bench.closing.append(self.server.destroy)

    def _requested(self, goal):
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


@pytest.mark.parametrize('adapter', KINDS)
def test_a_goal_that_is_refused_or_aborted_is_sent_again(bench, adapter):
    """The arm lifted with an open gripper. Runs where control_msgs is installed."""
    actions = pytest.importorskip('control_msgs.action', reason='control_msgs is not installed')
    b = bench(
        gripper__adapter=adapter, gripper__name='/hand', gripper__retries=3, gripper__retry_s=0.1,
        gripper__on_failure='stop',
    )  # fmt: skip
    hand = Gripper(b, getattr(actions, KINDS[adapter]), '/hand', refuses=1, aborts=1)
    b.moving()
    assert b.run(30.0, until=lambda: len(hand.goals) == 3), b.health()
    assert b.run(30.0, until=lambda: b.dut._gripper.state == 'done'), b.dut._gripper.trouble
    # More failures than it is tried: the profile says that the arm must not go on blindly.
    hand.refuses = 99
    b.row[6] = 0.0
    assert b.run(30.0, until=lambda: b.dut._gripper.state == 'failed'), b.health()
    assert b.run(30.0, until=lambda: 'gripper: goal refused, sent 4 of 4' in b.health())
    assert b.dut._last_stop['last stop'] == 'gripper'
    b.run(0.5, until=lambda: len(hand.goals) > 7)
    assert len(hand.goals) == 3 + 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_actions_of_control_msgs_where_it_is_not_installed(tmp_path):
    """Its actions are built from their definitions, and the tests above run with them."""
    try:
        import control_msgs  # noqa: F401

        pytest.skip('control_msgs is installed: the tests above ran')
    except ImportError:
        pass
    for name, text in PACKAGE.items():
        file = tmp_path / 'control_msgs' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    built = subprocess.run(
        ['colcon', '--log-base', 'log', 'build', '--base-paths', 'control_msgs', '--cmake-args']
        + ['-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    prefix = tmp_path / 'install' / 'control_msgs'
    (modules,) = prefix.glob('**/python3*/*-packages')
    environment = dict(os.environ)
    for name, folder in (
        ('AMENT_PREFIX_PATH', prefix),
        ('PYTHONPATH', modules),
        ('LD_LIBRARY_PATH', prefix / 'lib'),
    ):
        environment[name] = os.pathsep.join(filter(None, [str(folder), os.environ.get(name)]))
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__]
        + ['-k', 'standard_gripper or sent_again'],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and '4 passed' in done.stdout, done.stdout + done.stderr
