"""``specprune serve`` as somebody starts it: a process, a line that says where, a signal."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from golden import flow_packs
from ros_processes import catches
from served import observation

from specprune_ros.cli.main import main
from specprune_ros.pruning.interface import Mode
from specprune_ros.serving.client import RemotePolicy, ServerError


def start(*arguments, **environment):
    """The process and the address it serves at."""
    command = [sys.executable, '-m', 'specprune_ros.cli.main', 'serve', '--port', '0']
    process = subprocess.Popen(
        [*command, '--device', 'cpu', '--threads', '1', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    line = process.stdout.readline()
    found = re.match(r'(wss?://\S+): a query takes \d+ ms, eager', line)
    if not found:
        process.kill()
        pytest.fail(f'{line}{process.communicate()[1]}')
    return process, found[1]


@pytest.mark.real_time
def test_it_serves_until_it_is_stopped():
    process, url = start('--param', 'alpha=0.5', '--batch', '4', SPECPRUNE_API_KEY='k')
    try:
        with pytest.raises(ServerError, match='401'):
            RemotePolicy(url)
        policy = RemotePolicy(url, 'k', timeout=60)
        assert policy.params.alpha == 0.5
        assert policy.act(observation(0)).mode is Mode.DENSE
        assert policy.act(observation(8)).alpha == 0.5
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert 'gone after 2 queries' in errors
    finally:
        process.kill()


@pytest.mark.real_time
def test_a_signal_while_it_loads_or_warms_up_ends_it_at_once():
    command = [sys.executable, '-m', 'specprune_ros.cli.main', 'serve', '--port', '0']
    # Large enough to be still busy when the signal comes.
    process = subprocess.Popen(
        [*command, '--device', 'cpu', '--threads', '1', '--preset', 'oft-medium'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not catches(process.pid, signal.SIGTERM) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and 'interrupted' in errors
    assert 'Traceback' not in errors and output == ''


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['/no/such/folder'], 'not a folder'),
        (['--param', 'alpha=7'], 'alpha'),
        (['--image-key', 'nose=x'], 'no camera nose'),
        (['--image-key', 'nose'], 'want CAMERA=KEY'),
        (['--batch', '-1'], 'batch limit -1'),
        (['--certificate', '/no/such/file'], 'No such file'),
        (['--private-key', '/some/key.pem'], 'without a certificate'),
        (['/some/folder', '--preset', 'tiny'], 'one of a checkpoint folder and --preset'),
        (['--host', '203.0.113.1'], "('203.0.113.1', 0)"),
    ],
)
def test_what_cannot_be_served_is_said(arguments, said, capsys):
    assert main(['serve', '--device', 'cpu', '--threads', '1', '--port', '0', *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_platform_reaches_the_loader(capsys):
    folder = str(flow_packs() / 'pi0_openpi/checkpoint')
    assert main(['serve', folder, '--platform', 'mars', '--device', 'cpu', '--port', '0']) == 1
    assert "platform 'mars' is none of" in capsys.readouterr().err


@pytest.mark.real_time
def test_an_address_of_ipv6_is_one_to_connect_to():
    try:
        with socket.create_server(('::1', 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip('no IPv6 here')
    process, url = start('--host', '::1')
    try:
        assert re.fullmatch(r'ws://\[::1\]:\d+', url)
        RemotePolicy(url, timeout=60).close()
    finally:
        process.kill()
        process.communicate()
