"""The three token sets and their union, on masks, without waiting for the data."""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.pruning.constants import positions


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
