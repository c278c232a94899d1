"""What one query leaves for the next, and every rule that makes the policy forget it.

The previous query's attention is a prior for this one only while the world went on continuously.
Whether it did is judged here; whoever knows of another reason requests a reset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from specprune_ros.policy.image_buffer import Frame, ImageBuffer, Preprocess
from specprune_ros.policy.observation import Observation
from specprune_ros.pruning.controller import ControllerState

if TYPE_CHECKING:
    from torch import Tensor

    from specprune_ros.models.config import PolicyConfig
    from specprune_ros.models.decoder import KVCache
    from specprune_ros.pruning.params import PruningParams

SECOND_NS = 1_000_000_000
HISTORY_STEPS = 20  # control steps of images kept for V_dynamic
LATE = 1.5  # times the planned time between two queries that is no pause yet


def history_for(step_dt: float, preprocess: Preprocess | None = None) -> ImageBuffer:
    """The images of a policy whose control step takes ``step_dt`` seconds."""
    # Two images a control step are as many as a look back by control steps can tell apart.
    return ImageBuffer(
        round(HISTORY_STEPS * step_dt * SECOND_NS), round(0.45 * step_dt * SECOND_NS), preprocess
    )


def gap_limit(
    params: PruningParams, config: PolicyConfig, took: float, query_period: float
) -> float:
    """Seconds without a query beyond which there was a pause.

    That a query ``took`` long, that the rows of a chunk are run first, or that the user wants
    ``query_period`` seconds between queries is none.
    """
    planned = max(config.rows_run / config.control_hz, query_period)
    return max(params.reset_gap, 3.0 * took, LATE * planned)


def prior_key(params: PruningParams) -> tuple[object, ...]:
    """What the scores carried from query to query mean: who observed where, and which rows."""
    return (
        params.pruner,
        params.layers_global,
        params.rows_global,
        params.update_layers,
        params.rows_layer,
        params.confidence,
        params.confidence_normalised,
        params.confidence_when,
    )


@dataclass(frozen=True)
class LastQuery:
    """What is kept of an observation until the next: of its images their places in the history,
    which hold them as the policy sees them. Pixels as they came may be a hundred times as large.
    """

    stamp_ns: int
    instruction: str
    position: np.ndarray | None
    frames: dict[str, Frame]
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def of(observation: Observation, history: ImageBuffer) -> LastQuery:
        """Of an observation whose images the history was given."""
        images = observation.images.items()
        return LastQuery(
            observation.stamp_ns,
            observation.instruction,
            observation.position,
            {camera: history.of(camera, image) or Frame(image) for camera, image in images},
            {camera: image.pixels.shape for camera, image in images},
        )


@dataclass
class Memory:
    """State between queries. Owned by the thread that runs the policy; only ``history`` is shared.

    ``carry`` is what the pruner's last pass returned, ``cache`` the last pass's keys and values
    (kept only for pruners that reuse them), ``episode`` counts resets, ``queries`` the queries
    since. ``displacement`` is the net end-effector translation from the previous query to the one
    under way, metres (``None`` unknown). ``last`` is of the previous query, ``answered`` of the
    last one that the model was run for: ``cache`` is of its images.
    """

    history: ImageBuffer
    gap_limit_s: float = 2.0
    carry: dict[str, Tensor] = field(default_factory=dict)
    cache: KVCache | None = None
    controller: ControllerState = field(default_factory=ControllerState)
    episode: int = 0
    queries: int = 0
    since_dense: int = 0
    displacement: float | None = None
    last: LastQuery | None = None
    answered: LastQuery | None = None
    _method: tuple[object, ...] = ()
    _request: str | None = 'start'

    def request_reset(self, reason: str) -> None:
        """Ask for a reset before the next query (any thread)."""
        self._request = reason

    def open(self, observation: Observation, method: tuple[object, ...]) -> str | None:
        """Begin a query: forget where continuity is broken. Returns why, or ``None``.

        Rules, in order: a reset that was requested (start, service, activation), time going
        backwards, a gap longer than ``gap_limit_s``, other cameras or another image size; these
        forget the past images as well. Then another instruction, or another ``method`` (the
        pruner and what it observes, which is what the carried scores mean): the images stay
        true.
        """
        # Taken first: a request that comes in meanwhile is for the next query.
        request, self._request = self._request, None
        reason, images_too = self._broken(observation, method, request)
        if reason is not None:
            self.carry = {}
            self.cache = None
            self.controller = ControllerState()
            self.episode += 1
            self.queries = 0
            self.since_dense = 0
            self.last = self.answered = None
        if images_too:
            self.history.clear()
        self.displacement, before = None, self.last
        if before and before.position is not None and observation.position is not None:
            self.displacement = float(np.linalg.norm(observation.position - before.position))
        self._method = method
        for camera, image in observation.images.items():
            self.history.push(camera, image)
        return reason

    def _broken(
        self, observation: Observation, method: tuple[object, ...], request: str | None
    ) -> tuple[str | None, bool]:
        """Why continuity is broken, and whether the past images are worthless too."""
        if request is not None:
            return request, True
        last = self.last
        if last is None:
            return 'start', True
        elapsed = (observation.stamp_ns - last.stamp_ns) / SECOND_NS
        if elapsed < 0:
            return f'time went back by {-elapsed:.2f} s', True
        if elapsed > self.gap_limit_s:
            return f'no query for {elapsed:.2f} s', True
        if list(observation.images) != list(last.shapes):
            return 'other cameras', True
        for camera, image in observation.images.items():
            if image.pixels.shape != last.shapes[camera]:
                return f"camera '{camera}' changed its image size", True
        if observation.instruction != last.instruction:
            return 'new instruction', False
        if method != self._method:
            return 'the pruner or what it observes changed', False
        return None, False

    def follows(self, observation: Observation, method: tuple[object, ...] | None = None) -> bool:
        """Whether a query on this observation would continue the last one; changes nothing.
        ``method`` as in :meth:`open`, by default the last query's.
        """
        method = self._method if method is None else method
        return self._request is None and self._broken(observation, method, None)[0] is None

    def refresh(self, carry: dict[str, Tensor]) -> None:
        """Take what a dense pass since the last query has made anew."""
        self.carry = carry
        self.since_dense = 0

    def close(
        self,
        observation: Observation,
        carry: dict[str, Tensor],
        cache: KVCache | None,
        dense: bool,
        ran: bool = True,
    ) -> None:
        """End a query that succeeded: what it saw and attended to is the next one's past. Where
        the model was not ``ran``, keys and values stay those of an earlier one's images.
        """
        self.carry = carry
        self.last = LastQuery.of(observation, self.history)
        if ran:
            self.cache, self.answered = cache, self.last
        self.queries += 1
        self.since_dense = 0 if dense else self.since_dense + 1
