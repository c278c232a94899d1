"""Several queries of one layout through the decoder at once, each with a pruner of its own.

Everything that works row by row (projections, norms, MLP) sees the queries as one long sequence
``[1, B * L, D]``, so that weights are read once; attention sees them apart, ``[B, heads, L, d]``.
Which rows leave differs from query to query; how many does not, because schedules are static.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specprune_ros.models.decoder import Decoder, DecoderOutput, LayerRows, _Rows
from specprune_ros.models.decoder_layer import Mask
from specprune_ros.pruning.interface import PrunePass, TokenLayout


def decode_batch(
    decoder: Decoder,
    hidden: Tensor,
    layout: TokenLayout,
    passes: Sequence[PrunePass],
    read: tuple[int, int] | None = None,
) -> list[DecoderOutput]:
    """Run queries ``hidden`` ``[B, L, D]``; each output is that of :meth:`Decoder.forward` for the
    query alone, but for what another order of sums does to its last bits.

    Raises ``ValueError`` where schedules differ, reuse a cache or are not static.
    """
    return _Batch(decoder, hidden, layout, passes, read).run()


class _Batch:
    def __init__(
        self,
        decoder: Decoder,
        hidden: Tensor,
        layout: TokenLayout,
        passes: Sequence[PrunePass],
        read: tuple[int, int] | None,
    ) -> None:
        self.decoder, self.passes, self.read = decoder, passes, read
        self.schedule = schedule = passes[0].schedule
        if any(other.schedule != schedule for other in passes):
            raise ValueError('the queries of a batch must share one schedule')
        if schedule.reuse or not schedule.static:
            raise ValueError('a batch takes schedules of static shapes, without reuse')
        if len(passes) != len(hidden):
            raise ValueError(f'{len(hidden)} queries with {len(passes)} pruner passes')
        decoder._check(hidden[:1], layout, schedule, passes[0], None, read)
        self.queries = [decoder._begin(hidden[i : i + 1], layout) for i in range(len(hidden))]
        self.hidden, self.normed = hidden.flatten(0, 1)[None], None
        self._tables()

    def _tables(self) -> None:
        """Rotations of all rows, by their original positions."""
        self.cos = torch.cat([query.cos for query in self.queries])
        self.sin = torch.cat([query.sin for query in self.queries])

    @property
    def length(self) -> int:
        """Rows of one query."""
        return self.hidden.shape[1] // len(self.queries)

    def run(self) -> list[DecoderOutput]:
        """All layers."""
        decoder, schedule = self.decoder, self.schedule
        depth = decoder.config.depth
        run = [n for n in range(1, depth + 1) if n not in schedule.skip]
        norms = [*(decoder.layers[n - 1].attn_norm for n in run[1:]), decoder.norm]
        after = dict(zip(run, norms, strict=True))
        if 0 in schedule.prune:
            self._select(0)
        for number in range(1, depth + 1):
            if number in after:
                self._layer(number, after[number], self.read if number == run[-1] else None)
            else:
                for query in self.queries:
                    query.work.append(LayerRows(0, 0, 0))
                    query.tokens.append(0)
            if number in schedule.prune:
                if number >= run[-1] and self.read is not None:
                    raise ValueError(f'boundary {number} comes after the last layer')
                self._select(number)
        hidden = decoder.norm(self.hidden) if self.normed is None else self.normed
        return [
            self._output(*pair) for pair in zip(self.queries, self._apart(hidden), strict=True)
        ]

    def _output(self, query: _Rows, hidden: Tensor) -> DecoderOutput:
        positions = query.positions
        if self.read is not None:
            positions = torch.arange(*self.read, device=hidden.device)
        return DecoderOutput(
            hidden=hidden,
            positions=positions,
            vision_ids=query.ids,
            layer_tokens=tuple(query.tokens),
            layer_rows=tuple(work.queries for work in query.work),
            work=tuple(query.work),
            observed=tuple(query.observed),
            read=self.read,
        )

    def _apart(self, rows: Tensor) -> list[Tensor]:
        """``[1, B * n, ...]`` to B of ``[1, n, ...]``."""
        return list(rows.chunk(len(self.queries), 1))

    def _heads(self, rows: Tensor) -> Tensor:
        """``[1, heads, B * n, d]`` to ``[B, heads, n, d]``."""
        return rows[0].unflatten(1, (len(self.queries), -1)).transpose(0, 1)

    def _cut(self, rows: Tensor, first: int, stop: int) -> Tensor:
        """Rows ``first..stop`` of every query: ``[1, B * n, ...]`` to ``[1, B * m, ...]``."""
        apart = rows.unflatten(1, (len(self.queries), -1))
        return apart[:, :, first:stop].flatten(1, 2)

    def _layer(self, number: int, after: torch.nn.RMSNorm, read: tuple[int, int] | None) -> None:
        block, sample = self.decoder.layers[number - 1], self.queries[0]
        x = block.attn_norm(self.hidden) if self.normed is None else self.normed
        residual, inputs = self.hidden, self.length
        queries: Tensor | None = None
        if read is None:
            queries, keys, values = block.attn.project(x, self.cos, self.sin)
        else:
            keys, values = block.attn.project_keys(x, self.cos, self.sin)
        if groups := self.schedule.observed_layers.get(number, ()):
            self._observe(number, groups, x, queries, keys)
        keys, values = self._heads(keys), self._heads(values)
        mask = Mask(causal=self.decoder.config.causal)
        if read is not None:
            first, stop = read[0] - sample.dropped, read[1] - sample.dropped
            cos, sin = (self._cut(table[None], first, stop)[0] for table in (self.cos, self.sin))
            queries = block.attn.project_queries(self._cut(x, first, stop), cos, sin)
            residual = self._cut(residual, first, stop)
            mask = self.decoder._mask_of_tail(sample, first, stop, keys, mask)
        mixed = block.attn.attend(self._heads(queries), keys, values, mask)
        for query in self.queries:
            query.work.append(LayerRows(inputs, mixed.shape[1], keys.shape[2]))
            query.tokens.append(query.vision)
        mixed = mixed.flatten(0, 1)[None]
        self.hidden, self.normed = block.finish(residual, mixed, after)
        for query, hidden in zip(self.queries, self._apart(self.hidden), strict=True):
            query.hidden = hidden

    def _observe(
        self, number: int, groups: tuple, x: Tensor, queries: Tensor | None, keys: Tensor
    ) -> None:
        n = self.length
        for index, (query, prune) in enumerate(zip(self.queries, self.passes, strict=True)):
            mine = slice(index * n, (index + 1) * n)
            selected = None if queries is None else queries[:, :, mine]
            for group in groups:
                self.decoder._observe(
                    query, number, group, prune, x[:, mine], selected, keys[:, :, mine]
                )

    def _select(self, boundary: int) -> None:
        normed: list[Tensor | None] = [None] * len(self.queries)
        if self.normed is not None:
            normed = self._apart(self.normed)
        for query, prune, mine in zip(self.queries, self.passes, normed, strict=True):
            query.normed = mine
            self.decoder._select(query, prune, boundary)
        self.hidden = torch.cat([query.hidden for query in self.queries], 1)
        known = [query.normed for query in self.queries if query.normed is not None]
        self.normed = torch.cat(known, 1) if len(known) == len(self.queries) else None
        self._tables()
