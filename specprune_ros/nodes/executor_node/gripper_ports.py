"""The gripper of the executor, and where its commands go: a topic or an action.

Each is sent on change only. The outcome of a goal goes to a
:class:`specprune_ros.robot.gripper.GripperGoal`, which sends it again where it must.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64

from specprune_ros.nodes.common.qos import every
from specprune_ros.nodes.executor_node.arm_ports import load
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.gripper import GoalState, GripperGoal, GripperHysteresis
from specprune_ros.robot.profile import GripperConfig

SERVER_CHECK = 0.2  # s between checks whether the gripper's server is there


class GripperPort(Protocol):
    """What the executor sends gripper openings to."""

    def ready(self) -> bool:
        """Whether somebody is there to take an opening."""

    def send(self, opening: float, goal: GripperGoal) -> None:
        """Send an opening, 0 closed to 1 open, and tell ``goal`` what comes of it."""

    def close(self) -> None:
        """Give the publisher or client back."""


class Float64Port:
    """A Float64 between the driver's ``closed`` and ``open``."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig, topic: str) -> None:
        self._node, self._settings = node, settings
        self._publisher = node.create_publisher(Float64, topic, every())

    def ready(self) -> bool:
        """Always: nobody answers on a topic."""
        return True

    def send(self, opening: float, goal: GripperGoal) -> None:
        """Publish."""
        self._publisher.publish(Float64(data=_between(self._settings, opening)))
        goal.succeeded(goal.number)

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)


class ActionPort:
    """What the grippers behind actions have in common: a new goal ends the one before it."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        self._node, self._settings = node, settings
        self._clients: list[ActionClient] = []

    def _client(self, kind: Any, name: str) -> ActionClient:
        client = ActionClient(self._node, kind, name)
        self._clients.append(client)
        return client

    def ready(self) -> bool:
        """Whether every server is there."""
        return all(client.server_is_ready() for client in self._clients)

    def _goal(self, client: ActionClient, message: Any, goal: GripperGoal) -> None:
        number = goal.number

        def answered(future: Any) -> None:
            handle = future.result()
            if handle is None or not handle.accepted:
                self._report_failure(goal, number, 'refused')
                return
            goal.accepted(number)
            handle.get_result_async().add_done_callback(ended)

        def ended(future: Any) -> None:
            result = future.result()
            status = GoalStatus.STATUS_UNKNOWN if result is None else result.status
            if status == GoalStatus.STATUS_SUCCEEDED:
                goal.succeeded(number)
            elif status == GoalStatus.STATUS_CANCELED:
                self._report_failure(goal, number, 'cancelled')
            else:
                self._report_failure(goal, number, 'aborted', stalled=True)

        client.send_goal_async(message).add_done_callback(answered)

    def _report_failure(
        self, goal: GripperGoal, number: int, reason: str, stalled: bool = False
    ) -> None:
        goal.failed(number, f'goal {reason}', time.monotonic_ns(), stalled)

    def close(self) -> None:
        """Destroy the clients."""
        for client in self._clients:
            client.destroy()
        self._clients.clear()


class GripperCommandPort(ActionPort):
    """control_msgs/action/GripperCommand: position in the driver's unit and the largest effort."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        super().__init__(node, settings)
        self._type = load('control_msgs', 'action', 'GripperCommand')
        self._action = self._client(self._type, settings.name)

    def send(self, opening: float, goal: GripperGoal) -> None:
        """Send the position as a goal."""
        message = self._type.Goal()
        message.command.position = _between(self._settings, opening)
        message.command.max_effort = self._settings.effort
        self._goal(self._action, message, goal)


class ParallelGripperPort(ActionPort):
    """control_msgs/action/ParallelGripperCommand: a JointState with position, velocity, effort."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        super().__init__(node, settings)
        self._type = load('control_msgs', 'action', 'ParallelGripperCommand')
        self._action = self._client(self._type, settings.name)

    def send(self, opening: float, goal: GripperGoal) -> None:
        """Send the position as a goal."""
        message = self._type.Goal()
        message.command.name = [self._settings.joint] if self._settings.joint else []
        message.command.position = [_between(self._settings, opening)]
        message.command.effort = [self._settings.effort] if self._settings.effort else []
        self._goal(self._action, message, goal)


class FlexivGripperPort(ActionPort):
    """Flexiv's gripper node: ``move`` opens, ``grasp`` closes.

    ``move`` aborts where an object stops the fingers, so holding something needs ``grasp``, whose
    positive force closes.
    """

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        super().__init__(node, settings)
        self._move_type = load('flexiv_msgs', 'action', 'Move')
        self._grasp_type = load('flexiv_msgs', 'action', 'Grasp')
        self._move = self._client(self._move_type, f'{settings.name}/move')
        self._grasp = self._client(self._grasp_type, f'{settings.name}/grasp')

    def send(self, opening: float, goal: GripperGoal) -> None:
        """Move to a width, or grasp where fully closed is requested."""
        if opening <= 0.0:
            message = self._grasp_type.Goal()
            message.force = self._settings.effort
            self._goal(self._grasp, message, goal)
            return
        message = self._move_type.Goal()
        message.width = _between(self._settings, opening)
        message.velocity = self._settings.velocity
        message.max_force = self._settings.effort
        self._goal(self._move, message, goal)


def _between(settings: GripperConfig, opening: float) -> float:
    return settings.closed + (settings.open - settings.closed) * opening


def make_gripper(
    node: LifecycleNode, settings: GripperConfig, dry_topic: str = ''
) -> GripperPort | None:
    """The adapter the profile names, ``None`` without a gripper. Raises ``MissingMessages``.

    With ``dry_topic`` what would be sent goes there as a Float64 instead, whatever the adapter.
    """
    if settings.adapter == profiles.NO_GRIPPER:
        return None
    if dry_topic or settings.adapter == profiles.FLOAT64:
        return Float64Port(node, settings, dry_topic or settings.name)
    kind = {
        profiles.GRIPPER_COMMAND: GripperCommandPort,
        profiles.PARALLEL_GRIPPER: ParallelGripperPort,
        profiles.FLEXIV_GRIPPER: FlexivGripperPort,
    }[settings.adapter]
    return kind(node, settings)


class Gripper:
    """From a motion's gripper values to commands at its port: hysteresis, one goal at a time, and
    what went wrong with it. Without a gripper in the profile nothing happens.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: GripperConfig,
        complain: Callable[[str, str], object],
        dry_topic: str = '',
    ) -> None:
        self._settings, self._complain = settings, complain
        self._port = make_gripper(node, settings, dry_topic)
        self._goal = GripperGoal(
            settings.retries, settings.retry_s, settings.stall_is_success, settings.close_below
        )
        self._hysteresis = GripperHysteresis(
            settings.close_below,
            settings.open_above,
            settings.continuous,
            dwell_s=settings.dwell_s,
        )
        self._checked, self._ready = -math.inf, False

    @property
    def trouble(self) -> str:
        """What went wrong with the last goal; empty where nothing did."""
        return self._goal.trouble

    @property
    def state(self) -> str:
        """What becomes of the last goal."""
        return self._goal.state.value

    def reset(self) -> None:
        """Forget what was requested: nothing moves before the next value, and that one counts
        whatever came before.
        """
        self._hysteresis.reset()
        self._goal.forget()

    def update(self, value: float | None, now_ns: int, stopped: bool) -> bool:
        """Take the value of a control period (``None``: none) and send what is due, unless the arm
        is ``stopped`` for good; returns whether a command was sent.
        """
        goal = self._goal
        if self._port is None:
            return False
        if value is not None and (command := self._hysteresis.update(value, now_ns)) is not None:
            goal.want(command)
        now = time.monotonic()
        if now - self._checked > SERVER_CHECK or goal.state is GoalState.WAITING:
            self._checked, self._ready = now, self._port.ready()
        if stopped:
            return False
        opening = goal.due(time.monotonic_ns(), self._ready)
        if opening is not None:
            self._port.send(opening, goal)
        elif goal.state is GoalState.WAITING and not self._ready:
            self._complain('gripper', f'{self._settings.name}: no action server yet')
        if goal.trouble:
            self._complain('gripper', goal.trouble)
        return opening is not None

    def close(self) -> None:
        """Give the publisher or clients back."""
        if self._port is not None:
            self._port.close()
