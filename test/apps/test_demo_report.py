"""The closing tables of the demo."""

import pytest
from rich.console import Console

pytestmark = pytest.mark.ros


def attempt(words, pruner, outcome='success', **more):
    from specprune_ros.apps.demo.demo_sequence import DEMO, Attempt
    from specprune_ros.sim.tasks.task_result import TaskResult

    values = {'queries': 10, 'tokens_mean': 512.0, 'flops_ratio': 1.0, 'query_ms_p50': 60.0}
    values |= {'seconds_taken': 4.0, 'real_time_factor': 1.0} | more
    return Attempt(words, DEMO, pruner, TaskResult(words, outcome, 2.0), **values)


def text(table):
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(table)
    return ' '.join(capture.get().split())


def test_pruned_is_set_against_dense_over_all_queries():
    from specprune_ros.apps.demo.report import comparison

    pruned = {'tokens_mean': 200.0, 'flops_ratio': 0.5, 'query_ms_p50': 33.0}
    said = text(
        comparison(
            [
                attempt('a', 'specprune', queries=30, **pruned),
                attempt('a', 'dense'),
                attempt('b', 'specprune', 'time_out', **{**pruned, 'flops_ratio': 0.7}),
                attempt('b', 'dense'),
                attempt('c', 'specprune'),  # its dense run was not reached
            ]
        )
    )
    assert 'success │ 1 of 2 │ 2 of 2' in said
    assert '200 │ 512 │ 39%' in said
    assert '55% │ 100% │ 55%' in said  # 30 queries of 50 %, 10 of 70 %
    assert '33 │ 60 │ 55%' in said


def test_nothing_to_compare_is_no_error():
    from specprune_ros.apps.demo.report import comparison

    assert '0 of 0' in text(comparison([]))
    assert '0 of 0' in text(comparison([attempt('a', 'specprune', cut='the time was over')]))


def test_the_real_time_factor_is_of_all_the_time_taken():
    from specprune_ros.apps.demo.report import real_time_factor

    slow = attempt('a', 'dense', seconds_taken=12.0, real_time_factor=0.5)
    assert real_time_factor([slow, attempt('a', 'specprune')]) == pytest.approx(10 / 16)
    assert real_time_factor([]) is None


def test_an_attempt_is_of_the_method_that_most_of_its_queries_used():
    """A person may change it on the page; the table kept what the demo had set."""
    from specprune_ros.msg import PruneStats

    from specprune_ros.apps.monitor import QueryStats

    tally = QueryStats()
    mine = attempt('lift', 'dense')
    mine.take(tally.since(tally.mark()))
    assert mine.pruner == 'dense' and mine.queries == 0
    tally.add_stats(PruneStats(pruner='specprune'))
    mark = tally.mark()
    for name in ('dense', 'fastv', 'fastv'):
        tally.add_stats(PruneStats(pruner=name))
    mine.take(tally.since(mark))
    assert mine.pruner == 'fastv' and mine.queries == 3
