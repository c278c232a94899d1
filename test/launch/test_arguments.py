"""The launch files' arguments: described, checked, and wrong ones refused with what would be
right. Needs launch, not launch_pytest.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
from listener import LAUNCH, RECORDING, ROOT, RUN

pytest.importorskip('launch_ros', reason='launch_ros is not installed: it comes with a ROS host')

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
FILES = ('specprune', 'demo', 'replay', 'arms')


def load_file(name):
    spec = importlib.util.spec_from_file_location(f'{name}_launch', LAUNCH / f'{name}.launch.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(name, *arguments, domain, log):
    """What ``ros2 launch`` does, in a process of its own."""
    return subprocess.run(
        [sys.executable, '-c', RUN, str(LAUNCH / f'{name}.launch.py'), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'ROS_LOG_DIR': str(log), 'ROS_DOMAIN_ID': str(domain)},
    )


@pytest.mark.parametrize('name', FILES)
def test_every_argument_says_what_it_is(name):
    arguments = load_file(name).generate_launch_description().get_launch_arguments()
    assert arguments
    for argument in arguments:
        assert len(argument.description) > 10, argument.name


@pytest.mark.parametrize('name', FILES)
def test_arguments_are_shown_without_torch(name):
    """``--show-args`` answers at once: importing PyTorch would take seconds."""
    code = (
        'import runpy, sys\n'
        "sys.modules['torch'] = None\n"
        'file = runpy.run_path(sys.argv[1])\n'
        "print(len(file['generate_launch_description']().get_launch_arguments()))\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(LAUNCH / f'{name}.launch.py')],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and int(done.stdout) > 3, done.stderr


def test_the_arguments_that_are_promised():
    arguments = load_file('specprune').generate_launch_description().get_launch_arguments()
    promised = {'robot', 'checkpoint', 'instruction', 'robot_sn', 'dry_run', 'params_file'}
    promised |= {'namespace', 'use_sim_time', 'log_level', 'view', 'view_host', 'view_port'}
    promised |= {'enclave', 'on_failure'}
    assert promised <= {argument.name for argument in arguments}
    robot = next(argument for argument in arguments if argument.name == 'robot')
    for profile in (ROOT / 'config' / 'robots').glob('*.yaml'):
        assert profile.stem in robot.description


@pytest.mark.parametrize(
    'name, arguments, says',
    [
        (
            'specprune',
            ['robot:=nobody', 'view_port:=0', 'namespace:=1a', 'checkpoint:=/no/such'],
            ['nobody', 'flexiv_rizon4', 'view_port', 'namespace', 'checkpoint', '/no/such'],
        ),
        ('specprune', ['robot:=flexiv_rizon4'], ['robot_sn']),
        ('specprune', ['robot:=franka'], ['random weights are refused', 'checkpoint:=FOLDER']),
        ('specprune', ['dry_run:=maybe'], ['dry_run', 'maybe', 'true']),
        ('specprune', ['params_file:=/no/such.yaml'], ['params_file', '/no/such.yaml']),
        ('demo', ['seed:=x'], ['seed', 'whole number']),
        ('replay', ['bag:=/no/such'], ['bag', '/no/such']),
        ('replay', [f'bag:={RECORDING}', 'rate:=0'], ['rate', 'above 0']),
        ('arms', ['arms:=ARMS'], ['right', 'robot_sn']),
    ],
)
def test_wrong_arguments_end_the_launch_before_a_node_starts(
    name, arguments, says, domain, tmp_path
):
    arms = tmp_path / 'arms.yaml'  # the first is right
    arms.write_text('left: {robot: sim_arm}\nright: {robot: flexiv_rizon4}\n')
    arguments = [text.replace('ARMS', str(arms)) for text in arguments]
    done = launch(name, *arguments, domain=domain, log=tmp_path)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert all(word in said for word in says), said
    assert 'process started' not in said


def test_a_node_that_cannot_start_ends_the_launch_with_an_error(domain, tmp_path):
    arguments = (f'checkpoint:={tmp_path}', 'executor:=false')
    done = launch('specprune', *arguments, domain=domain, log=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert 'specprune_node could not start' in said
    assert 'process has finished cleanly' in said


def test_the_dds_profile_is_set_where_the_user_has_none(monkeypatch):
    from launch import LaunchContext

    from specprune_ros.apps.bringup import dds_profile

    old, new = 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'
    for distro, name in (('jazzy', old), ('kilted', new)):
        monkeypatch.setenv('ROS_DISTRO', distro)
        for either in (old, new):
            monkeypatch.setenv(either, '')  # so that whatever is set below is undone
        context = LaunchContext()
        (action,) = dds_profile(context)
        action.execute(context)
        assert os.environ[name].startswith(str(ROOT / 'config' / 'fastdds'))
        assert os.path.isfile(os.environ[name])
        monkeypatch.setenv(name, '/my/own.xml')
        assert dds_profile(context) == []


def test_a_recording_is_played_without_its_own_outputs(tmp_path):
    from specprune_ros.apps.bag import BagReader
    from specprune_ros.apps.replay import choose_topics
    from specprune_ros.nodes.common.remapping import load_profile

    module = load_file('replay')
    with BagReader(RECORDING) as bag:
        topics, _ = choose_topics(bag, load_profile('sim_arm'))
    command = module.play_command(RECORDING, topics, 2.0, tmp_path / 'qos.yaml')
    assert command[:4] == ['ros2', 'bag', 'play', str(RECORDING)]
    assert command[command.index('--rate') + 1] == '2.0'
    assert '--clock' in command
    played = command[command.index('--topics') + 1 :]
    assert '/sim_arm/agent/image_raw/compressed' in played
    assert not [topic for topic in played if 'chunk' in topic or 'stats' in topic]
    latched = module.latched_topics(topics)
    assert set(latched) == {'/sim_arm/robot_description', '/specprune_node/instruction'}


def test_replay_plays_or_says_what_it_needs(domain, tmp_path):
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    done = launch('replay', f'bag:={RECORDING}', domain=domain, log=tmp_path)
    said = done.stdout + done.stderr
    try:
        get_package_prefix('ros2bag')
    except PackageNotFoundError:
        assert done.returncode == 1
        assert 'ros2bag' in said
        assert 'specprune replay' in said
        return
    assert done.returncode == 0, said
    assert 'episode 1' in said  # the policy made chunks
    assert 'the recording has ended' in said
