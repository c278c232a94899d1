"""The policy as an runner of the simulated episodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.result import PolicyResult
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.sim.evaluation.episode import EpisodeObservation


class PolicyRunner:
    """Asks a :class:`Policy` as the ROS node would; ``seen`` receives every result.

    Call :meth:`reset` before each episode: memory must not reach over. Give :meth:`watch` to
    :func:`.episode.play`, so that images between queries reach the frame history too.
    """

    def __init__(
        self, policy: Policy, seen: Callable[[PolicyResult], None] = lambda result: None
    ) -> None:
        self.policy, self.seen = policy, seen
        self._begin, self._last = 0, 0

    def reset(self) -> None:
        """Forget the previous episode; its clock goes on, since time never runs backwards."""
        self._begin = self._last + 10 * SECOND_NS
        self.policy.reset('new episode')

    def watch(self, observation: EpisodeObservation) -> dict[str, CameraImage]:
        """Put images into the policy's frame history."""
        self._last = self._begin + round(observation.time * SECOND_NS)
        images = {
            name: CameraImage(pixels, self._last) for name, pixels in observation.images.items()
        }
        for name, image in images.items():
            self.policy.history.push(name, image)
        return images

    def refresh(self, observation: EpisodeObservation) -> None:
        """Make the prior anew in the slack, where the policy's parameters request it."""
        self.policy.refresh(self._observation(observation), lambda: False)

    def __call__(self, observation: EpisodeObservation) -> np.ndarray:
        """Actions ``[K, 7]`` in metres, radians and gripper opening."""
        result = self.policy.act(self._observation(observation))
        self.seen(result)
        return result.actions

    def _observation(self, observation: EpisodeObservation) -> Observation:
        linear, angular = observation.twist[:3], observation.twist[3:]
        return Observation(
            images=self.watch(observation),
            instruction=observation.instruction,
            proprio=observation.proprio,
            speed=SpeedSample(
                v_t=float(math.hypot(*linear)),
                v_r=float(math.hypot(*angular)),
                dz=float(linear[2]),
                source='simulator',
            ),
            position=observation.proprio[:3],
        )
