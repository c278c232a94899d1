"""Operations of one query, counted from the shapes that were really computed.

Multiply-adds (MACs) of every matrix product: towers, projector, decoder with the quadratic part
of attention, the pruner's side products, head. Norms, activations and softmax are not counted, as
usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specprune_ros.models.config import DecoderConfig, PolicyConfig, VisionConfig
from specprune_ros.models.decoder import DecoderOutput, LayerRows, ObservedAttention
from specprune_ros.pruning.interface import PruneSchedule, TokenLayout


@dataclass(frozen=True)
class Flops:
    """``macs`` multiply-adds; one is two floating-point operations."""

    vision: int
    projector: int
    decoder: int
    observing: int
    head: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole query."""
        return self.vision + self.projector + self.decoder + self.observing + self.head

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole query."""
        return 2 * self.macs


def query_flops(config: PolicyConfig, output: DecoderOutput, cameras: int | None = None) -> Flops:
    """Operations of the query that gave ``output``; ``cameras`` were there (default: all)."""
    return count(config, output.work, output.observed, cameras)


def dense_flops(config: PolicyConfig, layout: TokenLayout, read: bool = True) -> Flops:
    """Operations of the same query without pruning; ``read`` as passed to the decoder."""
    rows = layout.length
    read_rows = layout.action[1] - layout.action[0] if read else rows
    work = [LayerRows(rows, rows, rows)] * (layout.depth - 1) + [LayerRows(rows, read_rows, rows)]
    return count(config, work, cameras=layout.cameras)


def scheduled_work(
    layout: TokenLayout, schedule: PruneSchedule, after: Mapping[int, int]
) -> tuple[list[LayerRows], list[ObservedAttention]]:
    """What the decoder does when ``after`` tokens are left behind each boundary: the rows of each
    layer, and the side products the schedule observes to.
    """
    others = layout.length - layout.vision_tokens
    current, work = after.get(0, layout.vision_tokens), []
    for layer in range(1, layout.depth + 1):
        rows = 0 if layer in schedule.skip else others + current
        keys = layout.length if schedule.reuse and rows else rows
        read_rows = layout.action[1] - layout.action[0] if layer == layout.depth else rows
        work.append(LayerRows(rows, min(rows, read_rows), keys))
        current = after.get(layer, current)
    observed = [
        ObservedAttention(layer, rows, work[layer - 1].keys)
        for layer, groups in schedule.observed_layers.items()
        for group in groups
        if (rows := len(layout.rows(group)))
    ]
    return work, observed


def count(
    config: PolicyConfig,
    work: Sequence[LayerRows],
    observed: Sequence[ObservedAttention] = (),
    cameras: int | None = None,
) -> Flops:
    """Operations of a query of so many ``cameras`` whose decoder layers computed ``work``."""
    decoder = config.decoder
    patches = config.grid[0] * config.grid[1]
    cameras = len(config.cameras) if cameras is None else cameras
    proprio = config.proprio_dim if config.flow is None else 0
    film = config.decoder.width if config.film else 0
    return Flops(
        vision=sum(cameras * tower_macs(tower, film) for tower in config.towers),
        projector=cameras
        * patches
        * _chain((config.vision_width, *config.projector, decoder.width))
        + (proprio + decoder.width) * decoder.width * (proprio > 0),
        decoder=sum(layer_macs(decoder, rows) for rows in work),
        observing=sum(
            item.rows * item.keys * decoder.head_dim * decoder.heads for item in observed
        ),
        head=(
            head_macs(config) + denoise_macs(config, work)
            if config.flow is None
            else expert_macs(config, work)
        ),
    )


def tower_macs(config: VisionConfig, film: int = 0) -> int:
    """Multiply-adds of one image through one tower; ``film`` is the condition's width or 0."""
    patches = config.grid**2
    rows = patches + config.prefix
    linear = rows * (4 * config.width**2 + 2 * config.width * config.mlp)
    block = linear + 2 * rows**2 * config.width + 2 * film * config.width
    return patches * 3 * config.patch**2 * config.width + config.blocks * block


def layer_macs(config: DecoderConfig, rows: LayerRows) -> int:
    """Multiply-adds of one decoder layer."""
    width, head = config.width, config.head_dim
    query_width, key_width = config.heads * head, config.kv_heads * head
    return (
        rows.inputs * width * 2 * key_width
        + rows.queries * width * 2 * query_width
        + rows.queries * 3 * width * config.mlp
        + 2 * rows.queries * rows.keys * query_width
    )


def denoise_macs(config: PolicyConfig, prefix: Sequence[LayerRows]) -> int:
    """Multiply-adds of the decoder in the DDIM steps of DB-OFT's DiT head: a time row and the
    action rows per step, against the keys of the ``prefix``, which is not run again.
    """
    if config.ddim is None:
        return 0
    actions, width = config.action_tokens, config.decoder.width
    present = [rows for rows in prefix if rows.inputs]
    work = [LayerRows(actions + 1, actions + 1, rows.keys + actions + 1) for rows in present]
    work[-1] = work[-1]._replace(queries=actions)
    step = sum(layer_macs(config.decoder, rows) for rows in work)
    return config.ddim.steps * (step + actions * (width + width**2))


def head_macs(config: PolicyConfig) -> int:
    """Multiply-adds of the action head."""
    width, dim = config.decoder.width, config.action_dim
    if config.dit is not None:
        dit, tokens = config.dit, config.chunk + 1
        block = tokens * 12 * dit.width**2 + 2 * tokens**2 * dit.width
        ends = width * dit.width + 2 * config.chunk * dim * dit.width
        ends += dit.width * 256 + dit.width**2
        branches = 2 if dit.guidance > 1 else 1
        return dit.ddim_steps * branches * (dit.depth * block + ends)
    step = width * dim * width + config.head_blocks * width**2 + width * dim
    return config.chunk * step * (config.ddim.steps if config.ddim else 1)


def expert_macs(config: PolicyConfig, work: Sequence[LayerRows]) -> int:
    """Multiply-adds of the action expert in all steps, behind a prefix that computed ``work``.

    pi0's state row is run once for all steps; pi0.5's modulations are tables.
    """
    flow, expert, rows = config.flow, config.flow.expert, config.chunk
    width, state = expert.width, int(not expert.adaptive)
    once = state * flow.width * width
    step = 2 * rows * flow.width * width + state * rows * 2 * width**2
    for layer in work:
        once += state * layer_macs(expert, LayerRows(1, 1, layer.keys + 1))
        step += layer_macs(expert, LayerRows(rows, rows, layer.keys + state + rows))
    return once + flow.steps * step


def _chain(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
