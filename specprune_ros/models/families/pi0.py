"""pi0 and pi0.5 (openpi, lerobot): SigLIP, a Gemma prefix read once, a flow-matching expert.

Prefix: the images of the cameras that are there, then the prompt; bidirectional. The action
expert, a narrower Gemma, attends to the prefix's keys and values layer by layer and to its own
rows, and turns noise into a chunk in a few Euler steps. pi0.5 differs in two things: the state is
text of the prompt, not a row of the expert, and time enters through adaptive norms.

Absent cameras and padding, which the authors' code masks out, are left out altogether: positions
count valid rows, so the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Context, Decoder, DecoderOutput
from specprune_ros.models.families.base import PolicyNetwork
from specprune_ros.models.tokens import Prompt
from specprune_ros.models.vision import Projector, VisionBackbone
from specprune_ros.pruning.interface import PrunePass, RowGroup, TokenLayout

OBSERVED_STEPS = 3  # the last ones, when the action has taken shape, are what the prior is made of


class Guide(NamedTuple):
    """What real-time chunking pulls a chunk towards.

    ``previous``: float32 ``[K, W]``, rows of the chunk before in model space, zeros where there is
    none. ``weights``: float32 ``[K]``, 1 where it must be met, 0 where it is free. ``strength``:
    float32 ``[steps]``, the weight of the correction in each step.
    """

    previous: Tensor
    weights: Tensor
    strength: Tensor


def integrate(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    steps: int,
    guide: Guide | None = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Euler's method from noise (time 1) to actions (time 0), float32 ``[1, K, W]``.

    ``velocity(x, step)`` is that of ``x`` at time ``1 - step / steps``. With ``guide`` the end
    that x is heading for is pulled towards the previous chunk's rows. ``trace`` is given x
    ``[K, W]`` after each step.
    """
    x = noise
    for step in range(steps):
        v = velocity(x, step)
        if guide is not None:
            clean = x - (1 - step / steps) * v
            error = (guide.previous - clean) * guide.weights[:, None]
            v = v - guide.strength[step] * error
        x = x - v / steps
        if trace is not None:
            trace.append(x[0])
    return x


class FlowPolicy(PolicyNetwork):
    """The policy network; the decoder's keys and values are what the head goes on from."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        flow = config.flow
        width = flow.expert.width
        self.vision = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, config.projector, config.decoder.width)
        self.decoder = Decoder(config.decoder)
        self.expert = Decoder(flow.expert)
        self.action_in = nn.Linear(flow.width, width)
        self.action_out = nn.Linear(width, flow.width)
        adaptive = flow.expert.adaptive
        self.state_in = None if adaptive else nn.Linear(flow.width, width)
        self.time_in = nn.Linear(width if adaptive else 2 * width, width)
        self.time_out = nn.Linear(width, width)
        self._codes: dict[int, tuple[Tensor, ...]] = {}

    def train(self, mode: bool = True) -> FlowPolicy:
        """As any module's; what was tabulated from the weights is forgotten."""
        self._codes.clear()
        return super().train(mode)

    def layout(self, prompt: Prompt, cameras: int | None = None) -> TokenLayout:
        """See :class:`PolicyNetwork`."""
        config = self.config
        cameras = len(config.cameras) if cameras is None else cameras
        vision = cameras * config.grid[0] * config.grid[1]
        length = vision + len(prompt.ids)
        return self.place(
            prompt, vision, (length, length), length,
            cameras=cameras, vision_start=0, causal=False, expert_rows=config.chunk,
        )  # fmt: skip

    def embed_rows(
        self, pixels: Tensor, ids: Tensor, proprio: Tensor | None = None, vision_at: int = 0
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PolicyNetwork`: prefix rows of the cameras that are there, in the
        configuration's order, then the prompt. ``proprio`` is not of the prefix (pi0.5: it is in
        the prompt).
        """
        words = self.decoder.embed(ids)
        vision = self.projector(self.vision(pixels.flatten(0, 1).to(words.dtype)))
        vision = vision.reshape(len(pixels), -1, vision.shape[-1])
        return torch.cat((vision, words), 1), vision

    def noise(self, seed: int | None = None) -> Tensor:
        """What the sampler starts from, float32 ``[K, W]``: the same for a seed, afresh for
        ``None``.
        """
        device = self.action_in.weight.device
        generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
        shape = (self.config.chunk, self.config.flow.width)
        return torch.randn(shape, generator=generator, device=device)

    def with_state(
        self, context: Context, start: int, proprio: Tensor | None
    ) -> tuple[Context, int]:
        """The context of the action rows, and the first one's position.

        pi0's state row (``proprio`` normalised, ``[P]`` or ``[B, P]``) sees the prefix and itself
        and no action row, so it is the same in all steps: it is run once and joins the context.
        """
        if self.state_in is None:
            return context, start
        flow = self.config.flow
        if proprio is None or proprio.shape[-1] > flow.width:
            got = None if proprio is None else list(proprio.shape)
            raise ValueError(f'the state must be [{self.config.proprio_dim}], is {got}')
        rows = F.pad(proprio.float(), (0, flow.width - proprio.shape[-1]))
        row = self.state_in(rows.reshape(-1, 1, flow.width)).to(context[0][0].dtype)
        return self.expert.extend(row, context, start).context, start + 1

    def code(self, time: Tensor) -> Tensor:
        """The condition made of ``time`` ``[...]`` (1 is noise, 0 the action): pi0.5's
        modulations ``[2 * depth + 1, 3, ..., w]``, pi0's part of the first layer ``[..., w]``.
        """
        flow, width = self.config.flow, self.config.flow.expert.width
        fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
        period = flow.min_period * (flow.max_period / flow.min_period) ** fraction
        angle = 2 * math.pi * time.double()[..., None] / period
        features = torch.cat((angle.sin(), angle.cos()), -1).to(self.time_in.weight.dtype)
        if not flow.expert.adaptive:
            return F.linear(features, self.time_in.weight[:, width:], self.time_in.bias)
        return self.expert.modulations(F.silu(self.time_out(F.silu(self.time_in(features)))))

    def codes(self, steps: int) -> tuple[Tensor, ...]:
        """:meth:`code` of every step. Time takes the same few values in every query: they are
        computed once, so that the weights behind them need not be read again.
        """
        if steps not in self._codes:
            device = self.action_in.weight.device
            times = [torch.tensor(1 - s / steps, device=device) for s in range(steps)]
            self._codes[steps] = tuple(self.code(time) for time in times)
        return self._codes[steps]

    def velocity(
        self,
        x: Tensor,
        code: Tensor,
        context: Context,
        start: int,
        observe: Mapping[int, tuple[int, int]] | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Velocity, float32, of the rows ``x`` float32 ``[B, K, W]``, and the attention over the
        context's columns in ``observe`` (see :meth:`Decoder.extend`).
        """
        rows = self.action_in(x.to(self.action_in.weight.dtype))
        modulation = code
        if not self.config.flow.expert.adaptive:
            modulation = None
            mixed = F.linear(rows, self.time_in.weight[:, : rows.shape[-1]]) + code
            rows = self.time_out(F.silu(mixed))
        rows = rows.to(context[0][0].dtype)
        out = self.expert.extend(rows, context, start, modulation=modulation, observe=observe)
        return self.action_out(out.hidden.to(self.action_out.weight.dtype)).float(), out.observed

    def sample(
        self,
        output: DecoderOutput,
        layout: TokenLayout,
        noise: Tensor | None = None,
        proprio: Tensor | None = None,
        guide: Guide | None = None,
        prune: PrunePass | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """A chunk in model space, float32 ``[K, W]``, from ``noise`` (``None``: drawn afresh).

        ``prune`` receives what the action rows attended to. ``trace`` is given x after each step.
        """
        start_from = (self.noise() if noise is None else noise)[None]
        # From the unpruned count: positions are kept.
        context, start = self.with_state(output.context, layout.length, proprio)
        codes = self.codes(self.config.flow.steps)
        observe = {}
        for layer, groups in ({} if prune is None else prune.schedule.observed_layers).items():
            if RowGroup.ACTION in groups:
                first = layout.vision_start
                observe[layer] = first, first + output.layer_tokens[layer - 1]
        observed: dict[int, Tensor] = {}
        steps = len(codes)
        counted = min(OBSERVED_STEPS, steps)

        def velocity(x: Tensor, step: int) -> Tensor:
            last = step >= steps - counted
            v, found = self.velocity(x, codes[step], context, start, observe if last else None)
            for layer, attention in found.items():
                observed[layer] = observed[layer] + attention if layer in observed else attention
            return v

        x = integrate(velocity, start_from, steps, guide, trace)
        for layer, attention in observed.items():
            prune.observe(layer, RowGroup.ACTION, attention / counted)
        return x[0]

    def head(
        self,
        output: DecoderOutput,
        layout: TokenLayout,
        noise: Tensor | None = None,
        **steering: Any,
    ) -> Tensor:
        """Normalised actions ``[K, D]``, float32; ``steering`` as :meth:`sample` takes it."""
        return self.sample(output, layout, noise, **steering)[:, : self.config.action_dim]
