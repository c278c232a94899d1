"""The policy server as a Ray Serve application, a replica per GPU (docs/how-to/scale.md).

``serve run specprune_ros.serving.ray_app:build checkpoint=FOLDER``; fields of :class:`Options` are
its arguments. A robot's connection stays with one replica as long as it lives, and with it the
robot's session; a replica that dies takes its sessions with it, and the robots connect to another
one, where each begins a new episode. Needs the extra ``ray``.
"""

import math
import os
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingContext

from specprune_ros.serving.protocol import NO_KEY, may_enter
from specprune_ros.serving.session import Hub, Limits

api = FastAPI()


class Options(BaseModel):
    """What the application is built with.

    ``checkpoint``: folder, on every node; or ``preset``, whose weights are random. ``replicas`` is
    fixed where ``max_replicas`` is 0; otherwise there are ``replicas`` to ``max_replicas``, one
    for each ``target_pending`` queries under way. ``gpus`` and ``cpus`` are of one replica,
    ``robots`` the most connections of one. ``window`` is in milliseconds. ``drain``: seconds that
    a replica which is to go waits for its robots to leave. The others are those of
    ``build_policy``.
    """

    model_config = ConfigDict(extra='forbid')

    checkpoint: str = ''
    preset: str = ''
    device: str = 'auto'
    dtype: str = 'auto'
    unnorm_key: str = ''
    threads: int = 0
    batch: int = 1
    window: float = 0.0
    api_key_variable: str = 'SPECPRUNE_API_KEY'
    replicas: int = 1
    max_replicas: int = 0
    target_pending: float = 4.0
    gpus: float = 0.0
    cpus: float = 1.0
    robots: int = 64
    drain: float = 5.0

    def limits(self) -> Limits:
        """What one replica takes."""
        return Limits(batch=self.batch, window=self.window / 1e3, clients=self.robots)


class _Socket:
    """A WebSocket of Starlette as a :class:`~specprune_ros.serving.session.Transport`."""

    closed = (
        WebSocketDisconnect,
        RuntimeError,
    )  # the latter where it closed while we were sending

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def recv(self) -> bytes | str:
        """The next frame."""
        message = await self._socket.receive()
        if message['type'] == 'websocket.disconnect':
            raise WebSocketDisconnect(message.get('code', 1005))
        data = message.get('bytes')
        return message.get('text', '') if data is None else data

    async def send(self, data: bytes | str) -> None:
        """Send a frame."""
        if isinstance(data, str):
            await self._socket.send_text(data)
        else:
            await self._socket.send_bytes(data)

    async def close(self, code: int, reason: str) -> None:
        """Close."""
        await self._socket.close(code, reason)

    def abort(self) -> None:
        """Nothing: leaving the handler closes it."""


@serve.deployment(name='policy')
@serve.ingress(api)
class Replica:
    """One model with the sessions of the robots that are connected to it."""

    def __init__(self, options: dict[str, Any]) -> None:
        from specprune_ros.policy.build import build_policy

        self.options = given = Options(**options)
        policy = build_policy(
            path=given.checkpoint,
            preset=given.preset,
            device=given.device,
            dtype=given.dtype,
            unnorm_key=given.unnorm_key,
            threads=given.threads,
            graphs=given.batch == 1,
        )
        self.key = os.environ.get(given.api_key_variable, '')
        replica = serve.get_replica_context().replica_id.unique_id
        self.hub = Hub(
            policy.loaded, policy.engine, limits=given.limits(), facts={'replica': replica}
        )
        self.hub.warm_up()

    @api.get('/healthz')
    async def health(self) -> Response:
        """Whether this replica can answer."""
        return Response(f'{self.hub.lost or "OK"}\n', 503 if self.hub.lost else 200)

    @api.get('/metrics')
    async def metrics(self, request: Request) -> Response:
        """Of one replica: Ray's own metrics tell of all."""
        if not may_enter(request.headers.get('authorization', ''), self.key):
            return Response(f'{NO_KEY}\n', 401)
        return Response(self.hub.metrics.text(), media_type=self.hub.metrics.content_type)

    @api.websocket('/{path:path}')
    async def connect(self, socket: WebSocket, path: str = '') -> None:
        """A robot, until it goes."""
        if not may_enter(socket.headers.get('authorization', ''), self.key):
            await socket.close(1008, NO_KEY)
            return
        if 'origin' in socket.headers:  # a page in somebody's browser; a robot names none
            await socket.close(1008, 'not for browsers')
            return
        await socket.accept()
        client = socket.client
        await self.hub.serve(_Socket(socket), f'{client.host}:{client.port}' if client else '?')

    def check_health(self) -> None:
        """Ray replaces a replica whose device is lost."""
        if self.hub.lost:
            raise RuntimeError(self.hub.lost)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What :class:`ByPending` decides by."""
        return {'pending': float(self.hub.pending)}


class ByPending:
    """As many replicas as there are ``target`` queries under way. Ray's own measure would count
    connections, which stay open whether or not anything is requested.
    """

    def __init__(self, target: float = 4.0) -> None:
        self.target = target

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and nothing to remember."""
        pending = sum((context.aggregated_metrics or {}).get('pending', {}).values())
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(math.ceil(pending / self.target), low), high), {}


def build(args: Options) -> Application:
    """The application, for ``serve run`` and ``serve deploy``. Raises ``ValueError`` unless it is
    either a checkpoint or a preset.
    """
    if bool(args.checkpoint) == bool(args.preset):
        raise ValueError(
            'want one of checkpoint=FOLDER and preset=NAME (random weights: its actions mean '
            'nothing)'
        )
    resources: dict[str, Any] = {'num_cpus': args.cpus}
    if args.gpus:
        resources['num_gpus'] = args.gpus
    scale: dict[str, Any] = {'num_replicas': args.replicas}
    if args.max_replicas:
        scale = {
            'num_replicas': 'auto',
            'autoscaling_config': {
                'min_replicas': args.replicas,
                'max_replicas': args.max_replicas,
                'policy': {
                    'policy_function': 'specprune_ros.serving.ray_app:ByPending',
                    'policy_kwargs': {'target': args.target_pending},
                },
            },
        }
    return Replica.options(
        ray_actor_options=resources,
        max_ongoing_requests=args.robots,
        graceful_shutdown_timeout_s=args.drain,
        **scale,
    ).bind(args.model_dump())
