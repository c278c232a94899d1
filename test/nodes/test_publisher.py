"""What is handed over for publishing: in order, never lost, never much, and not after a stop."""

import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros


class Line:
    """A publisher and what it published."""

    def __init__(self, publish=None):
        from specprune_ros.nodes.policy_node.publisher import Publisher

        self.done = []
        self.thread = Publisher(publish or self.publish)
        self.thread.start()

    def publish(self, event):
        self.done.append(event.refusal)

    def put(self, number):
        from specprune_ros.nodes.policy_node.publisher import QueryEvent

        return self.thread.put(QueryEvent(self.thread.generation, number), period=0.01)


@pytest.fixture
def line_with():
    made = []

    def make(publish=None):
        made.append(Line(publish))
        return made[-1]

    yield make
    for line in made:
        line.thread.close()
        assert not line.thread.is_alive()


def test_events_are_published_in_order_and_none_is_lost(line_with):
    line = line_with()
    assert all(line.put(number) for number in range(200))
    assert line.thread.settle(5.0)
    assert line.done == list(range(200))
    assert not line.thread.behind


def test_few_can_wait_and_a_stop_makes_them_void(line_with):
    from specprune_ros.nodes.policy_node.publisher import DEPTH

    gate, done = threading.Event(), []
    line = line_with(lambda event: (gate.wait(5.0), done.append(event.refusal)))
    for number in range(DEPTH + 1):  # one is under way
        assert line.put(number)
        time.sleep(0.02)
    assert line.thread.behind
    assert not line.thread.settle(0.05)
    threading.Timer(0.1, lambda: setattr(line.thread, 'generation', 1)).start()
    assert not line.put(99)  # waited for room until the stop
    gate.set()
    assert line.thread.settle(5.0)
    assert done == [0]


def test_closing_ends_after_the_event_under_way(line_with):
    begun, done = threading.Event(), []
    line = line_with(lambda event: (begun.set(), time.sleep(0.1), done.append(event.refusal)))
    line.put(1)
    line.put(2)
    assert begun.wait(5.0)
    line.thread.close()
    assert done == [1]
    assert line.thread.settle(1.0)


class Bench:
    """The inference thread with the real tiny policy; publishing waits for ``gate``, and fails
    where ``fails``.
    """

    def __init__(self, fails):
        from rclpy.clock import Clock

        from specprune_ros.nodes.policy_node.inference import InferenceThread
        from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer
        from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule
        from specprune_ros.policy.build import build_policy

        self.observation_buffer = ObservationBuffer(
            ('agent', 'wrist'), True, Limits(10.0, 10.0, 10.0, 10.0)
        )
        self.observation_buffer.put_instruction('lift the red cube')
        self.fails, self.gate = fails, threading.Event()
        self.noted, self.published, self.refused = [], [], []
        self.thread = InferenceThread(
            lambda: build_policy(preset='tiny', device='cpu', threads=1),
            self.observation_buffer,
            Clock(),
            self.publish,
            self.refused.append,
            QuerySchedule(0.0, 0.0),
            lambda result, end, plays: self.noted.append(end),
        )
        self.pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        self.thread.load(60.0)

    def publish(self, event):
        if event.result is None:
            self.refused.append(event.refusal)
            return
        self.gate.wait(30.0)
        if self.fails:
            raise ValueError('no message of that')
        self.published.append(event.end_ns)

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

    def make(fails):
        made.append(Bench(fails))
        return made[-1]

    yield make
    for bench in made:
        bench.gate.set()
        bench.thread.close()
        assert not bench.thread.is_alive()


def test_the_next_query_does_not_wait_for_publishing_until_too_many_do(bench_with):
    from specprune_ros.nodes.policy_node.publisher import DEPTH

    bench = bench_with(fails=False)
    bench.thread.activate()
    # One is being published, DEPTH wait, and the next query's result waits for room.
    assert bench.feed(30.0, until=lambda: len(bench.noted) == DEPTH + 2)
    assert not bench.feed(0.5, until=lambda: len(bench.noted) > DEPTH + 2)
    bench.gate.set()
    assert bench.feed(30.0, until=lambda: len(bench.published) > DEPTH + 2)
    assert bench.published == bench.noted[: len(bench.published)]
    # A query of before a stop is not answered after it.
    assert bench.thread.deactivate()
    have, stop = len(bench.published), time.time_ns()
    bench.feed(0.6)
    assert len(bench.published) == have
    bench.thread.activate()
    assert bench.feed(30.0, until=lambda: len(bench.published) > have)
    assert bench.published[have] > stop
    assert not bench.refused


def test_what_cannot_be_published_is_said(bench_with):
    bench = bench_with(fails=True)
    bench.gate.set()
    bench.thread.activate()
    assert bench.feed(30.0, until=lambda: bench.refused)
    assert bench.refused[0] == 'the result cannot be published: ValueError: no message of that'


def test_no_query_begins_after_a_stop(bench_with):
    """It would be published: the generation was counted up before it began."""
    bench = bench_with(fails=False)
    bench.gate.set()
    wait = bench.observation_buffer.wait

    def stopped_meanwhile(*arguments):
        found = wait(*arguments)
        if found:
            bench.thread.deactivate(0.0)
        return found

    bench.observation_buffer.wait = stopped_meanwhile
    bench.thread.activate()
    assert not bench.feed(1.0, until=lambda: bench.published or bench.refused)
    assert not bench.noted
    bench.observation_buffer.wait = wait
    bench.thread.activate()
    assert bench.feed(30.0, until=lambda: bench.published)
