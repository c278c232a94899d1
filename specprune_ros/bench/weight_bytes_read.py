"""Bytes of weights one query has to read: the least memory traffic it can have.

Activations and attention maps are left out, so what is counted is a lower bound; at the 7B size
they are a few per cent of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from specprune_ros.models.accel.device_memory import weight_bytes
from specprune_ros.models.build import Network
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.decoder_layer import AdaptiveNorm
from specprune_ros.models.families.pi0 import FlowPolicy


@dataclass(frozen=True)
class WeightBytesRead:
    """Bytes per stage, as :class:`~specprune_ros.policy.result.StageTimes` cuts a query."""

    vision: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """Bytes of the whole query."""
        return self.vision + self.decoder + self.head


def weight_traffic(model: Network, work: Sequence[LayerRows]) -> WeightBytesRead:
    """Weights of the towers and projectors, of the decoder layers that ran, and of the head.

    A diffusion head and an action expert read their weights once per step. Embedding tables are
    looked up, not read.
    """
    if model.config.flow is not None:
        return _flow_traffic(model, work)
    before = (getattr(model, name, None) for name in ('vision', 'projector', 'proprio'))
    dit, ddim = model.config.dit, model.config.ddim
    head = weight_bytes(model.action_head) * (dit.ddim_steps if dit else 1)
    decoder = sum(
        weight_bytes(layer)
        for layer, rows in zip(model.decoder.layers, work, strict=True)
        if rows.inputs
    )
    if ddim is not None:  # every step runs the decoder once more
        head = ddim.steps * (head + decoder + weight_bytes(model.noisy_action))
    return WeightBytesRead(
        vision=sum(weight_bytes(part) for part in before if isinstance(part, nn.Module)),
        decoder=decoder,
        head=head,
    )


def _flow_traffic(model: FlowPolicy, work: Sequence[LayerRows]) -> WeightBytesRead:
    """pi0 and pi0.5: of a layer without queries only the keys' and values' part is read; what
    time modulates lies in tables.
    """
    prefix = 0
    for layer, rows in zip(model.decoder.layers, work, strict=True):
        weight = layer.attn.qkv.weight
        keys = weight.nbytes * (len(weight) - layer.attn.query_width) // len(weight)
        prefix += weight_bytes(layer) if rows.queries else keys
    tabulated = sum(
        weight_bytes(part) for part in model.expert.modules() if isinstance(part, AdaptiveNorm)
    )
    step = weight_bytes(model.expert) - tabulated
    step += weight_bytes(model.action_in) + weight_bytes(model.action_out)
    if not model.config.flow.expert.adaptive:
        step += weight_bytes(model.time_in) + weight_bytes(model.time_out)
    return WeightBytesRead(
        vision=weight_bytes(model.vision) + weight_bytes(model.projector),
        decoder=prefix,
        head=model.config.flow.steps * step,
    )
