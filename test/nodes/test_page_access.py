"""Who may open the page, by real requests to a real server."""

import asyncio
import http.client
import itertools
import threading

import pytest

viser = pytest.importorskip('viser', reason='viser is not installed: requirements/view.txt')

from page_client import PageClient  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402

from specprune_ros.nodes.viewer_node.access import MAX_CLIENTS, Access, is_loopback, serve  # noqa: E402

PORTS = itertools.count(19200, 7)


@pytest.fixture
def served(request):
    """Server and access for ``host``: loopback, or with a token as on a network."""
    access = Access(getattr(request, 'param', '127.0.0.1'))
    server = serve('127.0.0.1', next(PORTS), access)
    yield server.get_port(), access, server
    server.stop()


def get(port, path='/', **headers):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.request('GET', path, headers={k.replace('_', '-'): v for k, v in headers.items()})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def refused(port, **options):
    """The status a WebSocket connection is refused with."""
    with pytest.raises(InvalidStatus) as caught:
        PageClient(port, **options)
    return caught.value.response.status_code


@pytest.mark.parametrize(
    'host, alone',
    [
        ('127.0.0.1', True),
        ('127.8.8.8', True),
        ('::1', True),
        ('localhost', True),
        ('0.0.0.0', False),
        ('::', False),
        ('192.168.1.7', False),
        ('robot.local', False),
    ],
)
def test_only_loopback_needs_no_token(host, alone):
    assert is_loopback(host) == alone
    assert bool(Access(host).token) == (not alone)


def test_tokens_are_long_and_never_the_same(monkeypatch):
    assert Access('0.0.0.0').token != Access('0.0.0.0').token
    assert len(Access('0.0.0.0').token) >= 20
    monkeypatch.setenv('SPECPRUNE_VIEW_TOKEN', 'mine')
    assert Access('0.0.0.0').token == 'mine'


def test_the_page_is_served_and_nothing_else(served):
    port, _, _ = served
    status, headers, body = get(port)
    assert status == 200 and headers['Content-Type'].startswith('text/html') and len(body) > 10_000
    for path in ('/../../../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/..%5c..%5cx', '/etc'):
        assert get(port, path)[0] == 404, path


def test_another_web_site_cannot_steer_the_arm(served):
    port, _, _ = served
    own = f'http://127.0.0.1:{port}'
    PageClient(port, origin=own).close()
    for origin in ('http://evil.example', 'http://127.0.0.1:1', 'null'):
        assert refused(port, origin=origin) == 403
    # A foreign name that resolves to this machine.
    assert get(port, Host=f'evil.example:{port}')[0] == 403
    headers = {'Host': f'evil.example:{port}'}
    assert (
        get(port, Upgrade='websocket', Origin=f'http://evil.example:{port}', **headers)[0] == 403
    )


@pytest.mark.parametrize('served', ['0.0.0.0'], indirect=True)
def test_on_a_network_the_token_is_needed_once_and_kept_as_a_cookie(served):
    port, access, _ = served
    assert get(port)[0] == 401
    assert get(port, '/?token=wrong')[0] == 401
    assert refused(port) == 401
    assert refused(port, additional_headers={'Cookie': 'specprune_view=wrong'}) == 401
    status, headers, _ = get(port, f'/?token={access.token}')
    assert (status, headers['Location']) == (303, '/')
    cookie = headers['Set-Cookie']
    assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
    # A browser keeps one for each host, whatever the port: another arm's page has another name.
    assert cookie.startswith(f'specprune_view_{port}=')
    kept = {'Cookie': cookie.split(';')[0]}
    assert get(port, **kept)[0] == 200
    PageClient(port, additional_headers=kept).close()
    assert access.token in access.address('0.0.0.0', port)


def test_a_token_of_any_characters_opens_the_printed_address(monkeypatch):
    monkeypatch.setenv('SPECPRUNE_VIEW_TOKEN', 'a+b&c#d%20;e:"f,ü')
    access = Access('0.0.0.0')
    server = serve('127.0.0.1', next(PORTS), access)
    try:
        port = server.get_port()
        path = access.address('127.0.0.1', port).removeprefix(f'http://127.0.0.1:{port}')
        status, headers, _ = get(port, path)
        assert status == 303
        assert get(port, Cookie=headers['Set-Cookie'].split(';')[0])[0] == 200
    finally:
        server.stop()


def test_a_crowd_is_turned_away_and_those_inside_stay(served):
    port, _, server = served
    clients = [PageClient(port) for _ in range(MAX_CLIENTS)]
    assert refused(port) == 503
    for client in clients:
        client.receive()
        client.close()
    PageClient(port).close()


def test_no_page_can_open_a_public_tunnel(served):
    port, _, server = served
    client = PageClient(port)
    called = []
    server.request_share_url = lambda *args, **kwargs: called.append(1)
    client.send('ShareUrlRequest')
    client.send('ShareUrlDisconnect')
    client.receive()
    assert not called and server._share_tunnel is None
    client.close()


def test_what_another_thread_writes_is_sent_from_the_loop_alone(served, monkeypatch):
    """A write from the node's thread ended the viewer: deque mutated during iteration."""
    port, _, server = served
    client = PageClient(port)
    try:
        threads, wake = set(), asyncio.Event.set

        def recorded(event):
            threads.add(threading.get_ident())
            wake(event)

        monkeypatch.setattr(asyncio.Event, 'set', recorded)
        server.scene.add_frame('/written', position=(1.0, 2.0, 3.0))
        while '/written' not in str(client.seen):
            client.receive()
        assert threads and threading.get_ident() not in threads
    finally:
        client.close()
