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
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.preprocess import check_count
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.models.vision import PositionCode, Projector, VisionBackbone
from specprune_ros.pruning.interface import LatencyCurve, TokenLayout


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


class OpenVLAOFT(nn.Module):
    """The policy network. ``embed``, then ``decoder``, then ``head``."""

    latency_curve: LatencyCurve | None = None  # what rows cost where it runs, once measured
    batches = True  # queries of one layout can run together (decoder_batch)

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

    def layout(self, prompt: Prompt) -> TokenLayout:
        """Where every row of a query with this prompt sits."""
        config = self.config
        v, r = config.vision_tokens, int(config.proprio_dim > 0)
        p, a = len(prompt.ids), config.action_tokens
        shift = v + r  # prompt ids after BOS move behind the images and the proprioception
        first = v + r + p - 1  # the row before the first zero row
        return TokenLayout(
            cameras=len(config.cameras),
            grid=config.grid,
            vision_start=1,
            text=tuple(shift + i for i in range(*prompt.instruction)),
            prompt=tuple(range(shift + 1, shift + p)),
            action=(first, first + a),
            length=v + r + p + a + 1,
            depth=config.decoder.depth,
            causal=False,
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
        """Images, words and proprioception to decoder input rows.

        ``pixels``: normalised ``[cameras, 3 * towers, S, S]``, or ``[B, cameras, ...]`` for
        training (one prompt for the batch, or ``embed_rows``). ``proprio``: normalised
        ``[proprio_dim]`` or ``[B, proprio_dim]``. ``ids``: the prompt's ids ``[1, P]`` where they
        lie on the device already; another instruction of the same layout can then take their
        place.
        """
        ids = id_rows(prompt.ids, pixels.device) if ids is None else ids
        batched = pixels if pixels.ndim == 5 else pixels[None]
        if proprio is not None and proprio.ndim == 1:
            proprio = proprio[None]
        hidden, vision = self.embed_rows(batched, ids.expand(batched.shape[0], -1), proprio)
        layout = self.layout(prompt)
        first = layout.prompt[0]
        text = hidden[0, first : first + len(layout.prompt)]
        return Embedded(hidden=hidden, layout=layout, vision=vision[0], text=text)

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Batched :meth:`embed`: prompts of one length, each with its own ids.

        ``pixels`` ``[B, cameras, 3 * towers, S, S]``, ``ids`` ``[B, P]`` with BOS and the tail,
        ``proprio`` ``[B, proprio_dim]`` or ``None``. Returns rows ``[B, L, D]`` and vision
        ``[B, V, D]``. Raises ``ValueError`` on shapes that do not fit the configuration.
        """
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
            if proprio is None or proprio.shape != (batch, config.proprio_dim):
                raise ValueError(
                    f'proprio must be [{batch}, {config.proprio_dim}], is '
                    f'{None if proprio is None else list(proprio.shape)}'
                )
            parts.append(self.proprio(proprio.to(words.dtype))[:, None])
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
