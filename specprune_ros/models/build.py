"""A policy network from its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from specprune_ros.models.accel.device_memory import check_device_memory
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder_layer import AdaptiveNorm, Norm
from specprune_ros.models.families.cogact import CogACT
from specprune_ros.models.families.db_oft import DBOFT
from specprune_ros.models.families.oft import OpenVLAOFT
from specprune_ros.models.families.pi0 import FlowPolicy

Network = OpenVLAOFT | DBOFT | CogACT | FlowPolicy
CLASSES: dict[str, type[nn.Module]] = {
    'openvla-oft': OpenVLAOFT,
    'db-oft': DBOFT,
    'cogact': CogACT,
    'db-cogact': CogACT,
    'pi0': FlowPolicy,
    'pi05': FlowPolicy,
}


def empty(config: PolicyConfig) -> Network:
    """The network on the ``meta`` device: names and shapes, no memory."""
    with torch.device('meta'), _Unfilled():
        return CLASSES[config.family](config).eval().requires_grad_(False)


class _Unfilled(TorchFunctionMode):
    """Leaves out the initial values that layers draw: there is no memory to hold them, and drawing
    them without any imports a compiler, which takes a second.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Every function but those of ``torch.nn.init``."""
        kwargs = kwargs or {}
        if getattr(func, '__module__', None) == 'torch.nn.init':
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return func(*args, **kwargs)


def build(
    config: PolicyConfig,
    seed: int = 0,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
    name: str = '',
) -> Network:
    """The network with random weights, the same for the same seed, device type and dtype.

    Weights have the size that keeps activations near one: N(0, 1 / inputs) for matrices, shrunk on
    residual branches by the square root of their number; norms one, biases zero. Parameters do not
    request gradients (call ``requires_grad_()`` to train). Raises ``DeviceMemoryError``, which
    says ``name``, where they do not fit on the device.
    """
    model = cast(empty(config), dtype)
    check_device_memory(model, device, name or config.family)
    model.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, config, generator)
    return model


def cast(model: Network, dtype: torch.dtype) -> Network:
    """The network in ``dtype``; as published, a diffusion transformer head stays in float32, and
    so do the norms and the small layers around pi0's expert.
    """
    model.to(dtype)
    if isinstance(model, CogACT):
        model.action_head.float()
    if isinstance(model, FlowPolicy):
        for name in ('action_in', 'action_out', 'state_in', 'time_in', 'time_out'):
            part = getattr(model, name)
            if part is not None:
                part.float()
        for part in (*model.decoder.modules(), *model.expert.modules()):
            if isinstance(part, Norm | AdaptiveNorm):
                part.float()
    return model


_RESIDUAL = ('.attn.out.weight', '.down.weight', '.proj.weight', '.fc2.weight')
_TOKENS = ('embed_tokens.weight', 'pos_embed', 'prefix', 'action_query', 'positional_embedding')


def _initialise(
    name: str, parameter: nn.Parameter, config: PolicyConfig, generator: torch.Generator
) -> None:
    if name.endswith(_TOKENS) or name.endswith('uncondition'):
        std = 1 / config.decoder.embed_scale if 'embed_tokens' in name else 0.2
        parameter.normal_(0.0, std, generator=generator)
    elif '.film.' in name:
        parameter.zero_()  # FiLM starts as the identity
    elif parameter.ndim == 1:
        parameter.fill_(0.0 if name.endswith('bias') else 1.0)
    else:
        std = parameter.shape[1] ** -0.5
        if name.endswith(_RESIDUAL) and ('layers.' in name or 'blocks.' in name):
            std /= math.sqrt(2 * config.decoder.depth)
        parameter.normal_(0.0, std, generator=generator)
