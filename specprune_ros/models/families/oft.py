"""OpenVLA-OFT: two fused towers, bidirectional Llama, proprioception token, L1 head.

Sequence (``docs/how-to/checkpoints.md``): BOS, vision, proprioception, prompt, K * D zero rows,
stop. The head reads the row before each zero row, after the final norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Decoder, DecoderOutput
from specprune_ros.models.families.base import PolicyNetwork
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt
from specprune_ros.models.vision import PositionCode, Projector, VisionBackbone
from specprune_ros.pruning.interface import TokenLayout


class ProprioProjector(nn.Module):
    """Proprioception to one token: Linear, GELU, Linear."""

    def __init__(self, proprio: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., proprio]`` to ``[..., width]``."""
        return self.fc2(F.gelu(self.fc1(x)))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        return x + F.relu(self.linear(self.norm(x)))


class L1Head(nn.Module):
    """MLP-ResNet that turns the D rows of one step into its D actions."""

    def __init__(self, width: int, action_dim: int, blocks: int = 2) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.layer_norm1 = nn.LayerNorm(width * action_dim)
        self.fc1 = nn.Linear(width * action_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, K * D, width]``, step-major, to ``[B, K, D]``; not clipped."""
        x = x.reshape(x.shape[0], -1, self.action_dim * x.shape[-1])
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class OpenVLAOFT(PolicyNetwork):
    """The policy network."""

    batches = True

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = VisionBackbone(config.towers, film=width if config.film else None)
        self.projector = Projector(config.vision_width, config.projector, width)
        self.position_code = PositionCode(width, config.grid) if config.position_code else None
        self.proprio = ProprioProjector(config.proprio_dim, width) if config.proprio_dim else None
        self.decoder = Decoder(config.decoder)
        self.action_head = L1Head(width, config.action_dim, config.head_blocks)

    def layout(self, prompt: Prompt, cameras: int | None = None) -> TokenLayout:
        """See :class:`PolicyNetwork`."""
        config = self.config
        v, r = config.vision_tokens, int(config.proprio_dim > 0)
        p, a = len(prompt.ids), config.action_tokens
        first = v + r + p - 1  # the row before the first zero row
        # Prompt ids after BOS move behind the images and the proprioception.
        length = v + r + p + a + 1
        return self.place(prompt, v + r, (first, first + a), length, causal=False)

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None, vision_at: int = 1
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PolicyNetwork`; the images come after BOS."""
        config = self.config
        batch, cameras = pixels.shape[:2]
        check_count(cameras, config.cameras)
        table = self.decoder.embed_tokens
        stop = table(ids.new_full((batch, 1), config.stop_id))
        words = table(ids)
        condition = None
        if config.film:
            condition = torch.cat((words, stop), 1).mean(1)
            condition = condition.repeat_interleave(cameras, 0)
        vision = self.projector(self.vision(pixels.flatten(0, 1).to(words.dtype), condition))
        if self.position_code is not None:
            vision = self.position_code(vision)
        vision = vision.reshape(batch, config.vision_tokens, -1)
        parts = [words[:, :1], vision]
        if self.proprio is not None:
            parts.append(self.proprio_row(self.proprio, proprio, words))
        placeholders = words.new_zeros(batch, config.action_tokens, words.shape[-1])
        hidden = torch.cat((*parts, words[:, 1:], placeholders, stop), 1)
        return hidden, vision

    def noise(self, seed: int | None = None) -> None:
        """This head draws none."""

    def head(
        self, output: DecoderOutput, layout: TokenLayout, noise: Tensor | None = None
    ) -> Tensor:
        """Normalised actions ``[K, D]`` (``[B, K, D]`` for a batch). ``noise`` is not used."""
        actions = self.action_head(output.rows(*layout.action, layout))
        return actions[0] if actions.shape[0] == 1 else actions
