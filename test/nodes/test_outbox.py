"""What is handed over for publishing: in order, never lost, never much, and not after a stop."""

import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros


@pytest.fixture
def outbox():
    from specprune_ros.nodes.outbox import Outbox

    made = Outbox()
    made.start()
    yield made
    made.close()
    assert not made.is_alive()


def test_jobs_are_done_in_order_and_none_is_lost(outbox):
    done = []
    for number in range(200):
        assert outbox.put(lambda n=number: (time.sleep(0.0005), done.append(n)), lambda: False)
    assert outbox.settle(5.0)
    assert done == list(range(200))
    assert not outbox.behind


def test_few_can_wait_and_who_hands_over_may_give_up(outbox):
    from specprune_ros.nodes.outbox import DEPTH

    gate, done = threading.Event(), []
    for number in range(DEPTH + 1):  # one is under way
        assert outbox.put(lambda n=number: (gate.wait(5.0), done.append(n)), lambda: False)
        time.sleep(0.02)
    assert outbox.behind
    assert not outbox.settle(0.05)
    asked = []
    assert not outbox.put(done.clear, lambda: asked.append(1) or len(asked) > 2, look=0.01)
    gate.set()
    assert outbox.settle(5.0)
    assert done == list(range(DEPTH + 1))


def test_closing_ends_after_the_job_under_way(outbox):
    begun, done = threading.Event(), []
    outbox.put(lambda: (begun.set(), time.sleep(0.1), done.append(1)), lambda: False)
    outbox.put(lambda: done.append(2), lambda: False)
    assert begun.wait(5.0)
    outbox.close()
    assert done == [1]
    assert not outbox.put(done.clear, lambda: False)
    assert outbox.settle(1.0)


class Bench:
    """The inference thread with the real tiny policy; publishing takes ``slow`` seconds."""

    def __init__(self, slow):
        from specprune_ros.nodes.inbox import Inbox, Limits
        from specprune_ros.nodes.inference import InferenceThread
        from specprune_ros.nodes.pace import Rhythm
        from specprune_ros.policy.build import build_policy

        self.inbox = Inbox(('agent', 'wrist'), True, Limits(10.0, 10.0, 10.0, 10.0))
        self.inbox.put_instruction('lift the red cube')
        self.slow, self.noted, self.published, self.refused = slow, [], [], []
        self.thread = InferenceThread(
            lambda: build_policy(preset='tiny', device='cpu', threads=1),
            self.inbox,
            time.time_ns,
            self.deliver,
            self.refused.append,
            lambda: Rhythm(0.0, 0.0),
            self.refused.append,
        )
        self.pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        self.thread.load(60.0)

    def deliver(self, observation, result, begin, end):
        stamp = observation.stamp_ns
        self.noted.append(stamp)

        def publish():
            time.sleep(self.slow)
            if self.slow == 0.0:
                raise ValueError('no message of that')
            self.published.append(stamp)

        return publish

    def feed(self, seconds, until=lambda: False):
        """New pictures for a while, or until something is true; returns whether it became so."""
        from specprune_ros.policy.observation import Picture

        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            now = time.time_ns()
            self.inbox.put_state(np.zeros(8), now)
            for camera in ('agent', 'wrist'):
                self.inbox.put_picture(camera, Picture(self.pixels, now))
            time.sleep(0.01)
        return until()


@pytest.fixture
def bench_with():
    made = []

    def make(slow):
        made.append(Bench(slow))
        return made[-1]

    yield make
    for bench in made:
        bench.thread.close()
        assert not bench.thread.is_alive()


def test_the_next_query_does_not_wait_for_publishing_until_too_many_do(bench_with):
    from specprune_ros.nodes.outbox import DEPTH

    bench = bench_with(0.4)
    bench.thread.activate()
    # One is being published, DEPTH wait, and the next query's result waits for room.
    full = DEPTH + 1
    assert bench.feed(20.0, until=lambda: len(bench.noted) - len(bench.published) >= full)
    bench.feed(0.5)
    assert len(bench.noted) - len(bench.published) <= full + 1
    assert bench.published == bench.noted[: len(bench.published)]
    # What was asked before a stop is not answered after it.
    assert bench.thread.deactivate()
    have, stop = len(bench.published), time.time_ns()
    bench.feed(0.6)
    assert len(bench.published) == have
    bench.thread.activate()
    assert bench.feed(10.0, until=lambda: len(bench.published) > have)
    assert bench.published[have] > stop
    assert not bench.refused


def test_what_cannot_be_published_is_said(bench_with):
    bench = bench_with(0.0)
    bench.thread.activate()
    assert bench.feed(10.0, until=lambda: bench.refused)
    assert bench.refused[0] == 'the result cannot be published: ValueError: no message of that'
