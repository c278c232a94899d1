"""The client: a policy that lives on a server, with the history kept here. Needs no PyTorch.

:class:`RemotePolicy` offers what the node and the simulated episodes use of
:class:`~specprune_ros.policy.policy.Policy`. Image history, speeds and the rules that begin a new
episode stay on this side; stamps are of this side's clock and the server compares them with one
another only. A connection is one session: a new one begins a new episode, and the result says so.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from specprune_ros.models.config import ConfigError, PolicyConfig
from specprune_ros.policy.memory import LATE, SECOND_NS, Memory, gap_limit, history_for, prior_key
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.result import PolicyError, PolicyResult
from specprune_ros.pruning.controller import MotionRange, history_offset
from specprune_ros.pruning.params import ParamError, PruningParams, specs
from specprune_ros.serving.messages import request_of, result_of
from specprune_ros.serving.protocol import (
    BAD_REQUEST,
    EXTENSION,
    MAX_MESSAGE,
    PROTOCOL,
    ProtocolError,
    pack,
    read_error,
    unpack,
)

CONNECT_TIMEOUT = 5.0  # s
CLOSE_TIMEOUT = 0.5  # s for the server's half of the closing handshake


class ServerError(PolicyError):
    """The server is lost, slow, or refused; the message says which, and of which server."""


class Connection:
    """One connection to a policy server: maps out, maps back. Not thread-safe.

    ``timeout`` bounds a whole request in seconds. Everything that fails raises
    :class:`ServerError`; after that the connection is closed, but for a refusal
    (:class:`RefusedError`).
    """

    def __init__(
        self,
        url: str,
        api_key: str = '',
        timeout: float = 2.0,
        connect_timeout: float = CONNECT_TIMEOUT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url, self.timeout = url, timeout
        headers = {'Authorization': f'Api-Key {api_key}'} if api_key else None
        self._open = contextlib.ExitStack()
        try:
            opened = connect(
                url,
                additional_headers=headers,
                compression=None,
                max_size=MAX_MESSAGE,
                open_timeout=connect_timeout,
                close_timeout=CLOSE_TIMEOUT,
                ssl=tls,
                proxy=None,  # a robot's server is on its network
            )
            self._socket: ClientConnection = self._open.enter_context(opened)
        except InvalidStatus as error:
            said = error.response.body.decode(errors='replace').strip() if error.response else ''
            status = error.response.status_code if error.response else 0
            raise ServerError(f'{url} refused the connection: HTTP {status} {said}') from error
        except (OSError, WebSocketException, ValueError) as error:
            raise ServerError(f'{url} cannot be reached: {_said(error)}') from error
        self.metadata = self._metadata(connect_timeout)

    def _metadata(self, timeout: float) -> dict[str, Any]:
        try:
            found = self._receive(timeout, timeout)
        except RefusedError as error:  # a greeting in words
            self.close()
            raise ServerError(str(error)) from error
        if not isinstance(found, dict):
            self.close()
            raise ServerError(f'{self.url} sent no metadata: is it a policy server?')
        return found

    def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        end = time.monotonic() + self.timeout
        data = pack(request)
        try:
            with self._cut_after(end - time.monotonic()):
                self._socket.send(data)
        except (OSError, WebSocketException) as error:
            self.close()
            if time.monotonic() >= end:
                raise ServerError(
                    f'{self.url} did not read a request of {len(data)} bytes in {self.timeout:g} s'
                ) from error
            raise ServerError(f'{self.url} is lost: {_said(error)}') from error
        reply = self._receive(end - time.monotonic(), self.timeout)
        if not isinstance(reply, dict):
            self.close()
            raise ServerError(f'{self.url} answered with {type(reply).__name__}, not a map')
        return reply

    def _receive(self, timeout: float, allowed: float) -> Any:
        """The next value. ``timeout`` is what is left of the seconds ``allowed``."""
        try:
            frame = self._socket.recv(timeout=max(timeout, 0.0))
            value = None if isinstance(frame, str) else unpack(frame)
        except TimeoutError:
            self.close()  # its answer would be taken for the next one's
            raise ServerError(f'{self.url} did not answer in {allowed:g} s') from None
        except (OSError, WebSocketException) as error:
            self.close()
            raise ServerError(f'{self.url} is lost: {_said(error)}') from error
        except ProtocolError as error:
            self.close()
            raise ServerError(f'{self.url} sent what cannot be read: {error}') from error
        if isinstance(frame, str):
            raise RefusedError(self.url, *read_error(frame))
        return value

    def close(self) -> None:
        """Close; more than once does no harm."""
        with contextlib.suppress(OSError, WebSocketException), self._cut_after(2 * CLOSE_TIMEOUT):
            self._open.close()

    @contextlib.contextmanager
    def _cut_after(self, seconds: float) -> Iterator[None]:
        """End the connection where this takes longer: to send has no time limit of its own, and
        waits for a server that does not read.
        """
        timer = threading.Timer(max(seconds, 0.0), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            # Not TLS's own shutdown, which takes away what the sending thread works with.
            socket.socket.shutdown(self._socket.socket, socket.SHUT_RDWR)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RefusedError(ServerError):
    """The server answered with an error; the connection lives on. ``kind`` and ``reason`` are
    what it said.
    """

    def __init__(self, url: str, kind: str, reason: str) -> None:
        super().__init__(f'{url}: {kind}: {reason}')
        self.kind, self.reason = kind, reason


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


Meaning = tuple[PolicyConfig, MotionRange, tuple[float, ...] | None, bool]


class RemotePolicy:
    """A policy on a server; see the module's text.

    :meth:`act` belongs to one thread; :attr:`history`, :meth:`set_params` and :meth:`reset` may be
    used from any. Raises :class:`ServerError` where the server cannot be reached or is not of this
    protocol.
    """

    device = None  # of the model: not on this machine
    refreshes_in_slack = False

    def __init__(
        self,
        url: str,
        api_key: str = '',
        params: PruningParams | None = None,
        timeout: float = 2.0,
        connect_timeout: float = CONNECT_TIMEOUT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ('ws', 'wss'):
            raise ServerError(f"'{url}' is no address of a server: want ws://HOST:PORT")
        self.url = url
        self.max_normalised_action = 10.0
        self.query_period = 0.0
        self.measure_deviation = False
        self.wants_overlay = False
        self._options = (api_key, timeout, connect_timeout, tls)
        self._meaning: Meaning | None = None  # of what is sent
        self._connection: Connection | None = self._connect()
        metadata = self._connection.metadata
        assert self._meaning is not None  # by connecting
        # Random weights also where the server does not say: one of an older version.
        self.config, self.motion, center, self.random_weights = self._meaning
        self.proprio_center = None if center is None else np.array(center)
        self.notes = [str(note) for note in metadata.get('notes', ())]
        self.step_dt = 1.0 / self.config.control_hz
        self.history = history_for(self.step_dt)
        self._memory = Memory(self.history)
        self._took = 0.0
        self._swap = threading.Lock()
        known = params or _params(url, metadata)
        self._latest = (known, 1)
        self._sent = 0  # version of the parameters that this connection's session has
        self._answered = 1  # the one that the last reply was made with
        self._engine = str(metadata.get('engine', ''))
        self.engine_trouble = ''
        self._compares = bool(metadata.get('compares', True))

    def _connect(self) -> Connection:
        """A new connection to the same model: another one means other units by its numbers."""
        api_key, timeout, connect_timeout, tls = self._options
        connection = Connection(self.url, api_key, timeout, connect_timeout, tls)
        try:
            meaning = _meaning(self.url, connection.metadata)
            if self._meaning not in (None, meaning):
                raise ServerError(
                    f'{self.url} serves another model now: configure the node anew (cleanup, '
                    'configure)'
                )
            self._meaning = meaning
        except ServerError:
            connection.close()
            raise
        return connection

    @property
    def params(self) -> PruningParams:
        """The parameters the next query runs with."""
        return self._latest[0]

    @property
    def params_version(self) -> int:
        """Counts changes of the parameters, from 1; 0: the server's own."""
        return self._answered

    @property
    def pending_version(self) -> int | None:
        """The version that no reply was made with yet, ``None`` for none."""
        version = self._latest[1]
        return version if version > self._answered else None

    @property
    def engine_status(self) -> str:
        """What runs the queries, in a few words."""
        return f'{self.url}: {"not connected" if self._connection is None else self._engine}'

    @property
    def episode(self) -> int:
        """Counts resets of the memory."""
        return self._memory.episode

    def check_cameras(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless the model reads images of these cameras, in this order."""
        self.config.check_cameras(names)

    def check_params(self, params: PruningParams) -> None:
        """Ask the server, on a connection of its own, whether parameters and model fit.

        Raises ``ParamError``, also where the server cannot be reached.
        """
        try:
            with self._connect() as connection:
                connection.request({EXTENSION: {'check': params.as_dict()}})
        except RefusedError as error:
            name, _, reason = error.reason.partition(': ')
            raise ParamError(name, reason or error.reason) from error
        except ServerError as error:
            raise ParamError('model.server', str(error)) from error

    def set_params(self, params: PruningParams, checked: bool = False) -> int:
        """Use ``params`` from the next query on; returns their version. Raises like
        :meth:`check_params` (not where they are ``checked`` already).
        """
        if not checked:
            self.check_params(params)
        with self._swap:
            self._latest = (params, self._latest[1] + 1)
            return self._latest[1]

    def reset(self, reason: str = 'requested') -> None:
        """Forget everything before the next query, here and there."""
        self._memory.request_reset(reason)

    def warm_up(self, instruction: str = 'warm up') -> float:
        """Ask two queries on grey images in a session of their own; returns the second's seconds,
        the way to the server and back included.
        """
        size, seconds = self.config.image_size, 0.0
        grey = np.full((size, size, 3), 128, np.uint8)
        with self._connect() as connection:
            for stamp in (0, round(self.step_dt * SECOND_NS)):
                image = CameraImage(grey, stamp)
                dim = self.config.proprio_dim
                observation = Observation(
                    images=dict.fromkeys(self.config.cameras, image),
                    instruction=instruction,
                    proprio=np.zeros(dim) if dim else None,
                )
                begin = time.monotonic()
                connection.request(request_of(observation, params=self.params.as_dict()))
                seconds = time.monotonic() - begin
        return seconds

    def refresh(self, observation: Observation, cancelled: Callable[[], bool]) -> bool:
        """Nothing: a server makes no prior anew between queries. ``False``."""
        return False

    def prepare_reference(self, at_ns: int, cancelled: Callable[[], bool]) -> None:
        """Nothing: images are prepared on the server."""

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def act(self, observation: Observation) -> PolicyResult:
        """One query. Raises ``ObservationError`` and :class:`ServerError`; after the latter the
        next query connects again, and begins a new episode.
        """
        observation = observation.checked(self.config)
        begin = time.monotonic()
        try:
            return self._query(observation, begin)
        except BaseException as error:
            self._memory.request_reset(f'after an error: {error}')
            if not isinstance(error, (RefusedError, ObservationError)):
                self.close()
            raise

    def _query(self, observation: Observation, begin: float) -> PolicyResult:
        if self._connection is None:
            self._connection = self._connect()
            self._sent = 0
            self._memory.request_reset('connected again')
        connection = self._connection
        params, version = self._latest
        memory = self._memory
        memory.gap_limit_s = gap_limit(params, self.config, self._took, self.query_period)
        reset = memory.open(observation, prior_key(params))
        ours: dict[str, Any] = {'max_normalised_action': self.max_normalised_action}
        if reset is not None:
            ours['reset'] = reset
        if self._sent != version:
            ours.update(params=params.as_dict(), params_version=version)
        if LATE * self.query_period > params.reset_gap:  # else it changes nothing there
            ours['query_period'] = self.query_period
        if self.wants_overlay:
            ours['overlay'] = True
        if self.measure_deviation:
            ours['measure_deviation'] = True
        # What new parameters compare is not known yet.
        compares = self._compares or self._sent != version
        past = self._past(observation, params) if compares else {}
        try:
            reply = connection.request(request_of(replace(observation, past=past), **ours))
        except RefusedError as error:
            if error.kind == BAD_REQUEST:
                raise ObservationError(f'{self.url}: {error.reason}') from error
            raise
        result = self._result(reply)
        self._sent = version
        there = reply[EXTENSION]
        self._compares = bool(there.get('compares', True))
        self._engine = str(there.get('engine', self._engine))
        self.engine_trouble = str(there.get('trouble', ''))
        self._answered = result.params_version
        self._took = time.monotonic() - begin
        memory.close(observation, {}, None, dense=result.mode.value == 'dense')
        if reset is None and result.reset is not None:  # forgotten there, for a reason of its own
            memory.episode += 1
        return replace(result, episode=memory.episode, reset=reset or result.reset)

    def _result(self, reply: Mapping[str, Any]) -> PolicyResult:
        ours = reply.get(EXTENSION)
        try:
            if not isinstance(ours, Mapping):
                raise ProtocolError('a reply without the account of the query')
            actions = np.asarray(reply.get('actions'), np.float64)
            shape = (self.config.chunk, self.config.action_dim)
            if actions.shape != shape or not np.isfinite(actions).all():
                raise ProtocolError(f'no finite actions of shape {list(shape)}')
            return result_of(actions, ours)
        except (ProtocolError, TypeError, ValueError) as error:
            raise ServerError(f'{self.url} answered with {error}') from error

    def _past(self, observation: Observation, params: PruningParams) -> dict[str, CameraImage]:
        """The images to compare with, by the policy's own rule; empty without a past."""
        steps = history_offset(self._memory.displacement, params, self.motion)
        wanted = observation.stamp_ns - round(steps * self.step_dt * SECOND_NS)
        past = {
            camera: self.history.at(camera, wanted, image.stamp_ns)
            for camera, image in observation.images.items()
        }
        if any(frame is None or frame.image is None for frame in past.values()):
            return {}
        return {camera: frame.image for camera, frame in past.items() if frame is not None}


def _meaning(url: str, metadata: Mapping[str, Any]) -> Meaning:
    """What a server's numbers mean."""
    config = _config(url, metadata)
    center = _proprio_center(url, metadata, config.proprio_dim)
    return config, _motion(url, metadata), center, metadata.get('random_weights') is not False


def _config(url: str, metadata: Mapping[str, Any]) -> PolicyConfig:
    if metadata.get('protocol') != PROTOCOL:
        raise ServerError(
            f'{url} is no specprune_ros server of protocol {PROTOCOL}: it says it is '
            f'{metadata.get("server", "nothing")}, {metadata.get("protocol", "no protocol")}'
        )
    try:
        return PolicyConfig.from_dict(metadata['config'])
    except (KeyError, TypeError, ConfigError) as error:
        raise ServerError(f'{url} describes its policy in a way unknown here: {error}') from error


def _motion(url: str, metadata: Mapping[str, Any]) -> MotionRange:
    try:
        return MotionRange(**metadata['motion'])
    except (KeyError, TypeError) as error:
        raise ServerError(f'{url} does not say how fast its policy moves: {error}') from error


def _proprio_center(url: str, metadata: Mapping[str, Any], size: int) -> tuple[float, ...] | None:
    center = metadata.get('proprio_center')
    if center is None:
        return None
    try:
        found = tuple(map(float, center))
    except (TypeError, ValueError):
        found = ()
    if len(found) != size or not np.isfinite(found).all():
        raise ServerError(
            f'{url} names a middle of proprioception that is not {size} finite numbers'
        )
    return found


def _params(url: str, metadata: Mapping[str, Any]) -> PruningParams:
    try:
        known = {spec.name for spec in specs()}  # not those of methods that only the server has
        given = metadata['params'].items()
        return PruningParams.from_mapping({name: v for name, v in given if name in known})
    except (KeyError, TypeError, AttributeError, ParamError) as error:
        raise ServerError(f'{url} has parameters unknown here: {error}') from error
