"""The language model, run layer by layer so that vision rows can leave in between.

One decoder serves every policy: bidirectional (OpenVLA-OFT, pi0) or causal (DB-OFT, CogACT), with
or without grouped key/value heads and biases, Llama's gate or Gemma's; an action expert is one
too, which reads another's keys and values (:meth:`Decoder.extend`). A :class:`PrunePass` says
where it wants to see attention and where rows leave; nothing else of a pruning method is known
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from specprune_ros.models.accel.fused import modulated_norm
from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder_layer import (
    DecoderLayer,
    Mask,
    head_mean,
    norm_of,
    row_index,
    take,
)
from specprune_ros.models.rotary import RotaryTable
from specprune_ros.pruning.interface import PrunePass, PruneSchedule, RowGroup, TokenLayout


class Cancelled(Exception):
    """A pass was given up between two layers, as its caller requested."""


class LayerRows(NamedTuple):
    """Rows of one layer: ``inputs`` get keys and values, ``queries`` an output, over ``keys``."""

    inputs: int
    queries: int
    keys: int


class ObservedAttention(NamedTuple):
    """One side product: ``rows`` attention rows of ``layer`` were handed to the pruner."""

    layer: int
    rows: int
    keys: int


LayerKV = tuple[Tensor, Tensor]  # keys and values of a layer, each [B, kv_heads, L, head_dim]
Context = tuple[LayerKV | None, ...]  # of every layer; None for one that was skipped


class Extended(NamedTuple):
    """Rows run after a context: their states ``hidden`` ``[B, m, W]`` after the final norm, the
    ``context`` with them at its end, and ``observed``, per requested layer the head-mean attention
    float32 ``[m, v]`` over the columns requested.
    """

    hidden: Tensor
    context: Context
    observed: dict[int, Tensor]


class KVCache:
    """Keys and values of every layer for all ``L`` positions, kept from query to query
    (VLA-Cache).

    ``keys[l]`` and ``values[l]`` are ``[1, kv_heads, L, head_dim]`` of layer ``l + 1``, or
    ``None``. A pass writes what it computes; rows that a reusing pass leaves out keep the
    previous query's.
    """

    def __init__(self, depth: int) -> None:
        self.keys: list[Tensor | None] = [None] * depth
        self.values: list[Tensor | None] = [None] * depth

    def reset(self) -> None:
        """Forget everything."""
        self.keys = [None] * len(self.keys)
        self.values = [None] * len(self.values)

    def filled(self, length: int) -> bool:
        """Whether there are layers written, and all of them hold ``length`` positions."""
        written = [keys for keys in self.keys if keys is not None]
        return bool(written) and all(keys.shape[2] == length for keys in written)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write all positions of 0-based ``layer``; buffers of the same shape are kept."""
        for slots, fresh in ((self.keys, keys), (self.values, values)):
            slot = slots[layer]
            if slot is not None and slot.shape == fresh.shape and slot.dtype == fresh.dtype:
                slot.copy_(fresh)
            else:
                slots[layer] = fresh.detach().clone(memory_format=torch.contiguous_format)

    def update(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Overwrite ``positions`` of 0-based ``layer`` and return the whole keys and values."""
        old_keys, old_values = self.keys[layer], self.values[layer]
        if old_keys is None or old_values is None:
            raise ValueError(
                f'layer {layer + 1}: reuse needs the keys and values of a previous query, and the '
                'cache is empty there; run one dense query with this cache first'
            )
        old_keys.index_copy_(2, positions, keys.detach())
        old_values.index_copy_(2, positions, values.detach())
        return old_keys, old_values


@dataclass(frozen=True)
class DecoderOutput:
    """What a pass leaves.

    ``hidden``: ``[1, L', D]`` after the final norm, the rows left (with ``read``, only that
    range). ``context``: keys and values of all layers, of the rows that were there, where ``read``
    is empty. ``positions``: int64 ``[L']`` their original positions (a merged token has the
    position it took). ``vision_ids``: int64 ``[v]`` patch ids left after the last boundary, -1
    for merged tokens. ``layer_tokens``: vision tokens present in each layer, 0 for a skipped one.
    ``layer_rows``: rows whose output each layer computed. ``work``: the same in full, for
    counting operations. ``observed``: side products taken. ``read``: the range of original
    positions requested, if any. ``context``: keys and values of all layers, where ``read`` is
    empty.
    """

    hidden: Tensor
    positions: Tensor
    vision_ids: Tensor
    layer_tokens: tuple[int, ...]
    layer_rows: tuple[int, ...]
    work: tuple[LayerRows, ...]
    observed: tuple[ObservedAttention, ...] = ()
    cache: KVCache | None = None
    read: tuple[int, int] | None = None
    context: Context = ()

    def rows(self, start: int, stop: int, layout: TokenLayout) -> Tensor:
        """Final hidden states ``[1, stop - start, D]`` of original positions behind the images.

        Rows behind the images are never dropped, so they are found from the end. Raises
        ``ValueError`` for rows that may have been dropped or were not computed.
        """
        if not layout.vision_stop <= start < stop <= layout.length:
            raise ValueError(
                f'rows {start}..{stop} must lie behind the images, '
                f'{layout.vision_stop}..{layout.length}'
            )
        if self.read is not None:
            first, last = self.read
            if not first <= start < stop <= last:
                raise ValueError(f'rows {start}..{stop} were not computed: read was {self.read}')
            return self.hidden[:, start - first : stop - first]
        end = self.hidden.shape[1] - layout.length
        return self.hidden[:, start + end : stop + end]


@dataclass
class _Rows:
    """The rows of a running pass. ``vision`` of them start at ``start``. ``normed`` are the
    hidden ones under the norm that comes next, where that is known.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    positions: Tensor
    ids: Tensor
    start: int
    vision: int
    layout: TokenLayout
    normed: Tensor | None = None
    reusing: bool = False
    context: list[LayerKV | None] | None = None
    work: list[LayerRows] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    observed: list[ObservedAttention] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.hidden.shape[1]

    @property
    def dropped(self) -> int:
        """Rows fewer than the full sequence."""
        return self.layout.length - self.length


class Decoder(nn.Module):
    """Embedding table, layers and final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.vocab:
            self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.norm = norm_of(config)
        self.rotary = RotaryTable(config.head_dim, config.rope_theta, config.rope == 'bf16')

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table ``[..., W]``, scaled as the model wants them."""
        words = self.embed_tokens(ids)
        if self.config.embed_scale == 1.0:
            return words
        # The factor is rounded to the rows' dtype, as Gemma does.
        return words * torch.tensor(self.config.embed_scale).to(words.dtype).item()

    def forward(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        prune: PrunePass | None = None,
        cache: KVCache | None = None,
        read: tuple[int, int] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> DecoderOutput:
        """Run a query.

        ``hidden``: ``[1, L, D]`` (``[B, L, D]`` without ``prune``, for training). ``read``:
        half-open range of original positions behind the images; the last layer then computes
        those rows only and only they come back. Rows keep their order, and their positions for
        RoPE. Without ``prune``, or when it keeps every row, the result is the dense one bit for
        bit. An empty range (at ``L``) reads none: the last layer computes keys and values only,
        and those of all layers are the ``context`` for :meth:`extend`.

        Raises ``ValueError`` where schedule, layout and shapes do not agree, and
        :class:`Cancelled` once ``cancelled``, checked before every layer, holds. There is no host
        synchronisation in a pass whose schedule is static.
        """
        schedule = PruneSchedule() if prune is None else prune.schedule
        self._check(hidden, layout, schedule, prune, cache, read)
        rows = self._begin(hidden, layout)
        if read is not None and read[0] == read[1]:
            rows.context = []
        run = [n for n in range(1, self.config.depth + 1) if n not in schedule.skip]
        last = run[-1]
        norms = [*(self.layers[n - 1].attn_norm for n in run[1:]), self.norm]
        after = dict(zip(run, norms, strict=True))
        if 0 in schedule.prune:
            self._select(rows, prune, 0)
        for number in range(1, self.config.depth + 1):
            if cancelled is not None and cancelled():
                raise Cancelled
            if number in schedule.skip:
                rows.work.append(LayerRows(0, 0, 0))
                rows.tokens.append(0)
                if rows.context is not None:
                    rows.context.append(None)
            else:
                groups = schedule.observed_layers.get(number, ())
                selected = read if number == last else None
                self._layer(rows, number, after[number], groups, prune, cache, selected)
            if number in schedule.prune:
                if number >= last and read is not None:
                    raise ValueError(
                        f'boundary {number} comes after the last layer, which computes only the '
                        'rows of read: prune earlier or pass read=None'
                    )
                self._select(rows, prune, number)
        positions = rows.positions
        if read is not None:
            positions = torch.arange(*read, device=hidden.device)
        return DecoderOutput(
            hidden=self.norm(rows.hidden) if rows.normed is None else rows.normed,
            positions=positions,
            vision_ids=rows.ids,
            layer_tokens=tuple(rows.tokens),
            layer_rows=tuple(work.queries for work in rows.work),
            work=tuple(rows.work),
            observed=tuple(rows.observed),
            cache=cache,
            read=read,
            context=tuple(rows.context or ()),
        )

    def extend(
        self,
        hidden: Tensor,
        context: Context,
        start: int,
        skip: int = 0,
        modulation: Tensor | None = None,
        observe: Mapping[int, tuple[int, int]] | None = None,
    ) -> Extended:
        """Run rows ``[B, m, W]`` at positions ``start``, ... behind a context, which may be
        another decoder's of the same heads.

        Every row sees the whole context and, unless the decoder is causal, every other row.
        Nothing is added to the context: it serves any number of calls. The last layer leaves out
        the first ``skip`` rows, and they do not come back. ``modulation``: float32
        ``[2 * depth + 1, 3, ..., W]`` of all norms in order (an adaptive decoder's
        :meth:`modulations`). ``observe``: per layer (from 1) the half-open range of context
        columns whose attention is wanted.
        """
        count = hidden.shape[1]
        tables = self.rotary(start + count, hidden.device, hidden.dtype)
        cos, sin = (table[start:] for table in tables)
        run = [i for i, kept in enumerate(context) if kept is not None]
        norms = [*(self.layers[i].attn_norm for i in run[1:]), self.norm]
        grown: list[LayerKV | None] = [None] * len(context)
        observed: dict[int, Tensor] = {}
        masks: dict[int, Tensor | None] = {}  # by columns of the context: it shrinks where pruned
        if modulation is None:
            normed = self.layers[run[0]].attn_norm(hidden)
        else:
            scale, shift, _ = modulation[2 * run[0]]
            normed = modulated_norm(hidden, scale, shift, self.norm.eps)
        for i, after in zip(run, norms, strict=True):
            block, before = self.layers[i], context[i][0].shape[2]
            queries, keys, values = block.attn.project(normed, cos, sin)
            if before not in masks:
                masks[before] = self._mask_behind(before, count, hidden.device)
            mask = masks[before]
            if i == run[-1] and skip:
                hidden, queries = hidden[:, skip:], queries[:, :, skip:]
                mask = None if mask is None else mask[skip:]
            keys = torch.cat((context[i][0], keys), 2)
            values = torch.cat((context[i][1], values), 2)
            grown[i] = keys, values
            if observe and i + 1 in observe:
                observed[i + 1] = head_mean(queries, keys, slice(*observe[i + 1]))
            mixed = block.attn.attend(queries, keys, values, Mask(tensor=mask))
            if modulation is None:
                hidden, normed = block.finish(hidden, mixed, after)
            else:
                following = 2 * len(context) if i == run[-1] else 2 * run[run.index(i) + 1]
                gate, mlp, then = (
                    modulation[2 * i][2],
                    modulation[2 * i + 1],
                    modulation[following],
                )
                hidden, normed = block.finish_modulated(hidden, mixed, gate, mlp, then)
        return Extended(normed, tuple(grown), observed)

    def _mask_behind(self, before: int, count: int, device: torch.device) -> Tensor | None:
        """bool ``[count, before + count]``, or ``None`` where everything is seen."""
        if not self.config.causal:
            return None
        columns = torch.arange(before + count, device=device)
        return columns <= columns[before:, None]

    def modulations(self, condition: Tensor) -> Tensor:
        """The modulation of every norm, float32 ``[2 * depth + 1, 3, ..., W]``, for a condition
        ``[..., W]`` (an adaptive decoder).
        """
        norms = [norm for layer in self.layers for norm in (layer.attn_norm, layer.mlp_norm)]
        return torch.stack([norm.modulation(condition) for norm in (*norms, self.norm)])

    def probe(self, hidden: Tensor, layout: TokenLayout, layer: int, group: RowGroup) -> Tensor:
        """Head-mean attention, float32 ``[rows, V]``, that ``layer`` (from 1) would compute on the
        input rows ``hidden`` ``[1, L, D]``, before any pass (ADP scores tokens this way).
        """
        if not 1 <= layer <= self.config.depth:
            raise ValueError(f'layer must be 1..{self.config.depth}, is {layer}')
        rows = self._begin(hidden, layout)
        block = self.layers[layer - 1]
        x = block.attn_norm(hidden)
        keys, _ = block.attn.project_keys(x, rows.cos, rows.sin)
        pick = row_index(layout, group, 0, hidden.device)
        queries = block.attn.project_queries(
            take(x, pick, 1), take(rows.cos, pick, 0), take(rows.sin, pick, 0)
        )
        return self._attention_rows(queries, keys, rows, pick)

    def _begin(self, hidden: Tensor, layout: TokenLayout) -> _Rows:
        cos, sin = self.rotary(layout.length, hidden.device, hidden.dtype)
        return _Rows(
            hidden=hidden,
            cos=cos,
            sin=sin,
            positions=torch.arange(layout.length, device=hidden.device),
            ids=torch.arange(layout.vision_tokens, device=hidden.device),
            start=layout.vision_start,
            vision=layout.vision_tokens,
            layout=layout,
        )

    def _layer(
        self,
        rows: _Rows,
        number: int,
        after: nn.RMSNorm,
        groups: tuple[RowGroup, ...],
        prune: PrunePass | None,
        cache: KVCache | None,
        read: tuple[int, int] | None,
    ) -> None:
        block = self.layers[number - 1]
        x = block.attn_norm(rows.hidden) if rows.normed is None else rows.normed
        residual, inputs = rows.hidden, rows.length
        queries: Tensor | None = None
        if read is None:
            queries, keys, values = block.attn.project(x, rows.cos, rows.sin)
        else:
            keys, values = block.attn.project_keys(x, rows.cos, rows.sin)
        mask = Mask(causal=self.config.causal)
        if cache is not None:
            if rows.reusing:
                keys, values = cache.update(number - 1, rows.positions, keys, values)
                mask = self._mask_by_position(rows)
            elif rows.dropped == 0:
                cache.store(number - 1, keys, values)
            else:  # rows are gone for good: the next query must not find a half-filled cache
                cache.reset()
        for group in groups:
            if group is not RowGroup.ACTION or not rows.layout.expert_rows:  # those come later
                self._observe(rows, number, group, prune, x, queries, keys)
        # Tokens that are only present through the cache are still present.
        rows.tokens.append(rows.layout.vision_tokens if rows.reusing else rows.vision)
        if rows.context is not None:
            rows.context.append((keys, values))
        if read is not None and read[0] == read[1]:  # its keys and values are all there is to do
            rows.work.append(LayerRows(inputs, 0, keys.shape[2]))
            rows.hidden = rows.normed = residual[:, :0]
            return
        if read is not None:
            first, stop = read[0] - rows.dropped, read[1] - rows.dropped
            queries = block.attn.project_queries(
                x[:, first:stop], rows.cos[first:stop], rows.sin[first:stop]
            )
            residual = residual[:, first:stop]
            mask = self._mask_of_tail(rows, first, stop, keys, mask)
        mixed = block.attn.attend(queries, keys, values, mask)
        rows.work.append(LayerRows(inputs, residual.shape[1], keys.shape[2]))
        rows.hidden, rows.normed = block.finish(residual, mixed, after)

    def _mask_by_position(self, rows: _Rows) -> Mask:
        """Rows left against all cached columns."""
        if not self.config.causal:
            return Mask()
        columns = torch.arange(rows.layout.length, device=rows.positions.device)
        return Mask(tensor=columns <= rows.positions[:, None])

    def _mask_of_tail(self, rows: _Rows, first: int, stop: int, keys: Tensor, mask: Mask) -> Mask:
        """The mask for the rows ``first..stop`` of the current sequence."""
        if not self.config.causal:
            return Mask()
        if mask.tensor is not None:
            return Mask(tensor=mask.tensor[first:stop])
        if first + 1 == stop == keys.shape[2]:
            return Mask()
        columns = torch.arange(keys.shape[2], device=keys.device)
        return Mask(tensor=columns <= columns[first:stop, None])

    def _observe(
        self,
        rows: _Rows,
        number: int,
        group: RowGroup,
        prune: PrunePass,
        x: Tensor,
        queries: Tensor | None,
        keys: Tensor,
    ) -> None:
        """Side product of one layer: requested rows x vision columns, averaged over heads."""
        pick = row_index(rows.layout, group, rows.dropped, x.device)
        if queries is None:
            selected = self.layers[number - 1].attn.project_queries(
                take(x, pick, 1), take(rows.cos, pick, 0), take(rows.sin, pick, 0)
            )
        else:
            selected = take(queries, pick, 2)
        attention = self._attention_rows(selected, keys, rows, pick)
        rows.observed.append(ObservedAttention(number, attention.shape[0], keys.shape[2]))
        prune.observe(number, group, attention)

    def _attention_rows(
        self, queries: Tensor, keys: Tensor, rows: _Rows, pick: slice | Tensor
    ) -> Tensor:
        """Head-mean softmax over all visible keys, cut to the vision columns: ``[m, vision]``."""
        columns = keys.shape[2]
        hidden = None
        if self.config.causal:
            index = torch.arange(columns, device=keys.device)
            if columns != rows.length:  # reuse: columns are positions
                hidden = index > take(rows.positions, pick, 0)[:, None]
            else:
                hidden = index > take(index, pick, 0)[:, None]
        if columns == rows.length:
            return head_mean(queries, keys, slice(rows.start, rows.start + rows.vision), hidden)
        every = slice(rows.start, rows.start + rows.layout.vision_tokens)
        return head_mean(queries, keys, every, hidden).index_select(-1, rows.ids)

    def _select(self, rows: _Rows, prune: PrunePass, boundary: int) -> None:
        """Ask the pruner which vision rows stay, and let the others go."""
        start, stop = rows.start, rows.start + rows.vision
        choice = prune.select(boundary, rows.hidden[0, start:stop])
        merged = 0 if choice.merge is None else choice.merge.shape[0]
        left = choice.keep.shape[0] + merged
        wanted = prune.schedule.prune[boundary]
        if wanted is not None and left != wanted:
            raise ValueError(
                f'boundary {boundary}: the schedule announced {wanted} vision tokens, the '
                f'selection has {left}'
            )
        if prune.schedule.reuse:
            if merged:
                raise ValueError(f'boundary {boundary}: reuse and merge cannot go together')
            rows.reusing = True
        index = torch.cat(
            (
                torch.arange(start, device=choice.keep.device),
                choice.keep + start,
                *(() if merged == 0 else (choice.merge_position + start,)),
                torch.arange(stop, rows.length, device=choice.keep.device),
            )
        )
        hidden = rows.hidden.index_select(1, index)
        if merged:
            new = choice.merge.to(rows.hidden.dtype) @ rows.hidden[0, start:stop]
            first = start + choice.keep.shape[0]
            hidden = torch.cat((hidden[:, :first], new[None], hidden[:, first + merged :]), 1)
        rows.hidden = hidden
        # Not computed anew from what was rounded: keep-all must equal dense bit for bit.
        known = rows.normed is not None and not merged
        rows.normed = rows.normed.index_select(1, index) if known else None
        rows.cos = rows.cos.index_select(0, index)
        rows.sin = rows.sin.index_select(0, index)
        rows.positions = rows.positions.index_select(0, index)
        ids = rows.ids.index_select(0, choice.keep)
        rows.ids = torch.cat((ids, ids.new_full((merged,), -1))) if merged else ids
        rows.vision = left

    def _check(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        schedule: PruneSchedule,
        prune: PrunePass | None,
        cache: KVCache | None,
        read: tuple[int, int] | None,
    ) -> None:
        depth = self.config.depth
        if hidden.ndim != 3 or hidden.shape[1] != layout.length:
            raise ValueError(
                f'hidden must be [1, {layout.length}, {self.config.width}], is '
                f'{list(hidden.shape)}'
            )
        if hidden.shape[0] != 1 and (prune is not None or cache is not None):
            raise ValueError(f'a pruned or cached pass takes one query, got {hidden.shape[0]}')
        if (layout.depth, layout.causal) != (depth, self.config.causal):
            raise ValueError(
                f'layout says depth {layout.depth}, causal {layout.causal}; the decoder has '
                f'{depth}, {self.config.causal}'
            )
        nothing = (layout.length, layout.length)
        if (
            read is not None
            and read != nothing
            and not layout.vision_stop <= read[0] < read[1] <= layout.length
        ):
            raise ValueError(
                f'read {read} must lie behind the images: {layout.vision_stop}..{layout.length}'
            )
        for name, numbers, low in (
            ('observed_layers', schedule.observed_layers, 1),
            ('prune', schedule.prune, 0),
            ('skip', schedule.skip, 1),
        ):
            wrong = sorted(n for n in numbers if not low <= n <= depth)
            if wrong:
                raise ValueError(f'schedule.{name} names {wrong}; allowed are {low}..{depth}')
        deaf = sorted(set(schedule.observed_layers) & set(schedule.skip))
        if deaf:
            raise ValueError(f'schedule observes at skipped layers {deaf}')
        if len(schedule.skip) >= depth:
            raise ValueError(f'schedule skips all {depth} layers')
        if (
            schedule.reuse
            and schedule.prune
            and (cache is None or not cache.filled(layout.length))
        ):
            raise ValueError(
                'schedule.reuse needs a cache filled by a previous query of '
                f'{layout.length} rows: run one dense query with it first'
            )
