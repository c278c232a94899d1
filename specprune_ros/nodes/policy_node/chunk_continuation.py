"""Real-time chunking in the node: what the executor says it has executed, and what a query goes on
from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from sensor_msgs.msg import TimeReference

from specprune_ros.nodes.common.qos import every
from specprune_ros.nodes.common.time import nanoseconds
from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import Observation
from specprune_ros.policy.real_time_chunking import ChunkFollower, ChunkingRules, Continuation
from specprune_ros.policy.result import PolicyResult

if TYPE_CHECKING:
    from specprune_ros.policy.policy import Policy
    from specprune_ros.serving.client import RemotePolicy


def rules_of(values: Mapping[str, Any]) -> ChunkingRules | None:
    """The rules that ``rtc.*`` request, ``None`` where it is off. Raises ``ValueError``."""
    rules = ChunkingRules(
        values['rtc.execution_horizon'],
        values['rtc.schedule'],
        values['rtc.max_guidance_weight'],
    )
    return rules if values['rtc.enabled'] else None


def possible(policy: Policy | RemotePolicy) -> bool:
    """Whether this policy can go on from a chunk: a flow policy of this process."""
    return policy.config.flow is not None and hasattr(policy, 'loaded')


def check(values: Mapping[str, Any], policy: Policy | RemotePolicy) -> None:
    """Raise ``ValueError`` where ``rtc.*`` and the policy cannot go together."""
    if rules_of(values) is not None and not possible(policy):
        raise ValueError(
            'rtc.enabled: only a flow policy (pi0, pi0.5) can go on from a chunk, this is '
            f'{policy.config.family}; leave it off'
        )


class ChunkContinuation:
    """Listens to ``~/executed`` of the executor. ``rules`` are those now in force."""

    def __init__(
        self, node: Node, policy: Policy, rules: Callable[[], ChunkingRules | None]
    ) -> None:
        self._node, self._policy, self._rules = node, policy, rules
        self.follower = ChunkFollower(policy.step_dt)
        self._subscription = node.create_subscription(
            TimeReference, '~/executed', self._on_executed, every()
        )

    @property
    def enabled(self) -> bool:
        """Whether queries go on from chunks."""
        return self._rules() is not None

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def go_on(self, observation: Observation) -> Continuation | None:
        """What a query on this observation goes on from. The inference thread's."""
        rules, policy = self._rules(), self._policy
        if rules is None:
            return None
        if not policy.follows(observation):
            self.follower.reason = 'a new episode begins'
            return None
        seen = None
        if policy.config.flow.relative:
            loaded, proprio = policy.loaded, observation.proprio
            seen = lambda actions: loaded.normalised_actions(actions, proprio)  # noqa: E731
        return self.follower.go_on(
            observation.stamp_ns, policy.episode, observation.instruction, rules, seen
        )

    def issued(self, observation: Observation, result: PolicyResult) -> None:
        """A chunk goes out. Called before it is published, so that no report overtakes it."""
        self.follower.issued(
            observation.stamp_ns,
            result.episode,
            observation.instruction,
            result.normalised,
            result.actions,
        )

    def _on_executed(self, message: TimeReference) -> None:
        seconds = nanoseconds(message.time_ref) / SECOND_NS
        self.follower.executed(nanoseconds(message.header.stamp), seconds)
        word, _, stamp = message.source.partition(' ')
        if word == 'chunk' and stamp.isdigit():
            self.follower.joined(int(stamp), seconds)
