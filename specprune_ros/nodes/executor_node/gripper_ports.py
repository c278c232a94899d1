"""Where gripper commands go: a topic or an action, each sent on change only.

``send`` takes the opening (0 closed to 1 open) and answers whether it could be sent; an action
server that is not there yet is asked again later.
"""

from __future__ import annotations

from typing import Any, Protocol

from rclpy.action import ActionClient
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64

from specprune_ros.nodes.common.qos import every
from specprune_ros.nodes.executor_node.arm_ports import load
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.profile import GripperConfig


class GripperPort(Protocol):
    """What the executor sends gripper openings to."""

    def send(self, opening: float) -> bool:
        """Send an opening, 0 closed to 1 open; false if nobody is there to take it."""

    def close(self) -> None:
        """Give the publisher or client back."""


class Float64Port:
    """A Float64 between the driver's ``closed`` and ``open``."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig, topic: str) -> None:
        self._node, self._settings = node, settings
        self._publisher = node.create_publisher(Float64, topic, every())

    def send(self, opening: float) -> bool:
        """Publish."""
        self._publisher.publish(Float64(data=_between(self._settings, opening)))
        return True

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)


class ActionPort:
    """What the grippers behind actions have in common: goals sent without waiting for results.

    ``client`` names the actions by purpose; a new goal ends the one before it at the server.
    """

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        self._node, self._settings = node, settings
        self._clients: list[ActionClient] = []

    def _client(self, kind: Any, name: str) -> ActionClient:
        client = ActionClient(self._node, kind, name)
        self._clients.append(client)
        return client

    def _goal(self, client: ActionClient, goal: Any) -> bool:
        if not client.server_is_ready():
            return False
        client.send_goal_async(goal).add_done_callback(self._answered)
        return True

    def _answered(self, future: Any) -> None:
        handle = future.result()
        if handle is not None and not handle.accepted:
            self._node.get_logger().warning('the gripper refused a goal')

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

    def send(self, opening: float) -> bool:
        """Send the position as a goal."""
        goal = self._type.Goal()
        goal.command.position = _between(self._settings, opening)
        goal.command.max_effort = self._settings.effort
        return self._goal(self._action, goal)


class ParallelGripperPort(ActionPort):
    """control_msgs/action/ParallelGripperCommand: a JointState with position, velocity, effort."""

    def __init__(self, node: LifecycleNode, settings: GripperConfig) -> None:
        super().__init__(node, settings)
        self._type = load('control_msgs', 'action', 'ParallelGripperCommand')
        self._action = self._client(self._type, settings.name)

    def send(self, opening: float) -> bool:
        """Send the position as a goal."""
        goal = self._type.Goal()
        goal.command.name = [self._settings.joint] if self._settings.joint else []
        goal.command.position = [_between(self._settings, opening)]
        goal.command.effort = [self._settings.effort] if self._settings.effort else []
        return self._goal(self._action, goal)


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

    def send(self, opening: float) -> bool:
        """Move to a width, or grasp where fully closed is asked for."""
        if opening <= 0.0:
            goal = self._grasp_type.Goal()
            goal.force = self._settings.effort
            return self._goal(self._grasp, goal)
        goal = self._move_type.Goal()
        goal.width = _between(self._settings, opening)
        goal.velocity = self._settings.velocity
        goal.max_force = self._settings.effort
        return self._goal(self._move, goal)


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
