"""``specprune explain``: an image and its numbers from a recorded observation."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import flow_packs
from PIL import Image
from ros_processes import new_domain

from specprune_ros.bench.explain import explain as run_explain
from specprune_ros.bench.explain import read_record
from specprune_ros.bench.explain_figure import draw
from specprune_ros.cli import explain
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.params import PruningParams

LIBERO = Path(__file__).resolve().parents[3] / 'shared/data/libero_spatial_observation.npz'


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp('records')
    random = np.random.default_rng(0)
    for name, moved in (('before', 0), ('now', 30)):
        images = {}
        for camera in ('scene', 'wrist'):
            pixels = np.full((224, 224, 3), 90, np.uint8)
            pixels += random.integers(0, 3, pixels.shape, dtype=np.uint8)
            pixels[60:100, 40 + moved : 90 + moved] = (220, 40, 40)
            images[camera] = pixels
        np.savez(
            folder / f'{name}.npz',
            **images,
            state=np.zeros(8),
            task_description='pick up the red block',
        )
    return folder


def call(*words):
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())
    return explain.run(parser.parse_args(['explain', *map(str, words)]))


def test_image_and_numbers(records, tmp_path, capsys):
    out, numbers = tmp_path / 'deep' / 'image.png', tmp_path / 'numbers.json'
    status = call(
        records / 'now.npz',
        '--previous',
        records / 'before.npz',
        '--out',
        out,
        '--json',
        numbers,
    )
    assert status == 0
    image = np.asarray(Image.open(out).convert('RGB'))
    assert image.shape[1] > 1200 and len(np.unique(image.reshape(-1, 3), axis=0)) > 500
    reported = json.loads(numbers.read_text())
    assert reported['tokens_in'] == 512
    assert reported['layer_tokens'][-1] == list(reported['tokens_after'].values())[-1] < 512
    assert set(reported['sets']) == {'local', 'global', 'dynamic'}
    assert reported['sets']['dynamic'] > 0  # the block moved
    assert 0 < reported['prior_recall'] <= 1
    assert reported['flops_ratio_decoder'] < reported['flops_ratio'] < 1
    printed = capsys.readouterr().out
    assert '512 to' in printed and str(out) in printed


def test_a_checkpoint_and_sizes_are_not_both_taken(records, tmp_path, capsys):
    words = ('--checkpoint', tmp_path, '--model', 'tiny', '--out', tmp_path / 'p.png')
    assert call(records / 'now.npz', *words) == 1
    assert 'take one of --checkpoint and --model' in capsys.readouterr().err


def test_the_platform_reaches_the_loader(records, tmp_path, capsys):
    words = ('--checkpoint', flow_packs() / 'pi0_openpi/checkpoint', '--platform', 'mars')
    assert call(records / 'now.npz', *words, '--out', tmp_path / 'p.png') == 1
    assert "platform 'mars' is none of" in capsys.readouterr().err


def test_without_an_earlier_observation_nothing_moved(records, tmp_path):
    numbers = tmp_path / 'numbers.json'
    words = ('--out', tmp_path / 'p.png', '--json', numbers, '--preset', 'paper')
    assert call(records / 'now.npz', *words) == 0
    assert json.loads(numbers.read_text())['sets']['dynamic'] == 0


@pytest.mark.parametrize(
    'name',
    ['vla_cache', 'adp', 'dense']
    + [pytest.param(name, marks=pytest.mark.slow) for name in ('divprune', 'team_vla')],
)
def test_rivals_can_be_drawn(records, tmp_path, name):
    out = tmp_path / 'p.png'
    assert call(records / 'now.npz', '--pruner', name, '--out', out) == 0
    assert out.stat().st_size > 20_000


def test_without_arguments_the_shipped_policy_sees_the_shipped_observation(tmp_path, capsys):
    numbers = tmp_path / 'numbers.json'
    assert call('--out', tmp_path / 'p.png', '--json', numbers) == 0
    reported, said = json.loads(numbers.read_text()), capsys.readouterr()
    assert (reported['tokens_in'], reported['instruction']) == (512, 'lift the red cube')
    assert reported['sets']['dynamic'] > 0 and 'random' not in said.err
    assert call('--bag', tmp_path, '--live', '--out', tmp_path / 'p.png') == 1
    assert 'take one of' in capsys.readouterr().err


@pytest.mark.ros
def test_a_moment_of_a_recording_is_explained(tmp_path, capsys):
    recording = Path(explain.__file__).parents[1] / 'sim' / 'recording'
    numbers = tmp_path / 'numbers.json'
    words = ('--bag', recording, '--at', 4, '--out', tmp_path / 'p.png', '--json', numbers)
    assert call(*words) == 0
    assert json.loads(numbers.read_text())['tokens_in'] == 512
    assert 'random' not in capsys.readouterr().err


def test_texts_do_not_overprint_and_a_new_methods_scores_have_their_name(records):
    """Every pair of texts on the figure lies apart, with the longest instruction and names."""
    import matplotlib.pyplot as plt

    shown, keep = [], plt.close
    loaded = build_policy('', 'tiny', device='cpu').loaded
    now = replace(read_record(records / 'now.npz'), instruction='put the red block ' * 12)
    made = run_explain(loaded, now, now, PruningParams(pruner='fastv'))
    name = 'brightness_of_the_patch_over_its_neighbours'
    made.scores = {**made.scores, name: np.linspace(0, 1, made.tokens)}
    made.title = 'brightest, default preset, ' + 'coarse ' * 8
    try:
        plt.close = shown.append
        draw(made, records / 'p.png')
    finally:
        plt.close = keep
    (figure,) = shown
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text().strip()]
    assert any(text.replace('\n', ' ').startswith('brightness of the') for text, _ in boxes)
    for number, (text, box) in enumerate(boxes):
        assert box.x1 <= figure.bbox.x1, text
        for other, its in boxes[:number]:
            assert not box.overlaps(its), (text, other)
    keep(figure)


@pytest.mark.skipif(not LIBERO.exists(), reason=f'no {LIBERO.name} beside the checkout')
def test_a_real_observation(tmp_path):
    record = read_record(LIBERO)
    assert list(record.images) == ['full_image', 'wrist_image']
    assert record.proprio.shape == (8,) and 'bowl' in record.instruction
    assert call(LIBERO, '--out', tmp_path / 'p.png', '--mode', 'fine') == 0


@pytest.mark.parametrize(
    ('arrays', 'why'),
    [
        ({'state': np.zeros(8), 'instruction': 'go'}, 'holds no image'),
        ({'a': np.zeros((32, 32, 3), np.uint8)}, 'holds no instruction'),
        ({'a': np.zeros((32, 32, 3), np.uint8), 'instruction': 'go'}, '1 image'),
        (
            {
                'a': np.zeros((32, 32, 3), np.uint8),
                'b': np.zeros((32, 32, 3), np.uint8),
                'instruction': 'go',
            },
            'proprioception has shape None',
        ),
        ({'a': np.array([{}], object)}, 'not a readable npz'),
    ],
)
def test_a_file_that_will_not_do_is_refused_by_name(tmp_path, capsys, arrays, why):
    path = tmp_path / 'record.npz'
    np.savez(path, **arrays)
    assert call(path, '--out', tmp_path / 'p.png') == 1
    assert why in capsys.readouterr().err


def test_a_missing_file_and_a_bad_parameter_are_named(records, tmp_path, capsys):
    assert call(tmp_path / 'none.npz') == 1
    assert 'none.npz' in capsys.readouterr().err
    assert call(records / 'now.npz', '--param', 'alpha=9') == 1
    assert 'alpha: 9 is outside' in capsys.readouterr().err


@pytest.mark.ros
def test_without_live_topics_it_says_what_is_missing(monkeypatch, capsys, tmp_path):
    observe = pytest.importorskip('specprune_ros.apps.observe', reason='needs ROS 2')
    monkeypatch.setattr(observe.from_topics, '__defaults__', ('', '', 0.2))
    monkeypatch.setenv('ROS_DOMAIN_ID', str(new_domain()))
    assert call('--live', '--instruction', 'lift the red cube', '--out', tmp_path / 'p.png') == 1
    assert "no observation of sim_arm in 0.2 s: camera 'agent': no image yet" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.real_time
def test_live_topics_are_explained(tmp_path):
    env = {**os.environ, 'ROS_DOMAIN_ID': str(new_domain())}
    arm = subprocess.Popen(
        [sys.executable, '-m', 'specprune_ros.nodes.start', 'sim_arm', '--ros-args'], env=env
    )
    numbers = tmp_path / 'numbers.json'
    words = ['--live', '--instruction', 'lift the red cube', '--json', str(numbers)]
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'specprune_ros.cli.main', 'explain', *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
    finally:
        arm.terminate()
        arm.wait(30)
    assert done.returncode == 0, done.stderr
    assert json.loads(numbers.read_text())['tokens_in'] == 512
