"""CogACT: two fused towers, causal Llama, one cognition row, diffusion transformer head.

Sequence (``docs/checkpoints.md``): BOS, vision, prompt (its last id is the stop token). Only the
last row, after the final norm, conditions the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder, DecoderOutput
from specprune_ros.models.dit import DiT
from specprune_ros.models.embedded import Embedded
from specprune_ros.models.projector import Projector
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.models.towers import VisionBackbone
from specprune_ros.pruning.interface import TokenLayout


class CogACT(nn.Module):
    """The policy network. ``embed``, then ``decoder``, then ``head`` (kept in float32)."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, config.projector, width)
        self.decoder = Decoder(config.decoder)
        self.action_head = DiT(config.dit, width, config.action_dim, config.chunk)

    def layout(self, prompt: Prompt) -> TokenLayout:
        """Where every row of a query with this prompt sits."""
        v, p = self.config.vision_tokens, len(prompt.ids)
        return TokenLayout(
            cameras=len(self.config.cameras),
            grid=self.config.grid,
            vision_start=1,
            text=tuple(v + i for i in range(*prompt.instruction)),
            prompt=tuple(range(v + 1, v + p)),
            action=(v + p - 1, v + p),
            length=v + p,
            depth=self.config.decoder.depth,
            causal=True,
        )

    def read(self, layout: TokenLayout) -> tuple[int, int]:
        """The rows the head needs: the argument ``read`` of the decoder."""
        return layout.action

    def embed(self, pixels: Tensor, prompt: Prompt, proprio: Tensor | None = None) -> Embedded:
        """``pixels`` ``[cameras, 3 * towers, S, S]`` normalised; ``proprio`` is not used."""
        if pixels.shape[0] != len(self.config.cameras):
            raise ValueError(
                f'{pixels.shape[0]} pictures given, the policy takes {len(self.config.cameras)}: '
                f'{", ".join(self.config.cameras)}'
            )
        words = self.decoder.embed_tokens(id_rows(prompt.ids, pixels.device))
        vision = self.projector(self.vision(pixels.to(words.dtype))).flatten(0, 1)
        hidden = torch.cat((words[:, :1], vision[None], words[:, 1:]), 1)
        return Embedded(hidden, self.layout(prompt), vision=vision, text=words[0, 1:])

    def head(self, output: DecoderOutput, layout: TokenLayout, seed: int | None = None) -> Tensor:
        """Normalised actions ``[K, D]``, float32.

        ``seed`` fixes the initial noise (compare pruned with dense under the same one); ``None``
        draws it afresh, as the authors do.
        """
        condition = output.rows(*layout.action, layout)[0, -1].float()
        generator = None
        if seed is not None:
            generator = torch.Generator(device=condition.device).manual_seed(seed)
        noise = torch.randn(
            self.config.chunk,
            self.config.action_dim,
            generator=generator,
            device=condition.device,
        )
        return self.action_head.sample(condition, noise)
