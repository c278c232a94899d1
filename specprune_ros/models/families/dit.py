"""CogACT's action head: a small diffusion transformer, sampled by DDIM with guidance.

Plain pre-norm self-attention over [condition, noisy actions]; see ``docs/how-to/checkpoints.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.config import DiTConfig, PolicyConfig, strided_times

FREQUENCIES = 128


class TimestepEmbedder(nn.Module):
    """Diffusion step to a row: 128 cosines, 128 sines, then Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, step: Tensor) -> Tensor:
        """Steps ``[N]`` to ``[N, width]``."""
        return self.fc2(F.silu(self.fc1(timestep_code(step))))


def timestep_code(step: Tensor) -> Tensor:
    """``[N]`` to float32 ``[N, 256]``: cos then sin of step * exp(-ln(10000) k / 128)."""
    k = torch.arange(FREQUENCIES, dtype=torch.float32, device=step.device)
    angle = step.float()[:, None] * torch.exp(-math.log(10000.0) * k / FREQUENCIES)
    return torch.cat((angle.cos(), angle.sin()), -1)


class DiTBlock(nn.Module):
    """Pre-norm attention and tanh-GELU MLP; the norms have no parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, W]`` to the same shape."""
        count, length, width = x.shape
        qkv = self.qkv(_norm(x)).view(count, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(count, length, width))
        return x + self.fc2(F.gelu(self.fc1(_norm(x)), approximate='tanh'))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    """Noise prediction for a chunk of actions given the cognition feature."""

    def __init__(self, config: DiTConfig, condition: int, action_dim: int, chunk: int) -> None:
        super().__init__()
        self.config, self.action_dim, self.chunk = config, action_dim, chunk
        width = config.width
        self.x_embedder = nn.Linear(action_dim, width)
        self.t_embedder = TimestepEmbedder(width)
        self.z_embedder = nn.Linear(condition, width)
        self.uncondition = nn.Parameter(torch.zeros(1, condition))
        self.positional_embedding = nn.Parameter(torch.zeros(chunk + 1, width))
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads) for _ in range(config.depth))
        self.final = nn.Linear(width, action_dim)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Noise in ``x`` ``[N, K, D]`` at ``step`` ``[N]``, given ``condition`` ``[N, C]``."""
        first = self.t_embedder(step) + self.z_embedder(condition)
        tokens = torch.cat((first[:, None], self.x_embedder(x)), 1) + self.positional_embedding
        for block in self.blocks:
            tokens = block(tokens)
        return self.final(_norm(tokens))[:, 1:]

    def sample(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[K, D]`` by DDIM (eta 0) from ``noise`` ``[K, D]`` and ``condition`` ``[C]``.

        Guidance s: eps = eps_u + s (eps_c - eps_u), both from one batch of two; s up to 1: eps_c.
        """
        config, x = self.config, noise
        guided = config.guidance > 1
        z = torch.cat((condition[None], self.uncondition)) if guided else condition[None]
        times = strided_times(config.train_steps, config.ddim_steps)
        for step, now, before in ddim_steps(config.train_steps, times):
            steps = torch.full((len(z),), step, device=x.device)
            eps = self(x.expand(len(z), -1, -1), steps, z)
            eps = eps[1] + config.guidance * (eps[0] - eps[1]) if guided else eps[0]
            x = ddim_update(x, eps, now, before)
        return x


def alpha_bars(train_steps: int) -> list[float]:
    """Cumulative products of 1 - beta of the squared-cosine schedule, float64."""

    def level(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    product, bars = 1.0, []
    for i in range(train_steps):
        beta = min(1 - level((i + 1) / train_steps) / level(i / train_steps), 0.999)
        product *= 1 - beta
        bars.append(product)
    return bars


def leading_times(train_steps: int, steps: int) -> list[int]:
    """Sampled times, ascending, as diffusers' DDIM scheduler spaces them by default."""
    return [i * (train_steps // steps) for i in range(steps)]


def ddim_update(
    x: Tensor, eps: Tensor, now: float, before: float, limit: float | None = None
) -> Tensor:
    """One DDIM step with eta 0: the clean chunk, cut at ``limit``, with the same noise ``eps``."""
    clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    if limit is not None:
        clean = clean.clamp(-limit, limit)
    return math.sqrt(before) * clean + math.sqrt(1 - before) * eps


def ddim_steps(train_steps: int, times: Sequence[int]) -> list[tuple[int, float, float]]:
    """``(t, alpha-bar at t, alpha-bar at the sampled time before)``, from noise to data."""
    bars = alpha_bars(train_steps)
    previous = [1.0] + [bars[t] for t in times[:-1]]
    return [(t, bars[t], before) for t, before in zip(times, previous, strict=True)][::-1]


def start_noise(config: PolicyConfig, device: torch.device, seed: int | None = None) -> Tensor:
    """N(0, 1), float32 ``[K, D]``.

    ``seed`` fixes it (compare pruned with dense under the same one); ``None`` draws it afresh, as
    the authors do.
    """
    generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
    return torch.randn((config.chunk, config.action_dim), generator=generator, device=device)
