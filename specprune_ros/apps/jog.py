"""``specprune jog``: the first motion of an arm, without a policy.

A little along +z of the base frame and back, then the gripper open and closed, through an executor
of its own: the same process, adapter and limits that chunks of a policy go through.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sensor_msgs.msg import TimeReference
from std_srvs.srv import SetBool

from specprune_ros.apps.processes import NodeDied, NodeProcess, end_on_signals, stop_all
from specprune_ros.msg import ActionChunk
from specprune_ros.nodes.common.qos import every, newest
from specprune_ros.nodes.common.remapping import find_profile, load_profile, ros_arguments
from specprune_ros.nodes.executor_node.arm_state import ArmState, description_of_file
from specprune_ros.robot.chunk import Chunk
from specprune_ros.robot.geometry import Pose, norm, subtract
from specprune_ros.robot.jog import EVERY, Jog, Preview, preview
from specprune_ros.robot.motion import ArmMotion
from specprune_ros.robot.profile import NO_GRIPPER, Profile

EXECUTOR = 'jog_executor'
FIND = 15.0  # s to find the arm
START = 60.0  # s the executor may take to come up
BEGIN = 60.0  # s from enabling to the first motion: its supervisor starts as well
STALL = 2.0  # s without motion after which it has ended
SAY = 2.5  # s in which the executor says why
GRIP = 20.0  # s a gripper may take
OFF = 0.03  # m between where the tool is and should be
BACK = 0.005  # m from the start that count as back
MOVED = 0.005  # m since the preview after which it does not hold
LISTEN = 1.0  # s to find others that command the arm


class JogError(RuntimeError):
    """Why there was no motion, or why it was ended."""


@dataclass(frozen=True)
class JogOptions:
    """What ``specprune jog`` was requested; see its help."""

    robot: str
    robot_sn: str
    namespace: str
    up: float
    seconds: float
    gripper: bool
    dry_run: bool
    yes: bool
    json: Path | None


@dataclass(frozen=True)
class Step:
    """One line of the result."""

    name: str
    ok: bool
    found: str


class Jogger:
    """Listens to the arm and to the executor, and is its policy."""

    def __init__(self, profile: Profile, namespace: str = '') -> None:
        urdf = description_of_file(profile)
        self.profile = profile
        self.name = f'{namespace}/{EXECUTOR}'  # of the executor
        self.node = rclpy.create_node('jog', namespace=namespace or None)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.complaints: dict[str, str] = {}
        self.motion = ArmMotion(profile, complain=self._complain)  # only to know the state
        self._state = ArmState(
            self.node,
            self.motion,
            self._complain,
            lambda digest: None,
            urdf=urdf,
            sha256=profile.observation.robot_description_sha256,
        )
        listen = self.node.create_subscription
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, every())
        listen(TimeReference, f'{self.name}/executed', self._on_executed, every())
        listen(PoseStamped, f'{self.name}/dry_run/pose', self._on_virtual, newest(reliable=True))
        self._chunks = self.node.create_publisher(
            ActionChunk, f'{self.name}/action_chunk', every()
        )
        self.health, self.values = '', {}
        self.axis, self.axis_at = 0.0, 0.0
        self.virtual_z: list[float] = []
        self._sequence = 0

    def close(self) -> None:
        """Unsubscribe from everything."""
        self._state.close()
        self._executor.shutdown()
        self.node.destroy_node()

    def spin(self, seconds: float, until: Callable[[], Any] = lambda: False) -> bool:
        """Listen for a while, or until something is true; returns whether it is."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0.0:
                return bool(until())
            self._executor.spin_once(timeout_sec=min(left, 0.02))
        return True

    @property
    def pose(self) -> Pose | None:
        """Where the tool is."""
        return self.motion.measured

    def known(self) -> bool:
        """Whether all is known that a preview needs."""
        motion = self.motion
        joints = not motion.commands_joints or (
            motion.kinematics is not None and set(self.profile.joints) <= set(motion.joints)
        )
        return motion.measured is not None and joints

    def joints(self) -> dict[str, float]:
        """Positions of the joints, where they count."""
        motion = self.motion
        names = set(self.profile.joints)
        if motion.kinematics is not None:
            names |= set(motion.kinematics.joint_names)
        return {name: value for name, value in motion.joints.items() if name in names}

    def others(self) -> list[str]:
        """Nodes that command the arm."""
        found = self.node.get_publishers_info_by_topic(self.profile.command.topic)
        return sorted(
            {f'{info.node_namespace}/{info.node_name}'.replace('//', '/') for info in found}
        )

    def send(self, chunk: Chunk) -> None:
        """Publish rows."""
        self._chunks.publish(
            ActionChunk(
                header=_header(chunk),
                sequence=chunk.sequence,
                episode=chunk.episode,
                instruction=chunk.instruction,
                step_dt=Duration(sec=0, nanosec=round(chunk.step_dt * 1e9)),
                horizon=chunk.horizon,
                dims=list(chunk.dims),
                kind=chunk.kind,
                rotation=chunk.rotation,
                reference=chunk.reference,
                data=chunk.rows.ravel().tolist(),
                gripper_dim=chunk.gripper_dim,
                gripper_sense=chunk.gripper_sense,
            )
        )

    def next_chunk(self, jog: Jog, opening: float | None) -> None:
        """The rows that follow what has been executed."""
        self._sequence += 1
        now = self.node.get_clock().now().nanoseconds
        self.send(jog.chunk(self.axis, now, self._sequence, opening))

    def enable(self, enabled: bool, patience: float = 10.0) -> None:
        """Tell the executor. Raises ``JogError``."""
        client = self.node.create_client(SetBool, f'{self.name}/enable')
        try:
            if not self.spin(patience, client.service_is_ready):
                raise JogError(f'no service {self.name}/enable')
            future = client.call_async(SetBool.Request(data=enabled))
            if not self.spin(patience, future.done):
                raise JogError(f'{self.name}/enable did not answer')
            if not future.result().success:
                raise JogError(f'{self.name}/enable: {future.result().message}; {self.health}')
        finally:
            self.node.destroy_client(client)

    def number(self, key: str) -> int:
        """A count of the executor's diagnostics."""
        return int(self.values.get(key, 0))

    def _complain(self, source: str, text: str) -> None:
        self.complaints[source] = text

    def _on_executed(self, message: TimeReference) -> None:
        seconds = message.time_ref.sec + message.time_ref.nanosec * 1e-9
        if seconds > self.axis:
            self.axis, self.axis_at = seconds, time.monotonic()

    def _on_virtual(self, message: PoseStamped) -> None:
        self.virtual_z.append(message.pose.position.z)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f'{self.name.lstrip("/")}:'):
                self.health = status.message
                self.values = {value.key: value.value for value in status.values}


def _header(chunk: Chunk) -> Any:
    from std_msgs.msg import Header

    return Header(stamp=Time(nanoseconds=chunk.stamp_ns).to_msg(), frame_id=chunk.frame)


def run_jog(options: JogOptions) -> int:
    """Preview, have it confirmed, move. Exit status 0 where the arm did as previewed, else 1."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, 100)
    profile = load_profile(options.robot, options.robot_sn, options.namespace)
    steps: list[Step] = []
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    end_on_signals()
    jogger: Jogger | None = None
    try:
        jogger = Jogger(profile, options.namespace)
        _jog(options, profile, jogger, console, steps)
    except (JogError, NodeDied, ValueError) as error:
        steps.append(Step('ended', False, str(error)))
    except KeyboardInterrupt:
        steps.append(Step('ended', False, 'interrupted: the executor brakes'))
    finally:
        if jogger is not None:
            jogger.close()
        rclpy.try_shutdown()
    table = Table(title=f'jog of {profile.robot}', title_justify='left')
    for name in ('step', '', 'found'):
        table.add_column(name)
    for step in steps:
        table.add_row(step.name, '[green]ok[/]' if step.ok else '[red]no[/]', escape(step.found))
    console.print(table)
    ok = bool(steps) and all(step.ok for step in steps)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        data = {'robot': profile.robot, 'ok': ok, 'steps': [asdict(step) for step in steps]}
        options.json.write_text(json.dumps(data, indent=1), encoding='utf-8')
    return 0 if ok else 1


def _jog(
    options: JogOptions, profile: Profile, jogger: Jogger, console: Console, steps: list[Step]
) -> None:
    if not jogger.spin(FIND, jogger.known):
        said = '; '.join(f'{source}: {text}' for source, text in jogger.complaints.items())
        raise JogError(
            f'the arm is not received ({said or "no message"}): `specprune doctor --robot '
            f'{options.robot}` says what is missing'
        )
    jogger.spin(LISTEN)
    if not options.dry_run and (others := jogger.others()):
        raise JogError(
            f'{", ".join(others)} publish on {profile.command.topic}: stop what commands the arm '
            'first'
        )
    jog = Jog(profile, jogger.pose, options.up, options.seconds)
    seen = preview(jog, jogger.motion.kinematics, jogger.joints())
    _show(jog, seen, options, console)
    if seen.stopped:
        raise JogError(f'the executor would not do it: {seen.stopped}')
    steps.append(
        Step('preview', True, f'{1e3 * seen.rise:.0f} mm, {seen.fastest:.3f} m/s at most')
    )
    if not options.dry_run:
        _confirm(options, profile, jogger, jog, console)
    log = Path(tempfile.mkdtemp(prefix='specprune_jog_')) / f'{EXECUTOR}.log'
    process = NodeProcess(
        'chunk_executor',
        ros_arguments(
            {'__node': EXECUTOR, '__ns': options.namespace or '/'},
            {
                'profile': str(find_profile(options.robot).resolve()),
                'robot_sn': options.robot_sn,
                'joining': 'latest',
                'policy': '',
                'dry_run': options.dry_run,
            },
        ),
        log,
    )
    console.print(f'the executor writes to {log}', style='dim', highlight=False)
    try:
        _move(jogger, jog, process, options, steps)
        if options.gripper and profile.gripper.adapter != NO_GRIPPER:
            for opening, word in ((1.0, 'open'), (0.0, 'close')):
                _grip(jogger, jog, process, opening)
                steps.append(Step(f'gripper: {word}', True, jogger.values.get('gripper', '')))
    finally:
        try:
            if process.process.poll() is None:
                jogger.enable(False, 2.0)
        except JogError:
            pass  # ending the process is a stop as well
        finally:
            stop_all([process])


def _show(jog: Jog, seen: Preview, options: JogOptions, console: Console) -> None:
    profile, at = jog.profile, jog.start.position
    table = Table(title='What is going to happen', show_header=False, title_justify='left')
    place = ', '.join(f'{axis} {value:.3f}' for axis, value in zip('xyz', at, strict=True))
    rows = {
        'arm': f'{profile.robot}: {profile.description}',
        'tool now': f'{place} m in {profile.base_frame}',
        'motion': f'{1e3 * jog.height:.0f} mm along +z of {profile.base_frame} and back in '
        f'{seen.seconds:.1f} s, at most {seen.fastest:.3f} m/s '
        f'(limit {profile.limits.translation_speed:g})',
        'direction': f'up only where +z of {profile.base_frame} points up: check first',
        'sent as': f'{profile.command.adapter} on {profile.command.topic}'
        if not options.dry_run
        else f'nothing is sent: {options.namespace}/{EXECUTOR}/dry_run/command',
        'gripper': 'opens, then closes: keep fingers out'
        if options.gripper and profile.gripper.adapter != NO_GRIPPER
        else 'does not move',
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    console.print(table)


def _confirm(
    options: JogOptions, profile: Profile, jogger: Jogger, jog: Jog, console: Console
) -> None:
    if not options.yes:
        console.print(
            '[bold]One hand on the emergency stop, nobody within reach.[/] Ctrl-C stops.'
        )
        if not sys.stdin.isatty():
            raise JogError(
                'a person must confirm at a terminal (--yes is for arms that are not real)'
            )
        try:
            said = input('Type move to move the arm: ')
        except EOFError:
            said = ''
        if said.strip().lower() != 'move':
            raise JogError('not confirmed: nothing was sent')
    jogger.spin(0.5)
    _check_place(jogger, jog)


def _check_place(jogger: Jogger, jog: Jog) -> None:
    far = norm(subtract(jogger.pose.position, jog.start.position))
    if far > MOVED:
        raise JogError(f'the tool has moved by {1e3 * far:.0f} mm since the preview: start again')


def _move(
    jogger: Jogger, jog: Jog, process: NodeProcess, options: JogOptions, steps: list[Step]
) -> None:
    """Up and back. Raises ``JogError`` at the first thing that is not as previewed."""

    def up() -> bool:
        process.check()
        return jogger.health not in ('', 'not active')

    if not jogger.spin(START, up):
        raise JogError(f'the executor did not come up: {jogger.health}\n{process.tail()}')
    if not options.dry_run:
        _check_place(jogger, jog)  # again: the executor took its time
    jogger.enable(True)
    highest = jog.start.position[2]
    _drive(jogger, jog, process, None, BEGIN, lambda: jogger.axis > 0.0)

    def there() -> bool:
        nonlocal highest
        if not options.dry_run:
            here, wanted = jogger.pose.position, jog.pose(jogger.axis).position
            highest = max(highest, here[2])
            far = norm(subtract(here, wanted))
            if far > OFF:
                raise JogError(
                    f'the tool is {1e3 * far:.0f} mm from where it was sent: does the controller '
                    f'take {jog.profile.command.adapter} in {jog.profile.command.frame}, and is '
                    'the pose that of the tool it moves?'
                )
        return jogger.axis >= jog.duration

    _drive(jogger, jog, process, None, jog.duration + 60.0, there)
    if options.dry_run:
        rise = max(jogger.virtual_z, default=jog.start.position[2]) - jog.start.position[2]
        steps.append(
            Step('along +z and back (dry run)', rise > 0.5 * jog.height, f'{1e3 * rise:.1f} mm')
        )
        return
    rise = highest - jog.start.position[2]
    off = norm(subtract(jogger.pose.position, jog.start.position))
    steps.append(
        Step(
            'along +z',
            rise > 0.5 * jog.height,
            f'{1e3 * rise:.1f} mm of {1e3 * jog.height:.0f} mm measured',
        )
    )
    steps.append(Step('back', off <= BACK, f'{1e3 * off:.1f} mm from the start'))
    if not (rise > 0.5 * jog.height and off <= BACK):
        raise JogError('the arm did not do what was sent')


def _grip(jogger: Jogger, jog: Jog, process: NodeProcess, opening: float) -> None:
    """One gripper command, while the arm holds its place."""
    count = jogger.number('gripper commands')

    def done() -> bool:
        sent = jogger.number('gripper commands') > count
        return sent and jogger.values.get('gripper') == 'done'

    _drive(jogger, jog, process, opening, GRIP, done)


def _drive(
    jogger: Jogger,
    jog: Jog,
    process: NodeProcess,
    opening: float | None,
    patience: float,
    until: Callable[[], bool],
) -> None:
    """Send rows until something is true. Raises ``JogError`` when the executor stops."""
    begin, last = time.monotonic(), -1.0
    while not until():
        now = time.monotonic()
        moving = jogger.axis > 0.0
        stopped = jogger.number('stops') > 0
        if stopped or (moving and now - max(jogger.axis_at, begin) > STALL):
            raise JogError(_why(jogger))
        if now - begin > patience:
            raise JogError(f'not done after {patience:.0f} s: {_why(jogger)}')
        if now - last >= EVERY:
            last = now
            jogger.next_chunk(jog, opening)
        process.check()
        jogger.spin(0.01)


def _why(jogger: Jogger) -> str:
    """Why the executor stopped, as soon as it says so; nothing more is sent meanwhile."""
    jogger.spin(SAY, lambda: jogger.number('stops') > 0)
    reason = jogger.values.get('last stop', '')
    detail = jogger.values.get('last stop detail', '')
    if reason:
        return f'the executor stopped the arm: {reason}: {detail}'
    return (
        f'the executor says: {jogger.health or "nothing"}; gripper: {jogger.values.get("gripper")}'
    )
