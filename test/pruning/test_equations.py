"""Each equation of SpecPrune against numbers worked out by hand."""

import math

import pytest
import torch
from small_models import OFT, small_layout

from specprune_ros.pruning import scores
from specprune_ros.pruning import scores as sets
from specprune_ros.pruning.budget import after_drop, budgets, least, scale_layer, scale_layers
from specprune_ros.pruning.interface import Mode, QueryContext, RowGroup
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import changed_share, patch_cosine

PAPER = PruningParams.preset_of('paper')
CPU = torch.device('cpu')


def close(tensor, values, tolerance=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(tensor).float(),
        torch.tensor(values, dtype=torch.float32),
        atol=tolerance,
        rtol=tolerance,
    )


def test_image_to_text_score_is_the_mean_over_rows():
    # (0.1 + 0.3) / 2, (0.5 + 0.1) / 2, (0.0 + 0.2) / 2
    close(scores.image_to_text(torch.tensor([[0.1, 0.5, 0.0], [0.3, 0.1, 0.2]])), [0.2, 0.3, 0.1])


def test_rank_weights():
    # sigmoid(0), sigmoid(-1), sigmoid(-2) = 0.5, 0.268941, 0.119203; sum 0.888144
    close(scores.rank_weights(3, 1.0, CPU), [0.562972, 0.302812, 0.134216], 1e-5)


def test_rank_weights_of_the_papers_slope_do_not_tie_but_the_authors_do():
    ours = scores.rank_weights(200, 10 / 200, CPU)
    assert (ours[:-1] > ours[1:]).all()
    authors = scores.rank_weights(200, 1.0, CPU)
    assert (authors[110:] == 0).all()


def test_entropy_confidence():
    # Row 1: uniform over 2 of 4 tokens after scaling, H = ln 2; row 2: uniform over 4, H = ln 4.
    attention = torch.tensor([[0.1, 0.1, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2]])
    mean = (math.log(2) + math.log(4)) / 2
    close(scores.entropy_confidence(attention, 0.0, False), 1 / mean)
    # Over ln 4: (0.5 + 1) / 2 = 0.75.
    close(scores.entropy_confidence(attention, 0.0, True), 1 / 0.75)
    # All attention on one token: H = 0, so 1 / epsilon.
    close(scores.entropy_confidence(torch.tensor([[0.3, 0.0]]), 0.01, False), 100.0, 1e-4)


def test_mean_std_confidence():
    # Scores 1 and 3: mean 2, deviation 1.
    close(scores.mean_std_confidence(torch.tensor([[1.0, 3.0]]), 0.0), 2.0)


def test_ema():
    # 0.8 x 1 + 0.2 x 0.5; from zero: 0.2 x 0.5.
    close(scores.ema(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), 0.2), [0.9, 0.1])


def test_ranks_put_the_earlier_of_equals_first():
    assert sets.ranks(torch.tensor([0.2, 0.5, 0.2, 0.9])).tolist() == [2, 1, 3, 0]


def test_top_k_counts_per_camera():
    score = torch.tensor([[0.1, 0.4, 0.3], [0.6, 0.2, 0.5]])
    mask = sets.top_k(score, torch.tensor([2, 1]))
    assert mask.tolist() == [[False, True, True], [True, False, False]]


def test_dynamic_set():
    cosine = torch.tensor([[0.99, 0.90, 0.95, 0.80], [1.0, 1.0, 0.97, 1.0]])
    tau, k = torch.tensor([0.986, 0.98]), torch.tensor([2, 2])
    # Below tau: patches 1, 2, 3 and patch 2; of the three the two least similar are 3 and 1.
    assert sets.changed(cosine, tau, k, 'least_similar').tolist() == [
        [False, True, False, True],
        [False, False, True, False],
    ]
    # Authors: all three, and in the second camera at least two, the earliest of the equals.
    assert sets.changed(cosine, tau, k, 'complement').tolist() == [
        [False, True, True, True],
        [True, False, True, False],
    ]


def test_fill_takes_the_union_then_the_best_scores():
    union = torch.tensor([False, True, False, False, True])
    fused = torch.tensor([0.3, 0.0, 0.1, 0.3, 0.0])
    assert sets.fill(union, fused, 3).tolist() == [0, 1, 4]  # of equals the earlier
    assert sets.fill(union, fused, 4).tolist() == [0, 1, 3, 4]
    assert sets.fill(union, fused, 2).tolist() == [1, 4]


def test_budgets_of_the_paper_on_openvla_oft():
    # K_eff = ceil(0.8 K): 24, 20 (19.2), 16; wrist x 0.8: ceil of 19.2, 15.36, 12.8.
    allowed = budgets(OFT, PAPER, Mode.COARSE)
    assert allowed.globals == (24, 20)
    assert allowed.local == (20, 16)
    assert allowed.dynamic == (16, 13)
    # Two layers each: 2 x 24 + 2 x 20 + 16 = 104 and 2 x 20 + 2 x 16 + 13 = 85.
    assert allowed.worst == 104 + 85
    assert allowed.filled == 192  # the next multiple of 16
    # Fine mode, 5/3: 40, 32, 27 (26.67) and 32, 26 (25.6), 22 (21.33).
    fine = budgets(OFT, PAPER, Mode.FINE)
    assert (fine.globals, fine.local, fine.dynamic) == ((40, 32), (32, 26), (27, 22))
    assert fine.filled == 320  # 2 x 40 + 2 x 32 + 27 + 2 x 32 + 2 x 26 + 22 = 309


def test_budgets_scale_with_the_grid():
    small = small_layout(2, 8, depth=32)
    assert budgets(small, PAPER, Mode.COARSE).globals == (6, 5)  # 24 / 4, ceil(19.2 / 4)
    large = small_layout(1, 24, depth=32)
    assert budgets(large, PAPER, Mode.COARSE).globals == (54,)  # 24 x 576 / 256


def test_layers_scale_with_depth_and_stay_distinct():
    assert scale_layers((5, 10, 15, 20), 32) == (5, 10, 15, 20)
    assert [scale_layer(layer, 16) for layer in (1, 2, 5, 15, 32)] == [1, 1, 3, 8, 16]
    assert scale_layers((1, 2), 16) == (1, 2)  # 0.5 and 1 would fall together
    assert scale_layers((5, 10, 15, 20), 8, after=2) == (3, 4, 5, 6)
    assert scale_layers((5, 10, 15, 20), 4, after=2) == (3, 4)


def test_layer_drop():
    # Ten per cent of the vision tokens: 192 - 19, 173 - 17, 156 - 15, 141 - 14.
    current, left = 192, []
    for _ in range(4):
        current = after_drop(current, OFT, PAPER)
        left.append(current)
    assert left == [173, 156, 141, 127]
    # Of the whole sequence (93 other rows): floor(0.9 x 285) - 93 = 256 - 93.
    assert after_drop(192, OFT, PAPER.replace(drop_of='sequence')) == 163
    assert after_drop(192, OFT, PAPER.replace(keep_min=180)) == 180
    # A camera kept whole is spared: 10 % of 192 - 0 against 10 % of the 44 others.
    assert after_drop(300, OFT, PAPER.replace(cameras_kept=[1])) == 296
    assert least(OFT, PruningParams.from_mapping({'keep_min': 60})) == 60


def test_the_schedule_of_the_paper_on_openvla_oft():
    schedule = pruner('specprune').plan(OFT, PAPER, Mode.COARSE)
    assert schedule.prune == {2: 192, 5: 173, 10: 156, 15: 141, 20: 127}
    assert schedule.static
    assert set(schedule.observed_layers) == {1, 2, 5, 10, 15, 20, 32}
    # P2 ranks layer by layer with the text's rows too.
    assert set(schedule.observed_layers.values()) == {(RowGroup.TEXT,)}
    assert not pruner('specprune').plan(OFT, PAPER.replace(exact=True), Mode.COARSE).static


def token_layout():
    """One camera of 4 x 4 patches, 4 layers: small enough for pencil and paper."""
    return small_layout(1, 4, depth=4, words=1, actions=2)


def test_one_query_by_hand():
    """16 patches; K are written for 256, so k_local 16 is one patch, k_global 32 two."""
    params = PruningParams.from_mapping(
        {
            'alpha': 1.0,
            'k_local': 16,
            'k_global': 32,
            'k_dynamic': 16,
            'bucket': 1,
            'keep_min': 1,
            'prune_layers': [20],
            'update_layers': [20],
            'drop_ratio': 0.25,
            'camera_factor': [1.0],
            'tau': [0.9],
        }
    )
    layout = token_layout()
    schedule = pruner('specprune').plan(layout, params, Mode.COARSE)
    # Worst case: 2 layers x 1 + 2 layers x 2 + 1 = 7; layer 20 of 32 is 3 of 4; 7 - floor(1.75).
    assert schedule.prune == {2: 7, 3: 6}
    prior = torch.zeros(2, 16)
    prior[0, [4, 5]] = 0.3
    prior[1, [5, 6]] = 0.3
    cosine = torch.ones(16)
    cosine[9], cosine[10] = 0.5, 0.7
    running = pruner('specprune').begin(
        QueryContext(layout, params, Mode.COARSE, cosine, {'prior': prior})
    )

    def rows(**peaks):
        row = torch.full((1, 16), 0.01)
        for name, value in peaks.items():
            row[0, int(name[1:])] = value
        return row

    running.observe(1, RowGroup.TEXT, rows(p0=0.5, p2=0.4))
    running.observe(2, RowGroup.TEXT, rows(p0=0.5, p3=0.4))
    keep = running.select(2, torch.zeros(16, 4)).keep
    # Local {0} (both layers), global {4, 5, 6}, dynamic {9}: five; the fused score fills two more.
    # Shares: patch 2 in layer 1 0.4 / 1.04 + 0.01 / 1.04, patch 3 the same: both before the rest.
    assert keep.tolist() == [0, 2, 3, 4, 5, 6, 9]
    assert running.outcome.sets['local'].nonzero().flatten().tolist() == [0]
    assert running.outcome.sets['global'].nonzero().flatten().tolist() == [4, 5, 6]
    assert running.outcome.sets['dynamic'].nonzero().flatten().tolist() == [9]
    # Layer 3: patch 5 (row 4 of the seven) is attended to least by both action rows.
    attention = torch.tensor([0.3, 0.2, 0.2, 0.3, 0.05, 0.1, 0.2])
    running.observe(3, RowGroup.ACTION, attention.expand(2, 7))
    assert running.select(3, torch.zeros(7, 4)).keep.tolist() == [0, 1, 2, 3, 5, 6]
    running.observe(4, RowGroup.TEXT, torch.tensor([[0.1, 0.2, 0.1, 0.1, 0.1, 0.4]]))
    outcome = running.finish()
    assert [ids.tolist() for _, ids in outcome.kept] == [[0, 2, 3, 4, 5, 6, 9], [0, 2, 3, 4, 6, 9]]


def test_memory_rescales_what_a_pass_did_not_see():
    params = PruningParams.from_mapping(
        {'k_global': 16, 'k_local': 16, 'k_dynamic': 0, 'alpha': 1.0, 'bucket': 1, 'keep_min': 1,
         'prune_layers': [], 'update_layers': [], 'prior_decay': 0.5}
    )  # fmt: skip
    layout = token_layout()  # globals: layers 15 and 32 of 32 are 2 and 4 of 4
    prior = torch.full((2, 16), 0.01)
    prior[:, 7] = 0.5
    running = pruner('specprune').begin(
        QueryContext(layout, params, Mode.COARSE, None, {'prior': prior})
    )
    row = torch.full((1, 16), 0.01)
    row[0, 3] = 0.5
    running.observe(1, RowGroup.TEXT, row)
    running.observe(2, RowGroup.TEXT, row)
    keep = running.select(2, torch.zeros(16, 4)).keep.tolist()
    assert keep[:2] == [0, 1] and {3, 7} <= set(keep) and len(keep) == 4
    running.observe(4, RowGroup.TEXT, torch.tensor([[0.1, 0.1, 0.4, 0.4]]))
    carried = running.finish().carry['prior']
    close(carried[0], row[0].tolist())  # layer 2 is observed before the prune: all seen
    # Layer 4: seen weigh 1.0 now and 0.01 + 0.01 + 0.01 + 0.5 before; the rest 0.01 x 1.887 x 0.5.
    close(carried[1, 3], 0.4)
    close(carried[1, 15], 0.01 * (1.0 / 0.53) * 0.5)


def test_recall_is_what_the_prior_named_of_what_mattered():
    outcome = pruner('specprune').begin(QueryContext(OFT, PAPER, Mode.DENSE)).outcome
    assert outcome.recall is None
    outcome.sets['global'] = torch.tensor([True, True, False, False])
    outcome.attended = lambda: torch.tensor([False, True, True, False])
    assert outcome.recall == 0.5


def test_patch_cosine():
    now = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    then = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    now[0, :2, :2] = 10  # same direction, other brightness: cosine 1
    then[0, :2, :2] = 200
    now[0, :2, 2:, 0] = 9  # red against green: 0
    then[0, :2, 2:, 1] = 9
    now[0, 2:, :2, 0], now[0, 2:, :2, 1] = 30, 40  # (3, 4, 0) against (1, 0, 0): 0.6
    then[0, 2:, :2, 0] = 5
    close(patch_cosine(now, then, (2, 2)), [1.0, 0.0, 0.6, 1.0])  # the last: black and black
    now[0, 2:, 2:] = 1  # black against anything else
    close(patch_cosine(now, then, (2, 2)), [1.0, 0.0, 0.6, 0.0])
    close(changed_share(torch.tensor([1.0, 0.0, 0.6, 0.0]), 0.9), 0.75)


def test_patch_cosine_of_a_image_with_itself_is_exactly_one():
    image = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    assert (patch_cosine(image, image, (16, 16)) == 1).all()


@pytest.mark.parametrize(
    ('shape', 'grid', 'why'),
    [((1, 4, 4, 3), (3, 2), 'does not divide'), ((1, 4, 8, 3), (2, 2), 'one shape')],
)
def test_patch_cosine_says_what_does_not_fit(shape, grid, why):
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=why):
        patch_cosine(image, torch.zeros(shape, dtype=torch.uint8), grid)


def test_the_plan_refuses_what_the_layout_cannot_hold():
    with pytest.raises(ParamError, match='layers_local'):
        pruner('specprune').plan(small_layout(1, 4, depth=2), PAPER, Mode.COARSE)
