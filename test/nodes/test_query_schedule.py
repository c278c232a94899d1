"""A query once per chunk: the next chunk is there as the motion ends, judged by the executor's own
time line.
"""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

MS = 1_000_000
STEP = 0.1  # s, 8 steps a chunk
NAMES = ('x', 'y', 'z', 'rx', 'ry', 'rz')


class World:
    """A camera at 30 Hz, an arm at 100 Hz and a policy of some latency, millisecond by
    millisecond.
    """

    def __init__(self, latency):
        from specprune_ros.nodes.policy_node.query_schedule import QueryScheduler
        from specprune_ros.robot.chunk import ChunkRules
        from specprune_ros.robot.timeline import ChunkTimeline

        self.pace, self.line = QueryScheduler(), ChunkTimeline(ChunkRules(frames=('base',)))
        self.latency, self.rng = latency, np.random.default_rng(0)
        self.now, self.image, self.busy_until, self.rows_requested = 1000, 0, None, None
        self.skipped, self.left, self.at, self.still = [], [], [], 0

    def run(self, seconds, blind=False):
        for _ in range(round(1000 * seconds)):
            self.now += 1
            if self.now % 33 == 0 and not blind:
                self.image = self.now
            if self.now % 10 == 0:
                self.still += self.line.sample(self.now * MS).done
            if self.busy_until == self.now:
                self.deliver()
            elif self.busy_until is None and self.pace.early(self.now / 1000) <= 0:
                self.query()

    def query(self):
        if self.image != self.rows_requested:
            self.rows_requested = self.image
            self.busy_until = self.now + round(1000 * self.rng.uniform(*self.latency))

    def deliver(self):
        from specprune_ros.robot import chunk as chunks

        self.busy_until = None
        chunk = chunks.Chunk(
            stamp_ns=self.rows_requested * MS,
            frame='base',
            sequence=len(self.at) + 1,
            episode=1,
            step_dt=STEP,
            horizon=8,
            dims=NAMES,
            kind=chunks.KIND_EE_DELTA,
            rotation=chunks.ROTATION_VECTOR,
            reference=chunks.REFERENCE_PREVIOUS_STEP,
            data=np.full((8, 6), 0.001),
        )
        self.left.append(self.line.queued)
        self.skipped.append(self.line.add(chunk, self.now * MS).skipped * STEP)
        self.at.append(self.now)
        self.pace.delivered(self.rows_requested / 1000, self.now / 1000, 8 * STEP)


@pytest.mark.parametrize('latency', [(0.02, 0.03), (0.2, 0.3)])
def test_chunks_come_as_the_motion_before_them_ends(latency):
    world = World(latency)
    world.run(20.0)  # reactions are known by now
    world.still, have = 0, len(world.at)
    world.run(15.0)
    # Of each chunk only what was executed while it was made is left out.
    played = np.diff(world.at) / 1000
    late = latency[1] + 0.05  # and the image's age
    assert played[have:].mean() > 0.8 - late
    assert max(world.skipped[have:]) < late
    # The arm hardly waits, and little of a chunk is thrown away.
    assert world.still < 0.02 * 1500
    assert np.mean(world.left[have:]) < (latency[1] - latency[0]) + 0.05


def test_a_first_chunk_is_played_whole_and_one_after_a_pause_too():
    world = World((0.1, 0.1))
    world.run(0.5)
    assert len(world.at) == 1
    world.run(5.0)
    world.run(5.0, blind=True)
    have = len(world.at)
    world.run(0.5)
    assert len(world.at) == have + 1
    assert world.left[-1] == 0.0
    assert world.skipped[-1] == 0.0
    world.run(5.0)
    # A pause of the cameras does not count as the policy's slowness.
    assert np.mean(np.diff(world.at[-5:])) > 600


def test_a_policy_slower_than_its_chunks_is_queried_all_the_time():
    world = World((1.0, 1.1))
    world.run(20.0)
    assert np.mean(np.diff(world.at)) < 1200


def test_a_clock_that_goes_back_does_not_hold_queries_up():
    world = World((0.1, 0.1))
    world.run(3.0)
    assert world.pace.early(world.now / 1000) > 0
    assert world.pace.early(world.now / 1000 - 100.0) <= 0
    world.pace.reset()
    assert world.pace.early(world.now / 1000) <= 0


def test_time_that_stands_still_between_two_looks_is_not_a_clock_that_goes_back():
    # Simulated time does, and sums of its seconds are rounded: 5.08 + 0.4 - 5.08 > 0.4.
    from specprune_ros.nodes.policy_node.query_schedule import QueryScheduler

    for now in np.arange(1.0, 25.0, 0.004):
        pace = QueryScheduler()
        pace.delivered(now - 0.1, now, 0.4)
        assert pace.early(now) > 0.0, now


@pytest.mark.parametrize('first_dense', [True, False], ids=['slow once', 'never timed'])
def test_refreshes_in_the_slack_go_on_after_a_slow_pass_and_begin_without_one(first_dense):
    from rclpy.clock import Clock

    from specprune_ros.nodes.policy_node.inference import InferenceThread
    from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer
    from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule
    from specprune_ros.policy.build import build_policy
    from specprune_ros.policy.observation import CameraImage
    from specprune_ros.pruning.params import PruningParams

    params = PruningParams().replace(refresh_when='slack', first_dense=first_dense)
    policy = build_policy(preset='tiny', device='cpu', threads=1, params=params)
    buffer = ObservationBuffer(('agent', 'wrist'), True, Limits(10.0, 10.0, 10.0, 10.0))
    buffer.put_instruction('lift the red cube')
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    events, played = [], []
    schedule = QuerySchedule(0.8, 0.0)

    def follow(result, end_ns, plays):
        played.append(plays)

    thread = InferenceThread(
        lambda: policy, buffer, Clock(), events.append, events.append, schedule, follow
    )

    def feed(until):
        end = time.monotonic() + 60.0
        while not until() and time.monotonic() < end:
            now = time.time_ns()
            buffer.put_state(np.zeros(8), now)
            for camera in ('agent', 'wrist'):
                buffer.put_image(camera, CameraImage(pixels, now))
            time.sleep(0.02)
        return until()

    try:
        thread.load(60.0)
        thread.activate()
        assert feed(lambda: events)
        assert policy.query_period == 0.8  # no pause, however long
        assert played[0] == pytest.approx(0.4)  # 8 rows at 20 Hz
        policy._refresher.took.clear()
        if first_dense:
            policy._refresher.took.append(2.0)  # longer than there is between two queries
        have = len(events)
        assert feed(lambda: any(event.result.refreshes.done for event in events[have:]))
    finally:
        thread.close()
