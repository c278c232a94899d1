"""``specprune inspect`` and ``specprune verify`` as a person runs them."""

import argparse
import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from specprune_ros.cli import describe, inspect, verify
from specprune_ros.models.build import build
from specprune_ros.models.checkpoint import limited_inspection
from specprune_ros.models.checkpoint.action_meaning import describe as describe_tree
from specprune_ros.models.load import inspect_checkpoint, save_policy_model
from specprune_ros.models.presets import TINY
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import word_tokenizer

DATA = Path(__file__).parents[3] / 'shared' / 'data'
OFT, LIBERO = DATA / 'openvla_oft_libero_10', DATA / 'libero_spatial_observation.npz'
real = pytest.mark.skipif(not OFT.is_dir(), reason='the OFT small files are not beside this tree')


def specprune(*words):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for module in (inspect, describe, verify):
        module.add_parser(commands).set_defaults(run=module.run)
    args = parser.parse_args(list(map(str, words)))
    return args.run(args)


@real
def test_inspect_names_each_absent_file_of_the_real_checkpoint(capsys, tmp_path):
    assert specprune('inspect', OFT, '--json', tmp_path / 'out' / 'report.json') == 1
    said = capsys.readouterr().out
    for name, size in (
        ('model-00001-of-00004.safetensors', '4.93 GB'),
        ('model-00002-of-00004.safetensors', '4.95 GB'),
        ('model-00003-of-00004.safetensors', '4.95 GB'),
        ('model-00004-of-00004.safetensors', '262.7 MB'),
        ('action_head--<step>_checkpoint.pt', '302.2 MB'),
        ('proprio_projector--<step>_checkpoint.pt', '67.3 MB'),
    ):
        assert f'{name} is absent, expected {size}' in said
    assert 'would not load' in said
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['memory']['bfloat16'] == 2 * 7_534_758_567
    assert len(report['absent']) == 6


def test_inspect_of_a_whole_folder_succeeds(capsys, tmp_path):
    folder = synthetic.write_oft(tmp_path / 'x').folder
    assert specprune('inspect', folder) == 0
    said = capsys.readouterr().out
    assert 'would load' in said and 'pooling head: not used' in said
    assert specprune('inspect', folder, '--unnorm-key', 'mars') == 1
    assert "no key 'mars'" in capsys.readouterr().out
    assert specprune('inspect', tmp_path / 'nowhere') == 1


def test_what_an_action_means_is_said_and_never_guessed_in_silence(capsys, tmp_path, monkeypatch):
    """A fine-tune of a lab's own arm has LIBERO's dimensions, and was taken for LIBERO."""
    # Ten times a child process that imports PyTorch is a minute; one test above has it.
    monkeypatch.setattr(
        limited_inspection, 'inspect_limited', lambda *what: inspect_checkpoint(*what).to_dict()
    )
    folder = synthetic.write_oft(tmp_path / 'x', key='libero_spatial_no_noops').folder
    assert specprune('inspect', folder) == 0
    said = ' '.join(capsys.readouterr().out.split())
    for words in (
        'metres per unit │ 0.05', 'radians per unit │ 0.5', 'rotation │ vector',
        'above 0.5 is open', '20 Hz, ', 'axes of the robot', 'run_libero_eval.py',
    ):  # fmt: skip
        assert words in said, words
    mine = synthetic.write_oft(tmp_path / 'mine', key='franka_pick').folder
    assert specprune('inspect', mine) == 1
    said = capsys.readouterr().out
    assert "statistics of 'franka_pick' are of no robot that is known" in said
    assert 'model.platform:=libero' in said and 'action.scale' in said
    # One way: the lab says that its data are like LIBERO's.
    assert specprune('inspect', mine, '--platform', 'libero') == 0
    capsys.readouterr()
    # The other: it fills in what the generator leaves open.
    assert specprune('describe', mine) == 1
    written = json.loads(capsys.readouterr().out)
    action = written['action']
    assert written['control_hz'] is None and 'platform' not in written
    assert [k for k, v in action.items() if v is None] == [
        'rotation', 'reference', 'gripper_sense', 'gripper_range', 'scale',
    ]  # fmt: skip
    file = mine / 'specprune.json'
    file.write_text(json.dumps(written))
    assert specprune('inspect', mine) == 1  # null is not a statement
    capsys.readouterr()
    written['control_hz'] = 15.0
    action |= {
        'rotation': 'euler_xyz', 'reference': 'previous_step', 'gripper_sense': 'one_is_closed',
        'gripper_range': [0.0, 1.0], 'scale': [1.0] * 7,
    }  # fmt: skip
    file.write_text(json.dumps(written))
    assert specprune('inspect', mine, '--json', tmp_path / 'report.json') == 0
    capsys.readouterr()
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['config']['action'] == action and report['config']['control_hz'] == 15.0
    sources = {row['name']: row['source'] for row in report['meaning']}
    assert sources['metres per unit'] == sources['gripper'] == 'specprune.json'
    assert specprune('describe', mine) == 0
    assert json.loads(capsys.readouterr().out) == written
    # As the shell leaves it: empty before the command runs.
    file.write_text('')
    assert specprune('describe', mine, '--platform', 'libero') == 0
    again = json.loads(capsys.readouterr().out)
    assert again['platform'] == 'libero' and again['action']['scale'][:4] == [0.05] * 3 + [0.5]


def test_what_describe_writes_changes_nothing(tmp_path):
    """It left out what only specprune.json says: a chunk of 16 ran as 8."""
    folder = synthetic.write_oft(tmp_path / 'x').folder
    file = folder / 'specprune.json'
    stated = {'platform': 'libero', 'chunk': 16, 'norm': 'min_max', 'decoder': {'rope': 'bf16'}}
    file.write_text(json.dumps(stated))
    before = inspect_checkpoint(folder)
    assert before.ok and (before.config.chunk, before.config.norm) == (16, 'min_max')
    file.write_text(json.dumps(describe_tree(before.to_dict())))
    after = inspect_checkpoint(folder)
    assert after.ok and after.config == before.config


@pytest.mark.parametrize('keys', [('pick', 'place'), ('pick', 'libero_spatial')])
def test_describe_states_no_guess_while_the_key_is_open(keys, capsys, tmp_path, monkeypatch):
    """Copied into the folder, the units of LIBERO counted as stated."""
    monkeypatch.setattr(
        limited_inspection, 'inspect_limited', lambda *what: inspect_checkpoint(*what).to_dict()
    )
    folder = synthetic.write_oft(tmp_path / 'x').folder
    path = folder / 'dataset_statistics.json'
    (entry,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps(dict.fromkeys(keys, entry)))
    assert specprune('describe', folder) == 1
    out = capsys.readouterr()
    written = json.loads(out.out)
    assert 'give unnorm_key as one of' in out.err
    assert written['control_hz'] is written['action']['scale'] is None
    (folder / 'specprune.json').write_text(out.out)
    assert 'are of no robot' in ' '.join(inspect_checkpoint(folder, 'pick').problems)


def test_describe_says_what_keeps_a_checkpoint_from_loading(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        limited_inspection, 'inspect_limited', lambda *what: inspect_checkpoint(*what).to_dict()
    )
    folder = synthetic.write_oft(tmp_path / 'x').folder
    (folder / 'tokenizer.json').unlink()
    assert specprune('describe', folder) == 1
    assert 'tokenizer.json is absent' in capsys.readouterr().err


def test_the_documents_list_every_field_of_specprune_json():
    from specprune_ros.models.checkpoint.pi0 import HEADS, OPTIONS
    from specprune_ros.models.config import ActionConfig, PolicyConfig

    page = (Path(__file__).parents[2] / 'docs' / 'reference' / 'specprune_json.md').read_text()
    fields = {f'action.{field.name}' for field in dataclasses.fields(ActionConfig)}
    fields |= {field.name for field in dataclasses.fields(PolicyConfig)} | {'platform'}
    fields.remove('action')  # by its own fields
    missing = {name for name in fields | {*OPTIONS, *HEADS} if f'`{name}`' not in page}
    assert not missing


@pytest.fixture
def small(tmp_path):
    """A policy of our own format with OFT's 512 vision tokens."""
    scales = Statistics(-np.ones(7), np.ones(7), np.ones(7, bool), -np.ones(8), np.ones(8))
    config = replace(TINY, norm='min_max')
    return save_policy_model(tmp_path / 'small', build(config), word_tokenizer([]), scales)


@real
def test_verify_runs_the_libero_observation(small, capsys, tmp_path):
    threads = torch.get_num_threads()
    out = tmp_path / 'numbers.json'
    assert (
        specprune('verify', small, '--observation', LIBERO, '--device', 'cpu', '--json', out) == 0
    )
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert 'equal, as it must be' in said
    assert 'pick up the black bowl between the plate and the ramekin' in said
    numbers = json.loads(out.read_text())
    assert np.array(numbers['actions']).shape == (8, 7)
    assert numbers['keep_all_difference'] == 0
    assert numbers['tokens_mean'] < numbers['tokens_in'] == 512
    assert numbers['flops_ratio'] < 1
    assert max(numbers['deviation']) > 0


@pytest.mark.parametrize('write', [synthetic.write_db_oft, synthetic.write_cogact])
def test_verify_runs_every_family(write, tmp_path, capsys):
    threads = torch.get_num_threads()
    assert specprune('verify', write(tmp_path / 'x').folder, '--device', 'cpu') == 0
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert 'equal, as it must be' in said
    packs = {'cogact': ('cogact',), 'db_oft': ('db_oft_dit', 'db_oft_linear')}
    for name in packs[write.__name__.removeprefix('write_')]:
        (line,) = (text for text in said.splitlines() if text.startswith(f'golden pack {name} '))
        assert line.endswith(': passed')


def test_verify_says_where_golden_packs_would_be(small, capsys, tmp_path):
    threads = torch.get_num_threads()
    assert specprune('verify', small, '--packs', tmp_path, '--device', 'cpu') == 0
    torch.set_num_threads(threads)
    assert f'golden packs: none of openvla-oft in {tmp_path}' in capsys.readouterr().out


def test_verify_says_what_is_wrong(small, capsys, tmp_path):
    threads = torch.get_num_threads()
    assert specprune('verify', tmp_path / 'nowhere', '--device', 'cpu') == 2
    assert 'not a folder' in capsys.readouterr().out
    np.savez(tmp_path / 'one.npz', full_image=np.zeros((224, 224, 3), np.uint8))
    for name, message in (('one.npz', 'holds 1 images'), ('none.npz', 'cannot be read')):
        status = specprune('verify', small, '--observation', tmp_path / name, '--device', 'cpu')
        assert status == 2 and message in capsys.readouterr().out
    torch.set_num_threads(threads)
