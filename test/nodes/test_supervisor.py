"""Whatever ends or halts the executor's process, the arm stops: real processes, real DDS."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from attacks import ADAPTERS, ENDS, JOINTS, SECOND, Rig, end_executor
from hypothesis import given
from hypothesis import strategies as st
from ros_processes import new_domain

from specprune_ros.nodes.executor_node import supervisor as supervisors
from specprune_ros.nodes.executor_node.supervisor import (
    ALIVE,
    READY,
    RESTED,
    STOPPING,
    TAKE_OVER,
    Guard,
    StopSender,
    decode,
    enclave,
    encode,
)
from specprune_ros.robot.stop_motion import MotionState

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
LIMIT = 0.2  # s, the supervisor's by default
MOST = {'m': 0.05, 'rad': 0.05}  # 0.1 m/s for 0.3 s, and braking


def check_end(adapter, how, folder):
    found = end_executor(adapter, how, folder, new_domain(), watch_s=1.5)
    assert 'error' not in found, found
    silent = LIMIT if how in ('stop', 'blocked') else 0.0
    assert found['first_stop_command_s'] <= silent + 0.1, found
    assert found['at_rest_s'] is not None and found['at_rest_s'] <= silent + 0.4, found
    assert found['moved'] <= MOST[found['unit']], found


@pytest.mark.parametrize(
    ('adapter', 'how'),
    [('twist', 'kill'), pytest.param('joint_trajectory', 'stop', marks=pytest.mark.slow)],
)
@pytest.mark.real_time
def test_an_ended_or_halted_executor_leaves_an_arm_at_rest(adapter, how, tmp_path):
    check_end(adapter, how, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('how', ENDS)
@pytest.mark.parametrize('adapter', ADAPTERS)
@pytest.mark.real_time
def test_every_end_of_the_executor_with_every_adapter(adapter, how, tmp_path):
    check_end(adapter, how, tmp_path)


@pytest.fixture
def rig(request, tmp_path):
    """An executor in motion."""
    rig = Rig(request.param, tmp_path, new_domain())
    try:
        assert rig.moving(), rig.log.read_text()
        yield rig
    finally:
        rig.close()


def wait(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def supervisor_of(process):
    """Process id of the living supervisor."""
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                with open(f'/proc/{entry}/stat') as file:
                    state, parent = file.read().rsplit(')', 1)[1].split()[:2]
            except (OSError, ValueError):
                continue
            if int(parent) == process.pid and state != 'Z':
                return int(entry)
    return None


@pytest.mark.parametrize('rig', ['twist'], indirect=True)
def test_an_executor_that_comes_back_or_loses_its_supervisor_goes_on_from_rest(rig):
    limits = 4.0 * 0.01 * 1.2  # m/s^2 times a period, and its jitter
    rig.process.send_signal(signal.SIGSTOP)
    time.sleep(0.8)
    rig.process.send_signal(signal.SIGCONT)
    assert rig.moving(), rig.log.read_text()
    assert 'the executor' in rig.log.read_text()  # the supervisor said what it did
    begin = time.time_ns()
    first = supervisor_of(rig.process)
    os.kill(first, signal.SIGKILL)
    # Without anybody who could stop the arm it stands still, until there is somebody again.
    assert wait(lambda: any('supervisor' in text for text in rig.health[-2:])), rig.health[-3:]
    assert wait(lambda: supervisor_of(rig.process) not in (None, first)), rig.log.read_text()
    assert rig.moving(), rig.log.read_text()
    speeds = [m.twist.linear.y for at, m in rig.commands if at > begin]
    assert np.abs(np.diff(speeds)).max() <= limits
    # An ordered end leaves no supervisor behind.
    last = supervisor_of(rig.process)
    rig.process.send_signal(signal.SIGINT)
    assert rig.process.wait(15.0) == 0
    assert wait(lambda: not os.path.exists(f'/proc/{last}'))


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP], ids=['dead', 'hung'])
@pytest.mark.parametrize('rig', ['twist'], indirect=True)
@pytest.mark.real_time
def test_a_stalled_executor_brakes_the_arm_where_its_supervisor_cannot(rig, number):
    first = supervisor_of(rig.process)
    begin = time.time_ns()
    rig.process.send_signal(signal.SIGSTOP)
    os.kill(first, number)
    time.sleep(0.2)
    rig.process.send_signal(signal.SIGCONT)
    assert wait(lambda: 'stop: supervisor' in rig.log.read_text(), 10.0), rig.health[-3:]
    assert wait(lambda: rig.at_rest(len(rig.commands) - 1), 1.0)
    assert wait(lambda: supervisor_of(rig.process) not in (None, first)), rig.log.read_text()
    assert rig.moving(), rig.log.read_text()
    speeds = [m.twist.linear.y for at, m in rig.commands if at > begin]
    assert np.abs(np.diff(speeds)).max() <= 4.0 * 0.01 * 1.2


def chain(count, kind):
    """Links one behind the other."""
    parts = ['<link name="l0"/>']
    for i in range(count):
        parts.append(
            f'<link name="l{i + 1}"/><joint name="j{i}" type="{kind}"><parent link="l{i}"/>'
            f'<child link="l{i + 1}"/><axis xyz="0 0 1"/>'
            '<limit lower="-1" upper="1" velocity="1" effort="1"/></joint>'
        )
    return f'<robot name="r">{"".join(parts)}</robot>'


@pytest.mark.parametrize('rig', ['joint_trajectory'], indirect=True)
def test_no_description_ends_the_executor_or_lifts_its_limits(rig):
    from specprune_ros.sim.arm.urdf import urdf

    scaled = urdf().replace('<origin xyz="', '<origin  xyz="')
    assert scaled != urdf()
    for text in (chain(3772, 'fixed'), chain(400, 'revolute'), scaled):
        begin = time.time_ns()
        rig.describe(text)
        assert wait(
            lambda: rig.process.poll() is None and 'another one came' in rig.log.read_text()
        )
        # Stopped, and going on with the first description and the next chunk.
        assert wait(lambda: 'stop: description' in rig.log.read_text())
        assert rig.moving(), rig.log.read_text()
        times = [at for at, _ in rig.commands if at > begin]
        assert max(np.diff([begin, *times]), default=0) < 1.5 * SECOND
    assert rig.process.poll() is None
    assert len(rig.commands[-1][1].points[0].positions) == len(JOINTS)


class Played:
    """A supervisor that a test plays: ``answers`` to being told to take over, ``hung`` or not."""

    newest = None

    def __init__(self, arguments, pass_fds, **_):
        self.link = socket.socket(fileno=os.dup(pass_fds[0]))
        self.link.setblocking(False)
        self.answers, self.hung, self.killed, self.told = (STOPPING, RESTED), False, False, 0
        self.say(READY)
        Played.newest = self
        threading.Thread(target=self._run, daemon=True).start()

    def say(self, *messages):
        for message in messages:
            self.link.send(message)

    def _run(self):
        pinged = 0.0
        while not self.killed:
            time.sleep(0.002)
            if self.hung:
                continue
            try:
                while message := self.link.recv(1 << 16):
                    if message == TAKE_OVER:
                        self.told += 1
                        self.say(*self.answers)
                else:
                    return  # the executor closed its end
            except BlockingIOError:
                pass
            except OSError:
                return
            if time.monotonic() - pinged > 0.1:
                pinged = time.monotonic()
                self.say(ALIVE)

    def poll(self):
        return -9 if self.killed else None

    def kill(self):
        self.killed = True
        self.link.close()

    def wait(self, timeout=None):
        return 0


def playing():
    """Stands in for ``subprocess`` where the supervisor is started."""
    import subprocess

    return SimpleNamespace(
        Popen=Played, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


@pytest.fixture
def played(bench, monkeypatch):
    """An executor in motion beside a supervisor that the test plays."""
    monkeypatch.setattr(supervisors, 'subprocess', playing())
    b = bench({'supervisor_limit': 0.2})
    b.sent, send = [], b.dut._port.send

    def note(command, stamp):
        send(command, stamp)
        b.sent.append(command.twist.linear[0])

    b.dut._port.send = note
    b.moving()
    assert b.run(20.0, until=lambda: b.sent[-1] > 0.09)
    return b


def at_rest_within_limits(b, count):
    """Braked to rest by commands of the executor after the first ``count``, without a jump."""
    b.run(0.8)
    speeds = b.sent[count - 1 :]
    assert len(speeds) > 3, 'nothing was sent'
    rest = speeds.index(0.0)
    assert np.abs(np.diff(speeds[: rest + 1])).max() <= 4.0 * 0.01 * (1 + 1e-6), speeds
    assert not any(speeds[rest:]), speeds


def stall(b, seconds):
    """Nothing in this process runs; how many commands were sent before."""
    b.alive.discard('chunks')
    time.sleep(seconds)
    return len(b.sent)


@pytest.mark.real_time
def test_a_stalled_executor_brakes_where_its_supervisor_is_dead(played):
    """It let go of the arm, which kept its last twist for ever."""
    b = played
    Played.newest.kill()
    at_rest_within_limits(b, stall(b, 0.17))


@pytest.mark.real_time
def test_a_stalled_executor_brakes_where_its_supervisor_hangs_and_replaces_it(played):
    b, first = played, Played.newest
    first.hung = True
    at_rest_within_limits(b, stall(b, 0.17))
    assert first.killed
    b.alive.add('chunks')
    count = len(b.sent)
    assert b.run(20.0, until=lambda: len(b.sent) > count + 10), b.health()
    assert Played.newest is not first


@pytest.mark.real_time
def test_a_supervisor_that_answers_is_left_the_arm(played):
    b = played
    count = stall(b, 0.17)
    b.run(0.5)
    assert Played.newest.told == 1 and not Played.newest.killed
    assert len(b.sent) == count
    b.alive.add('chunks')
    assert b.run(20.0, until=lambda: len(b.sent) > count + 10), b.health()


@pytest.mark.parametrize('how', ['dies', 'hangs'])
@pytest.mark.real_time
def test_a_supervisor_that_is_lost_while_it_brakes_leaves_the_arm_to_the_executor(played, how):
    b = played
    Played.newest.answers = (STOPPING,)
    count = stall(b, 0.17)
    b.run(0.02)
    assert len(b.sent) == count
    if how == 'dies':
        Played.newest.kill()
    else:
        Played.newest.hung = True
    assert b.run(3.0, until=lambda: len(b.sent) > count), b.health()
    b.run(0.5)
    assert b.sent[-1] == 0.0
    assert max(b.sent[count:]) <= 0.1 * (1 + 1e-6)


@pytest.mark.real_time
def test_an_arm_that_follows_places_stays_at_the_last_one(bench, monkeypatch):
    """Its controller has come to rest there meanwhile: braking from a speed would move it."""
    monkeypatch.setattr(supervisors, 'subprocess', playing())
    b = bench(
        {'supervisor_limit': 0.2}, command__adapter='pose', command__topic='/sim_arm/cmd_pose',
        stop_action='hold', limits__lead_translation=0.5,
    )  # fmt: skip
    assert b.run(20.0, until=lambda: b.dut._counts['commands'] > 50), b.health()
    Played.newest.hung = True
    b.alive.discard('chunks')
    count = b.dut._counts['commands']
    time.sleep(0.17)
    b.run(0.3)
    assert Played.newest.killed and not b.dut._motion.moving
    assert b.dut._counts['commands'] == count and not b.dut._counts['stop commands']


@pytest.mark.parametrize('rested', [True, False], ids=['rested', 'hung'])
@pytest.mark.real_time
def test_deactivation_after_a_stall_leaves_the_arm_to_whoever_brakes_it(played, rested):
    b = played
    Played.newest.hung = not rested
    count = stall(b, 0.17)
    b.dut.trigger_deactivate()
    if rested:
        b.run(0.3)
        assert len(b.sent) == count
    else:
        at_rest_within_limits(b, count)


@pytest.mark.real_time
def test_a_stop_at_the_end_is_left_to_a_supervisor_that_took_it_over(played):
    """The old braking went on after the supervisor had brought the arm to rest."""
    b = played
    sent = hold_up_the_stop(b, 0.25)
    b.dut.trigger_deactivate()
    assert Played.newest.told == 1
    assert len(sent) == 1


def hold_up_the_stop(b, seconds):
    """Stalls the executor after the next command; gives the times of all from it on."""
    port, sent = b.dut._port, []
    send = port.send

    def held_up(command, stamp):
        send(command, stamp)
        sent.append(time.monotonic())
        if len(sent) == 1:
            time.sleep(seconds)

    port.send = held_up
    return sent


@pytest.mark.real_time
def test_the_rest_of_a_stop_is_no_burst_after_a_stall(bench):
    b = bench()
    b.moving()
    assert b.run(20.0, until=lambda: b.speeds()[-1] > 0.09)
    sent = hold_up_the_stop(b, 0.1)
    b.dut.trigger_deactivate()
    gaps = np.diff(sent[1:])
    assert len(gaps) > 1 and gaps.min() > 0.009, gaps


def test_what_is_sent_again_is_never_the_rest_of_an_earlier_motion():
    """A stop of long ago was commanded anew when the first period of a motion was held up."""
    sender = StopSender.__new__(StopSender)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        guard = Guard(theirs, None, sender, ())
        sender._last = 'rest of the stop before', 0
        guard._take(encode(None, 1))
        assert sender._last is not None
        guard._take(encode(MotionState(np.zeros((2, 6)), np.zeros(2), 0.01, None, None), 2))
        assert sender._last is None


def test_a_supervisor_gives_signs_of_life_while_it_brakes():
    """A long stop would be taken for silence, and be cut off."""

    class Port:
        def forget(self):
            pass

        def stop(self, state, stamp_ns, silent, alive):
            for _ in range(30):
                alive()
                time.sleep(0.01)
            return 30

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        guard = Guard(theirs, SimpleNamespace(name='x'), Port(), ())
        guard._take(encode(MotionState(np.zeros((2, 6)), np.zeros(2), 0.01, None, None), 2))
        guard._take(TAKE_OVER)
        said = [ours.recv(16) for _ in range(4)]
        assert said[:3] == [STOPPING, ALIVE, ALIVE]


numbers = st.floats(-10.0, 10.0)


@given(st.data(), st.integers(1, 20), st.sampled_from([(), ('a', 'b', 'c')]), st.booleans())
def test_what_the_executor_tells_is_what_the_supervisor_hears(data, length, joints, placed):
    size = len(joints) or 6
    places = size if joints else 7
    state = MotionState(
        np.array(
            data.draw(
                st.lists(
                    st.lists(numbers, min_size=size, max_size=size),
                    min_size=length,
                    max_size=length,
                )
            )
        ),
        np.array(
            data.draw(st.lists(numbers, min_size=len(joints) or 2, max_size=len(joints) or 2))
        ),
        0.01,
        np.arange(places, dtype=float) if placed or joints else None,
        joints=joints,
    )
    stamp = data.draw(st.integers(0, 2**62))
    received, at = decode(encode(state, stamp), joints)
    assert at == stamp and received.joints == joints and received.period_s == state.period_s
    assert np.array_equal(received.rows, state.rows)
    assert np.array_equal(received.accelerations, state.accelerations)
    assert (received.place is None) == (state.place is None)
    assert received.place is None or np.array_equal(received.place, state.place)
    assert decode(encode(None, stamp), joints)[0] is None


def test_the_supervisor_runs_in_the_enclave_of_its_executor():
    assert enclave(['x', '--ros-args', '--enclave', '/specprune/executor', '-p', 'a:=b']) == (
        '/specprune/executor'
    )
    assert enclave(['x', '--ros-args', '-p', 'a:=b']) == ''
