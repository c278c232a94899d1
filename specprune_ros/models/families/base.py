"""What the families share: a query's input rows, and where each kind of row sits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.pruning.interface import LatencyCurve, TokenLayout


@dataclass(frozen=True)
class Embedded:
    """Input rows of one query and where each kind sits.

    ``hidden``: ``[1, L, D]``. ``vision``: ``[V, D]`` projected vision tokens. ``text``: ``[P, D]``
    input embeddings of the prompt rows, in the order of ``layout.prompt``.
    """

    hidden: Tensor
    layout: TokenLayout
    vision: Tensor
    text: Tensor


class PolicyNetwork(nn.Module):
    """A policy network: ``embed``, then ``decoder``, then ``head``. A family gives ``layout``,
    ``embed_rows``, ``noise`` and ``head``.
    """

    latency_curve: LatencyCurve | None = None  # what rows cost where it runs, once measured
    batches = False  # whether queries of one layout can run together (decoder_batch)
    config: PolicyConfig
    decoder: Decoder

    def layout(self, prompt: Prompt, cameras: int | None = None) -> TokenLayout:
        """Where every row of a query with this prompt sits (and so many cameras, for a family
        that takes fewer than all).
        """
        raise NotImplementedError

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None, vision_at: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Batched :meth:`embed`: prompts of one length, each with its own ids.

        ``pixels`` ``[B, cameras, 3 * towers, S, S]``, ``ids`` ``[B, P]``, the images after the
        first ``vision_at`` of them, ``proprio`` ``[B, proprio_dim]`` or ``None``. Returns rows
        ``[B, L, D]`` and vision ``[B, V, D]``. Raises ``ValueError`` on shapes that do not fit
        the configuration.
        """
        raise NotImplementedError

    def read(self, layout: TokenLayout) -> tuple[int, int]:
        """The rows the head needs, the decoder's ``read``; none where the head goes on from keys
        and values.
        """
        return layout.action

    def embed(
        self,
        pixels: Tensor,
        prompt: Prompt,
        proprio: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Embedded:
        """Images, words and proprioception to decoder input rows.

        ``pixels``: normalised ``[cameras, 3 * towers, S, S]``, or ``[B, cameras, ...]`` for
        training (one prompt for the batch, or :meth:`embed_rows`). ``proprio``: ``[proprio_dim]``
        or ``[B, proprio_dim]``, for a family that reads it here. ``ids``: the prompt's ids
        ``[1, P]`` where they lie on the device already; another instruction of the same layout
        can then take their place.
        """
        ids = id_rows(prompt.ids, pixels.device) if ids is None else ids
        batched = pixels if pixels.ndim == 5 else pixels[None]
        if proprio is not None and proprio.ndim == 1:
            proprio = proprio[None]
        ids = ids.expand(len(batched), -1)
        hidden, vision = self.embed_rows(batched, ids, proprio, prompt.vision_at)
        layout = self.layout(prompt, batched.shape[1])
        first, count = layout.prompt[0], len(layout.prompt)
        return Embedded(hidden, layout, vision[0], hidden[0, first : first + count])

    def place(
        self, prompt: Prompt, shift: int, action: tuple[int, int], length: int, **others: int
    ) -> TokenLayout:
        """A layout whose prompt rows after the images are ``shift`` behind their place in the
        prompt. ``others``: fields that are not as this family's usually are.
        """
        fields = {
            'cameras': len(self.config.cameras),
            'vision_start': prompt.vision_at,
            'causal': True,
            **others,
        }
        return TokenLayout(
            grid=self.config.grid,
            text=tuple(shift + i for i in range(*prompt.instruction)),
            prompt=tuple(range(shift + fields['vision_start'], shift + len(prompt.ids))),
            action=action,
            length=length,
            depth=self.config.decoder.depth,
            latency_curve=self.latency_curve,
            **fields,
        )

    def proprio_row(self, module: nn.Module, proprio: Tensor | None, like: Tensor) -> Tensor:
        """``module`` on ``proprio`` ``[B, proprio_dim]``: a row ``[B, 1, D]`` of the dtype of
        ``like`` ``[B, ...]``. Raises ``ValueError`` for another shape.
        """
        want = (len(like), self.config.proprio_dim)
        if proprio is None or proprio.shape != want:
            got = None if proprio is None else list(proprio.shape)
            raise ValueError(f'proprio must be {list(want)}, is {got}')
        return module(proprio.to(like.dtype))[:, None]
