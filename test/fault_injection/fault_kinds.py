"""Every kind of fault the suite injects: what it does, and what must follow.

Each function disturbs the running system for a while and returns when it has ended. Most faults
that take something away last until the arm has been stopped (or far beyond the limit).
"""

from __future__ import annotations

import array
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from fault_rig import INTRUDER, SECOND, Lane
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.serialization import serialize_message
from specprune_ros.msg import ActionChunk
from std_msgs.msg import String
from std_srvs.srv import SetBool
from system import ARM, EXECUTOR, POLICY

from specprune_ros.nodes.common.qos import every

if TYPE_CHECKING:
    from faults import Suite

LONGEST = 3.0  # s a fault is held while the arm does not stop
SUPERVISED = 0.2  # s of silence after which the supervisor begins to stop the arm
RESPAWN = 0.2  # s a supervisor takes to notice a death


@dataclass(frozen=True)
class Kind:
    """A kind of fault and its invariant, beyond what holds for all of them.

    ``stops``: the stream of commands must end while the fault lasts. ``reasons``: what the
    executor must have said of the stop (one of them). ``resets``: the policy must report a new
    episode, and why. ``kills``: the process that dies on purpose. ``share``: of all injections.
    ``pause``: s without commands after one that is not of rest, that are no fault of the executor.
    """

    name: str
    inject: Callable[[Suite, np.random.Generator], None]
    invariant: str
    stops: bool = False
    reasons: tuple[str, ...] = ()
    resets: bool = False
    kills: str = ''
    sim_time: bool = False
    share: float = 1.0
    pause: float = 0.15


def _until_stopped(suite: Suite, least: float = 0.0) -> None:
    """Hold the fault until no command has come for a while."""
    begin = time.monotonic()
    while (gone := time.monotonic() - begin) < LONGEST:
        if gone >= least and suite.rig.silent_for() > 0.2:
            return
        suite.pause(0.01)


def _some_cameras(suite: Suite, rng: np.random.Generator) -> list[Lane]:
    lanes = list(suite.rig.cameras.values())
    return lanes if rng.random() < 0.5 else [lanes[rng.integers(len(lanes))]]


# Images.


def camera_freeze(suite: Suite, rng: np.random.Generator) -> None:
    """No more images, or the last one over and over with its old stamp."""
    repeat = rng.random() < 0.5
    for lane in _some_cameras(suite, rng):
        old = lane.newest_copy()
        lane.alter = (lambda message, old=old: [old]) if repeat else (lambda message: [])
    _until_stopped(suite)


def camera_burst(suite: Suite, rng: np.random.Generator) -> None:
    """Images held back, then all of them at once."""
    held: list[tuple[Lane, Any]] = []
    lanes = _some_cameras(suite, rng)
    for lane in lanes:
        lane.alter = lambda message, lane=lane: held.append((lane, message)) or []
    suite.pause(rng.uniform(0.2, 0.8))
    for lane in lanes:
        lane.alter = None
    for lane, message in held:
        for _ in range(rng.integers(1, 6)):
            lane.output.publish(message)
    suite.pause(0.3)


def camera_drop(suite: Suite, rng: np.random.Generator) -> None:
    """A share of the images is lost."""
    share = rng.uniform(0.2, 0.9)
    for lane in _some_cameras(suite, rng):
        lane.alter = lambda message: [] if rng.random() < share else [message]
    suite.pause(0.8)


def camera_reorder(suite: Suite, rng: np.random.Generator) -> None:
    """Images arrive in another order."""
    for lane in _some_cameras(suite, rng):
        held: list[Any] = []

        def shuffle(message: Any, held: list[Any] = held) -> list[Any]:
            held.append(message)
            if len(held) < 4:
                return []
            out = [held[i] for i in rng.permutation(len(held))]
            held.clear()
            return out

        lane.alter = shuffle
    suite.pause(0.8)


def camera_duplicate(suite: Suite, rng: np.random.Generator) -> None:
    """Every image arrives several times."""
    times = int(rng.integers(2, 6))
    for lane in _some_cameras(suite, rng):
        lane.alter = lambda message: [message] * times
    suite.pause(0.8)


# State.


def joint_silence(suite: Suite, rng: np.random.Generator) -> None:
    """No joint states."""
    suite.rig.joints.alter = lambda message: []
    _until_stopped(suite)


def joint_nan(suite: Suite, rng: np.random.Generator) -> None:
    """Joint positions, or all numbers, are not finite."""
    wrong = float(rng.choice([math.nan, math.inf, -math.inf]))

    def spoil(message: Any) -> list[Any]:
        message.position = array.array('d', [wrong] * len(message.position))
        message.velocity = array.array('d', [wrong] * len(message.velocity))
        return [message]

    suite.rig.joints.alter = spoil
    _until_stopped(suite)


def joint_names(suite: Suite, rng: np.random.Generator) -> None:
    """The joints are called something else, or one name is missing."""
    short = rng.random() < 0.5

    def rename(message: Any) -> list[Any]:
        names = list(message.name)
        message.name = names[:-1] if short else [f'left_{name}' for name in names]
        return [message]

    suite.rig.joints.alter = rename
    _until_stopped(suite)


def pose_silence(suite: Suite, rng: np.random.Generator) -> None:
    """No measured tool pose."""
    suite.rig.pose.alter = lambda message: []
    _until_stopped(suite)


def pose_nan(suite: Suite, rng: np.random.Generator) -> None:
    """The tool pose is not finite."""

    def spoil(message: Any) -> list[Any]:
        message.pose.position.x = message.pose.orientation.w = math.nan
        return [message]

    suite.rig.pose.alter = spoil
    _until_stopped(suite)


def _impossible(suite: Suite, rng: np.random.Generator, lane: Lane, spoil: Any) -> None:
    """States no arm can have reached: one, every other one, or all for a while."""
    which, count = int(rng.integers(3)), 0

    def alter(message: Any) -> list[Any]:
        nonlocal count
        count += 1
        if (which == 0 and count > 1) or (which == 1 and count % 2):
            return [message]
        return [spoil(message)]

    lane.alter = alter
    if lane is suite.rig.pose:
        _until_stopped(suite, least=0.02)
    else:
        suite.pause(0.5)


def pose_impossible(suite: Suite, rng: np.random.Generator) -> None:
    """Tool poses of zeros, or of another place."""
    place = (0.0, 0.0, 0.0) if rng.random() < 0.5 else tuple(rng.uniform(-1.0, 1.0, 3))

    def spoil(message: Any) -> Any:
        at = message.pose.position
        at.x, at.y, at.z = place
        return message

    _impossible(suite, rng, suite.rig.pose, spoil)


def joint_impossible(suite: Suite, rng: np.random.Generator) -> None:
    """Joints of zeros, or of another place, for the policy."""
    place = 0.0 if rng.random() < 0.5 else float(rng.uniform(-2.0, 2.0))

    def spoil(message: Any) -> Any:
        message.position = array.array('d', [place] * len(message.position))
        return message

    _impossible(suite, rng, suite.rig.joints, spoil)


def second_state(suite: Suite, rng: np.random.Generator) -> None:
    """Somebody else publishes the tool's pose, too: another arm's."""
    with suite.rig.publisher(PoseStamped, '/faults/tcp_pose') as other:
        begin = time.monotonic()
        while time.monotonic() - begin < 0.6:
            message = suite.rig.pose.newest_copy()
            message.pose.position.x += 0.5
            other.publish(message)
            suite.pause(0.02)


def pose_noise(suite: Suite, rng: np.random.Generator) -> None:
    """Poses with millimetres of noise, that come late by less than is allowed."""
    held: list[Any] = []
    late = int(rng.integers(0, 8))

    def alter(message: Any) -> list[Any]:
        at = message.pose.position
        at.x, at.y, at.z = (v + float(rng.normal(0.0, 0.001)) for v in (at.x, at.y, at.z))
        held.append(message)
        return [held.pop(0)] if len(held) > late else []

    suite.rig.pose.alter = alter
    suite.pause(1.0)


def joints_apart(suite: Suite, rng: np.random.Generator) -> None:
    """Arm and gripper, or two halves of the arm, in messages of their own."""
    cut = int(rng.integers(1, 9))

    def part(message: Any, some: slice) -> Any:
        out = type(message)(header=message.header, name=message.name[some])
        out.position, out.velocity = message.position[some], message.velocity[some]
        return out

    suite.rig.joints.alter = lambda m: [part(m, slice(0, cut)), part(m, slice(cut, None))]
    suite.pause(1.0)


def joints_without_velocity(suite: Suite, rng: np.random.Generator) -> None:
    """Velocities of zero, of NaN, or none, while the joints move."""
    wrong = [[0.0], [math.nan], []][int(rng.integers(3))]

    def alter(message: Any) -> list[Any]:
        message.velocity = array.array('d', wrong * len(message.position))
        return [message]

    suite.rig.joints.alter = alter
    suite.pause(0.8)


# People.


def _switch(suite: Suite, service: str, on: bool) -> None:
    answer = suite.rig.call(SetBool, f'/{EXECUTOR}/{service}', SetBool.Request(data=on))
    if answer is None or not answer.success:
        suite.breaks(f'~/{service} {on} was not answered')


def disabled(suite: Suite, rng: np.random.Generator) -> None:
    """A person disables, and enables again."""
    _switch(suite, 'enable', False)
    _until_stopped(suite)
    _switch(suite, 'enable', True)


def taken_over(suite: Suite, rng: np.random.Generator) -> None:
    """A person disables, another controller moves the arm, the person enables."""
    rig = suite.rig
    _switch(suite, 'enable', False)
    _until_stopped(suite)
    with rig.publisher(TwistStamped, rig.profile.command.topic) as commands:
        for _ in range(30):
            message = TwistStamped()
            message.header.frame_id = INTRUDER
            message.twist.linear.x, message.twist.linear.y = rng.uniform(-0.2, 0.2, 2)
            commands.publish(message)
            suite.pause(0.02)
    _switch(suite, 'enable', True)


def held(suite: Suite, rng: np.random.Generator) -> None:
    """A person pauses the arm, and lets it go on."""
    _switch(suite, 'hold', True)
    _until_stopped(suite)
    _switch(suite, 'hold', False)


def reactivated(suite: Suite, rng: np.random.Generator) -> None:
    """A lifecycle manager deactivates the executor and activates it again."""
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = suite.rig.call(ChangeState, f'/{EXECUTOR}/change_state', request)
        if answer is None or not answer.success:
            suite.breaks('a transition was refused')
        _until_stopped(suite, least=0.2)


def instruction_by_others(suite: Suite, rng: np.random.Generator) -> None:
    """Instructions of an ordinary publisher, with blanks as people type them."""
    topic = f'/{POLICY}/instruction'
    made = suite.rig.node.create_publisher(String, topic, every())
    suite.pause(0.3)
    made.publish(String(data='  lift the  red cube\n'))
    suite.pause(0.5)
    suite.rig.node.destroy_publisher(made)


# Parameters.

GOOD = (
    ('pruning.alpha', lambda rng: float(rng.uniform(0.3, 1.0))),
    ('pruning.pruner', lambda rng: str(rng.choice(['specprune', 'random', 'dense']))),
    ('pruning.refresh_period', lambda rng: int(rng.integers(0, 5))),
    ('query_rate', lambda rng: float(rng.uniform(5.0, 20.0))),
    ('max_age.image', lambda rng: float(rng.uniform(0.4, 0.6))),
)
BAD = (
    ('pruning.alpha', lambda rng: float(rng.choice([-1.0, 99.0, math.nan, math.inf]))),
    ('pruning.alpha', lambda rng: 'much'),
    ('pruning.pruner', lambda rng: 'best'),
    ('query_rate', lambda rng: -1.0),
    ('model.preset', lambda rng: 'oft-medium'),
    ('cameras', lambda rng: ['one']),
    ('no.such.parameter', lambda rng: 1),
)
CONTRADICTORY = (
    {'pruning.history_min': 9, 'pruning.history_max': 3},
    {'pruning.history_max': 1, 'pruning.history_min': 4},
)
RESTORED = {
    'pruning.pruner': 'specprune',
    'pruning.alpha': 0.7,
    'pruning.refresh_period': 0,
    'query_rate': 10.0,
    'max_age.image': 0.5,
}


def _set(suite: Suite, node: str, together: bool, values: dict[str, Any]) -> list[bool]:
    messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    kind = SetParametersAtomically if together else SetParameters
    service = 'set_parameters_atomically' if together else 'set_parameters'
    answer = suite.rig.call(kind, f'/{node}/{service}', kind.Request(parameters=messages))
    if answer is None:
        suite.breaks(f'{node} did not answer a parameter request')
        return []
    results = [answer.result] if together else answer.results
    for result in results:
        if not result.successful and not result.reason:
            suite.breaks('a parameter was refused without a reason')
    return [result.successful for result in results]


def parameter_storm(suite: Suite, rng: np.random.Generator) -> None:
    """Valid, invalid and contradictory parameters, as fast as they are answered."""
    for _ in range(12):
        choice = rng.random()
        if choice < 0.5:
            name, value = GOOD[rng.integers(len(GOOD))]
            expected, values, together = True, {name: value(rng)}, False
        elif choice < 0.85:
            name, value = BAD[rng.integers(len(BAD))]
            expected, values, together = False, {name: value(rng)}, False
        else:
            values, together = CONTRADICTORY[rng.integers(len(CONTRADICTORY))], True
            expected = False
        for ok in _set(suite, POLICY, together, values):
            if ok != expected:
                suite.breaks(f'{values} was {"accepted" if ok else "refused"}')
    for ok in _set(suite, EXECUTOR, False, {'profile': 'franka', 'dry_run': True}):
        if ok:
            suite.breaks('a fixed parameter of the executor could be changed')
    if not all(_set(suite, POLICY, True, RESTORED)):
        suite.breaks('the first values could not be restored')
    answer = suite.rig.call(
        GetParameters, f'/{POLICY}/get_parameters', GetParameters.Request(names=list(RESTORED))
    )
    if answer is None or [parameter_value_to_python(v) for v in answer.values] != list(
        RESTORED.values()
    ):
        suite.breaks('the parameters do not say what was set last')


# Processes.


def slow_inference(suite: Suite, rng: np.random.Generator) -> None:
    """The policy's process gets a tenth of its time: everything in it takes ten times as long."""
    pid = suite.system.processes[POLICY].process.pid
    begin = time.monotonic()
    length = rng.uniform(0.8, 2.0)
    try:
        while time.monotonic() - begin < length:
            os.kill(pid, signal.SIGSTOP)
            suite.pause(0.09)
            os.kill(pid, signal.SIGCONT)
            suite.pause(0.01)
    finally:
        os.kill(pid, signal.SIGCONT)


def policy_killed(suite: Suite, rng: np.random.Generator) -> None:
    """SIGKILL to the policy; started again by a supervisor."""
    suite.pause(rng.uniform(0.0, 0.1))
    suite.system.kill(POLICY)
    suite.pause(RESPAWN)
    suite.system.start(POLICY)
    _until_stopped(suite)
    suite.system.wait(POLICY)


def executor_killed(suite: Suite, rng: np.random.Generator) -> None:
    """SIGKILL to the moving executor: its supervisor must stop the arm. Started again."""
    suite.wait_for_motion()
    suite.pause(rng.uniform(0.0, 0.1))
    suite.at_once = time.time_ns()
    suite.system.kill(EXECUTOR)
    suite.pause(0.8)
    suite.must_stop_at_once('the executor was killed')
    suite.executor_died()
    suite.system.start(EXECUTOR)
    suite.system.wait(EXECUTOR)


def executor_stalled(suite: Suite, rng: np.random.Generator) -> None:
    """SIGSTOP to the moving executor: its supervisor must stop the arm, and give it back."""
    suite.wait_for_motion()
    process = suite.system.processes[EXECUTOR].process
    stalled = time.time_ns()
    process.send_signal(signal.SIGSTOP)
    suite.pause(rng.uniform(0.6, 1.1))
    suite.supervisor_must_have_stopped(stalled)
    process.send_signal(signal.SIGCONT)
    suite.pause(0.3)


def executor_ended(suite: Suite, rng: np.random.Generator) -> None:
    """SIGINT, SIGTERM or SIGHUP to the moving executor; started again by a supervisor."""
    suite.wait_for_motion()
    suite.pause(rng.uniform(0.0, 0.1))
    process = suite.system.processes[EXECUTOR].process
    process.send_signal([signal.SIGINT, signal.SIGTERM, signal.SIGHUP][int(rng.integers(3))])
    if process.wait(20.0):
        suite.breaks(f'status {process.returncode}')
    suite.pause(0.3)
    if suite.rig.received.commands and not suite.rig.received.commands[-1].zero:
        suite.breaks('the last command of a process that ended was no stop')
    suite.executor_died()
    suite.system.start(EXECUTOR)
    suite.system.wait(EXECUTOR)


def driver_killed(suite: Suite, rng: np.random.Generator) -> None:
    """SIGKILL to the arm's driver, cameras included; started again by a supervisor."""
    suite.pause(rng.uniform(0.0, 0.1))
    suite.system.kill(ARM)
    suite.driver_died()
    _until_stopped(suite)
    suite.system.start(ARM)


# Messages.


def oversized(suite: Suite, rng: np.random.Generator) -> None:
    """Images, instructions, chunks and joint states larger than anything is meant to be."""
    which = int(rng.integers(5))
    rig = suite.rig
    if which == 0:  # an image wider than is read

        def widen(message: Any) -> list[Any]:
            message.width, message.height, message.step = 5000, 16, 15000
            message.data = array.array('B', bytes(240_000))
            return [message]

        for lane in _some_cameras(suite, rng):
            lane.alter = widen
    elif which == 1:  # sizes that do not fit the data, up to the largest numbers there are

        def announce(message: Any) -> list[Any]:
            message.width = message.height = message.step = 2**32 - 1
            return [message]

        for lane in _some_cameras(suite, rng):
            lane.alter = announce
    elif which == 2:
        rig.instruction.publish(String(data='lift ' * 20_000))
    elif which == 3:
        _chunk(suite, horizon=2_000)
    else:

        def swell(message: Any) -> list[Any]:
            message.name = [*message.name, *(f'extra{i}' for i in range(5000))]
            message.position = array.array('d', [*message.position, *([0.0] * 5000)])
            message.velocity = array.array('d', [*message.velocity, *([0.0] * 5000)])
            return [message]

        rig.joints.alter = swell
    suite.pause(0.6)
    if which == 2:
        rig.instruction.publish(String(data='lift the red cube'))
    if which == 3:
        suite.must_stop_at_once('a chunk of 2000 rows')


def truncated(suite: Suite, rng: np.random.Generator) -> None:
    """Messages cut short: fields that do not fit each other, and bytes that end too early."""
    which = int(rng.integers(6))
    rig = suite.rig

    def half(message: Any) -> list[Any]:
        message.data = message.data[: len(message.data) // 2]
        return [message]

    def cut(message: Any) -> list[Any]:
        raw = serialize_message(message)
        return [raw[: int(rng.integers(5, len(raw)))]]

    def fewer(message: Any) -> list[Any]:
        message.position = message.position[:3]
        return [message]

    if which == 0:
        for lane in _some_cameras(suite, rng):
            lane.alter = half
    elif which == 1:
        for lane in _some_cameras(suite, rng):
            lane.alter = cut
    elif which == 2:
        rig.joints.alter = fewer
    elif which == 3:
        rig.joints.alter = rig.pose.alter = cut
    elif which == 4:
        _chunk(suite, rows=3)
    else:
        raw = serialize_message(_chunk_message(suite))
        for _ in range(5):
            rig.send_chunk(raw[: int(rng.integers(5, len(raw)))])
    suite.pause(0.6)
    if which == 4:
        suite.must_stop_at_once('a chunk whose data does not fill its rows')


def _chunk_message(suite: Suite, horizon: int = 8, rows: int | None = None) -> ActionChunk:
    now = time.time_ns() + (suite.rig.sim_offset_ns or 0)
    rows = horizon if rows is None else rows
    message = ActionChunk(
        sequence=1_000_000 + now % 1_000_000,
        episode=999,
        step_dt=Duration(nanosec=50_000_000),
        horizon=horizon,
        dims=['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'],
        kind=ActionChunk.KIND_EE_DELTA,
        rotation=ActionChunk.ROTATION_VECTOR,
        reference=ActionChunk.REFERENCE_PREVIOUS_STEP,
        gripper_dim=6,
    )
    message.data = array.array('d', [0.0] * 7 * rows)
    seconds, rest = divmod(now, SECOND)
    message.header.stamp = Time(sec=seconds, nanosec=rest)
    message.header.frame_id = suite.system.profile.base_frame
    return message


def _chunk(suite: Suite, **fields: int) -> None:
    suite.at_once = time.time_ns()
    suite.rig.send_chunk(_chunk_message(suite, **fields))


def second_policy(suite: Suite, rng: np.random.Generator) -> None:
    """Somebody else sends chunks too, and violent ones."""
    for _ in range(12):
        message = _chunk_message(suite)
        rows = rng.uniform(-1.0, 1.0, (8, 7)) * rng.choice([0.01, 0.5, 100.0])
        rows[:, 6] = rng.integers(0, 2)
        message.data = array.array('d', rows.ravel())
        suite.rig.send_chunk(message)
        suite.pause(0.05)


def second_commander(suite: Suite, rng: np.random.Generator) -> None:
    """Somebody else commands the arm. The executor cannot prevent it: it must not change what it
    sends itself, and its diagnostics must say so.
    """
    rig, begin = suite.rig, time.time_ns()
    topic = rig.profile.command.topic
    with rig.publisher(TwistStamped, topic) as commands:
        while time.time_ns() - begin < 2.5 * SECOND:
            message = TwistStamped()
            message.header.frame_id = INTRUDER
            message.twist.linear.x = float(rng.uniform(-0.05, 0.05))
            commands.publish(message)
            suite.pause(0.05)
    if not any(
        name == EXECUTOR and f'publishers on {topic}' in text
        for at, name, text in rig.received.said
        if at > begin
    ):
        suite.breaks('the executor did not report the second publisher')


# The disk.


def full_disk(suite: Suite, rng: np.random.Generator) -> None:
    """No byte can be added to any log while everything complains."""
    with suite.no_space():
        for _ in range(3):
            _chunk(suite, rows=3)
            suite.pause(0.15)
        suite.must_stop_at_once('a bad chunk with the disk full')
        for lane in suite.rig.cameras.values():
            lane.alter = lambda message: [b'\0' * 20]
        suite.rig.joints.alter = lambda message: []
        suite.pause(0.4)


def limit_file_size(pid: int, size: int) -> None:
    """From now on a process can make no file longer than ``size`` bytes (-1: no limit)."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(folder: Path) -> Path:
    """Fill the file system of a folder to the last byte. Returns the file that does it."""
    filler = folder / 'filler'
    with filler.open('wb', buffering=0) as file:
        try:
            for block in (1 << 16, 1 << 10, 1):
                while True:
                    try:
                        if not file.write(bytes(block)):
                            break
                    except OSError:
                        break
        finally:
            os.sync()
    return filler


# The clock.


def clock_forward(suite: Suite, rng: np.random.Generator) -> None:
    """The clock goes on by seconds or hours at once."""
    suite.at_once = time.time_ns()
    suite.rig.sim_offset_ns += int(rng.uniform(5.0, 7200.0) * SECOND)
    suite.pause(0.3)
    suite.must_stop_at_once('the clock went forward')


def clock_back(suite: Suite, rng: np.random.Generator) -> None:
    """The clock goes back."""
    suite.at_once = time.time_ns()
    suite.rig.sim_offset_ns -= int(rng.uniform(1.0, 600.0) * SECOND)
    suite.pause(0.3)
    suite.must_stop_at_once('the clock went back')


def clock_stall(suite: Suite, rng: np.random.Generator) -> None:
    """Nobody publishes the clock for a while."""
    suite.rig.clock_stands = True
    suite.stalled_at = time.time_ns()
    _until_stopped(suite, least=suite.system.profile.watchdog.clock_stall)
    suite.rig.clock_stands = False


DRY = ('dry_queue', 'policy_error', 'stale_observation', 'stale_chunk')
KINDS = (
    Kind('camera freeze', camera_freeze, 'stops', stops=True, reasons=DRY),
    Kind('camera burst', camera_burst, 'limits, recovers'),
    Kind('camera drop', camera_drop, 'limits, recovers'),
    Kind('camera reorder', camera_reorder, 'limits, recovers'),
    Kind('camera duplicate', camera_duplicate, 'limits, recovers'),
    Kind('joint silence', joint_silence, 'stops', stops=True, reasons=DRY),
    Kind('joint NaN', joint_nan, 'stops', stops=True, reasons=DRY),
    Kind('joint names', joint_names, 'stops', stops=True, reasons=DRY),
    Kind('pose silence', pose_silence, 'stops', stops=True, reasons=('stale_state', *DRY)),
    Kind('pose NaN', pose_nan, 'stops', stops=True, reasons=('stale_state', *DRY)),
    Kind(
        'pose impossible',
        pose_impossible,
        'stops in place',
        stops=True,
        reasons=('implausible_state', 'stale_state', *DRY),
    ),
    Kind('joints impossible', joint_impossible, 'limits, recovers'),
    Kind('second state', second_state, 'limits, recovers'),
    Kind('pose noise', pose_noise, 'limits, recovers'),
    Kind('joints apart', joints_apart, 'limits, recovers'),
    Kind('joints without velocity', joints_without_velocity, 'limits, recovers'),
    Kind('disabled', disabled, 'stops', stops=True, reasons=('disabled', *DRY)),
    Kind('taken over', taken_over, 'stops, from where it is', stops=True),
    Kind('held', held, 'stops', stops=True, reasons=('held', *DRY)),
    Kind('reactivated', reactivated, 'stops', stops=True, reasons=('ended', *DRY)),
    Kind('other instruction', instruction_by_others, 'limits, recovers'),
    Kind('parameter storm', parameter_storm, 'each answered rightly, goes on'),
    Kind('10x inference delay', slow_inference, 'stops when dry, recovers'),
    Kind('oversized message', oversized, 'refused, recovers'),
    Kind('truncated message', truncated, 'refused, recovers'),
    Kind('second policy', second_policy, 'limits, recovers'),
    Kind('second commander', second_commander, 'own stream within limits, reported', share=0.3),
    Kind('full disk', full_disk, 'stops, recovers'),
    Kind(
        'policy killed',
        policy_killed,
        'stops, new episode',
        stops=True,
        # Poses come through the suite, which the start of a process may hold up.
        reasons=('stale_state', *DRY),
        resets=True,
        kills=POLICY,
        share=0.35,
    ),
    Kind('executor ended', executor_ended, 'stops, recovers', stops=True, share=0.35),
    Kind(
        'executor killed',
        executor_killed,
        'supervisor stops, recovers',
        stops=True,
        kills=EXECUTOR,
        share=0.35,
    ),
    Kind(
        'executor stalled',
        executor_stalled,
        'supervisor stops, recovers',
        stops=True,
        share=0.35,
        pause=SUPERVISED + 0.15,
    ),
    Kind(
        'driver killed',
        driver_killed,
        'stops, recovers',
        stops=True,
        reasons=('stale_state', *DRY),
        kills=ARM,
        share=0.35,
    ),
    Kind('clock forward', clock_forward, 'stops at once', resets=True, sim_time=True),
    Kind('clock back', clock_back, 'stops at once, new episode', resets=True, sim_time=True),
    Kind('clock stall', clock_stall, 'stops', stops=True, reasons=('clock_jump',), sim_time=True),
)
