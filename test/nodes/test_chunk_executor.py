"""The executor as a real node over real DDS: inputs published here, commands recorded."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from executor_bench import REST, ROOT, SECOND, START, Bench, write_profile

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]


def assert_one_stop(bench, begin, limit, zero=True):
    """Braking begins within 100 ms of the limit, ends with a zero twist, and nothing follows."""
    bench.rested(silent=0.3)
    after = [(t, m.twist.linear.x) for t, m in bench.commands if t > begin]
    assert bench.stops() == 1, bench.health()
    last_at, last = after[-1]
    assert last == 0.0
    assert last_at - begin <= limit + 0.1 + REST + bench.held_up(begin)
    assert bench.silent_for() > 0.3, 'commands went on'


def test_chunks_become_twists_at_control_rate_and_within_limits(bench):
    b = bench()
    b.moving()
    begin = time.monotonic()
    b.run(1.0)
    count = sum(t >= begin for t, _ in b.commands)
    assert 60 * (1.0 - b.held_up(begin)) <= count <= 115  # 100 Hz, if this machine lets us
    assert max(b.speeds(begin)) == pytest.approx(0.1, abs=0.01)  # 1 cm per 0.1 s
    assert b.commands[-1][1].header.frame_id == 'base_link'
    assert len(b.gripper) == 1 and b.gripper[0][1].data == 1.0  # on change only
    assert b.stops() == 0 or b.held_up(0.0) > 0.1


def test_absurd_speed_is_limited(bench):
    b = bench()
    b.row = [0.5, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]  # 5 m/s, 30 rad/s
    b.moving()
    for _, message in b.commands:
        linear, angular = message.twist.linear, message.twist.angular
        assert math.hypot(linear.x, linear.y, linear.z) <= 0.4
        assert math.hypot(angular.x, angular.y, angular.z) <= 1.5
    steps = np.diff(b.speeds())
    assert np.abs(steps).max() <= 4.0 * 0.01 * 1.01 or b.stops()


def test_the_workspace_is_kept(bench):
    b = bench()
    b.position[0] = 0.815  # 5 mm from the wall
    b.row = [0.03, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0]
    b.moving()
    # Slow enough to brake, not at the 0.3 m/s requested; along the wall it goes on.
    assert max(b.speeds()) < 0.1
    assert max(m.twist.linear.y for _, m in b.commands) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ('lost', 'limit'), [('pose', 0.25), ('chunks', 0.8 + 0.1)], ids=['pose', 'chunks']
)
def test_silence_stops_the_arm_once_and_it_recovers(bench, lost, limit):
    b = bench()
    b.moving()
    begin = time.monotonic()
    b.alive.discard(lost)
    assert_one_stop(b, begin, limit)
    b.alive.add(lost)
    before = len(b.commands)
    assert b.run(20.0, until=lambda: len(b.commands) > before + 10), b.health()


def test_stale_observations_stop_the_arm(bench):
    b = bench(watchdog__observation_age=0.5)
    b.moving()
    begin = time.monotonic()
    b.observed_ago = 0.6  # the policy answers from an old image
    assert_one_stop(b, begin, 0.5)
    assert 'stale_observation' in b.health() or 'no chunk yet' in b.health()


def test_an_image_stamped_an_hour_ago_never_moves_the_arm(bench):
    b = bench()
    b.observed_ago = 3600.0
    assert b.run(20.0, until=lambda: b.dut._counts['chunks'] >= 3)
    b.run(0.1)
    assert b.commands == []


BAD_CHUNKS = (
    ({'data': [math.nan] * 56}, 'data is not finite'),
    ({'kind': 7}, 'kind is 7'),
    ({'rotation': 9}, 'rotation is 9'),
    ({'gripper_sense': 5}, 'gripper_sense is 5'),
    ({'data': [0.0] * 3}, 'data has 3 values'),
    ({'horizon': 4_000_000_000}, 'horizon is 4000000000'),
)


def test_a_chunk_that_cannot_be_read_stops_the_arm_until_a_good_one_comes(bench):
    b = bench()
    b.moving()
    for count, (fields, reason) in enumerate(BAD_CHUNKS, start=1):
        b.alive.discard('chunks')
        begin = time.monotonic()
        b.publish_chunk(**fields)
        assert b.run(20.0, until=lambda: b.stops() and b.speeds()[-1] == 0.0)
        assert b.stops() == count and reason in b.health()
        assert b.commands[-1][0] - begin <= 0.1 + REST + b.held_up(begin)
        b.alive.add('chunks')
        before = len(b.commands)
        assert b.run(20.0, until=lambda n=before: len(b.commands) > n + 10)


def test_duplicates_are_dropped_without_a_stop(bench):
    from rclpy.time import Time

    b = bench()
    b.moving()
    stamp = Time(nanoseconds=b.now_ns() - SECOND).to_msg()
    header = type(b.commands[0][1].header)(stamp=stamp, frame_id='base_link')
    before = b.dut._counts['late']
    begin = time.monotonic()
    for _ in range(5):
        b.publish_chunk(header=header)
    assert b.run(20.0, until=lambda: b.dut._counts['late'] == before + 5)
    b.run(0.1)
    assert b.stops() == 0 or b.held_up(begin) > 0.1


def test_disable_stops_and_enable_waits_for_a_new_chunk(bench):
    b = bench()
    b.moving()
    begin = time.monotonic()
    assert b.enable(False).success
    assert_one_stop(b, begin, 0.2)  # the service's own time
    count = len(b.commands)
    assert b.enable(True).success
    assert b.run(20.0, until=lambda: len(b.commands) > count + 10)


def test_enable_moves_no_gripper_before_a_chunk_requests_it(bench):
    """What was requested before a person took over was sent anew, about a hand perhaps."""
    from std_msgs.msg import Float64

    b = bench(gripper__adapter='float64', gripper__name='/hand')
    sent = []
    b.listen(Float64, '/hand', sent)
    b.row[6] = 0.0
    assert b.run(20.0, until=lambda: bool(sent) and len(b.commands) > 5)
    b.alive.discard('chunks')
    assert b.enable(False).success
    b.run(0.3)
    before = len(sent)
    assert b.enable(True).success
    b.run(0.5)
    assert len(sent) == before
    b.alive.add('chunks')
    assert b.run(20.0, until=lambda: len(sent) > before)


@pytest.mark.parametrize('how', ['held', 'driver'])
def test_what_the_gripper_was_to_do_before_a_pause_is_not_done_after_it(bench, how):
    """A goal that its server refused, or that waited for one, was sent in the first period."""
    from std_msgs.msg import Bool, Float64
    from std_srvs.srv import SetBool

    driver = {'driver__ready_topic': '/ready', 'driver__ready_type': 'bool'}
    b = bench(gripper__adapter='float64', gripper__name='/hand', **driver)
    ready = b.node.create_publisher(Bool, '/ready', 1)
    assert b.run(20.0, until=lambda: ready.get_subscription_count() > 0)
    sent = []
    b.listen(Float64, '/hand', sent)

    def pause(value):
        if how == 'held':
            assert b.call(SetBool, 'hold', data=value).success
            return
        ready.publish(Bool(data=not value))
        assert b.run(20.0, until=lambda: ('/ready says' in b.health()) == value)

    b.dut._gripper._port.ready = lambda: False
    ready.publish(Bool(data=True))
    b.moving()
    assert b.dut._gripper.state == 'waiting for the server'
    b.alive.discard('chunks')
    pause(True)
    assert b.run(20.0, until=lambda: not b.dut._motion.moving and b.stops())
    b.dut._gripper._port.ready = lambda: True
    pause(False)
    b.run(0.5)
    assert not sent
    b.alive.add('chunks')
    assert b.run(20.0, until=lambda: bool(sent))


def test_a_latched_stop_waits_for_a_person(bench):
    b = bench(watchdog__latched=['stale_state'])
    b.moving()
    b.alive.discard('pose')
    assert b.rested()
    b.alive.add('pose')
    count, chunks = len(b.commands), b.dut._counts['ignored while stopped']
    assert b.run(20.0, until=lambda: b.dut._counts['ignored while stopped'] > chunks + 1)
    assert len(b.commands) == count and 'until ~/enable' in b.health()
    b.enable(True)
    assert b.run(20.0, until=lambda: len(b.commands) > count + 10)


def test_topics_that_the_arm_does_not_have_are_not_subscribed(bench):
    """A subscription to nothing made activation fail."""
    b = bench(
        observation__ee_pose=..., observation__joint_states=..., observation__robot_description='',
        observation__speed_source='action', tool_link=..., limits__workspace=...,
    )  # fmt: skip
    b.alive.discard('pose')
    b.moving()


def test_a_description_that_nobody_publishes_is_not_waited_for(bench):
    b = bench(
        command__adapter='joint_trajectory', command__topic='/arm/joint_trajectory',
        stop_action='hold', observation__robot_description='',
        limits__joints={f'joint{i}': {'acceleration': 20.0} for i in range(1, 8)},
    )  # fmt: skip
    assert b.dut._timer is not None, b.health()  # active


def test_hardware_profiles_begin_disabled(bench):
    b = bench(enabled_at_start=False)
    assert b.run(20.0, until=lambda: b.dut._counts['ignored while stopped'] > 1)
    assert b.commands == [] and b.health() == 'disabled'
    b.enable(True)
    b.moving()


def test_nothing_but_a_person_starts_hardware(bench):
    """Enabled, deactivated, activated: it moved 0.2 s later; enabling was kept while inactive."""
    b = bench(enabled_at_start=False)
    assert b.enable(True).success
    b.moving()
    b.dut.trigger_deactivate()
    b.run(0.3)
    refused = b.enable(True)
    assert not refused.success and 'not active' in refused.message
    b.dut.trigger_activate()
    count, chunks = len(b.commands), b.dut._counts['ignored while stopped']
    assert b.run(20.0, until=lambda: b.dut._counts['ignored while stopped'] > chunks + 2)
    assert len(b.commands) == count and b.health() == 'disabled'
    assert b.enable(True).success
    assert b.run(20.0, until=lambda: len(b.commands) > count + 10)


def test_a_person_pauses_it_in_place(bench):
    from std_srvs.srv import SetBool

    b = bench()
    b.moving()
    begin = time.monotonic()
    assert b.call(SetBool, 'hold', data=True).success
    assert_one_stop(b, begin, 0.3)
    assert b.health() == 'held' and b.dut._last_stop['last stop'] == 'held'
    count = len(b.commands)
    assert b.call(SetBool, 'hold', data=False).success
    assert b.run(20.0, until=lambda: len(b.commands) > count + 10)


def test_an_impossible_pose_stops_it_in_place_and_is_said(bench):
    b = bench()
    b.moving()
    at, b.position = b.position, [0.0, 0.0, 0.0]
    b.run(20.0, until=lambda: b.stops())
    b.position = at
    b.run(0.3)
    assert b.dut._last_stop['last stop'] == 'implausible_state'
    assert 'tool pose jumps by' in b.dut._last_stop['last stop detail']
    speeds = np.array(b.speeds())
    assert np.abs(np.diff(speeds)).max() <= 4.0 * 0.01 * (1 + 1e-6)


def test_stops_that_come_again_and_again_are_counted_not_logged(bench, capfd):
    """156 lines a minute on a slow machine."""
    b = bench(watchdog__dry_queue=0.05)
    b.moving()
    b.alive.discard('chunks')
    assert b.rested()
    for _ in range(5):
        stops = b.stops()
        b.publish_chunk(rows=[b.row])  # 0.1 s of motion
        assert b.rested(stops, silent=0.05)
    log = capfd.readouterr().err
    assert log.count('stop: dry_queue') <= 2 and log.count('moving') <= 2
    assert log.count('the policy is too slow for its chunks: each holds 0.10 s of motion') == 1


@pytest.mark.parametrize(('reported_by', 'stops'), [('left', True), ('right', False)])
@pytest.mark.real_time
def test_two_arms_in_two_namespaces_heed_their_own_policies(ros, tmp_path, reported_by, stops):
    """The executor in a namespace ignored its own policy's errors and obeyed another's."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

    b = Bench(ros, write_profile(tmp_path), namespace='/left')
    try:
        publisher = b.node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        b.moving()
        status = DiagnosticStatus(
            name=f'{reported_by}/specprune_node: inference', level=DiagnosticStatus.ERROR
        )
        begin = time.monotonic()
        for _ in range(5 if not stops else 50):
            publisher.publish(DiagnosticArray(status=[status]))
            if b.run(0.2, until=lambda: b.stops() and stops):
                break
        assert (b.stops() > 0) == stops or b.held_up(begin) > 0.1, b.health()
    finally:
        b.close()


def test_reset_drops_the_motion(bench):
    from std_srvs.srv import Trigger

    b = bench()
    b.moving()
    b.alive.discard('chunks')
    assert b.call(Trigger, 'reset').success
    assert_one_stop(b, time.monotonic() - 0.3, 0.3)


def test_dry_run_sends_nothing_and_shows_everything(bench):
    """Beside an arm that stands still, and for longer than it could be ahead of it."""
    from geometry_msgs.msg import PoseStamped, TwistStamped
    from nav_msgs.msg import Path
    from std_msgs.msg import Float64

    patient = {f'watchdog__{age}': 20.0 for age in ('state_age', 'observation_age', 'chunk_age')}
    b = bench({'dry_run': True}, command__rate=20.0, limits__lead_translation=0.02, **patient)
    shown, gripped, poses, paths, real = [], [], [], [], []
    b.listen(TwistStamped, '/chunk_executor/dry_run/command', shown)
    b.listen(Float64, '/chunk_executor/dry_run/gripper', gripped)
    b.listen(PoseStamped, '/chunk_executor/dry_run/pose', poses)
    b.listen(Path, '/chunk_executor/dry_run/path', paths)
    b.listen(PoseStamped, '/sim_arm/cmd_pose', real)
    assert b.run(40.0, until=lambda: poses and poses[-1][1].pose.position.x > START[0] + 0.06)
    assert not b.commands and not b.gripper and not real
    assert not b.dut._counts['stops for safety']  # not_following; a busy machine may be late
    assert max(m.twist.linear.x for _, m in shown) == pytest.approx(0.1, abs=0.01)
    assert gripped[-1][1].data == 1.0
    assert b.run(5.0, until=lambda: paths and len(paths[-1][1].poses) > 5)
    along = [pose.pose.position.x for pose in paths[-1][1].poses]
    assert along == sorted(along) and START[0] - 0.001 < along[0] < along[-1]
    value = b.dut._dry_view.values()['dry run: the arm would be']
    assert re.match(r'0\.[0-3]\d+ m and 0\.000 rad from where it is \(x \+0\.[0-3]', value), value
    assert b.run(20.0, until=lambda: b.health() == 'moving (dry run)')


def test_an_error_of_the_policy_stops_the_arm(bench):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

    b = bench()
    publisher = b.node.create_publisher(DiagnosticArray, '/diagnostics', 10)
    b.moving()
    b.alive.discard('chunks')
    begin = time.monotonic()
    status = DiagnosticStatus(
        level=DiagnosticStatus.ERROR, name='specprune_node: inference', message='no chunk: x'
    )
    publisher.publish(DiagnosticArray(status=[status]))
    assert_one_stop(b, begin, 0.0)
    assert 'no chunk: x' in b.health()


def test_every_thread_of_the_executor_asks_for_real_time_and_it_says_what_it_got():
    # In a process of its own: what a thread is given, those it makes later inherit.
    code = (
        'import os, threading\n'
        'from specprune_ros.nodes.common.realtime import request_priority\n'
        'wait = threading.Event()\n'
        'other = threading.Thread(target=wait.wait)\n'
        'other.start()\n'
        'both = (0, other.native_id)\n'
        'print(request_priority(0), [os.sched_getscheduler(t) for t in both], sep="|")\n'
        'print(request_priority(1000), [os.sched_getscheduler(t) for t in both], sep="|")\n'
        'print(request_priority(5), [os.sched_getscheduler(t) for t in both], sep="|")\n'
        'wait.set()\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = [line.split('|') for line in done.stdout.splitlines()]
    usual, real = str([os.SCHED_OTHER] * 2), str([os.SCHED_FIFO] * 2)
    assert said[0] == ['usual priority', usual]
    assert 'no real-time priority' in said[1][0] and said[1][1] == usual
    if 'no real-time priority' in said[2][0]:
        assert said[2][1] == usual
    else:
        assert said[2] == ['real-time priority 5', real]


def test_a_second_commander_is_reported(bench):
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import TwistStamped

    b = bench()
    received = []
    b.listen(DiagnosticArray, '/diagnostics', received)
    b.moving()

    def said():
        return [m.status[0].message for _, m in received if 'publishers' in m.status[0].message]

    assert not said()
    other = b.node.create_publisher(TwistStamped, '/sim_arm/cmd_twist', 1)
    assert b.run(20.0, until=said)
    assert '2 publishers on /sim_arm/cmd_twist: /bench, /chunk_executor' in said()[-1]
    b.node.destroy_publisher(other)


def test_a_pose_in_another_frame_does_not_count(bench):
    b = bench()
    b.frame = 'world'
    assert b.run(20.0, until=lambda: b.dut._counts['chunks'] > 2)
    assert b.commands == [] and 'no tool pose yet' in b.health()


def test_poses_follow_the_twist_and_come_to_rest_on_a_stop(bench):
    from geometry_msgs.msg import PoseStamped

    b = bench(
        command__adapter='pose', command__topic='/sim_arm/cmd_pose', stop_action='hold',
        limits__lead_translation=0.5,
    )  # fmt: skip
    poses = []
    b.listen(PoseStamped, '/sim_arm/cmd_pose', poses)
    assert b.run(20.0, until=lambda: len(poses) > 50), b.health()
    xs = [m.pose.position.x for _, m in poses]
    assert xs[0] == pytest.approx(START[0], abs=0.002)
    assert np.all(np.diff(xs) >= -1e-12) and np.diff(xs).max() <= 0.4 * 0.01
    begin = time.monotonic()
    b.alive.discard('pose')
    b.rested()
    assert b.stops() == 1
    at = np.array([t for t, _ in poses])
    xs = np.array([m.pose.position.x for _, m in poses])
    speeds = np.diff(xs) / 0.01
    slowing = at[1:][speeds < 0.99 * speeds[at[1:] < begin][-1]]
    # It brakes, on from where it was sent to.
    assert slowing[slowing > begin][0] - begin <= 0.35 + b.held_up(begin)
    assert speeds.min() >= 0.0 and speeds[-1] == pytest.approx(0.0, abs=0.03)
    assert np.abs(np.diff(speeds)).max() / 0.01 <= 4.0 * (1.0 + 1e-6)


def test_tool_motion_becomes_joint_motion_with_times_and_velocities(bench):
    from trajectory_msgs.msg import JointTrajectory

    from specprune_ros.robot.speed import MAX_JOINTS, JointSpeed
    from specprune_ros.sim.arm import rizon4
    from specprune_ros.sim.arm.urdf import urdf

    names = [joint.name for joint in rizon4.JOINTS]
    limits = {
        j.name: {'lower': j.lower, 'upper': j.upper, 'velocity': 1.0, 'acceleration': 20.0}
        for j in rizon4.JOINTS
    }
    b = bench(
        command__adapter='joint_trajectory', command__topic='/arm/joint_trajectory',
        stop_action='hold', limits__joints=limits, observation__ee_pose=...,
        limits__workspace=...,
    )  # fmt: skip
    b.alive.discard('pose')
    b.describe(urdf())
    sent = []
    b.listen(JointTrajectory, '/arm/joint_trajectory', sent)
    home = list(rizon4.HOME)

    def feed():
        b.publish_joints([*names[::-1], 'lamp'], [*home[::-1], 0.0])
        return len(sent) > 50

    assert b.run(20.0, until=feed), b.health()
    message = sent[-1][1]
    assert list(message.joint_names) == names
    first, rest = message.points
    assert first.time_from_start.nanosec == 50_000_000 and len(first.velocities) == 7
    assert list(rest.velocities) == [0.0] * 7 and rest.time_from_start.nanosec > 100_000_000
    arm = JointSpeed(urdf(), 'tcp')
    tool = arm.jacobian(names, home) @ np.array(sent[40][1].points[0].velocities)
    assert tool[0] == pytest.approx(0.1, abs=0.01) and np.abs(tool[1:3]).max() < 0.01
    # More joints than are read count as silence: it comes to rest.
    end = time.monotonic() + 20.0
    crowd = [f'lamp{i}' for i in range(MAX_JOINTS)]
    while time.monotonic() < end and not (b.stops() and not b.dut._motion.moving):
        b.publish_joints([*names, *crowd], [*home, *([0.0] * len(crowd))])
        b.run(0.02)
    assert b.stops() == 1
    assert (
        f'{MAX_JOINTS + 7} names; at most {MAX_JOINTS}' in b.dut._throttle._last['joint states'][0]
    )
    assert b.run(20.0, until=lambda: len(sent[-1][1].points) == 1)  # the last one has arrived
    hold = sent[-1][1].points
    # It holds where the motion has come to, which is within the limits of the command before.
    before = np.array(sent[-2][1].points[0].positions)
    assert len(hold) == 1 and np.abs(np.array(hold[0].positions) - before).max() < 0.02


@pytest.mark.parametrize('tool', [True, False], ids=['tool_link', 'no tool_link'])
def test_joint_limits_are_the_tighter_of_profile_and_description(bench, tool):
    from trajectory_msgs.msg import JointTrajectory

    from specprune_ros.sim.arm import rizon4
    from specprune_ros.sim.arm.urdf import urdf

    names = [joint.name for joint in rizon4.JOINTS]
    wide = {'lower': -9.0, 'upper': 9.0, 'velocity': 9.0, 'acceleration': 20.0}
    # Joints have limits also where nobody knows which link is the tool.
    without = {} if tool else {'tool_link': ..., 'observation__speed_source': 'action'}
    b = bench(
        command__adapter='joint_trajectory', command__topic='/arm/joint_trajectory',
        stop_action='hold', limits__joints={name: wide for name in names},
        observation__ee_pose=..., limits__workspace=..., **without,
    )  # fmt: skip
    b.alive.clear()
    b.describe(urdf())
    sent = []
    b.listen(JointTrajectory, '/arm/joint_trajectory', sent)
    home = list(rizon4.HOME)
    end = rizon4.JOINTS[0].upper
    home[0] = end - 0.02  # just before the end the description gives the first joint
    rows = np.zeros((8, 8))
    rows[:, 0], rows[:, 7] = 0.05, 1.0

    read = b.run(20.0, until=lambda: b.dut._motion.joint_limits[names[0]].upper == end)
    assert read, b.dut._throttle._last
    for _ in range(400):
        b.publish_joints(names, home)
        b.run(0.05)
        b.publish_chunk(rows, kind=3, rotation=0, dims=[*names, 'gripper'], gripper_dim=7)
        if len(sent) > 40:
            break
    assert len(sent) > 40, b.health()
    assert max(m.points[0].positions[0] for _, m in sent) <= end + 1e-9
    assert max(m.points[0].positions[0] for _, m in sent) > home[0]
    assert (b.dut._motion.kinematics is not None) == tool


@pytest.mark.parametrize('when', ['comes', 'was read'])
def test_a_description_that_comes_while_the_arm_moves_counts_once_it_rests(
    bench, monkeypatch, when
):
    """A latched one says itself once: its limits never came into force."""
    import threading

    from specprune_ros.nodes.common import description
    from specprune_ros.sim.arm import rizon4
    from specprune_ros.sim.arm.urdf import urdf

    read, real, tried = threading.Event(), description.try_out, []

    def try_out(*words):
        tried.append(words)
        assert read.wait(60.0)
        real(*words)

    monkeypatch.setattr(description, 'try_out', try_out)
    names, home = [joint.name for joint in rizon4.JOINTS], list(rizon4.HOME)
    wide = {'lower': -9.0, 'upper': 9.0, 'velocity': 9.0, 'acceleration': 20.0}
    b = bench(
        command__adapter='joint_trajectory', command__topic='/arm/joint_trajectory',
        stop_action='hold', limits__joints={name: wide for name in names},
        limits__workspace=..., watchdog__state_age=5.0, watchdog__dry_queue=5.0,
    )  # fmt: skip
    b.alive.discard('chunks')
    motion = b.dut._motion
    rows = np.zeros((8, 8))
    rows[:, 0] = 0.001
    moves = [True]

    def feed(until):
        def fed():
            b.publish_joints(names, home)
            if moves[0]:
                fields = {'kind': 3, 'rotation': 0, 'dims': [*names, 'gripper'], 'gripper_dim': 7}
                b.publish_chunk(rows, **fields)
            b.run(0.02)
            return until()

        return b.run(30.0, until=fed)

    if when == 'was read':
        b.describe(urdf())
        assert b.run(20.0, until=lambda: bool(tried))
    assert feed(lambda: motion.moving), b.health()
    if when == 'comes':
        b.describe(urdf())
    read.set()
    said = b.dut._throttle._last
    assert feed(lambda: 'while the arm moves' in said.get('robot_description', [''])[0])
    assert motion.moving and motion.kinematics is None
    moves[0] = False
    assert b.enable(False).success
    assert feed(lambda: motion.kinematics is not None), b.health()
    assert motion.joint_limits[names[0]].upper == rizon4.JOINTS[0].upper
    assert len(tried) == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'command__adapter': 'servo'},
            "command.adapter: is \"servo\"; it should be 'twist', 'pose'",
        ),
        (
            {'command__adapter': 'cartesian_motion_force', 'stop_action': 'hold'},
            "needs flexiv_msgs/msg/CartesianMotionForce, but 'flexiv_msgs' is not installed",
        ),
        (
            {'gripper__adapter': 'gripper_command'},
            "needs control_msgs/action/GripperCommand, but 'control_msgs' is not installed",
        ),
        (
            {
                'driver__ready_type': 'flexiv_operational_status',
                'driver__ready_topic': '/arm/status',
            },
            "needs flexiv_msgs/msg/OperationalStatus, but 'flexiv_msgs' is not installed",
        ),
    ],
)
def test_what_cannot_be_configured_says_why_and_leaves_a_node(bench, changes, message):
    package = message.split("'")[-2]
    if 'installed' in message:
        try:
            __import__(package)
            pytest.skip(f'{package} is installed here')
        except ImportError:
            pass
    b = bench(**changes)
    assert message in b.health()
    b.run(0.1)
    assert b.commands == []
    assert not list(b.dut.subscriptions)


def test_simulated_time_and_a_clock_that_stalls_or_goes_back(bench):
    from rclpy.parameter import Parameter
    from rclpy.time import Time
    from rosgraph_msgs.msg import Clock

    b = bench({'use_sim_time': True})
    b.node.set_parameters([Parameter('use_sim_time', value=True)])
    clock = b.node.create_publisher(Clock, '/clock', 10)
    offset = [100.0 - time.monotonic()]

    def go_on():
        clock.publish(
            Clock(clock=Time(nanoseconds=round((time.monotonic() + offset[0]) * 1e9)).to_msg())
        )
        return len(b.commands) > 60

    b.alive.discard('chunks')
    assert b.run(20.0, until=lambda: 'no time yet' in b.health())
    assert b.commands == []
    b.run(0.3, until=lambda: go_on() and False)
    b.alive.add('chunks')
    assert b.run(20.0, until=go_on), b.health()
    assert_one_stop(b, time.monotonic(), 0.5)  # no /clock: no age grows, and still it must stop
    assert 'stood still' in b.health()
    count = len(b.commands)
    assert b.run(20.0, until=lambda: go_on() and len(b.commands) > count + 30), b.health()
    offset[0] -= 50.0  # a bag that begins again
    b.sequence = 1
    count = len(b.commands)
    assert b.run(20.0, until=lambda: go_on() and b.stops() == 2), b.health()
    assert b.run(20.0, until=lambda: go_on() and len(b.commands) > count + 30), b.health()


def test_lifecycle_ten_times(bench):
    b = bench()
    for _ in range(10):
        count = len(b.commands)
        assert b.run(20.0, until=lambda c=count: len(b.commands) > c + 2), b.health()
        b.dut.trigger_deactivate()
        # Deactivating stops the arm.
        assert b.run(20.0, until=lambda: b.commands[-1][1].twist.linear.x == 0.0)
        b.dut.trigger_cleanup()
        b.dut.trigger_configure()
        b.dut.trigger_activate()


@pytest.mark.real_time
def test_as_a_process_at_100_hz_and_sigint_stops_the_arm(ros, tmp_path):
    """Timing, diagnostics and shutdown of the real process."""
    from diagnostic_msgs.msg import DiagnosticArray

    b = Bench(ros, write_profile(tmp_path))
    b.dut.stop()  # this test's executor is another process
    b.executor.remove_node(b.dut)
    log = tmp_path / 'log.txt'
    with log.open('w') as out:
        process = subprocess.Popen(
            [sys.executable, '-m', 'specprune_ros.nodes.executor_node.node', '--ros-args',
             '-p', 'profile:=sim_arm', '-r', '__node:=chunk_executor'],
            stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    try:
        reports = []
        b.listen(DiagnosticArray, '/diagnostics', reports)
        # What came while the process was starting is not judged.
        assert b.run(60.0, until=lambda: len(b.commands) > 150 and reports), log.read_text()
        at = np.array([t for t, _ in b.commands[50:]])
        assert np.median(np.diff(at)) == pytest.approx(0.01, abs=0.002)
        values = {
            pair.key: pair.value
            for _, array in reports
            for status in array.status
            for pair in status.values
            if status.hardware_id == 'sim_arm'
        }
        assert float(values['period p50 (ms)']) == pytest.approx(10.0, abs=1.0)
        process.send_signal(signal.SIGINT)
        b.run(20.0, until=lambda: process.poll() is not None)
        assert process.wait(10) == 0
        b.run(0.2)
        assert b.commands[-1][1].twist.linear.x == 0.0
        text = log.read_text()
        assert 'Traceback' not in text and 'stop: ended' in text
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        b.close()


def test_a_driver_that_latches_nothing_is_received(bench):
    """As ``ros2 topic pub`` publishes."""
    from std_msgs.msg import Bool

    b = bench(driver__ready_topic='/ready', driver__ready_type='bool')
    assert b.run(20.0, until=lambda: 'nothing on /ready yet' in b.health())
    assert not b.commands
    ready = b.node.create_publisher(Bool, '/ready', 1)
    assert b.run(20.0, until=lambda: ready.get_subscription_count() > 0)
    ready.publish(Bool(data=True))
    b.moving()
