"""The policy's inputs as real drivers and people send them, in a node of this process."""

from __future__ import annotations

import json
import math
import re
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from specprune_ros.bounded_files import FileError
from specprune_ros.models.statistics import Statistics
from specprune_ros.robot.geometry import from_rotation_vector, multiply, rotation_vector
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.urdf import urdf

pytestmark = pytest.mark.ros

ARM = [joint.name for joint in rizon4.JOINTS]
FINGERS = ['finger_joint1', 'finger_joint2']
SECOND = 1_000_000_000
LIBERO = Path(__file__).parents[1] / 'data' / 'libero_proprio_statistics.json'


class Bench:
    """Inputs with their observation buffer; messages go in by hand or over DDS."""

    def __init__(self, rclpy, rotation_center=(0.0, 0.0, 0.0), instructed=None, **changes):
        from rclpy.lifecycle import LifecycleNode

        from specprune_ros.nodes.policy_node.inputs import Inputs
        from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer

        values = {
            'image_transport': 'raw',
            'image_reliability': 'best_effort',
            'base_frame': 'base_link',
            'proprio.layout': 'pose_gripper',
            'proprio.joints': [],
            'proprio.gripper_joints': FINGERS,
            'proprio.gripper_scales': [],
            'proprio.pose_from': 'topic',
            'speed.source': 'joint_states',
            'speed.tip_frame': 'tcp',
            'speed.joint_prefix': '',
            'robot_description': urdf(),
            'robot_description_file': '',
            'robot_description_sha256': '',
            'frozen_after': 10.0,
            **changes,
        }
        self.node = LifecycleNode('specprune_node')
        self.buffer = ObservationBuffer(['agent'], True, Limits())
        self.said = []
        self._make = partial(
            Inputs,
            self.node,
            values,
            self.buffer,
            type('Images', (), {'push': lambda *image: None})(),
            lambda source, reason: self.said.append(f'{source}: {reason}'),
            lambda source, text: None,
            rotation_center,
            instructed,
        )
        self.inputs = self._make()
        self.now = 10 * SECOND

    def subscribe_again(self):
        """As after deactivating and activating."""
        self.inputs.close()
        self.inputs = self._make()

    def close(self):
        self.inputs.close()
        self.node.destroy_node()

    def joints(self, names, positions, velocities=()):
        from sensor_msgs.msg import JointState

        message = JointState(name=names, position=positions, velocity=velocities)
        self._stamp(message)
        self.inputs._on_joints(message)

    def pose(self, quaternion, position=(0.5, 0.0, 0.3)):
        from geometry_msgs.msg import PoseStamped

        message = PoseStamped()
        self._stamp(message)
        at, turn = message.pose.position, message.pose.orientation
        at.x, at.y, at.z = position
        turn.x, turn.y, turn.z, turn.w = quaternion
        self.inputs._on_pose(message)

    def _stamp(self, message):
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.now, SECOND)

    @property
    def state(self):
        return None if self.buffer._state is None else self.buffer._state.value


@pytest.fixture
def inputs(ros):
    made = []

    def make(**options):
        if not ros.ok():
            ros.init()
        made.append(Bench(ros, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    ros.try_shutdown()


def test_arm_gripper_and_others_come_in_messages_of_their_own(inputs):
    """Each message dropped what the other had given: one chunk in ten seconds."""
    b = inputs()
    for _ in range(20):
        b.now += 10_000_000
        b.joints(ARM, list(rizon4.HOME), [0.0] * 7)
        b.joints(FINGERS, [0.03, 0.04])
        b.joints(['wheel_left', 'wheel_right'], [1.0, 2.0])
        b.pose((1.0, 0.0, 0.0, 0.0))
        assert b.state[-2:].tolist() == [0.03, 0.04]
    assert b.buffer._speed is not None and not b.said
    b.now += SECOND  # the fingers are named no more: the state is as old as they
    b.pose((1.0, 0.0, 0.0, 0.0))
    assert b.buffer._state.oldest in FINGERS
    assert b.buffer.state_age(b.now) == pytest.approx(1.0)


def test_the_pose_can_come_from_joints_and_description(inputs):
    """Profiles without a pose topic could not feed a checkpoint that reads eight numbers."""
    b = inputs(**{'proprio.pose_from': 'joint_states'})
    b.joints(FINGERS, [0.03, 0.04])
    b.joints(ARM, list(rizon4.HOME))
    expected = b.inputs._kinematics.tool_pose(ARM, list(rizon4.HOME))
    assert b.state[:3] == pytest.approx(expected.position)
    assert len(b.state) == 8


@pytest.mark.parametrize(('layout', 'joints'), [('joints', FINGERS), ('none', [])])
def test_where_the_tool_is_comes_from_joints_whatever_the_policy_reads(inputs, layout, joints):
    names = {'proprio.layout': layout, 'proprio.joints': joints}
    b = inputs(**{'proprio.pose_from': 'joint_states', **names})
    b.joints(FINGERS, [0.03, 0.04])
    b.joints(ARM[:3], list(rizon4.HOME)[:3])
    assert any('no joint named' in line for line in b.said)
    # The arm's joints are no part of the state.
    assert 'proprioception' not in b.buffer._faults
    b.joints(ARM, list(rizon4.HOME))
    expected = b.inputs._kinematics.tool_pose(ARM, list(rizon4.HOME))
    assert b.buffer._position.value == pytest.approx(expected.position)
    assert b.state == (None if layout == 'none' else pytest.approx([0.03, 0.04]))


@pytest.mark.parametrize('in_message', ['SN_', ''])
def test_state_and_pose_read_the_same_joints_whoever_writes_the_prefix(inputs, in_message):
    text = urdf()
    for name in ARM:
        text = text.replace(f'name="{name}"', f'name="SN_{name}"')
    b = inputs(
        **{
            'proprio.pose_from': 'joint_states', 'proprio.layout': 'joints', 'proprio.joints': ARM,
            'speed.joint_prefix': 'SN_', 'robot_description': text,
        }
    )  # fmt: skip
    b.joints([in_message + name for name in ARM], list(rizon4.HOME), [0.0] * 7)
    expected = b.inputs._kinematics.tool_pose(ARM, list(rizon4.HOME))
    assert b.buffer._position.value == pytest.approx(expected.position)
    assert b.state == pytest.approx(list(rizon4.HOME)) and b.buffer._speed is not None


def test_a_state_that_is_too_old_names_the_joint_its_pose_came_from(inputs):
    b = inputs(**{'proprio.pose_from': 'joint_states'})
    b.joints([*FINGERS, *ARM], [0.03, 0.04, *rizon4.HOME])
    assert b.buffer._state.oldest in ARM


def test_a_tool_pointing_down_does_not_flip_and_is_as_the_checkpoint_knows_it(inputs):
    """The shorter way round gave -3.140 for 180.1 degrees; LIBERO's statistics go past pi."""
    statistics = Statistics.from_json(json.loads(LIBERO.read_text()), proprio_dim=8)
    b = inputs(rotation_center=tuple(statistics.proprio_center[3:6]))
    b.joints(FINGERS, [0.03, -0.03])
    seen = []
    for degrees in np.arange(178.0, 182.0, 0.1):
        b.now += 10_000_000
        turn = from_rotation_vector((math.radians(degrees), 0.0, 0.0))
        sign = 1.0 if round(10 * degrees) % 2 else -1.0  # drivers send either
        b.pose(tuple(sign * c for c in turn))
        seen.append(b.state[3])
    assert np.allclose(seen, np.radians(np.arange(178.0, 182.0, 0.1)), atol=1e-6)
    scaled = [statistics.normalise_proprio(np.r_[0, 0, 1, x, 0, 0, 0, 0])[3] for x in seen]
    assert np.abs(np.diff(scaled)).max() < 0.05


def test_the_evaluation_and_the_node_agree_on_rotation(inputs):
    statistics = Statistics.from_json(json.loads(LIBERO.read_text()), proprio_dim=8)
    b = inputs(rotation_center=tuple(statistics.proprio_center[3:6]))
    b.joints(FINGERS, [0.03, -0.03])
    rng = np.random.default_rng(0)
    down = (1.0, 0.0, 0.0, 0.0)
    for _ in range(200):
        turn = multiply(from_rotation_vector(rng.uniform(-0.2, 0.2, 3)), down)
        turn = turn if turn[0] > 0 else tuple(-c for c in turn)  # as the simulator's
        b.now += 2 * SECOND
        b.joints(FINGERS, [0.03, -0.03])
        b.pose(turn)
        assert b.state[3:6] == pytest.approx(rotation_vector(turn, shorter=False), abs=1e-6)


def test_numbers_far_outside_the_statistics_are_named():
    statistics = Statistics.from_json(json.loads(LIBERO.read_text()), proprio_dim=8)
    usual = statistics.proprio_center
    assert statistics.far_outside(usual) == ''
    millimetres = usual.copy()
    millimetres[:3] *= 1000.0
    assert 'x is' in statistics.far_outside(millimetres)
    degrees = usual.copy()
    degrees[6] = 2.0
    text = statistics.far_outside(degrees)
    assert 'finger 1 is 2 (training:' in text and 'x is' not in text


def test_states_of_a_second_publisher_and_velocities_of_zero(inputs):
    b = inputs()
    q = np.array(rizon4.HOME)
    fastest = 0.0
    for i in range(100):
        b.now += 10_000_000
        q = q + 0.002
        b.joints(ARM, list(q), [0.0] * 7)
        b.joints(ARM, [0.0] * 7, [0.0] * 7)
        if b.buffer._speed is not None and i > 5:
            fastest = max(fastest, b.buffer._speed.v_t)
    assert 0.05 < fastest < 1.0  # moving, and not at 50 m/s
    assert any('cannot be true: joint' in text for text in b.said)
    assert any('velocities are 0 while positions move' in text for text in b.said)


@pytest.mark.parametrize('latched', [False, True])
@pytest.mark.real_time
def test_an_ordinary_publisher_is_received_too(inputs, ros, latched):
    """`ros2 topic pub` is volatile: the arm went on with the old instruction."""
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from specprune_ros.nodes.common import qos

    b = inputs()
    other = ros.create_node('person')
    publisher = other.create_publisher(
        String, '/specprune_node/instruction', qos.latched() if latched else qos.every()
    )
    executor = SingleThreadedExecutor()
    executor.add_node(b.node)
    end = time.monotonic() + 10.0
    while b.buffer.instruction == '' and time.monotonic() < end:
        publisher.publish(String(data='  lift the  red cube\n'))
        executor.spin_once(timeout_sec=0.1)
    assert b.buffer.instruction == 'lift the red cube'  # as the authors' prompts have it
    executor.shutdown()
    other.destroy_node()


@pytest.mark.real_time
def test_a_latched_instruction_that_comes_again_is_older_than_the_one_in_force(inputs, ros):
    """A page that lives on had it latched: after deactivating and activating the arm went on with
    what somebody had taken back.
    """
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from specprune_ros.nodes.common import qos

    instructed = deque(maxlen=8)
    b = inputs(instructed=instructed)
    people = [ros.create_node(name) for name in ('page', 'shell')]
    page, shell = (
        person.create_publisher(String, '/specprune_node/instruction', quality)
        for person, quality in zip(people, (qos.latched(), qos.every()), strict=True)
    )
    executor = SingleThreadedExecutor()
    executor.add_node(b.node)

    def hear(text):
        end = time.monotonic() + 10.0
        while b.buffer.instruction != text and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
        return b.buffer.instruction

    page.publish(String(data='lift the red cube'))
    assert hear('lift the red cube') == 'lift the red cube'
    end = time.monotonic() + 10.0
    while shell.get_subscription_count() < 2 and time.monotonic() < end:
        time.sleep(0.02)
    shell.publish(String(data='lift the blue cube'))
    assert hear('lift the blue cube') == 'lift the blue cube'

    b.subscribe_again()
    for _ in range(10):
        executor.spin_once(timeout_sec=0.1)
    assert b.buffer.instruction == 'lift the blue cube'
    page.publish(String(data='lift the red cube'))  # said anew
    assert hear('lift the red cube') == 'lift the red cube'
    executor.shutdown()
    for person in people:
        person.destroy_node()


def _compressed(image, **how):
    import io

    from sensor_msgs.msg import CompressedImage

    out = io.BytesIO()
    image.save(out, **how)
    return CompressedImage(format='', data=out.getvalue())


def test_an_image_of_16_bits_keeps_its_grey_and_exif_turns():
    from PIL import Image

    from specprune_ros.nodes.common.images import compressed_to_rgb

    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    seen = compressed_to_rgb(_compressed(Image.fromarray(deep), format='PNG'))
    assert np.array_equal(seen[:, :, 0], deep >> 8) and seen.shape == (64, 64, 3)
    lying = Image.fromarray(np.zeros((64, 96, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    message = _compressed(lying, format='JPEG', exif=exif)
    assert compressed_to_rgb(message).shape == (96, 64, 3)


def test_a_camera_that_repeats_an_image_with_new_stamps_is_said(inputs):
    from specprune_ros.nodes.common.images import to_message

    b = inputs(frozen_after=0.2)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for _ in range(4):
        b.now += 50_000_000
        message = to_message(pixels)
        b._stamp(message)
        b.inputs._on_image('agent', message)
        time.sleep(0.1)
    assert "camera 'agent': the same image for " in b.inputs.frozen()
    message = to_message(255 - pixels)
    b._stamp(message)
    b.inputs._on_image('agent', message)
    assert b.inputs.frozen() == ''


def test_one_width_becomes_two_fingers_and_a_missing_joint_names_its_parameter(inputs):
    bench = inputs(
        **{
            'proprio.gripper_joints': ['width', 'width'],
            'proprio.gripper_scales': [0.5, -0.5],
            'speed.source': 'none',
        }
    )
    bench.pose((0.0, 0.0, 0.0, 1.0))
    assert bench.state is None
    said = bench.buffer._faults['proprioception']
    assert 'proprio.gripper_joints' in said and 'observation.gripper_joints' in said
    assert 'no joint named width' in said and '/specprune_node/gripper_states' in said
    bench.joints(['width'], [0.08])
    bench.now += SECOND // 100
    bench.pose((0.0, 0.0, 0.0, 1.0))
    assert bench.state[6:].tolist() == [0.04, -0.04]


def test_the_description_is_the_one_that_the_profile_names(inputs, tmp_path):
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from specprune_ros.nodes.common.qos import latched
    from specprune_ros.robot.description import digest

    file = tmp_path / 'robot.urdf'
    named = {'robot_description': '', 'robot_description_file': str(file)}
    with pytest.raises(FileError, match=re.escape(str(file))):
        inputs(**named)
    file.write_text(urdf())
    bench = inputs(**named)
    for _ in range(2):
        bench.joints(ARM, [0.1] * 7)
        bench.now += SECOND // 50
    assert bench.inputs.speed_frame == 'base_link'

    bench = inputs(robot_description='', robot_description_sha256=digest(urdf() + ' '))
    publisher = bench.node.create_publisher(String, '~/robot_description', latched())
    publisher.publish(String(data=urdf()))
    executor = SingleThreadedExecutor()
    executor.add_node(bench.node)
    end = time.monotonic() + 30.0
    while not bench.said and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(bench.node)
    assert 'SHA-256' in bench.said[0]
