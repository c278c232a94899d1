"""What a query goes on from: counted in what was executed, never in what the clock says."""

import numpy as np
import pytest

from specprune_ros.policy.real_time_chunking import ChunkFollower, ChunkingRules

STEP = 0.05
MS = 1_000_000
RULES = ChunkingRules(8)


def rows(count=10):
    return np.arange(7.0 * count).reshape(count, 7)


def follower(moving_from=0):
    """One that has been reported an arm that moves from ``moving_from`` ms on, for two seconds."""
    made = ChunkFollower(STEP)
    for ms in range(0, 2000, 20):
        made.executed(ms * MS, max(0, ms - moving_from) / 1000)
    return made


def issue(follower, ms, episode=1, instruction='lift'):
    follower.issued(ms * MS, episode, instruction, rows(), 100 + rows())


def go_on(follower, ms, episode=1, instruction='lift', seen=None):
    return follower.go_on(ms * MS, episode, instruction, RULES, seen)


def test_what_is_left_is_counted_in_executed_steps():
    chunks = follower()
    issue(chunks, 100)
    found = go_on(chunks, 300)  # four steps of 50 ms later
    assert np.array_equal(found.previous, rows()[4:])
    assert found.rules is RULES
    assert chunks.reason == ''


def test_an_arm_that_stands_still_executes_nothing_however_long_it_takes():
    chunks = follower(moving_from=1000)
    issue(chunks, 100)
    assert len(go_on(chunks, 900).previous) == 10
    assert len(go_on(chunks, 1100).previous) == 8


def test_the_delay_is_the_most_of_the_last_chunks_in_executed_steps_without_the_warm_up():
    chunks = follower()
    issue(chunks, 0)
    chunks.joined(0, 1.9)  # loading and capturing took their time
    assert chunks.delay == 0
    for ms, at in [(400, 0.5), (800, 0.99), (1200, 1.25)]:
        issue(chunks, ms)
        chunks.joined(ms * MS, at)
    assert chunks.delay == 4  # 3.8 steps, of the second
    assert go_on(chunks, 1300).delay == 4
    for ms in range(1300, 1310):
        issue(chunks, ms)
        chunks.joined(ms * MS, 1.35)
    assert chunks.delay == 1


def test_a_delay_never_exceeds_what_is_left():
    chunks = follower()
    for ms in (0, 400):
        issue(chunks, ms)
        chunks.joined(ms * MS, ms / 1000 + 0.4)
    found = go_on(chunks, 800)
    assert (len(found.previous), found.delay) == (2, 2)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (dict(episode=2), 'another episode or instruction'),
        (dict(instruction='push'), 'another episode or instruction'),
        (dict(ms=1900), 'nothing is left of the chunk before'),
    ],
)
def test_nothing_to_go_on_from_has_a_reason(change, reason):
    chunks = follower()
    issue(chunks, 100)
    assert go_on(chunks, **{'ms': 300, **change}) is None
    assert chunks.reason == reason


def test_without_an_executor_that_reports_every_query_starts_anew():
    chunks = ChunkFollower(STEP)
    assert go_on(chunks, 100) is None
    assert chunks.reason == 'no chunk before'
    issue(chunks, 0)
    assert go_on(chunks, 100) is None
    assert '~/executed' in chunks.reason


def test_an_executor_that_starts_anew_counts_from_zero():
    chunks = follower()
    issue(chunks, 100)
    for ms in range(2000, 2400, 20):
        chunks.executed(ms * MS, (ms - 2000) / 1000)
    issue(chunks, 2000)
    assert len(go_on(chunks, 2200).previous) == 6


def test_relative_actions_are_seen_from_the_new_observation():
    chunks = follower()
    issue(chunks, 100)
    found = go_on(chunks, 300, seen=lambda actions: -actions)
    assert np.array_equal(found.previous, -(100 + rows())[4:])


def test_a_reset_forgets_chunks_and_delays():
    chunks = follower()
    issue(chunks, 100)
    chunks.reset()
    assert go_on(chunks, 300) is None
    assert chunks.delay == 0


def test_reports_count_again_when_the_clock_goes_back():
    chunks = follower()
    for ms in range(0, 400, 20):
        chunks.executed(ms * MS, 2.0)  # the arm stands still
    issue(chunks, 100)
    assert len(go_on(chunks, 300).previous) == 10
