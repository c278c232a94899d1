"""The executor without ROS: chunks and measured states in, a command per control period out.

Every command, those of a stop included, leaves through the safety filter. The watchdog says
whether the arm may move; when it says no, the motion is braked from where it is, whatever the
reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from specprune_ros.robot import chunk as chunks
from specprune_ros.robot import geometry
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.chunk import Chunk, ChunkError, ChunkRules, LateChunkError
from specprune_ros.robot.clock_rate import ClockRate
from specprune_ros.robot.geometry import Pose, Twist, Vector, add, rotate, scale, twist_between
from specprune_ros.robot.joint_states import JointStates
from specprune_ros.robot.plausibility import CONFIRM_S, OLD, PlausibleState, pose_distance
from specprune_ros.robot.profile import Profile
from specprune_ros.robot.safety import (
    NO_POSE,
    NOT_FOLLOWING,
    UNKNOWN_JOINT,
    Command,
    JointLimit,
    JointTool,
    SafetyFilter,
    Stop,
    joint_limits,
)
from specprune_ros.robot.speed import JointSpeed, JointStateError, UrdfError, joint_velocities
from specprune_ros.robot.stop_motion import MotionState
from specprune_ros.robot.timeline import AddResult, ChunkTimeline, Setpoint
from specprune_ros.robot.watchdog import State, Watchdog, WatchdogDecision

POSE, JOINTS = 'tool pose', 'joint states'
JOINT_KINDS = (chunks.KIND_JOINT_POSITION, chunks.KIND_JOINT_DELTA)

POSE_SLACK = (0.02, 0.1)  # m, rad: noise, and stamps that are not measurement times
# Of a joint's acceleration: a controller's spline through the points sent to it requests up to
# 1.8 times as much as the commands behind them (test_motion holds it to the limit).
SPLINE_SHARE = 0.5
SLOWEST = 0.1  # of a clock's rate, to divide by
YIELD_GAIN = 4.0  # 1/s
YIELD_S = 1.0  # s in which a blocked arm's command comes back to where the arm is
YIELDED = (0.001, 0.005)  # m, rad that are near enough


def needed(profile: Profile) -> tuple[str, ...]:
    """The measured states that must be fresh while this arm moves."""
    states = []
    if profile.measures_pose:
        states.append(POSE)
    if profile.command.adapter == profiles.JOINT_TRAJECTORY:
        states.append(JOINTS)
    return tuple(states)


@dataclass(frozen=True)
class Tick:
    """What one control period brings: ``command`` is to be sent (``None``: nothing).

    ``braking``: it belongs to a stop. ``ended``: it is the last one, the arm is commanded to hold;
    ``ended`` without a command means that there was no place to hold. ``gripper`` is the opening
    requested, 0 to 1.
    """

    verdict: WatchdogDecision
    command: Command | None = None
    gripper: float | None = None
    braking: bool = False
    ended: bool = False


def _with_reserve(limits: Mapping[str, JointLimit]) -> dict[str, JointLimit]:
    return {
        name: dataclasses.replace(limit, acceleration=SPLINE_SHARE * limit.acceleration)
        for name, limit in limits.items()
    }


class _Phase(Enum):
    NONE = 0  # no stop under way
    BRAKE = 1
    YIELD = 2


_ENDING = WatchdogDecision(State.STOPPED)


class ArmMotion:
    """One arm, wired as its profile says. ``complain`` takes a source and a text.

    ``virtual``: a dry run. The arm stands still, so motion goes on from where the commands would
    have brought it: from the measured place to begin with, and again from it after
    :meth:`enable`.

    ``simulated_clock``: time may run slower or faster than the control periods, which are of real
    time. Chunks are executed by the clock; a commanded place then moves as much slower or faster,
    within limits that hold per real second. (A controller of velocities has the same clock.)
    """

    def __init__(
        self,
        profile: Profile,
        joining: str = '',
        complain: Callable[[str, str], None] = lambda source, text: None,
        virtual: bool = False,
        simulated_clock: bool = False,
    ) -> None:
        self.profile, self._complain = profile, complain
        self._virtual = virtual
        self._virtual_pose: Pose | None = None
        self._virtual_joints: dict[str, float] = {}
        command = profile.command
        period = 1.0 / command.rate
        self.commands_joints = command.adapter == profiles.JOINT_TRAJECTORY
        tracked = command.adapter in (profiles.POSE, profiles.MOTION_FORCE)
        self._clock_rate = ClockRate() if simulated_clock else None
        self._rate = 1.0  # seconds of the clock per real second
        self._by_place = tracked or self.commands_joints
        limits = profile.limits
        self._reckons = limits.workspace is not None and not tracked
        # One table for everybody: robot_description may tighten it when it comes.
        self.joint_limits: dict[str, JointLimit] = _with_reserve(limits.joints)
        if self.commands_joints:
            # The joints' own filter smooths; twice would only be later.
            smooth = {'translation_jerk': math.inf, 'rotation_jerk': math.inf}
            self._tool = SafetyFilter(dataclasses.replace(limits, **smooth), period)
            self._output = SafetyFilter(
                limits, period, joints=profile.joints, joint_limits=self.joint_limits
            )
        else:
            self._tool = self._output = SafetyFilter(limits, period, tracked=tracked)
        self.watchdog = Watchdog(profile.watchdog, needed(profile), enabled=False)
        # Without a measured pose nobody knows the way to an absolute one.
        absolute = (chunks.KIND_EE_POSE,) if profile.measures_pose else ()
        ee = (chunks.KIND_EE_DELTA, *absolute)
        frames = tuple(f for f in (profile.base_frame, profile.tool_frame) if f)
        self.timeline = ChunkTimeline(
            ChunkRules(
                frames,
                profile.joints if self.commands_joints else (),
                ee + JOINT_KINDS if self.commands_joints else ee,
                self._turning(),
            ),
            joining or profile.joining,
            profile.tool_frame,
            profile.ensemble,
        )
        self.kinematics: JointSpeed | None = None
        self._joint_tool = self._carried()  # only a description changes it
        state_speed = (limits.state_translation_speed, limits.state_rotation_speed)
        self._pose = PlausibleState(pose_distance, state_speed, POSE_SLACK, ('m', 'rad'))
        self._tool_pose: Pose | None = None
        # Since when, in ns, the tool has been led by what velocity, in m/s, command by command.
        self._led: deque[tuple[int, Vector]] = deque()
        self._known = JointStates(profile.joints, profile.joint_prefix, self._limit)
        self._phase = _Phase.NONE
        self._blocked = self._forget_place = False
        self._yield_left = 0
        self._last_ns: int | None = None
        self._fresh_ns = 0  # what was seen before is no reason to move
        self._reset_ns: int | None = None  # when somebody said that the arm may be elsewhere
        self.moving = False  # whether a motion is under way, a stop's included

    # What is measured.

    @property
    def pose(self) -> Pose | None:
        """The tool pose that motion goes on from, in the base frame: the last plausible one
        measured, or the virtual one.
        """
        return self._virtual_pose or self._tool_pose

    @property
    def virtual_pose(self) -> Pose | None:
        """Where a dry run has come to; ``None`` where the arm is, or outside of one."""
        return self._virtual_pose

    @property
    def measured(self) -> Pose | None:
        """The last plausible tool pose measured, in the base frame."""
        return self._tool_pose

    @property
    def joints(self) -> dict[str, float]:
        """As :attr:`pose`, the positions of the joints known, rad, by name."""
        return {**self._known.positions, **self._virtual_joints}

    def measured_pose(self, pose: Pose, stamp_ns: int, now_ns: int) -> None:
        """A measured tool pose arrived."""
        if not pose.finite():
            self._complain(POSE, f'is not finite or its quaternion is not of unit length: {pose}')
            return
        if self._ahead(POSE, stamp_ns, now_ns):
            return
        pose = Pose(pose.position, geometry.normalised(pose.orientation))
        wrong = self._pose.offer(pose, stamp_ns)
        if wrong:
            self._doubt(POSE, wrong, now_ns)
            return
        self._tool_pose = pose
        self.watchdog.measured(POSE, stamp_ns)

    def measured_joints(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int
    ) -> None:
        """A message of joint positions arrived; it may name some joints and not others.

        Each joint keeps its newest value and stamp; joints of other parts are ignored.
        """
        if self._ahead(JOINTS, stamp_ns, now_ns):
            return
        try:
            _, wrong = self._known.take(names, positions, (), stamp_ns)
        except JointStateError as error:
            self._complain(JOINTS, str(error))
            return
        for reason in wrong:
            self._complain(JOINTS, f'cannot be true: {reason}')
        if self._known.impossible:
            self.watchdog.implausible(f'{JOINTS} {self._known.impossible}', now_ns)
        self._judge_joints()

    def _ahead(self, what: str, stamp_ns: int, now_ns: int) -> bool:
        """Whether a stamp is so far ahead that its age would say nothing."""
        ahead = (stamp_ns - now_ns) * 1e-9
        if ahead <= self.profile.watchdog.state_age:
            return False
        self._complain(
            what,
            f'is stamped {ahead:.3f} s ahead: do both hosts use the same clock (use_sim_time)?',
        )
        return True

    def _judge_joints(self) -> None:
        """How old what is known of the joints is: as old as the oldest of them."""
        if self.commands_joints:
            self._arrived(JOINTS, self.profile.joints)
        if self.profile.observation.ee_pose or self.kinematics is None:
            return
        names = self.kinematics.joint_names
        if not self._arrived(POSE, names):
            return
        try:
            self._tool_pose = self._tool_at(self._known.positions)
        except JointStateError as error:
            self._complain(JOINTS, str(error))

    def _tool_at(self, positions: Mapping[str, float]) -> Pose:
        names = self.kinematics.joint_names
        return self.kinematics.tool_pose(names, [positions[name] for name in names])

    def _arrived(self, what: str, names: Sequence[str]) -> bool:
        missing = self._known.missing(names)
        if missing:
            self._complain(JOINTS, missing)
            return False
        self.watchdog.measured(what, self._known.stamp_ns(names))
        return True

    def _doubt(self, what: str, wrong: str, now_ns: int) -> None:
        if wrong == OLD:
            return  # out of order: its age runs on
        self._complain(what, f'cannot be true: {wrong}')
        self.watchdog.implausible(f'{what} {wrong}', now_ns)

    def described(self, kinematics: JointSpeed | None, moves_tool: bool = True) -> None:
        """``robot_description`` was read; of one that does not say where the tool is, only the
        joint limits count. Raises ``UrdfError`` where it has none of the joints commanded, and
        ``ValueError`` where it and the profile leave no range to a joint.
        """
        if kinematics is not None:
            lacking = kinematics.lacks(self.profile.joints)
            # From here on by the profile's names, as commands and what is known of each joint are.
            kinematics = kinematics.named(self.profile.joints)
            if lacking:
                reason = (
                    f'no movable joint {", ".join(lacking)}, which the profile names; the tool is '
                    f'moved by {", ".join(kinematics.joint_names)}'
                )
                if self.commands_joints and len(lacking) == len(self.profile.joints):
                    raise UrdfError(f'robot_description has {reason}')
                self._complain('robot_description', f'has {reason}')
        if kinematics is not None and self.commands_joints:
            limits = self.profile.limits.joints
            both = joint_limits(self.profile.joints, kinematics.limits(), limits)
            self.joint_limits.update(_with_reserve(both))
        self.kinematics = kinematics = kinematics if moves_tool else None
        self._joint_tool = self._carried()
        if kinematics is not None:
            self._known.wanted |= set(kinematics.joint_names)
        rules = dataclasses.replace(self.timeline.rules, continuous=self._turning())
        self.timeline.rules = rules

    def _turning(self) -> frozenset[str]:
        """The joints that may turn for ever."""
        return frozenset(name for name in self.profile.joints if self._limit(name).continuous)

    def _limit(self, name: str) -> JointLimit:
        return self.joint_limits.get(name, JointLimit())

    # What people and policies say.

    def begin(self, now_ns: int = 0) -> None:
        """Become active: nothing is remembered of before, and enabled is what the profile says."""
        self._fresh_ns, self._reset_ns = now_ns, None
        self.forget_states()
        self.timeline.reset()
        self.watchdog.forget_states()
        self.watchdog.reset()
        self.watchdog.stand_down()
        self.watchdog.enable(self.profile.enabled_at_start)
        self._forget_place = True
        self._end_stop()

    def end(self) -> None:
        """Become inactive: whatever moved has ended, and that a person enabled it is forgotten."""
        self.watchdog.stand_down()
        self.watchdog.enable(False)

    def enable(self, enabled: bool, now_ns: int = 0) -> None:
        """A person's word. Motion then starts from where the arm is, with chunks of what was seen
        from now on.
        """
        self._fresh_ns = now_ns
        self.watchdog.enable(enabled)
        self.timeline.reset()
        self._forget_place = True
        if not self.moving:
            self._rest()

    def hold(self, held: bool, now_ns: int = 0) -> None:
        """Pause in place, or go on with the next chunk of what was seen from now on."""
        self._fresh_ns = now_ns
        self.watchdog.hold(held)

    def reset(self, now_ns: int = 0) -> None:
        """Drop chunks and errors; what latched stays latched.

        Whoever says so may have put the arm elsewhere, as a simulator does. Once it is at rest,
        motion starts from where states of after ``now_ns`` agree that it is.
        """
        self.timeline.reset()
        self.watchdog.reset()
        self._fresh_ns = self._reset_ns = now_ns

    def forget_states(self, since_ns: int = 0, confirm_s: float = 0.0) -> None:
        """Believe whatever is measured next: after a jump of the clock. With ``confirm_s`` once
        states of after ``since_ns`` have agreed for so long.
        """
        self._virtual_pose, self._virtual_joints = None, {}
        self._pose.forget(since_ns, confirm_s)
        self._tool_pose = None
        self._led.clear()
        self._known.forget(since_ns, confirm_s)

    def chunk(self, chunk: Chunk, now_ns: int) -> AddResult:
        """Take a chunk in. Raises ``ChunkError``."""
        if chunk.stamp_ns < self._fresh_ns:
            raise LateChunkError('its observation is from before the arm was let move')
        if self.commands_joints and chunk.kind in JOINT_KINDS:
            tool = self._joint_tool
            if isinstance(tool, Stop):
                raise ChunkError(tool.detail)
        at = self._output.positions if self.commands_joints else {}
        at = at or self.joints
        joints = [at.get(name, math.nan) for name in self.profile.joints]
        known = self.commands_joints and all(math.isfinite(value) for value in joints)
        joined = self.timeline.add(
            chunk, now_ns, self._tool.pose or self.pose, joints if known else None
        )
        self.watchdog.chunk(chunk.stamp_ns, now_ns)
        return joined

    # The control period.

    @property
    def state(self) -> MotionState:
        """What brings the arm to rest from here, for whoever outlives this process."""
        state = self._output.state
        if self.commands_joints:
            at = self.joints
            if all(name in at for name in self.profile.joints):
                known = np.array([at[name] for name in self.profile.joints])
                return dataclasses.replace(state, plausible=known)
        elif self.pose is not None:
            known = np.array([*self.pose.position, *self.pose.orientation])
            return dataclasses.replace(state, plausible=known)
        return state

    def tick(self, now_ns: int, real_ns: int | None = None) -> Tick:
        """One control period; ``real_ns`` is a steady clock, to notice a stalled one."""
        if self._last_ns is not None and now_ns < self._last_ns:
            self.forget_states()
            self._fresh_ns, self._reset_ns = 0, None
        if self._reset_ns is not None and not self.moving:
            self.forget_states(self._reset_ns, CONFIRM_S)
            self.watchdog.forget_states()
            self._reset_ns, self._forget_place = None, True
            self._rest()
        self._last_ns = now_ns
        if self._clock_rate is not None and real_ns is not None:
            self._rate = self._clock_rate.tick(now_ns, real_ns)
        verdict = self.watchdog.check(now_ns, real_ns)
        blocked = False
        if verdict.may_move:
            out = self._move(now_ns)
            if not isinstance(out, Stop):
                self.moving, self._phase = True, _Phase.NONE
                self._follow(out)
                self._lead(out, now_ns)
                return Tick(verdict, out, out.gripper)
            blocked = out.reason == NOT_FOLLOWING
            self.watchdog.unsafe(f'{out.reason}: {out.detail}')
            verdict = self.watchdog.check(now_ns, real_ns)
        self.timeline.stop()
        if verdict.stop_now:
            self.begin_stop(blocked)
        out = self.brake(verdict)
        if out.command is not None:
            self._lead(out.command, now_ns)
        if not self.moving:
            self._output.stand(self.pose, self.joints)
        return out

    def begin_stop(self, blocked: bool = False) -> None:
        """Brake from here on. An arm that was ``blocked`` is let off afterwards: the command comes
        back to where the arm is, so that the controller stops pushing.
        """
        if self._phase is _Phase.NONE:
            self._phase = _Phase.BRAKE
            self._blocked = blocked
            self._yield_left = round(YIELD_S * self.profile.command.rate)
            if self._tool is not self._output:
                self._tool.rest()

    def finish(self) -> Iterator[Tick]:
        """The periods that bring a motion under way to rest: for a process that ends. Send them
        at control rate.
        """
        if self.moving:
            self.begin_stop()
            self._blocked = False
            if self._phase is _Phase.YIELD:
                self._phase = _Phase.BRAKE
            while self.stopping:
                yield self.brake()

    def let_go(self) -> None:
        """Somebody else brings the arm to rest: nothing more is sent of the motion under way."""
        self._forget_place = True
        self._end_stop()

    @property
    def stopping(self) -> bool:
        """Whether a stop is under way."""
        return self._phase is not _Phase.NONE

    def brake(self, verdict: WatchdogDecision = _ENDING) -> Tick:
        """One period of the stop under way, if any."""
        if self._phase is _Phase.NONE:
            return Tick(verdict)
        if not self._placed and self.profile.command.adapter != profiles.TWIST:
            self._end_stop()
            return Tick(verdict, braking=True, ended=True)
        if self._phase is _Phase.YIELD:
            command = self._yield()
            if command is not None:
                return Tick(verdict, command, braking=True)
            self._phase, self._blocked = _Phase.BRAKE, False
        command = self._output.brake()
        self._follow(command)
        ended = self._output.at_rest and not self._blocked
        if ended:
            self._end_stop()
        elif self._output.at_rest:
            self._phase = _Phase.YIELD
        return Tick(verdict, command, braking=True, ended=ended)

    @property
    def _placed(self) -> bool:
        """Whether the commanded motion has a place."""
        return bool(self._output.positions) or self._output.pose is not None

    def _yield(self) -> Command | None:
        """Towards where the arm is, within the limits; ``None`` when near, or out of time."""
        self._yield_left -= 1
        output = self._output
        if self._yield_left <= 0 or not self._placed:
            return None
        if self.commands_joints:
            here = self.joints
            gaps = tuple(
                self._apart(name, at, here.get(name, at)) for name, at in output.positions.items()
            )
            if max(map(abs, gaps)) <= YIELDED[1]:
                return None
            speeds = tuple(YIELD_GAIN * gap for gap in gaps)
            command = output.filter(Command(joints=output.joints, velocities=speeds))
        else:
            if self.pose is None:
                return None
            near = zip(pose_distance(output.pose, self.pose), YIELDED, strict=True)
            if all(far <= most for far, most in near):
                return None
            pull = twist_between(output.pose, self.pose, 1.0 / YIELD_GAIN)
            command = output.filter(Command(twist=pull))
        return None if isinstance(command, Stop) else command

    def _end_stop(self) -> None:
        self._phase, self.moving = _Phase.NONE, False
        self._rest()

    def _rest(self) -> None:
        if self._forget_place:
            self._virtual_pose, self._virtual_joints = None, {}
        for filter_ in (self._tool, self._output):
            filter_.forget() if self._forget_place else filter_.rest()
        self._forget_place = False

    def _follow(self, command: Command) -> None:
        """In a dry run: be where the command leads to."""
        if not self._virtual:
            return
        if command.positions is not None:
            self._virtual_joints = dict(zip(command.joints, command.positions, strict=True))
            at, kinematics = self.joints, self.kinematics
            if kinematics is not None and all(name in at for name in kinematics.joint_names):
                self._virtual_pose = self._tool_at(at)
        elif command.pose is not None:
            self._virtual_pose = command.pose
        elif self.pose is not None:
            seconds = self._rate / self.profile.command.rate
            self._virtual_pose = geometry.integrate(self.pose, command.twist, seconds)

    def _lead(self, command: Command, now_ns: int) -> None:
        """Remember where a command leads the tool, for as long as a pose may be old."""
        if not self._reckons:
            return
        if command.twist is not None:
            linear = command.twist.linear
        else:
            tool = self._joint_tool
            if not isinstance(tool, JointTool):
                return
            twist = tool.jacobian(command.positions) @ np.array(command.velocities)
            # By the clock, as the age of a pose is; a clock that stands still has no speed.
            linear = tuple((twist[:3] / max(self._rate, SLOWEST)).tolist())
        self._led.append((now_ns, linear))
        oldest = now_ns - round(self.profile.watchdog.state_age * 1e9)
        while len(self._led) > 1 and self._led[1][0] <= oldest:
            self._led.popleft()

    def _led_since(self, now_ns: int) -> Vector:
        """How far the commands have led since the tool pose was measured, m."""
        way: Vector = (0.0, 0.0, 0.0)
        age = self.watchdog.age(POSE, now_ns)
        if age is None or self._virtual_pose is not None:
            return way
        until = now_ns
        for since, linear in reversed(self._led):
            if age <= 0.0:
                break
            seconds = min((until - since) * 1e-9, age)
            way, age, until = add(way, scale(linear, seconds)), age - seconds, since
        return way

    # What is requested.

    def _move(self, now_ns: int) -> Command | Stop:
        setpoint = self.timeline.sample(now_ns)
        self.watchdog.queue(setpoint.done, now_ns)
        if setpoint.joint_velocities is not None:
            tool = self._joint_tool
            if isinstance(tool, Stop):
                return tool
            wanted = self._joint_setpoint(setpoint)
            return self._output.filter(wanted, self.pose, self.joints, tool)
        if setpoint.twist is None and self.commands_joints:  # nothing to do
            still = Command(
                joints=self.profile.joints, velocities=(0.0,) * len(self.profile.joints)
            )
            return self._output.filter(still, self.pose, self.joints)
        twist = self._wanted_twist(setpoint)
        if twist is None:
            return Stop(NO_POSE, f'no pose is known, and {setpoint.frame} turns with the tool')
        if self._by_place:
            twist = Twist(scale(twist.linear, self._rate), scale(twist.angular, self._rate))
        wanted = Command(twist=twist, gripper=setpoint.gripper)
        out = self._tool.filter(wanted, self.pose, led=self._led_since(now_ns))
        if isinstance(out, Stop) or not self.commands_joints:
            return out
        wanted = self._joint_command(out)
        if isinstance(wanted, Stop):
            return wanted
        return self._output.filter(wanted, self.pose, self.joints)

    def _carried(self) -> JointTool | Stop | None:
        """The tool that joint commands move; ``None`` where nobody knows it, and there is no
        workspace to keep.
        """
        # A gripper's joints may be commanded along with the arm's.
        unknown = self._unknown_chain(others=True)
        if unknown is not None:
            if self.profile.limits.workspace is None:
                return None
            return dataclasses.replace(
                unknown, detail=f'limits.workspace cannot be kept: {unknown.detail}'
            )
        kinematics, count = self.kinematics, len(self.profile.joints)
        names = kinematics.joint_names
        index = [self.profile.joints.index(name) for name in names]

        def position(at: Sequence[float]) -> Vector:
            return kinematics.tool_pose(names, [at[i] for i in index]).position

        def jacobian(at: Sequence[float]) -> np.ndarray:
            full = np.zeros((6, count))
            full[:, index] = kinematics.jacobian(names, [at[i] for i in index])
            return full

        return JointTool(position, jacobian)

    def _unknown_chain(self, others: bool) -> Stop | None:
        """Why nobody knows how the commanded joints move the tool. ``others``: some of them may
        not move it.
        """
        kinematics, joints = self.kinematics, self.profile.joints
        if kinematics is None:
            return Stop('no_description', 'no usable robot_description to move the tool by')
        chain, own = set(kinematics.joint_names), set(joints)
        if not (chain <= own if others else chain == own):
            return Stop(
                UNKNOWN_JOINT,
                f'robot_description moves the tool by {", ".join(kinematics.joint_names)}, the '
                f'profile names {", ".join(joints)}',
            )
        return None

    def _wanted_twist(self, setpoint: Setpoint) -> Twist | None:
        twist = setpoint.twist or Twist()
        pose = self._tool.pose or self.pose
        if setpoint.frame and setpoint.frame == self.profile.tool_frame:
            if pose is None:
                return None
            turn = pose.orientation
            return Twist(rotate(turn, twist.linear), rotate(turn, twist.angular))
        if setpoint.pose is not None and pose is not None:
            pull, gain = twist_between(pose, setpoint.pose, 1.0), self.profile.command.gain
            twist = Twist(
                add(twist.linear, scale(pull.linear, gain)),
                add(twist.angular, scale(pull.angular, gain)),
            )
        return twist

    def _joint_command(self, command: Command) -> Command | Stop:
        """Joint velocities for a tool velocity that is within the limits."""
        kinematics, joints = self.kinematics, self.profile.joints
        unknown = self._unknown_chain(others=False)
        if unknown is not None:
            return unknown
        at = self._output.positions or self.joints
        if any(name not in at for name in joints):
            return Stop(NO_POSE, 'not every joint has a measured position')
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
        velocities = tuple(speeds[name] for name in joints)
        return Command(joints=joints, velocities=velocities, gripper=command.gripper)

    def _joint_setpoint(self, setpoint: Setpoint) -> Command:
        joints, speeds = self.profile.joints, setpoint.joint_velocities
        at = self._output.positions or self.joints
        if setpoint.joint_positions is not None and all(name in at for name in joints):
            gain = self.profile.command.gain
            speeds = tuple(
                v + gain * self._apart(name, at[name], goal)
                for name, v, goal in zip(joints, speeds, setpoint.joint_positions, strict=True)
            )
        speeds = tuple(self._rate * v for v in speeds)
        return Command(joints=joints, velocities=speeds, gripper=setpoint.gripper)

    def _apart(self, name: str, a: float, b: float) -> float:
        """From one position of a joint to another; of a continuous one the shorter way."""
        return math.remainder(b - a, math.tau) if self._limit(name).continuous else b - a
