"""Faults on the wire: what the policy server does to everybody else when a client misbehaves.

    python test/fault_injection/serving_faults.py --count 20 \\
        --json benchmarks/results/serving_faults.json

(after `. scripts/env.sh`). ``specprune serve`` runs in a process of its own. Beside each
injection, seeded, a healthy robot keeps asking. An injection counts as survived where

- the healthy robot's answers are, to the last bit, those of a policy that nobody disturbs;
- the faulty client receives what its kind says: an error reply after which its connection lives
  on, or a closed connection;
- the server lives, answers ``/healthz``, and has let go of the faulty client.

``server killed`` ends the server in the middle of a query instead: the client must say so, in
time, and begin a new episode with the next server.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

# Where this file is run by itself.
sys.path.append(str(Path(__file__).parents[2] / 'benchmarks'))
sys.path.append(str(Path(__file__).parents[1] / 'helpers'))

from record import write
from served import observation, same
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from specprune_ros.policy.build import build_policy
from specprune_ros.policy.policy import Policy
from specprune_ros.serving.client import Connection, RefusedError, RemotePolicy, ServerError
from specprune_ros.serving.messages import request_of
from specprune_ros.serving.protocol import pack
from specprune_ros.sim.training.export import SHIPPED

LARGEST = 2  # MiB of a message: what the server of this suite takes
IDLE = 200


class Server:
    """``specprune serve`` in a process."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.url = f'ws://127.0.0.1:{self.port}'
        self.start()

    def start(self) -> None:
        """Start, on the same port every time."""
        command = [sys.executable, '-m', 'specprune_ros.cli.main', 'serve', '--device', 'cpu']
        options = ['--port', str(self.port), '--threads', '1', '--max-message', str(LARGEST)]
        self.process = subprocess.Popen(
            [*command, *options, '--clients', str(IDLE + 20)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        line = self.process.stdout.readline()
        assert re.match(self.url, line), line

    def healthy(self) -> bool:
        """Whether it lives and says so."""
        if self.process.poll() is not None:
            return False
        return b'OK' in urllib.request.urlopen(f'http://127.0.0.1:{self.port}/healthz').read()

    def clients(self) -> int:
        """Connections it has, by its own account."""
        text = urllib.request.urlopen(f'http://127.0.0.1:{self.port}/metrics').read().decode()
        return int(float(re.search(r'^specprune_clients (\S+)', text, re.M)[1]))

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        self.process.send_signal(number)
        self.process.wait(30)


class Healthy(threading.Thread):
    """A robot that asks while a fault goes on, and knows the right replies."""

    def __init__(self, url: str, local: Policy, number: int) -> None:
        super().__init__()
        self.remote, self.local, self.number = RemotePolicy(url, timeout=60.0), local, number
        self.ending = threading.Event()
        self.wrong: list[str] = []
        self.requested = 0
        self.slowest = 0.0

    def run(self) -> None:
        """Ask until stopped, three queries at least."""
        self.local.reset('start')
        while not self.ending.is_set() or self.requested < 3:
            seen = observation(8 * self.requested, self.number)
            begin = time.monotonic()
            try:
                reported = self.remote.act(seen)
            except ServerError as error:
                self.wrong.append(str(error))
                return
            self.slowest = max(self.slowest, time.monotonic() - begin)
            if not same(reported, self.local.act(seen)):
                self.wrong.append(f'query {self.requested} was answered differently')
            self.requested += 1
        self.remote.close()


def message(rng: np.random.Generator, **changes: object) -> bytes:
    """A request of openpi's LIBERO client, with some of it replaced."""
    seen = request_of(observation(int(rng.integers(20)), int(rng.integers(1000))))
    seen.pop('specprune')
    return pack({**seen, **changes})


def refused(server: Server, data: bytes | str) -> None:
    """An error reply, and the connection lives on."""
    with connect(server.url, max_size=None) as client:
        client.recv()
        client.send(data)
        reply = client.recv(timeout=60)
        assert isinstance(reply, str) and reply.startswith('bad request: '), reply
        client.send(message(np.random.default_rng(0)))
        assert isinstance(client.recv(timeout=60), bytes)


def answered(server: Server, data: bytes) -> None:
    """A reply of whatever kind, and the connection lives on."""
    with connect(server.url, max_size=None) as client:
        client.recv()
        client.send(data)
        client.recv(timeout=60)
        client.send(message(np.random.default_rng(0)))
        assert isinstance(client.recv(timeout=60), bytes)


def truncated(server: Server, rng: np.random.Generator) -> None:
    """A message cut off somewhere."""
    data = message(rng)
    refused(server, data[: int(rng.integers(0, len(data)))])


def garbage(server: Server, rng: np.random.Generator) -> None:
    """Random bytes."""
    refused(server, b'\xc1' + rng.bytes(int(rng.integers(1, 5000))))


def bit_flips(server: Server, rng: np.random.Generator) -> None:
    """A message with some bits of its first kilobyte, where the structure is, turned over."""
    data = bytearray(message(rng))
    for place in rng.integers(0, 1000, int(rng.integers(1, 12))):
        data[place] ^= 1 << int(rng.integers(8))
    answered(server, bytes(data))


def text_frame(server: Server, rng: np.random.Generator) -> None:
    """JSON, in a text frame."""
    refused(server, json.dumps({'prompt': 'lift', 'n': int(rng.integers(100))}))


def frame_cut(server: Server, rng: np.random.Generator) -> None:
    """The connection breaks off in the middle of a frame."""
    data = message(rng)
    with connect(server.url, max_size=None) as client:
        client.recv()
        # A binary frame, masked, with a length of 64 bits, and not all of its payload.
        head = b'\x82\xff' + len(data).to_bytes(8, 'big') + b'\0\0\0\0'
        client.socket.sendall(head + data[: int(rng.integers(0, len(data)))])
        client.socket.shutdown(socket.SHUT_RDWR)


def oversized(server: Server, rng: np.random.Generator) -> None:
    """More than the server takes: closed, with the reason."""
    with connect(server.url, max_size=None) as client:
        client.recv()
        try:
            client.send(bytes((LARGEST << 20) + int(rng.integers(1, 1 << 20))))
            client.recv(timeout=60)
        except ConnectionClosed as closed:
            assert closed.rcvd is None or closed.rcvd.code == 1009, closed
        else:
            raise AssertionError('it was taken')


def wrong_dtype(server: Server, rng: np.random.Generator) -> None:
    """Images of the wrong type."""
    kind = rng.choice(['int32', 'float64', 'int8', 'uint16'])
    pixels = rng.integers(0, 100, (128, 128, 3)).astype(str(kind))
    refused(server, message(rng, **{'observation/images/agent': pixels}))


def wrong_shape(server: Server, rng: np.random.Generator) -> None:
    """Images or a state of the wrong shape."""
    shape = [(128, 128), (128, 128, 4), (4, 4, 3), (0, 0, 3), (5000, 16, 3)][rng.integers(5)]
    broken = {'observation/images/agent': np.zeros(shape, np.uint8)}
    if rng.random() < 0.3:
        broken = {'observation/state': np.zeros(int(rng.choice([0, 3, 9])))}
    refused(server, message(rng, **broken))


def not_a_number(server: Server, rng: np.random.Generator) -> None:
    """NaN or infinity in the state or in an image."""
    state = np.zeros(8)
    state[rng.integers(8)] = rng.choice([np.nan, np.inf, -np.inf])
    broken = {'observation/state': state}
    if rng.random() < 0.5:
        broken = {'observation/images/wrist': np.full((128, 128, 3), np.nan, np.float32)}
    refused(server, message(rng, **broken))


def idle(server: Server, rng: np.random.Generator) -> None:
    """Two hundred connections that say nothing."""
    with ExitStack() as open_ones:
        for _ in range(IDLE):
            open_ones.enter_context(socket.create_connection(('127.0.0.1', server.port)))
        for one in [open_ones.enter_context(connect(server.url)) for _ in range(IDLE // 4)]:
            one.recv()
        time.sleep(float(rng.uniform(0.2, 0.5)))


def never_reads(server: Server, rng: np.random.Generator) -> None:
    """A client that requests large replies and reads none: it is let go."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(('127.0.0.1', server.port))
    data = message(rng, specprune={'overlay': True})
    with connect(server.url, sock=raw, max_size=None, max_queue=1) as client:
        client.recv()
        before = server.clients()
        raw.settimeout(20.0)
        try:
            for _ in range(400):
                client.send(data)
        except (OSError, ConnectionClosed):
            return
        end = time.monotonic() + 30
        while server.clients() >= before and time.monotonic() < end:
            time.sleep(0.1)
        assert server.clients() < before


def half_a_handshake(server: Server, rng: np.random.Generator) -> None:
    """HTTP that never ends, and HTTP that is none."""
    with ExitStack() as open_ones:
        for _ in range(20):
            raw = open_ones.enter_context(socket.create_connection(('127.0.0.1', server.port)))
            raw.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n' if rng.random() < 0.5 else rng.bytes(200))
        time.sleep(0.2)


Kind = Callable[[Server, np.random.Generator], None]
KINDS: dict[str, Kind] = {
    'message cut off': truncated,
    'garbage': garbage,
    'bits turned over': bit_flips,
    'text frame': text_frame,
    'connection cut in a frame': frame_cut,
    'oversized': oversized,
    'wrong type': wrong_dtype,
    'wrong shape': wrong_shape,
    'not a number': not_a_number,
    'half a handshake': half_a_handshake,
    '200 idle connections': idle,
    'client never reads': never_reads,
}
FEWER = {'200 idle connections': 4, 'client never reads': 10}  # times fewer: they take long


def inject(server: Server, local: Policy, kind: Kind, seed: int) -> tuple[list[str], Healthy]:
    """One injection; what was wrong, and the robot beside it."""
    robot = Healthy(server.url, local, seed % 7)
    robot.start()
    wrong = []
    try:
        kind(server, np.random.default_rng(seed))
    except Exception as error:
        wrong.append(f'{type(error).__name__}: {error}')
    robot.ending.set()
    robot.join()
    if not server.healthy():
        wrong.append('the server is gone')
    end = time.monotonic() + 15
    while server.clients() and time.monotonic() < end:
        time.sleep(0.02)
    if server.clients():
        wrong.append(f'{server.clients()} clients are still held')
    return wrong + robot.wrong, robot


def kill_in_a_query(server: Server, seed: int) -> list[str]:
    """The server dies while a query is under way: said in time, and the next session is new."""
    rng = np.random.default_rng(seed)
    policy = RemotePolicy(server.url, timeout=60.0)
    policy.act(observation(0))
    delay = float(rng.uniform(0.0, 0.08))
    killer = threading.Timer(delay, server.process.send_signal, (signal.SIGKILL,))
    killer.start()
    step, wrong, began = 0, [], time.monotonic()
    while True:
        step += 8
        try:
            reported = policy.act(observation(step))
        except ServerError as error:
            if isinstance(error, RefusedError):
                wrong.append(f'a dead server answered: {error}')
            break
        if not np.isfinite(reported.actions).all():
            wrong.append('half a reply was taken for one')
        if time.monotonic() - began > 30:
            wrong.append('it went on without a server')
            break
    killer.join()
    if time.monotonic() - began > delay + 5.0:
        wrong.append('said late')
    server.process.wait(10)
    server.start()
    again = policy.act(observation(step + 8))
    if (again.mode.value, again.reset) != ('dense', 'connected again'):
        wrong.append(f'not a new episode: {again.mode.value}, {again.reset}')
    policy.close()
    return wrong


def run(count: int, seed: int = 0, kinds: dict[str, Kind] | None = None) -> dict:
    """Inject every kind ``count`` times."""
    local = build_policy(str(SHIPPED), device='cpu', threads=1)
    server = Server()
    rows = []
    try:
        Connection(server.url, timeout=60.0).close()
        for name, kind in (kinds or KINDS).items():
            times = max(1, count // FEWER.get(name, 1))
            failures, requested, slowest = [], 0, 0.0
            for number in range(times):
                wrong, robot = inject(server, local, kind, seed + 1000 * len(rows) + number)
                requested, slowest = requested + robot.requested, max(slowest, robot.slowest)
                failures += [wrong] if wrong else []
            rows.append(
                {
                    'kind': name,
                    'injected': times,
                    'survived': times - len(failures),
                    'queries_beside_it': requested,
                    'slowest_query_ms': round(1e3 * slowest),
                    'failures': failures[:3],
                }
            )
            print(rows[-1], flush=True)
        times = max(1, count // 4)
        failures = [wrong for n in range(times) if (wrong := kill_in_a_query(server, seed + n))]
        rows.append(
            {
                'kind': 'server killed in a query',
                'injected': times,
                'survived': times - len(failures),
                'failures': failures[:3],
            }
        )
        print(rows[-1], flush=True)
        server.end(signal.SIGTERM)
    finally:
        server.process.kill()
    return {
        'benchmark': 'serving_faults',
        'seed': seed,
        'injected': sum(row['injected'] for row in rows),
        'survived': sum(row['survived'] for row in rows),
        'exit_status': server.process.returncode,
        'rows': rows,
    }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=20, help='injections of each kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    result = run(args.count, args.seed)
    print(f'{result["survived"]} of {result["injected"]} survived')
    write(args.json, result)
    return int(result['survived'] < result['injected'] or result['exit_status'] != 0)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    raise SystemExit(main())
