"""``specprune view --bag``: the page at any moment of a recording, of our arm or of another."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('viser', reason='viser is not installed: pip install -r requirements/view.txt')

from page_client import PageClient
from ros_processes import new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]
RECORDING = ROOT / 'specprune_ros' / 'sim' / 'recording'
SECOND = 10**9
WORDS = re.compile('/robot/7/|GuiImageMessage')
# An arm of our own making, as an integrator's package would describe it: one mesh, one joint.
URDF = """
<robot name="lamp">
  <link name="base_link"><visual><geometry><cylinder radius="0.1" length="0.1"/></geometry>
    <material name="grey"><color rgba="0.3 0.3 0.3 1"/></material></visual></link>
  <link name="arm"><visual><origin xyz="0 0 0.2"/>
    <geometry><mesh filename="package://lamp/arm.stl"/></geometry></visual></link>
  <joint name="lean" type="revolute"><parent link="base_link"/><child link="arm"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
  <link name="head"/>
  <joint name="neck" type="fixed"><parent link="arm"/><child link="head"/>
    <origin xyz="0 0 0.4"/></joint>
</robot>
"""
PROFILE = """
robot: lamp
description: a lamp that leans
base_frame: base_link
tool_link: head
joints: [lean]
observation:
  cameras:
    eye: {topic: /eye/image_raw, depth: /eye/depth, camera_info: /eye/info}
  joint_states: /joint_states
  ee_pose: /ee_pose
command: {adapter: twist, topic: /cmd, frame: base_link, rate: 50.0}
limits:
  translation_speed: 0.2
  rotation_speed: 0.8
  translation_acceleration: 1.0
  rotation_acceleration: 4.0
  workspace: {min: [-1, -1, 0], max: [1, 1, 1]}
"""


def stamped(message, at, frame=''):
    from rclpy.time import Time

    message.header.stamp = Time(nanoseconds=at).to_msg()
    message.header.frame_id = frame
    return message


def account(number, at):
    from specprune_ros.msg import PruneStats

    return stamped(
        PruneStats(
            sequence=number,
            mode=PruneStats.MODE_COARSE,
            pruner='specprune',
            reason='coarse: fast',
            tokens_in=256,
            prune_layers=[2, 20],
            tokens_after=[120, 100],
            tokens_mean=130.0,
            flops_ratio=0.5,
            time_total=0.05,
        ),
        at,
    )


@pytest.fixture
def bag(tmp_path):
    """Two seconds of the lamp: it leans, and its eye keeps another patch each time."""
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import CameraInfo, Image, JointState
    from std_msgs.msg import String

    from specprune_ros.apps.bag import BagWriter, jpeg
    from specprune_ros.nodes.common.images import to_message
    from specprune_ros.nodes.common.patch_mask import KEPT
    from specprune_ros.nodes.common.patch_mask import to_message as mask_message

    begin = 1_700_000_000 * SECOND
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/robot_description', String(data=URDF), begin)
        for step in range(20):
            at = begin + step * SECOND // 10
            joints = stamped(JointState(name=['lean'], position=[0.05 * step]), at)
            writer.write('/joint_states', joints, at)
            writer.write('/ee_pose', stamped(PoseStamped(), at), at)
            pixels = np.full((64, 64, 3), 10 * step, np.uint8)
            image = stamped(to_message(pixels), at, 'head')
            writer.write('/eye/image_raw/compressed', jpeg(image), at)
            mask = np.zeros((4, 4), np.uint8)
            mask[step % 4] = KEPT | 1
            writer.write(
                '/specprune_node/kept/eye', stamped(mask_message(mask), at, 'eye'), at + 1
            )
            depth = Image(height=64, width=64, encoding='32FC1', step=256)
            depth.data = np.full(64 * 64, 0.5, '<f4').tobytes()
            writer.write('/eye/depth', stamped(depth, at, 'head'), at)
            info = CameraInfo(height=64, width=64)
            info.k = [64.0, 0.0, 31.5, 0.0, 64.0, 31.5, 0.0, 0.0, 1.0]
            writer.write('/eye/info', stamped(info, at, 'head'), at)
            writer.write('/specprune_node/prune_stats', account(step + 1, at), at + 2)
    (tmp_path / 'lamp.yaml').write_text(PROFILE)
    return tmp_path / 'bag'


def test_at_a_moment_there_is_the_newest_of_everything_and_all_statistics_so_far(bag):
    from specprune_ros.apps.bag import BagError, BagReader
    from specprune_ros.apps.view import Recording
    from specprune_ros.nodes.common.remapping import profile_path
    from specprune_ros.robot.profile import load

    lamp = load(bag.parent / 'lamp.yaml')
    with BagReader(bag) as reader:
        recording = Recording(reader, lamp, '/specprune_node', 'auto')
        at = recording.start_ns + SECOND
        found = list(recording.until(at + 5))
        roles = [role for role, _ in found]
        assert roles.count('stats') == 11
        assert roles.count('joints') == roles.count('robot') == roles.count('kept eye') == 1
        assert dict(found)['joints'].position[0] == pytest.approx(0.5)
        assert {'image eye', 'depth eye'} <= set(roles[-2:])
        # Depth images are as large as others: read where they are needed.
        assert 'depth eye' not in recording._messages and 'info eye' in recording._messages
        assert dict(found)['depth eye'].header == dict(found)['image eye'].header
        later = [role for role, _ in recording.until(at + SECOND // 2 + 5, at + 5)]
        assert later.count('stats') == later.count('image eye') == later.count('depth eye') == 5
        with pytest.raises(BagError, match='nothing of sim_arm'):
            Recording(reader, load(profile_path('sim_arm')), '/other', '')


def test_what_playing_sets_itself_does_not_count_as_a_person_s_wish(bag):
    """It played without a pause, as fast as it could draw."""
    from specprune_ros.apps.bag import BagReader
    from specprune_ros.apps.view import Cursor, Recording, ViewOptions
    from specprune_ros.nodes.viewer_node.access import Access, serve
    from specprune_ros.nodes.viewer_node.page import Page
    from specprune_ros.robot.profile import load

    lamp = load(bag.parent / 'lamp.yaml')
    nodes = {'policy': '/specprune_node', 'executor': '/chunk_executor', 'arm': 'auto'}
    options = ViewOptions('', '', '127.0.0.1', 18600, **nodes, image_transport='profile', bag=bag)
    server = serve(options.host, options.port, Access(options.host))
    try:
        with BagReader(bag) as reader:
            recording = Recording(reader, lamp, options.policy, options.arm)
            cursor = Cursor(server, Page(server, 'lamp'), recording, lamp, options)
            cursor._slider.value = 1.0
            cursor._play.value = True
            assert not cursor._changed.is_set()
            client = PageClient(server.get_port())
            client.set('Time (s)', 0.5)
            assert cursor._changed.wait(30.0)
            client.close()
    finally:
        server.stop()


def view(folder, *arguments):
    """A running ``specprune view``, and its port."""
    log = folder / 'view.log'
    process = subprocess.Popen(
        [sys.executable, '-m', 'specprune_ros.cli.main', 'view', '--port', '18500', *arguments],
        stdout=log.open('wb'),
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, 'AMENT_PREFIX_PATH': f'{folder}:{os.environ["AMENT_PREFIX_PATH"]}'},
    )
    end = time.monotonic() + 60
    while not (found := re.search(r'http://127\.0\.0\.1:(\d+)', log.read_text())):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    return process, int(found.group(1)), log


def stop(process):
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(20)
    finally:
        process.kill()


@pytest.mark.real_time
def test_the_page_scrubs_through_a_recording_of_an_arm_of_ones_own(bag):
    import trimesh

    mesh = bag.parent / 'share' / 'lamp' / 'arm.stl'
    mesh.parent.mkdir(parents=True)
    trimesh.creation.cylinder(0.03, 0.4).export(mesh)
    process, port, log = view(
        bag.parent, '--bag', str(bag), '--robot', str(bag.parent / 'lamp.yaml')
    )
    try:
        client = PageClient(port)
        client.until('Time (s)')
        assert 'Instruction' not in client.parts and 'Disable' not in client.parts
        client.set('Time (s)', 1.05)
        while 'query 11, coarse' not in str(client.seen):
            client.receive()
        text = str(client.seen)
        assert '/robot/1/' in text and '/kept' in text
        turned = [
            message['wxyz']
            for message in client.seen
            if message['type'] == 'SetOrientationMessage' and message['name'] == '/robot/1'
        ]
        assert turned[-1][2] == pytest.approx(np.sin(0.25), abs=1e-3)
        client.close()
    finally:
        status = stop(process)
    said = log.read_text()
    assert status == 130 and 'Traceback' not in said, said
    assert 'left out' not in said


@pytest.mark.real_time
def test_the_bundled_recording_shows_its_arm_and_cameras(tmp_path):
    """As its page has it. It was made without a policy, so there is nothing pruned to show."""
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'bag').symlink_to(RECORDING)
    process, port, log = view(tmp_path, '--bag', 'out/bag')
    try:
        client = PageClient(port)
        while not {'/robot/7/', 'GuiImageMessage'} <= set(WORDS.findall(str(client.seen))):
            client.receive()
        client.close()
    finally:
        assert stop(process) == 130, log.read_text()


@pytest.mark.real_time
def test_every_command_of_the_page_about_it_runs_as_it_stands(tmp_path):
    """But for the launch files, whose tests need a ROS host, the demo, which is slow, and the one
    that runs above.
    """
    lines = (ROOT / 'docs' / 'how-to' / 'view.md').read_text().splitlines()
    commands = [line for line in lines if line.startswith('specprune ')]
    commands.remove('specprune view --bag out/bag')
    assert len(commands) > 2
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(new_domain())}
    running = []
    for number, command in enumerate(commands):
        log = tmp_path / f'{number}.log'
        arguments = [sys.executable, '-m', 'specprune_ros.cli.main', *shlex.split(command)[1:]]
        options = {'cwd': tmp_path, 'env': environment, 'stderr': subprocess.STDOUT}
        running.append((subprocess.Popen(arguments, stdout=log.open('wb'), **options), log))
    try:
        end = time.monotonic() + 100
        for process, log in running:
            while 'http://' not in log.read_text():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.2)
    finally:
        for process, _ in running:
            process.send_signal(signal.SIGINT)
        statuses = [process.wait(20) for process, _ in running]
    assert set(statuses) <= {0, 130}
    said = {command: log.read_text() for command, (_, log) in zip(commands, running, strict=True)}
    assert all(('token=' in text) == ('0.0.0.0' in command) for command, text in said.items())


def test_what_is_no_recording_is_refused_with_the_reason(tmp_path, capfd):
    from specprune_ros.cli.main import main

    assert main(['view', '--bag', str(tmp_path / 'nothing')]) == 2
    assert 'no such file' in ' '.join(capfd.readouterr().out.split())
    assert main(['view', '--robot', 'nobody', '--bag', str(RECORDING)]) == 2
