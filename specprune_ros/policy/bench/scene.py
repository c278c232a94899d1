"""Pictures to measure with, and the device they are measured on."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from specprune_ros.policy.bench.ceilings import settle
from specprune_ros.policy.observation import Observation, Picture
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.controller import SpeedSample

STEPS_PER_QUERY = 8


def observations(policy: Policy, instruction: str, seed: int) -> Iterator[Observation]:
    """A made-up scene: textured background, a block that moves, a wrist camera that drifts."""
    size, config = policy.config.image_size, policy.config
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(len(config.cameras), 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=size // 4, mode='bilinear')
    big = smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    proprio = np.zeros(config.proprio_dim) if config.proprio_dim else None
    step = 0
    while True:
        pictures = {}
        stamp = round(step * policy.step_dt * 1e9)
        for number, camera in enumerate(config.cameras):
            shift = 2 * step // STEPS_PER_QUERY % 64 if number else 0
            pixels = big[number, shift : shift + size, shift : shift + size].copy()
            left = 20 + step % (size // 2)
            pixels[size // 3 : size // 3 + 40, left : left + 40] = (200, 30, 30)
            pictures[camera] = Picture(pixels, stamp)
            policy.history.push(camera, pictures[camera])
        yield Observation(
            pictures=pictures,
            instruction=instruction,
            proprio=proprio,
            speed=SpeedSample(0.5, 0.5, 0.0, 'made up'),
            position=np.array([0.0005 * step * step, 0.0, 0.3]),
        )
        step += STEPS_PER_QUERY


def copies_ms(policy: Policy, observation: Observation, times: int = 20) -> float:
    """Median milliseconds of what crosses between host and device: pictures up, actions down.

    Timed alone; in a query the two are parts of the stages preprocess and head. Near zero on a
    CPU.
    """
    place = next(policy.loaded.model.parameters()).device
    chunk = torch.zeros(policy.config.chunk, policy.config.action_dim, device=place)
    took = []
    for _ in range(times):
        settle(place)
        begin = time.perf_counter()
        for picture in observation.pictures.values():
            torch.from_numpy(picture.pixels).to(place)
        chunk.cpu()
        settle(place)
        took.append(time.perf_counter() - begin)
    return 1000 * float(np.median(took))


def device_name(device: str) -> str:
    """The device and what it is, e.g. ``cpu (AMD EPYC ..., 2 threads)``."""
    if device.startswith('cuda'):
        return f'{device} ({torch.cuda.get_device_name(device)})'
    name = platform.processor() or platform.machine()
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    except OSError:
        pass
    return f'{device} ({name}, {torch.get_num_threads()} threads)'
