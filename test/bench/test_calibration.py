"""Which numbers of rows cost the same here: the measurement, its memory, and what plans by it."""

import json
import logging
import time
from dataclasses import replace

import pytest
import torch

from specprune_ros.bench import calibration
from specprune_ros.bench.calibration import (
    EvenlySpacedPass,
    Sweep,
    bench_layout,
    calibrator,
    edges,
    sweep,
)
from specprune_ros.models.accel import fp8, fused
from specprune_ros.models.build import cast, empty
from specprune_ros.models.load import random_policy_model
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.specprune import make_plan

LOG = logging.getLogger('specprune_ros.test')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def tiny():
    return random_policy_model('tiny')


def made(*ms):
    tokens = tuple(64 * (i + 1) for i in range(len(ms)))
    return Sweep(tokens, tuple(93 + t for t in tokens), ms, '2026-11-21')


@pytest.mark.parametrize(
    'ms, floor, said',
    [
        ((1.0, 2.0, 3.0, 4.0), 64, 'paid down to the least tried: 157 rows'),
        ((3.95, 4.0, 4.0, 8.0), 192, 'below 285 rows (192 vision tokens) fewer buy nothing'),
        ((4.1, 4.0, 6.0, 8.0), 128, 'below 221 rows'),  # slower with fewer: noise or a bad tile
        ((4.0, 4.0, 4.0, 4.0), 256, 'fewer tokens buy nothing: 157 rows cost what 349 do'),
    ],
)
def test_fewer_tokens_stop_paying_where_time_no_longer_falls(ms, floor, said):
    assert made(*ms).floor_tokens == floor
    assert said in made(*ms).summary()
    # One row more is not worth an instruction.
    near = Sweep((3, 4, 35), (96, 97, 128), (6.19, 6.28, 7.27), '2026-11-21')
    assert 'paid down to the least tried: 96 rows' in near.summary()


def test_both_sides_of_every_tile_are_timed(tiny):
    layout = bench_layout(tiny)
    others = layout.length - layout.vision_tokens
    assert (layout.length, others) == (605, 93)
    rows = [others + count for count in edges(layout, 64)]
    assert rows[:5] == [128, 129, 192, 193, 256] and rows[-3:] == [576, 577, 605]
    assert [others + count for count in edges(layout, 600)] == [600, 601, 605]
    assert edges(layout, 1) == list(range(1, 513))
    for step in (0, -1, 606):
        with pytest.raises(ValueError, match=r'1\.\.605 rows'):
            edges(layout, step)


def test_the_decoder_is_timed_with_the_tokens_named(tiny):
    found = sweep(tiny, (200, 400, 512), range(2))
    assert found.tokens == (200, 400, 512)
    assert found.rows == (293, 493, 605)
    assert 0 < found.ms[0] < found.ms[2]
    layout = bench_layout(tiny)
    hidden = torch.randn(1, layout.length, 128)
    kept = tiny.model.decoder(hidden, layout, EvenlySpacedPass(layout, 200, hidden.device))
    assert len(set(kept.vision_ids.tolist())) == 200 and kept.layer_tokens == (200,) * 8


def test_what_is_timed_is_what_was_recorded(tiny):
    """On a GPU a run is captured once and replayed; recording is not part of any time."""
    recorded, replayed = [], []

    def record(run):
        number = len(recorded)
        recorded.append(run)
        run()
        time.sleep(0.1)
        return lambda: (replayed.append(number), time.sleep(0.01))

    found = sweep(tiny, (100, 512), range(4), record)
    assert len(recorded) == 2
    # Twice to warm up and to see how long it takes, then once a round in turning order.
    assert replayed == [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert all(10 <= ms < 100 for ms in found.ms)


def test_nothing_is_read_on_the_host_while_it_is_timed(tiny):
    """The meta device refuses to tell a value and to work with tensors of another device: what a
    CUDA graph refuses too.
    """
    model = cast(empty(tiny.config), torch.bfloat16)
    assert model.decoder.norm.weight.is_meta
    found = sweep(replace(tiny, model=model), (100, 512), range(1), lambda run: run)
    assert found.rows == (193, 605)


def test_pi0_is_timed_in_bfloat16_though_its_norms_are_not():
    loaded = random_policy_model('pi0-tiny', dtype=torch.bfloat16)
    assert loaded.model.decoder.norm.weight.dtype == torch.float32
    assert len(sweep(loaded, (256, 512), range(1)).ms) == 2


@pytest.mark.gpu
def test_a_gpu_is_calibrated_in_time(caplog):
    caplog.set_level(logging.INFO)
    begin = time.perf_counter()
    policy = build_policy(preset='oft-medium', device='cuda', calibrate=calibrator('auto', LOG))
    assert time.perf_counter() - begin < 60
    assert len(policy.loaded.model.latency_curve.rows) == 33, caplog.text
    again = build_policy(preset='oft-medium', device='cuda', calibrate=calibrator('auto', LOG))
    assert again.loaded.model.latency_curve == policy.loaded.model.latency_curve


@pytest.mark.parametrize('limit', [0.0, 0.4])
def test_it_ends_in_time_with_what_is_spread_most_evenly(tiny, limit):
    def record(run):
        return lambda: time.sleep(0.01)

    tokens = tuple(range(64, 513, 32))
    begin = time.perf_counter()
    found = sweep(tiny, tokens, range(1000), record, limit)
    assert time.perf_counter() - begin < limit + 0.5
    assert found.tokens[-1] == 512 and set(found.tokens) < set(tokens)
    gaps = [b - a for a, b in zip(found.tokens, found.tokens[1:], strict=False)]
    assert len(found.tokens) >= 2 and (limit == 0 or max(gaps) <= 256)


def test_sweeps_are_kept_per_device_and_model(tmp_path, tiny):
    a = calibration.key(tiny)
    assert '8 x 128' in a and 'float32' in a and '1 threads' in a and torch.__version__ in a
    torch.set_num_threads(2)
    assert calibration.key(tiny) != a
    torch.set_num_threads(1)
    assert calibration.key(random_policy_model('tiny', seed=3)) == a  # only sizes count
    b = calibration.key(random_policy_model('tiny', dtype=torch.bfloat16))
    assert b != a and 'bfloat16' in b
    other = random_policy_model('tiny', dtype=torch.bfloat16)
    fused.use(other.model.decoder, fused.COMPILED)
    assert calibration.key(other) == b.replace('bfloat16', 'bfloat16 + compiled')
    fp8.convert(other.model.decoder)
    assert 'bfloat16 + float32 + float8_e4m3fn + compiled' in calibration.key(other)
    assert calibration.known(a) is None
    path = calibration.keep(a, made(1.0, 2.0))
    calibration.keep(b, made(4.0, 4.0))
    assert path == tmp_path / 'specprune_ros' / 'sweeps.json'
    assert calibration.known(a) == made(1.0, 2.0)
    assert calibration.known(b) == made(4.0, 4.0)
    assert [file.name for file in path.parent.iterdir()] == ['sweeps.json']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{',
        '\udcff',
        '{"NAME": 3}',
        '{"NAME": {"tokens": [1]}}',
        '{"NAME": {"tokens": [1], "rows": [2], "ms": ["a"], "date": "today"}}',
        '{"NAME": {"tokens": [1], "rows": [2], "ms": [-1.0], "date": "today"}}',
        '{"NAME": {"tokens": [2, 1], "rows": [3, 2], "ms": [1.0, 1.0], "date": "today"}}',
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_reported(text, caplog):
    path = calibration.cache_file()
    path.parent.mkdir()
    path.write_bytes(text.encode(errors='surrogateescape'))
    assert calibration.known('NAME', LOG) is None
    assert 'sweeps.json is damaged' in caplog.text
    calibration.keep('NAME', made(1.0, 2.0))
    assert calibration.known('NAME') == made(1.0, 2.0)
    json.loads(path.read_text())


@pytest.fixture
def quickly(monkeypatch):
    """Few counts and rounds: what is measured does not matter, that it is does."""
    monkeypatch.setattr(calibration, 'TILE', 250)
    monkeypatch.setattr(calibration, 'ROUNDS', 1)


def built(**more):
    return build_policy(preset='tiny', device='cpu', threads=1, **more)


def test_a_policy_is_calibrated_once_and_remembers(quickly, caplog):
    caplog.set_level(logging.INFO)
    assert (
        built(calibrate=calibrator('auto', LOG)).loaded.model.latency_curve is None
    )  # this is no GPU
    assert built().loaded.model.latency_curve is None and not caplog.text
    policy = built(calibrate=calibrator('always', LOG))
    assert policy.loaded.model.latency_curve.rows == (250, 251, 500, 501, 605)
    assert policy.layout().latency_curve == policy.loaded.model.latency_curve
    assert 'timed 5 numbers of rows in ' in caplog.text and 'rows' in caplog.text
    caplog.clear()
    again = built(calibrate=calibrator('always', LOG))
    assert again.loaded.model.latency_curve == policy.loaded.model.latency_curve
    assert 'timed on this device on 20' in caplog.text and 'numbers of rows in' not in caplog.text
    with pytest.raises(ValueError, match='none of auto, always, never'):
        built(calibrate=calibrator('sometimes', LOG))


def test_a_policy_plans_by_what_was_measured(caplog):
    """Another machine's floor, remembered under this one's key."""
    floor = Sweep((100, 300, 512), (193, 393, 605), (5.0, 5.01, 9.0), '2026-11-21')
    calibration.keep(calibration.key(built(calibrate=calibrator('never', LOG)).loaded), floor)
    policy = built(calibrate=calibrator('always', LOG))
    layout = bench_layout(policy.loaded)
    params = PruningParams().replace(mode='coarse', alpha=0.8)
    counts = make_plan(layout, params, Mode.COARSE).counts
    assert set(counts.values()) == {300}
    embedded = policy.layout('lift the red cube')
    assert embedded.latency_curve == floor.latency_curve
    off = params.replace(free_tokens=False)
    assert max(make_plan(layout, off, Mode.COARSE).counts.values()) == 224


def test_a_cache_that_cannot_be_used_stops_nothing(quickly, tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))  # no folder can be made there
    policy = built(calibrate=calibrator('always', LOG))
    assert policy.loaded.model.latency_curve is not None
    assert 'cannot be remembered' in caplog.text


def test_a_device_that_cannot_be_timed_stops_nothing(quickly, monkeypatch, caplog):
    def broken(device):
        raise RuntimeError('no graphs here')

    monkeypatch.setattr(calibration, 'capturer', broken)
    assert built(calibrate=calibrator('always', LOG)).loaded.model.latency_curve is None
    assert 'no graphs here' in caplog.text
