"""What is handed over for publishing: in order, never lost, never much, and not after a stop."""

import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros


@pytest.fixture
def publisher():
    from specprune_ros.nodes.policy_node.publisher import Publisher

    made = Publisher()
    made.start()
    yield made
    made.close()
    assert not made.is_alive()


def test_jobs_are_done_in_order_and_none_is_lost(publisher):
    done = []
    for number in range(200):
        assert publisher.put(lambda n=number: (time.sleep(0.0005), done.append(n)), lambda: False)
    assert publisher.settle(5.0)
    assert done == list(range(200))
    assert not publisher.behind


def test_few_can_wait_and_who_hands_over_may_give_up(publisher):
    from specprune_ros.nodes.policy_node.publisher import DEPTH

    gate, done = threading.Event(), []
    for number in range(DEPTH + 1):  # one is under way
        assert publisher.put(lambda n=number: (gate.wait(5.0), done.append(n)), lambda: False)
        time.sleep(0.02)
    assert publisher.behind
    assert not publisher.settle(0.05)
    asked = []
    assert not publisher.put(done.clear, lambda: asked.append(1) or len(asked) > 2, look=0.01)
    gate.set()
    assert publisher.settle(5.0)
    assert done == list(range(DEPTH + 1))


def test_closing_ends_after_the_job_under_way(publisher):
    begun, done = threading.Event(), []
    publisher.put(lambda: (begun.set(), time.sleep(0.1), done.append(1)), lambda: False)
    publisher.put(lambda: done.append(2), lambda: False)
    assert begun.wait(5.0)
    publisher.close()
    assert done == [1]
    assert not publisher.put(done.clear, lambda: False)
    assert publisher.settle(1.0)


class Bench:
    """The inference thread with the real tiny policy; publishing takes ``slow`` seconds."""

    def __init__(self, slow):
        from specprune_ros.nodes.policy_node.inference import InferenceThread
        from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer
        from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule
        from specprune_ros.policy.build import build_policy

        self.observation_buffer = ObservationBuffer(
            ('agent', 'wrist'), True, Limits(10.0, 10.0, 10.0, 10.0)
        )
        self.observation_buffer.put_instruction('lift the red cube')
        self.slow, self.noted, self.published, self.refused = slow, [], [], []
        self.thread = InferenceThread(
            lambda: build_policy(preset='tiny', device='cpu', threads=1),
            self.observation_buffer,
            time.time_ns,
            self.deliver,
            self.refused.append,
            lambda: QuerySchedule(0.0, 0.0),
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
        """New images for a while, or until something is true; returns whether it became so."""
        from specprune_ros.policy.observation import CameraImage

        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            now = time.time_ns()
            self.observation_buffer.put_state(np.zeros(8), now)
            for camera in ('agent', 'wrist'):
                self.observation_buffer.put_image(camera, CameraImage(self.pixels, now))
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
    from specprune_ros.nodes.policy_node.publisher import DEPTH

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
