"""``model.server``: the node asks a policy server, on a machine without PyTorch."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]
TORCHLESS = Path(__file__).with_name('torchless_node.py')
ERROR = b'\x02'


class Server:
    """``specprune serve`` in a process that can be killed and started again."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.url = f'ws://127.0.0.1:{self.port}'
        self.start()

    def start(self):
        command = [sys.executable, '-m', 'specprune_ros.cli.main', 'serve']
        self.process = subprocess.Popen(
            [*command, '--port', str(self.port), '--device', 'cpu', '--threads', '1'],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, 'SPECPRUNE_API_KEY': 'k'},
        )
        assert re.match(self.url, self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.process.kill()
    made.process.wait()


def test_chunks_come_from_a_server_and_stop_with_it(rig_with, server, monkeypatch):
    monkeypatch.setenv('SPECPRUNE_API_KEY', 'k')
    rig = rig_with(
        program=(TORCHLESS,),
        model__server=server.url,
        model__server_timeout=4.0,
        query_rate=10.0,
        instruction='put the red cube on the blue plate',
    )
    assert rig.feed(60.0, until=lambda: len(rig.stats) >= 3), rig.process.text()
    assert 'connecting to ws://' in rig.process.text()
    first, stats, chunk = rig.stats[0], rig.stats[-1], rig.chunks[-1]
    assert first.mode == first.MODE_DENSE and 'first query' in first.reason
    assert stats.mode == stats.MODE_FINE and stats.prior_valid
    assert stats.tokens_in == 512 > stats.tokens_mean
    assert chunk.horizon * len(chunk.dims) == len(chunk.data) == 56

    # Live parameters are the server's to check, and this session's alone.
    assert rig.set(pruning__alpha=0.4) == [(True, '')]
    assert rig.feed(60.0, until=lambda: abs(rig.stats[-1].alpha - 0.4) < 1e-6)
    assert rig.stats[-1].params_version == stats.params_version + 1
    ((ok, reason),) = rig.set(pruning__pruner='best')
    assert not ok and "'best' is none of specprune" in reason

    # Its death is an error at once, not at the next report, and there are no chunks.
    died = time.monotonic()
    server.kill()
    assert rig.feed(60.0, until=lambda: 'no chunk: ws://' in rig.health()), rig.process.text()
    assert time.monotonic() - died < 5.0
    assert rig.diagnoses[-1].status[0].level == ERROR
    have = len(rig.chunks)
    rig.feed(1.0)
    assert len(rig.chunks) == have
    assert 'cannot be reached' in rig.health()
    ((ok, reason),) = rig.set(pruning__alpha=0.5)
    assert not ok and 'cannot be reached' in reason

    # When it is back, so are the chunks, in a new episode that begins dense.
    before = len(rig.stats)
    episode = rig.stats[-1].episode
    server.start()
    assert rig.feed(60.0, until=lambda: len(rig.stats) > before + 1), rig.process.text()
    again = rig.stats[before]
    assert again.mode == again.MODE_DENSE and 'connected again' in again.reason
    assert again.episode == episode + 1 and not again.prior_valid
    assert abs(rig.stats[-1].alpha - 0.4) < 1e-6  # the new session received
    assert rig.feed(60.0, until=lambda: rig.diagnoses[-1].status[0].level != ERROR)

    # A server that hangs is lost when the time is over.
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert rig.feed(60.0, until=lambda: 'did not answer in 4 s' in rig.health())
    finally:
        server.process.send_signal(signal.SIGCONT)
    have = len(rig.chunks)
    assert rig.feed(60.0, until=lambda: len(rig.chunks) > have)


def test_a_server_that_is_not_there_is_said_when_configuring(rig_with):
    rig = rig_with(program=(TORCHLESS,), model__server='ws://127.0.0.1:9')
    assert rig.feed(60.0, until=lambda: 'cannot be reached' in rig.process.text())
    assert rig.state() == 'unconfigured'


def test_a_server_with_random_weights_drives_no_real_arm(monkeypatch, one_thread):
    from served import serving

    from specprune_ros.models.load import random_policy_model
    from specprune_ros.nodes.common.remapping import ALLOWED
    from specprune_ros.nodes.policy_node.load import load
    from specprune_ros.nodes.policy_node.parameters import NODE_PARAMETERS
    from specprune_ros.policy.engine.eager import EagerEngine
    from specprune_ros.pruning.params import PruningParams

    model = random_policy_model('tiny')
    with serving(model, EagerEngine(model)) as running:
        defaults = {spec.name: spec.default for spec in NODE_PARAMETERS}
        values = {**defaults, 'model.server': running.url, 'model.server_timeout': 60.0}

        def refused():
            with pytest.raises(ValueError, match=r'weights are random.*specprune serve FOLDER'):
                load(values, PruningParams(), Mock())

        refused()
        said = running.hub.metadata()
        assert said.pop('random_weights') is True
        with monkeypatch.context() as patch:
            patch.setattr(running.hub, 'metadata', lambda: said)  # an older version's
            refused()
        policy, _ = load({**values, 'model.random_weights': ALLOWED}, PruningParams(), Mock())
        policy.close()
