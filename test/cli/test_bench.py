"""``specprune bench``: rows of every pruner, and the paper's FLOPs."""

import argparse
import json

import pytest
import torch

from specprune_ros.cli import bench
from specprune_ros.models.flops import Listened, count, dense_flops
from specprune_ros.models.presets import preset
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import PRUNERS, ParamError, PruningParams
from specprune_ros.pruning.registry import pruner

FIELDS = {
    'model', 'pruner', 'mode', 'device', 'dtype', 'tokens_in', 'tokens_mean', 'flops_ratio',
    'ms_p50', 'ms_p99', 'speedup',
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


def parse(*words):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(['bench', *words])


def test_every_pruner_gets_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, 'WARM_QUERIES', 4)
    out = tmp_path / 'rows.json'
    words = ('--model', 'tiny', '--pruner', 'all', '--repeats', '2', '--json', str(out))
    assert bench.run(parse(*words)) == 0
    rows = {row['pruner']: row for row in json.loads(out.read_text())}
    assert set(rows) == {*PRUNERS, 'specprune:paper', 'specprune:authors'}
    for row in rows.values():
        assert set(row) >= FIELDS
        assert row['tokens_in'] == 512 and 0 < row['tokens_mean'] <= 512
        assert row['ms_p50'] > 0 and row['speedup'] > 0
    assert rows['dense']['flops_ratio'] == rows['dense']['speedup'] == 1.0
    assert rows['dense']['action_deviation'] == 0.0
    for name, row in rows.items():
        if name not in ('dense', 'sp_vla'):  # what SP-VLA keeps depends on the attention
            assert row['flops_ratio'] < 1.0, name
            assert row['action_deviation'] > 0.0 or name == 'adp', name  # its gate may be shut
    table = capsys.readouterr().out
    assert all(name in table for name in rows)


def test_the_paper_preset_costs_what_the_paper_says():
    """43 % of dense at alpha 0.8 on OpenVLA-OFT, within three points; P1 counts the decoder."""
    params = PruningParams.preset_of('paper')
    assert params.alpha == 0.8
    schedule = pruner('specprune').plan(OFT, params, Mode.COARSE)
    work = bench.layer_work(OFT, schedule, schedule.prune)
    listened = [
        Listened(layer, len(OFT.rows(group)), work[layer - 1].keys)
        for layer, groups in schedule.listen.items()
        for group in groups
    ]
    config = preset('openvla-oft-7b')
    spent, dense = count(config, work, listened), dense_flops(config, OFT)
    assert (spent.decoder + spent.listening) / dense.decoder == pytest.approx(0.43, abs=0.03)
    # The side products that give the scores are small change.
    assert spent.listening / spent.decoder < 1e-3


def test_work_of_skipped_and_reused_layers():
    tight = PruningParams.from_mapping({'pruner': 'efficientvla'})
    schedule = pruner('efficientvla').plan(OFT, tight, Mode.COARSE)
    work = bench.layer_work(OFT, schedule, schedule.prune)
    assert [item.inputs for item in work[:8]] == [605, 605, 205, 0, 0, 0, 0, 205]
    assert work[-1].queries == 56
    reuse = PruningParams.from_mapping({'pruner': 'vla_cache'})
    schedule = pruner('vla_cache').plan(OFT, reuse, Mode.COARSE)
    work = bench.layer_work(OFT, schedule, {2: 412, 6: 312, 9: 312, 11: 312})
    assert (work[2].queries, work[2].keys) == (505, 605)  # the rest come from the cache


def test_parameters_and_presets_reach_the_pruners():
    made = dict(bench.contestants_of('specprune:paper,fastv', {'alpha': 0.5}))
    assert list(made) == ['dense', 'specprune:paper', 'fastv']
    assert made['specprune:paper'].camera_factor == (1.0, 0.8)
    assert made['fastv'].alpha == 0.5
    assert bench.parse_changes(['alpha=0.5', 'mode=fine', 'tau=[0.9]']) == {
        'alpha': 0.5,
        'mode': 'fine',
        'tau': [0.9],
    }


def test_mistakes_are_named():
    with pytest.raises(ParamError, match='fastest'):
        bench.contestants_of('fastest', {})
    with pytest.raises(ParamError, match='ours'):
        bench.contestants_of('specprune:ours', {})
    with pytest.raises(SystemExit, match='NAME=VALUE'):
        bench.parse_changes(['alpha'])
