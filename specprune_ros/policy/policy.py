"""Model, pruner and memory together: the package's one public Python interface."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import Cancelled, KVCache
from specprune_ros.models.families.pi0 import FlowPolicy, Guide
from specprune_ros.models.families.pi0_robots import model_actions, model_state, robot_actions
from specprune_ros.models.flops import dense_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.policy.action_extrapolator import ActionExtrapolator
from specprune_ros.policy.constants import MAX_ACTION
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.forward_step import (
    DeviceOutputs,
    GraphKey,
    PassMetadata,
    StepInputs,
    StepOutputs,
    compares,
)
from specprune_ros.policy.memory import SECOND_NS, Memory, history_for, prior_key
from specprune_ros.policy.motion_range import motion_range
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.real_time_chunking import Continuation, guide
from specprune_ros.policy.result import (
    Overlay,
    PolicyError,
    PolicyResult,
    Refreshes,
    StageTimes,
    Thresholds,
    TokenCounts,
)
from specprune_ros.pruning.controller import (
    Controller,
    Decision,
    MotionRange,
    history_offset,
    in_si,
)
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.metrics import action_deviation, kept_recall
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import check_params, pruner
from specprune_ros.pruning.similarity import changed_share, patch_cosine


class Policy:
    """A vision-language-action policy with token pruning: :meth:`act` turns looks into motions.

    ``loaded`` is a model with its tokenizer, preprocessing and statistics. :meth:`act` belongs to
    one thread; :attr:`history`, :meth:`set_params` and :meth:`reset` may be used from any.
    ``max_normalised_action`` is the largest normalised action that is believed (-1 to 1 spans the
    training data). ``engine`` runs the queries (eagerly by default).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        params: PruningParams | None = None,
        max_normalised_action: float = 10.0,
        engine: EagerEngine | CudaGraphEngine | None = None,
    ) -> None:
        self.loaded = loaded
        self.config: PolicyConfig = loaded.config
        self.step_dt = 1.0 / self.config.control_hz
        self.history = history_for(self.step_dt, self._preprocess)
        self.max_normalised_action = max_normalised_action
        self.measure_deviation = False
        self.wants_overlay = True
        self._memory = Memory(self.history)
        self.motion = motion_range(loaded)
        self._controller = Controller(self.motion)
        self._extrapolator = ActionExtrapolator()
        self._took = 0.0
        self._actions: np.ndarray | None = None  # the last chunk
        self._dense_took: deque[float] = deque(maxlen=8)
        self._refreshes = Refreshes()
        self._dense: tuple[TokenLayout | None, int] = (None, 1)
        self._engine = engine or EagerEngine(loaded)
        self._device = self._engine.device
        self._swap = threading.Lock()
        self._in_force = self._latest = _InForce.of(params or PruningParams(), 1, self.motion)

    @property
    def proprio_center(self) -> np.ndarray | None:
        """The middle of the proprioception that the checkpoint was trained on, or ``None``."""
        return self.loaded.statistics.proprio_center

    @property
    def params(self) -> PruningParams:
        """The parameters the next query runs with."""
        return self._in_force.params

    @property
    def thresholds(self) -> Thresholds:
        """The controller's numbers in SI, of the parameters in force."""
        return self._in_force.thresholds

    @property
    def params_version(self) -> int:
        """Counts changes of the parameters, from 1."""
        return self._in_force.version

    @property
    def pending_version(self) -> int | None:
        """The version being prepared while the one before still answers, ``None`` for none."""
        version = self._latest.version
        return version if version > self._in_force.version else None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    @property
    def notes(self) -> list[str]:
        """What the user should know of the model."""
        return self.loaded.notes

    @property
    def engine(self) -> Any:
        """What runs the queries; policies of one model may share it."""
        return self._engine

    @property
    def engine_status(self) -> str:
        """What runs the queries, in a few words."""
        return self._engine.status

    @property
    def engine_trouble(self) -> str:
        """Why the last query was not run as it was meant to be; empty where it was."""
        return self._engine.trouble

    @property
    def episode(self) -> int:
        """Counts resets of the memory."""
        return self._memory.episode

    def layout(self, instruction: str = 'move') -> TokenLayout:
        """The token layout of a query with this instruction."""
        return self.loaded.model.layout(self.loaded.tokenizer.encode(instruction))

    def check_cameras(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless the model reads images of these cameras, in this order."""
        self.config.check_cameras(names)

    def check_params(self, params: PruningParams) -> None:
        """Raise ``ParamError`` where these parameters and this model cannot go together."""
        check_params(params, self.layout())

    def set_params(self, params: PruningParams, checked: bool = False) -> int:
        """Use ``params`` from the next query on; returns their version. Raises ``ParamError``
        (not where they are ``checked`` already).

        An engine that must prepare for them leaves the old ones in force until it has.
        """
        if not checked:
            self.check_params(params)
        with self._swap:
            self._latest = latest = _InForce.of(params, self._latest.version + 1, self.motion)
        self._engine.prepare(params, None, partial(self._use, latest))
        return latest.version

    def _use(self, latest: _InForce) -> None:
        with self._swap:
            if latest.version > self._in_force.version:
                self._in_force = latest

    def reset(self, reason: str = 'requested') -> None:
        """Forget everything before the next query."""
        self._memory.request_reset(reason)

    def close(self) -> None:
        """End what runs in the background."""
        self.history.stop_prefetch()
        self._engine.close()

    def warm_up(self, instruction: str = 'warm up') -> float:
        """Let the engine prepare for ``instruction``, then run two queries on grey images and
        forget them; returns the second's seconds.
        """
        prepared, latest = threading.Event(), self._latest

        def ready() -> None:
            self._use(latest)
            prepared.set()

        prompt = self.loaded.tokenizer.encode(instruction)
        self._engine.prepare(latest.params, prompt, ready)
        prepared.wait()
        size = self.config.image_size
        grey = np.full((size, size, 3), 128, np.uint8)
        for stamp in (0, round(self.step_dt * SECOND_NS)):
            times = self.act(self._blank(CameraImage(grey, stamp), instruction)).times
        self.history.clear()
        self._memory = Memory(self.history)
        return times.total

    def _blank(self, image: CameraImage, instruction: str) -> Observation:
        dim = self.config.proprio_dim
        return Observation(
            images={camera: image for camera in self.config.cameras},
            instruction=instruction,
            proprio=np.zeros(dim) if dim else None,
        )

    @torch.inference_mode()
    def act(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        continuation: Continuation | None = None,
        details: bool = False,
    ) -> PolicyResult:
        """One query.

        ``noise`` is what a diffusion head ``[K, D]`` or a flow sampler ``[K, W]`` starts from; by
        default it is drawn, from the number of the query. ``continuation``: the chunk that a flow
        policy is to go on from (real-time chunking). With ``details`` it runs eagerly, and the
        result holds everything it computed.

        Raises ``ObservationError`` for an observation that does not fit the model and
        :class:`PolicyError` for actions that are not finite or absurd; memory is then forgotten.
        """
        observation = self._checked(observation)
        if continuation is not None and self.config.flow is None:
            raise ValueError('only a flow policy (pi0, pi0.5) can go on from a chunk')
        try:
            query = self._prepare(observation, noise, continuation)
            outputs = self._run(query, details)
            return self._report(query, outputs)
        except Exception as error:
            # Half a query must not be the next one's past.
            self.reset(f'after an error: {error}')
            raise

    @property
    def refreshes_in_slack(self) -> bool:
        """Whether :meth:`refresh` between two queries is of use."""
        params = self.params
        useful = getattr(pruner(params.pruner), 'carries_prior', False)
        return useful and params.refresh_when == 'slack' and bool(self._memory.carry)

    @property
    def dense_seconds(self) -> float:
        """What a dense query took, the longest of the last few; 0 before the first."""
        return max(self._dense_took, default=0.0)

    @torch.inference_mode()
    def refresh(self, observation: Observation, cancelled: Callable[[], bool]) -> bool:
        """Between two queries: a dense pass on ``observation``, whose attention is the next
        query's prior. Returns whether it ended.

        ``cancelled`` is called between the decoder's layers (on a GPU only before the pass: a
        graph is replayed whole). An observation that does not continue the last query's is left
        alone, as are policies that gain nothing by it.
        """
        memory, params, start = self._memory, self.params, time.perf_counter()
        if not self.refreshes_in_slack or cancelled():
            return False
        observation = self._checked(observation)
        if not memory.follows(observation):
            return False
        # Held here until the device is done with them.
        seen = [self.history.preprocessed(*shown) for shown in observation.images.items()]
        proprio = self._proprio(observation)
        prompt = self._prompt(observation.instruction, proprio)
        inputs = StepInputs(
            images=torch.stack(seen),
            prompt=prompt,
            ids=id_rows(prompt.ids, self._device),
            proprio=proprio,
            noise=self._noise(None, memory.queries),
            seed=memory.queries,
        )
        key = inputs.graph_key(self._layout(prompt, len(seen)), params, Mode.DENSE)
        so_far = self._refreshes
        try:
            outputs = self._engine.run(key, inputs, cancelled)
        except Cancelled:
            self._refreshes = replace(so_far, given_up=so_far.given_up + 1)
            return False
        memory.refresh(outputs.device_outputs.carry['prior'])
        took = time.perf_counter() - start
        self._dense_took.append(took)
        self._refreshes = replace(
            so_far,
            done=so_far.done + 1,
            flops=so_far.flops + outputs.device_outputs.metadata.flops,
            seconds=so_far.seconds + took,
        )
        return True

    def _checked(self, observation: Observation) -> Observation:
        """The observation as the model takes it: for a flow policy, which takes any of its
        cameras, the images under its names and in its order. Raises ``ObservationError``.
        """
        if self.config.flow is None:
            observation.check(len(self.config.cameras), self.config.proprio_dim)
            return observation
        observation.check(len(observation.images), self.config.proprio_dim)
        names = {name: self.config.camera(name) for name in observation.images}
        strange = [name for name, camera in names.items() if camera is None]
        if strange or len(set(names.values())) != len(names) or not names:
            known = [*self.config.cameras, *(alias for alias, _ in self.config.camera_aliases)]
            raise ObservationError(
                f'cameras given: {", ".join(names) or "none"}; the model knows '
                f'{", ".join(known)}, each once'
            )
        given = {names[name]: image for name, image in observation.images.items()}
        images = {camera: given[camera] for camera in self.config.cameras if camera in given}
        return replace(observation, images=images)

    def prepare_reference(
        self, at_ns: int, cancelled: Callable[[], bool], displacement: float | None = None
    ) -> None:
        """Preprocess the past images that a query at ``at_ns`` will probably compare with.

        Which they are depends on how far the end effector comes until then: ``displacement`` in
        metres, by default that of the last chunk, and a control step to either side.
        """
        if not self._in_force.compares or not self._memory.queries:
            return
        if displacement is None and self._actions is not None:
            displacement = self._translation(self._actions)
        steps = history_offset(displacement, self.params, self.motion)
        wanted = at_ns - round(steps * self.step_dt * SECOND_NS)
        margin = round(self.step_dt * SECOND_NS)
        for camera, frame in self.history.between(wanted - margin, wanted + margin):
            if cancelled():
                return
            frame.get_preprocessed(self._preprocess, camera)

    def _prepare(
        self,
        observation: Observation,
        noise: np.ndarray | None,
        continuation: Continuation | None,
    ) -> _Query:
        """Decide the mode and gather the tensors."""
        start, force, memory = time.perf_counter(), self._in_force, self._memory
        params = force.params
        # A slow model must not take its own slowness for a pause.
        memory.gap_limit_s = max(params.reset_gap, 3.0 * self._took)
        reset = memory.open(observation, force.prior_key)
        decision = self._controller.decide(observation.speed, params, memory.controller)
        memory.controller = decision.state
        query = _Query(observation, force, reset, decision.reason, start)
        if params.scheduler == 'ridge' and self._extrapolate(query):
            return query

        seen = [self.history.preprocessed(*shown) for shown in observation.images.items()]
        images, displacement = torch.stack(seen), memory.displacement(observation)
        reference = None
        if force.compares:
            query.history_steps = history_offset(displacement, params, self.motion)
            past = self._past(query)
            reference = torch.stack(past) if past else None
            seen += past
        query.held = seen  # until the device is done with them
        mode = self._mode(query, decision, images, reference)
        proprio = self._proprio(observation)
        prompt = self._prompt(observation.instruction, proprio)
        query.layout = layout = self._layout(prompt, len(images))
        reuses = pruner(params.pruner).plan(layout, params, Mode.COARSE).reuse
        query.inputs = inputs = StepInputs(
            images=images,
            prompt=prompt,
            ids=id_rows(prompt.ids, self._device),
            reference_images=None if mode is Mode.DENSE else reference,
            proprio=proprio,
            noise=self._noise(noise, memory.queries),
            guide=self._guide(continuation) if continuation else None,
            carry=memory.carry,
            cache=(memory.cache or KVCache(self.config.decoder.depth)) if reuses else None,
            seed=memory.queries,
            speed_xyz=observation.speed.v_t if observation.speed else None,
            displacement=displacement,
        )
        query.key = inputs.graph_key(layout, params, mode)
        query.prepared = time.perf_counter()
        return query

    def _run(self, query: _Query, details: bool) -> StepOutputs:
        """Run the model, unless the actions were extrapolated. Raises :class:`PolicyError`."""
        if query.key is None:
            normalised, nothing = self.normalised(query.actions, query.observation), torch.empty(0)
            self._check_actions(normalised)
            left = DeviceOutputs(nothing, self._memory.carry, {}, None, PassMetadata(Mode.SKIPPED))
            return StepOutputs(normalised, {}, 0, None, left)
        if details:
            outputs = EagerEngine(self.loaded).run(query.key, query.inputs, details=True)
        else:
            outputs = self._engine.run(query.key, query.inputs)
        # What the statistics clip anyway is no reason for doubt.
        clips = self.loaded.statistics.clip_actions
        self._check_actions(np.clip(outputs.actions, -1.0, 1.0) if clips else outputs.actions)
        query.actions = self._robot_actions(outputs.actions, query.observation)
        self._check_robot_actions(query.actions)
        return outputs

    def _report(self, query: _Query, outputs: StepOutputs) -> PolicyResult:
        """The result, and what the next query must know."""
        observation, params, memory = query.observation, query.force.params, self._memory
        left, metadata = outputs.device_outputs, outputs.device_outputs.metadata
        ran = metadata.mode is not Mode.SKIPPED
        self._extrapolator.issued(query.actions, observation.stamp_ns, from_model=ran)
        prior = metadata.mode in (Mode.COARSE, Mode.FINE) and bool(memory.carry)
        prior = prior and (params.pruner != 'specprune' or 'global' in metadata.sets)
        overlay = self._overlay(query, outputs) if ran and self.wants_overlay else None
        # The account belongs to the query; a comparison that was requested does not.
        took = time.perf_counter() - query.start
        deviation, kept = None, None
        if ran:
            self._took, self._actions = took, query.actions
            if metadata.mode is Mode.DENSE:
                self._dense_took.append(took)
            if self.measure_deviation:
                deviation, kept = self._compare_with_dense(query, left.left)
        stages = outputs.seconds or (0.0,) * 4
        cache = query.inputs.cache if ran else memory.cache
        memory.close(observation, left.carry, cache, metadata.mode is Mode.DENSE)
        refreshes, self._refreshes = self._refreshes, Refreshes()
        return PolicyResult(
            actions=query.actions,
            normalised=outputs.actions,
            episode=memory.episode,
            params_version=query.force.version,
            pruner=params.pruner,
            mode=metadata.mode,
            reason=metadata.dense_because or query.reason,
            reset=query.reset,
            speed=observation.speed,
            tokens=TokenCounts(
                total=query.layout.vision_tokens if ran else self.config.vision_tokens,
                sets=outputs.counts,
                union=outputs.union,
                layers=metadata.layers,
                after=metadata.after,
                mean=metadata.mean,
            ),
            alpha=params.alpha,
            budgets=(params.k_global, params.k_local, params.k_dynamic),
            history_steps=None if query.history_age is None else query.history_steps,
            history_age=query.history_age,
            thresholds=query.force.thresholds,
            prior_valid=prior,
            prior_recall=outputs.recall if prior else None,
            flops=metadata.flops,
            flops_ratio=metadata.flops / self._dense_flops(query.layout) if ran else 0.0,
            times=StageTimes(query.prepared - query.start + stages[0], *stages[1:], took),
            device=str(self._device),
            overlay=overlay,
            action_deviation=deviation,
            kept_recall=kept,
            refreshes=refreshes,
            notes=(*metadata.notes, *self._notes(query)),
            details=left.details,
        )

    def _extrapolate(self, query: _Query) -> bool:
        """Actions without the model, where the scheduler allows it (SP-VLA)."""
        observation, params = query.observation, query.force.params
        if query.reset is not None:
            self._extrapolator.reset()
            return False
        speed = observation.speed.v_t if observation.speed else None
        actions, reason = self._extrapolator.predict(
            observation.stamp_ns, self.step_dt, speed, params, self.config.action.gripper_dim
        )
        if actions is None:
            return False
        query.actions, query.reason = actions, f'model not run: {reason}'
        query.prepared = query.start
        return True

    def _mode(
        self, query: _Query, decision: Decision, seen: Tensor, reference: Tensor | None
    ) -> Mode:
        """Dense where memory or the parameters require it, else what the controller decided."""
        memory, params = self._memory, query.force.params
        if memory.queries == 0 and params.first_dense:
            query.reason = f'first query after a reset: {query.reset}'
            return Mode.DENSE
        in_query = params.refresh_when == 'query'
        if in_query and params.refresh_period and memory.since_dense + 1 >= params.refresh_period:
            query.reason = f'every {params.refresh_period} queries'
            return Mode.DENSE
        if in_query and params.refresh_change < 1.0 and reference is not None:
            similarity = patch_cosine(seen, reference, self.config.grid)
            tau = torch.tensor(params.tau, device=similarity.device)
            cameras = torch.arange(len(self.config.cameras), device=similarity.device)
            per_camera = tau[cameras.clamp(max=len(params.tau) - 1)]
            each = per_camera.repeat_interleave(similarity.numel() // len(self.config.cameras))
            share = float(changed_share(similarity, each))
            if share > params.refresh_change:
                query.reason = f'{share:.0%} of the patches changed'
                return Mode.DENSE
        return decision.mode

    @torch.inference_mode()
    def _preprocess(self, camera: str, image: CameraImage) -> Tensor:
        return self.loaded.preprocessor.image(image.pixels, camera)

    def _past(self, query: _Query) -> list[Tensor]:
        """The images of ``history_steps`` control steps ago, uint8 ``[S, S, 3]`` each, or those
        that came with the observation; none without a past.
        """
        observation, stamp = query.observation, query.observation.stamp_ns
        if (given := observation.past) is not None:
            stamps = [image.stamp_ns for image in given.values()]
            past = [self._preprocess(c, given[c]) for c in observation.images] if given else []
        else:
            wanted = stamp - round(query.history_steps * self.step_dt * SECOND_NS)
            frames = {
                camera: self.history.at(camera, wanted, image.stamp_ns)
                for camera, image in observation.images.items()
            }
            if None in frames.values():
                return []
            stamps = [frame.stamp_ns for frame in frames.values()]
            past = [f.get_preprocessed(self._preprocess, c) for c, f in frames.items()]
        if past:
            query.history_age = (stamp - min(stamps)) / SECOND_NS
        return past

    def _translation(self, actions: np.ndarray) -> float | None:
        """Net translation of a chunk of steps in metres, ``None`` where actions are none."""
        action = self.config.action
        if action.kind != 'ee_delta' or action.reference != 'previous_step':
            return None
        axes = [i for i, name in enumerate(action.dims) if name in ('x', 'y', 'z')]
        return float(np.linalg.norm((actions * np.asarray(action.scale))[:, axes].sum(0)))

    def _proprio(self, observation: Observation) -> Tensor | None:
        if not self.config.proprio_dim or observation.proprio is None:
            return None
        state = model_state(self.config.flow, observation.proprio)
        normalised = self.loaded.statistics.normalise_proprio(state)
        return torch.from_numpy(np.asarray(normalised, np.float32))

    def _prompt(self, instruction: str, proprio: Tensor | None) -> Prompt:
        """The prompt, with the normalised state in it where the model reads it there."""
        flow = self.config.flow
        if flow is not None and flow.state == 'prompt':
            return self.loaded.tokenizer.encode(instruction, proprio.numpy())
        return self.loaded.tokenizer.encode(instruction)

    def _layout(self, prompt: Prompt, cameras: int) -> TokenLayout:
        model = self.loaded.model
        if isinstance(model, FlowPolicy):
            return model.layout(prompt, cameras)
        return model.layout(prompt)

    def _noise(self, given: np.ndarray | None, seed: int) -> Tensor | None:
        """What the head starts from. Raises ``ObservationError`` for the wrong shape."""
        drawn = self.loaded.model.noise(seed=seed)
        if given is None or drawn is None:
            return drawn
        noise = torch.from_numpy(np.asarray(given, np.float32)).to(drawn.device)
        if noise.shape != drawn.shape:
            raise ObservationError(
                f'noise has shape {list(noise.shape)}, the head starts from {list(drawn.shape)}'
            )
        return noise

    def _guide(self, continuation: Continuation | None) -> Guide | None:
        if continuation is None or not len(continuation.previous):
            return None
        flow = self.config.flow
        return guide(continuation, self.config.chunk, flow.width, flow.steps, self._device)

    def _robot_actions(self, normalised: np.ndarray, observation: Observation) -> np.ndarray:
        """The model's actions in the robot's units and meaning."""
        flow, actions = self.config.flow, self.loaded.statistics.unnormalise_actions(normalised)
        return robot_actions(flow, actions, self._model_state(observation))

    def normalised(self, actions: np.ndarray, observation: Observation) -> np.ndarray:
        """Inverse of :meth:`_robot_actions`: relative columns as seen from this observation."""
        plain = model_actions(self.config.flow, actions, self._model_state(observation))
        return self.loaded.statistics.normalise_actions(plain)

    def _model_state(self, observation: Observation) -> np.ndarray | None:
        if observation.proprio is None:
            return None
        return model_state(self.config.flow, observation.proprio)

    def _check_actions(self, normalised: np.ndarray) -> None:
        """Raise :class:`PolicyError` unless the actions are finite and within reason."""
        if not np.isfinite(normalised).all():
            raise PolicyError('the model gave actions that are not finite; nothing was sent')
        largest = float(np.abs(normalised).max())
        if largest > self.max_normalised_action:
            raise PolicyError(
                f'the model gave a normalised action of {largest:.1f}; more than '
                f'{self.max_normalised_action:g} is not believed (max_normalised_action)'
            )

    def _check_robot_actions(self, actions: np.ndarray) -> None:
        """Raise :class:`PolicyError` for actions that un-normalising made infinite or absurd."""
        with np.errstate(over='ignore', invalid='ignore'):
            largest = float(np.abs(actions * np.asarray(self.config.action.scale)).max())
        if not largest <= MAX_ACTION:
            raise PolicyError(
                f'the statistics make an action of {largest:g} of what the model gave; at most '
                f'{MAX_ACTION:g} (m, rad); nothing was sent'
            )

    def _compare_with_dense(
        self, query: _Query, left: Tensor | None
    ) -> tuple[np.ndarray, float | None]:
        """Largest |pruned - dense| per dimension, and the share of what dense attends to most
        that was kept, on the same observation.
        """
        left = None if left is None else left.clone()  # an engine may use its place again
        params, layout = query.force.params, query.layout
        plain = replace(query.inputs, reference_images=None, carry={}, cache=None)
        key = plain.graph_key(layout, params.replace(pruner='specprune'), Mode.DENSE)
        outputs = EagerEngine(self.loaded).run(key, plain)
        dense = self._robot_actions(outputs.actions, query.observation)
        deviation = action_deviation(torch.from_numpy(query.actions), torch.from_numpy(dense))
        scores = outputs.device_outputs.carry.get('prior')
        if scores is None or not params.k_global:
            return deviation.numpy(), None
        everything = torch.arange(layout.vision_tokens, device=scores.device)
        count = min(params.k_global * layout.cameras, len(everything))
        recall = kept_recall(everything if left is None else left, scores, count)
        return deviation.numpy(), recall

    def _overlay(self, query: _Query, outputs: StepOutputs) -> Overlay:
        """What an image of the query needs. Copies: an engine may use their places again."""
        left = outputs.device_outputs
        kept = np.ones(query.layout.vision_tokens, bool)
        if left.left is not None:
            ids = left.left.cpu().numpy()
            kept[:] = False
            kept[ids[ids >= 0]] = True
        sets = {name: members.cpu().numpy().copy() for name, members in left.sets.items()}
        images = query.inputs.images
        if images.dtype != torch.uint8:
            images = images.clamp(0, 255).round().to(torch.uint8)
        return Overlay(images.cpu().numpy(), query.layout.grid, sets, kept)

    def _dense_flops(self, layout: TokenLayout) -> int:
        """Operations of the dense query."""
        if layout != self._dense[0]:
            self._dense = layout, dense_flops(self.config, layout).flops
        return self._dense[1]

    def _notes(self, query: _Query) -> list[str]:
        """What the user should know of this query, besides what the pruner says."""
        notes = []
        if query.inputs is None:
            return notes
        if query.inputs.proprio is not None:
            far = self.loaded.statistics.far_outside(query.observation.proprio)
            notes += [far] if far else []
        if unknown := query.inputs.prompt.unknown:
            notes.append(
                f'outside the vocabulary of this policy: {", ".join(unknown)}; '
                'it was not trained on these words'
            )
        if self.loaded.preprocessor.note:
            notes.append(self.loaded.preprocessor.note)
        return notes


@dataclass(frozen=True)
class _InForce:
    """Parameters in force, their version, and what follows from them for every query.

    ``prior_key``: what the scores carried from query to query mean, that is who observed where and
    which rows. ``compares``: queries look at a past image. ``thresholds``: the controller's (SI).
    """

    params: PruningParams
    version: int
    prior_key: tuple[object, ...]
    compares: bool
    thresholds: Thresholds

    @classmethod
    def of(cls, params: PruningParams, version: int, motion: MotionRange) -> _InForce:
        si = in_si(params, motion)
        thresholds = Thresholds(si.v_t_threshold, si.v_r_threshold, si.history_unit)
        return cls(params, version, prior_key(params), compares(params), thresholds)


@dataclass
class _Query:
    """One query under way; the second half is known once it is prepared.

    ``key`` is ``None`` where ``actions`` were extrapolated and no model is run; otherwise
    ``actions`` are those of the model. ``start`` and ``prepared`` are times of ``perf_counter``.
    ``held`` keeps the images until the device is done with them, as the history may let go of
    them meanwhile.
    """

    observation: Observation
    force: _InForce
    reset: str | None
    reason: str
    start: float
    prepared: float = 0.0
    key: GraphKey | None = None
    inputs: StepInputs | None = None
    layout: TokenLayout | None = None
    history_steps: int = 0
    history_age: float | None = None
    held: list[Tensor] = field(default_factory=list)
    actions: np.ndarray | None = None
