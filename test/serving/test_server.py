"""The server as a client sees it: sessions of their own, openpi's protocol, limits, a stop."""

import io
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from golden import flow_packs
from PIL import Image
from served import INSTRUCTION, STEP, Running, observation, same, serving
from websockets.utils import accept_key

from specprune_ros.models.load import load_policy_model
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.result import PolicyError
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.serving import session
from specprune_ros.serving.client import Connection, RefusedError, RemotePolicy, ServerError
from specprune_ros.serving.protocol import BAD_REQUEST, BUSY, FAILED, pack
from specprune_ros.serving.server import Address
from specprune_ros.serving.session import Hub, Limits

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def server(loaded):
    with serving(loaded, EagerEngine(loaded)) as running:
        yield running


@pytest.fixture
def remote(server):
    policy = RemotePolicy(server.url, timeout=60)
    yield policy
    policy.close()


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as found:
        return found.read().decode()


def libero(step=0, robot=0, **changes):
    """A request of openpi's LIBERO client."""
    seen = observation(step, robot)
    agent, wrist = (image.pixels for image in seen.images.values())
    request = {
        'observation/image': agent,
        'observation/wrist_image': wrist,
        'observation/state': seen.proprio,
        'prompt': INSTRUCTION,
    }
    return {**request, **changes}


# ------------------------------------------------------------------ the same policy, elsewhere


def test_the_answers_are_those_of_the_policy_in_this_process(loaded, remote):
    local = Policy(loaded)
    for step in range(0, 40, 8):
        for between in range(step + 1, step + 8):  # what V_dynamic looks back at
            for camera, image in observation(between).images.items():
                local.history.push(camera, image)
                remote.history.push(camera, image)
        seen = observation(step, speed=0.5 if step < 24 else 0.0)
        assert same(local.act(seen), remote.act(seen))
    assert remote.config == loaded.config


def test_a_slow_client_says_that_it_does_not_pause(remote):
    remote.query_period = 90.0
    remote.act(observation(0))
    assert remote.act(observation(2000)).reset is None
    remote.query_period = 0.0
    assert remote.act(observation(4000)).reset == 'no query for 100.00 s'


def test_sessions_have_a_past_of_their_own(loaded, server):
    """Robots that ask in turn: each is answered as if it were alone. With a shared prior, a shared
    history or a shared controller the tokens kept, and with them the actions, would be others.
    """
    robots = [RemotePolicy(server.url, timeout=60) for _ in range(4)]
    alone = [Policy(loaded) for _ in robots]
    try:
        for step in range(0, 32, 8):
            for number, (robot, policy) in enumerate(zip(robots, alone, strict=True)):
                seen = observation(step, number, speed=0.5 * (number % 2))
                assert same(policy.act(seen), robot.act(seen)), (step, number)
        # The test can fail: another robot's past gives another answer.
        seen = observation(32, 0)
        assert not same(alone[0].act(seen), alone[1].act(seen))
    finally:
        for robot in robots:
            robot.close()


def test_one_connection_may_speak_for_several_robots(loaded, server):
    alone = {key: Policy(loaded) for key in ('left', 'right')}
    with Connection(server.url, timeout=60) as connection:
        for step in range(0, 24, 8):
            for number, key in enumerate(alone):
                ours = {'session': key, 'stamp_ns': observation(step, number).stamp_ns}
                reply = connection.request(libero(step, number, specprune=ours))
                seen = replace(observation(step, number), speed=None, position=None)
                assert (reply['actions'] == alone[key].act(seen).actions).all()
        with pytest.raises(RefusedError, match='at most 64 characters'):
            connection.request(libero(specprune={'session': 'x' * 65}))


def test_parameters_are_a_session_s_own(server, remote):
    other = RemotePolicy(server.url, timeout=60)
    assert remote.set_params(PruningParams(alpha=0.4)) == 2
    for step in (0, 8):
        mine, theirs = remote.act(observation(step)), other.act(observation(step))
    assert (mine.alpha, theirs.alpha) == (0.4, PruningParams().alpha)
    assert (mine.params_version, theirs.params_version) == (2, 1)
    assert mine.tokens.mean < theirs.tokens.mean
    with pytest.raises(ParamError) as raised:
        remote.set_params(PruningParams(k_local=256, k_global=256, alpha=1.0, fine_factor=3.0))
    assert raised.value.name in PruningParams.__dataclass_fields__
    assert remote.params.alpha == 0.4
    other.close()


def test_a_reset_is_reported_on_both_sides(remote):
    assert remote.act(observation(0)).reset == 'start'
    assert remote.act(observation(8)).reset is None
    remote.reset('requested')
    again = remote.act(observation(16))
    assert (again.reset, again.mode, again.episode) == ('requested', Mode.DENSE, 2)
    assert remote.act(observation(24, instruction='lift the red cube')).reset == 'new instruction'
    gone_back = remote.act(observation(8, instruction='lift the red cube'))
    assert 'time went back' in gone_back.reset


def test_masks_of_what_was_kept_come_when_they_are_requested(loaded, remote):
    assert remote.act(observation(0)).overlay is None
    remote.wants_overlay = True
    local = Policy(loaded)
    local.act(observation(0))
    theirs, ours = remote.act(observation(8)).overlay, local.act(observation(8)).overlay
    assert theirs.grid == ours.grid
    assert (theirs.kept == ours.kept).all()
    assert (theirs.images == ours.images).all()
    assert theirs.sets.keys() == ours.sets.keys()


def test_a_dense_pass_beside_the_query(loaded, remote):
    remote.measure_deviation = True
    local = Policy(loaded)
    local.measure_deviation = True
    for step in (0, 8):
        mine, theirs = local.act(observation(step)), remote.act(observation(step))
    assert (mine.action_deviation == theirs.action_deviation).all()
    assert mine.kept_recall == theirs.kept_recall


# ------------------------------------------------------------------ openpi's protocol


def test_openpi_s_keys_are_understood(loaded, server):
    expected = Policy(loaded).act(replace(observation(0), speed=None, position=None)).actions
    agent, wrist = (image.pixels for image in observation(0).images.values())
    state = observation(0).proprio
    requests = [
        libero(),
        {
            'observation/exterior_image_1_left': agent,
            'observation/wrist_image_left': wrist,
            'observation/joint_position': state[:7],
            'observation/gripper_position': state[7:],
            'prompt': INSTRUCTION,
        },
        {
            'images': {
                'cam_high': agent.transpose(2, 0, 1),
                'cam_left_wrist': wrist.transpose(2, 0, 1),
            },
            'state': state.tolist(),
            'prompt': INSTRUCTION,
        },
        libero(**{'observation/image': (agent / 255.0).astype(np.float64)}),
    ]
    for request in requests:
        with Connection(server.url, timeout=60) as connection:
            reply = connection.request(request)
        assert (reply['actions'] == expected).all()
        assert reply['server_timing']['infer_ms'] > reply['policy_timing']['infer_ms'] > 0
        assert reply['specprune']['mode'] == 'dense'
        assert reply['specprune']['reset'] == 'start'


def test_a_client_that_sends_no_stamps_has_a_past_too(server):
    with Connection(server.url, timeout=60) as connection:
        first = connection.request(libero(0))['specprune']
        second = connection.request(libero(8))['specprune']
    assert (first['mode'], second['mode']) == ('dense', 'fine')  # no speed is known: fine
    assert 'speed unknown' in second['reason']
    assert second['history_age'] > 0
    assert second['prior_valid']


def test_images_may_be_jpeg_or_png_files(loaded, server):
    pixels = observation(0).images['agent'].pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    expected = Policy(loaded).act(replace(observation(0), speed=None, position=None)).actions
    with Connection(server.url, timeout=60) as connection:
        reply = connection.request(libero(**{'observation/image': file.getvalue()}))
        assert (reply['actions'] == expected).all()
        smooth = Image.linear_gradient('L').convert('RGB').resize((128, 128))
        file = io.BytesIO()
        smooth.save(file, 'JPEG', quality=95)
        assert len(connection.request(libero(**{'observation/image': file.getvalue()}))['actions'])


def test_a_camera_s_key_is_recognised(loaded):
    with serving(loaded, EagerEngine(loaded)) as running:
        running.hub.reader.__dict__['image_keys'] = {'agent': 'cam/front'}
        with Connection(running.url, timeout=60) as connection:
            with pytest.raises(RefusedError, match="camera 'agent' is missing.*cam/front"):
                connection.request(libero())
            assert (
                len(connection.request(libero(cam={'front': libero()['observation/image']}))) == 4
            )


# ------------------------------------------------------------------ errors are replies


def broken(**changes):
    request = libero()
    for key, value in changes.items():
        name = key.replace('__', '/')
        if value is None:
            del request[name]
        else:
            request[name] = value
    return request


IMAGE = np.zeros((128, 128, 3), np.uint8)
BROKEN = [
    (broken(observation__image=None), "camera 'agent' is missing"),
    (broken(observation__image=IMAGE.astype(np.int32)), 'uint8'),
    (broken(observation__image=IMAGE[..., 0]), 'want an array'),
    (broken(observation__image=IMAGE[:8, :8]), 'between 16 and 4096'),
    (broken(observation__image=np.zeros((4097, 16, 3), np.uint8)), 'at most 4096'),
    (broken(observation__image=np.full((128, 128, 3), np.nan)), 'from 0 to 1'),
    (broken(observation__image=np.full((128, 128, 3), 255.0)), 'from 0 to 1'),
    (broken(observation__image=np.zeros((0, 128, 3), np.float32)), 'is empty'),
    (broken(observation__image='a file name'), 'want an array'),
    (broken(observation__image=b'no image'), 'no JPEG or PNG'),
    (broken(observation__state=None), 'proprioception is missing'),
    (broken(observation__state=np.zeros(7)), r'shape \[7\]'),
    (broken(observation__state=np.full(8, np.nan)), 'not finite'),
    (broken(observation__state='zero'), 'no list of numbers'),
    (broken(prompt=None), 'instruction is empty'),
    (broken(prompt=7), "'prompt' is text"),
    (broken(prompt='x' * 2000), 'at most 1000'),
    (broken(specprune=[1]), 'is a map'),
    (broken(specprune={'spede': 1}), 'knows no spede'),
    (broken(specprune={'stamp_ns': -1}), 'nanoseconds'),
    (broken(specprune={'stamp_ns': 1.5}), 'nanoseconds'),
    (broken(specprune={'speed': {'v_t': 1.0}}), 'v_t, v_r and dz'),
    (broken(specprune={'position': [0.0, 1.0]}), 'want 3'),
    (broken(specprune={'params': {'no_such': 1}}), 'no_such'),
    (broken(specprune={'params': {'alpha': float('nan')}}), 'alpha'),
    (broken(specprune={'params': {'alpha': 7.0}}), 'alpha'),
    (broken(specprune={'past': {'agent': {'image': IMAGE}}}), 'stamp_ns'),
    (broken(specprune={'past': {'agent': 1}}), 'no image of camera'),
    ([1, 2], 'a request is a map'),
]


def test_what_is_wrong_is_said_and_the_connection_lives_on(server):
    with Connection(server.url, timeout=60) as connection:
        first = connection.request(libero(0, specprune={'stamp_ns': 10**12}))
        assert first['specprune']['reset'] == 'start'
        for request, said in BROKEN:
            with pytest.raises(RefusedError, match=said) as refused:
                connection.request(request)
            assert refused.value.kind == BAD_REQUEST
        # Nothing of it touched the session.
        again = connection.request(libero(8, specprune={'stamp_ns': 10**12 + 8 * STEP}))
        assert again['specprune']['reset'] is None
        assert again['specprune']['prior_valid']


@pytest.mark.parametrize('image', [None, IMAGE[:8, :8]])
def test_a_request_that_cannot_be_read_leaves_the_parameters(server, image):
    with Connection(server.url, timeout=60) as connection:
        before = connection.request(libero(0))['specprune']
        wrong = broken(observation__image=image, specprune={'params': {'alpha': 0.31}})
        with pytest.raises(RefusedError, match='camera'):
            connection.request(wrong)
        after = connection.request(libero(8))['specprune']
    assert after['alpha'] == before['alpha'] != 0.31
    assert after['params_version'] == before['params_version']


def test_a_policy_s_own_doubt_is_an_error_and_begins_a_new_episode(server):
    with Connection(server.url, timeout=60) as connection:
        connection.request(libero(0))
        with pytest.raises(RefusedError, match='max_normalised_action') as refused:
            connection.request(libero(0, specprune={'max_normalised_action': 1e-6}))
        assert refused.value.kind == FAILED
        again = connection.request(libero(0, specprune={'max_normalised_action': 10.0}))
        assert 'after an error' in again['specprune']['reset']


def test_the_client_says_what_the_server_said(server, remote):
    with pytest.raises(ObservationError, match='is empty'):
        remote.act(observation(0, instruction=' '))  # said here, nothing was sent
    remote.max_normalised_action = 1e-6
    with pytest.raises(ServerError, match='max_normalised_action'):
        remote.act(observation(0))
    remote.max_normalised_action = 10.0
    assert 'after an error' in remote.act(observation(8)).reset


def test_an_engine_that_fails_is_an_error_and_not_the_end(loaded):
    class Failing(EagerEngine):
        fails = False

        def run(self, key, inputs):
            if self.fails:
                raise RuntimeError('kernel 7 is unwell')
            return super().run(key, inputs)

    engine = Failing(loaded)
    with serving(loaded, engine) as running:
        policy = RemotePolicy(running.url, timeout=60)
        policy.act(observation(0))
        engine.fails = True
        with pytest.raises(ServerError, match='kernel 7 is unwell'):
            policy.act(observation(8))
        engine.fails = False
        assert policy.act(observation(16)).mode is Mode.DENSE
        policy.close()


def test_a_lost_device_ends_the_server_and_says_so(loaded, monkeypatch):
    class Lost(EagerEngine):
        lost = False

        def run(self, key, inputs):
            if self.lost:
                raise torch.AcceleratorError('CUDA error: an illegal memory access')
            return super().run(key, inputs)

    engine = Lost(loaded)
    with serving(loaded, engine) as running:
        # A CPU adds 1 to 0 whatever is said of it.
        monkeypatch.setattr(session, 'check_alive', Mock(side_effect=RuntimeError('gone')))
        policy = RemotePolicy(running.url, timeout=60)
        engine.lost = True
        with pytest.raises(ServerError, match='illegal memory access'):
            policy.act(observation(0))
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(running.http + '/healthz')
        assert refused.value.code == 503
        policy.close()


# ------------------------------------------------------------------ who may come in


def test_health_and_metrics(server, remote):
    assert get(server.http + '/healthz') == 'OK\n'
    remote.act(observation(0))
    lines = dict(
        line.rsplit(' ', 1)
        for line in get(server.http + '/metrics').splitlines()
        if not line.startswith('#')
    )
    assert float(lines['specprune_queries_total{mode="dense"}']) >= 1
    assert float(lines['specprune_clients']) >= 1
    assert float(lines['specprune_query_seconds_count']) >= 1
    assert float(lines['specprune_batch_size_count']) >= 1


def test_a_key_keeps_others_out(loaded):
    with serving(loaded, EagerEngine(loaded), key='secret') as running:
        assert get(running.http + '/healthz') == 'OK\n'
        for key in ('', 'wrong'):
            with pytest.raises(ServerError, match='401'):
                RemotePolicy(running.url, key)
        with pytest.raises(urllib.error.HTTPError, match='401'):
            get(running.http + '/metrics')
        assert 'specprune' in get(running.http + '/metrics', Authorization='Api-Key secret')
        policy = RemotePolicy(running.url, 'secret', timeout=60)
        assert policy.act(observation(0)).mode is Mode.DENSE
        policy.close()


def test_tls_by_file(loaded, tmp_path):
    certificate, key = tmp_path / 'cert.pem', tmp_path / 'key.pem'
    made = subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj']
        + ['/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
        + ['-keyout', key, '-out', certificate],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip('openssl cannot make a certificate here')
    with serving(loaded, EagerEngine(loaded), certificate=certificate, private_key=key) as running:
        trusted = ssl.create_default_context(cafile=certificate)
        policy = RemotePolicy(running.url, timeout=60, tls=trusted)
        assert policy.act(observation(0)).mode is Mode.DENSE
        policy.close()
        with pytest.raises(ServerError, match='cannot be reached'):
            RemotePolicy(running.url)  # nobody vouches for it
        with pytest.raises(ServerError, match='cannot be reached'):
            RemotePolicy(running.url.replace('wss', 'ws'))


def test_a_private_key_alone_is_refused_and_not_served_in_clear(tmp_path):
    with pytest.raises(ValueError, match='without a certificate'):
        Address(private_key=tmp_path / 'key.pem').tls()


def test_more_clients_than_allowed_are_refused(loaded):
    with serving(loaded, EagerEngine(loaded), Limits(clients=2)) as running:
        inside = [Connection(running.url) for _ in range(2)]
        with pytest.raises(ServerError, match='503 2 clients are connected'):
            Connection(running.url)
        inside.pop().close()
        end = time.monotonic() + 5
        while running.hub.clients > 1 and time.monotonic() < end:
            time.sleep(0.01)
        Connection(running.url).close()
        inside.pop().close()


class Gated(EagerEngine):
    """Runs when it may."""

    def __init__(self, loaded):
        super().__init__(loaded)
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def run(self, key, inputs):
        self.entered.set()
        assert self.gate.wait(30)
        return super().run(key, inputs)


def test_a_full_queue_is_said_at_once(loaded):
    engine = Gated(loaded)
    with serving(loaded, engine, Limits(queue=1)) as running:
        busy = RemotePolicy(running.url, timeout=60)
        other = Connection(running.url, timeout=60)
        engine.entered.clear()
        engine.gate.clear()
        asking = threading.Thread(target=busy.act, args=(observation(0),))
        asking.start()
        assert engine.entered.wait(10)
        with pytest.raises(RefusedError, match='try again') as refused:
            other.request(libero())
        assert refused.value.kind == BUSY
        engine.gate.set()
        asking.join()
        assert len(other.request(libero())['actions'])
        busy.close()
        other.close()


def test_a_stop_lets_accepted_queries_end_and_takes_no_more(loaded):
    engine = Gated(loaded)
    with serving(loaded, engine) as running:
        policy = RemotePolicy(running.url, timeout=60)
        idle = Connection(running.url)
        policy.act(observation(0))
        engine.entered.clear()
        engine.gate.clear()
        results = []
        asking = threading.Thread(target=lambda: results.append(policy.act(observation(8))))
        asking.start()
        assert engine.entered.wait(10)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        end = time.monotonic() + 5
        while not running.hub.stopping and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(RefusedError, match='stopping'):
            idle.request(libero())
        with pytest.raises(ServerError, match='503 stopping'):
            Connection(running.url)
        engine.gate.set()
        asking.join()
        stopping.join()
        assert len(results) == 1 and results[0].reset is None
        with pytest.raises(ServerError, match='is lost.*|cannot be reached'):
            policy.act(observation(16))
        running.stop = lambda: None


# ------------------------------------------------------------------ a server that is not itself


def test_a_server_that_comes_back_begins_a_new_episode(loaded):
    with serving(loaded, EagerEngine(loaded)) as first:
        port, policy = first.port, RemotePolicy(first.url, timeout=60)
        policy.act(observation(0))
        assert policy.act(observation(8)).reset is None
    with pytest.raises(ServerError, match='is lost'):
        policy.act(observation(16))
    with pytest.raises(ServerError, match='cannot be reached'):
        policy.act(observation(24))
    second = Running(Hub(loaded, EagerEngine(loaded)), Address(port=port)).start()
    try:
        result = policy.act(observation(32))
        assert (result.mode, result.reset) == (Mode.DENSE, 'connected again')
        assert result.history_age is None
        assert policy.act(observation(40)).reset is None
    finally:
        policy.close()
        second.stop()


@pytest.mark.parametrize('changed', ['gripper', 'rate', 'motion', 'weights'])
def test_another_model_in_its_place_is_refused_before_anything_is_sent(loaded, changed):
    config, facts = loaded.config.to_dict(), {}
    if changed == 'gripper':
        sense = config['action']['gripper_sense']
        other = {'one_is_open': 'one_is_closed', 'one_is_closed': 'one_is_open'}[sense]
        facts['config'] = {**config, 'action': {**config['action'], 'gripper_sense': other}}
    elif changed == 'rate':
        facts['config'] = {**config, 'control_hz': 2 * config['control_hz']}
    elif changed == 'weights':
        facts['random_weights'] = True
    else:
        facts['motion'] = {'v_t': 7.0, 'v_r': 7.0, 'step': 0.7}
    with serving(loaded, EagerEngine(loaded)) as first:
        port, policy = first.port, RemotePolicy(first.url, timeout=60)
    hub = Hub(loaded, EagerEngine(loaded), facts=facts)
    second = Running(hub, Address(port=port)).start()
    try:
        with pytest.raises(ServerError, match='is lost|cannot be reached'):
            policy.act(observation(0))
        for _ in range(2):
            with pytest.raises(ServerError, match='serves another model now: configure the node'):
                policy.act(observation(8))
        with pytest.raises(ParamError, match='another model'):
            policy.check_params(policy.params)
        assert 'specprune_queries_total{' not in get(second.http + '/metrics')
        assert policy.config == loaded.config
    finally:
        policy.close()
        second.stop()


class Silent(threading.Thread):
    """Accepts one client, sends ``greeting``, and reads nothing any more."""

    def __init__(self, greeting=b''):
        super().__init__(daemon=True)
        self.greeting, self.over = greeting, threading.Event()
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.url = f'ws://127.0.0.1:{self.listener.getsockname()[1]}'
        self.start()

    def run(self):
        client, _ = self.listener.accept()
        with client:
            request = b''
            while b'\r\n\r\n' not in request:
                request += client.recv(4096)
            key = re.search(rb'Sec-WebSocket-Key: (\S+)', request)[1].decode()
            client.sendall(
                b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n'
                b'Connection: Upgrade\r\nSec-WebSocket-Accept: '
                + accept_key(key).encode()
                + b'\r\n\r\n'
            )
            if self.greeting:
                client.sendall(bytes([0x82, len(self.greeting)]) + self.greeting)
            self.over.wait(60)


def test_a_server_that_stops_reading_is_an_error_in_time():
    silent = Silent(pack({'server': 'silent'}))
    said = []

    def ask():
        connection = Connection(silent.url, timeout=1.0)
        try:
            connection.request({'image': np.zeros((4000, 4000, 3), np.uint8)})
        except ServerError as error:
            said.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(30)
    silent.over.set()
    assert not asking.is_alive()
    assert 'did not read a request of 48000' in said[0] and 'in 1 s' in said[0]


def test_a_server_that_does_not_greet_is_said_with_the_time_it_had():
    silent = Silent()
    with pytest.raises(ServerError, match='did not answer in 0.5 s'):
        Connection(silent.url, timeout=7.0, connect_timeout=0.5)
    silent.over.set()


def test_a_greeting_in_words_leaves_no_connection_open():
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import serve as plain

    ended = []

    def greet(connection):
        connection.send('busy: later')
        try:
            connection.recv(timeout=20)
        except ConnectionClosed:
            ended.append(True)
        except TimeoutError:
            ended.append(False)

    with plain(greet, '127.0.0.1', 0) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f'ws://127.0.0.1:{other.socket.getsockname()[1]}'
        with pytest.raises(ServerError, match='busy: later') as error:
            Connection(url)
        end = time.monotonic() + 10
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
        assert ended == [True] and not isinstance(error.value, RefusedError)


def test_a_slow_server_is_an_error_in_time_and_its_late_answer_is_nobody_s(loaded):
    engine = Gated(loaded)
    with serving(loaded, engine) as running:
        policy = RemotePolicy(running.url, timeout=0.5)
        engine.gate.clear()
        begin = time.monotonic()
        with pytest.raises(ServerError, match='did not answer in 0.5 s'):
            policy.act(observation(0))
        assert time.monotonic() - begin < 2.0
        engine.gate.set()
        policy._options = ('', 60, 5.0, None)
        assert policy.act(observation(8)).reset == 'connected again'
        policy.close()


def test_another_server_s_words_are_refused():
    from websockets.sync.server import serve as plain

    def answer(socket):
        socket.send(pack({'server': 'openpi'}))

    with plain(answer, '127.0.0.1', 0) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.socket.getsockname()[1]
        with pytest.raises(ServerError, match='no specprune_ros server of protocol 1: .*openpi'):
            RemotePolicy(f'ws://127.0.0.1:{port}')
    with pytest.raises(ServerError, match='want ws://HOST:PORT'):
        RemotePolicy('http://127.0.0.1')
    with pytest.raises(ServerError, match='cannot be reached'):
        RemotePolicy(f'ws://127.0.0.1:{port}')


def test_the_reply_is_one_that_json_can_say(server):
    """But for arrays: whoever logs it finds numbers, text, lists and maps."""
    with Connection(server.url, timeout=60) as connection:
        reply = connection.request(libero())
    assert json.loads(json.dumps(reply['specprune']))['tokens']['total'] == 512
    assert issubclass(ServerError, PolicyError)


def test_a_flow_policy_is_served_to_openpi_s_clients():
    """pi0 itself: cameras by openpi's keys or by name, some of them missing, noise from a seed."""
    folder = flow_packs() / 'pi0_openpi/checkpoint'
    pi0 = load_policy_model(folder, progress=False)
    limits = Limits(max_normalised_action=1e9)  # weights of a test
    with serving(pi0, EagerEngine(pi0), limits) as running:
        images = {camera: image.pixels for camera, image in observation(0).images.items()}
        with Connection(running.url, timeout=60) as connection:
            request = {
                'observation/image': images['agent'],
                'observation/wrist_image': images['wrist'],
                'observation/state': np.zeros(pi0.config.proprio_dim),
                'prompt': INSTRUCTION,
                'specprune': {'stamp_ns': 10**12},
            }
            reply = connection.request(request)
            del request['observation/wrist_image']
            alone = connection.request(request)
        first, wrist = pi0.config.cameras[:2]
        stamped = {
            first: CameraImage(images['agent'], 10**12),
            wrist: CameraImage(images['wrist'], 10**12),
        }
        seen = Observation(stamped, INSTRUCTION, np.zeros(pi0.config.proprio_dim))
        local = Policy(pi0, max_normalised_action=1e9)
        assert (reply['actions'] == local.act(seen).actions).all()
        assert reply['specprune']['tokens']['total'] == 2 * alone['specprune']['tokens']['total']
        assert alone['specprune']['reset'] == 'other cameras'
        remote = RemotePolicy(running.url, timeout=60)
        remote.max_normalised_action = 1e9
        remote.check_cameras([first, wrist])
        with pytest.raises(ValueError, match='in this order'):
            remote.check_cameras([wrist, first])
        local.reset()
        assert (remote.act(seen).actions == local.act(seen).actions).all()
        remote.close()


# ------------------------------------------------------------------ what a session holds and says


def test_the_middle_of_proprioception_is_known_to_clients(loaded, server, remote):
    """Rotation vectors are unrolled round it: another middle is another chunk."""
    assert remote.proprio_center == pytest.approx(Policy(loaded).proprio_center)
    hub = server.hub
    with pytest.MonkeyPatch.context() as patch:
        for wrong in ([1.0], 'x', [float('nan')] * 8):
            metadata = {**hub.metadata(), 'proprio_center': wrong}
            patch.setattr(hub, 'metadata', lambda metadata=metadata: metadata)
            with pytest.raises(ServerError, match='middle of proprioception'):
                RemotePolicy(server.url, timeout=60)
        others = {**hub.metadata(), 'proprio_center': [0.5] * 8}
        patch.setattr(hub, 'metadata', lambda: others)
        remote.close()
        with pytest.raises(ServerError, match='serves another model now'):
            remote.act(observation(0))


class Preparing(EagerEngine):
    """As on a GPU: new parameters wait until the engine is ready for them."""

    status = 'capturing'

    def __init__(self, loaded):
        super().__init__(loaded)
        self.waiting = []

    def prepare(self, params, prompt, ready):
        self.waiting.append(ready)


def test_parameters_that_are_taken_back_while_others_are_prepared(loaded):
    engine = Preparing(loaded)
    one = session.Session(Policy(loaded, engine=engine))
    for version, changes in enumerate(({'alpha': 0.3}, {'k_local': 10}, {'alpha': 0.7}), 1):
        one._set_params({'params': changes, 'params_version': version})
    assert len(engine.waiting) == 3
    for ready in engine.waiting:
        ready()
    assert (one.policy.params.alpha, one.policy.params.k_local) == (0.7, 10)


def test_what_the_server_says_of_one_method_counts_for_clients_that_do_not_know_it(loaded):
    served = PruningParams(pruner='fastv').replace(fastv_layer=5)
    one = session.Session(Policy(loaded, served))
    known = PruningParams.__dataclass_fields__  # by all methods, as a client without PyTorch has
    sent = {name: v for name, v in PruningParams(alpha=0.4).as_dict().items() if name in known}
    assert 'fastv_layer' not in sent
    for params, layer in ((sent, 5), ({'fastv_layer': 3}, 3), ({'preset': 'paper'}, 5)):
        one._set_params({'params': params})
        assert one.policy.latest_params.fastv_layer == layer
    assert session.changed(served, sent, served).fastv_layer == 5


def test_a_reply_names_the_client_s_parameters_only_where_it_was_made_with_them(loaded):
    engine = Preparing(loaded)
    hub = Hub(loaded, engine)
    running = Running(hub, Address(port=0)).start()
    try:
        policy = RemotePolicy(running.url, timeout=60, params=PruningParams(alpha=0.4))
        first = policy.act(observation(0))
        assert (first.params_version, policy.params_version, policy.pending_version) == (0, 0, 1)
        assert 'capturing' in policy.engine_status
        engine.status, engine.trouble = 'eager', 'no CUDA graph: the driver has none'
        for ready in engine.waiting:
            ready()
        second = policy.act(observation(8))
        assert (second.params_version, second.alpha) == (1, 0.4)
        assert (policy.params_version, policy.pending_version) == (1, None)
        assert 'eager' in policy.engine_status
        assert policy.engine_trouble == 'no CUDA graph: the driver has none'
        policy.close()
    finally:
        running.stop()


def test_the_first_pruned_query_after_dense_ones_has_something_to_compare_with(server):
    policy = RemotePolicy(server.url, timeout=60, params=PruningParams(mode='dense'))
    policy.act(observation(0))
    assert policy.act(observation(8)).mode is Mode.DENSE
    policy.set_params(PruningParams())
    result = policy.act(observation(16))
    assert result.mode is not Mode.DENSE and result.tokens.sets['dynamic'] > 0
    policy.close()


def test_a_page_in_a_browser_is_no_robot(server):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with pytest.raises(InvalidStatus) as refused:
        connect(server.url, origin='https://example.org')
    assert refused.value.response.status_code == 403


def test_robots_of_all_connections_together_are_limited(loaded):
    with serving(loaded, EagerEngine(loaded), Limits(clients=3)) as running:
        with Connection(running.url, timeout=60) as one, Connection(running.url) as two:
            for key in ('a', 'b'):
                one.request(libero(specprune={'session': key}))
            two.request(libero())
            with pytest.raises(RefusedError, match='3 robots are remembered here') as refused:
                one.request(libero(specprune={'session': 'c'}))
            assert refused.value.kind == BUSY
            one.request(libero(specprune={'session': 'a'}))
        deadline = time.monotonic() + 10
        while running.hub.clients and time.monotonic() < deadline:
            time.sleep(0.01)
        with Connection(running.url, timeout=60) as again:
            again.request(libero(specprune={'session': 'c'}))
