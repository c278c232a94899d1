"""The order in which a capture is made, on stand-ins; on a GPU, that its replays are right."""

import gc
import itertools
import threading
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch

from specprune_ros.models.accel import fused, streams
from specprune_ros.policy.engine import capture
from specprune_ros.policy.engine.capture import ExternalTensorTracker


def test_what_a_run_reads_from_outside_is_held_and_nothing_it_made():
    weight, constant, given = torch.ones(3, 3), torch.ones(3), torch.ones(2, 3)
    with ExternalTensorTracker() as held:
        made = given @ weight[:, 1:]
        made = made + constant[:2]
        made.mul_(2).view(-1)[0].add_(1)
    kept = {tensor.untyped_storage().data_ptr() for tensor in held.tensors.values()}
    assert kept == {t.untyped_storage().data_ptr() for t in (weight, constant, given)}
    assert made.untyped_storage().data_ptr() not in kept


class FakeStream:
    """The calls PyTorch's streams take, written down."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def wait_stream(self, other):
        self.calls.append(f'{self.name} waits')

    def synchronize(self):
        self.calls.append(f'{self.name} done')


class FakeEvent:
    """The same for an event."""

    def __init__(self, calls, now):
        self.calls, self.now = calls, now

    def record(self):
        self.calls.append(f'marked in {self.now[0]}')

    def synchronize(self):
        self.calls.append('mark reached')


@pytest.fixture
def calls(monkeypatch):
    """torch.cuda without a device: real signatures, and a list of what was called."""
    made, now = [], ['default']
    monkeypatch.setattr(streams, '_stream', streams._stream.__wrapped__)
    # In the order in which the capturer requests them.
    names = iter(('serving', 'warming', 'capturing', 'beside'))

    @contextmanager
    def stream(entered):
        before, now[0] = now[0], entered.name
        try:
            yield
        finally:
            now[0] = before

    @contextmanager
    def device(place):
        yield

    graph = mock.create_autospec(torch.cuda.CUDAGraph, instance=True)
    graph.capture_begin.side_effect = lambda **options: made.append(f'begin in {now[0]}')
    graph.capture_end.side_effect = lambda: made.append(f'end in {now[0]}')
    graph.replay.side_effect = lambda: made.append(f'replay in {now[0]}')
    cuda = capture.torch.cuda
    monkeypatch.setattr(cuda, 'Stream', lambda place, priority=0: FakeStream(made, next(names)))
    monkeypatch.setattr(cuda, 'current_stream', lambda: FakeStream(made, now[0]))
    monkeypatch.setattr(cuda, 'stream', stream)
    monkeypatch.setattr(cuda, 'device', device)
    pools = itertools.count()
    monkeypatch.setattr(cuda, 'graph_pool_handle', lambda: (0, next(pools)))
    monkeypatch.setattr(cuda, 'CUDAGraph', lambda: graph)
    monkeypatch.setattr(cuda, 'Event', lambda: FakeEvent(made, now))
    monkeypatch.setattr(cuda, 'empty_cache', lambda: made.append('emptied'))
    return made, now, graph


def test_a_capture_warms_up_elsewhere_and_replays_where_requested(calls):
    made, now, graph = calls
    capturer = capture.CudaGraphCapturer('cuda:0')
    replay = capturer.record(
        lambda: made.append(f'run in {now[0]}'), lambda: made.append(f'warm in {now[0]}')
    )
    assert made == [
        'emptied',
        'warming waits', 'warm in warming', 'warm in warming', 'warm in warming', 'warming done',
        'begin in capturing', 'run in capturing', 'end in capturing',
    ]  # fmt: skip
    assert graph.capture_begin.call_args.kwargs['capture_error_mode'] == 'thread_local'
    made.clear()
    with capturer.serving():
        replay()
    assert made == [
        'serving waits', 'replay in serving', 'marked in serving', 'mark reached',
    ]  # fmt: skip


def test_a_run_that_fails_ends_its_capture_and_keeps_its_own_reason(calls):
    made, now, graph = calls
    graph.capture_end.side_effect = RuntimeError('capture was invalidated')
    capturer = capture.CudaGraphCapturer('cuda:0')

    def run():
        raise RuntimeError('operation not permitted when stream is capturing')

    with pytest.raises(RuntimeError, match='operation not permitted'):
        capturer.record(run, lambda: None)
    assert graph.capture_end.called
    assert now[0] == 'default'
    # The next one is not kept waiting, and has a pool that no broken capture holds.
    graph.capture_end.side_effect = None
    before = graph.capture_begin.call_args.kwargs['pool']
    capturer.record(lambda: None, lambda: None)
    assert graph.capture_begin.call_args.kwargs['pool'] != before
    assert gc.isenabled()


def test_nothing_compiles_and_no_garbage_is_collected_while_a_capture_runs(calls):
    free = []

    def run():
        asking = threading.Thread(
            target=lambda: free.append(fused.COMPILE_LOCK.acquire(blocking=False))
        )
        asking.start()
        asking.join()
        free.append(gc.isenabled())

    capture.CudaGraphCapturer('cuda:0').record(run, lambda: None)
    assert free == [False, False]
    assert gc.isenabled()


@pytest.mark.gpu
def test_a_captured_run_follows_its_buffers():
    capturer = capture.CudaGraphCapturer('cuda')
    weight = torch.randn(64, 64, device='cuda')
    given, left = torch.randn(8, 64, device='cuda'), torch.zeros(8, 64, device='cuda')
    replay = capturer.record(lambda: left.copy_((given @ weight).relu()))
    for seed in range(3):
        given.copy_(torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)))
        with capturer.serving():
            replay()
        torch.testing.assert_close(left, (given @ weight).relu())


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['specprune', 'dense', 'fastv', 'vla_pruner'])
def test_replays_on_a_gpu_answer_like_eager_queries(name):
    from noise_images import look

    from specprune_ros.models.load import random_policy_model
    from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
    from specprune_ros.policy.policy import Policy
    from specprune_ros.pruning.params import PruningParams

    loaded = random_policy_model('tiny', device='cuda', dtype=torch.float32)
    params = PruningParams().replace(pruner=name)
    policy = Policy(
        loaded, params, engine=CudaGraphEngine(loaded, capture.CudaGraphCapturer('cuda'))
    )
    plain = Policy(loaded, params)
    policy.warm_up('lift the red cube')
    try:
        for step in range(8):
            replayed, requested = policy.act(look(step)), plain.act(look(step))
            np.testing.assert_allclose(replayed.actions, requested.actions, atol=1e-4)
            assert replayed.tokens.after == requested.tokens.after
            assert all(second >= 0 for second in vars(replayed.times).values())
        assert policy.engine_trouble == ''
    finally:
        policy.close()


@pytest.mark.gpu
def test_a_replay_reads_nothing_but_its_numbers_at_the_end():
    from noise_images import look

    from specprune_ros.models.load import random_policy_model
    from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
    from specprune_ros.policy.policy import Policy

    loaded = random_policy_model('tiny', device='cuda', dtype=torch.bfloat16)
    engine = CudaGraphEngine(loaded, capture.CudaGraphCapturer('cuda'))
    policy = Policy(loaded, engine=engine)
    policy.warm_up('lift the red cube')
    requested = []
    real = engine.run
    engine.run = lambda key, inputs, *more: requested.append((key, inputs)) or real(key, inputs)
    try:
        for step in range(3):
            policy.act(look(step))
        key, inputs = requested[-1]
        inputs = inputs.on(torch.device('cuda'))
        torch.cuda.set_sync_debug_mode('error')
        with torch.inference_mode():
            outputs = real(key, inputs)
        assert np.isfinite(outputs.actions).all()
    finally:
        torch.cuda.set_sync_debug_mode('default')
        policy.close()
