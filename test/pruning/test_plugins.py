"""Pruning methods from outside the package: registered, checked, run by name."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import query, small_decoder, small_input, small_layout

from specprune_ros.policy.build import build_policy
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning import registry
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import METHODS, ParamError, PruningParams, param, share, specs
from specprune_ros.pruning.rivals.fastv import FastV

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / 'docs' / 'examples' / 'brightest.py'


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, '_PRUNERS', dict(registry._PRUNERS))
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_a_file_gives_a_method_with_its_own_parameters(clean_registry):
    assert registry.load_plugin(EXAMPLE) == ('brightest',)
    assert 'brightest' in {s.name: s for s in specs()}['pruner'].choices
    params = PruningParams().replace(pruner='brightest', brightest_keep=0.25)
    assert params.brightest_keep == 0.25 and PruningParams().brightest_keep == 0.5
    assert params == PruningParams.from_mapping(params.as_dict())
    with pytest.raises(ParamError, match='brightest_keep'):
        params.replace(brightest_keep=2.0)
    layout = small_layout(depth=5)
    pixels = torch.zeros(layout.cameras, *(4 * n for n in layout.grid), 3, dtype=torch.uint8)
    pixels[0] = 200  # every patch of the first camera is brighter
    outcome, output, _ = query(
        small_decoder(0, depth=5), small_input(0, layout), layout, params, Mode.COARSE,
        images=pixels,
    )  # fmt: skip
    count = round(0.25 * layout.vision_tokens)
    assert len(output.vision_ids) == count
    assert (output.vision_ids < layout.patches).all()
    assert 'brightness' in outcome.scores


def test_a_methods_own_parameter_may_be_read_on_the_host_alone(clean_registry):
    @dataclass(frozen=True)
    class PickyParams:
        picky_keep: float = share(0.5, 'Share that stays.', 'ours')
        picky_wait: int = param(0, 'Read beside the pass.', 'ours', low=0, high=9, host_only=True)

    @registry.register_pruner
    class Picky(FastV):
        name = 'picky'
        parameters = PickyParams

    params = PruningParams().replace(pruner='picky', picky_keep=0.25, picky_wait=3)
    policy = build_policy(preset='tiny', device='cpu', params=params)
    pixels = np.zeros((64, 64, 3), np.uint8)
    images = {camera: CameraImage(pixels, 0) for camera in policy.config.cameras}
    result = policy.act(Observation(images, 'lift the red cube', np.zeros(8)), details=True)
    assert policy.params.picky_wait == 3
    # No graph depends on it.
    seen = result.details.key.params
    assert (seen.picky_keep, seen.picky_wait) == (0.25, 0)


@pytest.mark.parametrize('name', [n for n in registry.names() if n not in ('dense', 'random')])
def test_random_drops_as_many_after_the_same_layers_as_any_method(name):
    layout = small_layout(depth=8, cameras=2)
    params = PruningParams().replace(pruner=name)
    theirs = registry.pruner(name).plan(layout, params, Mode.COARSE)
    control = registry.pruner('random').plan(
        layout, params.replace(pruner='random', random_like=name), Mode.COARSE
    )
    assert control.prune == theirs.prune


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1', 'registers no method'),
        ('1 / 0', 'ZeroDivisionError'),
        (
            'from specprune_ros import register_pruner\n@register_pruner\nclass A: name = "a"',
            'no plan',
        ),
        ('def', 'SyntaxError'),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_method_is_refused_by_name(tmp_path, clean_registry, text, message):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    with pytest.raises(registry.PluginError, match=message) as caught:
        registry.load_plugin(file)
    assert str(file) in str(caught.value) or 'is no pruner' in str(caught.value)
    with pytest.raises(registry.PluginError, match='no such file'):
        registry.load_plugin(tmp_path / 'absent.py')


def specprune(*words):
    return subprocess.run(
        [sys.executable, str(ROOT / 'scripts' / 'specprune'), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=110,
        env={k: v for k, v in os.environ.items() if k != 'SPECPRUNE_PLUGINS'},
    )


def test_the_command_takes_a_plugin(tmp_path):
    out = tmp_path / 'rows.json'
    done = specprune(
        'bench', '--plugin', EXAMPLE, '--pruner', 'brightest', '--model', 'tiny', '--repeats', 1,
        '--no-stock', '--device', 'cpu', '--json', out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row['pruner']: row for row in json.loads(out.read_text())}
    assert rows['brightest']['flops_ratio'] < rows['dense']['flops_ratio'] == 1.0
    # In a process of its own: plugins are read once.
    done = specprune('bench', '--plugin', tmp_path / 'absent.py')
    assert done.returncode == 1
    said = done.stderr.strip()
    assert said.startswith('specprune bench: plugin ') and 'no such file' in said
