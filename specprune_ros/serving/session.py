"""What the server keeps of one robot, and of all of them together, whatever carries the frames."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from specprune_ros.models.load import LoadedModel
from specprune_ros.models.preprocess import ImageError
from specprune_ros.policy.device import check_alive, fault_of, release
from specprune_ros.policy.forward_step import compares
from specprune_ros.policy.input_limits import MAX_SIDE
from specprune_ros.policy.motion_range import motion_range
from specprune_ros.policy.observation import ObservationError
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.result import PolicyError
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.serving.batching import BatchingEngine, Engine
from specprune_ros.serving.messages import (
    RequestReader,
    as_map,
    extension,
    reply_of,
    session_key,
)
from specprune_ros.serving.metrics import Metrics
from specprune_ros.serving.protocol import (
    BAD_REQUEST,
    BUSY,
    EXTENSION,
    FAILED,
    MAX_MESSAGE,
    PROTOCOL,
    STOPPING,
    ProtocolError,
    error_text,
    pack,
    unpack,
)

LOG = logging.getLogger('specprune.serve')
# Engines on devices that were lost, until the process ends: to free their memory would abort it.
_DEAD: list[BatchingEngine] = []
ACTIVE_FOR = 1.0  # s after its last query that a session is expected to send another


class Transport(Protocol):
    """One client's connection."""

    async def recv(self) -> bytes | str:
        """The next frame. Raises what :attr:`closed` names at the end."""

    async def send(self, data: bytes | str) -> None:
        """Send a frame; waits where the client does not read."""

    async def close(self, code: int, reason: str) -> None:
        """Close."""

    def abort(self) -> None:
        """Let go at once, without a word."""

    closed: type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    ``batch``: most queries that run together; ``window``: seconds that a query waits for company
    at most. ``clients``: connections, and robots of them all together, as each is remembered.
    ``queue``: queries under way, waiting ones included, beyond which a request is refused as busy.
    ``sessions``: robots that one connection may speak for. ``message`` in bytes, ``side``
    in pixels. ``send``: seconds that a reply may take to leave before the client counts as one
    that does not read. ``max_normalised_action``: largest normalised action that is believed.
    """

    batch: int = 8
    window: float = 0.0
    clients: int = 256
    queue: int = 64
    sessions: int = 64
    message: int = MAX_MESSAGE
    side: int = MAX_SIDE
    send: float = 5.0
    max_normalised_action: float = 10.0


class Session:
    """One robot's policy: its own image history, prior, controller and parameters; the model and
    the engine are everybody's.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        policy.wants_overlay = False
        self._served = policy.params
        self.last_query = -math.inf  # s, monotonic: the last query
        self._versions: dict[int, int] = {}  # the policy's parameter versions to the client's

    def answer(
        self, request: Mapping[Any, Any], reader: RequestReader, arrived: float
    ) -> dict[str, Any]:
        """One query, from map to map. Raises the errors of the policy and of the messages."""
        policy, ours = self.policy, extension(request)
        # First: a request that cannot be read changes nothing.
        observation = reader.observation(request, round(arrived * 1e9)).checked(policy.config)
        self._set_params(ours)
        if reset := ours.get('reset'):
            policy.reset(reset[:200] if isinstance(reset, str) else 'requested')
        if isinstance(bound := ours.get('max_normalised_action'), (int, float)) and bound > 0:
            policy.max_normalised_action = float(bound)
        period = ours.get('query_period')
        policy.query_period = float(period) if isinstance(period, (int, float)) else 0.0
        policy.wants_overlay = bool(ours.get('overlay'))
        policy.measure_deviation = bool(ours.get('measure_deviation'))
        self.last_query = time.monotonic()
        result = policy.act(observation)
        reply = reply_of(result, policy.wants_overlay)
        version = result.params_version
        # 0: parameters that the client did not send.
        reply['params_version'] = self._versions.get(version, 0)
        reply['compares'] = compares(policy.params)
        reply['engine'], reply['trouble'] = policy.engine_status, policy.engine_trouble
        return {
            'actions': result.actions,
            'server_timing': {'infer_ms': 1e3 * (time.monotonic() - arrived)},
            'policy_timing': {'infer_ms': 1e3 * result.times.total},
            EXTENSION: reply,
        }

    def _set_params(self, ours: Mapping[str, Any]) -> None:
        if 'params' not in ours:
            return
        policy = self.policy
        params = changed(policy.latest_params, ours['params'], self._served)
        if params != policy.latest_params:
            policy.set_params(params)
        version = policy.pending_version or policy.params_version
        named = ours.get('params_version')
        if isinstance(named, int):
            self._versions[version] = named
            self._versions = dict(list(self._versions.items())[-8:])


def changed(params: PruningParams, changes: object, served: PruningParams) -> PruningParams:
    """``params`` with values by name; a preset lets go of all others, but for those of single
    methods that the server was started with, ``served``: not every client knows these methods.
    Raises ``ParamError`` and ``ProtocolError``.
    """
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise ProtocolError("'params' is a map of parameter names to values")
    others = {name: value for name, value in changes.items() if name != 'preset'}
    if 'preset' in changes:
        params = replace(PruningParams.preset_of(changes['preset']), own=served.own)
    return params.replace(**others)


@dataclass
class Peer:
    """The sessions that one connection speaks for: nobody else can name them, and they end with
    it.
    """

    name: str
    sessions: dict[str, Session] = field(default_factory=dict)
    served: int = 0
    last_ms: float | None = None


class Hub:
    """All sessions on one model; see the module's text. ``loaded`` and ``engine`` are shared."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        params: PruningParams | None = None,
        limits: Limits | None = None,
        image_keys: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.loaded, self.limits = loaded, limits or Limits()
        self.params = params or PruningParams()
        self.reader = RequestReader(loaded.config, image_keys or {}, self.limits.side)
        self.metrics = Metrics()
        self.engine = BatchingEngine(
            engine, self.limits.batch, self.limits.window, self._expected, self._ran
        )
        self.pending = 0  # requests whose reply has not left
        self.stopping = False
        self.lost = ''  # why nothing can be answered any more
        self._on_loss = asyncio.Event()
        self._facts = dict(facts or {})
        self._id = secrets.token_hex(8)
        self._pool = ThreadPoolExecutor(max(8, 2 * self.limits.batch), 'session')
        self._connections: dict[int, Peer] = {}
        # Wrong parameters and a cold model are for who starts the server, not for the first robot.
        self._new_session().policy.check_params(self.params)
        self.metrics.gauge('clients', 'Connections.', lambda: self.clients)
        self.metrics.gauge('pending', 'Requests under way.', lambda: self.pending)
        self.metrics.gauge('sessions', 'Robots with a memory here.', self._count_sessions)

    @property
    def clients(self) -> int:
        """Connections there are."""
        return len(self._connections)

    def warm_up(self, instruction: str = 'warm up') -> float:
        """Run two queries and forget them; returns the second's seconds."""
        return self._new_session().policy.warm_up(instruction)

    def metadata(self) -> dict[str, Any]:
        """What a client receives when it connects."""
        center = self.loaded.statistics.proprio_center
        return {
            'server': 'specprune_ros',
            'server_id': self._id,
            'protocol': PROTOCOL,
            'config': self.loaded.config.to_dict(),
            'params': self.params.as_dict(),
            'motion': as_map(motion_range(self.loaded)),
            'proprio_center': None if center is None else [float(value) for value in center],
            'compares': compares(self.params),
            'image_keys': {
                camera: list(self.reader.keys_of(index, camera))
                for index, camera in enumerate(self.loaded.config.cameras)
            },
            'limits': {
                'message': self.limits.message,
                'side': self.limits.side,
                'sessions': self.limits.sessions,
            },
            'engine': self.engine.status,
            'device': str(self.engine.device),
            'notes': list(self.loaded.notes),
            'random_weights': self.loaded.random_weights,
            **self._facts,
        }

    async def serve(self, transport: Transport, name: str) -> None:
        """Answer one client until it goes."""
        peer = Peer(name)
        self._connections[id(peer)] = peer
        LOG.info('%s connected', name)
        try:
            await self._send(transport, pack(self.metadata()))
            while True:
                frame = await transport.recv()
                self.pending += 1
                try:
                    await self._send(transport, await self._answer(peer, frame))
                finally:
                    self.pending -= 1
        except transport.closed:
            pass
        except _Slow:
            LOG.warning('%s does not read its replies: let go', name)
            self.metrics.closed.labels('does not read').inc()
            transport.abort()
        finally:
            del self._connections[id(peer)]
            LOG.info('%s gone after %d queries', name, peer.served)

    async def drained(self, patience: float) -> bool:
        """Take no more requests and wait for the replies under way; whether all have left."""
        self.stopping = True
        end = time.monotonic() + patience
        while self.pending and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return not self.pending

    async def lose(self) -> str:
        """Wait until the device is lost; returns the reason."""
        await self._on_loss.wait()
        return self.lost

    def close(self) -> None:
        """End the threads. Blocks until what is under way is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.lost and self.engine.device.type == 'cuda':
            _DEAD.append(self.engine)
        else:
            self.engine.shut_down()

    async def _send(self, transport: Transport, data: bytes | str) -> None:
        try:
            await asyncio.wait_for(transport.send(data), self.limits.send)
        except TimeoutError:
            raise _Slow from None
        self.metrics.bytes_out.inc(len(data))

    async def _answer(self, peer: Peer, frame: bytes | str) -> bytes | str:
        arrived = time.monotonic()
        self.metrics.bytes_in.inc(len(frame))
        if self.stopping or self.lost:
            return self._error(STOPPING, self.lost or 'the server is stopping: connect again')
        if self.pending > self.limits.queue:
            return self._error(BUSY, f'{self.limits.queue} queries are under way: try again')
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(
            self._pool, self._answer_in_thread, peer, frame, arrived
        )
        if self.lost:
            self._on_loss.set()
        return reply

    def _answer_in_thread(self, peer: Peer, frame: bytes | str, arrived: float) -> bytes | str:
        try:
            if isinstance(frame, str):
                raise ProtocolError('a text frame; requests are binary')
            return self._reply(peer, unpack(frame), arrived)
        except (ProtocolError, ObservationError, ImageError, ParamError) as error:
            return self._error(BAD_REQUEST, str(error))
        except _Full as error:
            return self._error(BUSY, str(error))
        except PolicyError as error:
            return self._error(FAILED, str(error))
        except Exception as error:
            return self._error(FAILED, self._failure(error))

    def _reply(self, peer: Peer, request: Any, arrived: float) -> bytes:
        ours = extension(request)
        if 'check' in ours:
            params = changed(self.params, ours['check'], self.params)
            self._new_session().policy.check_params(params)
            return pack({EXTENSION: {'params': params.as_dict()}})
        session = self._session(peer, session_key(ours))
        reply = session.answer(request, self.reader, arrived)
        if peer.last_ms is not None:
            reply['server_timing']['prev_total_ms'] = peer.last_ms
        data = pack(reply)
        seconds = time.monotonic() - arrived
        peer.served, peer.last_ms = peer.served + 1, 1e3 * seconds
        self.metrics.queries.labels(reply[EXTENSION]['mode']).inc()
        self.metrics.seconds.observe(seconds)
        if reply[EXTENSION]['reset'] is not None:
            self.metrics.resets.inc()
        return data

    def _session(self, peer: Peer, key: str) -> Session:
        session = peer.sessions.get(key)
        if session is None:
            if len(peer.sessions) >= self.limits.sessions:
                raise ProtocolError(
                    f'this connection speaks for {self.limits.sessions} sessions already'
                )
            if self._count_sessions() >= self.limits.clients:
                raise _Full(f'{self.limits.clients} robots are remembered here: try again later')
            session = peer.sessions[key] = self._new_session()
        return session

    def _new_session(self) -> Session:
        policy = Policy(self.loaded, self.params, self.limits.max_normalised_action, self.engine)
        return Session(policy)

    def _error(self, kind: str, reason: str) -> str:
        self.metrics.errors.labels(kind).inc()
        return error_text(kind, reason)

    def _failure(self, error: Exception) -> str:
        """What is said of an error that no request is to blame for."""
        device = self.engine.device
        fault = fault_of(error, device)
        if fault is None:
            LOG.error('a query failed', exc_info=error)
            return f'{type(error).__name__}: {error}'
        LOG.error('%s', fault.message)
        if not fault.lost:
            release(device)
            return fault.message
        try:
            check_alive(device)
        except Exception:  # of whatever kind: it cannot add 1 to 0
            self.lost = fault.message
        return fault.message

    def _ran(self, size: int, waited: list[float]) -> None:
        self.metrics.batch.observe(size)
        for seconds in waited:
            self.metrics.waited.observe(seconds)

    def _expected(self) -> int:
        """Sessions with a recent query: more than so many queries will not come."""
        since = time.monotonic() - ACTIVE_FOR
        return sum(
            session.last_query >= since
            for peer in list(self._connections.values())
            for session in list(peer.sessions.values())
        )

    def _count_sessions(self) -> int:
        return sum(len(peer.sessions) for peer in list(self._connections.values()))


class _Full(Exception):
    """No room for another robot."""


class _Slow(Exception):
    """A client that does not read."""
