"""Compiled kernels between the GEMMs: when they run, what they give, how often they compile."""

import threading
import warnings

import pytest
import torch
from torch._dynamo.utils import counters
from toy_models import EVERY, RecordingPass, keep_all, layout, relative

from specprune_ros.models.accel import fused
from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder
from specprune_ros.models.presets import TINY
from specprune_ros.models.vision import VisionBackbone


@pytest.fixture(autouse=True)
def own_state(monkeypatch):
    """Every test with kernels of its own, and none that failed in another."""
    monkeypatch.setattr(fused._Compiling, 'problem', '')
    monkeypatch.setattr(fused._Compiling, 'made', 0)
    monkeypatch.setattr(fused, 'COMPILED', fused.Kernels(*map(fused._compiled, fused.PLAIN)))


@pytest.fixture
def once():
    """A second compilation of the same function is an error."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def decoder(causal=False, dtype=torch.float32):
    torch.manual_seed(0)
    config = DecoderConfig(64, 4, 4, 96, vocab=50, kv_heads=2, causal=causal, qkv_bias=causal)
    made = Decoder(config).requires_grad_(False).to(dtype)
    for name, weight in made.named_parameters():
        if 'norm' in name:
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def some(rows, dtype=torch.float32):
    """Arguments for each function as a decoder layer passes them: views of larger tensors."""
    generator = torch.Generator().manual_seed(rows)

    def made(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    qkv, wide = made(1, rows, 12, 32), made(1, rows + 5, 64)
    row, branch, weight, bias = wide[:, 3 : 3 + rows], made(1, rows, 64), made(64), made(64)
    cos, sin = made(1, rows, 32)[0], made(rows, 32)
    return {
        'rotate': (qkv[:, :, :8], cos, sin),
        'swiglu': (made(1, rows, 128),),
        'geglu': (made(1, rows, 128),),
        'quick_gelu': (made(2, rows, 64),),
        'add_rms_norm': (row, branch, weight, 1e-6),
        'add_modulated_norm': (row, branch, *torch.randn(3, 64, generator=generator), 1e-6),
        'add_layer_norm': (row, branch, weight, weight, bias, 1e-6),
        'quantise': (made(rows, 64),),
    }


def leaves(result):
    return result if isinstance(result, tuple) else (result,)


def failing(*args, **options):
    raise OSError('no g++ and no Triton\nmore of it')


def test_without_a_compiler_the_plain_functions_run_and_it_is_said_once(monkeypatch):
    monkeypatch.setattr(torch, 'compile', failing)
    ours, where = decoder(), layout()
    hidden = torch.randn(1, where.length, 64)
    with torch.inference_mode():
        plain = ours(hidden, where, read=where.action).hidden
        fused.use(ours, fused.COMPILED)
        with pytest.warns(RuntimeWarning, match='no g\\+\\+ and no Triton') as reported:
            again = ours(hidden, where, read=where.action).hidden
        assert len(reported) == 1
        assert torch.equal(again, plain)
        assert 'torch.compile failed (OSError: no g++ and no Triton)' in fused.status()
        with warnings.catch_warnings(action='error'):
            ours(hidden, where)
    fused.use(ours, fused.COMPILED)  # built anew, it is tried again
    assert fused.status() == 'functions between the GEMMs: plain'


def test_it_can_be_switched_off_without_a_warning():
    x = torch.randn(1, 3, 8)
    off = torch._dynamo.config.patch(disable=True)
    with off, torch.inference_mode(), warnings.catch_warnings(action='error'):
        assert torch.equal(fused.COMPILED.swiglu(x), fused.swiglu(x))
    assert fused.status().endswith('torch.compile is switched off (TORCH_COMPILE_DISABLE)')


def test_a_lost_or_full_device_is_no_fault_of_the_compiler(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(torch, 'compile', full)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        fused.COMPILED.swiglu(torch.randn(1, 3, 8))
    assert fused.status() == 'functions between the GEMMs: plain'


def test_only_what_was_reported_to_compiles_and_only_without_gradients(monkeypatch):
    monkeypatch.setattr(torch, 'compile', failing)
    ours, where = decoder(), layout()
    towers = VisionBackbone(TINY.towers).requires_grad_(False)
    hidden = torch.randn(1, where.length, 64)
    with warnings.catch_warnings(action='error'):
        with torch.inference_mode():
            ours(hidden, where)
        fused.use(ours, fused.COMPILED)
        ours(hidden, where)  # gradients may be requested
        fused.use(ours, fused.PLAIN)
        with torch.inference_mode():
            ours(hidden, where)
            towers(torch.randn(1, 6, 224, 224))
    used = {id(part.kernels) for part in ours.modules() if hasattr(part, 'kernels')}
    assert used == {id(fused.PLAIN)}
    fused.use(towers, fused.COMPILED)
    assert towers.towers[0].blocks[0].kernels is fused.COMPILED


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_one_compilation_serves_any_number_of_rows(dtype, once):
    """And gives what plain gives; in bfloat16 it rounds less on the way."""
    bound = 1e-5 if dtype is torch.float32 else 2**-7
    for rows in (605, 604, 300, 128, 64, 57, 32, 12, 8, 3, 2):
        with torch.inference_mode():
            inputs = some(rows, dtype)
        normal = some(rows, dtype)  # made outside: what weights and kept tables are
        for name, arguments in inputs.items():
            plain, compiled = getattr(fused.PLAIN, name), getattr(fused.COMPILED, name)
            for given in (arguments, normal[name]):
                with torch.inference_mode():
                    expected, found = leaves(plain(*given)), leaves(compiled(*given))
                for theirs, ours in zip(expected, found, strict=True):
                    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
                    assert relative(ours.float(), theirs.float()) < bound, (name, rows)
        assert fused._Compiling.made == 2 * len(fused.PLAIN)  # tensors of inference, and others
    assert fused.status() == 'functions between the GEMMs: 16 compiled kernels'


@pytest.mark.slow
def test_a_compiled_kernel_hides_nothing_that_is_not_finite():
    x = torch.randn(6, 64).bfloat16()
    x[1, 3], x[2, 5], x[3, 7], x[4] = float('nan'), float('inf'), -float('inf'), 0
    with torch.inference_mode():
        for kernels in (fused.PLAIN, fused.COMPILED):
            q, scale = kernels.quantise(x)
            finite = (q.float() * scale).isfinite().all(1)
            assert finite.tolist() == [True, False, False, False, True, True]
            assert scale.isfinite().flatten().tolist() == finite.tolist()
            assert not kernels.swiglu(x[None, 1:2]).isfinite().all()
            weight = torch.ones(64).bfloat16()
            _, normed = kernels.add_rms_norm(x[None], x[None], weight, 1e-6)
            assert normed[0].isfinite().all(1).tolist() == finite.tolist()
    assert fused._Compiling.made == 3


@pytest.mark.slow
@pytest.mark.parametrize('causal', [False, True])
def test_a_compiled_decoder_answers_like_a_plain_one(causal, once):
    """Dense, pruned, one row requested; from two threads; without compiling twice."""
    ours, where = decoder(causal), layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    last = (where.length - 1, where.length)
    keep = {0: list(range(0, 18, 2)), 2: [0, 3, 4, 6, 8]}

    def ask():
        with torch.inference_mode():
            return [
                ours(hidden, where, read=where.action).hidden,
                ours(hidden, where, read=last).hidden,
                ours(
                    hidden, where, RecordingPass(keep, observed_layers={1: EVERY, 4: EVERY})
                ).hidden,
                ours.probe(hidden, where, 2, EVERY[0]),
            ]

    expected = ask()
    fused.use(ours, fused.COMPILED)
    found, threads = {}, []
    for name in 'ab':
        threads.append(threading.Thread(target=lambda name=name: found.update({name: ask()})))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for name in 'ab':
        for mine, theirs in zip(found[name], expected, strict=True):
            assert relative(mine, theirs) < 1e-5
    assert not fused._Compiling.problem
    with torch.inference_mode():
        dense = ours(hidden, where, read=where.action).hidden
        kept = ours(hidden, where, keep_all(where), read=where.action).hidden
        assert torch.equal(kept, dense)
        made = fused._Compiling.made
        assert made > 0
        for left in range(1, 18):
            ours(hidden, where, RecordingPass({1: list(range(left))}), read=where.action)
    assert fused._Compiling.made == made
    assert not counters['graph_break']


@pytest.mark.gpu
def test_a_cuda_graph_holds_compiled_kernels_after_one_warm_up():
    ours, where = decoder(dtype=torch.bfloat16).cuda(), layout()
    fused.use(ours, fused.COMPILED)
    hidden, other = torch.randn(2, 1, where.length, 64, device='cuda').bfloat16()
    with torch.inference_mode():
        ours(hidden, where, keep_all(where, [2], device='cuda'), read=where.action)
        assert fused._Compiling.made > 0
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = ours(hidden, where, read=where.action).hidden
        hidden.copy_(other)
        graph.replay()
        # Chosen anew outside of a capture, a GEMM may add up in another order.
        eager = ours(other, where, read=where.action).hidden
        assert relative(held.float(), eager.float()) < 2**-6
