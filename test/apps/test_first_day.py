"""A lab's first day on drivers that are fake: doctor, jog, and a policy in a dry run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_arm import START, FakeArm, description
from ros_processes import Process, new_domain

from specprune_ros.robot.description import UrdfError
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.profile import load

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
AGES = ('observation_age', 'chunk_age', 'state_age')


def franka(folder, **gripper):
    """The Franka's profile with a gripper on a topic (control_msgs is not installed everywhere)
    and patience for a busy machine.
    """
    tree = yaml.safe_load((ROOT / 'config' / 'robots' / 'franka.yaml').read_text())
    tree['gripper'] = {'adapter': 'float64', 'name': '/hand/opening', **gripper}
    tree['watchdog'] |= dict.fromkeys(AGES, 20.0) | {'dry_queue': 20.0}
    tree['command']['rate'] = 25.0
    file = folder / 'my_franka.yaml'
    file.write_text(json.dumps(tree))  # YAML without aliases, which are not read
    return file


@pytest.fixture
def domain(monkeypatch):
    number = new_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
    return number


def specprune(*words):
    from specprune_ros.cli.main import main

    return main([str(word) for word in words])


def test_doctor_finds_nothing_red_on_whole_drivers_and_names_what_lacks(domain, tmp_path):
    file, report = franka(tmp_path), tmp_path / 'out' / 'doctor.json'

    def examined():
        status = specprune('doctor', '--robot', file, '--seconds', 2, '--json', report)
        data = json.loads(report.read_text())
        red = [row for row in data['rows'] if row['state'] == 'fail']
        assert status == bool(red) and data['ok'] == (not red)
        return {row['check']: row for row in data['rows']}

    with FakeArm(domain, load(file)):
        rows = examined()
    # On a machine that is busy enough any driver is slow.
    late = ('at least', 'at most')
    assert not [
        row
        for row in rows.values()
        if row['state'] == 'fail' and not any(word in row['found'] for word in late)
    ]
    states = {name: row['state'] for name, row in rows.items()}
    assert states['observation.ee_pose: frame'] == states['joints'] == 'ok'
    assert states['robot_description'] == states['observation.gripper_joints'] == 'ok'
    assert states['command.topic: /target_pose'] == 'ok'
    assert states['limits.workspace'] == 'warn'  # as shipped
    assert (
        '224 x 224 rgb8'
        in rows['observation.cameras.agent: /camera/agent/color/image_raw']['found']
    )
    tree = json.loads(file.read_text())
    tree['base_frame'] = tree['command']['frame'] = 'world'
    tree['observation']['gripper_joints'] = ['left_finger', 'left_finger']
    tree['observation']['ee_twist'] = '/no/such/twist'
    with FakeArm(domain, load(file), cameras=False):
        file.write_text(json.dumps(tree))
        rows = examined()
    red = {name: row for name, row in rows.items() if row['state'] == 'fail'}
    assert all(row['cure'] for row in red.values())
    assert (
        'nothing arrives'
        in red['observation.cameras.wrist: /camera/wrist/color/image_raw']['found']
    )
    assert "'fr3_link0'" in red['observation.ee_pose: frame']['found']
    assert 'left_finger' in red['observation.gripper_joints']['found']
    assert 'nobody publishes' in red['observation.ee_twist: /no/such/twist']['found']
    assert 'robot_description' in red  # it has no link named world


def test_doctor_looks_into_images_and_descriptions(domain, tmp_path):
    """What the nodes would refuse is red, however well it arrives."""
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image

    from specprune_ros.apps.doctor import Listener

    file = franka(tmp_path)
    rclpy.init()
    listener = Listener(load(file))
    try:
        listener.run(0.1, lambda passed: None)
        agent, wrist = (
            listener.received[f'observation.cameras.{name}'] for name in ('agent', 'wrist')
        )
        listener._on_message(
            agent, Image(width=8, height=8, step=8, encoding='bayer_rggb8', data=bytes(64))
        )
        listener._on_message(wrist, CompressedImage(format='h264', data=b'no image'))
        listener.run(0.1, lambda passed: None)
        assert 'bayer_rggb8' in agent.unreadable and wrist.unreadable
    finally:
        listener.close()
        rclpy.shutdown()
    tree = json.loads(file.read_text())
    for changes, said in (
        ({'robot_description_file': str(tmp_path / 'none.urdf')}, 'none.urdf'),
        ({'robot_description_sha256': '0' * 64}, '0' * 64),
    ):
        with FakeArm(domain, load(file)):
            changed = {**tree, 'observation': {**tree['observation'], **changes}}
            (tmp_path / 'changed.yaml').write_text(json.dumps(changed))
            report = tmp_path / 'doctor.json'
            assert specprune('doctor', '--robot', tmp_path / 'changed.yaml', '--seconds', 1,
                             '--json', report) == 1  # fmt: skip
        (key,) = changes
        (row,) = [r for r in json.loads(report.read_text())['rows'] if key in r['check']]
        assert row['state'] == 'fail' and said in row['found'] + row['cure']


def test_jog_moves_up_and_back_and_grips_through_the_executor(domain, tmp_path, capsys):
    file, report = franka(tmp_path), tmp_path / 'jog.json'
    words = ('jog', '--robot', file, '--seconds', 1.0, '--json', report)
    with FakeArm(domain, load(file), cameras=False) as arm:
        status = specprune(*words, '--yes', '--fake')
        said = capsys.readouterr().out
        assert status == 0, said
        assert max(arm.heights) - START.position[2] == pytest.approx(0.02, abs=0.003)
        assert arm.pose.position == pytest.approx(START.position, abs=0.003)
        assert arm.grips == [1.0, 0.0]
        assert 'What is going to happen' in said and '20 mm along +z of fr3_link0 and back' in said
        assert 'up only where +z of fr3_link0 points up' in said
        steps = [step['name'] for step in json.loads(report.read_text())['steps']]
        assert steps == ['preview', 'along +z', 'back', 'gripper: open', 'gripper: close']


def test_jog_sends_nothing_unless_a_person_says_so_and_ends_where_the_arm_does_not_follow(
    domain, tmp_path, capsys, monkeypatch
):
    file = franka(tmp_path)
    assert specprune('jog', '--robot', file, '--yes') == 2
    assert 'may be a real arm' in capsys.readouterr().out
    profile = load(file, {'namespace': '/left'})
    assert profile.command.topic.startswith('/left/')
    with FakeArm(domain, profile, follows=False, cameras=False) as arm:
        monkeypatch.setattr('sys.stdin', open(os.devnull))  # noqa: SIM115
        jog = ('jog', '--robot', file, '--namespace', 'left')
        assert specprune(*jog) == 1
        assert 'a person must confirm' in capsys.readouterr().out
        assert arm.commands == 0
        short = (*jog, '--seconds', 1.0, '--no-gripper')
        assert specprune(*short, '--dry-run') == 0, capsys.readouterr().out
        assert 'along +z and back (dry run)' in capsys.readouterr().out and arm.commands == 0
        assert specprune(*short, '--yes', '--fake') == 1
        said = capsys.readouterr().out
        assert arm.commands > 0, said
        assert '0.0 mm of 20 mm measured' in said, said
        assert not arm.grips


def test_jog_does_not_move_an_arm_that_was_moved_while_the_executor_started(
    domain, tmp_path, capsys, monkeypatch
):
    from specprune_ros.apps import jog

    file, real = franka(tmp_path), jog.NodeProcess
    with FakeArm(domain, load(file), cameras=False) as arm:

        def pushed(*words):
            x, y, z = START.position
            arm.pose = Pose((x, y, z + 0.02), START.orientation)
            return real(*words)

        monkeypatch.setattr(jog, 'NodeProcess', pushed)
        assert specprune('jog', '--robot', file, '--no-gripper', '--yes', '--fake') == 1
        assert 'has moved by 20 mm since the preview' in capsys.readouterr().out
        assert arm.commands == 0


def test_jog_takes_the_description_that_the_profile_names(domain, tmp_path):
    """It took the first one from the topic, whatever file or digest the profile names."""
    import rclpy
    from std_msgs.msg import String

    from specprune_ros.apps.jog import Jogger
    from specprune_ros.nodes.common.qos import latched
    from specprune_ros.robot.description import digest

    tree = json.loads(franka(tmp_path).read_text())
    del tree['observation']['ee_pose']  # the pose comes from the description
    file, text = tmp_path / 'robot.json', tmp_path / 'robot.urdf'
    file.write_text(json.dumps(tree))
    known = description(load(file))
    text.write_text(known)

    def jogger(**observation):
        tree['observation'].pop('robot_description_file', None)
        tree['observation'] |= observation
        file.write_text(json.dumps(tree))
        return Jogger(load(file))

    rclpy.init()
    made = []
    try:
        made.append(jogger(robot_description_file=str(text)))
        assert made[0].motion.kinematics is not None
        text.write_text('<robot')
        with pytest.raises(UrdfError):
            jogger(robot_description_file=str(text))
        made.append(jogger(robot_description_sha256=digest(known + ' ')))
        other = made[1]
        topic = load(file).observation.robot_description
        publisher = other.node.create_publisher(String, topic, latched())
        publisher.publish(String(data=known))
        assert other.spin(30.0, lambda: 'robot_description' in other.complaints)
        assert 'SHA-256' in other.complaints['robot_description']
        assert other.motion.kinematics is None
    finally:
        for each in made:
            each.close()
        rclpy.try_shutdown()


class FirstDay:
    """A released checkpoint's layout, eight numbers of proprioception, on fake Franka drivers."""

    def __init__(self, folder, domain):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from specprune_ros.msg import ActionChunk

        from specprune_ros.nodes.common.qos import every
        from specprune_ros.nodes.common.remapping import (
            policy_parameters,
            policy_remappings,
            ros_arguments,
        )
        from specprune_ros.policy.parity import unpack

        pack = unpack(ROOT / 'test' / 'data' / 'parity' / 'oft_libero.tar.xz', folder)
        checkpoint = next(pack.rglob('config.json')).parent
        file = franka(folder)
        profile = load(file)
        self.arm = FakeArm(domain, profile, follows=False)
        self.node = rclpy.create_node('watcher', context=self.arm.context)
        self.executor = SingleThreadedExecutor(context=self.arm.context)
        self.executor.add_node(self.node)
        self.chunks, self.health, self.values = [], '', {}
        listen = self.node.create_subscription
        listen(ActionChunk, '/specprune_node/action_chunk', self.chunks.append, every())
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, every())
        policy = {
            **policy_parameters(profile),
            'model.path': str(checkpoint),
            'model.threads': 1,
            'instruction': 'pick up the red block',
            'query_rate': 2.0,
            **{f'max_age.{name}': 10.0 for name in ('image', 'state')},
            'max_skew': 1.0,
        }
        executor = {'profile': str(file), 'dry_run': True}
        chunks = {'~/action_chunk': '/specprune_node/action_chunk'}
        self.processes = [
            Process(name, arguments, domain, folder / f'{name}.log')
            for name, arguments in (
                ('specprune_node', ros_arguments(policy_remappings(profile), policy)),
                ('chunk_executor', ros_arguments(chunks, executor)),
            )
        ]

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name.startswith('chunk_executor'):
                self.health = status.message
                self.values = {value.key: value.value for value in status.values}

    def wait(self, condition, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not condition():
            self.executor.spin_once(timeout_sec=0.1)
        return condition()

    def enable(self):
        from std_srvs.srv import SetBool

        client = self.node.create_client(SetBool, '/chunk_executor/enable')
        assert self.wait(client.service_is_ready, 60.0)
        future = client.call_async(SetBool.Request(data=True))
        assert self.wait(future.done, 30.0) and future.result().success

    def __enter__(self):
        self.arm.__enter__()
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.stop()
        self.executor.shutdown(1.0)
        self.node.destroy_node()
        self.arm.__exit__()

    def text(self):
        return '\n'.join(process.text()[-3000:] for process in self.processes)


@pytest.mark.parametrize(
    'seconds', [3.0, pytest.param(60.0, marks=pytest.mark.slow)], ids=['short', 'a minute']
)
def test_chunks_come_and_the_dry_run_goes_on(domain, tmp_path, seconds):
    with FirstDay(tmp_path, domain) as day:
        assert day.wait(lambda: len(day.chunks) > 1, 180.0), day.text()
        chunk = day.chunks[-1]
        assert chunk.header.frame_id == 'fr3_link0' and len(chunk.dims) == 7
        day.enable()
        assert day.wait(lambda: 'moving (dry run)' in day.health, 60.0), day.health + day.text()
        begin = int(day.values['commands'])
        enough = begin + 0.6 * 25.0 * seconds  # periods; a busy machine has fewer a second
        assert day.wait(lambda: int(day.values['commands']) > enough, 30.0 + 4.0 * seconds)
        assert 'stops' not in day.values, day.values
        far = re.match(r'([\d.]+) m and ', day.values['dry run: the arm would be'])
        assert far and float(far[1]) > 0.001, day.values
        assert day.arm.commands == 0 and day.arm.pose == START


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rizon4_without_a_checkpoint(domain, tmp_path):
    """With message types of the vendor's names, which are built here first (a minute or two)."""
    if not shutil.which('colcon') or not shutil.which('cmake'):
        pytest.skip('colcon and cmake build the messages')
    source = shutil.copytree(ROOT / 'test' / 'data' / 'flexiv_msgs', tmp_path / 'src')
    subprocess.run(
        ['colcon', 'build', '--base-paths', source, '--cmake-args', '-DBUILD_TESTING=OFF',
         f'-DPython3_EXECUTABLE={sys.executable}'],
        cwd=tmp_path, check=True, timeout=1200,
    )  # fmt: skip
    tree = yaml.safe_load((ROOT / 'config' / 'robots' / 'flexiv_rizon4.yaml').read_text())
    tree['watchdog'] |= dict.fromkeys(AGES, 20.0) | {'dry_queue': 20.0}
    # The fake arm answers the tool's pose, not a robot with this serial number's kinematics.
    file = tmp_path / 'my_rizon4.yaml'
    file.write_text(json.dumps(tree))
    script = ROOT / 'test' / 'helpers' / 'rizon4_day.py'
    line = f'. {tmp_path}/install/local_setup.bash && exec "$@"'
    done = subprocess.run(
        ['bash', '-c', line, 'bash', sys.executable, script, file, 'Rizon4-123456', tmp_path],
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{script.parent}:{os.environ["PYTHONPATH"]}'},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    red = [row for row in out['rows'] if row['state'] == 'fail']
    assert not [row for row in red if not any(w in row['found'] for w in ('at least', 'at most'))]
    assert out['dry'] | {'seconds': 0} == {'status': 0, 'seconds': 0, 'commands': 0}, done.stdout
    assert out['jog']['status'] == 0, done.stdout
    assert out['rise'] == pytest.approx(0.02, abs=0.003)
    assert out['goals'] == ['move', 'grasp']
