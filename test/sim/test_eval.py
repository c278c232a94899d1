"""Closed-loop evaluation: statistics worked by hand, trials that are kept, the command itself."""

import json
import math
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specprune_ros.cli.eval import chosen
from specprune_ros.cli.main import main
from specprune_ros.models.build import build
from specprune_ros.models.load import save_policy_model
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import Prompt
from specprune_ros.pruning import registry
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import check_params, names
from specprune_ros.sim.evaluation import settings
from specprune_ros.sim.evaluation.episode import EXECUTED
from specprune_ros.sim.evaluation.plot import draw_curves
from specprune_ros.sim.evaluation.proportions import compare, paired, wilson
from specprune_ros.sim.evaluation.results import table_rows
from specprune_ros.sim.evaluation.settings import (
    DENSE,
    TABLES,
    EvaluationSetting,
    random_like,
    specprune,
    table,
    with_control,
)
from specprune_ros.sim.evaluation.trials import (
    Player,
    Trial,
    TrialFile,
    checkpoint_hash,
    jobs,
    weights_hash,
)
from specprune_ros.sim.training.recipe import Recipe, Stage, policy_config, tokenizer
from specprune_ros.sim.training.train import ROBOT, summary

SMALL = Recipe(
    width=32, heads=2, mlp=32, tower_width=24, tower_mlp=24,
    stages=(Stage('small', 'none', depth=8, tower_depth=2),),
)  # fmt: skip
PRUNED = specprune('specprune')
BRIGHTEST = Path(__file__).parents[2] / 'docs' / 'examples' / 'brightest.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Random weights in the shape of the trained policy."""
    folder = tmp_path_factory.mktemp('policy')
    rng, config = np.random.default_rng(0), policy_config(SMALL)
    entry = summary(rng.normal(size=(9, 7)) * 0.01, rng.normal(size=(9, 8)), 1)
    statistics = Statistics.from_json({ROBOT: entry}, ROBOT, config.norm, 7, 8)
    model = build(config, 0, torch.device('cpu'))
    save_policy_model(folder, model, tokenizer(), statistics)
    return folder


def trial(setting, seed, outcome, family='move', **more):
    values = {'steps': 10, 'queries': 3, 'tokens': 64.0, 'flops': 0.75, 'recall': math.nan}
    values |= {'deviation': math.nan, 'milliseconds': 5.0} | more
    return Trial(setting.key('w', EXECUTED), family, seed, outcome, **values)


def test_wilson_interval():
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    with pytest.raises(ValueError, match='successes'):
        wilson(3, 2)


def test_paired_comparison():
    """Eight episodes gained and one lost of twenty: 2 (1 + 9) / 2^9."""
    first = [True] * 8 + [False] + [True] * 11
    second = [False] * 8 + [True] + [True] * 11
    found = compare(first, second)
    assert (found.gained, found.lost, found.difference) == (8, 1, 0.35)
    assert found.p == pytest.approx(20 / 512)
    assert compare(first, first).p == 1.0
    # Newcombe (1998), table II, method 10.
    for counts, low, high in (
        ((50, 36, 12, 2), 0.0569, 0.3404), ((50, 20, 12, 2), 0.0562, 0.3292),
        ((50, 36, 14, 0), 0.1528, 0.4167), ((30, 0, 30, 0), 0.8395, 1.0),
    ):  # fmt: skip
        made = paired(*counts)
        assert (round(made.low, 4), round(made.high, 4)) == (low, high)
    # No pair differs, and still the next one might: the interval was of no width.
    assert paired(15, 15, 0, 0).high == pytest.approx(0.204, abs=1e-3)
    for bad in ([], [True]):
        with pytest.raises(ValueError, match='want the same'):
            compare(first, bad)


def test_tables_hold_their_controls():
    config = policy_config(SMALL)
    layout = build(config, 0, torch.device('cpu')).layout(Prompt((1,) * 7, (1, 6)))
    for row in table('pruners'):
        own = [] if row.params.exact or row.params.pruner in ('dense', 'random') else [row.label]
        assert [r.label for r in with_control(row)][:1] == [row.label]
        assert row.against == ''.join(f'random like {label}' for label in own)
    labels = [row.label for row in table('main')]
    assert labels[:3] == ['dense', 'dense, wrong colour', 'dense, blind']
    for name in TABLES:
        rows = table(name)
        assert len({row.label for row in rows}) == len(rows)
        assert rows[0] == DENSE
        for row in rows:
            check_params(row.params, layout)
            assert not row.against or row.against in [other.label for other in rows]
    with pytest.raises(ValueError, match='want one of main'):
        table('nonsense')


def test_curves_have_four_budgets_a_method_and_their_controls():
    rows = table('curves')
    curves = {}
    for row in rows[1:]:
        curves.setdefault(row.curve, []).append(row)
    assert set(names()) - {'dense'} <= set(curves)
    assert all(
        len(line) == (3 if name == 'local attention' else 4) for name, line in curves.items()
    )
    for plain, slack in zip(curves['specprune'], curves['specprune, slack'], strict=True):
        assert slack.params == plain.params.replace(refresh_when='slack')
        assert slack.against == plain.against == f'random like {plain.label}'
    assert all(row.params.fastv_rows == 'text' for row in curves['local attention'])


def test_the_slack_is_paid_for_apart(checkpoint):
    player = Player(checkpoint)
    slack = specprune('slack', refresh_when='slack')
    try:
        never = player(PRUNED, 'move', 3)
        made, again = player(slack, 'move', 3), player(slack, 'move', 3)
    finally:
        player.close()
    assert never.refresh_flops == 0.0
    # One dense pass after every query, the last one too where its chunk is played that far.
    passes = made.refresh_flops * made.queries
    assert passes == pytest.approx(round(passes), rel=0.01)
    assert round(passes) in (made.queries - 1, made.queries)
    assert again.refresh_flops == made.refresh_flops  # nothing of the episode before
    assert made.flops == pytest.approx(never.flops, abs=0.05)


def test_curves_are_drawn(tmp_path):
    done = TrialFile(tmp_path / 't.jsonl')
    rows = [row for row in table('curves') if row.curve in ('', 'specprune', 'local attention')]
    for number, row in enumerate(rows):
        more = {'flops': 1 - 0.1 * number, 'deviation': 0.001 * number if number else math.nan}
        done.add(trial(row, seed, 'success', **more) for seed in range(3))
        done.add(
            trial(row, seed, 'success', family='put', **more) for seed in range(3) if number != 1
        )
    sizes = []
    for families in (['move'], ['move', 'put']):
        drawn = tmp_path / 'curves.png'
        draw_curves(table_rows(rows, families, range(3), done, 'w'), drawn)
        sizes.append(drawn.stat().st_size)
    assert 20_000 < sizes[0] < sizes[1]


def test_a_key_is_what_decides_the_episodes():
    assert PRUNED.key('w', 4) == replace(PRUNED, label='x', against='').key('w', 4)
    same = PRUNED.params.replace(free_tokens=not PRUNED.params.free_tokens)  # none are known
    assert PRUNED.key('w', 4) == replace(PRUNED, params=same).key('w', 4)
    others = [DENSE, random_like(PRUNED), replace(PRUNED, control='blind')]
    keys = {s.key('w', 4) for s in (PRUNED, *others)} | {PRUNED.key('v', 4), PRUNED.key('w', 8)}
    assert len(keys) == 6
    with pytest.raises(ValueError, match='control'):
        replace(PRUNED, control='deaf')


def test_a_key_knows_the_code_of_its_method(tmp_path, monkeypatch):
    """An edited plugin is another key; a further plugin, or an edit of it, is not for the rest."""
    monkeypatch.setattr(registry, '_PRUNERS', dict(registry._PRUNERS))
    methods = dict(registry.METHODS)
    toy = tmp_path / 'toy.py'
    toy.write_text(f'import toy_scores\n{BRIGHTEST.read_text()}')
    (tmp_path / 'toy_scores.py').write_text('SIGN = 1')
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        others = table('pruners')
        before = [row.key('w', 8) for row in others]
        keys = []
        for change in (lambda: None, lambda: toy.write_text(toy.read_text() + '# inverted'),
                       lambda: (tmp_path / 'toy_scores.py').write_text('SIGN = -1')):  # fmt: skip
            change()
            registry.load_plugin(toy)
            assert registry.sources('brightest') == (toy, tmp_path / 'toy_scores.py')
            rows = chosen('main', 'brightest', [])[1:]
            keys += [row.key('w', 8) for row in rows]
        assert [row.key('w', 8) for row in others] == before
        assert len(set(keys)) == len(keys) >= 3
        monkeypatch.setattr(settings, 'package_hash', lambda: 'another revision')
        assert rows[0].key('w', 8) not in keys and table('main')[0].key('w', 8) not in before
    finally:
        registry.METHODS.clear()
        registry.METHODS.update(methods)
        sys.modules.pop('toy_scores', None)


def test_methods_that_share_code_share_their_sources():
    def files(name):
        return [path.name for path in registry.sources(name)]

    assert files('vla_pruner') == ['base.py', 'divprune.py', 'vla_pruner.py']
    assert files('specprune') == ['specprune.py'] and files('random')[-1] == 'random_control.py'


def test_rows_pair_the_same_episodes(tmp_path):
    done, control = TrialFile(tmp_path / 't.jsonl'), random_like(PRUNED)
    done.add(trial(DENSE, seed, 'success') for seed in range(4))
    done.add(trial(PRUNED, s, 'success' if s else 'time_out', recall=0.8) for s in range(3))
    done.add(trial(control, s, 'success' if s > 1 else 'collision') for s in range(4))
    done.add([trial(control, 99, 'success')])  # not requested
    again = TrialFile(done.path)  # as another run finds it
    assert again.trials.keys() == done.trials.keys()
    rows = table_rows([DENSE, PRUNED, control], ['move'], range(4), again, 'w')
    by = {row['pruner']: row for row in rows}
    assert [row['episodes'] for row in rows] == [4, 3, 4]
    assert by['specprune']['paired_loss'] == pytest.approx(1 / 3)
    assert by['specprune']['paired_loss_episodes'] == 3
    assert by['specprune']['against_gain'] == pytest.approx(1 / 3)
    assert by['specprune']['recall'] == pytest.approx(0.8)
    assert by[control.label]['collisions'] == 2 and by['dense']['recall'] is None
    assert 'paired_loss' not in by['dense']


def test_distance_from_dense_is_of_the_episodes_that_were_to_measure_it(tmp_path):
    """An earlier run may have measured more."""
    done = TrialFile(tmp_path / 't.jsonl')
    done.add(trial(PRUNED, s, 'success', deviation=0.001 * s, milliseconds=math.nan)
             for s in range(4))  # fmt: skip
    (row,) = table_rows([PRUNED], ['move'], range(4), done, 'w', deviation_episodes=2)
    assert row['action_deviation'] == pytest.approx(0.0005) and row['episodes'] == 4
    assert row['ms_p50'] is None  # every query was refused


def test_other_statistics_are_another_policy(checkpoint, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(checkpoint, folder)
    assert checkpoint_hash(folder) == checkpoint_hash(checkpoint)
    (folder / 'recipe.json').write_text('{"results": 1}')
    assert checkpoint_hash(folder) == checkpoint_hash(checkpoint)
    file = folder / 'dataset_statistics.json'
    file.write_text(file.read_text().replace('"mask"', '"mask" '))
    assert checkpoint_hash(folder) != checkpoint_hash(checkpoint)
    assert weights_hash(folder) == weights_hash(checkpoint)


def test_what_is_done_is_not_played_again(tmp_path):
    done = TrialFile(tmp_path / 't.jsonl')
    done.add(trial(DENSE, seed, 'success') for seed in range(7))
    twice = replace(DENSE, label='dense again')
    todo = list(jobs([DENSE, PRUNED, twice], ['move'], range(12), done, 'w'))
    seeds = {label: [s for j in todo if j.setting.label == label for s in j.seeds]
             for label in ('dense', 'specprune', 'dense again')}  # fmt: skip
    assert seeds == {'dense': [*range(7, 12)], 'specprune': [*range(12)], 'dense again': []}
    # What was played without the comparison with dense is played again where that is wanted.
    done.add(trial(PRUNED, s, 'success', deviation=math.nan if s else 0.001) for s in range(12))
    todo = jobs([DENSE, PRUNED], ['move'], range(7), done, 'w', deviation_episodes=3)
    assert [(job.setting.label, job.seeds) for job in todo] == [('specprune', (1, 2))]
    done.path.write_text('{"key": 1')
    with pytest.raises(ValueError, match='line 1: not valid JSON'):
        TrialFile(done.path)


def test_an_episode_is_fixed_by_its_seed(checkpoint):
    player = Player(checkpoint)
    try:
        first, second = (player(PRUNED, 'move', 3, deviation=True) for _ in range(2))
        blind = player(replace(DENSE, control='blind'), 'move', 3)
    finally:
        player.close()
    assert replace(first, milliseconds=0.0) == replace(second, milliseconds=0.0)
    assert first.tokens < 128 and first.flops < 1.0 and first.deviation > 0
    assert first.decoder_flops < first.flops and blind.decoder_flops == pytest.approx(1.0)
    assert blind.tokens == 128 and blind.flops == 1.0 and math.isnan(blind.deviation)
    assert first.key != blind.key


def test_the_command(checkpoint, tmp_path, capsys):
    """Two processes play, a second call plays nothing, table, rows and plot are there."""
    command = ['eval', '--checkpoint', str(checkpoint), '--work', str(tmp_path / 'work')]
    command += ['--pruner', 'specprune', '--param', 'alpha=0.5', '--families', 'move']
    command += ['--episodes', '1', '--processes', '2', '--json', str(tmp_path / 'rows.json')]
    page = tmp_path / 'page.html'
    assert main([*command, '--plot', str(tmp_path / 'plot.png'), '--page', str(page)]) == 0
    assert 'reused 0, played 3 episodes in' in capsys.readouterr().out
    report = json.loads((tmp_path / 'rows.json').read_text())
    labels = [row['pruner'] for row in report['rows']]
    assert labels == ['dense', 'specprune alpha=0.5', 'random like specprune alpha=0.5']
    assert report['rows'][1]['flops_ratio'] < 1 and report['rows'][1]['paired_loss_p'] == 1.0
    assert report['weights'] == weights_hash(checkpoint) and report['machine']['cpu']
    assert (tmp_path / 'plot.png').stat().st_size > 10_000
    text = page.read_text()
    for part in (shlex.join(['specprune', *command]), 'data:image/png;base64,', 'Wilson',
                 'alpha=0.5, random_like=&quot;specprune&quot;', report['weights'],
                 'played 3', '<td>specprune alpha=0.5</td><td>'):  # fmt: skip
        assert part in text, part
    assert main(command) == 0
    assert 'reused 3, played 0 episodes in' in capsys.readouterr().out


def test_a_bad_call_says_what_would_be_right(checkpoint, tmp_path, capsys):
    for arguments, words in (
        (['--families', 'juggle'], 'want some of move, lift, put'),
        (['--episodes', '0'], '--episodes 0'),
        (['--table', 'nonsense'], 'want one of main'),
        (['--pruner', 'magic'], 'magic'),
        (['--param', 'alpha=1'], 'goes with --pruner'),
        (['--report-only'], 'leave out --report-only'),
        (['--checkpoint', str(tmp_path)], 'no *.safetensors or *.pt'),
        (['--executed', '0'], '--executed 0'),
        (['--bed', 'libero', '--suite', 'long'], 'want one of spatial'),
        (['--bed', 'libero', '--episodes', '51'], '1 to 50 a task'),
    ):
        work = ['--work', str(tmp_path / 'none'), '--checkpoint', str(checkpoint)]
        assert main(['eval', *work, *arguments]) == 1
        assert words in capsys.readouterr().err
    assert chosen('main', 'fastv', ['fastv_ratio=0.25'])[1].params == PruningParams(
        pruner='fastv'
    ).replace(fastv_ratio=0.25)
    assert isinstance(chosen('main', 'dense', [])[0], EvaluationSetting)
