"""The launch files' arguments: all that is wrong is said, with the names, before a node starts."""

from pathlib import Path

import pytest
import yaml

from specprune_ros.apps.launch_arguments import (
    ARGUMENTS,
    ArgumentError,
    absolute,
    check,
    check_arms,
    rate,
    read_profile,
    remarks_on,
    wire,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    'given, says',
    [
        ({'robot': 'nobody'}, ['nobody', 'flexiv_rizon4', 'sim_arm']),
        ({'robot': 'flexiv_rizon4'}, ["'robot_sn'"]),
        ({'robot': 'franka'}, ['random weights are refused', 'checkpoint:=FOLDER']),
        ({'checkpoint': '/no/such'}, ['checkpoint', 'no folder /no/such']),
        ({'instruction': 'x' * 1001}, ['instruction', '1001', '1000']),
        ({'dry_run': 'maybe'}, ['dry_run', 'maybe', 'true, false']),
        ({'params_file': '/no/such.yaml'}, ['params_file', '/no/such.yaml']),
        ({'params_file': 'LIST'}, ['params_file', 'ros__parameters']),
        ({'params_file': 'BROKEN'}, ['params_file', 'no YAML']),
        ({'view_port': '80.5'}, ['view_port', '1 to 65535']),
        ({'view_port': '65536'}, ['view_port', '1 to 65535']),
        ({'namespace': 'a//b'}, ['namespace', 'a//b']),
        ({'namespace': '1a'}, ['namespace', '1a']),
        ({'enclave': 'specprune'}, ['enclave', '/specprune']),
        ({'on_failure': 'cry'}, ['on_failure', 'stop, shutdown, keep']),
    ],
)
def test_an_argument_that_is_wrong_is_named(given, says, tmp_path):
    for name, text in (('LIST', '[1]'), ('BROKEN', 'a: [')):
        (tmp_path / name).write_text(text)
    given = {key: str(tmp_path / v) if v in ('LIST', 'BROKEN') else v for key, v in given.items()}
    with pytest.raises(ArgumentError) as caught:
        check(given)
    assert all(word in str(caught.value) for word in says), caught.value
    assert len(str(caught.value).splitlines()) == 1 or 'BROKEN' in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ArgumentError) as caught:
        check({'robot': 'nobody', 'view_port': 'x', 'log_level': 'loud'})
    lines = str(caught.value).splitlines()
    assert [line.split(':')[0] for line in lines] == ['log_level', 'view_port', "profile 'nobody'"]


def test_what_is_right_becomes_what_the_nodes_are_started_with(tmp_path):
    arm = check(
        {'namespace': 'left', 'checkpoint': str(tmp_path), 'instruction': 'pick: 1e3'}, '/cell'
    )
    assert arm.namespace == '/cell/left'
    assert arm.remappings['~/image/agent'] == '/cell/left/sim_arm/agent/image_raw'
    assert arm.parameters['model.path'] == str(tmp_path)
    assert arm.parameters['instruction'] == 'pick: 1e3'
    assert arm.profile_file == ROOT / 'config' / 'robots' / 'sim_arm.yaml'
    assert arm.on('executor')
    assert not arm.on('view')
    assert set(arm.given) == set(ARGUMENTS)


@pytest.mark.parametrize(
    'namespace, outer, whole',
    [('', '', ''), ('/', '/x', ''), ('a/b', '', '/a/b'), ('a', '/x/', '/x/a'), ('/a', '/x', '/a')],
)
def test_namespaces_are_joined_as_launch_joins_them(namespace, outer, whole):
    assert absolute(namespace, outer) == whole


@pytest.mark.parametrize('text', ['0', '-1', 'fast', 'nan', 'inf', ''])
def test_a_rate_is_above_0(text):
    with pytest.raises(ArgumentError, match='rate'):
        rate(text)
    assert rate('1e-1') == 0.1


def test_arms_of_one_file_have_their_own_and_shared_arguments(tmp_path):
    file = tmp_path / 'cell.yaml'
    file.write_text(
        'left: {robot: sim_arm, dry_run: true, view_port: 8090}\n'
        f'right: {{robot: flexiv_rizon4, robot_sn: Rizon4-123456, checkpoint: {tmp_path}}}\n'
        'third:\n'
    )
    left, right, third = check_arms(file, {'log_level': 'warn', 'dry_run': 'false'}, '/cell')
    assert [arm.namespace for arm in (left, right, third)] == [
        '/cell/left', '/cell/right', '/cell/third',
    ]  # fmt: skip
    assert left.on('dry_run')
    assert left.given['view_port'] == '8090'
    assert not right.on('dry_run')
    assert right.remappings['~/ee_pose'] == '/cell/right/Rizon4_123456/tcp_pose'
    assert third.profile_file.stem == 'sim_arm'
    assert {arm.given['log_level'] for arm in (left, right, third)} == {'warn'}


@pytest.mark.parametrize(
    'text, says',
    [
        ('[left]', ['namespaces are needed']),
        ('left: sim_arm', ['left', 'arguments and their values']),
        ('left: {speed: 1}', ['left', 'speed is no argument', 'robot_sn']),
        ('left: {robot: flexiv_rizon4}\nright: {dry_run: 3}', ['left', 'robot_sn', 'right']),
        ('a/b:\n/a/b:\n', ['two arms in /a/b']),
    ],
)  # fmt: skip
def test_a_file_of_arms_that_is_wrong_starts_none(text, says, tmp_path):
    file = tmp_path / 'cell.yaml'
    file.write_text(text)
    with pytest.raises(ArgumentError) as caught:
        check_arms(file, {})
    assert all(word in str(caught.value) for word in (str(file), *says)), caught.value


def test_images_come_in_the_form_requested():
    profile, _ = read_profile('sim_arm', '')
    raw, parameters = wire(profile, 'profile')
    assert raw['~/image/agent'] == '/sim_arm/agent/image_raw'
    assert parameters['image_transport'] == 'raw'
    compressed, parameters = wire(profile, 'compressed')
    assert compressed['~/image/agent'] == '/sim_arm/agent/image_raw/compressed'
    assert compressed['~/joint_states'] == raw['~/joint_states']
    assert parameters['image_transport'] == 'compressed'


def test_a_parameter_file_that_surprises_is_spoken_of(tmp_path):
    _, parameters = wire(read_profile('sim_arm', '')[0], 'profile')

    def on(file, space):
        return remarks_on(yaml.safe_load(file.read_text()), file, space, parameters)

    whole = ROOT / 'config' / 'specprune.yaml'  # for a node of any name
    for space in ('', '/arm1'):
        assert on(whole, space) == []

    file = tmp_path / 'params.yaml'
    file.write_text('specprune_node:\n  ros__parameters:\n    query_rate: 5.0\n')
    assert on(file, '') == []
    (line,) = on(file, '/arm1')
    assert 'no section for /arm1/specprune_node' in line
    assert 'it has /specprune_node' in line

    file.write_text('arm1:\n  "*":\n    ros__parameters:\n      speed: {source: action}\n')
    (line,) = on(file, '/arm1')
    assert "speed.source is 'joint_states', not 'action'" in line
