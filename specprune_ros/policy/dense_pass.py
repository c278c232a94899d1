"""Dense passes beside the queries: between two of them for the prior, or to compare with one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.decoder import Cancelled
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import id_rows
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.forward_step import StepInputs
from specprune_ros.policy.memory import Memory, prior_key
from specprune_ros.policy.observation import Observation
from specprune_ros.policy.result import Refreshes
from specprune_ros.pruning.budget import ceil_count
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.metrics import action_deviation, kept_recall
from specprune_ros.pruning.params import REFERENCE_GRID, PruningParams

if TYPE_CHECKING:
    from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine


class SlackRefresh:
    """Makes the prior anew by a dense pass between two queries, and keeps the account of it.

    ``account``: the refreshes since the last query. ``took``: seconds of the last dense passes,
    those of queries included; one given up counts where it took longer than all of them.
    """

    def __init__(self, loaded: LoadedModel, engine: EagerEngine | CudaGraphEngine) -> None:
        self._loaded, self._engine = loaded, engine
        self.account = Refreshes()
        self.took: deque[float] = deque(maxlen=8)

    def skip(self) -> None:
        """The time did not suffice: the oldest dense pass no longer counts, a lone one a fifth
        less. What was slow once does not keep refreshes off for good.
        """
        if self.took:
            oldest = self.took.popleft()
            if not self.took:
                self.took.append(0.8 * oldest)

    @torch.inference_mode()
    def run(
        self,
        observation: Observation,
        params: PruningParams,
        memory: Memory,
        cancelled: Callable[[], bool],
    ) -> bool:
        """One dense pass, whose attention becomes the prior in ``memory``; returns whether it
        ended. ``observation`` is left alone where it does not continue the last query's.
        """
        loaded, start, so_far = self._loaded, time.perf_counter(), self.account
        if not memory.follows(observation, prior_key(params)):
            return False
        # The engine may use the place of what it gave again.
        carry = {name: value.clone() for name, value in memory.carry.items()}
        # Held here until the device is done with them.
        seen = [memory.history.preprocessed(*shown) for shown in observation.images.items()]
        prompt, layout, proprio = loaded.encode(
            observation.instruction, observation.proprio, len(seen)
        )
        inputs = StepInputs(
            images=torch.stack(seen),
            prompt=prompt,
            ids=id_rows(prompt.ids, self._engine.device),
            proprio=proprio,
            noise=loaded.model.noise(seed=memory.queries),
            seed=memory.queries,
        )
        try:
            outputs = self._engine.run(
                inputs.graph_key(layout, params, Mode.DENSE), inputs, cancelled
            )
        except Cancelled:
            self.account = replace(so_far, given_up=so_far.given_up + 1)
            took = time.perf_counter() - start
            if took > max(self.took, default=0.0):
                self.took.append(took)
            return False
        memory.refresh({**carry, 'prior': outputs.device_outputs.carry['prior']})
        took = time.perf_counter() - start
        self.took.append(took)
        self.account = replace(
            so_far,
            done=so_far.done + 1,
            flops=so_far.flops + outputs.device_outputs.metadata.flops,
            seconds=so_far.seconds + took,
        )
        return True


def compare_with_dense(
    loaded: LoadedModel,
    inputs: StepInputs,
    layout: TokenLayout,
    params: PruningParams,
    proprio: np.ndarray | None,
    actions: np.ndarray,
    left: Tensor | None,
) -> tuple[np.ndarray, float | None]:
    """Largest |pruned - dense| of a query's ``actions`` per dimension, and the share of what dense
    attends to most that was kept, on the same observation. ``left``: patch ids the query ended
    with (``None``: all), ``proprio`` the robot's own.
    """
    left = None if left is None else left.clone()  # an engine may use its place again
    plain = replace(inputs, reference_images=None, carry={}, cache=None)
    key = plain.graph_key(layout, params.replace(pruner='specprune'), Mode.DENSE)
    outputs = EagerEngine(loaded).run(key, plain)
    dense = loaded.robot_actions(outputs.actions, proprio)
    deviation = action_deviation(torch.from_numpy(actions), torch.from_numpy(dense)).numpy()
    scores = outputs.device_outputs.carry.get('prior')
    if scores is None or not params.k_global:
        return deviation, None
    everything = torch.arange(layout.vision_tokens, device=scores.device)
    each = ceil_count(params.k_global * layout.patches / REFERENCE_GRID)
    count = min(each * layout.cameras, len(everything))
    return deviation, kept_recall(everything if left is None else left, scores, count)
