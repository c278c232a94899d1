"""DB-OFT (Dexbotic): one CLIP tower and a causal decoder that reads or denoises the actions.

Sequence (``docs/how-to/checkpoints.md``): text before the images, vision, text after,
proprioception (if used), then the action rows. Head ``Linear``: K * D learned queries, one pass,
actions from their own rows, unshifted. Head ``DiT``: a row for the diffusion time and K * D rows
of the noisy chunk, once per DDIM step; what comes before them is run once and its keys and values
are kept.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Context, Decoder, DecoderOutput
from specprune_ros.models.families.base import PolicyNetwork
from specprune_ros.models.families.dit import ddim_steps, ddim_update, leading_times, start_noise
from specprune_ros.models.families.oft import L1Head, ProprioProjector
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt
from specprune_ros.models.vision import Projector, VisionBackbone
from specprune_ros.pruning.interface import TokenLayout


class DBOFT(PolicyNetwork):
    """The policy network."""

    batches = True

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, config.projector, width)
        self.proprio = ProprioProjector(config.proprio_dim, width) if config.proprio_dim else None
        self.decoder = Decoder(config.decoder)
        if config.ddim is None:
            self.action_query = nn.Parameter(torch.zeros(1, config.action_tokens, width))
        else:
            self.noisy_action = ProprioProjector(1, width)  # one row per single number
        self.action_head = L1Head(width, config.action_dim, config.head_blocks)

    def layout(self, prompt: Prompt, cameras: int | None = None) -> TokenLayout:
        """See :class:`PolicyNetwork`."""
        v, r = self.config.vision_tokens, int(self.config.proprio_dim > 0)
        first = v + len(prompt.ids) + r
        last = first + (self.config.action_tokens if self.config.ddim is None else 0)
        return self.place(prompt, v, (first, last), last)

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None, vision_at: int = 1
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PolicyNetwork`; proprioception comes raw."""
        check_count(pixels.shape[1], self.config.cameras)
        words = self.decoder.embed_tokens(ids)
        vision = self.projector(self.vision(pixels.flatten(0, 1).to(words.dtype)))
        vision = vision.reshape(len(pixels), self.config.vision_tokens, -1)
        parts = [words[:, :vision_at], vision, words[:, vision_at:]]
        if self.proprio is not None:
            parts.append(self.proprio_row(self.proprio, proprio, words))
        if self.config.ddim is None:
            parts.append(self.action_query.expand(len(pixels), -1, -1))
        return torch.cat(parts, 1), vision

    def noise(self, seed: int | None = None) -> Tensor | None:
        """What the DiT head starts from, float32 ``[K, D]`` (:func:`start_noise`), or nothing."""
        if self.config.ddim is None:
            return None
        return start_noise(self.config, self.action_head.fc2.weight.device, seed)

    def head(
        self, output: DecoderOutput, layout: TokenLayout, noise: Tensor | None = None
    ) -> Tensor:
        """Normalised actions ``[K, D]``; the DiT head starts from ``noise`` (``None``: drawn
        afresh).
        """
        ddim = self.config.ddim
        if ddim is None:
            return self.action_head(output.rows(*layout.action, layout))[0]
        x = self.noise() if noise is None else noise
        times = leading_times(ddim.train_steps, ddim.steps)
        for step, now, before in ddim_steps(ddim.train_steps, times):
            eps = self.predict_noise(output.context, layout.length, x, step)
            x = ddim_update(x, eps, now, before, limit=1.0)
        return x

    def predict_noise(self, context: Context, start: int, x: Tensor, step: int) -> Tensor:
        """Noise, float32 ``[K, D]``, in the chunk ``x`` ``[K, D]`` at diffusion time ``step``,
        given the ``context`` of ``start`` positions.
        """
        kind = self.decoder.embed_tokens.weight.dtype
        time = time_code(step, self.config.decoder.width, x.device).to(kind)
        rows = self.noisy_action(x.reshape(1, -1, 1).to(kind))
        rows = torch.cat((time[None, None], rows), 1)
        out = self.decoder.extend(rows, context, start, skip=1)
        return self.action_head(out.hidden)[0].float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def time_code(step: int, width: int, device: torch.device) -> Tensor:
    """float32 ``[width]``: sines, then cosines, of step * exp(-ln(10000) k / (width / 2 - 1)).

    Not CogACT's, which has cosines first and another divisor.
    """
    half = width // 2
    angle = step * torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    return torch.cat((angle.sin(), angle.cos())).to(device)
