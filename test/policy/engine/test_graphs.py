"""A replayed query answers like one that is run, and nothing is replayed that cannot be."""

import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from golden import flow_packs
from noise_images import SLOW, look
from tape import TapeCapturer

from specprune_ros.models.load import load_policy_model, random_policy_model
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.real_time_chunking import Continuation
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams, specs
from specprune_ros.pruning.registry import names, pruner

HOST_ONLY = {spec.name for spec in specs() if spec.host_only}
PURE = [name for name in names() if getattr(pruner(name), 'pure', False)]


def some(chosen, *fast):
    """The others only when requested."""
    return [
        name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in chosen
    ]


@pytest.fixture(scope='module')
def loaded():
    return random_policy_model('tiny')


@pytest.fixture
def made():
    """Engines to be closed."""
    engines = []
    yield engines
    for engine in engines:
        engine.close()


def graphed(loaded, made, params=None, capturer=None, **options):
    engine = CudaGraphEngine(loaded, capturer or TapeCapturer(), **options)
    made.append(engine)
    return Policy(loaded, params, engine=engine), engine


def settled(engine, timeout=60.0):
    """Wait until nothing is left to capture."""
    end = time.monotonic() + timeout
    while 'capturing' in engine.status and time.monotonic() < end:
        time.sleep(0.005)
    assert 'capturing' not in engine.status


def same(one, two):
    assert np.array_equal(one.actions, two.actions)
    assert (one.mode, one.tokens, one.notes) == (two.mode, two.tokens, two.notes)
    assert (one.prior_recall, one.flops, one.reset) == (two.prior_recall, two.flops, two.reset)
    assert np.array_equal(one.overlay.kept, two.overlay.kept)
    assert {n: s.tolist() for n, s in one.overlay.sets.items()} == {
        n: s.tolist() for n, s in two.overlay.sets.items()
    }


@pytest.mark.parametrize('name', some(PURE, 'specprune', 'vla_pruner'))
def test_replays_answer_like_eager_queries(loaded, made, name):
    params = PruningParams().replace(pruner=name)
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, params, capturer)
    plain = Policy(loaded, params)
    policy.warm_up('lift the red cube')
    requested = [
        look(0), look(1), look(2, speed=SLOW), look(3),
        look(4, 'lift the blue cube'),  # the same layout: other ids in the same graph
        look(5, 'lift the blue cube'), look(6, 'lift the blue cube', SLOW),
    ]  # fmt: skip
    before = capturer.replayed
    for observation in requested:
        same(policy.act(observation), plain.act(observation))
    # The instruction's layout was rehearsed, so all of them were replays.
    assert capturer.replayed - before == len(requested)
    assert engine.trouble == ''


def test_a_instruction_of_another_length_is_answered_at_once_and_captured_meanwhile(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    plain = Policy(loaded)
    policy.warm_up('lift the red cube')
    longer = 'pick up the red cube and place it on the plate'
    before = capturer.replayed
    same(policy.act(look(0, longer)), plain.act(look(0, longer)))
    assert capturer.replayed == before
    settled(engine)
    for step in (1, 2):
        same(policy.act(look(step, longer)), plain.act(look(step, longer)))
    assert capturer.replayed == before + 2


def test_an_episode_begun_anew_finds_its_graphs(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    plain = Policy(loaded)
    policy.warm_up('lift the red cube')
    count = capturer.recorded
    for step in (0, 1):
        policy.act(look(step))
        plain.act(look(step))
    for one in (policy, plain):
        one.reset('requested')
    for step in (2, 3):
        same(policy.act(look(step)), plain.act(look(step)))
    assert capturer.recorded == count
    assert engine.status == f'{count} CUDA graphs'


@pytest.mark.parametrize('name', some(sorted(set(names()) - set(PURE)), 'vla_cache'))
def test_what_decides_on_the_host_is_never_captured(loaded, made, name):
    params = PruningParams().replace(pruner=name)
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, params, capturer)
    plain = Policy(loaded, params)
    policy.warm_up('lift the red cube')
    for step in range(3):
        same(policy.act(look(step)), plain.act(look(step)))
    assert capturer.recorded == 0
    assert f'pruner {name} decides on the host' in engine.trouble
    policy.set_params(PruningParams())
    policy.act(look(4))
    settled(engine)
    policy.reset()
    policy.act(look(5))
    assert engine.trouble == ''


def test_exact_budgets_are_answered_eagerly_and_say_why(loaded, made):
    policy, engine = graphed(loaded, made, PruningParams().replace(exact=True))
    policy.act(look(0))
    policy.act(look(1))
    assert 'no fixed size' in engine.trouble


def test_parameters_take_over_when_their_graphs_are_there(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    policy.act(look(0))
    capturer.held.clear()
    version = policy.set_params(policy.params.replace(alpha=0.5))
    assert policy.pending_version == version
    before = capturer.replayed
    during = policy.act(look(1))
    assert (during.alpha, during.params_version) == (0.7, version - 1)
    assert capturer.replayed == before + 1  # by the graph of the old ones, without waiting
    assert 'capturing' in engine.status
    capturer.held.set()
    settled(engine)
    assert policy.pending_version is None
    after = policy.act(look(2))
    assert (after.alpha, after.params_version) == (0.5, version)
    assert capturer.replayed == before + 2
    assert after.tokens.mean < during.tokens.mean


def test_a_mode_that_is_set_holds_from_the_next_query_on(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    for step in range(2):
        policy.act(look(step))
    capturer.held.clear()  # dense with a past was never rehearsed, and is not captured now
    version = policy.set_params(policy.params.replace(mode='dense'))
    result = policy.act(look(2))
    assert (result.mode, result.params_version) == (Mode.DENSE, version)
    capturer.held.set()
    settled(engine)
    before = capturer.replayed
    assert policy.act(look(3)).mode is Mode.DENSE
    assert capturer.replayed == before + 1


def test_a_flow_policy_is_rehearsed_as_it_is_asked(made):
    """Two of its three cameras, and a chunk to go on from."""
    capturer = TapeCapturer()
    own = load_policy_model(flow_packs() / 'pi0_lerobot/checkpoint', progress=False)
    params = PruningParams().replace(mode='coarse')
    policy, engine = graphed(own, made, params, capturer)
    policy.max_normalised_action = float('inf')  # random weights
    cameras = own.config.cameras[:2]

    def seen(step):
        given = look(step)
        shown = zip(cameras, given.images.values(), strict=True)
        return replace(given, images=dict(shown), proprio=np.zeros(own.config.proprio_dim))

    chunk = policy.act(seen(0)).normalised
    for step in (1, 2):
        policy.act(seen(step), continuation=Continuation(chunk, 1))
        settled(engine)
    policy.set_params(policy.params.replace(alpha=0.5))
    settled(engine)
    assert policy.pending_version is None
    before = capturer.recorded, capturer.replayed
    for step in (3, 4):
        result = policy.act(seen(step), continuation=Continuation(chunk, 1))
        assert result.alpha == 0.5
        settled(engine)
    assert (capturer.recorded, capturer.replayed) == (before[0], before[1] + 2)
    # And nothing is left to prepare for parameters that were in force before.
    capturer.held.clear()
    policy.set_params(policy.params.replace(alpha=0.7))
    assert policy.pending_version is None


def test_of_many_changes_the_last_one_counts(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    capturer.held.clear()
    for alpha in (0.7, 0.6, 0.5, 0.4):
        version = policy.set_params(policy.params.replace(alpha=alpha))
    capturer.held.set()
    settled(engine)
    assert policy.pending_version is None
    result = policy.act(look(0))
    assert (result.alpha, result.params_version) == (0.4, version)
    # The first was under way; those between were never begun.
    assert capturer.recorded <= 3 * 3


def test_who_waits_for_parameters_that_were_replaced_is_notified_all_the_same(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.act(look(0))
    settled(engine)
    capturer.held.clear()
    reported = []
    prompt = loaded.tokenizer.encode('lift the red cube')
    for alpha in (0.7, 0.6, 0.5):
        params = PruningParams().replace(alpha=alpha)
        engine.prepare(params, prompt, lambda alpha=alpha: reported.append(alpha))
    capturer.held.set()
    settled(engine)
    assert sorted(reported) == [0.5, 0.6, 0.7]


def test_warming_up_waits_for_parameters_that_were_just_set(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    for mode in ('dense', 'coarse'):
        version = policy.set_params(PruningParams().replace(mode=mode))
        policy.warm_up('lift the red cube')
        assert policy.params_version == version and policy.pending_version is None
        before = capturer.replayed
        for step in range(3):
            policy.act(look(step))
        assert capturer.replayed == before + 3
        policy.reset()


def test_what_only_the_controller_reads_needs_no_new_graph(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    count = capturer.recorded
    capturer.held.clear()  # nor the capturing thread
    policy.set_params(policy.params.replace(v_t_threshold=0.2, history_max=4, mode='fine'))
    policy.act(look(0))
    assert policy.act(look(1)).mode is Mode.FINE
    assert capturer.recorded == count


class Watched(PruningParams):
    """Parameters that must not be requested what is decided before a pass."""

    armed = False
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __getattribute__(self, name):
        if name in HOST_ONLY and type(self).armed:
            raise AssertionError(f'a pass read {name}')
        return super().__getattribute__(name)


@pytest.mark.parametrize('name', some(names(), 'specprune'))
def test_no_pass_reads_what_is_decided_before_it(loaded, monkeypatch, name):
    """What the list names is made the same in every key, so it may mean nothing to a pass."""

    assert {f.name for f in fields(PruningParams)} >= HOST_ONLY and 'mode' in HOST_ONLY
    plain = PruningParams().replace(pruner=name)
    watched = Watched(**{f.name: getattr(plain, f.name) for f in fields(plain)})

    class Watching(EagerEngine):
        def run(self, key, inputs):
            object.__setattr__(key, 'params', watched)
            monkeypatch.setattr(Watched, 'armed', True)
            try:
                return super().run(key, inputs)
            finally:
                monkeypatch.setattr(Watched, 'armed', False)

    policy = Policy(loaded, plain, engine=Watching(loaded))
    for step in range(4):
        policy.act(look(step))


def test_a_driver_without_graphs_leaves_the_eager_engine_and_its_reason(loaded, made):
    capturer = TapeCapturer(RuntimeError('CUDA driver does not support graphs\nmore text'))
    policy, engine = graphed(loaded, made, capturer=capturer)
    plain = Policy(loaded)
    policy.warm_up('lift the red cube')
    for step in range(6):
        same(policy.act(look(step)), plain.act(look(step)))
        settled(engine)
    assert engine.trouble == 'no CUDA graph: CUDA driver does not support graphs'
    assert engine.status == '0 CUDA graphs'
    # Parameters still change, at once.
    version = policy.set_params(policy.params.replace(alpha=0.5))
    settled(engine)
    assert policy.act(look(7)).params_version == version


def test_too_little_memory_for_one_more_graph_is_survived(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer)
    policy.warm_up('lift the red cube')
    capturer.broken = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    policy.set_params(policy.params.replace(alpha=0.5))
    settled(engine)
    for step in range(3):
        result = policy.act(look(step))
        settled(engine)
    assert result.alpha == 0.5
    assert engine.trouble.startswith('no CUDA graph: CUDA out of memory')
    capturer.broken = None
    policy.set_params(PruningParams())
    settled(engine)
    policy.reset()
    policy.act(look(3))
    assert engine.trouble == ''


def test_the_longest_unused_graph_leaves(loaded, made):
    capturer = TapeCapturer()
    policy, engine = graphed(loaded, made, capturer=capturer, limit=3)
    policy.warm_up('lift the red cube')
    assert engine.status == '3 CUDA graphs'
    policy.set_params(policy.params.replace(alpha=0.5))
    settled(engine)
    assert engine.status == '3 CUDA graphs'
    plain = Policy(loaded, policy.params)
    for step in range(3):
        same(policy.act(look(step)), plain.act(look(step)))
        settled(engine)


def test_forms_in_turn_beyond_the_limit_are_reported(loaded, made):
    one_form = PruningParams().replace(pruner='dense', mode='dense')
    policy, engine = graphed(loaded, made, one_form, limit=1)
    for words, trouble in (
        ('lift', ''),
        ('lift the red', ''),
        ('lift', 'more forms are asked for in turn than the 1 CUDA graphs kept'),
        ('lift', ''),
    ):
        policy.act(look(0, words))
        assert engine.trouble == trouble
        settled(engine)


def test_an_answer_survives_the_next_one(loaded, made):
    policy, _ = graphed(loaded, made)
    policy.warm_up('lift the red cube')
    policy.act(look(0))
    first = policy.act(look(1))
    actions, kept = first.actions.copy(), first.overlay.kept.copy()
    sets = {name: members.copy() for name, members in first.overlay.sets.items()}
    for step in (2, 3):
        policy.act(look(step))
    assert np.array_equal(first.actions, actions)
    assert np.array_equal(first.overlay.kept, kept)
    assert all(np.array_equal(first.overlay.sets[name], members) for name, members in sets.items())


def test_a_refresh_leaves_what_else_is_remembered(loaded, made):
    params = PruningParams().replace(refresh_when='slack', confidence_when='first')
    policy, engine = graphed(loaded, made, params)
    plain = Policy(loaded, params)
    policy.warm_up('lift the red cube')
    for one in (policy, plain):
        one.act(look(0))
        first = one._memory.carry['confidence'].clone()
        one.act(look(1))
        assert one.refresh(look(2), lambda: False)
        assert torch.equal(one._memory.carry['confidence'], first)
    same(policy.act(look(3)), plain.act(look(3)))
    assert engine.trouble == ''


def test_actions_that_are_not_finite_do_not_leave_a_replay_either(loaded, made):
    from specprune_ros.policy.result import PolicyError

    own = random_policy_model('tiny', seed=1)
    policy, _ = graphed(own, made)
    policy.warm_up('lift the red cube')
    policy.act(look(0))
    with torch.no_grad():
        own.model.action_head.fc2.bias[0] = float('nan')
    with pytest.raises(PolicyError, match='not finite'):
        policy.act(look(1))
    with torch.no_grad():
        own.model.action_head.fc2.bias[0] = 0.0
    result = policy.act(look(2))
    assert 'after an error' in result.reset and result.mode is Mode.DENSE


def test_closing_ends_the_thread(loaded):
    engine = CudaGraphEngine(loaded, TapeCapturer())
    policy = Policy(loaded, engine=engine)
    policy.act(look(0))
    policy.close()
    assert not any(thread.name == 'capture' for thread in threading.enumerate())


def test_measured_deviation_is_the_same(loaded, made):
    policy, _ = graphed(loaded, made)
    plain = Policy(loaded)
    policy.warm_up('lift the red cube')
    for one in (policy, plain):
        one.measure_deviation = True
    for step in range(3):
        one, two = policy.act(look(step)), plain.act(look(step))
        assert np.array_equal(one.action_deviation, two.action_deviation)
        assert one.kept_recall == two.kept_recall
