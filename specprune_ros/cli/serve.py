"""``specprune serve``: a policy for robots elsewhere, on openpi's WebSocket protocol; no ROS."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from specprune_ros.cli import options

if TYPE_CHECKING:
    from specprune_ros.serving.server import Address


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'serve',
        parents=[
            options.checkpoint(),
            options.device(),
            options.param('a pruning parameter that sessions begin with, e.g. alpha=0.6'),
        ],
        help='answer robots over a WebSocket (openpi protocol); needs no ROS',
    )
    parser.add_argument(
        'checkpoint', nargs='?', type=Path, help='folder (default: the weights that are shipped)'
    )
    parser.add_argument('--preset', default='', help='instead of a checkpoint, random weights')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 listens on every network')
    parser.add_argument('--port', type=int, default=8000, help='0 takes a free one')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: all cores but one')
    parser.add_argument(
        '--image-key',
        action='append',
        default=[],
        metavar='CAMERA=KEY',
        help="key of a camera's image in requests, where none of the usual ones is meant",
    )
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        help='most queries that run together; 1: one after the other, on a GPU by CUDA graphs',
    )
    parser.add_argument(
        '--window',
        type=float,
        default=0.0,
        metavar='MS',
        help='how long a query waits for others at most; 0: only those that wait anyway',
    )
    parser.add_argument(
        '--clients', type=int, default=256, help='most connections, and robots of them all'
    )
    parser.add_argument('--queue', type=int, default=64, help='most queries under way')
    parser.add_argument('--max-message', type=float, default=32, metavar='MIB')
    parser.add_argument('--max-side', type=int, default=4096, metavar='PIXELS')
    parser.add_argument('--certificate', type=Path, help='PEM file; with --private-key: TLS')
    parser.add_argument('--private-key', type=Path, help='PEM file')
    parser.add_argument(
        '--grace', type=float, default=10.0, metavar='S', help='for replies under way at the end'
    )
    parser.add_argument('--json', type=Path, help='write the address here once it answers')
    parser.epilog = 'SPECPRUNE_API_KEY: a key that clients must send (Authorization: Api-Key KEY).'
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0 after SIGINT or SIGTERM, 1 where it cannot begin or lost its device."""
    import asyncio

    from specprune_ros.cli.output import working, write_json
    from specprune_ros.models.checkpoint.files import CheckpointError
    from specprune_ros.pruning.params import ParamError
    from specprune_ros.serving.protocol import KEY_VARIABLE
    from specprune_ros.serving.server import Address
    from specprune_ros.serving.server import run as run_server

    def leave(number: int, frame: FrameType | None) -> None:
        # Until it serves nothing is there to be undone, and whatever is just being imported may
        # turn an exception into another one.
        print('interrupted', file=sys.stderr, flush=True)
        os._exit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGINT, signal.SIGTERM)}
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', stream=sys.stderr)
    logging.getLogger('websockets').setLevel(logging.WARNING)
    address = Address(
        host=args.host,
        port=args.port,
        key=os.environ.get(KEY_VARIABLE, ''),
        certificate=args.certificate,
        private_key=args.private_key,
        grace=args.grace,
    )
    try:
        address.tls()  # before a model is loaded
        hub = _hub(args)
        with working('warming up'):
            seconds = hub.warm_up()

        def ready(server: Any) -> None:
            url = _url(address, server.port)
            print(
                f'{url}: a query takes {1e3 * seconds:.0f} ms, {hub.engine.status}',
                flush=True,
            )
            write_json(
                args.json,
                {
                    'url': url,
                    'query_ms': 1e3 * seconds,
                    'engine': hub.engine.status,
                },
            )

        return asyncio.run(run_server(hub, address, ready))
    except (CheckpointError, ParamError, ValueError, OSError) as error:
        print(f'specprune serve: {error}', file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hub(args: argparse.Namespace) -> Any:
    from specprune_ros.policy.build import build_policy
    from specprune_ros.pruning.params import PruningParams
    from specprune_ros.serving.session import Hub, Limits
    from specprune_ros.sim.training.export import SHIPPED

    if args.checkpoint and args.preset:
        raise ValueError('take one of a checkpoint folder and --preset')
    path = args.checkpoint or ('' if args.preset else SHIPPED)
    changes = options.parse_changes(args.param)
    params = PruningParams.from_mapping(changes)
    keys = dict(_pair(item) for item in args.image_key)
    policy = build_policy(
        path=str(path),
        preset=args.preset or 'tiny',
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        unnorm_key=args.unnorm_key or '',
        platform=args.platform or '',
        params=params,
        graphs=args.batch == 1,
        progress=True,
    )
    unknown = sorted(set(keys) - set(policy.config.cameras))
    if unknown:
        raise ValueError(
            f'--image-key: no camera {unknown[0]}: {", ".join(policy.config.cameras)}'
        )
    limits = Limits(
        batch=args.batch,
        window=args.window / 1e3,
        clients=args.clients,
        queue=args.queue,
        message=round(args.max_message * 2**20),
        side=args.max_side,
    )
    return Hub(policy.loaded, policy.engine, params, limits, keys)


def _url(address: Address, port: int) -> str:
    scheme = 'wss' if address.certificate else 'ws'
    host = f'[{address.host}]' if ':' in address.host else address.host  # IPv6
    return f'{scheme}://{host}:{port}'


def _pair(text: str) -> tuple[str, str]:
    camera, separator, key = text.partition('=')
    if not separator or not key:
        raise ValueError(f'--image-key {text}: want CAMERA=KEY')
    return camera, key
