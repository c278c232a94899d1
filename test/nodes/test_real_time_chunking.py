"""Real-time chunking over DDS: the executor reports what it executed, the policy node goes on."""

import time
from dataclasses import replace

import numpy as np
import pytest

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CAMERAS = ['base_0_rgb', 'left_wrist_0_rgb']


def test_the_executor_says_what_it_has_executed_and_which_chunk_it_took_in(bench):
    from sensor_msgs.msg import TimeReference

    b, reported = bench(), []
    b.listen(TimeReference, '/chunk_executor/executed', reported)
    b.moving()
    b.run(1.0)
    seconds = [m.time_ref.sec + 1e-9 * m.time_ref.nanosec for _, m in reported]
    stamps = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for _, m in reported]
    assert len(reported) > 5
    assert seconds[-1] > 0.1
    # Never more than the clock: what is executed in a second is a second, or less where it stops.
    assert seconds == sorted(seconds)
    assert all(
        0 <= step <= 0.03 + clock
        for step, clock in zip(np.diff(seconds), np.diff(stamps), strict=True)
    )
    taken = [m.source for _, m in reported if m.source]
    assert taken and all(source.startswith('chunk ') for source in taken)


def test_the_policy_node_goes_on_from_what_is_left(rig_with):
    from rclpy.duration import Duration
    from rclpy.time import Time
    from sensor_msgs.msg import TimeReference
    from specprune_ros.msg import ActionChunk
    from std_srvs.srv import SetBool

    from specprune_ros.nodes.common.qos import every
    from specprune_ros.nodes.common.time import stamp_ns

    rig = rig_with(
        model__preset='pi0-tiny', cameras=CAMERAS, rtc__enabled=True, pruning__pruner='dense'
    )
    publisher = rig.node.create_publisher(TimeReference, '/specprune_node/executed', every())
    began = rig.now()

    def report(source=''):
        message = TimeReference(source=source)
        message.header.stamp = rig.stamp()
        # An arm that hardly moves: something is left however long a query takes here.
        message.time_ref = Time(nanoseconds=(rig.now() - began) // 200).to_msg()
        publisher.publish(message)

    rig.node.create_timer(0.02, report)
    rig.node.create_subscription(
        ActionChunk,
        '/specprune_node/action_chunk',
        lambda chunk: report(f'chunk {stamp_ns(chunk)}'),
        every(),
    )

    def said():
        values = rig.diagnoses[-1].status[0].values if rig.diagnoses else []
        return next((v.value for v in values if v.key == 'real-time chunking'), '')

    assert rig.feed(200.0, until=lambda: said().startswith('goes on')), rig.process.text()
    chunk = rig.chunks[-1]
    assert chunk.horizon == 10  # whole, whatever its authors run of it
    assert np.isfinite(chunk.data).all()
    assert Duration.from_msg(chunk.step_dt).nanoseconds == 50_000_000

    # An arm that was stopped in between goes on from nothing.
    assert rig.call(SetBool, '/specprune_node/enable', SetBool.Request(data=False)).success
    rig.spin(1.0)  # no image is new enough any more
    assert rig.call(SetBool, '/specprune_node/enable', SetBool.Request(data=True)).success
    assert rig.wait(lambda: said() == 'no chunk before', 20.0), said()


def test_a_policy_that_cannot_go_on_refuses_the_parameter(rig_with):
    rig = rig_with(rtc__enabled=True)
    rig.spin(0.1)
    for _ in range(1500):
        if 'only a flow policy (pi0, pi0.5) can go on' in rig.process.text():
            break
        rig.spin(0.1)
    assert 'only a flow policy (pi0, pi0.5) can go on' in rig.process.text()


@pytest.fixture
def chunking(ros):
    """A flow policy that goes on from its chunks, beside a node of this process."""
    from specprune_ros.nodes.policy_node.chunk_continuation import ChunkContinuation
    from specprune_ros.policy.build import build_policy
    from specprune_ros.policy.real_time_chunking import ChunkingRules
    from specprune_ros.pruning.params import PruningParams

    if not ros.ok():
        ros.init()
    node = ros.create_node('somebody')
    params = PruningParams().replace(pruner='dense')
    policy = build_policy(preset='pi0-tiny', device='cpu', threads=1, params=params)
    policy.config = replace(policy.config, execute=4)  # of 10 rows
    rules = [ChunkingRules()]
    made = ChunkContinuation(node, policy, lambda: rules[0])
    yield made, policy, rules
    made.close()
    node.destroy_node()
    ros.try_shutdown()


def observe(ms):
    from specprune_ros.policy.observation import CameraImage, Observation

    pixels = np.zeros((64, 64, 3), np.uint8)
    images = {camera: CameraImage(pixels, round(1e6 * ms)) for camera in CAMERAS}
    return Observation(images, 'lift the red cube', np.zeros(8))


@pytest.mark.parametrize(
    ('ms', 'requested', 'why'),
    [(1100, True, 'enabled'), (60_000, False, 'no query for'), (900, False, 'time went back')],
)
def test_a_new_episode_does_not_go_on_from_the_last_chunk(chunking, ms, requested, why):
    made, policy, _ = chunking
    made.issued(observe(1000), policy.act(observe(1000)))
    made.follower.executed(1_000_000_000, 0.0)
    assert len(made.go_on(observe(1100)).previous) == 10
    if requested:
        policy.reset('enabled')
    assert made.go_on(observe(ms)) is None
    assert made.follower.reason == 'a new episode begins'
    assert why in policy.act(observe(ms)).reset


@pytest.mark.parametrize(('on', 'rows'), [(False, 4), (True, 10)])
def test_a_chunk_lasts_as_long_as_the_rows_that_are_sent(chunking, on, rows):
    from rclpy.clock import Clock

    from specprune_ros.nodes.policy_node.inference import InferenceThread
    from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer
    from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule

    made, policy, rules = chunking
    rules[0] = rules[0] if on else None
    buffer = ObservationBuffer(CAMERAS, True, Limits(60.0, 60.0, 60.0, 60.0))
    buffer.put_instruction('lift the red cube')
    events = []
    schedule = QuerySchedule(0.0, 0.0, by_chunk=True)
    thread = InferenceThread(
        lambda: policy, buffer, Clock(), events.append, events.append, schedule
    )
    thread.chunking = made
    try:
        thread.load(60.0)
        thread.activate()
        now = time.time_ns()
        buffer.put_state(np.zeros(8), now)
        for camera, image in observe(now / 1e6).images.items():
            buffer.put_image(camera, image)
        pace, end = thread._chunks, time.monotonic() + 60.0
        while pace._delivered < 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert pace._end - pace._delivered == pytest.approx(rows * policy.step_dt), events
    finally:
        thread.close()
