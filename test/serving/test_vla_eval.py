"""The evaluation harness ``vla-eval`` drives the policy server through its own runner. Needs the
extra ``vla_eval``.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import yaml
from served import INSTRUCTION, serving

from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.policy import Policy

pytest.importorskip('vla_eval', reason='no vla-eval: pip install -r requirements/vla_eval.txt')

pytestmark = pytest.mark.timeout(300)
EPISODES = 4


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.real_time
def test_the_harness_s_own_runner_gets_our_success_rate(loaded, tmp_path):
    from specprune_ros.sim.arm.world import World
    from specprune_ros.sim.evaluation.evaluate import play_control
    from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
    from specprune_ros.sim.tasks.tasks import make_episode

    port = free_port()
    config = {
        'server': {'url': f'ws://127.0.0.1:{port}', 'timeout': 100},
        'output_dir': str(tmp_path / 'results'),
        'benchmarks': [
            {
                'benchmark': 'specprune_ros.sim.evaluation.vla_eval_benchmark:SimArmBenchmark',
                'episodes_per_task': EPISODES,
                'params': {'families': 'move'},
            }
        ],
    }
    (tmp_path / 'arm.yaml').write_text(yaml.safe_dump(config))
    with serving(loaded, EagerEngine(loaded)) as running:
        command = [sys.executable, '-m', 'specprune_ros.serving.vla_eval_server']
        adapter = subprocess.Popen([*command, f'--args.url={running.url}', f'--port={port}'])
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=1)
                    break
                except OSError:
                    assert adapter.poll() is None
                    time.sleep(0.2)
            run = [sys.executable, '-m', 'vla_eval.cli.main', 'run', '--no-docker']
            done = subprocess.run(
                [*run, '--config', str(tmp_path / 'arm.yaml'), '--yes'],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={**os.environ, 'VLA_EVAL_HOME': str(tmp_path)},
            )
        finally:
            adapter.terminate()
            adapter.wait(20)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (report,) = [
        json.loads(path.read_text())
        for path in (tmp_path / 'results').rglob('*.json')
        if 'tasks' in path.read_text()
    ]
    (task,) = report['tasks']
    theirs = [episode['metrics']['success'] for episode in task['episodes']]
    world, runner = World(cameras=loaded.config.cameras), PolicyRunner(Policy(loaded))
    ours = [
        play_control(world, runner, make_episode(seed, 'move'), '').success
        for seed in range(EPISODES)
    ]
    assert theirs == ours


class Context:
    """One session of the harness, as far as a model server sees it."""

    def __init__(self, session, episode=0):
        self.session_id, self.episode_id = f'session {session}', f'episode {episode}'
        self.sent = []

    async def send_action(self, action):
        self.sent.append(action)


def test_a_session_s_connection_ends_with_its_episode(loaded):
    from specprune_ros.serving.vla_eval_server import SpecPruneModelServer

    pixels = np.zeros((128, 128, 3), np.uint8)
    seen = {
        'images': dict.fromkeys(loaded.config.cameras, pixels),
        'states': np.zeros(8),
        'task_description': INSTRUCTION,
    }
    with serving(loaded, EagerEngine(loaded)) as running:
        server = SpecPruneModelServer(running.url)

        async def play(context):
            await server.on_episode_start({}, context)
            await server.on_observation(seen, context)
            await server.on_episode_end({}, context)
            await server.on_episode_end({}, context)  # once more does no harm

        async def connect_again(lost, context):
            await server.on_episode_start({}, lost)
            await server.on_episode_start({}, context)  # the harness gave up waiting
            await server.on_episode_end({}, lost)
            with pytest.raises(ValueError, match='is over'):
                await server.on_observation(seen, lost)
            await server.on_observation(seen, context)
            await server.on_episode_end({}, context)

        context = Context(2, 1)
        asyncio.run(connect_again(Context(2, 0), context))
        assert len(context.sent) == 1
        for number in (0, 1, 0):
            context = Context(number)
            asyncio.run(play(context))
            assert len(context.sent) == 1
        end = time.monotonic() + 20
        while running.hub.clients and time.monotonic() < end:
            time.sleep(0.05)
        assert running.hub.clients == 0


def test_the_gripper_is_cut_where_the_policy_says(loaded):
    from specprune_ros.serving.vla_eval_server import SpecPruneModelServer

    with serving(loaded, EagerEngine(loaded)) as running:
        server = SpecPruneModelServer(running.url)
    action = replace(loaded.config.action, gripper_range=(-1.0, 1.0), gripper_sense='one_is_open')
    server.config = replace(loaded.config, action=action)
    row, dim = np.zeros(loaded.config.action_dim), action.gripper_dim
    closed = []
    for value in (-0.3, 0.3):
        row[dim] = value
        closed.append(server._for_benchmark(row)[dim])
    assert closed == [1.0, -1.0]


def test_the_rows_that_the_harness_runs_are_no_pause(loaded):
    from specprune_ros.serving.vla_eval_server import _Robot

    pixels = np.zeros((128, 128, 3), np.uint8)
    seen = {'images': dict.fromkeys(loaded.config.cameras, pixels), 'states': np.zeros(8)}
    robot = _Robot(Policy(loaded))
    robot.act({**seen, 'task_description': INSTRUCTION}, 3)
    assert len(robot.chunk) == 2
    assert robot.policy.query_period == pytest.approx(3 * robot.policy.step_dt)
