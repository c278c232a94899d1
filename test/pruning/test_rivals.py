"""Each rival against a small case worked out by hand."""

import math

import pytest
import torch
from small_models import small_layout

from specprune_ros.pruning.interface import Mode, QueryContext, RowGroup
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.rivals.adp import ADP, gate
from specprune_ros.pruning.rivals.base import at_boundary, keep_count
from specprune_ros.pruning.rivals.divprune import cosine_distances, max_min
from specprune_ros.pruning.rivals.efficientvla import (
    layer_importance,
    mixed_choice,
    skipped_layers,
)
from specprune_ros.pruning.rivals.sp_vla import RidgeScheduler, canny, edge_share, threshold
from specprune_ros.pruning.rivals.sparsevlm import SparseVLM, cluster, raters
from specprune_ros.pruning.rivals.team_vla import bipartite_merge, expanded, matched
from specprune_ros.pruning.rivals.vla_cache import proportions
from specprune_ros.pruning.rivals.vla_pruner import smoothed

TINY = small_layout(1, 2, depth=32, words=1, actions=2)  # four patches
PAIR = small_layout(2, 2, depth=32, words=1, actions=2)  # two cameras of four patches


def params(name, **changes):
    return PruningParams.from_mapping({'pruner': name, **changes})


def begin(name, layout=TINY, mode=Mode.COARSE, carry=None, changes=None, **more):
    return pruner(name).begin(
        QueryContext(layout, params(name, **(changes or {})), mode, carry=carry or {}, **more)
    )


def test_counts_and_boundaries():
    assert keep_count(0.5, 5) == 3  # rounded up
    assert keep_count(0.0, 5) == 1
    assert at_boundary(2, small_layout(depth=16), 'x') == 1
    assert at_boundary(0, small_layout(depth=16), 'x') == 0
    with pytest.raises(ParamError, match='the last of the 4'):
        at_boundary(31, small_layout(depth=4), 'x')


def test_random_keeps_the_share_and_follows_the_seed():
    def kept(seed):
        running = begin('random', changes={'random_keep': 0.5}, seed=seed)
        return running.select(2, torch.zeros(4, 3)).keep.tolist()

    assert all(len(kept(seed)) == 2 and kept(seed) == kept(seed) for seed in range(9))
    assert len({tuple(kept(seed)) for seed in range(30)}) == 6  # all pairs of four


def test_random_like_specprune_drops_as_many_where_specprune_does():
    layout = small_layout(depth=8)
    theirs = pruner('specprune').plan(layout, params('specprune'), Mode.COARSE).prune
    running = begin('random', layout, changes={'random_like': 'specprune'}, seed=3)
    assert running.schedule.prune == theirs
    assert not running.schedule.observed_layers
    left, kept = layout.vision_tokens, {}
    for boundary, count in theirs.items():
        kept[boundary] = running.select(boundary, torch.zeros(left, 3)).keep.tolist()
        left = count
        assert len(kept[boundary]) == count
    with pytest.raises(ParamError, match='without exact'):
        begin('random', layout, changes={'random_like': 'specprune', 'exact': True})


def test_fastv_keeps_the_most_attended():
    running = begin('fastv')
    assert running.schedule.observed_layers == {2: (RowGroup.ALL,)}
    assert running.schedule.prune == {2: 2}
    # Means over two rows: 0.2, 0.3, 0.1, 0.3: patches 1 and 3.
    rows = torch.tensor([[0.1, 0.5, 0.2, 0.0], [0.3, 0.1, 0.0, 0.6]])
    running.observe(2, RowGroup.ALL, rows)
    assert running.select(2, torch.zeros(4, 3)).keep.tolist() == [1, 3]


def test_fastv_can_follow_its_code_instead_of_its_paper():
    assert begin('fastv', changes={'fastv_rows': 'last'}).schedule.observed_layers == {
        2: (RowGroup.LAST,)
    }


def test_max_min_diversity():
    # Angles 0, 10, 90, 180, 200 degrees. Nearest neighbours are at 10, 10, 80, 20, 20 degrees:
    # 90 comes first, then the farthest from it (200 at 110), then 0 (90 away, 180 only 20).
    degrees = torch.tensor([0.0, 10.0, 90.0, 180.0, 200.0]).deg2rad()
    points = torch.stack([degrees.cos(), degrees.sin()], -1)
    distances = cosine_distances(points)
    assert distances[0, 2].item() == pytest.approx(1.0)
    assert max_min(distances, 3).tolist() == [2, 4, 0]
    # Only 0, 1 and 3 allowed: nearest neighbours at 10, 10 and 170; then 0 (180 from 180).
    allowed = torch.tensor([True, True, False, True, False])
    assert max_min(distances, 2, allowed).tolist() == [3, 0]
    assert sorted(max_min(distances, 3, allowed).tolist()) == [0, 1, 3]


def test_max_min_never_takes_a_token_twice():
    same = cosine_distances(torch.ones(5, 3))
    assert sorted(max_min(same, 5).tolist()) == [0, 1, 2, 3, 4]


def test_divprune_keeps_the_diverse_before_layer_one():
    running = begin('divprune', changes={'divprune_keep': 0.5})
    assert running.schedule.prune == {0: 2} and not running.schedule.observed_layers
    # 0, 5, 90 and 185 degrees: nearest neighbours at 5, 5, 85, 95. The last comes first, then 5,
    # which lies opposite.
    degrees = torch.tensor([0.0, 5.0, 90.0, 185.0]).deg2rad()
    rows = torch.stack([degrees.cos(), degrees.sin()], -1)
    assert running.select(0, rows).keep.tolist() == [1, 3]


def test_sparsevlm_raters_are_the_words_above_the_mean():
    # Softmax of (2, 0) over two words for both patches: 0.88 and 0.12; the mean is 0.5.
    vision = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    words = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    assert raters(vision, words).tolist() == [True, False]


def test_sparsevlm_clusters_by_density_peaks():
    # 0, 0.1, 0.2 and 10, 10.2 on a line: the densest points are 0.1 and 10 (the earlier of two).
    points = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.2]])
    weights, centres = cluster(points, 2)
    assert centres.tolist() in ([1, 3], [0, 3])
    torch.testing.assert_close(weights @ points, torch.tensor([[0.1], [10.1]]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


def test_sparsevlm_sizes_and_recycling():
    layout = small_layout(1, 24, depth=32)  # 576 tokens, as in the paper
    stages = SparseVLM().stages(layout, params('sparsevlm'))
    # 300 kept; 0.3 x 276 = 82.8 recycled into ceil(8.2) = 9. Then 200 of 309: 32 into 4. Then 110
    # of 204: 28 into 3.
    assert stages == [(2, 300, 82, 9), (6, 200, 32, 4), (15, 110, 28, 3)]
    assert pruner('sparsevlm').plan(layout, params('sparsevlm'), Mode.COARSE).prune == {
        2: 309,
        6: 204,
        15: 113,
    }


def test_sparsevlm_selects_and_merges():
    layout = small_layout(1, 4, depth=32)
    changes = {
        'sparsevlm_layers': [2],
        'sparsevlm_keep': [144],  # 4 of 16
        'sparsevlm_recycle': 0.5,  # 6 of the 12 dropped
        'sparsevlm_merge': 0.2,  # into ceil(1.2) = 2
    }
    running = begin('sparsevlm', layout, changes=changes)
    assert running.schedule.prune == {2: 6}
    # Patches 15, 14, 13, 12 are best, 11 to 6 are recycled, the rest is gone.
    running.observe(2, RowGroup.PROMPT, torch.arange(16.0)[None] / 100)
    rows = torch.zeros(16, 2)
    rows[6:9, 0] = torch.tensor([1.0, 1.1, 1.2])
    rows[9:12, 1] = torch.tensor([5.0, 5.1, 5.2])
    choice = running.select(2, rows)
    assert choice.keep.tolist() == [12, 13, 14, 15]
    merged = choice.merge @ rows
    torch.testing.assert_close(merged, torch.tensor([[1.1, 0.0], [0.0, 5.1]]))
    assert choice.merge_position.tolist()[0] in (6, 7, 8)
    assert choice.merge_position.tolist()[1] in (9, 10, 11)
    assert running.finish().kept[0][1].tolist() == [12, 13, 14, 15, -1, -1]


def test_vla_cache_proportions():
    # 1 - entropy scaled over layers: 0, 1, 0.5, 1. A rise counts 0.55: 0, 0.55, 0.5 (a fall, in
    # full), 0.5 + 0.55 x 0.5 = 0.775.
    shares = proportions(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.55)
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.55, 0.5, 0.775]))


def test_vla_cache_stops_computing_still_patches_that_do_not_matter():
    changes = {
        'vla_cache_layers': [2, 6],
        'vla_cache_static': 192,  # 3 of 4
        'vla_cache_relevant': 64,  # 1 of 4
    }
    carry = {
        'attention': torch.tensor([0.1, 0.9, 0.2, 0.3]),
        'proportion': torch.full((32,), 0.5),
    }
    carry['proportion'][6] = 1.0
    cosine = torch.tensor([1.0, 1.0, 0.998, 0.999])
    running = begin('vla_cache', changes=changes, carry=carry, similarity=cosine)
    assert running.schedule.reuse
    # Static: the three most alike, 0, 1, 3; relevant: 1; so 0 and 3 are reusable. Half of two: 0.
    assert running.select(2, torch.zeros(4, 3)).keep.tolist() == [1, 2, 3]
    # All of two at the next boundary: 3 goes too (row 2 of the three left).
    assert running.select(6, torch.zeros(3, 3)).keep.tolist() == [0, 1]
    assert running.outcome.kept[-1][1].tolist() == [1, 2]


@pytest.mark.parametrize('name', ['vla_cache', 'sp_vla'])
def test_random_drops_as_many_where_the_method_decides_by_the_data(name):
    """The counts of both boundaries; only who stays is chance."""
    carry = {'attention': torch.tensor([0.1, 0.9, 0.2, 0.3]), 'proportion': torch.full((32,), 0.5)}
    carry['proportion'][6] = 1.0
    cosine = torch.tensor([1.0, 1.0, 0.998, 0.999])
    changes = {'vla_cache_layers': [2, 6], 'vla_cache_static': 192, 'vla_cache_relevant': 64}

    def counts_and_kept(seed, method, **like):
        running = begin(method, changes={**changes, **like}, carry=dict(carry), seed=seed,
                        similarity=cosine)  # fmt: skip
        rows, counts = torch.zeros(4, 3), []
        for layer in (2, 6) if name == 'vla_cache' else (2,):
            if name == 'sp_vla':
                running.observe(2, RowGroup.TEXT, torch.tensor([[0.5, 0.02, 0.3, 0.4]]))
            rows = rows[running.select(layer, rows).keep]
            counts.append(len(rows))
        return counts, tuple(running.outcome.kept[-1][1].tolist())

    theirs = counts_and_kept(0, name)[0]
    assert theirs == ([3, 2] if name == 'vla_cache' else [3])
    made = [counts_and_kept(seed, 'random', random_like=name) for seed in range(12)]
    assert all(counts == theirs for counts, _ in made) and len({kept for _, kept in made}) > 2


def test_random_keeps_as_many_as_team_vla_leaves_merged():
    layout = small_layout(2, 4, depth=32)  # 32 patches, merged into 5
    changes = {'team_vla_sample': 1, 'random_like': 'team_vla'}
    running = begin('random', layout, changes=changes, seed=3)
    rows = torch.arange(96.0).view(32, 3)
    rows = rows[running.select(0, rows).keep]
    assert len(rows) == 32
    running.observe(16, RowGroup.ACTION, torch.rand(2, 32))
    chosen = running.select(16, rows)
    assert (len(chosen.keep), chosen.merge) == (5, None)


def test_vla_cache_is_dense_without_a_past():
    running = begin('vla_cache', similarity=torch.ones(4))
    assert not running.schedule.prune and 'no previous query' in running.outcome.dense_because
    carry = {'attention': torch.ones(4), 'proportion': torch.ones(32)}
    running = begin('vla_cache', carry=carry)
    assert not running.schedule.prune and 'no previous image' in running.outcome.dense_because


def test_efficientvla_layer_importance():
    # Cosines 1 and 0.6: 1 - 0.8.
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    assert layer_importance(before, after).item() == pytest.approx(0.2)


def test_efficientvla_mixed_choice():
    # One key token (0). Of three places left half, rounded down, go by score: token 1. The other
    # two go to the least like token 0: token 4 (opposite), then 3 (square), not 2 (alike).
    score = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1])
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    mask = mixed_choice(score, rows, total=4, key=1, task=0.5)
    assert mask.tolist() == [True, True, False, True, True]


def test_efficientvla_skips_the_same_share_of_a_shallow_model():
    assert skipped_layers((4, 5, 6, 7), 32) == {4, 5, 6, 7}
    assert skipped_layers((4, 5, 6, 7), 16) == {3, 4}
    assert skipped_layers((4, 5, 6, 7), 8) == {2}
    assert skipped_layers((4, 5, 6, 7), 4) == frozenset()  # a seventh of a layer
    schedule = pruner('efficientvla').plan(PAIR, params('efficientvla'), Mode.COARSE)
    assert schedule.skip == {4, 5, 6, 7}
    assert schedule.prune == {2: 2}  # ceil(56 x 4 / 256) = 1 per camera


def test_efficientvla_refuses_to_skip_everything_after_its_prune():
    with pytest.raises(ParamError, match='no layer is left'):
        pruner('efficientvla').plan(
            PAIR,
            params('efficientvla', efficientvla_skip=list(range(3, 33))),
            Mode.COARSE,
        )


def test_canny_finds_the_contour_of_a_square():
    grey = torch.zeros(1, 64, 64)
    grey[0, 16:48, 16:48] = 255
    edges = canny(grey)[0]
    ys, xs = edges.nonzero(as_tuple=True)
    near = torch.minimum((ys - 15.5).abs(), (ys - 47.5).abs()) <= 2
    near |= torch.minimum((xs - 15.5).abs(), (xs - 47.5).abs()) <= 2
    assert near.all()
    assert 100 <= len(ys) <= 160  # four sides of 32, one pixel thin
    assert not canny(torch.full((1, 32, 32), 128.0)).any()


def test_canny_keeps_weak_edges_only_beside_strong_ones():
    # A vertical edge that fades from 255 above to 38 below.
    grey = torch.zeros(1, 32, 32)
    grey[0, :, 16:] = (255.0 - 7.0 * torch.arange(32))[:, None]
    strong = canny(grey, 300.0, 300.0)[0].any(1).sum()
    weak = canny(grey, 60.0, 60.0)[0].any(1).sum()
    assert 0 < strong < weak
    assert canny(grey, 60.0, 300.0, reach=32)[0].any(1).sum() == weak  # it all hangs together
    assert canny(grey, 60.0, 300.0, reach=4)[0].any(1).sum() == strong + 4
    grey[0, :] = grey[0, -1:]  # without the strong part nothing is an edge
    assert not canny(grey, 60.0, 300.0).any()


def test_sp_vla_keeps_contours_and_meaning():
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[0, 4:12, 20:28] = 255  # a square inside the upper right patch
    share = edge_share(image, (2, 2), 100.0, 200.0)
    assert share[1] > 0.08 and share[[0, 2, 3]].sum() == 0
    running = begin('sp_vla', changes={'sp_vla_edges': 0.05}, images=image, speed_xyz=1.0)
    assert running.schedule.prune == {2: None}
    # 0.4 of the best, 0.5: tokens at 0.2 and above are semantic: 0 and 3. Token 1 is spatial.
    running.observe(2, RowGroup.TEXT, torch.tensor([[0.5, 0.1, 0.19, 0.2]]))
    assert running.select(2, torch.zeros(4, 3)).keep.tolist() == [0, 1, 3]


def test_sp_vla_threshold_relaxes_when_slow():
    p = params('sp_vla')
    assert threshold(1.0, p) == pytest.approx(0.4)
    assert threshold(0.175, p) == pytest.approx(0.2)  # half the reference speed
    assert threshold(0.0, p) == threshold(None, p) == pytest.approx(0.1)


def test_adp_gate():
    p = params('adp')
    window = [0.02, 0.05, 0.03]
    assert gate(0.06, window, 0, p) == ''  # farther than ever
    assert gate(0.03, window, 0, p) == ''  # in between
    assert 'below the window' in gate(0.01, window, 0, p)  # slower than in the whole window
    assert 'in a row' in gate(0.06, window, 3, p)  # three pruned in a row
    assert 'moves known' in gate(0.06, window[:2], 0, p)
    assert 'unknown' in gate(None, window, 0, p)


def test_adp_counts_split_between_cameras():
    layout = small_layout(2, 16, depth=32)
    # 0.75 x 512 = 384: 153.6 and 230.4.
    assert ADP().counts(layout, params('adp')) == (154, 231)
    assert ADP().counts(small_layout(1, 16, depth=32), params('adp')) == (192,)
    # A camera cannot give more than it has.
    assert ADP().counts(layout, params('adp', adp_keep=1.0)) == (205, 256)


def test_adp_prunes_before_layer_one_by_the_probe():
    carry = {'displacements': torch.tensor([0.02, 0.05, 0.03]), 'run': torch.tensor(1)}
    requested = []

    def probe(layer, group):
        requested.append((layer, group))
        return torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.5, 0.1, 0.2, 0.3]])

    # 0.5 x 8 = 4: 1.6 and 2.4, so 2 and 3: patches 1, 2 and 4, 6, 7.
    running = begin(
        'adp', PAIR, carry=carry, displacement=0.06, probe=probe, changes={'adp_keep': 0.5}
    )
    assert running.select(0, torch.zeros(8, 3)).keep.tolist() == [1, 2, 4, 6, 7]
    assert requested == [(1, RowGroup.TEXT)]
    carried = running.finish().carry
    torch.testing.assert_close(carried['displacements'].float(), torch.tensor([0.05, 0.03, 0.06]))
    assert carried['run'] == 2
    shut = begin('adp', PAIR, carry=carry, displacement=0.01, probe=probe)
    assert not shut.schedule.prune and shut.finish().carry['run'] == 0


def test_vla_pruner_smooths_over_the_window():
    # Weights 0.64, 0.8, 1 over 2.44, the newest last.
    history = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(
        smoothed(history, 0.8), torch.tensor([0.64 / 2.44, 1.0 / 2.44]), atol=1e-6, rtol=1e-5
    )


def test_vla_pruner_joins_and_filters():
    degrees = torch.tensor([0.0, 2.0, 90.0, 180.0]).deg2rad()
    vision = torch.stack([degrees.cos(), degrees.sin()], -1)
    history = torch.tensor([[0.1, 0.2, 0.0, 0.9]]).expand(3, 4)
    running = begin('vla_pruner', carry={'history': history}, vision=vision)
    assert running.schedule.prune == {3: 2}
    assert running.schedule.observed_layers == {3: (RowGroup.ALL,), 16: (RowGroup.ACTION,)}
    # Only rows before the actions count: 0 and 1 are best there. In the past 3 and 1 were. Of
    # 0, 1, 3 (0, 2 and 180 degrees) the two most different are 3 and 0.
    attention = torch.zeros(TINY.length, 4)
    attention[: TINY.action[0]] = torch.tensor([0.4, 0.3, 0.1, 0.2])
    attention[TINY.action[0] :] = torch.tensor([0.0, 0.0, 9.0, 0.0])
    running.observe(3, RowGroup.ALL, attention)
    assert running.select(3, torch.zeros(4, 3)).keep.tolist() == [0, 3]
    running.observe(16, RowGroup.ACTION, torch.tensor([[0.6, 0.2], [0.2, 0.4]]))
    carried = running.finish().carry['history']
    # The window moves on; dropped patches count as unattended.
    torch.testing.assert_close(carried[-1], torch.tensor([0.4, 0.0, 0.0, 0.3]))
    assert carried.shape == (3, 4)


def test_vla_pruner_is_dense_until_its_window_is_full():
    carry = {}
    for seen in range(4):
        running = begin('vla_pruner', carry=carry)
        assert bool(running.schedule.prune) == (seen == 3)
        if running.schedule.prune:
            break
        running.observe(16, RowGroup.ACTION, torch.full((2, 4), 0.1))
        carry = running.finish().carry
        assert carry['history'].shape == (seen + 1, 4)


def test_team_vla_matches_and_expands():
    # Two words along x and y: patch 1 and patch 2 are most alike.
    vision = torch.tensor([[1.0, 1.0], [5.0, 0.1], [0.0, 2.0], [-1.0, 0.0]])
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert matched(vision, words, 1).tolist() == [[False, True, True, False]]
    # On a 4 x 4 grid marks at 5 and 6: windows of 3 x 3 that hold both reach 2/9 = 0.222.
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [5, 6]] = True
    grown = expanded(mask, (4, 4), 3, 0.2)[0].nonzero().flatten().tolist()
    assert grown == [1, 2, 5, 6, 9, 10]
    assert expanded(mask, (4, 4), 3, 0.3)[0].nonzero().flatten().tolist() == [5, 6]


def test_team_vla_merges_into_the_anchors():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 3.0], [3.0, 0.0]])
    # Anchors 0 and 2: rows 1 and 4 join 0, row 3 joins 2.
    weights = bipartite_merge(rows, torch.tensor([0, 2]))
    third = 1 / 3
    expected = torch.tensor([[third, third, 0, 0, third], [0, 0, 0.5, 0.5, 0]])
    torch.testing.assert_close(weights, expected)


def test_team_vla_runs_both_stages():
    layout = small_layout(1, 4, depth=32)
    changes = {'team_vla_sample': 8, 'team_vla_anchors': 96, 'team_vla_density': 0.2}
    rows = torch.zeros(16, 2)
    rows[5, 0] = rows[6, 1] = 1.0
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    running = begin('team_vla', layout, changes=changes, text=words)
    # The expanded marks and every eighth patch.
    assert running.select(0, rows).keep.tolist() == [0, 1, 2, 5, 6, 8, 9, 10]
    # 96 anchors of 512 are 3 of 16: rows 7, 6, 5 by action attention.
    running.observe(16, RowGroup.ACTION, torch.arange(8.0)[None])
    choice = running.select(16, torch.eye(8))
    assert choice.keep.tolist() == []
    assert choice.merge_position.tolist() == [5, 6, 7]
    torch.testing.assert_close(choice.merge.sum(-1), torch.ones(3))
    assert running.finish().kept[-1][1].tolist() == [-1, -1, -1]


def test_ridge_extrapolates():
    # Actions 0, 1, 2 at t = -1, 0, 1: slope 2 / (2 + 1) = 0.667 with strength 1, mean 1; the next
    # lie at t = 2, 3.
    scheduler = RidgeScheduler(size=3, strength=1.0)
    for value in (0.0, 1.0, 2.0):
        scheduler.record(torch.tensor([value, 5.0]), True)
    expected = torch.tensor([[1 + 2 * 2 / 3, 5.0], [3.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(scheduler.predict(2), expected)


def test_ridge_acts_only_while_gliding_and_not_for_long():
    scheduler = RidgeScheduler(size=6, v_min=0.1, v_max=1.0, share=0.5)
    assert not scheduler.skips_model(0.5)[0]
    with pytest.raises(ValueError, match='0 of 6'):
        scheduler.predict(1)
    for _ in range(6):
        scheduler.record(torch.zeros(2), True)
    assert scheduler.skips_model(0.5)[0]
    assert not scheduler.skips_model(0.05)[0]
    assert not scheduler.skips_model(2.0)[0]
    assert not scheduler.skips_model(None)[0]
    assert not scheduler.skips_model(math.nan)[0]
    for _ in range(3):
        scheduler.record(torch.zeros(2), False)
    assert not scheduler.skips_model(0.5)[0]  # three of six is not more than half
    scheduler.reset()
    assert '0 of 6' in scheduler.skips_model(0.5)[1]


@pytest.mark.parametrize('bad', [{'size': 1}, {'v_min': 2.0}, {'strength': -1.0}, {'share': 1.5}])
def test_ridge_refuses_nonsense(bad):
    with pytest.raises(ValueError, match='need|at least'):
        RidgeScheduler(**bad)


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ({'sparsevlm_keep': [300, 200]}, 'sparsevlm_keep'),
        ({'team_vla_kernel': 4}, 'team_vla_kernel'),
        ({'sp_vla_low': 300.0}, 'sp_vla_low'),
        ({'adp_split': [0.0, 0.0]}, 'adp_split'),
        ({'efficientvla_key': 57}, 'efficientvla_key'),
    ],
)
def test_rivals_refuse_contradictions(changes, name):
    with pytest.raises(ParamError) as caught:
        PruningParams.from_mapping(changes)
    assert caught.value.name == name
