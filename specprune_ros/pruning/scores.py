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

    float32 ``[count]``, computed once per size, so that it costs a query nothing; in float32, as
    the authors do: with their slope the last places of the far ranks decide between ties.
    """
    weights = torch.sigmoid(-slope * torch.arange(count, dtype=torch.float32))
    return (weights / weights.sum()).to(device)


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


def ranks(scores: Tensor) -> Tensor:
    """Rank of each score along the last axis, 0 for the highest, the earlier of equals first.

    int64, shape of ``scores``.
    """
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    places = positions(scores.shape[-1], scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_k(scores: Tensor, k: Tensor) -> Tensor:
    """Mask of the k highest scores of each camera: ``[..., cameras, patches]``, k ``[...,
    cameras]``.

    Top-K of V_global and V_local (P2): ties go to the earlier patch.
    """
    return ranks(scores) < k.unsqueeze(-1)


def changed(similarity: Tensor, tau: Tensor, k: Tensor, rule: str) -> Tensor:
    """V_dynamic as a mask ``[cameras, patches]`` from the patch cosines ``[cameras, patches]``.

    ``least_similar``: of the patches below tau (``[cameras]``) the k least similar (P2).
    ``complement``: all below tau and at least the k least similar (the authors' code).
    """
    below = similarity < tau.unsqueeze(-1)
    least = top_k(-similarity, k)
    return below | least if rule == 'complement' else below & least


def fill(union: Tensor, fused: Tensor, count: int) -> Tensor:
    """``count`` tokens ascending: every member of the union, then the best fused scores.

    ``union`` bool ``[n]``, ``fused`` float32 ``[n]``; the union must not exceed ``count``.
    """
    first = fused.masked_fill(union, torch.inf)
    order = torch.sort(first, descending=True, stable=True).indices
    return order[:count].sort().values


def shares(scores: Tensor) -> Tensor:
    """Scores along the last axis as shares of their sum, so that layers can be added."""
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-30)


@lru_cache(maxsize=512)
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.tensor(values)``, cached. Never write into it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def positions(count: int, device: torch.device) -> Tensor:
    """``0 .. count - 1`` as int64, cached. Never write into it."""
    with torch.inference_mode(False):
        # Made on the host, whose copy waits: another stream may read it before a kernel has run.
        return torch.arange(count).to(device)
