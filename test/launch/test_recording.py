"""A recording in, chunks out, all on recorded time.

Alone: python -m pytest test/launch/test_recording.py
"""

import time

import pytest
from listener import RECORDING, include, listening, need_launch_pytest, record_exits

need_launch_pytest()

import launch_pytest  # noqa: E402
from launch import LaunchDescription  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]
SECONDS = 4.0
exits = {}


@launch_pytest.fixture
def on_recorded_time(domain, small):
    return LaunchDescription(
        [
            record_exits(exits),
            include(
                'specprune.launch.py',
                robot='sim_arm',
                image_transport='compressed',
                use_sim_time='true',
                dry_run='true',
                params_file=small,
            ),
        ]
    )


@pytest.mark.launch(fixture=on_recorded_time)
def test_a_recording_becomes_chunks_on_recorded_time(domain):
    from geometry_msgs.msg import TwistStamped
    from rclpy.time import Time
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CompressedImage
    from specprune_ros.msg import ActionChunk
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagReader
    from specprune_ros.apps.replay import choose_topics
    from specprune_ros.nodes.common.qos import every, latched
    from specprune_ros.nodes.common.remapping import load_profile

    with BagReader(RECORDING) as bag, listening(domain) as listener:
        topics, parameters = choose_topics(bag, load_profile('sim_arm'))
        assert parameters == {'image_transport': 'compressed'}
        recorded = list(bag.messages(topics))
        first = recorded[0].stamp_ns
        publish = listener.node.create_publisher
        out = {
            topic: publish(kind, topic, latched() if kind is String else every())
            for topic, kind in topics.items()
        }
        clock = publish(Clock, '/clock', every())
        chunks = listener.hear(ActionChunk, '/specprune_node/action_chunk')
        commands = listener.hear(TwistStamped, '/chunk_executor/dry_run/command')

        # Discovery first, or the first messages are lost; they are the latched ones.
        images = [topic for topic, kind in topics.items() if kind is CompressedImage]
        assert listener.wait(lambda: all(out[t].get_subscription_count() for t in images), exits)

        begin = time.monotonic()
        for message in recorded:
            due = (message.stamp_ns - first) / 1e9
            if due > SECONDS:
                break
            listener.spin(begin + due - time.monotonic())
            clock.publish(Clock(clock=Time(nanoseconds=message.stamp_ns).to_msg()))
            out[message.topic].publish(message.message)
        last = message.stamp_ns
        assert listener.wait(lambda: len(chunks) > 2 and commands, exits, 10.0)

        said = [r.message.data for r in recorded if r.topic.endswith('/instruction')]
        for _, chunk in chunks:
            assert first <= Time.from_msg(chunk.header.stamp).nanoseconds <= last
            assert chunk.instruction == said[0]
        for _, command in commands:
            assert first <= Time.from_msg(command.header.stamp).nanoseconds <= last
    yield
    assert {name.rsplit('-', 1)[0] for name in exits} == {'specprune_node', 'chunk_executor'}
    assert set(exits.values()) == {0}, exits
