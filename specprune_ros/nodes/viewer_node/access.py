"""Who may open the page. viser itself lets in whoever reaches its port, so every HTTP and
WebSocket request is inspected first.

On the loopback interface no token is needed, but a request must name a loopback host and, where a
browser says which page sends it, come from this page: another web site open in the same browser
could otherwise steer the arm. On any other interface a token is needed, given once as ``?token=``
and kept by the browser as a cookie.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import io
import ipaddress
import os
import secrets
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, urlsplit

import viser
import websockets.asyncio.server
from viser import _messages
from viser.infra import _infra

TOKEN_VARIABLE = 'SPECPRUNE_VIEW_TOKEN'
COOKIE = 'specprune_view'
MAX_CLIENTS = 16
COOKIE_AGE = 12 * 3600  # s
LOOPBACK_NAMES = ('localhost', '127.0.0.1', '::1')


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


class Access:
    """Decides about one request after the other. ``token`` is empty where none is needed."""

    def __init__(self, host: str) -> None:
        self.token = (
            ''
            if is_loopback(host)
            else os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(18)
        )

    def address(self, host: str, port: int) -> str:
        """What to open in the browser."""
        shown = f'[{host}]' if ':' in host else host
        token = f'/?token={quote(self.token, safe="")}' if self.token else ''
        return f'http://{shown}:{port}{token}'

    def refuse(self, connection: Any, request: Any) -> Any:
        """The response that ends a request, ``None`` for one that may go on."""
        headers = request.headers
        host, origin = headers.get('Host', ''), headers.get('Origin')
        websocket = headers.get('Upgrade', '').lower() == 'websocket'
        if websocket and origin is not None and urlsplit(origin).netloc != host:
            return connection.respond(
                HTTPStatus.FORBIDDEN, 'this page answers its own site only\n'
            )
        if websocket and len(connection.server.connections) >= MAX_CLIENTS:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f'{MAX_CLIENTS} pages are open already\n'
            )
        if not self.token:
            # A foreign name that resolves to this machine (DNS rebinding) is no loopback name.
            if urlsplit(f'//{host}').hostname not in LOOPBACK_NAMES:
                return connection.respond(HTTPStatus.FORBIDDEN, 'open it as localhost\n')
            return None
        # Browsers keep cookies by host, whatever the port: a page of another arm has its own.
        name = f'{COOKIE}_{connection.local_address[1]}'
        given = parse_qs(urlsplit(request.path).query).get('token', [''])[0]
        # A digest: a token may hold what a cookie cannot.
        kept = hashlib.sha256(self.token.encode()).hexdigest()
        if _same(given, self.token) and not websocket:
            response = connection.respond(HTTPStatus.SEE_OTHER, '')
            response.headers['Location'] = '/'
            response.headers['Set-Cookie'] = (
                f'{name}={kept}; HttpOnly; SameSite=Strict; Path=/; Max-Age={COOKIE_AGE}'
            )
            return response
        if _same(_cookie(headers.get('Cookie', ''), name), kept):
            return None
        return connection.respond(
            HTTPStatus.UNAUTHORIZED, 'a token is needed: open the address the viewer printed\n'
        )


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _cookie(text: str, name: str) -> str:
    try:
        found = SimpleCookie(text).get(name)
    except CookieError:
        return ''
    return '' if found is None else found.value


class _LoopEvent(asyncio.Event):
    """Wakes who waits for it from its event loop alone. viser 1.1 calls ``set`` in the thread that
    writes, which now and then ends in ``deque mutated during iteration``, and then once more from
    the loop, which is enough.
    """

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # no loop in this thread
            asyncio.get_running_loop()
            super().set()


class _Buffer(_infra.AsyncMessageBuffer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, message_event=_LoopEvent(), **options)


_infra.AsyncMessageBuffer = _Buffer


def serve(host: str, port: int, access: Access) -> viser.ViserServer:
    """A running page server behind ``access``, on the next free port from ``port`` on.

    Raises ``OSError`` where nothing can listen on ``host``.
    """
    with _guarded(access), contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    # Any page could else request a public tunnel to this server.
    server._websock_server.unregister_handler(_messages.ShareUrlRequest)
    server._websock_server.unregister_handler(_messages.ShareUrlDisconnect)
    return server


@contextlib.contextmanager
def _guarded(access: Access) -> Iterator[None]:
    """viser has no hook for requests: for the moment in which it starts listening, what it listens
    with consults ``access`` first.
    """
    listen: Callable[..., Any] = websockets.asyncio.server.serve

    def guarded(*args: Any, process_request: Callable[..., Any], **options: Any) -> Any:
        def check(connection: Any, request: Any) -> Any:
            return access.refuse(connection, request) or process_request(connection, request)

        return listen(*args, process_request=check, **options)

    with mock.patch.object(websockets.asyncio.server, 'serve', guarded):
        yield
