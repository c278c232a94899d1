"""``chunk_executor``: action chunks in, safe arm commands at control rate out.

Every command passes the safety filter last. The watchdog is asked at every tick of a timer that
runs on real time, so that neither a silent policy nor a stalled /clock can keep the arm moving.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.time import Time
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from specprune_ros.msg import ActionChunk
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.parameters import NodeParameters, ParameterSpec
from specprune_ros.nodes.common.qos import every, newest
from specprune_ros.nodes.common.rates import Percentiles, RateMeter
from specprune_ros.nodes.common.remapping import profile_path
from specprune_ros.nodes.executor_node.arm_ports import SECOND_NS, ArmPort, make_port, pose_message
from specprune_ros.nodes.executor_node.arm_state import ArmState, needed
from specprune_ros.nodes.executor_node.gripper_ports import GripperPort, make_gripper
from specprune_ros.nodes.executor_node.realtime import ask_for_priority, freeze_gc
from specprune_ros.robot import profile as profiles
from specprune_ros.robot import timeline
from specprune_ros.robot.geometry import Twist, add, rotate, scale, twist_between
from specprune_ros.robot.gripper import GripperHysteresis
from specprune_ros.robot.kinematics import joint_velocities
from specprune_ros.robot.safety import Command, SafetyFilter, Stop, joint_limits
from specprune_ros.robot.timeline import (
    Chunk,
    ChunkError,
    ChunkRules,
    ChunkTimeline,
    LateChunkError,
    Setpoint,
)
from specprune_ros.robot.watchdog import DISABLED, State, Watchdog, WatchdogDecision

DIAGNOSTICS_PERIOD = 1.0  # s
COMPLAIN_PERIOD = 5.0  # s
GRIPPER_RETRY = 1.0  # s
FLUSH = 0.2  # s, how long a last stop may take to reach the driver

SETTINGS = (
    ParameterSpec('profile', 'sim_arm', 'Robot profile: a YAML file, or a name in config/robots.'),
    ParameterSpec('robot_sn', '', "The robot's serial number, for profiles that hold {robot_sn}."),
    ParameterSpec(
        'dry_run', False, 'Publish on ~/dry_run/... what would be sent, and send nothing.'
    ),
    ParameterSpec(
        'joining',
        '',
        "How a chunk joins the motion under way; empty takes the profile's rule.",
        choices=('', *timeline.JOINING_RULES),
    ),
    ParameterSpec(
        'policy',
        'specprune_node',
        'Node whose errors on /diagnostics stop the arm; empty listens to none.',
    ),
    ParameterSpec(
        'realtime_priority',
        20,
        'Real-time priority (SCHED_FIFO) of this process where the system grants it, so that a '
        'busy machine delays no stop; 0 asks for none.',
        low=0,
        high=90,
    ),
)


class ChunkExecutor(AutoLifecycleNode):
    """See the module's text, and docs/robots.md."""

    def __init__(self) -> None:
        super().__init__('chunk_executor')
        self._settings = NodeParameters(self, SETTINGS)
        self._profile: profiles.Profile | None = None
        self._port: ArmPort | None = None
        self._gripper: GripperPort | None = None
        self._state: ArmState | None = None
        self._timer: Any = None
        self._listening: list[Any] = []
        self._verdict = WatchdogDecision(State.WAITING)
        self._complaints: dict[str, tuple[str, float]] = {}
        self._counts: Counter[str] = Counter()
        self._periods = Percentiles(1000)
        self._jitter = Percentiles(1000)
        self._sent_at: int | None = None
        self._delays = Percentiles()
        self._chunk_rate = RateMeter()
        self._last_tick: int | None = None
        self._scheduling = 'not active'
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', every())
        self._path = self.create_publisher(PathMessage, '~/path', newest(reliable=True))
        self.create_service(SetBool, '~/enable', self._on_enable)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=self._steady)

    # Lifecycle.

    def setup(self) -> None:
        """Read the profile and make everything it names; a part that is missing shows now."""
        self._settings.check_now()
        values = self._settings.values()
        self._dry = values['dry_run']
        self._policy = values['policy']
        arguments = {'robot_sn': values['robot_sn']} if values['robot_sn'] else {}
        profile = profiles.load(profile_path(values['profile']), arguments)
        self._profile = profile
        command = profile.command
        self._commands_joints = command.adapter == profiles.JOINT_TRAJECTORY
        tracked = command.adapter in (profiles.POSE, profiles.MOTION_FORCE)
        period = 1.0 / command.rate
        self._cartesian = SafetyFilter(profile.limits, period, tracked=tracked)
        # One table for filter and port: robot_description may tighten it when it comes.
        self._joint_limits = dict(profile.limits.joints)
        self._joint_guard = SafetyFilter(
            dataclasses.replace(profile.limits, joints=self._joint_limits), period
        )
        self._watchdog = Watchdog(profile.watchdog, needed(profile), profile.enabled_at_start)
        ee = (timeline.KIND_EE_DELTA, timeline.KIND_EE_POSE)
        joint = (timeline.KIND_JOINT_POSITION, timeline.KIND_JOINT_DELTA)
        frames = tuple(f for f in (profile.base_frame, profile.tool_frame) if f)
        kinds = ee + joint if self._commands_joints else ee
        self._timeline = ChunkTimeline(
            ChunkRules(frames, profile.joints if self._commands_joints else (), kinds),
            values['joining'] or profile.joining,
            profile.tool_frame,
        )
        settings = profile.gripper
        self._hysteresis = GripperHysteresis(
            settings.close_below,
            settings.open_above,
            settings.continuous,
            dwell_s=settings.dwell_s,
        )
        self._port = make_port(
            self,
            profile,
            self._joint_limits,
            '~/dry_run/command' if self._dry else command.topic,
        )
        self._gripper = make_gripper(self, settings, '~/dry_run/gripper' if self._dry else '')
        self._gripper_after = 0
        self._settings.frozen = True

    def start(self) -> None:
        """Subscribe and let the control timer run."""
        profile = self._profile
        self._state = ArmState(self, profile, self._watchdog, self._complain, self._tighten_joints)
        self._listening = [
            self.create_subscription(ActionChunk, '~/action_chunk', self._on_chunk, every())
        ]
        if self._policy:
            self._listening.append(
                self.create_subscription(
                    DiagnosticArray, '/diagnostics', self._on_diagnostics, every()
                )
            )
        self._scheduling = ask_for_priority(self._settings.values()['realtime_priority'])
        self._timeline.reset()
        self._watchdog.reset()
        self._rest()
        self._last_tick = None
        self._timer = self.create_timer(1.0 / profile.command.rate, self._tick, clock=self._steady)
        self.get_logger().info(
            f'active: {profile.name}, {profile.command.adapter} on '
            f'{self._port.publisher.topic_name} at {profile.command.rate:g} Hz'
            + f', {self._scheduling}'
            + (', DRY RUN' if self._dry else '')
            + ('' if self._watchdog.enabled else ', disabled until ~/enable')
        )

    def stop(self) -> None:
        """Stop the arm if it moves, then fall silent."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
            if self._verdict.may_move:
                self._stop_arm('deactivated')
                self._port.publisher.wait_for_all_acked(Duration(seconds=FLUSH))
            self._verdict = WatchdogDecision(State.WAITING)
        if self._state is not None:
            self._state.close()
            self._state = None
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        self._listening = []

    def teardown(self) -> None:
        """Give publishers and clients back."""
        if self._port is not None:
            self.destroy_publisher(self._port.publisher)
            self._port = None
        if self._gripper is not None:
            self._gripper.close()
            self._gripper = None
        self._profile = None
        self._settings.frozen = False

    def _tighten_joints(self, urdf: dict[str, tuple[float, float, float]]) -> None:
        """Joint limits are the tighter of profile and robot_description. Raises ``ValueError``."""
        profile = self._profile
        self._joint_limits.update(joint_limits(profile.joints, urdf, profile.limits.joints))

    # What comes in.

    def _on_chunk(self, message: ActionChunk) -> None:
        now = self._now_ns()
        self._counts['chunks'] += 1
        self._chunk_rate.tick(time.monotonic())
        if not self._watchdog.enabled or self._verdict.latched:
            self._counts['ignored while stopped'] += 1
            return
        state = self._state
        joints = [state.joints.get(name, math.nan) for name in self._profile.joints]
        try:
            chunk = chunk_of(message)
            joined = self._timeline.add(
                chunk,
                now,
                state.pose,
                joints if self._commands_joints and state.joints else None,
            )
        except LateChunkError as error:
            self._counts['late'] += 1
            self._complain('chunk', str(error))
            return
        except ChunkError as error:
            self._counts['refused'] += 1
            self._complain('chunk', f'refused: {error}')
            self._watchdog.policy_error(f'chunk refused: {error}')
            return
        self._watchdog.chunk(chunk.stamp_ns, now)
        self._delays.add(joined.skipped)
        if joined.new_start:
            self.get_logger().info(f'episode {chunk.episode}: earlier motion dropped')
        if self._path.get_subscription_count():
            self._publish_path(chunk)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if (
                status.name.split(':')[0].strip('/') == self._policy.strip('/')
                and status.level == DiagnosticStatus.ERROR
            ):
                self._watchdog.policy_error(status.message)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._profile is None:
            response.success, response.message = False, 'not configured'
            return response
        self._watchdog.enable(request.data)
        self._timeline.stop()
        self._cartesian.enable()
        self._joint_guard.enable()
        response.success = True
        response.message = 'enabled: moves with the next chunk' if request.data else 'disabled'
        self.get_logger().info(response.message)
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._profile is None:
            response.success, response.message = False, 'not configured'
            return response
        self._timeline.reset()
        self._watchdog.reset()
        self._hysteresis.reset()
        response.success, response.message = True, 'chunks dropped; what latched stays stopped'
        return response

    # The control period.

    def _tick(self) -> None:
        real = time.monotonic_ns()
        if self._last_tick is not None:
            self._periods.add((real - self._last_tick) * 1e-9)
        self._last_tick = real
        now = self._now_ns()
        verdict = self._watchdog.check(now, real)
        if verdict.may_move and not self._move(now):
            verdict = self._watchdog.check(now, real)  # the safety filter refused
        if verdict.stop_now:
            self._stop_arm(f'{verdict.reason}: {verdict.detail}')
        if not verdict.may_move:
            self._timeline.stop()
        self._show(verdict)
        self._verdict = verdict

    def _move(self, now: int) -> bool:
        setpoint = self._timeline.sample(now)
        self._watchdog.queue(setpoint.done, now)
        wanted = Command(gripper=setpoint.gripper)
        if setpoint.joint_velocities is None:
            twist = self._wanted_twist(setpoint)
            out = self._cartesian.filter(
                Command(twist=twist, gripper=setpoint.gripper), self._state.pose
            )
            if self._commands_joints and not isinstance(out, Stop):
                wanted = self._joint_command(out)
        else:
            out = wanted = self._joint_setpoint(setpoint)
        if self._commands_joints and not isinstance(out, Stop):
            out = (
                wanted
                if isinstance(wanted, Stop)
                else self._joint_guard.filter(wanted, self._state.pose, self._state.joints)
            )
        if isinstance(out, Stop):
            self._watchdog.unsafe(f'{out.reason}: {out.detail}')
            self._counts['refused commands'] += 1
            return False
        self._port.send(out, self._stamp(now))
        self._note_sent()
        self._counts['commands'] += 1
        self._grip(out.gripper, now)
        return True

    def _note_sent(self) -> None:
        """How far the time between two commands of one motion is from the period."""
        sent = time.monotonic_ns()
        if self._sent_at is not None:
            period = 1.0 / self._profile.command.rate
            self._jitter.add(abs((sent - self._sent_at) * 1e-9 - period))
        self._sent_at = sent

    def _wanted_twist(self, setpoint: Setpoint) -> Twist:
        twist = setpoint.twist or Twist()
        pose = self._cartesian.pose or self._state.pose
        if setpoint.frame and setpoint.frame == self._profile.tool_frame:
            # Stale or missing poses never get here: the watchdog needs one.
            turn = pose.orientation
            return Twist(rotate(turn, twist.linear), rotate(turn, twist.angular))
        if setpoint.pose is not None and pose is not None:
            pull, gain = twist_between(pose, setpoint.pose, 1.0), self._profile.command.gain
            twist = Twist(
                add(twist.linear, scale(pull.linear, gain)),
                add(twist.angular, scale(pull.angular, gain)),
            )
        return twist

    def _joint_command(self, command: Command) -> Command | Stop:
        """Joint velocities for a tool velocity that is within the limits."""
        kinematics, joints = self._state.kinematics, self._profile.joints
        if kinematics is None:
            return Stop('no_description', 'no usable robot_description to move the tool by')
        if set(kinematics.joint_names) != set(joints):
            return Stop(
                'unknown_joint',
                f'robot_description moves the tool by {", ".join(kinematics.joint_names)}, the '
                f'profile names {", ".join(joints)}',
            )
        at = self._joint_guard.positions or self._state.joints
        speeds = dict(
            zip(
                kinematics.joint_names,
                joint_velocities(
                    kinematics.jacobian(list(joints), [at[name] for name in joints]),
                    command.twist,
                ),
                strict=True,
            )
        )
        return Command(
            joints=joints,
            velocities=tuple(speeds[name] for name in joints),
            gripper=command.gripper,
        )

    def _joint_setpoint(self, setpoint: Setpoint) -> Command:
        joints, speeds = self._profile.joints, setpoint.joint_velocities
        at = self._joint_guard.positions or self._state.joints
        if setpoint.joint_positions is not None and at:
            gain = self._profile.command.gain
            speeds = tuple(
                v + gain * (goal - at[name])
                for name, v, goal in zip(joints, speeds, setpoint.joint_positions, strict=True)
            )
        return Command(joints=joints, velocities=speeds, gripper=setpoint.gripper)

    def _grip(self, opening: float | None, now: int) -> None:
        if self._gripper is None or opening is None or time.monotonic() < self._gripper_after:
            return
        command = self._hysteresis.update(opening, now)
        if command is None:
            return
        if self._gripper.send(command):
            self._counts['gripper commands'] += 1
            return
        self._complain('gripper', f'{self._profile.gripper.name}: no action server yet')
        self._hysteresis.reset()
        self._gripper_after = time.monotonic() + GRIPPER_RETRY

    def _stop_arm(self, why: str) -> None:
        state = self._state
        sent = self._port.stop(self._stamp(self._now_ns()), state.pose, state.joints)
        self._counts['stops'] += 1
        self._timeline.stop()
        self._rest()
        self.get_logger().warning(
            f'stop: {why}'
            + ('' if sent else '; no measured place to hold, so nothing was sent: commands cease')
        )

    def _rest(self) -> None:
        self._cartesian.rest()
        self._joint_guard.rest()
        self._sent_at = None

    # What is shown.

    def _show(self, verdict: WatchdogDecision) -> None:
        before = self._verdict
        if (verdict.state, verdict.reason) == (before.state, before.reason):
            return
        if verdict.may_move:
            self.get_logger().info('moving')
        elif verdict.state is State.STOPPED and verdict.latched and not before.latched:
            self.get_logger().warning(f'stays stopped ({verdict.reason}) until ~/enable')
        elif verdict.state is State.WAITING and verdict.reason not in ('', DISABLED):
            self._complain('waiting', verdict.detail)

    def _publish_path(self, chunk: Chunk) -> None:
        """The tool's way through the chunk from where it is now, in the base frame."""
        pose = self._state.pose
        if pose is None or chunk.kind not in (timeline.KIND_EE_DELTA, timeline.KIND_EE_POSE):
            return
        header = Header(stamp=self._stamp(chunk.stamp_ns), frame_id=self._profile.base_frame)
        path = PathMessage(header=header)
        for at in timeline.path_of(chunk, pose, self._profile.tool_frame):
            path.poses.append(PoseStamped(header=header, pose=pose_message(at)))
        self._path.publish(path)

    def _complain(self, source: str, reason: str) -> None:
        """Log a warning, the same one not more often than every few seconds."""
        last, at = self._complaints.get(source, ('', -math.inf))
        now = time.monotonic()
        if now - at > COMPLAIN_PERIOD or (reason != last and now - at > 1.0):
            self.get_logger().warning(f'{source}: {reason}')
            self._complaints[source] = (reason, now)

    def _report(self) -> None:
        verdict = self._verdict
        status = DiagnosticStatus(
            name=f'{self.get_fully_qualified_name().lstrip("/")}: execution',
            hardware_id=self._profile.name if self._profile else '',
        )
        status.level, status.message = self._health(verdict)
        crowd = self._competing_publishers()
        if crowd:
            status.level = max(status.level, DiagnosticStatus.WARN)
            status.message = f'{status.message}; {crowd}'
            self._complain('publishers', crowd)
        values: dict[str, object] = {'state': verdict.state.value, 'reason': verdict.reason}
        if self._profile is not None:
            p50, p99, longest = self._periods.at(50, 99, 100)
            now = self._now_ns()
            values |= {
                'enabled': self._watchdog.enabled,
                'dry run': self._dry,
                'scheduling': self._scheduling,
                'period p50 (ms)': f'{1e3 * p50:.2f}',
                'period p99 (ms)': f'{1e3 * p99:.2f}',
                'period max (ms)': f'{1e3 * longest:.2f}',
                'command jitter p99 (ms)': f'{1e3 * self._jitter.at(99)[0]:.2f}',
                'chunk rate (Hz)': f'{self._chunk_rate.rate(time.monotonic()):.1f}',
                'steps executed since observation p50': f'{self._delays.at(50)[0]:.2f}',
                'motion queued (s)': f'{self._timeline.queued:.2f}',
                'joining': self._timeline.rule,
            }
            for name in needed(self._profile):
                age = self._watchdog.age(name, now)
                values[f'{name} age (s)'] = 'none yet' if age is None else f'{age:.3f}'
            observed = self._watchdog.observation_ns
            values['observation age (s)'] = (
                'none' if observed is None else f'{(now - observed) / SECOND_NS:.3f}'
            )
        values |= dict(self._counts)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._stamp(self._now_ns())
        self._diagnostics.publish(message)

    def _competing_publishers(self) -> str:
        """Who else sends commands to the arm or chunks to this node, in words; empty is good.

        It is said and not acted on: a node that was killed stays listed for some seconds, and
        stopping would not keep somebody else from commanding the arm.
        """
        if self._timer is None:
            return ''
        topics = (self._port.publisher.topic_name, self._listening[0].topic_name)
        found = []
        for topic in topics:
            names = sorted(
                f'{info.node_namespace}/{info.node_name}'.replace('//', '/')
                for info in self.get_publishers_info_by_topic(topic)
            )
            if len(names) > 1:
                found.append(f'{len(names)} publishers on {topic}: {", ".join(names)}')
        return '; '.join(found)

    def _health(self, verdict: WatchdogDecision) -> tuple[bytes, str]:
        if self.last_error:
            return DiagnosticStatus.ERROR, self.last_error
        if self._timer is None:
            return DiagnosticStatus.WARN, 'not active'
        if verdict.may_move:
            return DiagnosticStatus.OK, 'moving'
        if verdict.reason == DISABLED:
            return DiagnosticStatus.WARN, 'disabled'
        text = ': '.join(part for part in (verdict.reason, verdict.detail) if part)
        if verdict.state is State.STOPPED:
            return DiagnosticStatus.ERROR, text + (' (until ~/enable)' if verdict.latched else '')
        return DiagnosticStatus.WARN, text or 'waiting'

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _stamp(self, nanoseconds: int) -> Any:
        return Time(nanoseconds=max(nanoseconds, 0)).to_msg()


def chunk_of(message: ActionChunk) -> Chunk:
    """The fields of a message that motion depends on."""
    stamp, step = message.header.stamp, message.step_dt
    return Chunk(
        stamp_ns=stamp.sec * SECOND_NS + stamp.nanosec,
        frame=message.header.frame_id,
        sequence=message.sequence,
        episode=message.episode,
        step_dt=step.sec + step.nanosec / SECOND_NS,
        horizon=message.horizon,
        dims=tuple(message.dims),
        kind=message.kind,
        rotation=message.rotation,
        reference=message.reference,
        data=message.data,
        gripper_dim=message.gripper_dim,
        gripper_sense=message.gripper_sense,
        first_valid_step=message.first_valid_step,
        instruction=message.instruction,
    )


def main() -> int:
    """Entry point of ``ros2 run specprune_ros chunk_executor``."""
    freeze_gc()
    return run(ChunkExecutor)


if __name__ == '__main__':
    raise SystemExit(main())
