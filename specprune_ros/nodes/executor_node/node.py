"""``chunk_executor``: action chunks in, safe arm commands at control rate out.

What moves the arm is :class:`specprune_ros.robot.motion.ArmMotion`; this is its connection to ROS.
It is called at every tick of a timer that runs on real time, so that neither a silent policy nor a
stalled /clock can keep the arm moving.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.time import Time
from sensor_msgs.msg import TimeReference
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from specprune_ros.msg import ActionChunk
from specprune_ros.nodes.common.bounded_subscription import subscribe
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.log import SAME, Throttle
from specprune_ros.nodes.common.messages import chunk_of
from specprune_ros.nodes.common.parameters import NodeParameters
from specprune_ros.nodes.common.qos import every, newest
from specprune_ros.nodes.common.rates import Percentiles, RateMeter
from specprune_ros.nodes.common.realtime import freeze_gc, request_priority
from specprune_ros.nodes.common.remapping import find_profile, profile_arguments
from specprune_ros.nodes.executor_node.arm_ports import SECOND_NS, ArmPort, make_port, pose_message
from specprune_ros.nodes.executor_node.arm_state import ArmState, description_of_file
from specprune_ros.nodes.executor_node.dry_run import TOPIC as DRY_RUN
from specprune_ros.nodes.executor_node.dry_run import DryRunView
from specprune_ros.nodes.executor_node.gripper_ports import Gripper
from specprune_ros.nodes.executor_node.parameters import SETTINGS
from specprune_ros.nodes.executor_node.supervisor import SUFFIX, Setup, Supervisor, enclave
from specprune_ros.robot import chunk as chunks
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.chunk import Chunk, ChunkError, LateChunkError
from specprune_ros.robot.motion import ArmMotion, Tick, needed
from specprune_ros.robot.stop_motion import StopMotion
from specprune_ros.robot.watchdog import (
    DISABLED,
    DRIVER,
    DRY_QUEUE,
    ENDED,
    HELD,
    State,
    WatchdogDecision,
)

DIAGNOSTICS_PERIOD = 1.0  # s
EXECUTED_EVERY = 0.02  # s of motion between two messages on ~/executed
SLOW = (3, 10.0)  # stops for a dry queue within s after which the policy is called too slow
HELD_UP = 0.75  # of the supervisor's limit: after a period so long it has the arm
WAIT = 0.005  # s between two looks at what the supervisor does
LONGEST = 5.0  # s for which its stop is waited for at the end
FLUSH = 0.2  # s, how long a last stop may take to reach the driver


class ChunkExecutor(AutoLifecycleNode):
    """See the module's text, and docs/how-to/robots.md."""

    def __init__(self) -> None:
        super().__init__('chunk_executor')
        self._settings = NodeParameters(self, SETTINGS)
        self._profile: profiles.Profile | None = None
        self._port: ArmPort | None = None
        self._gripper: Gripper | None = None
        self._motion: ArmMotion | None = None
        self._state: ArmState | None = None
        self._supervisor: Supervisor | None = None
        self._dry_view: DryRunView | None = None
        self._timer: Any = None
        self._listening: list[Any] = []
        self._verdict = WatchdogDecision(State.WAITING)
        self._throttle = Throttle(self.get_logger())
        self._lasts = 0.0
        self._counts: Counter[str] = Counter()
        self._periods = Percentiles(1000)
        self._jitter = Percentiles(1000)
        self._sent_at: int | None = None
        self._delays = Percentiles()
        self._chunk_rate = RateMeter()
        self._last_tick: int | None = None
        self._last_stop: dict[str, object] = {}
        self._stop_began = 0
        self._dry_stops: deque[float] = deque(maxlen=SLOW[0])
        self._too_slow = ''
        self._scheduling = 'not active'
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', every())
        self._path = self.create_publisher(PathMessage, '~/path', newest(reliable=True))
        self._executed = self.create_publisher(TimeReference, '~/executed', every())
        self._reported = 0.0  # s executed at the last message on it
        self._moved_at = 0  # when the timeline was last sampled, ns
        self.create_service(SetBool, '~/enable', self._on_enable)
        self.create_service(SetBool, '~/hold', self._on_hold)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=self._steady)

    # Lifecycle.

    def setup(self) -> None:
        """Read the profile and make everything it names; a part that is missing shows now."""
        self._settings.check_now()
        values = self._settings.values()
        self._dry = values['dry_run']
        self._policy = values['policy']
        arguments = profile_arguments(values['robot_sn'], self.get_namespace())
        profile = profiles.load(find_profile(values['profile']), arguments)
        self._profile = profile
        command = profile.command
        self._motion = ArmMotion(
            profile,
            values['joining'],
            self._throttle.warning,
            virtual=self._dry,
            simulated_clock=self.get_parameter('use_sim_time').value,
        )
        self._port = make_port(
            self,
            profile,
            self._motion.joint_limits,
            f'{DRY_RUN}/command' if self._dry else command.topic,
        )
        self._gripper = Gripper(
            self,
            profile.gripper,
            self._throttle.warning,
            f'{DRY_RUN}/gripper' if self._dry else '',
        )
        self._dry_view = DryRunView(self, self._motion) if self._dry else None
        self._urdf = description_of_file(profile)
        self._description_sha256 = profile.observation.robot_description_sha256
        if values['supervisor_limit'] > 0.0:
            least = 1.0 / (HELD_UP * command.rate)
            if values['supervisor_limit'] <= least:
                raise profiles.ProfileError(
                    f'supervisor_limit: is {values["supervisor_limit"]:g} s; must be above '
                    f'{least:.3g} s at command.rate {command.rate:g} (or 0: none)'
                )
            self._supervisor = Supervisor(
                Setup(
                    name=self.get_name(),
                    namespace=self.get_namespace(),
                    enclave=enclave(sys.argv),
                    profile=str(find_profile(values['profile'])),
                    arguments=arguments,
                    topic=self._port.publisher.topic_name,
                    limit=values['supervisor_limit'],
                    priority=values['realtime_priority'],
                ),
                self._motion.joint_limits,
            )
        self._settings.frozen = True

    def start(self) -> None:
        """Subscribe and let the control timer run."""
        profile = self._profile
        self._motion.begin(self._now_ns())
        self._gripper.reset()
        self._state = ArmState(
            self,
            self._motion,
            self._throttle.warning,
            self._on_description,
            urdf=self._urdf,
            sha256=self._description_sha256,
        )
        self._listening = [
            subscribe(
                self, ActionChunk, '~/action_chunk', self._on_chunk, every(), self._refuse_chunk
            )
        ]
        if self._policy:
            self._listening.append(
                subscribe(
                    self,
                    DiagnosticArray,
                    '/diagnostics',
                    self._on_diagnostics,
                    every(),
                    partial(self._throttle.warning, 'diagnostics'),
                    # A whole robot's come here; only those that name the policy are decoded.
                    mentions=self._policy.split('/')[-1],
                )
            )
        self._scheduling = request_priority(self._settings.values()['realtime_priority'])
        self._last_tick = self._sent_at = None
        self._dry_stops.clear()
        self._too_slow = ''
        self._timer = self.create_timer(1.0 / profile.command.rate, self._tick, clock=self._steady)
        self.get_logger().info(
            f'active: {profile.robot}, {profile.command.adapter} on '
            f'{self._port.publisher.topic_name} at {profile.command.rate:g} Hz'
            + f', {self._scheduling}'
            + (', DRY RUN' if self._dry else '')
            + ('' if self._motion.watchdog.enabled else ', disabled until ~/enable')
        )

    def stop(self) -> None:
        """Bring the arm to rest if it moves, then fall silent. Enabling is lost."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
            since = self._last_tick or time.monotonic_ns()
            self._left_to_supervisor((time.monotonic_ns() - since) * 1e-9)
            if self._motion.moving:
                self._begin_stop(WatchdogDecision(State.STOPPED, ENDED, 'deactivated or ending'))
                self._finish()
                self._port.publisher.wait_for_all_acked(Duration(seconds=FLUSH))
            self._motion.end()
            self._verdict = WatchdogDecision(State.WAITING)
        if self._state is not None:
            self._state.close()
            self._state = None
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        self._listening = []

    def _finish(self) -> None:
        """Send the rest of a stop, at control rate, unless the supervisor took it over."""
        period = 1.0 / self._profile.command.rate
        due = sent = time.monotonic()
        for tick in self._motion.finish():
            if self._left_to_supervisor(time.monotonic() - sent):
                break
            sent = time.monotonic()
            self._send(tick, self._now_ns())
            due = max(due + period, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _left_to_supervisor(self, late: float) -> bool:
        """As :meth:`_taken_over`; waits until it is at rest or lost, for a node that is ending."""
        end = time.monotonic() + LONGEST
        taken = self._taken_over(late)
        while taken and self._supervisor.stopping:
            if time.monotonic() > end:
                self._motion.let_go()
                break
            time.sleep(WAIT)
            taken = self._taken_over(0.0)
        return taken

    def teardown(self) -> None:
        """Give publishers and clients back."""
        if self._port is not None:
            self.destroy_publisher(self._port.publisher)
            self._port = None
        for part in (self._gripper, self._dry_view):
            if part is not None:
                part.close()
        self._gripper = self._dry_view = None
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        self._profile = None
        self._settings.frozen = False

    # What comes in.

    def _on_chunk(self, message: ActionChunk) -> None:
        now = self._now_ns()
        self._counts['chunks'] += 1
        self._chunk_rate.append(time.monotonic())
        if not self._motion.watchdog.enabled or self._verdict.latched:
            self._counts['ignored while stopped'] += 1
            return
        try:
            chunk = chunk_of(message)
            joined = self._motion.chunk(chunk, now)
        except LateChunkError as error:
            self._counts['late'] += 1
            self._throttle.warning('chunk', str(error))
            return
        except ChunkError as error:
            self._refuse_chunk(str(error))
            return
        self._lasts = chunk.horizon * chunk.step_dt
        self._delays.append(joined.skipped)
        self._publish_executed(self._moved_at or now, f'chunk {chunk.stamp_ns}')
        if joined.new_start:
            self._counts['new episodes'] += 1
            self._throttle.info('chunk', f'episode {chunk.episode}: earlier motion dropped')
        if self._path.get_subscription_count():
            self._publish_path(chunk)

    def _refuse_chunk(self, reason: str) -> None:
        self._counts['refused'] += 1
        self._throttle.warning('chunk', f'refused: {reason}')
        self._motion.watchdog.policy_error(f'chunk refused: {reason}')

    def _on_description(self, sha256: str) -> None:
        """A robot description is in use: the only one until this node is configured anew."""
        self._description_sha256 = sha256
        if self._supervisor is not None:
            self._supervisor.send_limits(self._motion.joint_limits)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        policy = self._policy
        if not policy.startswith('/'):
            policy = f'{self.get_namespace().rstrip("/")}/{policy}'
        for status in message.status:
            name = status.name.split(':')[0].strip('/')
            if name == policy.strip('/') and status.level == DiagnosticStatus.ERROR:
                self._motion.watchdog.policy_error(status.message or 'no reason was given')

    def _inactive(self, response: Any) -> bool:
        """Whether a person's word is refused: nobody shall be surprised by a later activation."""
        if self._timer is not None:
            return False
        response.success, response.message = False, 'not active: activate the node first'
        return True

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._inactive(response):
            return response
        self._motion.enable(request.data, self._now_ns())
        if request.data:
            self._gripper.reset()
        response.success = True
        response.message = 'enabled: moves with the next chunk' if request.data else 'disabled'
        self.get_logger().info(response.message)
        return response

    def _publish_executed(self, now: int, source: str = '') -> None:
        """Publish how many seconds of motion have been executed; ``source`` names the chunk that
        was just taken in, by its stamp.
        """
        self._reported = self._motion.timeline.axis
        seconds, rest = divmod(round(self._reported * SECOND_NS), SECOND_NS)
        message = TimeReference(source=source)
        message.header.stamp = self._stamp(now)
        message.time_ref.sec, message.time_ref.nanosec = seconds, rest
        self._executed.publish(message)

    def _on_hold(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._inactive(response):
            return response
        self._motion.hold(request.data, self._now_ns())
        response.success = True
        response.message = 'holding' if request.data else 'goes on with the next chunk'
        self.get_logger().info(response.message)
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._profile is None:
            response.success, response.message = False, 'not configured'
            return response
        self._motion.reset(self._now_ns())
        self._gripper.reset()
        response.success, response.message = True, 'chunks dropped; what latched stays stopped'
        return response

    # The control period.

    def _tick(self) -> None:
        real = time.monotonic_ns()
        late = 0.0
        if self._last_tick is not None:
            late = (real - self._last_tick) * 1e-9
            self._periods.append(late)
        self._last_tick = real
        now = self._now_ns()
        taken = self._taken_over(late)
        if taken:
            # The motion stands still here meanwhile: from there it is braked if that is lost.
            tick = Tick(self._motion.watchdog.check(now, real))
            self._motion.timeline.stop()
        else:
            tick = self._motion.tick(now, real)
        if tick.verdict.stop_now:
            self._begin_stop(tick.verdict)
        # A process that was halted since this period began must not send what it decided then.
        if taken or self._taken_over((time.monotonic_ns() - real) * 1e-9):
            tick = Tick(tick.verdict)
        else:
            self._send(tick, now)
        self._moved_at = now
        # A policy that goes on from its last chunk counts in what was executed.
        if abs(self._motion.timeline.axis - self._reported) >= EXECUTED_EVERY:
            self._publish_executed(now)
        verdict = tick.verdict
        stopped = verdict.latched or verdict.reason in (DISABLED, DRIVER, HELD)
        if verdict.reason in (DRIVER, HELD) and verdict.reason != self._verdict.reason:
            self._gripper.reset()  # as enabling does: what was requested before a pause is over
        if self._gripper.update(tick.gripper, now, stopped):
            self._counts['gripper commands'] += 1
        if not stopped and self._profile.gripper.on_failure == profiles.STOP:
            self._motion.watchdog.gripper(self._gripper.trouble)
        if self._dry_view is not None:
            self._dry_view.show(now, self._stamp(now))
        self._show(verdict)
        self._verdict = verdict

    def _taken_over(self, late: float) -> bool:
        """Whether the motion under way ends without us, after ``late`` s without a sign of life:
        the supervisor has it, or has brought it to rest.
        """
        supervisor, motion = self._supervisor, self._motion
        if supervisor is None:
            return False
        alone = motion.moving and late > HELD_UP * supervisor.limit and not supervisor.take_over()
        had = supervisor.stopping
        trouble, rested = supervisor.trouble(), supervisor.has_rested()
        motion.watchdog.supervisor(
            trouble or ('the supervisor brought the arm to rest' if rested else '')
        )
        if rested:
            motion.let_go()
            return True
        if (alone or had) and not supervisor.stopping:
            return not self._brake_alone(supervisor.braked if had else 0.0)
        return supervisor.stopping

    def _brake_alone(self, braked: float) -> bool:
        """Go on from where the motion was last known to be, after ``braked`` s of a stop that
        nobody ends. Returns whether there is anything to send.
        """
        motion, command = self._motion, self._profile.command
        if command.adapter != profiles.TWIST:
            # The controller has come to rest at the last place by now; more would move it again.
            motion.let_go()
            return False
        if motion.moving:
            motion.begin_stop()
            left = len(StopMotion.of(motion.state).velocities)
            for _ in range(min(round(braked * command.rate), left - 1)):
                motion.brake()
        return True

    def _send(self, tick: Tick, now: int) -> None:
        # Sent first: whoever takes over goes on from this command, never from the one before.
        if self._supervisor is not None:
            self._supervisor.beat(self._motion.state if self._motion.moving else None, now)
        if tick.command is not None:
            self._port.send(tick.command, self._stamp(now))
            self._counts['stop commands' if tick.braking else 'commands'] += 1
            self._note_sent()
        if tick.ended:
            self._sent_at = None
            took = (time.monotonic_ns() - self._stop_began) * 1e-9
            self._last_stop['last stop took (s)'] = f'{took:.3f}'
            if tick.command is None:
                self._throttle.warning('stop', 'no place to hold is known, so nothing was sent')

    def _note_sent(self) -> None:
        """How far the time between two commands of one motion is from the period."""
        sent = time.monotonic_ns()
        if self._sent_at is not None:
            period = 1.0 / self._profile.command.rate
            self._jitter.append(abs((sent - self._sent_at) * 1e-9 - period))
        self._sent_at = sent

    def _begin_stop(self, verdict: WatchdogDecision) -> None:
        """Count a stop and say why, each reason not more often than every few seconds."""
        self._counts['stops'] += 1
        self._counts[f'stops for {verdict.reason}'] += 1
        self._stop_began = time.monotonic_ns()
        self._last_stop = {'last stop': verdict.reason, 'last stop detail': verdict.detail}
        self._throttle.warning(f'stop: {verdict.reason}', verdict.detail, SAME)
        if verdict.reason == DRY_QUEUE:
            self._watch_pace(time.monotonic())

    def _watch_pace(self, now: float) -> None:
        """Say once when chunks come too slowly for the motion they hold."""
        self._dry_stops.append(now)
        most, seconds = SLOW
        if self._too_slow or len(self._dry_stops) < most or now - self._dry_stops[0] > seconds:
            return
        rate = self._chunk_rate.rate(now)
        every_s = f'every {1.0 / rate:.2f} s' if rate else 'seldom'
        self._too_slow = (
            f'the policy is too slow for its chunks: each holds {self._lasts:.2f} s of motion, '
            f'one comes {every_s}'
        )
        self.get_logger().warning(f'{self._too_slow}; the arm stops in between')

    # What is shown.

    def _show(self, verdict: WatchdogDecision) -> None:
        before = self._verdict
        if (verdict.state, verdict.reason) == (before.state, before.reason):
            return
        if verdict.may_move:
            self._throttle.info('arm', 'moving', SAME)
        elif verdict.state is State.STOPPED and verdict.latched and not before.latched:
            self.get_logger().warning(f'stays stopped ({verdict.reason}) until ~/enable')
        elif verdict.state is State.WAITING and verdict.reason not in ('', DISABLED):
            self._throttle.warning('waiting', verdict.detail)

    def _publish_path(self, chunk: Chunk) -> None:
        """The tool's way through the chunk from where it is now, in the base frame."""
        pose = self._motion.pose
        if pose is None or chunk.kind not in (chunks.KIND_EE_DELTA, chunks.KIND_EE_POSE):
            return
        header = Header(stamp=self._stamp(chunk.stamp_ns), frame_id=self._profile.base_frame)
        path = PathMessage(header=header)
        for at in chunks.path_of(chunk, pose, self._profile.tool_frame):
            path.poses.append(PoseStamped(header=header, pose=pose_message(at)))
        self._path.publish(path)

    def _report(self) -> None:
        verdict = self._verdict
        status = DiagnosticStatus(
            name=f'{self.get_fully_qualified_name().lstrip("/")}: execution',
            hardware_id=self._profile.robot if self._profile else '',
        )
        status.level, status.message = self._health(verdict)
        crowd = self._competing_publishers()
        trouble = self._gripper.trouble if self._gripper is not None else ''
        if trouble:
            status.level = max(status.level, DiagnosticStatus.WARN)
            status.message = f'{status.message}; gripper: {trouble}'
        if crowd:
            status.level = max(status.level, DiagnosticStatus.WARN)
            status.message = f'{status.message}; {crowd}'
            self._throttle.warning('publishers', crowd)
        values: dict[str, object] = {'state': verdict.state.value, 'reason': verdict.reason}
        if self._profile is not None:
            p50, p99, longest = self._periods.at(50, 99, 100)
            now = self._now_ns()
            values |= {
                'enabled': self._motion.watchdog.enabled,
                'dry run': self._dry,
                'scheduling': self._scheduling,
                'period p50 (ms)': f'{1e3 * p50:.2f}',
                'period p99 (ms)': f'{1e3 * p99:.2f}',
                'period max (ms)': f'{1e3 * longest:.2f}',
                'command jitter p99 (ms)': f'{1e3 * self._jitter.at(99)[0]:.2f}',
                'chunk rate (Hz)': f'{self._chunk_rate.rate(time.monotonic()):.1f}',
                'steps executed since observation p50': f'{self._delays.at(50)[0]:.2f}',
                'motion queued (s)': f'{self._motion.timeline.queued:.2f}',
                'joining': self._motion.timeline.rule,
                'gripper': trouble or self._gripper.state,
                'policy too slow': self._too_slow or 'no',
                **self._last_stop,
                **(self._dry_view.values() if self._dry_view is not None else {}),
            }
            for name in needed(self._profile):
                age = self._motion.watchdog.age(name, now)
                values[f'{name} age (s)'] = 'none yet' if age is None else f'{age:.3f}'
            observed = self._motion.watchdog.observation_ns
            values['observation age (s)'] = (
                'none' if observed is None else f'{(now - observed) / SECOND_NS:.3f}'
            )
        values |= dict(self._counts)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._stamp(self._now_ns())
        self._diagnostics.publish(message)

    def _competing_publishers(self) -> str:
        """Who else sends commands to the arm or chunks to this node, or that nobody sends chunks,
        in words; empty is good.

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
            own = self.get_fully_qualified_name() + SUFFIX
            if self._supervisor is not None and own in names:
                names.remove(own)
            if not names and topic != self._port.publisher.topic_name:
                found.append(f'nobody publishes {topic}')
            if len(names) > 1:
                found.append(f'{len(names)} publishers on {topic}: {", ".join(names)}')
        return '; '.join(found)

    def _health(self, verdict: WatchdogDecision) -> tuple[bytes, str]:
        if self.last_error:
            return DiagnosticStatus.ERROR, self.last_error
        if self._timer is None:
            return DiagnosticStatus.WARN, 'not active'
        if verdict.may_move:
            return DiagnosticStatus.OK, 'moving' + (' (dry run)' if self._dry else '')
        if verdict.reason in (DISABLED, HELD):
            return DiagnosticStatus.WARN, verdict.reason
        text = ': '.join(part for part in (verdict.reason, verdict.detail) if part)
        if verdict.state is State.STOPPED:
            return DiagnosticStatus.ERROR, text + (' (until ~/enable)' if verdict.latched else '')
        return DiagnosticStatus.WARN, text or 'waiting'

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _stamp(self, nanoseconds: int) -> Any:
        return Time(nanoseconds=max(nanoseconds, 0)).to_msg()


def main() -> int:
    """Entry point of ``ros2 run specprune_ros chunk_executor``."""
    freeze_gc()
    return run(ChunkExecutor)


if __name__ == '__main__':
    raise SystemExit(main())
