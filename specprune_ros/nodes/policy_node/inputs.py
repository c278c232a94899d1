"""The subscriptions of ``specprune_node``: decode each message, store it, say what is wrong with
it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import AccelStamped, PoseStamped, TwistStamped
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from specprune_ros.nodes.common.bounded_subscription import subscribe
from specprune_ros.nodes.common.description import DescriptionReader, read_file
from specprune_ros.nodes.common.images import ImageDecoder, ImageError, compressed_to_rgb, to_rgb
from specprune_ros.nodes.common.qos import both_durabilities, newest
from specprune_ros.nodes.common.rates import RateMeter
from specprune_ros.nodes.common.time import SECOND_NS, stamp_ns
from specprune_ros.nodes.policy_node.observation_buffer import ObservationBuffer
from specprune_ros.policy.image_buffer import ImageBuffer
from specprune_ros.policy.observation import CameraImage, ObservationError
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.robot.geometry import Quaternion, rotation_vector_near
from specprune_ros.robot.joint_states import JointStates
from specprune_ros.robot.speed import (
    JointSpeed,
    JointStateError,
    Speed,
    SpeedError,
    TwistSpeed,
)

INSTRUCTIONS = 256  # of which it is remembered when they were published
FROZEN_STRIDE = 4  # pixels apart in which images are compared


def sample(speed: Speed | None) -> SpeedSample | None:
    """The controller's view of a measured speed."""
    if speed is None:
        return None
    return SpeedSample(
        v_t=speed.translation,
        v_r=speed.rotation,
        dz=speed.vertical,
        source=speed.source,
        age_s=0.0,
    )


class Inputs:
    """Subscribes on construction; :meth:`close` unsubscribes. Runs in the executor's thread only.

    ``rotation_center`` is the rotation vector round which the checkpoint's lie (rad).
    ``instructed`` holds when the instructions were published that came so far (ns), oldest first;
    it is kept by who may subscribe again later.
    ``images`` takes every image that a query may need; ``complain`` and ``announce`` take a source
    and a text and are expected to log without flooding. Raises ``UrdfError`` or ``FileError`` for
    a description that ``values`` hold or name.
    """

    def __init__(
        self,
        node: LifecycleNode,
        values: Mapping[str, Any],
        observation_buffer: ObservationBuffer,
        images: ImageBuffer,
        complain: Callable[[str, str], None],
        announce: Callable[[str, str], None],
        rotation_center: Sequence[float] = (0.0, 0.0, 0.0),
        instructed: deque[int] | None = None,
    ) -> None:
        self._node = node
        self._announce = announce
        self._observation_buffer = observation_buffer
        self._images = images
        self._complain = complain
        self._values = values
        self.rates = {camera: RateMeter() for camera in observation_buffer.cameras}
        self.speed_frame = ''
        self._joint_speed: JointSpeed | None = None
        self._kinematics: JointSpeed | None = None
        grips = values['proprio.gripper_joints']
        scales = values['proprio.gripper_scales'] or [1.0] * len(grips)
        self._grips = tuple(zip(grips, scales, strict=True))
        self._joints = JointStates(
            (*values['proprio.joints'], *values['proprio.gripper_joints']),
            values['speed.joint_prefix'],
        )
        self._rotation = self._rotation_center = tuple(rotation_center)
        self._rotation_ns = 0
        self._received = ''
        self._instructed = deque(maxlen=INSTRUCTIONS) if instructed is None else instructed
        self._same: dict[str, tuple[np.ndarray, float]] = {}
        self._twist_speed = TwistSpeed()
        self._subscriptions: list[Any] = []
        self.handlers: dict[str, Callable[[Any], None]] = {}  # by topic, for recordings
        self._description: DescriptionReader | None = None
        self._decoder: ImageDecoder | None = None
        try:
            self._subscribe()
        except ValueError:  # of a description
            self.close()
            raise

    def close(self) -> None:
        """Unsubscribe from everything."""
        for part in (self._description, self._decoder):
            if part is not None:
                part.close()
        self._description = self._decoder = None
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _subscribe(self) -> None:
        values = self._values
        compressed = values['image_transport'] == 'compressed'
        quality = newest(reliable=values['image_reliability'] == 'reliable')
        if compressed:
            self._decoder = ImageDecoder(self._node, compressed_to_rgb, self._on_image)
        for camera in self._observation_buffer.cameras:
            self._add_subscription(
                CompressedImage if compressed else Image,
                f'~/image/{camera}',
                partial(self._on_image, camera),
                quality,
                partial(self._refuse_image, camera),
            )
        refuse = self._refuse_instruction
        for durable in both_durabilities():
            self._add_subscription(
                String, '~/instruction', self._on_instruction, durable, refuse, published=True
            )
        for topic in ('~/joint_states', '~/gripper_states'):
            self._add_subscription(
                JointState, topic, self._on_joints, newest(), self._refuse_joints
            )
        if values['proprio.pose_from'] == 'topic':
            self._add_subscription(
                PoseStamped, '~/ee_pose', self._on_pose, newest(), self._refuse_pose
            )
        if values['speed.source'] == 'twist':
            refuse = self._refuse_twist
            self._add_subscription(TwistStamped, '~/ee_twist', self._on_twist, newest(), refuse)
            # Flexiv's v1 drivers publish the velocity in an AccelStamped.
            self._add_subscription(
                AccelStamped, '~/ee_twist_accel', self._on_accel, newest(), refuse
            )
        if 'joint_states' in (values['speed.source'], values['proprio.pose_from']):
            base = values['base_frame'] if values['proprio.pose_from'] == 'joint_states' else ''
            frames = values['speed.tip_frame'], base, values['speed.joint_prefix']
            given = values['robot_description']
            if text := given or read_file(values['robot_description_file'], frames):
                self._use_description(text)
            else:
                refuse = partial(self._complain, 'robot_description')
                self._description = DescriptionReader(
                    self._node,
                    '~/robot_description',
                    frames,
                    use=self._use_description,
                    refused=refuse,
                    another=refuse,
                    sha256=values['robot_description_sha256'],
                )

    def _add_subscription(
        self,
        kind: type,
        topic: str,
        callback: Callable[[Any], None],
        quality: Any,
        refused: Callable[[str], None],
        published: bool = False,
    ) -> None:
        self.handlers[topic] = callback
        self._subscriptions.append(
            subscribe(self._node, kind, topic, callback, quality, refused, published=published)
        )

    def _on_image(
        self,
        camera: str,
        message: Image | CompressedImage,
        found: np.ndarray | ImageError | None = None,
    ) -> None:
        """Store an image; ``found`` is what the decoder's thread made of a compressed one."""
        if found is None:
            self.rates[camera].append(time.monotonic())
            if self._decoder is not None:
                self._decoder.put(camera, message)
                return
            try:
                found = to_rgb(message)
            except ImageError as error:
                found = error
        if isinstance(found, ImageError):
            self._refuse_image(camera, str(found))
            return
        image = CameraImage(found, stamp_ns(message))
        # A camera's noise changes some pixel of every true image.
        some, before = found[::FROZEN_STRIDE, ::FROZEN_STRIDE], self._same.get(camera)
        if before is None or not np.array_equal(before[0], some):
            self._same[camera] = (some.copy(), time.monotonic())
        kept = self._observation_buffer.put_image(camera, image)
        ahead = image.stamp_ns - self._node.get_clock().now().nanoseconds
        # A stamp from the future would push the true past out.
        if kept and ahead <= self._observation_buffer.limits.future * SECOND_NS:
            self._images.push(camera, image)

    def _refuse_image(self, camera: str, reason: str) -> None:
        self._observation_buffer.fault(camera, reason)
        self._complain(f"camera '{camera}'", reason)

    def _refuse_instruction(self, reason: str) -> None:
        self._observation_buffer.refuse_instruction(reason)
        self._complain('instruction', reason)

    def frozen(self) -> str:
        """Which cameras have sent the same image for longer than is usual, in words."""
        now, limit = time.monotonic(), self._values['frozen_after']
        since = {camera: now - at for camera, (_, at) in self._same.items()}
        return '; '.join(
            f"camera '{camera}': the same image for {seconds:.0f} s"
            for camera, seconds in since.items()
            if limit > 0.0 and seconds > limit and self.rates[camera].rate(now) > 0.0
        )

    def _on_instruction(self, message: String, published_ns: int = 0) -> None:
        if published_ns:
            # A latched one comes again with each new subscription, and must not take the place of
            # what was said after it.
            if published_ns not in self._instructed:
                self._instructed.append(published_ns)
            elif published_ns != self._instructed[-1]:
                return
        try:
            self._observation_buffer.put_instruction(message.data)
        except ObservationError as error:
            self._received = ''
            self._complain('instruction', str(error))
            return
        # Both subscriptions may receive the same.
        received, self._received = self._received, self._observation_buffer.instruction
        if self._received != received:
            self._announce('instruction', f"'{self._received}'")

    def _on_joints(self, message: JointState) -> None:
        stamp = stamp_ns(message)
        try:
            reported, wrong = self._joints.take(
                message.name, message.position, message.velocity, stamp
            )
        except JointStateError as error:
            self._refuse_joints(str(error), stamp)
            return
        for reason in wrong:
            self._complain('joint_states', f'cannot be true: {reason}')
        if not reported and not wrong:
            return  # of other parts
        if self._values['proprio.layout'] == 'joints':
            self._store_joints(self._values['proprio.joints'])
        if self._kinematics is not None:
            self._pose_from_joints(set(reported))
        if self._joint_speed is not None:
            self._speed_from_joints(set(reported), stamp)

    def _speed_from_joints(self, reported: set[str], stamp: int) -> None:
        arm, names = self._joint_speed, self._joint_speed.joint_names
        if not reported & set(names):
            return
        missing = self._joints.missing(names)
        if missing:
            self._observation_buffer.put_speed(None, stamp)
            self._complain('joint_states', missing)
            return
        at = self._joints.positions
        try:
            speed = arm.update(
                names, [at[name] for name in names], self._joints.velocities(names), stamp
            )
        except JointStateError as error:
            self._observation_buffer.put_speed(None, stamp)
            self._complain('joint_states', str(error))
            return
        if arm.contradiction:
            self._complain('joint_states', arm.contradiction)
        if speed is not None:
            self.speed_frame = speed.frame
        self._observation_buffer.put_speed(sample(speed), stamp)

    def _pose_from_joints(self, reported: set[str]) -> None:
        arm, names = self._kinematics, self._kinematics.joint_names
        if not reported & set(names):
            return
        missing = self._joints.missing(names)
        if missing:
            if self._values['proprio.layout'] == 'pose_gripper':
                self._observation_buffer.lose_state(f'joint_states: {missing}')
            self._complain('joint_states', missing)
            return
        at = self._joints.positions
        pose = arm.tool_pose(names, [at[name] for name in names])
        self._store_pose(
            np.array(pose.position),
            pose.orientation,
            self._joints.stamp_ns(names),
            self._joints.oldest(names),
        )

    def _refuse_joints(self, reason: str, stamp: int = 0) -> None:
        """Nothing of a joint state can be used: what was read from earlier ones is lost."""
        self._joints.forget()
        if self._values['proprio.layout'] != 'none':
            self._observation_buffer.lose_state(f'joint_states: {reason}')
        if self._joint_speed is not None:
            self._observation_buffer.put_speed(None, stamp)
        self._complain('joint_states', reason)

    def _store_joints(self, names: list[str]) -> None:
        missing = self._joints.missing(names)
        if missing:
            self._observation_buffer.lose_state(missing)
            self._complain('joint_states', missing)
            return
        at = self._joints.positions
        self._observation_buffer.put_state(
            np.array([at[name] for name in names]),
            self._joints.stamp_ns(names),
            self._joints.oldest(names),
        )

    def _on_pose(self, message: PoseStamped) -> None:
        frame, base = message.header.frame_id, self._values['base_frame']
        if base and frame and frame != base:
            self._refuse_pose(f"is in frame '{frame}', but the profile's base_frame is '{base}'")
            return
        pose = message.pose
        position = np.array([pose.position.x, pose.position.y, pose.position.z])
        turn = np.array(
            [pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w]
        )
        stamp = stamp_ns(message)
        if not np.isfinite(position).all() or not np.isfinite(turn).all() or not turn.any():
            self._refuse_pose('the pose is not finite, or its quaternion is zero')
            return
        self._store_pose(position, tuple(turn / np.linalg.norm(turn)), stamp, 'ee_pose')

    def _store_pose(self, position: np.ndarray, turn: Quaternion, stamp: int, source: str) -> None:
        """Store a pose; ``source`` is what it is as old as."""
        self._observation_buffer.put_position(position, stamp)
        if self._values['proprio.layout'] != 'pose_gripper':
            return
        names = self._values['proprio.gripper_joints']
        missing = self._joints.missing(names)
        if missing:
            topic = self._node.resolve_topic_name('~/gripper_states')
            self._observation_buffer.lose_state(
                f'proprio.gripper_joints (observation.gripper_joints of the profile): {missing}; '
                f'received on ~/joint_states and {topic} (observation.gripper_states)'
            )
            return
        # On from the value before; after a pause from where the checkpoint's lie.
        if not 0 <= stamp - self._rotation_ns < SECOND_NS:
            self._rotation = self._rotation_center
        self._rotation, self._rotation_ns = rotation_vector_near(turn, self._rotation), stamp
        at = self._joints.positions
        fingers = [scale * at[name] for name, scale in self._grips]
        # As old as its older half: a pose must not keep a gripper alive that nobody measures.
        self._observation_buffer.put_state(
            np.array([*position, *self._rotation, *fingers]),
            min(stamp, self._joints.stamp_ns(names)),
            self._joints.oldest(names) if self._joints.stamp_ns(names) < stamp else source,
        )

    def _refuse_pose(self, reason: str) -> None:
        if self._values['proprio.layout'] == 'pose_gripper':
            self._observation_buffer.lose_state(f'ee_pose: {reason}')
        self._complain('ee_pose', reason)

    def _on_twist(self, message: TwistStamped) -> None:
        self._store_twist(message.twist, message)

    def _on_accel(self, message: AccelStamped) -> None:
        self._store_twist(message.accel, message)

    def _store_twist(self, motion: Any, message: TwistStamped | AccelStamped) -> None:
        linear, angular = motion.linear, motion.angular
        stamp = stamp_ns(message)
        try:
            speed = self._twist_speed.update(
                (linear.x, linear.y, linear.z),
                (angular.x, angular.y, angular.z),
                stamp,
                message.header.frame_id,
            )
        except SpeedError as error:
            self._refuse_twist(str(error), stamp)
            return
        self.speed_frame = speed.frame
        self._observation_buffer.put_speed(sample(speed), stamp)

    def _refuse_twist(self, reason: str, stamp: int = 0) -> None:
        self._observation_buffer.put_speed(None, stamp)
        self._complain('ee_twist', reason)

    def _use_description(self, urdf: str) -> None:
        values, tip = self._values, self._values['speed.tip_frame']
        prefix, joints = values['speed.joint_prefix'], values['proprio.joints']
        if values['speed.source'] == 'joint_states':
            self._joint_speed = JointSpeed(urdf, tip, prefix=prefix).named(joints)
            self._joints.wanted |= set(self._joint_speed.joint_names)
        if values['proprio.pose_from'] == 'joint_states':
            self._kinematics = JointSpeed(
                urdf, tip, base_frame=values['base_frame'], prefix=prefix
            ).named(joints)
            self._joints.wanted |= set(self._kinematics.joint_names)
