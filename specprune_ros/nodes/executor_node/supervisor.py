"""The supervisor: a second process that stops the arm when the executor cannot.

The executor tells it in every control period where the commanded motion stands. When the
executor's process ends, or says nothing for ``limit`` seconds while the arm moves, the supervisor
brings that motion to rest within the limits, through a publisher of its own. It knows nothing else
and reads nothing from ROS.

Executor to supervisor, one message each on a pair of sockets: first the configuration as JSON,
then float64 numbers, :func:`encode`. Supervisor to executor: single bytes, below. Either notices
the other's end by the closed socket.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from specprune_ros.python_process import python_environment, python_module
from specprune_ros.robot.safety import Command, JointLimit
from specprune_ros.robot.stop_motion import MotionState, StopMotion

READY, ALIVE, STOPPING, RESTED = b'r', b'a', b's', b'z'
TAKE_OVER = b'take over'
PING = 0.1  # s between two signs of life of the supervisor
SILENT = 1.0  # s without one after which the executor counts it as lost
ANSWER = 0.1  # s in which it says that it takes the arm over, where it was told to
MOST = 1 << 16  # bytes of a message
UNMATCHED = 3.0  # s it waits for a driver that listens; a later one is found as well
RESTART = 5.0  # s between two starts of a supervisor
COASTING = 2.5  # periods without a command after which a followed place has been reached
ACKNOWLEDGED = 0.3  # s the last command may take to reach the driver
SUFFIX = '_supervisor'  # of the executor's node name


@dataclass(frozen=True)
class Setup:
    """What the supervisor needs to send commands: those of the executor's profile and node."""

    name: str
    namespace: str
    enclave: str
    profile: str
    arguments: dict[str, str]
    topic: str
    limit: float
    priority: int


def encode(state: MotionState | None, stamp_ns: int) -> bytes:
    """A motion state as float64: stamp (s, ns), sizes, the arrays. ``None``: nothing moves."""
    if state is None:
        return np.zeros(7).tobytes()
    place = np.zeros(0) if state.place is None else state.place
    length, size = state.rows.shape
    head = (*divmod(stamp_ns, 1_000_000_000), 1.0, length, size, len(place), state.period_s)
    return np.concatenate((head, state.accelerations, place, state.rows.ravel())).tobytes()


def decode(raw: bytes, joints: tuple[str, ...]) -> tuple[MotionState | None, int]:
    """What :func:`encode` wrote, and the stamp in ns."""
    numbers = np.frombuffer(raw)
    seconds, rest, moves, length, size, places, period = numbers[:7].tolist()
    if not moves:
        return None, 0
    limits = int(size) if joints else 2
    accelerations, place, rows = np.split(numbers[7:], (limits, limits + int(places)))
    state = MotionState(
        rows.reshape(int(length), int(size)),
        accelerations,
        period,
        place if int(places) else None,
        joints=joints,
    )
    return state, int(seconds) * 1_000_000_000 + int(rest)


def enclave(arguments: Sequence[str]) -> str:
    """The SROS2 enclave a process was started with, or nothing."""
    pairs = zip(arguments, arguments[1:], strict=False)
    return next((value for name, value in pairs if name in ('--enclave', '-e')), '')


class Supervisor:
    """The executor's end. Not thread-safe: for the control thread, but for :meth:`close`.

    ``ready`` once the supervisor can send; ``stopping`` from when it took the arm over, or was
    told to, until it has brought it to rest or is lost. One that says nothing is killed, so that
    it cannot wake up later and move the arm, and another one is started. ``braked`` is for how
    many seconds the last one is known to have braked.
    """

    def __init__(self, setup: Setup, joints: Mapping[str, JointLimit]) -> None:
        self._setup, self._joints = setup, joints
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._started = self._received = -1e9
        self.ready = self.stopping = self._rested = False
        self._told: float | None = None  # since when it owes an answer
        self._began = self.braked = 0.0
        self.ended = ''
        self._start()

    def close(self) -> None:
        """End the supervisor; nothing may move any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(3.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.ready = False

    @property
    def limit(self) -> float:
        """Seconds of silence after which it stops the arm."""
        return self._setup.limit

    def trouble(self) -> str:
        """Why the arm must not move, or nothing. Reads what came, and starts a lost one again."""
        self._read()
        now = time.monotonic()
        if self._told is not None and now - self._told > ANSWER:
            self._kill('it did not take the arm over')
        elif self.ready and now - self._received > SILENT:
            self._kill(f'it was silent for {now - self._received:.1f} s')
        if self._socket is None:
            if now - self._started > RESTART:
                try:
                    self._start()
                except OSError as error:  # no memory or processes left
                    self._started, self.ended = now, f': cannot be started ({error})'
            return f'the supervisor ended{self.ended}'
        if self.stopping:
            return 'the supervisor took the arm over and brings it to rest'
        if not self.ready:
            return 'the supervisor is starting'
        return ''

    def beat(self, state: MotionState | None, stamp_ns: int) -> None:
        """Tell where the commanded motion stands; ``None`` where nothing is to be stopped."""
        self._send(encode(state, stamp_ns))

    def take_over(self) -> bool:
        """Leave the stop to the supervisor, which may have begun it. Returns whether it was told;
        ``stopping`` ends where it does not answer.
        """
        self._read()
        if not self.ready or time.monotonic() - self._received > SILENT:
            return False
        if not self._send(TAKE_OVER):
            self._kill('it takes nothing in')
            return False
        if not self.stopping:
            self.stopping, self._told, self.braked = True, time.monotonic(), 0.0
        return True

    def has_rested(self) -> bool:
        """Whether it has brought the arm to rest since this was last asked."""
        rested, self._rested = self._rested, False
        return rested

    def send_limits(self, joints: Mapping[str, JointLimit]) -> None:
        """The joint limits in force, which a robot description may have tightened."""
        self._send(
            json.dumps({name: list(asdict(x).values()) for name, x in joints.items()}).encode()
        )

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                python_module(__name__, str(theirs.fileno())),
                env=python_environment(),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # What ends the executor's terminal or group must not end it at the same time.
                start_new_session=True,
            )
        self._socket, self._started = ours, time.monotonic()
        self.ready = self.stopping = False
        self._told = None
        self._send(json.dumps(asdict(self._setup)).encode())
        self.send_limits(self._joints)

    def _send(self, message: bytes) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(message)
            return True
        except BlockingIOError:
            pass  # it stands still: its silence is noticed
        except OSError:
            self._lost()
        return False

    def _read(self) -> None:
        while self._socket is not None:
            try:
                message = self._socket.recv(16)
            except BlockingIOError:
                return
            except OSError:
                message = b''
            if not message:
                self._lost()
                return
            self._received = now = time.monotonic()
            if message == READY:
                self.ready = True
            elif message == STOPPING:
                self.stopping, self._told, self._began = True, None, now
            elif message == RESTED:
                self.stopping, self._told, self._rested = False, None, True
            if self.stopping and self._told is None:
                self.braked = now - self._began

    def _kill(self, why: str) -> None:
        self._process.kill()
        if self._socket is not None:
            self._lost()
        self.ended = f': {why}'

    def _lost(self) -> None:
        self._socket.close()
        self._socket, self.ready, self.stopping, self._told = None, False, False, None
        status = self._process.poll()
        self.ended = '' if status is None else f' with status {status}'


class Guard:
    """The supervisor's end: watches, and stops the arm once."""

    def __init__(
        self, link: socket.socket, setup: Setup, port: Any, joints: tuple[str, ...]
    ) -> None:
        self._link, self._setup, self._port, self._joints = link, setup, port, joints
        self._state: MotionState | None = None
        self._stamp_ns = 0
        self._at = time.monotonic()
        self._pinged = 0.0

    def run(self) -> str:
        """Watch until the executor ends; says how."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN | select.POLLHUP)
        begin, ready = time.monotonic(), False
        while True:
            now = time.monotonic()
            if not ready and (self._port.matched() or now - begin > UNMATCHED):
                ready = True
                self._say(READY)
            self._ping()
            wait = PING if ready else 0.01
            if self._state is not None:
                wait = min(wait, self._at + self._setup.limit - now)
            if not poll.poll(max(0.0, wait) * 1e3):
                if self._state is not None and time.monotonic() - self._at >= self._setup.limit:
                    self._stop('the executor has been silent')
                continue
            try:
                message = self._link.recv(MOST)
            except OSError:
                message = b''
            if not message:
                if self._state is not None:
                    self._stop('the executor ended')
                return 'the executor ended'
            self._take(message)

    def _take(self, message: bytes) -> None:
        if message == TAKE_OVER:
            if self._state is None:
                self._port.again()  # one command may have left after the stop
            self._stop('the executor was held up')
        elif message[:1] == b'{':
            self._port.tighten(json.loads(message))
        else:
            self._state, self._stamp_ns = decode(message, self._joints)
            self._at = time.monotonic()
            if self._state is not None:
                self._port.forget()  # the arm has left that place

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._pinged >= PING:
            self._pinged = now
            self._say(ALIVE)

    def _say(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            self._link.send(what, socket.MSG_DONTWAIT)

    def _stop(self, why: str) -> None:
        """Bring the motion to rest. What the executor says meanwhile is out of date."""
        self._say(STOPPING)
        state, self._state = self._state, None
        if state is not None:
            silent = time.monotonic() - self._at
            steps = self._port.stop(state, self._stamp_ns, silent, self._ping)
            print(
                f'[{self._setup.name}{SUFFIX}] {why} for {silent:.3f} s while the arm moved: '
                f'stopped with {steps} commands',
                file=sys.stderr,
                flush=True,
            )
        with contextlib.suppress(OSError):
            while True:
                message = self._link.recv(MOST, socket.MSG_DONTWAIT)
                if not message:
                    break
        self._say(RESTED)


class StopSender:
    """Sends a stop motion to the arm, at control rate, by the adapter of the profile."""

    def __init__(self, node: Any, setup: Setup) -> None:
        from specprune_ros.nodes.executor_node.arm_ports import make_port
        from specprune_ros.robot import profile as profiles

        profile = profiles.load(setup.profile, setup.arguments)
        self.joints = ()
        if profile.command.adapter == profiles.JOINT_TRAJECTORY:
            self.joints = tuple(profile.joints)
        self._limits = dict(profile.limits.joints)
        self._port = make_port(node, profile, self._limits, setup.topic)
        self._last: tuple[Command, int] | None = None  # the command of rest, its stamp in ns

    def matched(self) -> bool:
        """Whether somebody listens to the commands."""
        return self._port.publisher.get_subscription_count() > 0

    def tighten(self, joints: Mapping[str, list[float]]) -> None:
        """Joint limits of a robot description."""
        self._limits.update({name: JointLimit(*values) for name, values in joints.items()})

    def stop(
        self, state: MotionState, stamp_ns: int, silent: float, alive: Callable[[], None]
    ) -> int:
        """Bring ``state`` to rest, ``silent`` seconds after it was commanded; ``alive`` is called
        with every command. Returns how many commands that took.
        """
        from rclpy.duration import Duration

        from specprune_ros.nodes.common.time import time_message

        period, self._last = state.period_s, None
        if state.place is not None and not np.isfinite(state.place).all():
            return 0
        late = silent > COASTING * period
        if late and self.joints:
            # The controller is on the way to the last point it was sent.
            speeds = tuple(state.rows.mean(axis=0).tolist())
            at = tuple(state.place.tolist())
            self._port.coast(Command(joints=self.joints, velocities=speeds, positions=at), silent)
            self._port.publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGED))
            return 1
        if late and state.place is not None:
            # A controller that follows places has reached the last one; going on would move it.
            state = replace(state, rows=np.zeros_like(state.rows))
        begin = due = time.monotonic()
        count = 0
        for command in self._commands(StopMotion.of(state)):
            passed = silent + time.monotonic() - begin
            self._last = command, stamp_ns + round(passed * 1e9)
            self._port.send(command, time_message(self._last[1]))
            count += 1
            alive()
            due = max(due + period, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        self._port.publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGED))
        return count

    def again(self) -> None:
        """Send the command of rest of the last stop once more, if it ended with one."""
        from specprune_ros.nodes.common.time import time_message

        if self._last is not None:
            self._port.send(self._last[0], time_message(self._last[1]))

    def forget(self) -> None:
        """There is nothing to send again: another motion is under way."""
        self._last = None

    def _commands(self, motion: StopMotion) -> list[Command]:
        if self.joints:
            return [
                Command(joints=self.joints, velocities=tuple(v), positions=tuple(q))
                for v, q in zip(motion.velocities.tolist(), motion.places.tolist(), strict=True)
            ]
        poses = [None] * len(motion.twists) if motion.places is None else motion.poses
        return [
            Command(twist=twist, pose=pose)
            for twist, pose in zip(motion.twists, poses, strict=True)
        ]


def make_node(setup: Setup) -> Any:
    """The supervisor's node, which offers no service: SROS2's policy allows it none."""
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    return Node(
        setup.name + SUFFIX,
        namespace=setup.namespace,
        use_global_arguments=False,
        enable_rosout=False,
        start_parameter_services=False,
        parameter_overrides=[Parameter('start_type_description_service', value=False)],
    )


def main(arguments: list[str]) -> int:
    """The supervisor's process; its argument is the number of its socket."""
    link = socket.socket(fileno=int(arguments[0]))
    # It ends when the executor does, and not before: whoever ends both at once wants a stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    setup = Setup(**json.loads(link.recv(MOST)))

    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from specprune_ros.nodes.common.realtime import freeze_gc, request_priority

    enclave = ['--enclave', setup.enclave] if setup.enclave else []
    rclpy.init(
        args=['--ros-args', *enclave] if enclave else [],
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node = make_node(setup)
    try:
        sender = StopSender(node, setup)
        request_priority(setup.priority)
        freeze_gc()
        Guard(link, setup, sender, sender.joints).run()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
