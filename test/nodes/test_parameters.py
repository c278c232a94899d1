"""The parameter tables and the files made from them say the same."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def tables():
    from specprune_ros.nodes.policy_node import parameter_tables as tables

    return tables


def test_the_parameter_file_is_the_table(tables):
    # Made anew by: specprune params --yaml > config/specprune.yaml
    assert (ROOT / 'config/specprune.yaml').read_text() == tables.as_yaml()
    values = yaml.safe_load(tables.as_yaml())['/**']['ros__parameters']
    defaults = {setting.name: setting.default for setting in tables.all_settings()}
    # What a preset sets stays out of the file, and so do empty lists, which have no type there.
    assert values == {
        name: value
        for name, value in defaults.items()
        if value != [] and (not name.startswith('pruning.') or name in tables.FREE)
    }


def test_the_documents_hold_the_table(tables):
    # Made anew by: specprune params --markdown
    assert tables.as_markdown() in (ROOT / 'docs/reference/parameters.md').read_text()


def test_every_parameter_says_what_it_means_and_ranges_hold_the_default(tables):
    for setting in tables.all_settings():
        assert setting.description.endswith('.'), setting.name
        descriptor = setting.descriptor()
        assert setting.description in descriptor.description
        for bounds in (*descriptor.integer_range, *descriptor.floating_point_range):
            assert bounds.from_value <= setting.default <= bounds.to_value, setting.name
        if setting.choices and isinstance(setting.default, str):
            assert setting.refuse(setting.default) is None


def test_a_value_outside_the_choices_is_refused_with_the_choices(tables):
    setting = next(s for s in tables.all_settings() if s.name == 'model.dtype')
    assert 'auto, float32' in setting.refuse('int8')


def test_a_typo_and_an_integer_at_start(ros, capfd):
    """`-p pruning.alfa:=0.5` passed in silence; `-p query_rate:=5` was fatal."""
    from specprune_ros.nodes.common.parameters import NodeParameters, ParameterSpec

    ros.init(args=['--ros-args', '-p', 'query_rat:=5.0', '-p', 'query_rate:=5'])
    node = ros.create_node('somebody')
    try:
        parameters = NodeParameters(node, [ParameterSpec('query_rate', 10.0, 'Rate.')])
        assert parameters.values() == {'query_rate': 5.0}
        log = capfd.readouterr().err
        assert "parameter 'query_rat' is unknown and ignored; is query_rate meant?" in log
    finally:
        node.destroy_node()
        ros.try_shutdown()


def test_a_plugin_that_fails_refuses_the_parameter_and_says_why(ros, monkeypatch):
    from rclpy.parameter import Parameter

    from specprune_ros.nodes.common.parameters import NodeParameters
    from specprune_ros.nodes.policy_node import parameters as ours
    from specprune_ros.policy.build import build_policy
    from specprune_ros.pruning import registry
    from specprune_ros.pruning.params import METHODS
    from specprune_ros.pruning.rivals.fastv import FastV

    class Faulty(FastV):
        name = 'faulty'
        parameters = None

        def plan(self, layout, params, mode):
            return {}['layer']

    monkeypatch.setattr(registry, '_PRUNERS', dict(registry._PRUNERS))
    registry.register_pruner(Faulty)
    policy = build_policy(preset='tiny', device='cpu', threads=1)

    def check(values, request):
        policy.check_params(ours.build_params(ours.pruning_values(request)))

    ros.init()
    node = ros.create_node('somebody')
    try:
        NodeParameters(node, ours.pruning_parameters(), check)
        (answer,) = node.set_parameters([Parameter('pruning.pruner', value='faulty')])
        assert (answer.successful, answer.reason) == (False, "KeyError: 'layer'")
        (answer,) = node.set_parameters([Parameter('pruning.pruner', value='fastv')])
        assert answer.successful
    finally:
        METHODS.pop('faulty')
        node.destroy_node()
        ros.try_shutdown()


def test_a_profile_nobody_has_and_a_broken_parameter_file_are_named(tmp_path):
    from specprune_ros.nodes.common.lifecycle import wrong_file
    from specprune_ros.nodes.common.remapping import find_profile
    from specprune_ros.robot.profile import ProfileError

    with pytest.raises(ProfileError, match="profile 'nobody': no file .*franka, joint_traj"):
        find_profile('nobody')
    file = tmp_path / 'params.yaml'
    for text, reason in (('a: [1', 'params.yaml'), ('just words', 'no node names')):
        file.write_text(text)
        assert reason in wrong_file(['--ros-args', '--params-file', str(file)])
    file.write_text('/**:\n  ros__parameters: {query_rate: 5.0}\n')
    assert wrong_file(['--params-file', str(file)]) == ''


def test_what_a_profile_says_of_images_and_description_reaches_the_policy(tmp_path):
    from specprune_ros.nodes.common.remapping import policy_parameters
    from specprune_ros.robot.profile import load

    tree = yaml.safe_load((ROOT / 'config' / 'robots' / 'franka.yaml').read_text())
    said = {
        'image_reliability': 'reliable',
        'robot_description_file': '/etc/robot.urdf',
        'robot_description_sha256': 64 * '0',
    }
    tree['observation'] |= said
    file = tmp_path / 'mine.yaml'
    file.write_text(yaml.safe_dump(tree))
    assert said.items() <= policy_parameters(load(file)).items()


def test_only_the_simulated_arm_takes_random_weights():
    from specprune_ros.nodes.common.remapping import policy_parameters, refuse_random_weights
    from specprune_ros.robot.profile import load

    for file in sorted((ROOT / 'config' / 'robots').glob('*.yaml')):
        given = policy_parameters(load(file, {'robot_sn': 'Rizon4-123456'}))
        refuse_random_weights({**given, 'model.path': '/models/mine'})
        refuse_random_weights({**given, 'model.server': 'ws://host:8000'})
        if file.stem == 'sim_arm':
            refuse_random_weights(given)
            continue
        with pytest.raises(ValueError, match=r'random weights are refused.*checkpoint:=FOLDER'):
            refuse_random_weights(given)
        words = 'allowed_and_its_actions_mean_nothing'
        refuse_random_weights({**given, 'model.random_weights': words})
