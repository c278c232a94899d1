"""The policy server: :class:`~specprune_ros.serving.session.Hub` behind a WebSocket port.

Beside the WebSocket on any path: ``GET /healthz`` and ``GET /metrics`` (Prometheus text).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from specprune_ros.serving.protocol import NO_KEY, PORT, may_enter
from specprune_ros.serving.session import Hub

LOG = logging.getLogger('specprune.serve')
CLOSE_TIMEOUT = 2.0  # s for a client's half of the closing handshake


@dataclass(frozen=True)
class Address:
    """Where the server listens, who may come in, and how it is left.

    ``key``: text that clients send as ``Authorization: Api-Key KEY``; empty lets everybody in.
    ``certificate`` and ``private_key``: PEM files; given, the port speaks TLS. ``grace``: seconds
    that replies under way may take when the server is stopped.
    """

    host: str = '127.0.0.1'
    port: int = PORT
    key: str = ''
    certificate: Path | None = None
    private_key: Path | None = None
    grace: float = 10.0

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context. Raises ``OSError`` (``ssl.SSLError``) for files that are no pair, and
        ``ValueError`` for a private key alone, which would leave the port without TLS.
        """
        if self.certificate is None:
            if self.private_key is not None:
                raise ValueError(
                    f'private key {self.private_key} without a certificate: give both for TLS '
                    '(--certificate)'
                )
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.private_key)
        return context


class _WebSocket:
    """A connection of the websockets library as a :class:`.Transport`."""

    closed = ConnectionClosed

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.recv, self.send = connection.recv, connection.send

    async def close(self, code: int, reason: str) -> None:
        """Close with a handshake."""
        await self._connection.close(code, reason)

    def abort(self) -> None:
        """Let go at once, without a word."""
        self._connection.transport.abort()


class PolicyServer:
    """The port of a hub. Use as ``async with``; leaving lets replies under way leave first."""

    def __init__(self, hub: Hub, address: Address) -> None:
        self.hub, self.address = hub, address
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on (of its own choice where ``address.port`` is 0)."""
        assert self._server is not None
        return next(iter(self._server.sockets)).getsockname()[1]

    async def __aenter__(self) -> PolicyServer:
        self._server = await serve(
            self._serve,
            self.address.host,
            self.address.port,
            process_request=self._request,
            origins=[None],  # a page in somebody's browser names its origin, a robot has none
            ssl=self.address.tls(),
            compression=None,  # images do not shrink, and openpi's clients send none
            max_size=self.hub.limits.message,
            max_queue=1,  # one request at a time: what a client sends ahead waits in its socket
            close_timeout=CLOSE_TIMEOUT,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        # The port stays open meanwhile, so that /healthz can say that it is stopping.
        if not await self.hub.drained(self.address.grace):
            LOG.warning('%d replies did not leave in %g s', self.hub.pending, self.address.grace)
        self._server.close()
        await self._server.wait_closed()
        await asyncio.to_thread(self.hub.close)

    async def _serve(self, connection: ServerConnection) -> None:
        host, port = connection.remote_address[:2]
        await self.hub.serve(_WebSocket(connection), f'{host}:{port}')

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP, or let the handshake go on."""
        path = request.path.partition('?')[0]
        if path == '/healthz':
            if self.hub.lost or self.hub.stopping:
                reason = self.hub.lost or 'stopping'
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f'{reason}\n')
            return connection.respond(HTTPStatus.OK, 'OK\n')
        if not may_enter(request.headers.get('Authorization', ''), self.address.key):
            return connection.respond(HTTPStatus.UNAUTHORIZED, f'{NO_KEY}\n')
        if self.hub.stopping:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, 'stopping\n')
        if path == '/metrics':
            response = connection.respond(HTTPStatus.OK, self.hub.metrics.text().decode())
            del response.headers['Content-Type']
            response.headers['Content-Type'] = self.hub.metrics.content_type
            return response
        if self.hub.clients >= self.hub.limits.clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f'{self.hub.clients} clients are connected\n'
            )
        return None


async def run(
    hub: Hub, address: Address, ready: Callable[[PolicyServer], None] = lambda server: None
) -> int:
    """Serve until SIGINT or SIGTERM, or until the device is lost: exit status 0 or 1."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with PolicyServer(hub, address) as server:
        ready(server)
        ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(hub.lose())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for one in ends:
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await one
    if hub.lost:
        LOG.error('%s', hub.lost)
        return 1
    return 0
