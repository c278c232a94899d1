"""What others send cannot hold a node up, fill its memory or its log: real node, real DDS."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from image_files import encoded, many_scans

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]


@pytest.fixture
def rig(rig_with):
    """A policy node that takes compressed images, fed until it answers."""
    from sensor_msgs.msg import CompressedImage

    from specprune_ros.nodes.common.qos import every

    rig = rig_with(image_transport='compressed')
    for publisher in rig.images.values():
        rig.node.destroy_publisher(publisher)
    jpeg = encoded('JPEG', rig.pixels[0], quality=90)
    topics = {
        camera: rig.node.create_publisher(
            CompressedImage, f'/specprune_node/image/{camera}', every()
        )
        for camera in rig.images
    }

    def feed(seconds, until=lambda: False, agent=jpeg):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rig.move()
            for camera, topic in topics.items():
                message = CompressedImage(format='jpeg')
                message.header.stamp = rig.stamp()
                message.data = agent if camera == 'agent' else jpeg
                topic.publish(message)
            rig.spin(0.1)
            if until():
                return True
        return False

    rig.feed_compressed = feed
    assert feed(60.0, lambda: len(rig.stats) >= 2), rig.process.text()
    return rig


def test_a_node_answers_while_hostile_messages_come_and_recovers(rig):
    from rcl_interfaces.srv import GetParameters
    from sensor_msgs.msg import JointState
    from std_msgs.msg import String

    from specprune_ros.nodes.common.qos import every

    # A thousand scans: at 4096 pixels a side 10 s of work.
    begin = time.monotonic()
    bomb = many_scans(1000, (256, 256))
    assert rig.feed_compressed(8.0, lambda: 'scans' in rig.health(), agent=bomb), (
        rig.process.text()
    )
    request = GetParameters.Request(names=['query_rate'])
    requested = time.monotonic()
    rig.call(GetParameters, '/specprune_node/get_parameters', request)
    assert time.monotonic() - requested < 2.0 and time.monotonic() - begin < 15.0
    # Refused by its length, before it is decoded.
    joints = rig.node.create_publisher(JointState, '/specprune_node/joint_states', every())
    large = JointState(name=[f'j{i}' for i in range(40_000)])

    def said():
        joints.publish(large)
        return 'bytes was not read' in rig.process.text()

    assert rig.feed_compressed(10.0, said)
    # Another instruction a hundred times a second, with what a terminal would obey.
    topic = rig.node.create_publisher(String, '/specprune_node/instruction', every())
    before = len(rig.process.text())
    end = time.monotonic() + 3.0
    sent = 0
    while time.monotonic() < end:
        topic.publish(String(data=f'\x1b[2J{sent}\n[ERROR] forged' + 'x' * 900))
        topic.publish(String(data='y' * (2000 + sent)))
        sent += 1
        rig.spin(0.005)
    grown = rig.process.text()[before:]
    assert sent > 100 and len(grown) < 20_000, len(grown)
    assert '\x1b[2J' not in grown and '\n[ERROR] forged' not in grown
    topic.publish(String(data='lift the red cube'))
    have = len(rig.chunks)
    assert rig.feed_compressed(20.0, lambda: len(rig.chunks) > have + 2), rig.health()
    assert 'Traceback' not in rig.process.text(), rig.process.text()
