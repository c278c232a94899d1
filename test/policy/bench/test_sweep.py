"""Where fewer tokens stop paying: the rule, the measurement, what is remembered."""

import json

import pytest
import torch

from specprune_ros.models.load import random_policy_model
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.bench import sweep as sweeps
from specprune_ros.policy.bench.sweep import Keep, Sweep, sweep


def made(*ms):
    tokens = tuple(64 * (i + 1) for i in range(len(ms)))
    return Sweep(tokens, tuple(93 + t for t in tokens), ms, '2026-11-21')


@pytest.mark.parametrize(
    'ms, floor, said',
    [
        ((1.0, 2.0, 3.0, 4.0), 64, 'paid down to the least tried: 157 rows'),
        ((3.9, 4.0, 4.0, 8.0), 192, 'below 285 rows (192 vision tokens) fewer buy nothing'),
        ((4.1, 4.0, 6.0, 8.0), 128, 'below 221 rows'),  # slower with fewer: noise or a bad tile
        ((4.0, 4.0, 4.0, 4.0), 256, 'below 349 rows'),
    ],
)
def test_fewer_tokens_stop_paying_where_time_no_longer_falls(ms, floor, said):
    assert made(*ms).floor_tokens == floor
    assert said in made(*ms).told()


def test_the_decoder_is_timed_with_the_tokens_named():
    torch.set_num_threads(1)
    loaded = random_policy_model('tiny')
    found = sweep(loaded, BENCH_INSTRUCTION, 200, range(2))
    assert found.tokens == (200, 400, 512)
    assert found.rows == (293, 493, 605)
    assert 0 < found.ms[0] < found.ms[2]
    layout = loaded.model.layout(loaded.tokenizer.encode(BENCH_INSTRUCTION))
    hidden = torch.randn(1, layout.length, 128)
    kept = loaded.model.decoder(hidden, layout, Keep(layout, 200, hidden.device))
    assert len(set(kept.vision_ids.tolist())) == 200 and kept.layer_tokens == (200,) * 8
    for step in (0, 513):
        with pytest.raises(ValueError, match='1..512'):
            sweep(loaded, BENCH_INSTRUCTION, step, range(1))


def test_sweeps_are_kept_per_device_and_model(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    a, b = (
        sweeps.key('cpu (x)', 'tiny', 'float32'),
        sweeps.key('cuda:0 (H200)', 'tiny', 'bfloat16'),
    )
    assert sweeps.known(a) is None
    path = sweeps.keep(a, made(1.0, 2.0))
    sweeps.keep(b, made(4.0, 4.0))
    assert path == tmp_path / 'specprune_ros' / 'sweeps.json'
    assert sweeps.known(a) == made(1.0, 2.0)
    assert sweeps.known(b) == made(4.0, 4.0)
    assert [file.name for file in path.parent.iterdir()] == ['sweeps.json']


@pytest.mark.parametrize('text', ['', '[]', '{', '{"NAME": 3}', '{"NAME": {"tokens": [1]}}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    path = sweeps.cache_file()
    path.parent.mkdir()
    path.write_text(text)
    assert sweeps.known('NAME') is None
    sweeps.keep('NAME', made(1.0, 2.0))
    assert sweeps.known('NAME') == made(1.0, 2.0)
    json.loads(path.read_text())
