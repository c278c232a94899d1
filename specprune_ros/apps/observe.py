"""One observation as the policy node would have it, from a recording or from live topics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from specprune_ros.apps.bag import BagError, BagReader
from specprune_ros.apps.replay import POLICY, choose_topics
from specprune_ros.bench.explain import Record
from specprune_ros.models.config import PolicyConfig
from specprune_ros.nodes.common.images import ImageError, compressed_to_rgb
from specprune_ros.nodes.common.remapping import (
    COMPRESSED,
    policy_parameters,
    policy_remappings,
    ros_arguments,
)
from specprune_ros.nodes.common.time import SECOND_NS, stamp_ns
from specprune_ros.nodes.policy_node.inputs import Inputs
from specprune_ros.nodes.policy_node.observation_buffer import Limits, NotReady, ObservationBuffer
from specprune_ros.nodes.policy_node.parameters import NODE_PARAMETERS
from specprune_ros.robot.description_trial import try_out
from specprune_ros.robot.profile import Profile

LOOK_BACK = 2.0  # s of a recording before the moment that is inspected
PATIENCE = 10.0  # s until live topics make an observation


def between_queries(config: PolicyConfig) -> float:
    """Seconds that a whole chunk lasts."""
    return config.chunk / config.control_hz


def from_bag(
    path: Path,
    profile: Profile,
    at: float,
    config: PolicyConfig,
    instruction: str = '',
    namespace: str = '',
) -> tuple[Record, Record]:
    """The observation one chunk before ``at`` and the one at ``at``, in seconds from the
    recording's begin. ``instruction``: where the recording holds none.

    Raises :class:`BagError` where there is none then, with what is missing.
    """
    with BagReader(path) as bag:
        if not 0 <= at <= bag.duration:
            raise BagError(f'{path}: --at {at:g} is outside 0 to {bag.duration:.1f} s')
        topics, _ = choose_topics(bag, profile, namespace)
        moments = (max(0.0, at - between_queries(config)), at)
        before, now = (
            _of_recording(bag, topics, profile, config, moment, instruction) for moment in moments
        )
    return before, now


def from_topics(
    profile: Profile,
    config: PolicyConfig,
    instruction: str = '',
    namespace: str = '',
    patience: float = PATIENCE,
) -> tuple[Record, Record]:
    """Two observations of live topics, one chunk apart. ``instruction``: where nobody says one.

    Raises ``TimeoutError`` with what is missing after ``patience`` seconds.
    """
    with _inputs(profile, config, {}, namespace) as (node, _, buffer):
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        found: list[Record] = []
        reason, after = '', 0.0
        end = time.monotonic() + patience + between_queries(config)
        while len(found) < 2:
            executor.spin_once(timeout_sec=0.05)
            if time.monotonic() < after:
                continue
            if instruction and not buffer.instruction:
                buffer.put_instruction(instruction)
            try:
                found.append(_record(buffer, node.get_clock().now().nanoseconds))
                after = time.monotonic() + between_queries(config)
            except NotReady as error:
                reason = str(error)
            if time.monotonic() > end:
                raise TimeoutError(
                    f'no observation of {profile.robot} in {patience:g} s: {reason}'
                )
        executor.remove_node(node)
    return found[0], found[1]


def _of_recording(
    bag: BagReader,
    topics: dict[str, type],
    profile: Profile,
    config: PolicyConfig,
    moment: float,
    instruction: str,
) -> Record:
    until = bag.start_ns + round(moment * SECOND_NS)
    changes: dict[str, Any] = {'robot_description': ''}
    texts = {topic: kind for topic, kind in topics.items() if kind is String}
    for recorded in bag.messages(texts):
        if recorded.topic == profile.observation.robot_description:
            changes['robot_description'] = recorded.message.data
        elif recorded.stamp_ns <= until or not instruction:
            instruction = recorded.message.data
    if profile.observation.robot_description_file:
        changes['robot_description'] = ''  # which replaces the topic
    if changes['robot_description']:
        tip, base, prefix = profile.tool_link, profile.base_frame, profile.joint_prefix
        try_out(changes['robot_description'], tip, base, prefix)
    with _inputs(profile, config, changes) as (_, inputs, buffer):
        if instruction:
            buffer.put_instruction(instruction)
        # A profile may name either form of an image topic, and so may the recording.
        private = {
            topic.removesuffix(COMPRESSED): name
            for name, topic in policy_remappings(profile).items()
        }
        others = {topic: kind for topic, kind in topics.items() if topic not in texts}
        newest = 0
        window = until - round(LOOK_BACK * SECOND_NS), until + 1
        for recorded in bag.messages(others, *window):
            topic, message = recorded.topic.removesuffix(COMPRESSED), recorded.message
            if isinstance(message, CompressedImage):
                message = _raw(message, bag.path)
            name = private.get(topic, '')
            if name.startswith('~/image/'):
                newest = max(newest, stamp_ns(message))
            if name in inputs.handlers:
                inputs.handlers[name](message)
        try:
            return _record(buffer, newest)
        except NotReady as error:
            raise BagError(f'{bag.path}: no observation at {moment:.2f} s: {error}') from error


def _record(buffer: ObservationBuffer, now_ns: int) -> Record:
    seen = buffer.take(now_ns)
    images = {camera: image.pixels for camera, image in seen.images.items()}
    return Record(images, seen.instruction, seen.proprio)


def _raw(message: CompressedImage, path: Path) -> Image:
    try:
        pixels = compressed_to_rgb(message)
    except ImageError as error:
        raise BagError(f'{path}: {error}') from error
    height, width = pixels.shape[:2]
    raw = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    raw.header, raw.data = message.header, pixels.tobytes()
    return raw


class _NoHistory:
    """Nobody looks back here."""

    def push(self, camera: str, image: Any) -> None:
        """Let the image go."""


@contextmanager
def _inputs(
    profile: Profile, config: PolicyConfig, changes: dict[str, Any], namespace: str = ''
) -> Iterator[tuple[Any, Inputs, ObservationBuffer]]:
    """The node's own inputs on this arm's topics, without a model behind them."""
    values = {spec.name: spec.default for spec in NODE_PARAMETERS}
    values |= policy_parameters(profile)
    if 'robot_description' in changes:  # a recording, whose images come decoded
        values |= {'image_transport': 'raw', 'speed.source': 'none'}
    values |= changes
    if not config.proprio_dim:
        values['proprio.layout'] = 'none'
    limits = Limits(
        image_age=values['max_age.image'],
        state_age=values['max_age.state'],
        sync=values['max_skew'],
    )
    buffer = ObservationBuffer(values['cameras'], values['proprio.layout'] != 'none', limits)
    topics = policy_remappings(profile) | {'~/instruction': f'{namespace}/{POLICY}/instruction'}
    rclpy.init()
    try:
        node = rclpy.create_node('specprune_explain', cli_args=ros_arguments(topics, {}))
        complaints = node.get_logger().warning
        inputs = Inputs(
            node,
            values,
            buffer,
            _NoHistory(),
            lambda source, text: complaints(f'{source}: {text}', throttle_duration_sec=5.0),
            lambda source, text: None,
        )
        try:
            yield node, inputs, buffer
        finally:
            inputs.close()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
