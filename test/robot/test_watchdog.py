import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specprune_ros.robot import watchdog
from specprune_ros.robot.watchdog import ENDED, REASONS, State, Watchdog, WatchdogLimits

TICK = 10_000_000  # 100 Hz
SECOND = 1_000_000_000
LIMITS = WatchdogLimits(observation_age=0.5, chunk_age=0.6, state_age=0.2, dry_queue=0.1)


class Bench:
    """A watchdog at 100 Hz with everything arriving, until something is taken away."""

    def __init__(self, limits=LIMITS, **options):
        self.dog = Watchdog(limits, states=('tool pose',), **options)
        self.now = SECOND
        self.alive = {'pose', 'chunk', 'rows'}
        self.verdicts = []

    def run(self, seconds):
        for _ in range(round(seconds * 100)):
            self.now += TICK
            if 'pose' in self.alive:
                self.dog.measured('tool pose', self.now)
            if 'chunk' in self.alive and self.now % (10 * TICK) == 0:
                self.dog.chunk(self.now - 5 * TICK, self.now)
            self.dog.queue('rows' not in self.alive, self.now)
            self.verdicts.append((self.now, self.dog.check(self.now)))
        return self.verdicts[-1][1]

    def stops(self):
        return [(t, v.reason) for t, v in self.verdicts if v.stop_now]


def test_runs_while_everything_is_fresh():
    bench = Bench()
    assert bench.run(5.0).state is State.RUNNING
    assert bench.stops() == []


def test_waits_quietly_for_the_first_inputs():
    bench = Bench()
    bench.alive = set()
    verdict = bench.run(1.0)
    assert verdict.state is State.WAITING and verdict.detail == 'no tool pose yet'
    bench.alive = {'pose'}
    assert bench.run(1.0).detail == 'no chunk yet'
    assert bench.stops() == [] and not any(v.may_move for _, v in bench.verdicts)


@pytest.mark.parametrize(
    ('lost', 'reason', 'limit'),
    [
        ('pose', watchdog.STALE_STATE, 0.2),
        ('chunk', watchdog.STALE_OBSERVATION, 0.5),
        ('rows', watchdog.DRY_QUEUE, 0.1),
    ],
)
def test_one_stop_within_100_ms_of_the_limit(lost, reason, limit):
    bench = Bench()
    bench.run(2.0)
    begin = bench.now
    bench.alive.discard(lost)
    if lost == 'rows':
        bench.alive.discard('chunk')
    bench.run(3.0)
    ((at, why),) = bench.stops()
    assert why == reason
    late = (at - begin) * 1e-9 - limit
    # An observation is 50 ms old when its chunk comes, and chunks come every 100 ms.
    assert (-0.151 if lost == 'chunk' else -0.011) <= late <= 0.1
    assert not any(v.may_move for t, v in bench.verdicts if t >= at)


def test_stale_chunk_where_observations_alone_look_fresh():
    bench = Bench(WatchdogLimits(observation_age=9.0, chunk_age=0.3))
    bench.run(1.0)
    begin = bench.now
    bench.alive.discard('chunk')
    bench.run(1.0)
    ((at, why),) = bench.stops()
    assert why == watchdog.STALE_CHUNK and (at - begin) * 1e-9 - 0.3 <= 0.1


@pytest.mark.parametrize(
    ('break_it', 'mend', 'reason'),
    [
        (lambda d: d.driver(False, 'emergency stop'), lambda d: d.driver(True), watchdog.DRIVER),
        (lambda d: d.enable(False), lambda d: d.enable(True), watchdog.DISABLED),
        (lambda d: d.policy_error('no camera'), lambda d: None, watchdog.POLICY_ERROR),
        (lambda d: d.unsafe('not finite'), lambda d: None, watchdog.SAFETY),
    ],
)
@pytest.mark.parametrize('latched', [False, True])
def test_reported_reasons_stop_at_once_and_recover_as_reported(break_it, mend, reason, latched):
    limits = WatchdogLimits(latched=frozenset({reason}) if latched else frozenset())
    bench = Bench(limits)
    bench.run(1.0)
    break_it(bench.dog)
    bench.alive.discard('chunk')
    verdict = bench.run(0.01)
    assert verdict.stop_now and verdict.reason == reason and verdict.latched == latched
    bench.run(0.5)
    assert len(bench.stops()) == 1
    mend(bench.dog)
    bench.alive.add('chunk')
    after = bench.run(0.5)
    if latched and reason != watchdog.DISABLED:  # enabling is what mends that one
        assert after.state is State.STOPPED and after.latched
        bench.dog.enable(True)
        after = bench.run(0.5)
    assert after.state is State.RUNNING
    assert len(bench.stops()) == 1


FAULTS = {
    watchdog.DRIVER: (
        lambda b: b.dog.driver(False, 'emergency stop'),
        lambda b: b.dog.driver(True),
    ),
    watchdog.IMPLAUSIBLE: (lambda b: b.dog.implausible('pose jumps', b.now), lambda b: None),
    watchdog.STALE_STATE: (lambda b: b.alive.discard('pose'), lambda b: b.alive.add('pose')),
    watchdog.CLOCK: (lambda b: setattr(b, 'now', b.now - SECOND), lambda b: None),
    watchdog.SUPERVISOR: (lambda b: b.dog.supervisor('gone'), lambda b: b.dog.supervisor('')),
    watchdog.GRIPPER: (lambda b: b.dog.gripper('stuck'), lambda b: b.dog.gripper('')),
}


def idle(bench):
    """Its motion ran dry; nothing stands against the next."""
    bench.run(1.0)
    bench.alive -= {'chunk', 'rows'}
    bench.run(1.0)


def held(bench):
    bench.run(1.0)
    bench.dog.hold(True)
    bench.run(0.5)


def unmoved(bench):
    """Enabled, and nothing was to be done so far."""
    bench.alive.discard('chunk')
    bench.run(0.5)


def refused(bench):
    bench.run(1.0)
    bench.alive.discard('chunk')
    bench.dog.policy_error('a refused chunk')
    bench.run(0.5)


@pytest.mark.parametrize('reason', FAULTS)
@pytest.mark.parametrize('before', [idle, held, unmoved, refused])
def test_a_fault_of_an_arm_that_does_not_move_latches_too(before, reason):
    bench = Bench(dataclasses.replace(LIMITS, latched=frozenset({reason})))
    before(bench)
    stops = bench.stops()
    break_it, mend = FAULTS[reason]
    break_it(bench)
    verdict = bench.run(0.5)
    assert (verdict.state, verdict.reason, verdict.latched) == (State.STOPPED, reason, True)
    mend(bench)
    bench.dog.hold(False)
    bench.alive = {'pose', 'chunk', 'rows'}
    assert bench.run(1.0).latched
    assert bench.stops() == stops
    bench.dog.enable(True)
    assert bench.run(0.5).state is State.RUNNING


def test_what_is_not_there_yet_at_the_start_or_after_a_reset_is_no_fault_to_latch():
    bench = Bench(dataclasses.replace(LIMITS, latched=frozenset(FAULTS)))
    bench.dog.driver(False, 'nothing on it yet')
    bench.alive.discard('pose')
    assert bench.run(0.5).state is State.WAITING
    bench.dog.driver(True)
    bench.alive.add('pose')
    assert bench.run(0.5).state is State.RUNNING
    for pause in (lambda: None, lambda: bench.dog.hold(True)):
        pause()
        bench.dog.reset()
        bench.run(0.01)
        bench.alive.discard('pose')
        bench.dog.forget_states()
        assert not bench.run(0.5).latched
        bench.alive.add('pose')
        bench.dog.hold(False)
        assert bench.run(0.5).state is State.RUNNING
    bench.dog.stand_down()  # deactivated, and active again
    bench.dog.driver(False, 'nothing on it yet')
    assert bench.run(0.5).state is State.WAITING


def test_an_error_stops_the_arm_even_if_a_good_chunk_follows_within_the_period():
    bench = Bench()
    bench.run(1.0)
    bench.dog.policy_error('a refused chunk')
    bench.dog.chunk(bench.now - 5 * TICK, bench.now)
    bench.run(1.0)
    assert [reason for _, reason in bench.stops()] == [watchdog.POLICY_ERROR]
    assert bench.verdicts[-1][1].state is State.RUNNING


def test_enabling_does_not_resume_the_old_chunk():
    bench = Bench(WatchdogLimits(observation_age=100.0, chunk_age=100.0))
    bench.run(1.0)
    bench.alive.discard('chunk')
    bench.dog.enable(False)
    bench.run(0.1)
    bench.dog.enable(True)
    assert bench.run(1.0).state is State.WAITING  # until a new one comes


def test_clock_going_back_stops_once_and_recovers():
    bench = Bench()
    bench.run(2.0)
    bench.now -= SECOND
    bench.run(1.0)
    assert [why for _, why in bench.stops()] == [watchdog.CLOCK]
    assert bench.verdicts[-1][1].state is State.RUNNING


def test_dropping_the_motion_under_way_stops_the_arm():
    for drop in (lambda d: d.reset(), lambda d: d.enable(True)):
        bench = Bench()
        bench.run(1.0)
        drop(bench.dog)
        bench.alive.discard('chunk')
        assert bench.run(0.01).stop_now
        assert bench.run(0.5).state is State.WAITING
        assert [why for _, why in bench.stops()] == [watchdog.RESET]


def test_a_stalled_clock_stops_the_arm():
    dog = Watchdog(WatchdogLimits(clock_stall=0.3))
    dog.chunk(SECOND, SECOND)
    stops = []
    for i in range(100):  # simulated time stands, real time goes on
        if dog.check(SECOND, i * TICK).stop_now:
            stops.append(i)
    assert len(stops) == 1 and 30 <= stops[0] <= 31
    dog.chunk(2 * SECOND, 2 * SECOND)
    assert dog.check(2 * SECOND, 101 * TICK).may_move


def test_nothing_moves_before_there_is_time():
    dog = Watchdog(LIMITS)
    dog.chunk(0, 0)
    verdict = dog.check(0)
    assert not verdict.may_move and 'no time yet' in verdict.detail


def test_a_chunk_that_came_while_stopped_is_not_kept():
    bench = Bench()
    bench.alive = {'chunk'}
    bench.run(0.5)
    bench.alive = {'pose'}
    assert bench.run(0.5).state is State.WAITING
    assert bench.stops() == []


def test_stamps_from_the_future_count_as_no_input():
    bench = Bench()
    bench.run(1.0)
    bench.alive.discard('pose')
    bench.dog.measured('tool pose', bench.now + 3600 * SECOND)
    bench.run(0.1)
    assert [why for _, why in bench.stops()] == [watchdog.STALE_STATE]
    assert 'in the future; the clocks disagree' in bench.verdicts[-1][1].detail


def test_a_image_stamped_an_hour_ago_never_moves_the_arm():
    dog = Watchdog(LIMITS)
    now = 7200 * SECOND
    for i in range(100):
        dog.chunk(now - 3600 * SECOND, now + i * TICK)
        verdict = dog.check(now + i * TICK)
        assert not verdict.may_move and verdict.reason == watchdog.STALE_OBSERVATION


def test_limits_are_checked():
    with pytest.raises(ValueError, match='chunk_age: is 0.0; it should be greater than 0'):
        WatchdogLimits(chunk_age=0.0)
    with pytest.raises(ValueError, match='latched.*boredom.*it should be .disabled.'):
        WatchdogLimits(latched=frozenset({'boredom'}))


events = st.lists(
    st.tuples(
        st.sampled_from(
            ['pose', 'chunk', 'old chunk', 'dry', 'wet', 'driver', 'ready', 'error', 'unsafe',
             'enable', 'disable', 'reset', 'back', 'nothing']
        ),
        st.integers(1, 60),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=200)
@given(events, st.frozensets(st.sampled_from(watchdog.REASONS)))
def test_whatever_happens_a_stop_comes_once_between_motions(sequence, latched):
    dog = Watchdog(
        WatchdogLimits(observation_age=0.3, chunk_age=0.3, state_age=0.2, latched=latched),
        states=('pose',),
    )
    now, moving, must_enable = SECOND, False, False
    for event, ticks in sequence:
        if event == 'pose':
            dog.measured('pose', now)
        elif event == 'chunk':
            dog.chunk(now, now)
        elif event == 'old chunk':
            dog.chunk(now - 10 * SECOND, now)
        elif event in ('dry', 'wet'):
            dog.queue(event == 'dry', now)
        elif event in ('driver', 'ready'):
            dog.driver(event == 'ready')
        elif event == 'error':
            dog.policy_error('x')
        elif event == 'unsafe':
            dog.unsafe('x')
        elif event in ('enable', 'disable'):
            dog.enable(event == 'enable')
            must_enable = must_enable and event != 'enable'
        elif event == 'reset':
            dog.reset()
        elif event == 'back':
            now -= SECOND // 2
        for _ in range(ticks):
            now += TICK
            verdict = dog.check(now)
            assert verdict.stop_now == (moving and not verdict.may_move)
            assert not (verdict.may_move and must_enable)
            assert not (verdict.may_move and (not dog.enabled or verdict.reason))
            moving = verdict.may_move
            must_enable = must_enable or verdict.latched


def test_every_reason_is_a_named_value_that_the_documents_explain():
    page = (Path(__file__).parents[2] / 'docs/how-to/robots.md').read_text()
    table = page.split('| reason | what happened |')[1].split('\n\n')[0]
    assert sorted(re.findall(r'^\| `(\w+)` \|', table, re.M)) == sorted((*REASONS, ENDED))
