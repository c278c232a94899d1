"""The policy server and the evaluation on Ray, with real processes. Needs the extra ``ray``."""

import asyncio
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from served import observation

from specprune_ros.policy.build import build_policy
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.interface import Mode
from specprune_ros.serving.client import RemotePolicy, ServerError
from specprune_ros.sim.training.export import SHIPPED

ray = pytest.importorskip('ray', reason='no Ray here: pip install -r requirements/ray.txt')
from ray import serve  # noqa: E402

from specprune_ros.serving.ray_app import Options, build  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.real_time, pytest.mark.timeout(300)]
PORT = 8126
ROBOTS, QUERIES = 6, 24


@pytest.fixture(scope='module')
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    serve.start(http_options={'port': PORT})
    yield f'ws://127.0.0.1:{PORT}'
    serve.shutdown()
    ray.shutdown()


def deploy(**options):
    options = {'checkpoint': str(SHIPPED), 'device': 'cpu', 'threads': 1, 'cpus': 1, **options}
    serve.run(build(Options(**options)), name='policy')


class Robot(threading.Thread):
    """Asks query after query; remembers every answer and every error."""

    def __init__(self, url, number, queries=QUERIES):
        super().__init__()
        self.policy = RemotePolicy(url, timeout=60, connect_timeout=20)
        self.number, self.queries, self.log = number, queries, []
        self.requested = 0

    @property
    def replica(self):
        connection = self.policy._connection
        return connection and connection.metadata['replica']

    def run(self):
        step = 0
        while sum(one != 'lost' for one in self.log) < self.queries and len(self.log) < 500:
            step += 8
            self.requested += 1
            try:
                result = self.policy.act(observation(step, self.number))
            except ServerError:
                self.log.append('lost')
                time.sleep(0.2)
                continue
            self.log.append((step, self.replica, result))


def alone(loaded, robot):
    """What each of a robot's sessions had answered, had it been the only one anywhere."""
    policy = Policy(loaded)
    for one in robot.log:
        if one == 'lost':
            policy = Policy(loaded)
            continue
        step, _, result = one
        if result.reset == 'connected again':
            policy = Policy(loaded)
        expected = policy.act(observation(step, robot.number))
        yield result, expected


@pytest.fixture(scope='module')
def loaded():
    return build_policy(str(SHIPPED), device='cpu', threads=1).loaded


def kill(replica):
    """End a replica's process as a crash would."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if replica in actor['name']:
            ray.kill(ray.get_actor(actor['name'], namespace=actor['namespace']), no_restart=True)
            return
    pytest.fail(f'no replica {replica}')


def test_a_replica_that_dies_resets_its_sessions_and_nobody_else_s(cluster, loaded):
    deploy(replicas=2)
    robots = [Robot(cluster, number) for number in range(ROBOTS)]
    homes = Counter(robot.replica for robot in robots)
    assert len(homes) == 2
    for robot in robots:
        robot.start()
    while min(len(robot.log) for robot in robots) < 4:
        time.sleep(0.05)
    victim = robots[0].replica
    there = [robot for robot in robots if robot.replica == victim]
    kill(victim)
    for robot in robots:
        robot.join()
    for robot in robots:
        lost = sum(one == 'lost' for one in robot.log)
        resets = [result.reset for one in robot.log if one != 'lost' for result in one[2:]]
        assert len(robot.log) == robot.requested  # every query was answered or said to be lost
        if robot in there:
            assert lost >= 1
            assert [reset for reset in resets if reset] == ['start', 'connected again']
        else:
            assert lost == 0
            assert [reset for reset in resets if reset] == ['start']
            assert len({one[1] for one in robot.log}) == 1  # pinned
        for result, expected in alone(loaded, robot):
            assert (result.actions == expected.actions).all()
            assert (result.mode is Mode.DENSE) == (result.reset is not None)
        robot.policy.close()


def test_a_rolling_restart_loses_no_query_without_a_word(cluster, loaded):
    deploy(replicas=2)
    robots = [Robot(cluster, number, 60) for number in range(4)]
    before = {robot.replica for robot in robots}
    for robot in robots:
        robot.start()
    time.sleep(0.5)
    deploy(replicas=2, batch=4, drain=2.0)  # another configuration: every replica is replaced
    for robot in robots:
        robot.join()
        assert len(robot.log) == robot.requested
        assert sum(one != 'lost' for one in robot.log) == 60
        for result, expected in alone(loaded, robot):
            assert (result.actions == expected.actions).all()
        robot.policy.close()
    after = {robot.log[-1][1] for robot in robots}
    assert not before & after


def test_replicas_follow_the_queries_under_way():
    from specprune_ros.serving.ray_app import ByPending

    class Context:
        capacity_adjusted_min_replicas, capacity_adjusted_max_replicas = 1, 4

        def __init__(self, *pending):
            self.aggregated_metrics = {'pending': dict(enumerate(pending))}

    decide = ByPending(target=4.0)
    assert decide(Context())[0] == 1
    assert decide(Context(3.0))[0] == 1
    assert decide(Context(6.0, 3.0))[0] == 3
    assert decide(Context(60.0))[0] == 4


@pytest.mark.parametrize('given', [{}, {'checkpoint': str(SHIPPED), 'preset': 'tiny'}])
def test_random_weights_are_served_only_by_name(given):
    with pytest.raises(ValueError, match='one of checkpoint=FOLDER and preset=NAME'):
        build(Options(**given))
    assert build(Options(preset='tiny'))


def test_a_replica_s_window_and_key_are_those_of_the_server():
    from fastapi import Request

    from specprune_ros.serving.ray_app import Replica

    assert Options(window=5.0).limits().window == 0.005
    metrics = Replica.func_or_class.metrics
    hub = SimpleNamespace(metrics=SimpleNamespace(text=lambda: b'all', content_type='text/plain'))

    def status(*headers):
        request = Request({'type': 'http', 'headers': headers})
        return asyncio.run(metrics(SimpleNamespace(key='k', hub=hub), request)).status_code

    assert (status(), status((b'authorization', b'Api-Key k'))) == (401, 200)


def test_evaluation_on_a_cluster_gives_the_numbers_of_one_machine(tmp_path):
    from specprune_ros.sim.evaluation.on_ray import play_all_on_ray
    from specprune_ros.sim.evaluation.settings import table
    from specprune_ros.sim.evaluation.trials import TrialFile, checkpoint_hash, jobs, play_all

    serve.shutdown()
    ray.shutdown()
    weights, settings = checkpoint_hash(SHIPPED), table('main')[:2]

    def play(name, how, *arguments):
        done = TrialFile(tmp_path / name)
        todo = list(jobs(settings, ['move'], range(6), done, weights, 8, 0))
        how(*arguments, todo, done, SHIPPED, 2)
        return {
            key: (trial.outcome, trial.steps, trial.queries, trial.tokens, trial.flops)
            for key, trial in done.trials.items()
        }

    there, here = play('ray.jsonl', play_all_on_ray, 'local'), play('here.jsonl', play_all)
    assert len(here) == 12
    assert there == here


def test_no_cluster_is_said(tmp_path):
    from specprune_ros.sim.evaluation.on_ray import MissingRay, play_all_on_ray

    with pytest.raises(MissingRay, match='no Ray cluster at 127.0.0.1:1'):
        play_all_on_ray('127.0.0.1:1', [None], None, SHIPPED)
