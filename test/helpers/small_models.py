"""Small random decoders, layouts and query contexts for the tests of this folder."""

from functools import partial

import torch

from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder, KVCache
from specprune_ros.pruning.interface import Mode, QueryContext, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner

OFT = TokenLayout(
    cameras=2,
    grid=(16, 16),
    vision_start=1,
    text=tuple(range(524, 543)),
    prompt=tuple(range(514, 548)),
    action=(547, 603),
    length=605,
    depth=32,
)


def small_layout(cameras=2, grid=8, depth=8, causal=False, words=4, actions=6, template=2):
    """BOS, images, proprioception, template, words, tail, actions, stop."""
    vision = cameras * grid * grid
    first = 1 + vision + 1
    text = tuple(range(first + template, first + template + words))
    prompt = tuple(range(first, first + template + words + 1))
    start = prompt[-1] + 1
    return TokenLayout(
        cameras=cameras,
        grid=(grid, grid),
        vision_start=1,
        text=text,
        prompt=prompt if words else (),
        action=(start, start + actions),
        length=start + actions + 1,
        depth=depth,
        causal=causal,
    )


def small_decoder(seed, depth=8, width=16, heads=2, causal=False, dtype=torch.float64):
    """A random decoder whose attention is far from uniform."""
    config = DecoderConfig(
        width=width, depth=depth, heads=heads, mlp=2 * width, vocab=8, causal=causal
    )
    decoder = Decoder(config).to(dtype).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in decoder.named_parameters():
        if weight.ndim == 1:
            weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
        else:
            gain = 1.6 if 'qkv' in name else 1.0
            weight.copy_(
                gain * weight.shape[1] ** -0.5 * torch.randn(weight.shape, generator=generator)
            )
    return decoder


def small_input(seed, layout, width=16, dtype=torch.float64):
    """Input rows ``[1, L, D]``."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(1, layout.length, width, generator=generator).to(dtype)


def similarity(seed, layout, still=0.5):
    """Patch cosines: part unchanged, the rest spread below 1."""
    generator = torch.Generator().manual_seed(seed + 2000)
    cosine = 1 - 0.08 * torch.rand(layout.vision_tokens, generator=generator)
    unchanged = torch.rand(layout.vision_tokens, generator=generator) < still
    return torch.where(unchanged, 1.0, cosine)


def context(decoder, hidden, layout, params, mode, carry=None, **more):
    """A query context as the policy would make it."""
    vision = hidden[0, layout.vision_start : layout.vision_stop]
    text = hidden[0, layout.prompt[0] : layout.prompt[-1] + 1] if layout.prompt else hidden[0, :0]
    return QueryContext(
        layout=layout,
        params=params,
        mode=mode,
        carry=carry or {},
        vision=vision,
        text=text,
        probe=partial(decoder.probe, hidden, layout),
        **more,
    )


def query(decoder, hidden, layout, params=None, mode=Mode.COARSE, carry=None, cache=None, **more):
    """One pruned query through the real decoder: (outcome, decoder output, pass)."""
    params = params or PruningParams()
    with torch.inference_mode():
        running = pruner(params.pruner).begin(
            context(decoder, hidden, layout, params, mode, carry, **more)
        )
        output = decoder(hidden, layout, running, cache)
        return running.finish(), output, running


__all__ = ['KVCache', 'OFT', 'query', 'similarity', 'small_decoder', 'small_input', 'small_layout']
