"""CogACT and DB-CogACT: causal decoder, one cognition row, diffusion transformer head.

Sequence (``docs/how-to/checkpoints.md``): prompt up to the images (CogACT: BOS), vision, rest of
the prompt (its last id is the stop token). Only the last row, after the final norm, conditions the
head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder, DecoderOutput
from specprune_ros.models.families.base import PolicyNetwork
from specprune_ros.models.families.dit import DiT, start_noise
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt
from specprune_ros.models.vision import Projector, VisionBackbone
from specprune_ros.pruning.interface import TokenLayout


class CogACT(PolicyNetwork):
    """The policy network; its head is kept in float32."""

    batches = True

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, config.projector, width)
        self.decoder = Decoder(config.decoder)
        self.action_head = DiT(config.dit, width, config.action_dim, config.chunk)

    def layout(self, prompt: Prompt, cameras: int | None = None) -> TokenLayout:
        """See :class:`PolicyNetwork`."""
        v = self.config.vision_tokens
        length = v + len(prompt.ids)
        return self.place(prompt, v, (length - 1, length), length)

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None, vision_at: int = 1
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PolicyNetwork`; proprioception is not used."""
        check_count(pixels.shape[1], self.config.cameras)
        words = self.decoder.embed_tokens(ids)
        vision = self.projector(self.vision(pixels.flatten(0, 1).to(words.dtype)))
        vision = vision.reshape(len(pixels), self.config.vision_tokens, -1)
        return torch.cat((words[:, :vision_at], vision, words[:, vision_at:]), 1), vision

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
