"""Folders of lerobot and openpi: what they say is followed, what they lack is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from golden import flow_packs
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors

from specprune_ros.models.checkpoint.action_meaning import describe
from specprune_ros.models.checkpoint.files import CheckpointError
from specprune_ros.models.checkpoint.pi0 import ROBOTS
from specprune_ros.models.checkpoint.tensor_names import pi0_model
from specprune_ros.models.conventions import OPENPI
from specprune_ros.models.families import paligemma
from specprune_ros.models.families.paligemma import FlowPrompts, read_tokenizer, state_bins
from specprune_ros.models.load import inspect_checkpoint, load_policy_model
from specprune_ros.models.presets import PI0_3B, PI05_3B
from specprune_ros.models.tokens import PromptError
from specprune_ros.policy import parity_flow

PACKS = flow_packs()
X = 'paligemma_with_expert.'


@pytest.fixture
def pack(tmp_path):
    def copy(name):
        shutil.copytree(PACKS / name, tmp_path / name)
        return tmp_path / name

    return copy


def change_json(path, **fields):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **fields}))


def change_step(folder, processor, name, **fields):
    path = folder / f'policy_{processor}processor.json'
    data = json.loads(path.read_text())
    for step in data['steps']:
        if step['registry_name'] == name:
            step['config'].update(fields)
    path.write_text(json.dumps(data))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def problems(folder, **overrides):
    return ' '.join(inspect_checkpoint(folder, overrides=overrides).problems)


# Full size.


@pytest.mark.parametrize(
    ('config', 'tensors', 'size'),
    [(PI0_3B, 777, 14_005_618_584), (PI05_3B, 812, 14_467_165_872)],
    ids=['pi0', 'pi05'],
)
def test_the_published_files_are_described_to_the_byte(config, tensors, size, tmp_path):
    # The word table and the output matrix are one tensor, stored as the latter.
    entries = pi0_model(config)
    words = f'{X}paligemma.model.language_model.embed_tokens.weight'
    head = f'{X}paligemma.lm_head.weight'
    shapes = {name: entry.shape for name, entry in entries.items() if name != words}
    assert len(shapes) == tensors
    header, at = {'__metadata__': {words: head}}, 0
    for name, shape in sorted(shapes.items()):
        end = at + 4 * int(np.prod(shape))
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [at, end]}
        at = end
    text = json.dumps(header, separators=(',', ':'))
    length = -(-len(text) // 8) * 8
    assert 8 + length + at == size


def test_a_full_size_folder_is_recognised_by_its_header_alone(tmp_path):
    path = PACKS / 'pi0_lerobot/checkpoint'
    shutil.copytree(path, tmp_path / 'c')
    entries = pi0_model(PI0_3B)
    words = f'{X}paligemma.model.language_model.embed_tokens.weight'
    header, at = {}, 0
    for name, entry in sorted(entries.items()):
        if name == words:
            continue
        end = at + 4 * int(np.prod(entry.shape))
        header[name] = {'dtype': 'F32', 'shape': list(entry.shape), 'data_offsets': [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (tmp_path / 'c/model.safetensors').open('wb') as file:  # a sparse file
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + at)
    change_json(tmp_path / 'c/config.json', image_resolution=[224, 224], chunk_size=50)
    report = inspect_checkpoint(tmp_path / 'c')
    assert report.tensors == 777
    assert report.parameters == 3_238_048_528
    assert report.config.decoder == PI0_3B.decoder
    assert report.config.towers == PI0_3B.towers
    assert report.config.flow.expert == PI0_3B.flow.expert
    (problem,) = report.problems  # the pack's tokenizer lies nowhere near
    assert 'tokenizer.json is absent, and so is tokenizer.model' in problem
    assert 'google/paligemma-3b-pt-224' in problem
    assert 'big_vision' in problem


# lerobot.


def test_inspect_tells_where_everything_comes_from(pack):
    report = inspect_checkpoint(pack('pi05_quantiles') / 'checkpoint')
    assert report.ok
    facts = {fact.name: fact.value for fact in report.facts}
    assert facts['architecture'] == 'pi05'
    assert facts['action scale'] == facts['proprio scale'] == 'QUANTILES'
    assert facts['cameras'] == ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
    assert facts['execute'] == 8
    assert ('front', 'base_0_rgb') in report.config.camera_aliases
    assert report.config.camera('observation.images.front') == 'base_0_rgb'
    assert report.config.camera('elbow') is None
    assert any('control_hz' in note for note in report.notes)
    assert any('joint positions' in note for note in report.notes)


def test_empty_cameras_of_the_config_are_no_cameras(pack):
    policy = inspect_checkpoint(pack('pi05_lerobot') / 'checkpoint').config
    assert policy.cameras == ('image', 'image2')
    assert policy.rows_run == 4


def test_the_scale_is_the_one_of_the_processors_not_of_the_family(pack):
    folder = pack('pi05_lerobot') / 'checkpoint'  # pi0.5 with mean and deviation
    mean = load_policy_model(folder, progress=False).statistics
    for processor, name in (('pre', 'normalizer_processor'), ('post', 'unnormalizer_processor')):
        norm_map = {'STATE': 'QUANTILES', 'ACTION': 'QUANTILES'}
        change_step(folder, processor, name, norm_map=norm_map)
    quantiles = load_policy_model(folder, progress=False).statistics
    stored = load_file(folder / 'policy_preprocessor_step_3_normalizer_processor.safetensors')
    assert quantiles.action_low == pytest.approx(stored['action.q01'].double().numpy())
    spread = stored['action.std'].double().numpy()
    assert (mean.action_high - mean.action_low) / 2 == pytest.approx(spread)
    # Nothing is clipped.
    far = np.full(8, 1e3)
    assert (mean.normalise_proprio(far) > 10).all()


def test_a_fine_tune_of_a_base_has_the_state_of_its_own_statistics(pack):
    """lerobot keeps the base's input_features, a state of 32 numbers, which no robot sends."""
    folder = pack('pi05_lerobot') / 'checkpoint'
    own = inspect_checkpoint(folder)
    features = json.loads((folder / 'config.json').read_text())['input_features']
    features['observation.state']['shape'] = [32]
    change_json(folder / 'config.json', input_features=features)
    report = inspect_checkpoint(folder)
    assert report.ok and report.config == own.config and report.config.proprio_dim == 8
    (fact,) = [fact for fact in report.facts if fact.name == 'proprio_dim']
    assert fact.source == "the normaliser's statistics"


def test_an_unknown_scale_or_step_is_refused(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    change_step(folder, 'post', 'unnormalizer_processor', norm_map={'ACTION': 'WHITEN'})
    assert "ACTION is normalised by 'WHITEN'" in problems(folder)
    path = folder / 'policy_preprocessor.json'
    data = json.loads(path.read_text())
    data['steps'].append({'registry_name': 'mirror_images', 'config': {}})
    path.write_text(json.dumps(data))
    assert "step 'mirror_images' is not known" in problems(folder)
    path.unlink()
    assert 'policy_preprocessor.json is absent' in problems(folder)


def test_statistics_by_data_set_need_a_key(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    for path in folder.glob('policy_*.safetensors'):
        stored = load_file(path)
        renamed = {
            f'{robot}.buffer.{name}': value + shift
            for robot, shift in (('so100', 0.0), ('so100-red', 1.0))
            for name, value in stored.items()
            if name.startswith(('action', 'observation.state'))
        }
        save_file(renamed, path)
    assert "give unnorm_key as one of ['so100', 'so100-red']" in problems(folder)
    plain = load_policy_model(folder, unnorm_key='so100', progress=False).statistics
    red = load_policy_model(folder, unnorm_key='so100-red', progress=False).statistics
    assert not np.allclose(plain.action_high, red.action_high)
    original = load_policy_model(PACKS / 'pi0_lerobot/checkpoint', progress=False).statistics
    assert np.array_equal(plain.action_low, original.action_low)


@pytest.mark.parametrize('kind', ['state', 'action'])
def test_missing_statistics_are_refused_not_passed_through(pack, kind):
    folder = pack('pi0_lerobot') / 'checkpoint'
    name = 'observation.state' if kind == 'state' else 'action'

    def drop(tensors):
        for key in [key for key in tensors if key.startswith(f'{name}.')]:
            del tensors[key]

    for path in folder.glob('policy_*.safetensors'):
        change_tensors(path, drop)
    assert 'unscaled' in problems(folder)


def test_a_mix_of_both_families_is_refused(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'

    def mix(tensors):
        for end in ('weight', 'bias'):
            tensors[f'model.time_mlp_in.{end}'] = torch.zeros(32)

    change_tensors(folder / 'model.safetensors', mix)
    assert 'neither pi0 nor pi0.5' in problems(folder)


def test_the_config_must_agree_with_the_tensors(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    change_json(folder / 'config.json', type='pi05')
    assert 'tensors are those of pi0' in problems(folder)


def test_missing_weights_are_named_not_replaced_by_random_ones(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    change_tensors(folder / 'model.safetensors', lambda t: t.pop('model.action_out_proj.bias'))
    assert '1 tensors are missing: model.action_out_proj.bias' in problems(folder)


def test_the_word_table_wins_over_the_output_matrix(pack):
    folder = pack('pi0_lerobot')

    def spoil(tensors):
        tensors[f'model.{X}paligemma.lm_head.weight'] += 1

    change_tensors(folder / 'checkpoint/model.safetensors', spoil)
    assert parity_flow.run(folder).passed


def test_the_prefix_model_may_be_there_or_not(pack):
    folder = pack('pi0_lerobot')
    tensors = load_file(folder / 'checkpoint/model.safetensors')
    bare = {name.removeprefix('model.'): value for name, value in tensors.items()}
    save_file(bare, folder / 'checkpoint/model.safetensors')
    assert parity_flow.run(folder).passed


def test_newer_names_of_the_tower_are_known(pack):
    folder = pack('pi0_lerobot')
    tensors = load_file(folder / 'checkpoint/model.safetensors')
    renamed = {
        n.replace('vision_tower.vision_model.', 'vision_tower.'): v for n, v in tensors.items()
    }
    save_file(renamed, folder / 'checkpoint/model.safetensors')
    assert parity_flow.run(folder).passed


@pytest.mark.parametrize(
    ('name', 'cure'),
    [
        ('normalize_inputs.buffer_observation_state.mean', 'migrate_policy_normalization.py'),
        (f'model.{X}paligemma.language_model.model.layers.0.mlp.up_proj.weight', 'migrate_policy'),
    ],
)
def test_files_of_old_lerobot_are_refused_with_the_converter_named(pack, name, cure):
    folder = pack('pi0_lerobot') / 'checkpoint'

    def add(tensors):
        tensors[name] = torch.zeros(1)

    change_tensors(folder / 'model.safetensors', add)
    assert cure in problems(folder)


def test_orbax_and_lora_folders_are_refused_with_what_to_do(tmp_path):
    (tmp_path / 'params').mkdir()
    assert 'examples/convert_jax_model_to_pytorch.py of openpi' in problems(tmp_path)
    (tmp_path / 'params').rmdir()
    (tmp_path / 'adapter_config.json').write_text('{}')
    assert 'merge it into its base model' in problems(tmp_path)


def test_rope_follows_the_source_and_can_be_given(pack):
    folder = pack('pi05_lerobot') / 'checkpoint'
    assert inspect_checkpoint(folder).config.decoder.rope == 'exact'
    change_json(folder / 'config.json', dtype='bfloat16')  # fine-tuned in it
    report = inspect_checkpoint(folder)
    assert report.config.decoder.rope == report.config.flow.expert.rope == 'bf16'
    assert inspect_checkpoint(folder, overrides={'rope': 'exact'}).config.decoder.rope == 'exact'
    assert inspect_checkpoint(PACKS / 'pi0_openpi/checkpoint').config.decoder.rope == 'exact'
    with pytest.raises(ValueError, match='rope: is .*it should be .exact. or .bf16'):
        load_policy_model(folder, overrides={'rope': 'rough'})


def test_the_era_of_lerobot_changes_padding_and_state_text(pack):
    folder = pack('pi05_lerobot') / 'checkpoint'
    new, old = (
        load_policy_model(folder, progress=False, overrides={'lerobot_era': era})
        for era in ('0.5', '0.4')
    )
    wide = np.full((60, 120, 3), 200, np.uint8)
    for loaded, outside in ((new, -1.0), (old, -3.0)):
        pixels = loaded.preprocessor.normalise(loaded.preprocessor.image(wide)[None])[0]
        assert pixels[:, 0].eq(outside).all()
        assert pixels[:, 28].max() <= 1
    state = np.zeros(8)
    short, long = (loaded.tokenizer.text('move', state)[0] for loaded in (new, old))
    assert short == 'Task: move, State: ' + ' '.join(['128'] * 8) + ';\nAction: '
    assert long == 'Task: move, State: ' + ' '.join(['128'] * 32) + ';\nAction: '
    kept = load_policy_model(folder, progress=False, overrides={'state_tokens': 'padded'})
    assert kept.tokenizer.text('move', state)[0] == long
    assert kept.config.resize == 'pad_bilinear'


def test_relative_actions_need_the_names_of_their_columns(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    change_step(folder, 'pre', 'relative_actions_processor', enabled=True)
    change_step(folder, 'post', 'absolute_actions_processor', enabled=True)
    assert 'no file names the action columns' in problems(folder)
    names = ['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper_pos']
    change_step(folder, 'pre', 'relative_actions_processor', action_names=names)
    assert inspect_checkpoint(folder).config.flow.relative == (0, 1, 2, 3, 4, 5)


def test_trained_real_time_chunking_without_its_field_is_refused(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    change_json(folder / 'config.json', rtc_config={'mode': 'trained'})
    assert 'rtc_training_max_delay is not set' in problems(folder)


# openpi.


def openpi_folder(folder, source, asset, steps=10, numbers=32):
    """A folder as the converter writes it, of the pack ``source``; statistics of so many
    numbers.
    """
    folder.mkdir()
    tensors = load_file(PACKS / source / 'checkpoint/model.safetensors')
    tensors = {name.removeprefix('model.'): value for name, value in tensors.items()}
    level = f'{X}paligemma.model.vision_tower.vision_model.embeddings.position_embedding.weight'
    tensors[level] = torch.zeros(256, tensors[level].shape[1])
    save_file(tensors, folder / 'model.safetensors')
    config = {
        'action_dim': 32, 'action_horizon': steps, 'paligemma_variant': 'gemma_2b',
        'action_expert_variant': 'gemma_300m', 'precision': 'bfloat16',
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config))
    stats = {'mean': 0.0, 'std': 1.0, 'q01': -1.0, 'q99': 1.0}
    stats = {name: [value] * numbers for name, value in stats.items()}
    assets = folder / 'assets' / asset
    assets.mkdir(parents=True)
    stats = {'norm_stats': {'state': stats, 'actions': stats}}
    (assets / 'norm_stats.json').write_text(json.dumps(stats))
    for name in ('tokenizer.json', 'sizes.json'):
        shutil.copy(PACKS / source / name, folder / name)
    return folder


def test_pi05_libero_of_openpi_ignores_the_state_and_uses_pi0s_prompt(tmp_path):
    folder = openpi_folder(tmp_path / 'c', 'pi05_lerobot', 'physical-intelligence/libero')
    loaded = load_policy_model(folder, progress=False)
    config = loaded.config
    assert (config.family, config.flow.state, config.proprio_dim) == ('pi05', 'none', 0)
    assert loaded.tokenizer.text('pick_up the bowl')[0] == 'pick up the bowl\n'
    assert (config.action_dim, config.chunk, config.flow.relative) == (7, 10, ())
    assert config.cameras == ('base_0_rgb', 'left_wrist_0_rgb')
    other = load_policy_model(folder, progress=False, overrides={'state': 'prompt'})
    assert ', State: 128' in other.tokenizer.text('move', np.zeros(8))[0]


def test_pi0_libero_adds_the_state_and_pi05_does_not(tmp_path):
    folder = openpi_folder(tmp_path / 'c', 'pi0_lerobot', 'physical-intelligence/libero', 50)
    config = inspect_checkpoint(folder).config
    assert config.flow.relative == (0, 1, 2, 3, 4, 5)
    assert (config.flow.state, config.proprio_dim, config.chunk) == ('token', 8, 50)
    assert config.action.gripper_sense == 'one_is_closed'
    assert config.action.gripper_range == (-1, 1)
    assert config.rows_run == 5


@pytest.mark.parametrize(
    ('source', 'platform', 'numbers'),
    [('pi0_lerobot', 'aloha', 14), ('pi05_lerobot', 'libero', 8)],
)
def test_what_describe_writes_keeps_the_platform_of_openpi(source, platform, numbers, tmp_path):
    """Without it offsets to the state went out as joint positions."""
    folder = openpi_folder(tmp_path / 'c', source, 'mylab/pick', 50, numbers)
    before = inspect_checkpoint(folder, overrides={'platform': platform, 'rope': 'bf16'})
    assert before.ok and before.config.decoder.rope == 'bf16'
    (folder / 'specprune.json').write_text(json.dumps(describe(before.to_dict())))
    after = inspect_checkpoint(folder)
    assert after.ok and after.config == before.config
    # Where the name of the asset tells the platform, it is in the file, too.
    named = openpi_folder(tmp_path / 'named', source, f'mylab/{platform}', 50, numbers)
    assert describe(inspect_checkpoint(named).to_dict())['platform'] == platform


def test_the_fastest_motion_is_none_of_offsets_to_the_state(tmp_path):
    asset = 'physical-intelligence/libero'
    offsets = openpi_folder(tmp_path / 'a', 'pi0_lerobot', asset, 50)
    steps = openpi_folder(tmp_path / 'b', 'pi05_lerobot', asset)
    meanings = [{row.name: row.value for row in inspect_checkpoint(f).meaning}
                for f in (offsets, steps)]  # fmt: skip
    assert 'fastest in the training data' not in meanings[0]
    assert meanings[1]['fastest in the training data'].startswith('0.05 m and 0.5 rad a step')
    # pi0's are a mean and a deviation of it.
    given = {'flow': {'relative': []}}
    loaded = load_policy_model(offsets, progress=False, overrides=given)
    assert loaded.statistics.largest_action[0] == pytest.approx(2.5, abs=1e-4)


def test_the_node_admits_every_platform_that_openpi_has():
    assert set(ROBOTS) == set(OPENPI)


def test_aloha_in_simulation_is_its_own_platform_and_flips_joints_too(tmp_path):
    """Its asset id holds the other's name: relative actions and three cameras were expected."""
    asset = 'lerobot/aloha_sim_transfer_cube_human'
    report = inspect_checkpoint(openpi_folder(tmp_path / 'c', 'pi0_lerobot', asset, 50))
    assert next(f.value for f in report.facts if f.name == 'platform') == 'aloha_sim'
    config = report.config
    assert (config.flow.relative, config.flow.robot) == ((), 'aloha')
    assert len(config.cameras) == 1


def test_the_platform_is_that_of_the_robot_that_was_chosen(tmp_path):
    folder = openpi_folder(tmp_path / 'c', 'pi0_lerobot', 'droid', 50)
    stats = (folder / 'assets/droid/norm_stats.json').read_text()
    (folder / 'assets/trossen').mkdir()
    (folder / 'assets/trossen/norm_stats.json').write_text(stats)
    config = inspect_checkpoint(folder, 'trossen').config
    assert (config.action_dim, config.flow.robot, config.action.kind) == (
        14, 'aloha', 'joint_position',
    )  # fmt: skip
    assert inspect_checkpoint(folder, 'droid').config.action_dim == 8


def test_normalised_images_of_lerobot_are_refused(pack):
    folder = pack('pi0_lerobot') / 'checkpoint'
    path = folder / 'policy_preprocessor.json'
    tree = json.loads(path.read_text())
    step = next(s for s in tree['steps'] if s['registry_name'] == 'normalizer_processor')
    step['config']['norm_map']['VISUAL'] = 'MEAN_STD'
    path.write_text(json.dumps(tree))
    assert "normalises VISUAL by 'MEAN_STD'" in problems(folder)


def test_droid_has_eight_columns_of_joint_velocity(tmp_path):
    folder = openpi_folder(tmp_path / 'c', 'pi05_lerobot', 'droid', 15)
    config = inspect_checkpoint(folder).config
    assert (config.action_dim, config.proprio_dim, config.control_hz) == (8, 8, 15.0)
    assert config.action.kind == 'joint_delta'
    assert config.action.scale[0] == pytest.approx(1 / 15)
    assert config.action.gripper_dim == 7


@pytest.mark.parametrize('steps', [16, 50])
def test_droid_is_velocities_or_positions_and_that_must_be_said(steps, tmp_path):
    """pi05_full_droid_finetune has the asset id of the velocities."""
    folder = openpi_folder(tmp_path / 'c', 'pi05_lerobot', 'droid', steps)
    report = inspect_checkpoint(folder)
    (problem,) = report.problems
    assert 'droid (velocities) or droid_joint_position (positions, trained as offsets)' in problem
    assert 'platform' not in describe(report.to_dict())
    velocity = inspect_checkpoint(folder, overrides={'platform': 'droid'})
    assert velocity.ok and velocity.config.action.kind == 'joint_delta'
    position = inspect_checkpoint(folder, overrides={'platform': 'droid_joint_position'})
    assert position.ok and position.config.action.kind == 'joint_position'
    assert position.config.flow.relative == tuple(range(7))
    assert position.config.action.scale == (1.0,) * 8


def test_actions_of_an_unknown_robot_of_openpi_are_raw_until_all_is_stated(tmp_path):
    """Offsets to the state went out as joint positions at 20 Hz."""
    folder = openpi_folder(tmp_path / 'c', 'pi05_lerobot', 'mylab/libero_ur5', 50, 7)
    report = inspect_checkpoint(folder)
    assert report.ok and report.config.action.dims[0] == 'action_1'
    assert 'flow.relative' in ' '.join(report.notes)
    written = describe(report.to_dict())
    assert written['flow'] == {'relative': None} and written['control_hz'] is None
    stated = {
        'dims': [*(f'joint_{i}' for i in range(1, 7)), 'gripper'], 'kind': 'joint_position',
        'scale': [1.0] * 7, 'rotation': 'none', 'reference': 'none', 'gripper_dim': 6,
        'gripper_sense': 'one_is_closed', 'gripper_range': [0, 1],
    }  # fmt: skip
    given = {'control_hz': 20.0, 'action': stated}
    assert 'state flow.relative in' in problems(folder, **given)
    report = inspect_checkpoint(folder, overrides=given | {'flow': {'relative': list(range(6))}})
    assert report.ok and report.config.flow.relative == tuple(range(6))
    assert {row.source for row in report.meaning if row.name == 'rate'} == {'given'}


def test_openpi_without_statistics_says_what_to_copy(pack):
    folder = pack('pi0_openpi') / 'checkpoint'
    shutil.rmtree(folder / 'assets')
    assert 'copy assets/ of the JAX checkpoint' in problems(folder)


def test_what_openpis_training_in_pytorch_saves_needs_a_config_that_is_named(pack):
    folder = pack('pi0_openpi') / 'checkpoint'
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').unlink()
    (said,) = inspect_checkpoint(folder).problems
    for name in config.keys() - {'precision'}:
        assert f'"{name}": ' in said
    written, rope = re.findall(r'{.*?}', said)
    (folder / 'config.json').write_text(written)
    (folder / 'specprune.json').write_text(rope)
    report = inspect_checkpoint(folder)
    assert report.ok and report.config.decoder.rope == 'bf16'


def test_openpi_with_two_robots_needs_a_key(pack):
    folder = pack('pi0_openpi') / 'checkpoint'
    shutil.copytree(folder / 'assets/parity', folder / 'assets/other')
    assert "['other/tiny_arm', 'parity/tiny_arm']" in problems(folder)
    assert inspect_checkpoint(folder, 'other/tiny_arm').ok


# Prompts.


def test_bins_are_not_clipped():
    edges = [-1.2, -1.0, -0.9999, 0.0, 0.9999, 1.0, 7.0]
    assert state_bins(np.array(edges)).tolist() == [-1, 0, 0, 128, 255, 255, 255]


def test_an_overlong_prompt_is_refused_not_cut():
    words = Tokenizer.from_file(str(PACKS / 'pi05_lerobot/tokenizer.json'))
    prompts = FlowPrompts(words, 'pi05', 40, 383, state_dim=8)
    with pytest.raises(PromptError, match='the model takes 40.*shorten the instruction'):
        prompts.encode('put the black bowl on the plate and then open the drawer', np.zeros(8))


@pytest.mark.parametrize(
    ('template', 'text'),
    [
        ('pi0', 'put the bowl down\n'),
        ('pi0_lerobot', ' put the_bowl\ndown \n'),
        ('pi05', 'Task: put the bowl down, State: 255 -1;\nAction: '),
    ],
)
def test_each_source_has_its_own_text(template, text):
    words = Tokenizer.from_file(str(PACKS / 'pi05_lerobot/tokenizer.json'))
    prompts = FlowPrompts(words, template, 200, 383, state_dim=2)
    found, start, stop = prompts.text(' put the_bowl\ndown ', np.array([2.0, -2.0]))
    assert found == text
    assert found[start:stop].strip().endswith('down')
    prompt = prompts.encode(' put the_bowl\ndown ', np.array([2.0, -2.0]))
    inside = words.decode(list(prompt.ids[slice(*prompt.instruction)]))
    assert 'bowl' in inside
    assert 'State' not in inside


def test_a_sentencepiece_model_gives_the_ids_of_its_own_library(tmp_path):
    import sentencepiece

    lines = [
        'pick up the black bowl and place it on the plate',
        'Task: put both moka pots on the stove, State: 3 153 -1 128 255;',
        'open the top drawer and put the cream cheese in the basket',
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / 'tokenizer'), vocab_size=420,
        model_type='bpe', pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True,
        add_dummy_prefix=False, normalization_rule_name='identity', split_digits=True,
        remove_extra_whitespaces=False, user_defined_symbols=['\n'], minloglevel=2,
    )  # fmt: skip
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
    ours = read_tokenizer(tmp_path / 'tokenizer.model', 1000)
    for text in (*lines[:3], ' two  spaces\n', 'State: 9 -1;\nAction: ', 'wörter 東', 'plate\n'):
        assert ours.encode(text).ids == [2, *library.encode(text)], text


@pytest.fixture
def paligemmas(monkeypatch):
    """The tokenizer of the packs, as if it were PaliGemma's: its size and known ids."""
    words = Tokenizer.from_file(str(PACKS / 'pi0_lerobot/tokenizer.json'))
    known = {text: ' '.join(map(str, words.encode(text).ids)) for text in paligemma.VECTORS}
    monkeypatch.setattr(paligemma, 'VOCABULARY', words.get_vocab_size())
    monkeypatch.setattr(paligemma, 'VECTORS', known)
    return words


def test_the_published_tokenizer_holds_image_behind_the_vocabulary(paligemmas, tmp_path):
    path, text = tmp_path / 'tokenizer.json', 'pick up the bowl\n'
    vocab, ids = paligemmas.get_vocab_size(), paligemmas.encode(text).ids
    paligemmas.add_special_tokens([AddedToken('<image>', normalized=False)])
    paligemmas.save(str(path))
    words = read_tokenizer(path, vocab)
    assert words.encode(text).ids == ids
    with pytest.raises(PromptError, match=f'token id {vocab} lies outside'):
        FlowPrompts(words, 'pi0', 48, vocab).encode('pick up <image>')


@pytest.mark.parametrize('template', ['$A', '<bos> $A <eos>'])
def test_bos_is_put_first_also_where_the_file_leaves_it_out(paligemmas, tmp_path, template):
    path, text = tmp_path / 'tokenizer.json', 'pick up the bowl\n'
    vocab, ids = paligemmas.get_vocab_size(), paligemmas.encode(text).ids
    paligemmas.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[('<bos>', 2), ('<eos>', 1)]
    )
    paligemmas.save(str(path))
    assert read_tokenizer(path, vocab).encode(text).ids == ids


def test_a_tokenizer_that_is_not_paligemmas_is_refused_by_full_size_models(monkeypatch):
    with pytest.raises(CheckpointError, match="vocabulary is 257152: it is not PaliGemma's"):
        read_tokenizer(PACKS / 'pi0_lerobot/tokenizer.json', 257152)
    monkeypatch.setattr(paligemma, 'VOCABULARY', 383)  # as if that were its size
    with pytest.raises(CheckpointError, match="'pick up the bowl.n' gives ids"):
        read_tokenizer(PACKS / 'pi0_lerobot/tokenizer.json', 383)
