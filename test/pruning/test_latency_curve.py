"""Free tokens: what a measured latency_curve allows, and that a plan never keeps less for it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_strategies import changes, check_rows, layouts, parameters, quick
from small_models import OFT, query, similarity, small_decoder, small_input, small_layout

from specprune_ros.pruning.budget import free_count
from specprune_ros.pruning.interface import FREE, LatencyCurve, Mode
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.specprune import free_tokens, make_plan

# Tiles of 64 rows above a floor at 256, each measured at its last row and the next one's first.
TILES = LatencyCurve(
    rows=(128, 129, 192, 193, 256, 257, 320, 321, 384, 385, 605),
    ms=(4.00, 4.01, 4.02, 4.02, 4.05, 5.0, 5.03, 6.2, 6.25, 7.4, 12.0),
)


@pytest.mark.parametrize(
    ('rows', 'free'),
    [
        (100, 100),  # below everything measured nothing is claimed
        (128, 256),  # the floor: 4.05 is within 2 % of 4.00
        (200, 256),
        (256, 256),  # 257 costs a fourth more
        (257, 320),  # a tile begins: the rest of it is free
        (300, 320),
        (320, 320),
        (385, 385),  # of what lies between 385 and 605 nothing is known
        (500, 500),
        (605, 605),
        (640, 640),
    ],
)
def test_what_is_free_on_tiles_above_a_floor(rows, free):
    assert TILES.free(rows) == free


def test_a_slow_one_in_between_hides_nothing_and_a_slope_gives_nothing_away():
    # 192 is disturbed, or has a bad kernel: 256 costs what 128 does, and 192 more than 256.
    noisy = LatencyCurve((128, 192, 256, 320), (4.0, 4.6, 4.03, 5.0))
    assert [noisy.free(rows) for rows in (128, 150, 192, 256, 319)] == [256, 256, 256, 256, 319]
    # The last of a flat stretch disturbed: that one is not claimed.
    assert LatencyCurve((128, 192, 256), (4.0, 4.0, 4.3)).free(128) == 192
    slope = LatencyCurve((100, 200, 300, 400), (1.0, 2.0, 3.0, 4.0))
    assert all(slope.free(rows) == rows for rows in (50, 100, 150, 399, 400, 500))
    flat = LatencyCurve((100, 300, 605), (40.0, 40.1, 40.2))
    assert [flat.free(rows) for rows in (99, 100, 200, 605)] == [99, 605, 605, 605]
    one = LatencyCurve((300,), (5.0,))
    assert [one.free(rows) for rows in (299, 300, 301)] == [299, 300, 301]


def test_the_share_that_counts_as_nothing_is_named():
    for share, free in ((0.9 * FREE, 200), (1.1 * FREE, 100)):
        assert LatencyCurve((100, 200), (5.0, 5.0 * (1 + share))).free(100) == free


@pytest.mark.parametrize(
    ('rows', 'ms', 'why'),
    [
        ((), (), '0 times for 0'),
        ((1, 2), (1.0,), '1 times for 2'),
        ((2, 2), (1.0, 1.0), 'ascend'),
        ((0, 2), (1.0, 1.0), 'positive and ascend'),
        ((1, 2), (1.0, float('nan')), 'times must be positive'),
        ((1, 2), (1.0, 0.0), 'times must be positive'),
    ],
)
def test_what_is_no_staircase_is_refused(rows, ms, why):
    with pytest.raises(ValueError, match=why):
        LatencyCurve(rows, ms)


staircases = st.lists(
    st.tuples(st.integers(1, 300), st.floats(0.5, 2.0)), min_size=1, max_size=12
).map(lambda pairs: LatencyCurve(*zip(*sorted(dict(pairs).items()), strict=True)))


@given(stairs=staircases, rows=st.integers(1, 320))
def test_free_rows_are_measured_no_fewer_and_no_dearer(stairs, rows):
    free = stairs.free(rows)
    assert free >= rows
    assert stairs.free(rows + 1) >= free
    if free > rows:
        cost = dict(zip(stairs.rows, stairs.ms, strict=True))
        # Whatever ``rows`` cost, it is no less than the cheapest of those from the one below on.
        below = max(r for r in stairs.rows if r <= rows)
        cheapest = min(ms for r, ms in cost.items() if r >= below)
        assert cost[free] <= (1 + FREE) * cheapest


def test_a_plan_takes_what_is_free_layer_by_layer():
    layout = replace(OFT, latency_curve=TILES)  # 93 rows besides the images
    params = PruningParams().replace(alpha=0.8)
    plain = make_plan(OFT, params, Mode.COARSE)
    plan = make_plan(layout, params, Mode.COARSE)
    assert plain.counts == plain.planned == {2: 224, 5: 202, 10: 182, 15: 164, 20: 148}
    # 317, 295 and 275 rows lie in the tile that ends with 320, 257 begins it; 241 on the floor.
    assert plan.counts == {2: 227, 5: 227, 10: 227, 15: 227, 20: 163}
    assert plan.schedule.prune == plan.counts and plan.planned == plain.planned
    assert free_tokens(layout, params, Mode.COARSE) == {2: 3, 5: 25, 10: 45, 15: 63, 20: 15}
    # With an instruction of ten rows more the same tokens are more rows, and the edges lie
    # elsewhere.
    longer = replace(layout, length=615, prompt=tuple(range(514, 558)), action=(557, 613))
    more = {2: 281, 5: 217, 10: 217, 15: 217, 20: 153}
    assert make_plan(longer, params, Mode.COARSE).counts == more


def test_the_random_control_follows_and_others_do_not():
    layout = replace(OFT, latency_curve=TILES)
    wanted = make_plan(layout, PruningParams(), Mode.FINE).counts
    like = PruningParams().replace(pruner='random', random_like='specprune')
    assert pruner('random').plan(layout, like, Mode.FINE).prune == wanted
    assert free_tokens(layout, like, Mode.FINE) is not None
    alone = like.replace(random_like='share')
    assert free_tokens(layout, alone, Mode.FINE) is None
    for name in ('fastv', 'efficientvla', 'adp'):
        other = PruningParams().replace(pruner=name)
        assert pruner(name).plan(layout, other, Mode.COARSE).prune == (
            pruner(name).plan(OFT, other, Mode.COARSE).prune
        )


def test_nothing_changes_where_nothing_is_measured_or_wanted():
    layout = replace(OFT, latency_curve=TILES)
    for params in (
        PruningParams().replace(free_tokens=False),
        PruningParams.preset_of('paper'),  # as many as the paper keeps
        PruningParams.preset_of('authors'),  # and the bare union
        PruningParams().replace(exact=True),
    ):
        for mode in (Mode.COARSE, Mode.FINE, Mode.DENSE):
            with_it, without = make_plan(layout, params, mode), make_plan(OFT, params, mode)
            assert with_it.schedule == without.schedule
            assert free_tokens(layout, params, mode) is None
    assert free_tokens(OFT, PruningParams(), Mode.COARSE) is None
    assert free_tokens(layout, PruningParams(), Mode.DENSE) is None


@quick
@given(layout=layouts, change=changes, stairs=staircases)
def test_a_plan_never_keeps_less_for_it(layout, change, stairs):
    params = parameters(change, exact=False).replace(free_tokens=True)
    with_it = replace(layout, latency_curve=stairs)
    for mode in (Mode.COARSE, Mode.FINE):
        plan, plain = make_plan(with_it, params, mode), make_plan(layout, params, mode)
        counts = list(plan.counts.values())
        assert plan.planned == plain.counts and list(plan.counts) == list(plain.counts)
        for layer, count in plain.counts.items():
            assert count <= plan.counts[layer] <= layout.vision_tokens
            assert plan.counts[layer] == free_count(count, with_it, params)
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize('free', [True, False])
def test_a_pass_keeps_what_its_plan_says(free):
    layout = small_layout(2, 8, depth=8)  # 128 vision tokens of 143 rows
    stairs = LatencyCurve((40, 80, 81, 110, 143), (2.0, 2.0, 3.0, 3.0, 4.0))
    layout = replace(layout, latency_curve=stairs)
    params = PruningParams().replace(free_tokens=free, bucket=1)
    decoder = small_decoder(0)
    carry, hidden = {}, small_input(0, layout)
    for mode in (Mode.DENSE, Mode.COARSE, Mode.COARSE):
        cosine = similarity(0, layout)
        outcome, output, running = query(
            decoder, hidden, layout, params, mode, carry, similarity=cosine
        )
        carry = outcome.carry
    check_rows(layout, outcome, output, running)
    left = {boundary: len(ids) for boundary, ids in outcome.kept}
    assert left == make_plan(layout, params, Mode.COARSE).counts
    others = layout.length - layout.vision_tokens
    assert (left[min(left)] + others == 80) == free
