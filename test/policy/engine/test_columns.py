"""The bench's graph columns: who gets one, and what its ratios are against."""

import gc
import weakref

import numpy as np
import pytest
from tape import TapeCapturer

from specprune_ros.bench import measure
from specprune_ros.bench.race import contestants, race
from specprune_ros.bench.roofline import Ceilings
from specprune_ros.bench.table import table
from specprune_ros.models.load import random_policy_model
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.synthetic_observations import observations


def test_graphs_race_beside_the_eager_ones_and_are_measured_against_the_dense_graph():
    loaded, capturer = random_policy_model('tiny'), TapeCapturer()
    entered = contestants(loaded, 'specprune,random', {}, stock=False, capturer=capturer)
    assert [(c.label, c.mode) for c in entered] == [
        ('dense', 'eager'), ('specprune', 'eager'), ('random', 'eager'),
        ('dense', 'graph'), ('specprune', 'graph'),
    ]  # fmt: skip
    race(entered, observations(entered[0].policy, BENCH_INSTRUCTION, 0), range(2), warm=2)
    # Two warm rounds of the contest, two of the warm-up before, two timed, one compared.
    assert capturer.replayed == 2 * 7
    rows = table(entered, 'tiny', Ceilings(1.0, 1.0))
    eager, captured = rows[:2], rows[3:]
    for one, two in zip(eager, captured, strict=True):
        for same in ('tokens_mean', 'flops_ratio', 'gflops', 'action_deviation', 'trouble'):
            assert one[same] == two[same]
    assert captured[0]['speedup'] == 1.0
    ratios = np.array(entered[3].seconds) / np.array(entered[4].seconds)
    assert captured[1]['speedup'] == pytest.approx(np.median(ratios), abs=1e-3)
    for contestant in entered:
        contestant.policy.close()


def test_what_could_not_be_captured_says_so_in_its_row():
    loaded = random_policy_model('tiny')
    capturer = TapeCapturer(RuntimeError('no graphs on this driver'))
    entered = contestants(loaded, 'dense', {}, stock=False, capturer=capturer)
    race(entered, observations(entered[0].policy, BENCH_INSTRUCTION, 0), range(1), warm=1)
    rows = table(entered, 'tiny', Ceilings(1.0, 1.0))
    assert [row['trouble'] for row in rows] == ['', 'no CUDA graph: no graphs on this driver']
    for contestant in entered:
        contestant.policy.close()


def test_nothing_holds_a_model_after_its_bench(monkeypatch):
    monkeypatch.setattr(measure, 'graph_capturer_on', lambda device: TapeCapturer())
    held = []

    def watch(loaded):
        held.append(weakref.ref(loaded.model))
        return ()

    measure.bench(model='tiny', device='cpu', repeats=1, stock=False, more=watch)
    gc.collect()
    assert held[0]() is None
