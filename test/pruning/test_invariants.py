"""What must hold for every pruner, model and parameter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_strategies import changes, check_rows, layouts, parameters, quick
from small_models import KVCache, query, similarity, small_decoder, small_input, small_layout

from specprune_ros.pruning.budget import after_drop, budgets, scale_layers
from specprune_ros.pruning.interface import Mode, PruneSchedule, Selection
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import names

RIVALS = [name for name in names() if name not in ('dense', 'specprune')]


def run(layout, params, seed, mode=Mode.COARSE, queries=2, **more):
    """Some queries in a row; the last outcome, decoder output and pass."""
    decoder = small_decoder(seed, depth=layout.depth, causal=layout.causal, dtype=torch.float32)
    cache = KVCache(layout.depth) if params.pruner == 'vla_cache' else None
    carry = {}
    for number in range(queries):
        hidden = small_input(10 * seed + number, layout, dtype=torch.float32)
        outcome, output, running = query(
            decoder,
            hidden,
            layout,
            params,
            Mode.DENSE if number == 0 else mode,
            carry,
            cache,
            similarity=similarity(seed + number, layout),
            displacement=0.01 * (number + 1),
            speed_xyz=0.1,
            **more,
        )
        carry = outcome.carry
    return outcome, output, running


def images(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = layout.grid
    shape = (layout.cameras, rows * 4, columns * 4, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@quick
@given(layout=layouts, change=changes, exact=st.booleans(), seed=st.integers(0, 10**6))
def test_specprune_drops_vision_rows_only_and_meets_its_budgets(layout, change, exact, seed):
    params = parameters(change, exact)
    for mode in (Mode.COARSE, Mode.FINE):
        outcome, output, running = run(layout, params, seed, mode)
        check_rows(layout, outcome, output, running)
        if params.exact:
            continue
        allowed = budgets(layout, params, mode)
        left = dict(running.schedule.prune)
        static = scale_layers(params.layers_local, layout.depth)[-1]
        assert left[static] <= allowed.filled
        current = left[static]
        for boundary in (b for b in sorted(left) if b > static):
            assert left[boundary] == after_drop(current, layout, params)
            current = left[boundary]


@quick
@given(layout=layouts, change=changes, exact=st.booleans(), seed=st.integers(0, 10**6))
def test_the_union_never_loses_a_member(layout, change, exact, seed):
    params = parameters(change, exact)
    outcome, _, running = run(layout, params, seed)
    static = scale_layers(params.layers_local, layout.depth)[-1]
    kept = dict(outcome.kept)[static].tolist()
    union = torch.stack(list(outcome.sets.values())).any(0).nonzero().squeeze(1).tolist()
    if params.prefilter:  # the first prune may drop what the second layer would request
        present = set(outcome.kept[0][1].tolist())
        union = [token for token in union if token in present]
    assert set(union) <= set(kept)
    if running.schedule.static and not params.prefilter:
        assert len(kept) >= len(union)


@quick
@given(layout=layouts, change=changes, seed=st.integers(0, 10**6))
def test_fine_keeps_at_least_as_many_as_coarse(layout, change, seed):
    params = parameters({**change, 'preset': 'default'}, False)
    if params.fine_factor < 1:
        return
    coarse = run(layout, params, seed, Mode.COARSE)[2].schedule.prune
    fine = run(layout, params, seed, Mode.FINE)[2].schedule.prune
    assert coarse.keys() == fine.keys()
    assert all(fine[boundary] >= coarse[boundary] for boundary in coarse)


@pytest.mark.parametrize('name', RIVALS)
@settings(max_examples=8, deadline=None, database=None)
@given(layout=layouts, seed=st.integers(0, 10**6))
def test_rivals_drop_vision_rows_only_and_meet_their_sizes(name, layout, seed):
    params = PruningParams.from_mapping({'pruner': name})
    outcome, output, running = run(layout, params, seed, queries=5, images=images(layout, seed))
    assert running.schedule.prune, 'the fifth query prunes'
    if name == 'vla_cache':  # rows stay, through the cache
        assert all(left is None for left in running.schedule.prune.values())
        return
    check_rows(layout, outcome, output, running)


class Keep:
    """Keeps every row at every boundary it is given."""

    def __init__(self, depth):
        self.schedule = PruneSchedule(prune=dict.fromkeys(range(depth)))

    def observe(self, layer, group, attention):
        raise AssertionError('nothing was to be received')

    def select(self, boundary, rows):
        keep = Selection(torch.arange(rows.shape[0]))
        assert keep.merge is None and keep.keep.tolist() == list(range(rows.shape[0]))
        return keep


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_keep_all_is_dense_bit_for_bit(causal, dtype):
    layout = small_layout(2, 8, depth=8, causal=causal)
    decoder = small_decoder(3, depth=8, causal=causal, dtype=dtype)
    hidden = small_input(3, layout, dtype=dtype)
    with torch.inference_mode():
        dense = decoder(hidden, layout).hidden
        assert torch.equal(decoder(hidden, layout, Keep(8)).hidden, dense)
    everything = {
        'k_global': 0,
        'k_dynamic': 0,
        'k_local': 256,
        'alpha': 1.0,
        'fine_factor': 1.0,
        'drop_ratio': 0.0,
    }
    for params in (
        PruningParams.from_mapping({**everything, 'camera_factor': [1.0]}),
        PruningParams.from_mapping({'cameras_kept': [0, 1]}),
        PruningParams.from_mapping({'pruner': 'dense'}),
        PruningParams.from_mapping({'pruner': 'random', 'random_keep': 1.0}),
        PruningParams.from_mapping({'pruner': 'fastv', 'fastv_ratio': 0.0}),
        PruningParams.from_mapping({'pruner': 'vla_pruner', 'vla_pruner_keep': 1.0}),
    ):
        outcome, output, _ = query(decoder, hidden, layout, params, Mode.COARSE)
        assert torch.equal(output.hidden, dense), params.pruner
        assert all(len(ids) == layout.vision_tokens for _, ids in outcome.kept)


@pytest.mark.parametrize('name', names())
def test_dense_mode_listens_but_prunes_nothing(name):
    layout = small_layout(2, 8, depth=8)
    decoder = small_decoder(4, depth=8)
    hidden = small_input(4, layout)
    params = PruningParams.from_mapping({'pruner': name})
    outcome, output, running = query(decoder, hidden, layout, params, Mode.DENSE)
    assert not running.schedule.prune and not running.schedule.skip and not outcome.kept
    with torch.inference_mode():
        assert torch.equal(output.hidden, decoder(hidden, layout).hidden)
    if name == 'specprune':
        assert outcome.carry['prior'].shape == (2, layout.vision_tokens)
        assert (outcome.carry['prior'] > 0).all()


def test_pruners_hold_no_state_between_queries():
    layout = small_layout(2, 8, depth=8, words=3)
    for name in names():
        params = PruningParams.from_mapping({'pruner': name})
        more = {'images': images(layout)}
        first = run(layout, params, 5, queries=4, **more)[1]
        run(layout, params, 6, queries=3, **more)
        again = run(layout, params, 5, queries=4, **more)[1]
        assert torch.equal(first.hidden, again.hidden), name


def test_an_empty_instruction_falls_back_to_action_rows_and_says_so():
    layout = small_layout(2, 8, depth=8, words=0)
    for name in ('specprune', 'sparsevlm', 'adp'):
        outcome = run(layout, PruningParams.from_mapping({'pruner': name}), 1, queries=5)[0]
        assert any('the action rows stand in' in note for note in outcome.notes), name
    words = small_layout(2, 8, depth=8, words=2)
    assert run(words, PruningParams(), 1)[0].notes == []


def test_a_prior_of_another_shape_is_left_out_and_said_so():
    layout = small_layout(2, 8, depth=8)
    decoder, hidden = small_decoder(1, depth=8), small_input(1, layout)
    carry = {'prior': torch.rand(2, 64)}
    outcome, _, _ = query(decoder, hidden, layout, PruningParams(), Mode.COARSE, carry)
    assert any('remembered prior' in note for note in outcome.notes)
    assert 'global' not in outcome.sets


def test_a_token_once_dropped_can_return_to_v_global():
    """The snowball: with zero fill a dropped token never returns, with memory it can."""
    layout = small_layout(1, 8, depth=8)
    decoder = small_decoder(2, depth=8)
    dropped = {}
    for fill in ('zero', 'memory'):
        params = PruningParams.from_mapping({'prior_fill': fill, 'bucket': 1, 'alpha': 0.2})
        carry = query(decoder, small_input(0, layout), layout, params, Mode.DENSE)[0].carry
        for number in range(3):
            # The images change, so what matters changes too.
            hidden = small_input(number, layout)
            outcome = query(decoder, hidden, layout, params, Mode.COARSE, carry)[0]
            carry = outcome.carry
        dropped[fill] = int((carry['prior'] == 0).all(0).sum())
    assert dropped['zero'] > 0
    assert dropped['memory'] == 0
