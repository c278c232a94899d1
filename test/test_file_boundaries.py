"""One boundary for every kind of file: whatever is in it, one line that names it comes."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specprune_ros.bench.explain import RecordError, read_record
from specprune_ros.bounded_files import FileError, one_line, parse_json, parse_yaml, read_npz
from specprune_ros.models.checkpoint.files import CheckpointError, load_pt, safetensors_header
from specprune_ros.models.checkpoint.tokenizer_file import check_tokenizer
from specprune_ros.models.config import ConfigError, PolicyConfig
from specprune_ros.models.load import inspect_checkpoint
from specprune_ros.models.statistics import Statistics, StatisticsError
from specprune_ros.robot.profile import ProfileError
from specprune_ros.robot.profile import load as load_profile
from specprune_ros.sim.evaluation.trials import TrialFile

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / 'specprune_ros' / 'sim' / 'weights'
DEEP = 100_000


def safetensors(entries, data=b''):
    header = json.dumps(entries).encode()
    return struct.pack('<Q', len(header)) + header + data


def entry(begin, end, shape=(2,), dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


def deflated():
    """A .pt file that grows a thousandfold."""
    out = io.BytesIO()
    torch.save({'x': torch.zeros(1 << 20)}, out)
    packed = io.BytesIO()
    with zipfile.ZipFile(out) as plain, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as to:
        for info in plain.infolist():
            to.writestr(info.filename, plain.read(info))
    return packed.getvalue()


def npz_bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f'{i}.npy', bytes(4 << 20))
    return out.getvalue()


TRIAL = {
    'key': 'k',
    'family': 'f',
    'seed': 1,
    'outcome': 'success',
    'steps': 1,
    'queries': 1,
    'tokens': 1.0,
    'flops': 1.0,
    'recall': 1.0,
    'deviation': 1.0,
    'milliseconds': 1.0,
}
READERS = {
    'profile.yaml': (load_profile, ProfileError),
    'dataset_statistics.json': (Statistics.from_json, StatisticsError),
    'model.safetensors': (safetensors_header, CheckpointError),
    'weights.pt': (load_pt, CheckpointError),
    'tokenizer.json': (check_tokenizer, CheckpointError),
    'record.npz': (read_record, RecordError),
    'trials.jsonl': (TrialFile, ValueError),
}
ANYTHING = (b'', b'\0', b'\xff' * 100, b'[' * DEEP, b'{"a":' * DEEP, b'PK\x03\x04' + b'0' * 50)
BAD = {
    'profile.yaml': (
        b'a: &x [1]\nb: *x',
        b'n: ' + b'9' * 6000,
        b'joints: 2020-01-01',
        b'- ' * 3000,
        b'? [a]\n: 1',
        b'robot: !!timestamp 2020-13-45',
        b'robot: 2020-01-01\nbase_frame: 0x' + b'f' * 5000,
    ),
    'dataset_statistics.json': (
        b'{"r": {"action": {"q01": [-1e308], "q99": [1e308]}}}',
        b'{"r": {"action": {"q01": 1}}}',
        b'{"r": {"action": []}}',
        b'{"r": {"action": {"q01": [NaN], "q99": [1]}}}',
        b'[1]',
        b'{"r": {"action": {"q01": [1], "q99": [2], "mask": "x"}}}',
        b'{"r": {"action": {"q01": [' + b'9' * 6000 + b'], "q99": [1]}}}',
    ),
    'model.safetensors': (
        safetensors({'a': entry(0, 8), 'b': entry(4, 12)}, bytes(12)),
        safetensors({'a': entry(0, 8), 'b': entry(12, 20)}, bytes(20)),
        safetensors({'a': entry(0, 8, (3,))}, bytes(8)),
        safetensors({'a': entry(0, -8)}),
        safetensors({'a': entry(0, 8, 5)}, bytes(8)),
        safetensors({'a': [1]}),
        safetensors([1]),
        safetensors({'a': entry(0, 8, dtype=[])}, bytes(8)),
        struct.pack('<Q', 90 << 20) + b' ' * 99,
        safetensors({'a': entry(0, 8, (1e300,))}, bytes(8)),
        struct.pack('<Q', DEEP) + b'[' * DEEP,
    ),
    'weights.pt': (deflated(),),
    'tokenizer.json': (
        json.dumps({'model': {}, 'padding': {'strategy': {'Fixed': 10**9}}}).encode(),
        json.dumps(
            {
                'model': {},
                'normalizer': {
                    'type': 'Sequence',
                    'normalizers': [
                        {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aaaaaaaa'}
                    ]
                    * 20,
                },
            }
        ).encode(),
        json.dumps(
            {'model': {}, 'normalizer': {'type': 'Prepend', 'prepend': 'x' * 10**6}}
        ).encode(),
        json.dumps({'model': {}, 'normalizer': {'type': 'Evil'}}).encode(),
        b'{"model": 1}',
        json.dumps(
            {'model': {}, 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '(' * 5000}}}
        ).encode(),
    ),
    'record.npz': (npz_bomb(),),
    'trials.jsonl': tuple(
        json.dumps({**TRIAL, **harm}).encode()
        for harm in ({'seed': [1]}, {'outcome': {}}, {'steps': 'x'}, {'tokens': None}, {'more': 1})
    ),
}


def refused(name, content, folder):
    """Read ``content`` as the kind of file that ``name`` is; returns what was said."""
    path = folder / name
    path.write_bytes(content)
    read, error = READERS[name]
    try:
        read(path)
    except error as found:
        text = str(found)
        assert name in text and '\n' not in text.strip(), text
        return text
    return ''


@pytest.mark.parametrize(
    ('name', 'index'), [(n, i) for n in READERS for i in range(len(ANYTHING) + len(BAD[n]))]
)
def test_a_bad_file_is_refused_in_one_sentence_that_names_it(name, index, tmp_path):
    content = (*ANYTHING, *BAD[name])[index]
    assert refused(name, content, tmp_path) or (name, content) == ('trials.jsonl', b'')


@pytest.mark.parametrize('name', READERS)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(name, tmp_path):
    read, error = READERS[name]
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match='no regular file'):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(error, match='a folder'):
        read(tmp_path / name)


SIZES = {
    'depth': 10**9,
    'width': 10**9,
    'vocab': 10**12,
    'mlp': 10**9,
    'heads': -1,
    'rope_theta': 1e300,
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes_of_no_model_are_refused_before_anything_is_built(name, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / 'x')
    config = json.loads((tmp_path / 'x' / 'config.json').read_text())
    config['policy']['decoder'][name] = SIZES[name]
    (tmp_path / 'x' / 'config.json').write_text(json.dumps(config))
    report = inspect_checkpoint(tmp_path / 'x')
    assert not report.ok and name in report.problems[0], report.problems


@pytest.mark.parametrize(
    'harm', [{'control_hz': 1e999}, {'control_hz': float('nan')}, {'chunk': 10**7}]
)
def test_rates_and_lengths_of_no_robot_are_refused(harm):
    config = json.loads((SHIPPED / 'config.json').read_text())['policy']
    with pytest.raises(ConfigError, match=next(iter(harm))):
        PolicyConfig.from_dict({**config, **harm})


@pytest.mark.parametrize('scale', [float('nan'), 1e300, float('inf')])
def test_an_action_scale_that_is_no_number_is_refused(scale):
    config = json.loads((SHIPPED / 'config.json').read_text())['policy']
    config['action'] = {**config['action'], 'scale': [scale] * config['action_dim']}
    with pytest.raises(ConfigError, match='scale'):
        PolicyConfig.from_dict(config)


def test_foreign_text_stays_on_one_line():
    assert one_line('a\n\x1b[31mb\u202e') == 'a\\n\\x1b[31mb\\u202e'
    assert one_line('x' * 1000).endswith('(1000 characters)') and len(one_line('x' * 1000)) < 330


# Five minutes each: make test ARGS="-m slow test/test_file_boundaries.py"
slow = settings(
    max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.just(10**30), st.just('9' * 5000),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


def mutated(tree, data):
    """A tree with one place changed to something else."""
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 6)):
        key = data.draw(st.sampled_from(sorted(tree, key=str)))
        return {**tree, key: mutated(tree[key], data)}
    if isinstance(tree, list) and tree and data.draw(st.integers(0, 4)):
        index = data.draw(st.integers(0, min(len(tree), 8) - 1))
        return [*tree[:index], mutated(tree[index], data), *tree[index + 1 :]]
    return data.draw(trees)


def harmed(raw, data):
    """Bytes with a few places changed."""
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.timeout(600)
@slow
@given(st.data())
def test_fuzzed_profiles(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('f')
    text = (ROOT / 'config' / 'robots' / 'flexiv_rizon4.yaml').read_text()
    if data.draw(st.booleans()):
        refused('profile.yaml', harmed(text.encode(), data), folder)
    else:
        tree = parse_yaml(text, 'x')
        content = json.dumps(mutated(tree, data)).encode(errors='replace')
        refused('profile.yaml', content, folder)


def valid(name):
    """A whole file of a kind, to be harmed."""
    if name == 'trials.jsonl':
        return json.dumps(TRIAL).encode()
    out = io.BytesIO()
    if name == 'weights.pt':
        torch.save({'x': torch.zeros(3), 'y': [torch.ones(2)]}, out)
        return out.getvalue()
    if name == 'record.npz':
        np.savez(out, image=np.zeros((16, 16, 3), np.uint8), instruction='x', state=np.zeros(8))
        return out.getvalue()
    raw = (SHIPPED / name).read_bytes()
    if name == 'model.safetensors':
        return safetensors({'a': entry(0, 8), 'b': entry(8, 16)}, bytes(16))
    return raw


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', [n for n in READERS if n != 'profile.yaml'])
def test_fuzzed_files(name, tmp_path_factory):
    raw = valid(name)

    @slow
    @given(st.data())
    def fuzz(data):
        folder = tmp_path_factory.mktemp('f')
        if name.endswith('.json') and data.draw(st.booleans()):
            refused(name, json.dumps(mutated(json.loads(raw), data)).encode(), folder)
        else:
            refused(name, harmed(raw, data), folder)

    fuzz()


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(parent=slow, max_examples=300)
@given(st.data())
def test_fuzzed_checkpoint_folders_are_reported_and_never_raise(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('f') / 'x'
    shutil.copytree(SHIPPED, folder)
    name = data.draw(st.sampled_from(['config.json', 'tokenizer.json', 'dataset_statistics.json']))
    tree = mutated(json.loads((folder / name).read_text()), data)
    (folder / name).write_text(json.dumps(tree))
    report = inspect_checkpoint(folder)
    assert report.ok or all(report.problems)
    shutil.rmtree(folder)


@pytest.mark.slow
@slow
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_fuzzed_documents(raw):
    for parse in (parse_json, parse_yaml):
        try:
            parse(raw.decode(errors='replace'), 'x.y')
        except FileError as error:
            assert str(error).startswith('x.y')


def test_an_npz_is_measured_before_it_is_unpacked(tmp_path):
    path = tmp_path / 'x.npz'
    path.write_bytes(npz_bomb())
    assert path.stat().st_size < 1 << 20
    with pytest.raises(FileError, match='unpacks to'):
        read_npz(path, 4 << 20)
