"""CogACT and DB-CogACT: causal decoder, one cognition row, diffusion transformer head.

Sequence (``docs/how-to/checkpoints.md``): prompt up to the images (CogACT: BOS), vision, rest of
the prompt (its last id is the stop token). Only the last row, after the final norm, conditions the
head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder, DecoderOutput
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.families.dit import DiT, start_noise
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.models.vision import Projector, VisionBackbone
from specprune_ros.pruning.interface import LatencyCurve, TokenLayout


class CogACT(nn.Module):
    """The policy network. ``embed``, then ``decoder``, then ``head`` (kept in float32)."""

    latency_curve: LatencyCurve | None = None  # what rows cost where it runs, once measured
    batches = True  # queries of one layout can run together (decoder_batch)

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
        v, p, at = self.config.vision_tokens, len(prompt.ids), prompt.vision_at
        return TokenLayout(
            cameras=len(self.config.cameras),
            grid=self.config.grid,
            vision_start=at,
            text=tuple(v + i for i in range(*prompt.instruction)),
            prompt=tuple(range(v + at, v + p)),
            action=(v + p - 1, v + p),
            length=v + p,
            depth=self.config.decoder.depth,
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
        """``pixels`` ``[cameras, 3 * towers, S, S]`` normalised; ``proprio`` is not used; ``ids``
        the prompt's ``[1, P]`` where they lie on the device already.
        """
        check_count(pixels.shape[0], self.config.cameras)
        ids = id_rows(prompt.ids, pixels.device) if ids is None else ids
        words = self.decoder.embed_tokens(ids)
        vision = self.projector(self.vision(pixels.to(words.dtype))).flatten(0, 1)
        at = prompt.vision_at
        hidden = torch.cat((words[:, :at], vision[None], words[:, at:]), 1)
        return Embedded(hidden, self.layout(prompt), vision=vision, text=words[0, at:])

    def noise(self, seed: int | None = None) -> Tensor:
        """What the head starts from, float32 ``[K, D]`` (:func:`start_noise`)."""
        return start_noise(self.config, self.action_head.uncondition.device, seed)

    def head(
        self, output: DecoderOutput, layout: TokenLayout, noise: Tensor | None = None
    ) -> Tensor:
        """Normalised actions ``[K, D]``, float32, from ``noise`` (``None``: drawn afresh)."""
        condition = output.rows(*layout.action, layout)[0, -1].float()
        start = self.noise() if noise is None else noise
        return self.action_head.sample(condition, start)
