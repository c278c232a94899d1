"""Batches: the same numbers as alone, a bounded wait, a fair order."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import synthetic
import torch
from served import observation, same
from tape import TapeCapturer

from specprune_ros.models.load import load_policy_model, random_policy_model
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.forward_step import DeviceOutputs, StepOutputs
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import names
from specprune_ros.serving.batching import BatchingEngine

pytestmark = pytest.mark.usefixtures('one_thread')
ROBOTS = 3


class Recorder(EagerEngine):
    """Remembers its requests."""

    def __init__(self, loaded):
        super().__init__(loaded)
        self.requested = []

    def run(self, key, inputs):
        self.requested.append((key, inputs))
        return super().run(key, inputs)


def episode(loaded, params, queries=3, size=128):
    """What an engine is queried by several robots, query by query."""
    engine = Recorder(loaded)
    policies = [Policy(loaded, params, engine=engine) for _ in range(ROBOTS)]
    steps = []
    for step in range(queries):
        engine.requested = []
        for robot, policy in enumerate(policies):
            config = loaded.config
            seen = observation(
                8 * step, robot, size=size, cameras=config.cameras, proprio=config.proprio_dim
            )
            policy.act(seen)
        steps.append(engine.requested)
    return engine, steps


def equal_outputs(alone, together):
    assert together.counts == alone.counts
    assert together.union == alone.union
    assert together.recall == alone.recall
    assert together.device_outputs.metadata == alone.device_outputs.metadata
    assert together.device_outputs.carry.keys() == alone.device_outputs.carry.keys()


@pytest.mark.parametrize('mode', ['auto', 'coarse'])
def test_a_batch_is_the_single_queries_bit_for_bit_in_float32(loaded, mode):
    engine, steps = episode(loaded, PruningParams(mode=mode))
    for requested in steps:
        key = requested[0][0]
        assert all(other == key for other, _ in requested)
        inputs = [one for _, one in requested]
        assert engine.can_batch(key, inputs[0])
        with torch.inference_mode():
            alone = [EagerEngine.run(engine, key, one) for one in inputs]
            together = engine.run_batch(key, inputs)
        for one, other in zip(alone, together, strict=True):
            equal_outputs(one, other)
            assert (one.actions == other.actions).all()
            for name, tensor in one.device_outputs.carry.items():
                assert torch.equal(tensor, other.device_outputs.carry[name])
    assert steps[0][0][0].mode is Mode.DENSE


def test_keep_all_in_a_batch_is_dense_bit_for_bit(loaded):
    patches = loaded.config.vision_tokens // 2
    everything = PruningParams(
        k_global=0, k_dynamic=0, k_local=256, alpha=1.0, fine_factor=1.0, prune_layers=()
    )
    engine, steps = episode(loaded, everything)
    key, inputs = steps[-1][0][0], [one for _, one in steps[-1]]
    assert key.mode is Mode.COARSE
    with torch.inference_mode():
        together = engine.run_batch(key, inputs)
        plain = [
            Policy(loaded, PruningParams(mode='dense')).act(observation(16, robot))
            for robot in range(ROBOTS)
        ]
    assert together[0].device_outputs.metadata.after == (2 * patches,)
    for one, dense in zip(together, plain, strict=True):
        assert (loaded.statistics.unnormalise_actions(one.actions) == dense.actions).all()


@pytest.mark.parametrize('name', names())
def test_every_method_in_a_batch_or_alone(loaded, name):
    engine, steps = episode(loaded, PruningParams(pruner=name))
    for requested in steps[1:]:
        key, inputs = requested[0][0], [one for _, one in requested]
        if any(other != key for other, _ in requested) or not engine.can_batch(key, inputs[0]):
            continue
        with torch.inference_mode():
            alone = [EagerEngine.run(engine, key, one) for one in inputs]
            for one, other in zip(alone, engine.run_batch(key, inputs), strict=True):
                equal_outputs(one, other)
                assert np.abs(one.actions - other.actions).max() < 1e-5


def test_budgets_without_a_fixed_size_and_reuse_run_alone(loaded):
    for params in (PruningParams(exact=True), PruningParams(pruner='vla_cache')):
        engine, steps = episode(loaded, params)
        assert not engine.can_batch(*steps[-1][0])


@pytest.mark.parametrize('write', [synthetic.write_db_oft, synthetic.write_cogact])
def test_other_families_run_in_batches(write, tmp_path):
    loaded = load_policy_model(write(tmp_path / 'x').folder, progress=False)
    engine, steps = episode(loaded, PruningParams(mode='coarse'), size=64)
    for requested in steps:
        key, inputs = requested[0][0], [one for _, one in requested]
        assert engine.can_batch(key, inputs[0])
        with torch.inference_mode():
            alone = [EagerEngine.run(engine, key, one) for one in inputs]
            for one, other in zip(alone, engine.run_batch(key, inputs), strict=True):
                equal_outputs(one, other)
                assert np.abs(one.actions - other.actions).max() < 1e-5


class OnePlace(EagerEngine):
    """Leaves what a query leaves where the query before left it, as replays of a graph do."""

    def __init__(self, loaded):
        super().__init__(loaded)
        self.place = {}

    def can_batch(self, key, inputs):
        return False

    def run(self, key, inputs, cancelled=None):
        outputs = super().run(key, inputs, cancelled)
        left = outputs.device_outputs
        carry = {n: self.place.setdefault(n, t.clone()).copy_(t) for n, t in left.carry.items()}
        return replace(outputs, device_outputs=replace(left, carry=carry))


def test_sessions_that_share_captured_graphs_do_not_share_their_priors(loaded, engines):
    params = PruningParams(mode='coarse')
    shared = engines(OnePlace(loaded))
    robots = [Policy(loaded, params, engine=shared) for _ in range(2)]
    alone = [Policy(loaded, params) for _ in robots]
    for step in (0, 8):
        for number, (robot, policy) in enumerate(zip(robots, alone, strict=True)):
            assert same(
                policy.act(observation(step, number)), robot.act(observation(step, number))
            )


# ------------------------------------------------------------------ who runs with whom, and when


class Slow:
    """An engine that takes as long as it is set to and remembers who ran together."""

    device, status, trouble = torch.device('cpu'), 'slow', ''

    def __init__(self, seconds=0.05):
        self.seconds, self.ran = seconds, []
        self.fails = set()

    def can_batch(self, key, inputs):
        return key != 'alone'

    def run(self, key, inputs):
        return self.run_batch(key, [inputs])[0]

    def run_batch(self, key, batch):
        self.ran.append((key, [str(one) for one in batch]))
        time.sleep(self.seconds)
        if self.fails.intersection(batch):
            raise RuntimeError(f'{len(batch)} with a bad one')
        return [
            StepOutputs(np.zeros(1), {}, 0, None, DeviceOutputs(torch.zeros(1), {}, {}, None, one))
            for one in batch
        ]

    def prepare(self, params, prompt, ready):
        ready()

    def close(self):
        pass


def ask_all(engine, requested, behind=False):
    """Ask at once, in this order, from a thread each; what each was answered with. ``behind``: the
    first runs already when the others come.
    """
    before = arrived(engine)
    with ThreadPoolExecutor(len(requested)) as pool:
        waiting = []
        for key, name in requested:
            waiting.append(pool.submit(engine.run, key, name))
            end = time.monotonic() + 5
            while arrived(engine) < len(waiting) + before and time.monotonic() < end:
                time.sleep(0.001)
            while behind and engine.waiting == len(waiting) and time.monotonic() < end:
                time.sleep(0.001)
        return [one.exception() or one.result().device_outputs.metadata for one in waiting]


def arrived(engine):
    """Queries that wait or ran."""
    return engine.waiting + sum(len(names) for _, names in engine.engine.ran)


@pytest.fixture
def engines():
    made = []

    def make(slow, **options):
        made.append(BatchingEngine(slow, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.shut_down()


def test_what_waits_meanwhile_runs_together_and_the_longest_waiting_first(engines):
    slow = Slow()
    names = [('a', 'first'), ('a', '1'), ('b', '2'), ('a', '3'), ('b', '4'), ('alone', '5')]
    assert ask_all(engines(slow), names, behind=True) == ['first', '1', '2', '3', '4', '5']
    assert slow.ran == [('a', ['first']), ('a', ['1', '3']), ('b', ['2', '4']), ('alone', ['5'])]


def test_a_batch_is_bounded_and_one_means_one_after_the_other(engines):
    slow = Slow()
    ask_all(engines(slow, limit=2), [('a', str(n)) for n in range(6)], behind=True)
    assert [len(names) for _, names in slow.ran] == [1, 2, 2, 1]
    slow = Slow()
    ask_all(engines(slow, limit=1), [('a', str(n)) for n in range(4)])
    assert slow.ran == [('a', [str(n)]) for n in range(4)]


def test_the_window_bounds_the_wait(engines):
    slow = Slow(0.0)
    engine = engines(slow, window=0.3)
    begin = time.monotonic()
    engine.run('a', 'lonely')
    assert 0.28 < time.monotonic() - begin < 30.0
    assert ask_all(engine, [('a', '1'), ('a', '2')]) == ['1', '2']
    assert slow.ran[1:] == [('a', ['1', '2'])]


def test_nobody_waits_for_robots_that_are_not_there(engines):
    engine = engines(Slow(0.0), window=30.0, expected=lambda: 2)
    assert ask_all(engine, [('a', '1'), ('b', '2')]) == ['1', '2']


def test_nobody_waits_longer_than_the_window_for_a_batch_of_others(engines):
    """Ten robots that ask without end do not keep an eleventh out."""
    slow = Slow(0.01)
    engine = engines(slow, limit=4)
    end = threading.Event()

    def flood():
        while not end.is_set():
            engine.run('a', 'crowd')

    threads = [threading.Thread(target=flood) for _ in range(10)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    before = len(slow.ran)
    engine.run('b', 'lonely')
    place = next(n for n, (key, _) in enumerate(slow.ran[before:]) if key == 'b')
    end.set()
    for thread in threads:
        thread.join()
    assert place <= 4  # at most the ten that were there before it, four at a time


def test_what_one_query_breaks_is_its_own_failure(engines):
    slow = Slow()
    slow.fails = {'bad'}
    reported = ask_all(engines(slow), [('a', '0'), ('a', '1'), ('a', 'bad'), ('a', '2')])
    assert [reported[0], reported[1], reported[3]] == ['0', '1', '2']
    assert isinstance(reported[2], RuntimeError)


def test_a_stop_answers_what_waits_and_takes_no_more():
    slow = Slow()
    engine = BatchingEngine(slow)
    stopper = threading.Timer(0.02, engine.shut_down)
    stopper.start()
    assert ask_all(engine, [('a', '1'), ('b', '2')]) == ['1', '2']
    stopper.join()
    with pytest.raises(RuntimeError, match='stopping'):
        engine.run('a', 'late')


def test_wrong_options_are_refused():
    for options in ({'limit': 0}, {'window': -1.0}, {'window': float('nan')}):
        with pytest.raises(ValueError, match='want'):
            BatchingEngine(Slow(), **options)


def test_robots_that_share_graphs_are_answered_as_if_alone():
    """One set of buffers holds what every robot's query left: as a server on a GPU answers."""
    loaded = random_policy_model('tiny')
    capturer = TapeCapturer()
    graphs = CudaGraphEngine(loaded, capturer)
    shared = BatchingEngine(graphs, limit=1)
    try:
        together = [Policy(loaded, engine=shared) for _ in range(ROBOTS)]
        alone = [Policy(loaded) for _ in range(ROBOTS)]
        together[0].warm_up(observation(0, 0).instruction)
        for step in range(3):
            for robot in range(ROBOTS):
                seen = observation(8 * step, robot)
                assert same(together[robot].act(seen), alone[robot].act(seen))
        assert capturer.replayed >= 3 * ROBOTS
        assert graphs.trouble == ''
    finally:
        shared.shut_down()
