"""Recordings: written, read back, replayed through a live node, and refused with the reason."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ros_processes import new_domain

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[2]
RECORDING = ROOT / 'specprune_ros' / 'sim' / 'recording'


def test_what_is_written_is_read_back(tmp_path):
    from sensor_msgs.msg import CompressedImage
    from specprune_ros.msg import ActionChunk
    from std_msgs.msg import Header, String

    from specprune_ros.apps.bag import BagReader, BagWriter, jpeg_of
    from specprune_ros.nodes.common.images import compressed_to_rgb

    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    chunk = ActionChunk(sequence=5, dims=['x', 'y'], data=[1.0, 2.0])
    with BagWriter(tmp_path / 'bag') as bag:
        bag.write('/say', String(data='hello'), 10)
        bag.write('/chunk', chunk, 20)
        bag.write('/camera/compressed', jpeg_of(smooth, Header(frame_id='agent')), 30)
    with BagReader(tmp_path / 'bag') as bag:
        classes = {'/say': String, '/chunk': ActionChunk, '/camera/compressed': CompressedImage}
        said, read, image = bag.messages(classes)
        assert (said.stamp_ns, said.message.data) == (10, 'hello')
        assert read.message == chunk
        seen = compressed_to_rgb(image.message)
        assert np.abs(seen.astype(int) - smooth).mean() < 4


def test_one_file_of_a_folder_is_the_one_that_is_read(tmp_path):
    """`two/second.mcap` played the first file; a lone .mcap did not open at all."""
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagReader, BagWriter

    two = tmp_path / 'two'
    two.mkdir()
    for name in ('first', 'second'):
        with BagWriter(tmp_path / name) as bag:
            bag.write('/say', String(data=name), 10)
        next((tmp_path / name).glob('*.mcap')).rename(two / f'{name}.mcap')
    for name in ('first', 'second'):
        with BagReader(two / f'{name}.mcap') as bag:
            assert [r.message.data for r in bag.messages({'/say': String})] == [name]


def test_time_can_go_by_the_stamps_in_headers(tmp_path):
    """Stamps of simulated time are decades before the recorder's."""
    from sensor_msgs.msg import JointState

    from specprune_ros.apps.bag import BagReader, BagWriter
    from specprune_ros.apps.replay import header_offset, shifted
    from specprune_ros.nodes.common.time import stamp_ns

    now = 1_700_000_000 * 10**9
    with BagWriter(tmp_path / 'bag') as bag:
        for i in range(3):
            message = JointState()
            message.header.stamp.sec = 5 + i
            bag.write('/joints', message, now + i * 10**9 + 2_000_000)
    with BagReader(tmp_path / 'bag') as bag:
        topics = {'/joints': JointState}
        ahead = header_offset(bag, topics)
        for recorded in shifted(bag.messages(topics), ahead):
            assert recorded.stamp_ns == stamp_ns(recorded.message)


def test_the_bundled_recording_is_small_and_whole():
    from specprune_ros.apps.bag import BagReader

    assert sum(file.stat().st_size for file in RECORDING.iterdir()) < 5e6
    with BagReader(RECORDING) as bag:
        topics = bag.topics()
    assert topics['/sim_arm/agent/image_raw/compressed'] == 'sensor_msgs/msg/CompressedImage'
    assert topics['/sim_arm/joint_states'] == 'sensor_msgs/msg/JointState'


def replay(*arguments, domain):
    return subprocess.run(
        [sys.executable, '-m', 'specprune_ros.cli.main', 'replay', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, 'ROS_DOMAIN_ID': str(domain)},
    )


@pytest.mark.real_time
def test_a_recording_runs_through_a_live_node(tmp_path):
    done = replay(
        RECORDING, '--json', tmp_path / 'r.json', '--log', tmp_path, '--param', 'model.threads=1',
        # Whatever moves is fast, and coarse therefore; an unknown speed would be fine.
        '--param', 'pruning.v_t_threshold=0.005', '--param', 'pruning.v_t_exit=0.005',
        domain=new_domain(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / 'r.json').read_text())
    assert numbers['complete'] is True
    assert numbers['chunks'] >= 4  # a busy machine makes few
    # The arm's own policy: it has 16 x 16 patches of two cameras.
    assert numbers['weights'] == str(RECORDING.parent / 'weights') and 'policy: ' in done.stdout
    assert numbers['tokens_in'] == 512
    assert numbers['tokens_mean'] < 512
    assert numbers['query_ms']['p50'] > 0
    assert numbers['latency_ms']['p50'] > numbers['query_ms']['p50']
    # The expert moves: the controller sees it in the recorded joint states.
    assert numbers['modes'].get('coarse', 0) > 0
    assert list(numbers['instructions']) == ['lift the red cube']
    assert 'Traceback' not in (tmp_path / 'specprune_node.log').read_text()


def test_a_replay_sees_its_own_policy_and_who_runs_already(monkeypatch):
    """It took a page for its policy, and played onto a live arm's topics."""
    import rclpy
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String

    from specprune_ros.apps.replay import Player
    from specprune_ros.nodes.common.qos import every

    monkeypatch.setenv('ROS_DOMAIN_ID', str(new_domain()))
    topics = {'/left/eye': Image, '/left/joint_states': JointState}
    rclpy.init()
    try:
        player = Player(topics, ('eye',), '/left')

        def becomes(condition):
            end = time.monotonic() + 30.0
            while not condition() and time.monotonic() < end:
                time.sleep(0.02)
            return condition()

        def node(name, namespace='/left'):
            nodes.append(rclpy.create_node(name, namespace=namespace))
            nodes[-1].create_subscription(Image, '/left/eye', lambda image: None, every())
            return nodes[-1]

        nodes = []
        rviz = node('rviz')
        node('specprune_node', '/right')
        assert becomes(lambda: player.count_subscribers('/left/eye') == 2)
        assert not player.received_by_policy() and player.conflicts() == []
        node('specprune_node')
        assert becomes(player.received_by_policy)
        # A page publishes instructions; that alone moves nothing.
        rviz.create_publisher(String, '/left/specprune_node/instruction', every())
        rviz.create_publisher(JointState, '/left/joint_states', every())
        assert becomes(lambda: player.count_publishers('/left/joint_states') == 2)
        assert player.conflicts() == [
            'a node /left/specprune_node runs already',
            '/left/joint_states is published by /left/rviz',
        ]
    finally:
        rclpy.try_shutdown()


@pytest.mark.real_time
def test_a_replay_that_breaks_off_is_no_success(tmp_path):
    """Of an arm in a namespace, whose topics and nodes are there."""
    from specprune_ros.apps.bag import BagReader, BagWriter
    from specprune_ros.apps.replay import choose_topics
    from specprune_ros.nodes.common.remapping import load_profile

    with BagReader(RECORDING) as bag, BagWriter(tmp_path / 'bag') as copy:
        topics, _ = choose_topics(bag, load_profile('sim_arm'))
        for recorded in bag.messages(topics):
            # Nothing is recorded for 100 s from 2 s on.
            late = recorded.stamp_ns - bag.start_ns > 2_000_000_000
            stamp_ns = recorded.stamp_ns + 100_000_000_000 * late
            copy.write(f'/left{recorded.topic}', recorded.message, stamp_ns)
    done = replay(
        tmp_path / 'bag', '--namespace', 'left', '--json', tmp_path / 'r.json', '--log', tmp_path,
        '--param', 'model.threads=1', domain=new_domain(),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    numbers = json.loads((tmp_path / 'r.json').read_text())
    assert numbers['complete'] is False and numbers['chunks'] > 0
    assert list(numbers['instructions']) == ['lift the red cube']
    assert 'nothing was recorded for 10' in ' '.join(done.stdout.split())


def test_a_recording_knows_its_policy(tmp_path):
    """What the demo noted; else that of the simulated arm; else none."""
    from std_msgs.msg import String

    from specprune_ros.apps.bag import (
        SHIPPED,
        WEIGHTS,
        BagError,
        BagReader,
        BagWriter,
        bundled_weights,
        own_weights,
    )

    folder = tmp_path / 'checkpoint'
    folder.mkdir()
    for number, (noted, simulated, wanted) in enumerate(
        (
            (SHIPPED, False, bundled_weights()),
            (str(folder), True, str(folder)),
            ('', True, ''),
            (None, True, bundled_weights()),
            (None, False, ''),
            (str(tmp_path / 'gone'), True, None),
        )
    ):
        path = tmp_path / f'bag{number}'
        with BagWriter(path) as bag:
            if noted is not None:
                bag.note(WEIGHTS, noted)
            bag.write('/say', String(data='hello'), 10)
        with BagReader(path) as bag:
            if wanted is not None:
                assert own_weights(bag, simulated)[0] == wanted
                continue
            with pytest.raises(BagError, match='which is not here; give --checkpoint'):
                own_weights(bag, simulated)


def test_metadata_may_be_larger_than_a_profile_and_has_a_limit_of_its_own(tmp_path):
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagError, BagReader, BagWriter

    with BagWriter(tmp_path / 'bag') as bag:
        bag.note('long', 'x' * 200_000)
        bag.write('/say', String(data='hello'), 10)
    with BagReader(tmp_path / 'bag') as bag:
        assert len(bag.notes()['long']) == 200_000
        (tmp_path / 'bag' / 'metadata.yaml').write_text('x' * (17 << 20))
        with pytest.raises(BagError, match='at most 16777216 are read'):
            bag.notes()
        (tmp_path / 'bag' / 'metadata.yaml').write_text('{')
        with pytest.raises(BagError, match='not valid YAML'):
            bag.notes()


def test_a_damaged_chunk_is_said_of_the_recording(tmp_path):
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagError, BagReader, BagWriter

    with BagWriter(tmp_path / 'bag') as bag:
        for number in range(200):
            bag.write('/say', String(data=f'{number} ' * 50), 10 + number)
    file = next((tmp_path / 'bag').glob('*.mcap'))
    data = bytearray(file.read_bytes())
    data[1000:3000] = b'\xff' * 2000
    file.write_bytes(data)
    with BagReader(tmp_path / 'bag') as bag, pytest.raises(BagError, match='bag: '):
        list(bag.messages({'/say': String}))


def test_an_observation_is_made_from_a_recording(tmp_path):
    """What the node would have seen: the shipped observation is this one."""
    from specprune_ros.apps.bag import BagError, BagReader, BagWriter
    from specprune_ros.apps.observe import from_bag
    from specprune_ros.apps.replay import choose_topics
    from specprune_ros.bench.explain import shipped_records
    from specprune_ros.models.config import PolicyConfig
    from specprune_ros.nodes.common.remapping import find_profile
    from specprune_ros.robot.profile import load

    shipped = json.loads((RECORDING.parent / 'weights' / 'config.json').read_text())
    config = PolicyConfig.from_dict(shipped['policy'])
    profile = load(find_profile('sim_arm'))
    found = from_bag(RECORDING, profile, 3.0, config)
    for mine, theirs in zip(found, shipped_records(), strict=True):
        assert mine.instruction == theirs.instruction == 'lift the red cube'
        assert np.allclose(mine.proprio, theirs.proprio) and mine.proprio.shape == (8,)
        for camera in ('agent', 'wrist'):
            # JPEG decoders differ by a step.
            assert np.abs(mine.images[camera].astype(int) - theirs.images[camera]).max() <= 3
    assert not np.allclose(found[0].images['wrist'], found[1].images['wrist'])
    # The recording has one form of the images, and the profile may name the other.
    for form in ('', '/compressed'):
        cameras = {
            name: replace(camera, topic=camera.topic + form)
            for name, camera in profile.observation.cameras.items()
        }
        other = replace(profile, observation=replace(profile.observation, cameras=cameras))
        again = from_bag(RECORDING, other, 3.0, config)
        assert (again[1].images['wrist'] == found[1].images['wrist']).all()
    with pytest.raises(BagError, match='outside 0 to'):
        from_bag(RECORDING, profile, 99.0, config)
    # An arm in a namespace has its topics there, the instruction's too.
    with BagReader(RECORDING) as bag, BagWriter(tmp_path / 'left') as copy:
        for recorded in bag.messages(choose_topics(bag, profile)[0]):
            copy.write(f'/left{recorded.topic}', recorded.message, recorded.stamp_ns)
    profile = load(find_profile('sim_arm'), {'namespace': '/left'})
    _, moved = from_bag(tmp_path / 'left', profile, 3.0, config, namespace='/left')
    assert moved.instruction == 'lift the red cube'
    assert (moved.images['wrist'] == found[1].images['wrist']).all()


@pytest.mark.parametrize('kind', ['missing', 'empty', 'truncated', 'other topics'])
def test_a_recording_that_cannot_be_played_is_refused_with_the_reason(tmp_path, kind, capsys):
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagWriter
    from specprune_ros.cli.main import main

    path, reason = tmp_path / 'bag', 'not a rosbag2 recording'
    if kind == 'missing':
        reason = 'no such file or folder'
    elif kind == 'empty':
        path.mkdir()
    elif kind == 'truncated':
        path.mkdir()
        for file in RECORDING.iterdir():
            data = file.read_bytes()
            (path / file.name).write_bytes(
                data[: len(data) // 2] if '.mcap' in file.name else data
            )
    else:
        reason = 'needs images on /sim_arm/agent/image_raw'
        with BagWriter(path) as bag:
            bag.write('/say', String(data='hello'), 10)
    assert main(['replay', str(path), '--log', str(tmp_path)]) == 2
    assert reason in ' '.join(capsys.readouterr().out.split())
