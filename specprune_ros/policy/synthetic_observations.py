"""Images to measure with, and the device they are measured on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from specprune_ros.policy.device import settle
from specprune_ros.policy.observation import CameraImage, Observation
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
        images = {}
        stamp = round(step * policy.step_dt * 1e9)
        for number, camera in enumerate(config.cameras):
            shift = 2 * step // STEPS_PER_QUERY % 64 if number else 0
            pixels = big[number, shift : shift + size, shift : shift + size].copy()
            left = 20 + step % (size // 2)
            pixels[size // 3 : size // 3 + 40, left : left + 40] = (200, 30, 30)
            images[camera] = CameraImage(pixels, stamp)
            policy.history.push(camera, images[camera])
        yield Observation(
            images=images,
            instruction=instruction,
            proprio=proprio,
            speed=SpeedSample(0.5, 0.5, 0.0, 'made up'),
            position=np.array([0.0005 * step * step, 0.0, 0.3]),
        )
        step += STEPS_PER_QUERY


def copies_ms(policy: Policy, observation: Observation, times: int = 20) -> float:
    """Median milliseconds of what crosses between host and device: images up, actions down.

    Timed alone; in a query the two are parts of the stages preprocess and head. Near zero on a
    CPU.
    """
    place = next(policy.loaded.model.parameters()).device
    chunk = torch.zeros(policy.config.chunk, policy.config.action_dim, device=place)
    took = []
    for _ in range(times):
        settle(place)
        begin = time.perf_counter()
        for image in observation.images.values():
            torch.from_numpy(image.pixels).to(place)
        chunk.cpu()
        settle(place)
        took.append(time.perf_counter() - begin)
    return 1000 * float(np.median(took))
