"""A policy server in this process, on a port of its own, and observations to ask it with."""

import asyncio
import threading
from contextlib import contextmanager

import numpy as np

from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.serving.server import Address, PolicyServer
from specprune_ros.serving.session import Hub

STEP = 50_000_000  # ns
CAMERAS = ('agent', 'wrist')
INSTRUCTION = 'put the red cube on the blue plate'


class Running:
    """A server that runs in a thread; ``stop`` ends it as a signal would."""

    def __init__(self, hub, address):
        self.hub, self.address = hub, address
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.loop.run_until_complete(self._main())
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ready.set()

    async def _main(self):
        async with PolicyServer(self.hub, self.address) as server:
            self.port = server.port
            self._ready.set()
            await self._stop.wait()

    def start(self):
        self._thread.start()
        self._ready.wait(20)
        if self._error is not None:
            raise self._error
        scheme = 'wss' if self.address.certificate else 'ws'
        self.url = f'{scheme}://127.0.0.1:{self.port}'
        self.http = f'http://127.0.0.1:{self.port}'
        return self

    def stop(self):
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def serving(loaded, engine, limits=None, params=None, **address):
    """A :class:`Running` server of a model."""
    running = Running(Hub(loaded, engine, params, limits), Address(port=0, **address)).start()
    try:
        yield running
    finally:
        running.stop()


def observation(
    step, robot=0, speed=0.5, size=128, instruction=INSTRUCTION, cameras=CAMERAS, proprio=8
):
    """What robot number ``robot`` sees at a control step: nobody else's images."""
    rng = np.random.default_rng(1000 + robot)
    images = {}
    for camera in cameras:
        pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        pixels[:40, : 4 * (step % 20 + 1)] = 255  # something moves
        images[camera] = CameraImage(pixels, 10**12 + step * STEP)
    state = 0.1 * rng.standard_normal(8)
    return Observation(
        images,
        instruction,
        proprio=state[:proprio] if proprio else None,
        speed=SpeedSample(speed, 0.0, 0.0),
        position=state[:3] + [0.002 * step, 0.0, 0.0],
    )


def same(first, second):
    """Whether two results are the same to the last bit, but for the times they took."""
    return bool(
        (first.actions == second.actions).all()
        and first.mode == second.mode
        and first.tokens == second.tokens
        and first.prior_recall == second.prior_recall
        and first.history_age == second.history_age
        and first.reset == second.reset
    )
