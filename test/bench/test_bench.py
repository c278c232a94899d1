"""``specprune bench``: rows of every pruner and loop, the paper's FLOPs, mistakes."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from specprune_ros.bench import calibration, measure, race, roofline
from specprune_ros.bench.calibration import Sweep
from specprune_ros.cli import bench, options
from specprune_ros.models import presets
from specprune_ros.models.flops import count, dense_flops, scheduled_work
from specprune_ros.models.presets import preset
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import names, pruner

FIELDS = {
    'model', 'pruner', 'mode', 'device', 'dtype', 'tokens_in', 'tokens_mean', 'flops_ratio',
    'ms_p50', 'ms_p90', 'ms_p99', 'ms_max', 'speedup', 'speedup_stock', 'ms_copies',
    'ms_preprocess_p50', 'ms_vision_p50', 'ms_decoder_p50', 'ms_head_p50', 'gflops', 'tflops',
    'gbs_decoder', 'ceiling_tflops', 'ceiling_gbs', 'floor_ms', 'distance', 'free_tokens',
}  # fmt: skip
OFT = TokenLayout(
    cameras=2,
    grid=(16, 16),
    vision_start=1,
    text=tuple(range(524, 543)),
    prompt=tuple(range(514, 548)),
    action=(547, 603),
    length=605,
    depth=32,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def parse(*words):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(['bench', *words])


@pytest.mark.slow
def test_every_pruner_gets_a_row(own_cache, tmp_path, capsys):
    out = tmp_path / 'rows.json'
    words = ('--model', 'tiny', '--pruner', 'all', '--repeats', '2', '--json', str(out))
    assert bench.run(parse(*words)) == 0
    everything = json.loads(out.read_text())
    (stock,) = [row for row in everything if row['mode'] == 'stock']
    rows = {row['pruner']: row for row in everything if row['mode'] == 'eager'}
    assert set(rows) == {*names(), 'specprune:paper', 'specprune:authors'}
    assert len(everything) == len(rows) + 1
    for row in everything:
        assert set(row) >= FIELDS
        assert row['tokens_in'] == 512 and 0 < row['tokens_mean'] <= 512
        assert 0 < row['ms_p50'] <= row['ms_p90'] <= row['ms_p99'] <= row['ms_max']
        assert row['speedup'] > 0 and row['floor_ms'] > 0
        stages = sum(row[f'ms_{s}_p50'] for s in ('preprocess', 'vision', 'decoder', 'head'))
        assert stages < 2 * row['ms_p50']
    assert rows['dense']['flops_ratio'] == rows['dense']['speedup'] == 1.0
    assert rows['dense']['action_deviation'] == 0.0
    # The stock loop computes every row of the last layer, and the same actions but for rounding.
    assert stock['flops_ratio'] > 1.0 and stock['speedup_stock'] == 1.0
    assert stock['action_deviation'] < 1e-4
    for name, row in rows.items():
        if name not in ('dense', 'sp_vla'):  # what SP-VLA keeps depends on the attention
            assert row['flops_ratio'] < 1.0, name
            assert row['action_deviation'] > 0.0 or name == 'adp', name  # its gate may be shut
            assert row['gflops'] < rows['dense']['gflops'], name
    table = capsys.readouterr().out
    assert all(name in table for name in rows)
    assert 'dense (stock loop)' in table


@pytest.mark.slow
def test_the_sweep_is_measured_remembered_and_drawn(own_cache, tmp_path, capsys):
    out, plot = tmp_path / 'rows.json', tmp_path / 'roofline.png'
    words = ('--model', 'tiny', '--repeats', '1', '--threads', '1', '--no-stock')
    extra = ('--sweep', '349', '--json', str(out), '--plot', str(plot))
    assert bench.run(parse(*words, *extra)) == 0
    rows = [row for row in json.loads(out.read_text()) if row['mode'] == 'sweep']
    assert [(row['tokens_mean'], row['rows']) for row in rows] == [
        (256, 349),
        (257, 350),
        (512, 605),
    ]
    assert rows[0]['ms_p50'] < rows[2]['ms_p50']
    assert plot.read_bytes().startswith(b'\x89PNG')
    assert 'Decoder swept' in capsys.readouterr().out
    assert bench.run(parse(*words)) == 0  # not measured again, and still reported
    assert 'Decoder swept' in capsys.readouterr().out


@pytest.mark.slow
def test_float8_is_named_counts_a_byte_a_weight_and_has_no_stock_loop(own_cache):
    few = {'repeats': 1, 'threads': 1, 'device': 'cpu', 'pruners': 'dense', 'model': 'tiny'}
    wide, narrow = (measure.bench(dtype='bfloat16', fp8=fp8, **few).rows for fp8 in (False, True))
    assert [row['mode'] for row in wide] == ['eager', 'stock']
    assert [row['mode'] for row in narrow] == ['eager']
    assert (wide[0]['dtype'], narrow[0]['dtype']) == ('bfloat16', 'bfloat16 + float8')
    assert narrow[0]['gbytes'] < wide[0]['gbytes'] and narrow[0]['gflops'] == wide[0]['gflops']


def test_what_is_known_to_be_free_here_is_kept_and_said(own_cache, monkeypatch):
    known = roofline.Ceilings(tflops=0.1, gbs=10.0)  # measured elsewhere, and slow to measure
    monkeypatch.setattr(measure, 'measure', lambda *_: known)
    name = calibration.key(build_policy(preset='tiny', device='cpu', threads=1).loaded)
    calibration.keep(name, Sweep((100, 512), (193, 605), (5.0, 5.0), '2026-11-21'))
    pruners, few = 'specprune,specprune:paper', {'repeats': 1, 'threads': 1, 'stock': False}
    dense, ours, paper = measure.bench(pruners, 'tiny', device='cpu', **few).rows
    reported = [row['free_tokens'] for row in (dense, ours, paper)]
    assert reported == [False, True, False]
    assert paper['tokens_mean'] < 300 < ours['tokens_mean'] == 512


def test_the_paper_preset_costs_what_the_paper_says():
    """43 % of dense at alpha 0.8 on OpenVLA-OFT, within three points; P1 counts the decoder."""
    params = PruningParams.preset_of('paper')
    assert params.alpha == 0.8
    schedule = pruner('specprune').plan(OFT, params, Mode.COARSE)
    work, observed = scheduled_work(OFT, schedule, schedule.prune)
    config = preset('openvla-oft-7b')
    spent, dense = count(config, work, observed), dense_flops(config, OFT)
    assert (spent.decoder + spent.observing) / dense.decoder == pytest.approx(0.43, abs=0.03)
    # The side products that give the scores are small change.
    assert spent.observing / spent.decoder < 1e-3


def test_the_default_keeps_as_many_tokens_as_the_paper():
    for mode in (Mode.COARSE, Mode.FINE):
        paper, ours = (
            pruner('specprune').plan(OFT, PruningParams.preset_of(name), mode).prune
            for name in ('paper', 'default')
        )
        assert paper == ours


def test_work_of_skipped_and_reused_layers():
    tight = PruningParams.from_mapping({'pruner': 'efficientvla'})
    schedule = pruner('efficientvla').plan(OFT, tight, Mode.COARSE)
    work, _ = scheduled_work(OFT, schedule, schedule.prune)
    assert [item.inputs for item in work[:8]] == [605, 605, 205, 0, 0, 0, 0, 205]
    assert work[-1].queries == 56
    reuse = PruningParams.from_mapping({'pruner': 'vla_cache'})
    schedule = pruner('vla_cache').plan(OFT, reuse, Mode.COARSE)
    work, _ = scheduled_work(OFT, schedule, {2: 412, 6: 312, 9: 312, 11: 312})
    assert (work[2].queries, work[2].keys) == (505, 605)  # the rest come from the cache


def test_parameters_and_presets_reach_the_pruners():
    made = dict(race.chosen('specprune:paper,fastv', {'alpha': 0.5}))
    assert list(made) == ['dense', 'specprune:paper', 'fastv']
    assert made['specprune:paper'].camera_factor == (1.0, 0.8)
    assert made['fastv'].alpha == 0.5
    assert options.parse_changes(['alpha=0.5', 'mode=fine', 'tau=[0.9]']) == {
        'alpha': 0.5,
        'mode': 'fine',
        'tau': [0.9],
    }


def test_mistakes_are_named():
    with pytest.raises(ParamError, match='fastest'):
        race.chosen('fastest', {})
    with pytest.raises(ParamError, match='ours'):
        race.chosen('specprune:ours', {})
    with pytest.raises(SystemExit, match='NAME=VALUE'):
        options.parse_changes(['alpha'])


@pytest.mark.parametrize(
    'words, said',
    [
        (('--model', 'openvla-oft-70b'), 'openvla-oft-7b, db-oft-7b, '),
        (('--model', 'tiny', '--pruner', 'fastest'), 'specprune, dense'),
        (('--model', 'tiny', '--dtype', 'int3'), 'none of auto, float32, bfloat16'),
        (('--model', 'tiny', '--device', 'toaster'), 'is no device'),
        (('--model', 'tiny', '--repeats', '0'), 'at least 1'),
        (('--model', 'tiny', '--param', 'alpha=9'), 'alpha'),
        (('--model', 'tiny', '--sweep', '999'), 'sweep step 999: must be 1..605 rows'),
        (('--model', 'tiny', '--sweep', '0'), 'sweep step 0'),
        (('--checkpoint', '/nowhere'), 'not a folder'),
    ],
)
def test_bad_input_ends_with_a_instruction(words, said, capsys, monkeypatch):
    monkeypatch.setattr(measure, 'measure', None)  # it is said before anything is measured
    assert bench.run(parse(*words)) == 1
    error = capsys.readouterr().err
    assert error.startswith('specprune bench: ') and said in error


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(capsys, monkeypatch):
    """The largest sizes that a config may name fit nowhere; no byte of them is taken."""
    huge = preset('openvla-oft-7b')
    huge = replace(huge, decoder=replace(huge.decoder, vocab=1 << 21, depth=128))
    monkeypatch.setitem(presets.PRESETS, 'openvla-oft-7b', huge)
    assert bench.run(parse('--model', 'openvla-oft-7b', '--device', 'cpu')) == 1
    error = capsys.readouterr().err
    assert 'openvla-oft-7b in float32 wants' in error
    assert 'GiB are free' in error and 'bfloat16' in error
