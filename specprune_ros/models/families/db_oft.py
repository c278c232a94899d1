"""DB-OFT (Dexbotic): one CLIP tower, causal Qwen2, learned action queries, L1 head.

Sequence (``docs/checkpoints.md``): text before the images, vision, text after, proprioception
(if used), K * D learned queries. The head reads the queries' own rows, unshifted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder, DecoderOutput
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.families.oft import L1Head, ProprioProjector
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.models.vision import Projector, VisionBackbone
from specprune_ros.pruning.interface import LatencyCurve, TokenLayout


class DBOFT(nn.Module):
    """The policy network. ``embed``, then ``decoder``, then ``head``."""

    latency_curve: LatencyCurve | None = None  # what rows cost where it runs, once measured

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, config.projector, width)
        self.proprio = ProprioProjector(config.proprio_dim, width) if config.proprio_dim else None
        self.decoder = Decoder(config.decoder)
        self.action_query = nn.Parameter(torch.zeros(1, config.action_tokens, width))
        self.action_head = L1Head(width, config.action_dim, config.head_blocks)

    def layout(self, prompt: Prompt) -> TokenLayout:
        """Where every row of a query with this prompt sits."""
        config = self.config
        v, r = config.vision_tokens, int(config.proprio_dim > 0)
        first = v + len(prompt.ids) + r
        return TokenLayout(
            cameras=len(config.cameras),
            grid=config.grid,
            vision_start=prompt.vision_at,
            text=tuple(v + i for i in range(*prompt.instruction)),
            prompt=tuple(range(v + prompt.vision_at, v + len(prompt.ids))),
            action=(first, first + config.action_tokens),
            length=first + config.action_tokens,
            depth=config.decoder.depth,
            causal=True,
            latency_curve=self.latency_curve,
        )

    def read(self, layout: TokenLayout) -> tuple[int, int]:
        """The rows the head needs: the argument ``read`` of the decoder."""
        return layout.action

    def embed(
        self,
        pixels: Tensor,
        prompt: Prompt,
        proprio: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Embedded:
        """``pixels`` ``[cameras, 3, S, S]`` normalised, ``proprio`` ``[proprio_dim]`` raw, ``ids``
        the prompt's ``[1, P]`` where they lie on the device already.
        """
        check_count(pixels.shape[0], self.config.cameras)
        ids = id_rows(prompt.ids, pixels.device) if ids is None else ids
        words = self.decoder.embed_tokens(ids)
        vision = self.projector(self.vision(pixels.to(words.dtype))).flatten(0, 1)
        parts = [words[:, : prompt.vision_at], vision[None], words[:, prompt.vision_at :]]
        if self.proprio is not None:
            if proprio is None or proprio.shape != (self.config.proprio_dim,):
                raise ValueError(
                    f'proprio must be [{self.config.proprio_dim}], is '
                    f'{None if proprio is None else list(proprio.shape)}'
                )
            parts.append(self.proprio(proprio.to(words.dtype))[None, None])
        hidden = torch.cat((*parts, self.action_query), 1)
        text = words[0, prompt.vision_at :]
        return Embedded(hidden=hidden, layout=self.layout(prompt), vision=vision, text=text)

    def noise(self, seed: int | None = None) -> None:
        """This head draws none."""

    def head(
        self, output: DecoderOutput, layout: TokenLayout, noise: Tensor | None = None
    ) -> Tensor:
        """Normalised actions ``[K, D]``. ``noise`` is not used."""
        return self.action_head(output.rows(*layout.action, layout))[0]
