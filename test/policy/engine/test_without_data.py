"""A whole query where there is no data: nothing is read on the host, nothing lies elsewhere."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specprune_ros.models.build import cast, empty
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.models.presets import (
    COGACT_7B,
    DB_COGACT_7B,
    DB_OFT_7B,
    DB_OFT_DIT_7B,
    OPENVLA_OFT_7B,
    default_tokenizer,
)
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import PromptTokenizer
from specprune_ros.policy.forward_step import HostStageTimer, StepInputs, forward_step
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams

FAMILIES = {
    'openvla-oft': OPENVLA_OFT_7B,
    'db-oft': DB_OFT_7B,
    'db-oft-dit': DB_OFT_DIT_7B,
    'db-cogact': DB_COGACT_7B,
    'cogact': COGACT_7B,
}
# The meta device refuses to tell a value, and to work with tensors of any other device.
META = torch.device('meta')


class Elsewhere(TorchDispatchMode):
    """Collects operators that touch a tensor of another device: even a scalar from the host, which
    the meta device lets pass, would be a copy that waits.
    """

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs or {}, result)):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self.found.add(str(func))
        return result


def released(config, layers):
    """The released sizes in bfloat16, without a byte of memory; ``layers`` of the many alike."""
    if layers:
        towers = tuple(replace(tower, depth=3) for tower in config.towers)
        dit = config.dit and replace(config.dit, depth=2, ddim_steps=2)
        ddim = config.ddim and replace(config.ddim, steps=2)
        decoder = replace(config.decoder, depth=layers)
        config = replace(config, towers=towers, decoder=decoder, dit=dit, ddim=ddim)
    config = replace(config, template='openvla')
    tokenizer = PromptTokenizer(default_tokenizer(), 'openvla', config.max_prompt)
    model = cast(empty(config), torch.bfloat16)
    preprocessor = Preprocessor(config, META, torch.bfloat16)
    return LoadedModel(model, config, preprocessor, tokenizer, Statistics.identity())


def inputs(loaded, prompt):
    config = loaded.config
    side = config.image_size
    shape = (len(config.cameras), side, side, 3)
    moves = torch.empty(config.chunk, config.action_dim, device=META)
    return StepInputs(
        images=torch.empty(shape, dtype=torch.uint8, device=META),
        prompt=prompt,
        ids=torch.empty(1, len(prompt.ids), dtype=torch.int64, device=META),
        proprio=torch.empty(config.proprio_dim, device=META) if config.proprio_dim else None,
        noise=moves if config.dit or config.ddim else None,
    )


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    ('pruner', 'layers'),
    [
        ('specprune', 8),
        pytest.param('specprune', None, marks=pytest.mark.slow),
        pytest.param('dense', None, marks=pytest.mark.slow),
        pytest.param('fastv', None, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_a_query_reads_no_value_and_stays_on_its_device(family, pruner, layers):
    params = PruningParams().replace(pruner=pruner)
    loaded = released(FAMILIES[family], layers)
    prompt = loaded.tokenizer.encode('lift the red cube')
    requested = inputs(loaded, prompt)
    layout = loaded.model.layout(prompt)
    for mode in (Mode.DENSE, Mode.COARSE, Mode.FINE):
        key = requested.graph_key(layout, params, mode)
        forward_step(loaded, key, requested, HostStageTimer())  # constants are made once, and kept
        with Elsewhere() as elsewhere:
            given = forward_step(loaded, key, requested, HostStageTimer())
        assert not elsewhere.found
        assert all(tensor.is_meta for tensor in given.tensors().values())
        assert given.packed.dtype is torch.float32
        requested = replace(requested, carry=given.carry, reference_images=requested.images)
    pruned = given.metadata.mean < layout.vision_tokens
    assert pruned == (pruner != 'dense')


@torch.inference_mode()
def test_a_tensor_left_on_the_host_is_found():
    with Elsewhere() as elsewhere:
        torch.empty(2, device=META) + torch.tensor(1.0)
    assert elsewhere.found
    loaded = released(OPENVLA_OFT_7B, layers=8)
    prompt = loaded.tokenizer.encode('lift the red cube')
    requested = replace(inputs(loaded, prompt), proprio=torch.zeros(8))
    key = requested.graph_key(loaded.model.layout(prompt), PruningParams(), Mode.DENSE)
    with pytest.raises(RuntimeError):
        forward_step(loaded, key, requested, HostStageTimer())
