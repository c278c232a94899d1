"""Scores of vision tokens from attention rows: the paper's equations, one small function each."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def image_to_text(attention: Tensor) -> Tensor:
    """Score of each vision token: mean over the query rows of head-mean attention.

    ``attention`` float32 ``[rows, n]`` to float32 ``[n]``. P1 section 4.2; text rows are queries
    and vision tokens keys, as in the authors' code.
    """
    return attention.float().mean(0)


@lru_cache(maxsize=256)
def rank_weights(count: int, slope: float, device: torch.device) -> Tensor:
    """Weight by rank, best first: ``sigmoid(-k r) / sum_j sigmoid(-k j)``, r from 0 (P1, P2).

    float32 ``[count]``; computed in float64 once per size, so that it costs a query nothing.
    """
    ranks = torch.arange(count, dtype=torch.float64)
    weights = torch.sigmoid(-slope * ranks)
    return (weights / weights.sum()).float().to(device)


def entropy_confidence(attention: Tensor, epsilon: float, normalised: bool) -> Tensor:
    """Layer weight ``1 / (H + epsilon)``, H the row-mean entropy over the vision tokens (P2).

    ``attention`` float32 ``[rows, n]``; each row is scaled to sum to 1 over the n tokens first.
    With ``normalised`` H is divided by ln(n), as in the authors' code. Returns a scalar tensor.
    """
    attention = attention.float()
    share = attention / attention.sum(-1, keepdim=True).clamp_min(1e-30)
    rows, count = attention.shape
    scale = math.log(count) if normalised and count > 1 else 1.0
    return (torch.special.entr(share).sum() * (1 / (rows * scale)) + epsilon).reciprocal()


def mean_std_confidence(attention: Tensor, epsilon: float) -> Tensor:
    """Layer weight ``mean / (std + epsilon)`` of the token scores (P1), a scalar tensor."""
    score = image_to_text(attention)
    return score.mean() / (score.std(correction=0) + epsilon)


def ema(previous: Tensor, score: Tensor, beta: float) -> Tensor:
    """Running score ``S = (1 - beta) S + beta s``, ``[n]`` and ``[n]`` to ``[n]`` (P1, P2)."""
    return torch.lerp(previous, score, beta)
