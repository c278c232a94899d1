"""Parameters: one table, checked on the way in."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from specprune_ros.pruning import registry
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import (
    PRESETS,
    ParamError,
    PruningParams,
    specs,
)

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


def test_every_parameter_says_what_it_is():
    for spec in specs():
        assert spec.type in ('bool', 'int', 'float', 'str', 'int[]', 'float[]'), spec.name
        assert spec.description.endswith('.'), spec.name
        assert spec.source, spec.name
        assert (spec.type == 'str') == bool(spec.choices), spec.name
        if spec.type.rstrip('[]') in ('int', 'float'):
            assert spec.low is not None and spec.low < spec.high, spec.name


def test_defaults_lie_in_their_own_ranges():
    for name in PRESETS:
        params = PruningParams.preset_of(name)
        assert PruningParams.from_mapping(params.as_dict()) == params


def test_default_preset_is_the_constructor():
    assert PruningParams() == PruningParams.preset_of('default') == PruningParams.from_mapping({})


def test_registry_and_choices_agree():
    assert registry.names()[:2] == ('specprune', 'dense')
    choices = {spec.name: spec.choices for spec in specs()}
    assert choices['pruner'] == registry.names()
    for name in registry.names():
        assert registry.pruner(name).name == name
    with pytest.raises(ParamError, match='fastest'):
        registry.pruner('fastest')


@pytest.mark.parametrize(
    ('name', 'value', 'why'),
    [
        ('alhpa', 0.5, 'did you mean alpha'),
        ('alpha', '0.8', 'must be float'),
        ('alpha', True, 'must be float'),
        ('alpha', 3.0, 'outside 0.05 to 2'),
        ('alpha', math.nan, 'must be finite'),
        ('alpha', math.inf, 'must be finite'),
        ('k_local', 24.5, 'must be int'),
        ('k_local', -1, 'outside 0 to 256'),
        ('exact', 1, 'must be bool'),
        ('mode', 'fast', 'none of auto, dense, coarse, fine'),
        ('pruner', 'fastest', 'none of specprune'),
        ('preset', 'ours', 'none of default, paper, authors'),
        ('tau', 0.98, 'must be a list'),
        ('tau', 'ab', 'must be a list'),
        ('tau', [0.98, 2.0], 'outside -1 to 1'),
        ('tau', [], 'at least one camera'),
        ('prune_layers', [5, 10.5], 'must be int'),
        ('prune_layers', [5, 40], 'outside 1 to 32'),
        ('prune_layers', [10, 5], 'must ascend'),
        ('layers_local', [], 'at least one layer'),
    ],
)
def test_a_bad_value_is_refused_by_name(name, value, why):
    with pytest.raises(ParamError, match=why) as caught:
        PruningParams.from_mapping({name: value})
    assert caught.value.name == name


@pytest.mark.parametrize(
    ('changes', 'name', 'why'),
    [
        # 200 x 0.7 x 40/24 = 233 fits, 230 x 0.7 x 40/24 = 268 does not.
        ({'k_local': 230}, 'k_local', 'a camera has 256'),
        ({'k_global': 100, 'alpha': 2.0}, 'k_global', 'a camera has 256'),
        ({'k_dynamic': 100, 'camera_factor_dynamic': [1.0, 3.0]}, 'k_dynamic', '350 tokens'),
        ({'prune_layers': [2, 10]}, 'prune_layers', 'not after the static prune at layer 2'),
        ({'update_layers': [14, 19]}, 'prune_layers', 'before the first score'),
        ({'update_layers': []}, 'prune_layers', 'before the first score'),
        ({'fine_factor': 0.5}, 'fine_factor', 'fewer tokens in fine mode'),
        ({'v_t_threshold': 0.2, 'v_t_exit': 0.1}, 'v_t_exit', 'below v_t_threshold'),
        ({'v_t_exit': -0.1}, 'v_t_exit', 'below v_t_threshold'),
        ({'dz_threshold': -0.5}, 'dz_exit', 'below dz_threshold'),
        ({'history_min': 8}, 'history_min', 'above history_max'),
        ({'dynamic_rule': 'complement'}, 'dynamic_rule', 'needs exact'),
        ({'prefilter': True, 'layers_local': [2]}, 'prefilter', 'needs two layers'),
        ({'layers_local': [1, 32], 'prune_layers': []}, 'layers_local', 'nothing is left'),
    ],
)
def test_contradictions_are_refused_together(changes, name, why):
    with pytest.raises(ParamError, match=why) as caught:
        PruningParams.from_mapping(changes)
    assert caught.value.name == name


def test_what_contradicts_alone_may_fit_together():
    PruningParams.from_mapping({'k_local': 230, 'alpha': 0.5, 'fine_factor': 2.0})
    PruningParams.from_mapping({'fine_factor': 0.5, 'fine_may_shrink': True})
    PruningParams.from_mapping({'update_layers': [14], 'prune_unscored': True})


def test_a_refused_change_leaves_the_old_values():
    before = PruningParams.from_mapping({'alpha': 0.6})
    with pytest.raises(ParamError):
        before.replace(alpha=0.7, k_local=999)
    assert before.alpha == 0.6


def test_numpy_numbers_and_arrays_are_numbers_and_lists():
    params = PruningParams.from_mapping(
        {'alpha': np.float32(0.5), 'k_local': np.int64(10), 'tau': np.array([0.9, 0.8])}
    )
    assert (params.alpha, params.k_local, params.tau) == (0.5, 10, (0.9, 0.8))
    assert type(params.k_local) is int


def test_an_int_is_a_float_but_not_the_other_way_round():
    assert PruningParams.from_mapping({'alpha': 1}).alpha == 1.0


def test_a_new_preset_resets_the_rest():
    params = PruningParams.from_mapping({'alpha': 0.3})
    paper = params.replace(preset='paper')
    assert paper == PruningParams.preset_of('paper')
    assert params.replace(preset='paper', alpha=0.6).alpha == 0.6
    # Naming the preset in force changes nothing.
    assert params.replace(preset='default').alpha == 0.3


def test_cameras_kept_must_exist():
    params = PruningParams.from_mapping({'cameras_kept': [2]})
    with pytest.raises(ParamError, match='camera 2 does not exist'):
        registry.check_params(params, OFT)
    registry.check_params(PruningParams.from_mapping({'cameras_kept': [1]}), OFT)


def test_a_model_too_shallow_for_the_static_prune_is_refused():
    params = PruningParams.from_mapping({'layers_local': [1, 20], 'prune_layers': []})
    with pytest.raises(ParamError, match='layers_local.*layer 20 of 32.*only 2 layers'):
        registry.check_params(
            params, TokenLayout(1, (4, 4), 1, (18,), (17, 18, 19), (20, 24), 25, depth=2)
        )


def test_the_documents_know_every_pruner_and_which_ones_have_known_sizes():
    text = (Path(__file__).resolve().parents[2] / 'docs' / 'reference' / 'pruners.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \|.*$', text, re.MULTILINE)
    assert [name for name in registry.names() if name != 'specprune'] == [
        r for r in rows if r in registry.names()
    ]
    for name in rows:
        if name not in registry.names():
            continue
        row = re.search(rf'^\| `{name}` \|(.*)\|$', text, re.MULTILINE).group(1)
        said = row.split('|')[2].strip()
        params = PruningParams.from_mapping({'pruner': name})
        static = registry.pruner(name).plan(OFT, params, Mode.COARSE).static
        assert said.startswith('yes') == static, name
