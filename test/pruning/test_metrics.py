"""Meters against numbers worked out by hand."""

import torch

from specprune_ros.pruning.metrics import action_deviation, best_tokens, kept_recall, recall


def mask(*ones, size=6):
    out = torch.zeros(size, dtype=torch.bool)
    out[list(ones)] = True
    return out


def test_recall():
    assert recall(mask(0, 1, 2), mask(1, 2, 3, 4)) == 0.5
    assert recall(mask(0), mask()) is None


def test_best_tokens_by_the_mean_over_layers():
    # Means 0.2, 0.3, 0.3, 0.1: of the equals the earlier.
    scores = torch.tensor([[0.1, 0.5, 0.2, 0.1], [0.3, 0.1, 0.4, 0.1]])
    assert best_tokens(scores, 2).tolist() == [False, True, True, False]
    assert best_tokens(scores, 1).tolist() == [False, True, False, False]


def test_kept_recall_counts_merged_tokens_as_lost():
    scores = torch.tensor([[0.1, 0.5, 0.2, 0.4]])
    assert kept_recall(torch.tensor([0, 1]), scores, 2) == 0.5
    assert kept_recall(torch.tensor([1, -1]), scores, 2) == 0.5
    assert kept_recall(torch.tensor([1, 3]), scores, 2) == 1.0


def test_action_deviation_is_the_worst_step_of_each_dimension():
    pruned = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    dense = torch.tensor([[0.5, 0.0], [0.7, 0.5]])
    torch.testing.assert_close(action_deviation(pruned, dense), torch.tensor([0.7, 0.0]))
