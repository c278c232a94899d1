"""The bucketed pass never waits for the data: by construction here, measured where CUDA is."""

import pytest
import torch
from small_models import OFT, context, similarity, small_decoder, small_input, small_layout
from torch.utils._python_dispatch import TorchDispatchMode

from specprune_ros.pruning.interface import Mode, QueryContext
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner

# Operators whose result (or its shape) must reach the host, and those that bring data from it.
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', 'unique_dim', '_unique2', 'equal'}
FROM_HOST = {'lift_fresh', '_to_copy'}
VIEWS = {
    'view', 'expand', 'unsqueeze', 'squeeze', 'select', 'slice', 'transpose', 'permute', 't',
    'detach', 'alias', 'as_strided', '_unsafe_view', 'split', 'empty', 'empty_like', 'reshape',
}  # fmt: skip

STATIC = ('specprune', 'random', 'fastv', 'divprune', 'sparsevlm', 'efficientvla', 'vla_pruner')


class Operators(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.append(name)
        if name == 'index' and any(
            t is not None and t.dtype is torch.bool for t in (args[1] if len(args) > 1 else ())
        ):
            self.names.append('nonzero')  # indexing by a mask
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self):
        return [name for name in self.names if name not in VIEWS]


def drive(layout, params, mode, carry, device='cpu', width=8, seed=0):
    """The pruner's part of one query alone, on made-up attention; (outcome, operators)."""
    generator = torch.Generator().manual_seed(seed)
    method = pruner(params.pruner)
    attention, sizes = {}, {}
    schedule = method.plan(layout, params, mode)
    current = layout.vision_tokens
    for boundary in range(layout.depth + 1):
        for group in schedule.observed_layers.get(boundary, ()):
            rows = len(layout.rows(group))
            made = torch.rand(rows, current, generator=generator) / current
            attention[boundary, group] = made.to(device)
        sizes[boundary] = torch.empty(current, width, device=device)
        current = schedule.prune.get(boundary, current)
    vision = torch.rand(layout.vision_tokens, width, generator=generator).to(device)
    text = torch.rand(len(layout.prompt), width, generator=generator).to(device)
    cosine = similarity(seed, layout).to(device)
    counter = Operators()
    with torch.no_grad(), counter:  # inference mode would hide what operators are made of
        running = method.begin(
            QueryContext(layout, params, mode, cosine, carry, vision=vision, text=text)
        )
        for boundary in range(layout.depth + 1):
            for group in schedule.observed_layers.get(boundary, ()):
                running.observe(boundary, group, attention[boundary, group])
            if boundary in schedule.prune:
                running.select(boundary, sizes[boundary])
        outcome = running.finish()
    return outcome, counter


@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_specprune_runs_where_there_is_no_data_at_all(preset):
    """On the meta device every attempt to look at a value raises."""
    params = PruningParams.preset_of(preset)
    carry = {}
    for mode in (Mode.DENSE, Mode.COARSE, Mode.FINE):
        outcome, _ = drive(OFT, params, mode, carry, device='meta')
        carry = outcome.carry
    assert outcome.kept and all(ids.is_meta for _, ids in outcome.kept)


def test_the_meta_device_does_refuse_exact_mode():
    params = PruningParams.from_mapping({'exact': True})
    with pytest.raises((RuntimeError, NotImplementedError)):
        drive_exact = pruner('specprune').begin(
            QueryContext(OFT, params, Mode.COARSE, similarity(0, OFT).to('meta'))
        )
        for layer in (1, 2):
            rows = torch.rand(len(OFT.text), 512, device='meta')
            drive_exact.observe(layer, drive_exact.plan.rows_local, rows)
        drive_exact.select(2, torch.empty(512, 8, device='meta'))


def test_the_whole_pruned_decoder_runs_without_data():
    layout = small_layout(2, 8, depth=8)
    decoder = small_decoder(0, depth=8, dtype=torch.float32)
    hidden = small_input(0, layout, dtype=torch.float32)
    decoder, hidden = decoder.to('meta'), hidden.to('meta')
    method, params, carry = pruner('specprune'), PruningParams(), {}
    with torch.inference_mode():
        for mode in (Mode.DENSE, Mode.COARSE):
            running = method.begin(
                context(
                    decoder,
                    hidden,
                    layout,
                    params,
                    mode,
                    carry,
                    similarity=similarity(0, layout).to('meta'),
                )
            )
            output = decoder(hidden, layout, running)
            carry = running.finish().carry
    assert output.layer_tokens[-1] < layout.vision_tokens


@pytest.mark.parametrize('name', STATIC)
def test_no_operator_waits_for_the_data_or_brings_some_from_the_host(name):
    params = PruningParams.from_mapping({'pruner': name})
    carry = {}
    for _ in range(4):  # constants are made in the first queries and kept
        outcome, _ = drive(OFT, params, Mode.DENSE, carry)
        carry = outcome.carry
        if pruner(name).plan(OFT, params, Mode.COARSE).static:
            outcome, _ = drive(OFT, params, Mode.COARSE, carry)
            carry = outcome.carry
    outcome, counter = drive(OFT, params, Mode.COARSE, carry)
    assert outcome.kept
    assert not WAITING & set(counter.names)
    if name == 'specprune':
        assert not FROM_HOST & set(counter.names)


def test_the_operator_count_sees_what_it_must():
    with Operators() as counter:
        mask = torch.tensor([True, False])
        torch.arange(2)[mask]
        mask.sum().item()
    assert {'nonzero', '_local_scalar_dense'} <= set(counter.names)


def test_specprune_adds_few_kernels_to_a_query():
    """P1's controller costs 1.5 ms; at 2 microseconds a kernel in a graph 150 are 0.3 ms."""
    for preset in ('default', 'paper'):
        params = PruningParams.preset_of(preset)
        carry = drive(OFT, params, Mode.DENSE, {})[0].carry
        drive(OFT, params, Mode.COARSE, carry)
        _, counter = drive(OFT, params, Mode.COARSE, carry)
        assert len(counter.kernels) < 150, sorted(counter.kernels)


@pytest.mark.gpu
def test_no_synchronisation_on_a_gpu():
    params, carry = PruningParams(), {}
    for mode in (Mode.DENSE, Mode.COARSE, Mode.COARSE):
        carry = drive(OFT, params, mode, carry, device='cuda')[0].carry
    attention = torch.rand(len(OFT.text), 512, device='cuda')
    action = torch.rand(56, 512, device='cuda')
    cosine = similarity(0, OFT).cuda()
    rows = torch.empty(512, 8, device='cuda')
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        with torch.inference_mode():
            running = pruner('specprune').begin(
                QueryContext(OFT, params, Mode.COARSE, cosine, carry)
            )
            current = 512
            for boundary in range(1, 33):
                for group in running.schedule.observed_layers.get(boundary, ()):
                    seen = action if group.value == 'action' else attention
                    running.observe(boundary, group, seen[:, :current])
                if boundary in running.schedule.prune:
                    keep = running.select(boundary, rows[:current]).keep
                    current = keep.shape[0]
            running.finish()
    finally:
        torch.cuda.set_sync_debug_mode('default')
