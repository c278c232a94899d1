"""Model, pruner and memory together: the package's one public Python interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import KVCache
from specprune_ros.models.flops import dense_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import id_rows
from specprune_ros.policy.action_extrapolator import ActionExtrapolator, check_extrapolation
from specprune_ros.policy.dense_pass import SlackRefresh, compare_with_dense
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.forward_step import (
    DeviceOutputs,
    GraphKey,
    PassMetadata,
    StepInputs,
    StepOutputs,
    compares,
    of_the_pass,
)
from specprune_ros.policy.memory import SECOND_NS, Memory, gap_limit, history_for, prior_key
from specprune_ros.policy.motion_range import motion_range, net_translation
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.overlay import Overlay
from specprune_ros.policy.real_time_chunking import Continuation, guide
from specprune_ros.policy.result import (
    PolicyResult,
    Refreshes,
    StageTimes,
    Thresholds,
    TokenCounts,
    check_actions,
)
from specprune_ros.pruning.budget import per_camera
from specprune_ros.pruning.controller import (
    Controller,
    Decision,
    MotionRange,
    history_offset,
    in_si,
    known_translation,
)
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import check_params, pruner
from specprune_ros.pruning.similarity import changed_share, patch_cosine


class Policy:
    """A vision-language-action policy with token pruning: :meth:`act` turns observations into
    actions.

    ``loaded`` is a model with its tokenizer, preprocessing and statistics. :meth:`act` belongs to
    one thread; :attr:`history`, :meth:`set_params` and :meth:`reset` may be used from any.
    ``max_normalised_action`` is the largest normalised action that is believed (-1 to 1 spans the
    training data). ``engine`` runs the queries (eagerly by default). :attr:`query_period`: seconds
    that whoever asks leaves between two queries, 0 where no more than a chunk's rows take.
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
        self.query_period = 0.0
        self.measure_deviation = False
        self.wants_overlay = True
        self._memory = Memory(self.history)
        self.motion = motion_range(loaded)
        self._controller = Controller(self.motion)
        self._extrapolator = ActionExtrapolator()
        self._took = 0.0
        self._actions: np.ndarray | None = None  # the last chunk
        self._dense_flops: tuple[TokenLayout | None, int] = (None, 1)
        self._engine = engine or EagerEngine(loaded)
        self._refresher = SlackRefresh(loaded, self._engine)
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
    def latest_params(self) -> PruningParams:
        """The newest that were accepted; an engine may still be preparing for them."""
        return self._latest.params

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
        if params.scheduler != 'none':
            check_extrapolation(self.config.action)

    def set_params(self, params: PruningParams, checked: bool = False) -> int:
        """Use ``params`` from the next query on; returns their version. Raises ``ParamError``
        (not where they are ``checked`` already).

        An engine that must prepare for them leaves the old ones in force until it has; not where
        they differ in nothing that a pass reads (``mode``), which must hold at once.
        """
        if not checked:
            self.check_params(params)
        with self._swap:
            self._latest = latest = _InForce.of(params, self._latest.version + 1, self.motion)
        if of_the_pass(params) == of_the_pass(self.params):
            self._use(latest)
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
        self._refresher.took.clear()  # the first pass of all is slow
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
        observation = observation.checked(self.config)
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
        useful = getattr(pruner(params.pruner), 'carries_prior', False) and params.mode != 'dense'
        return useful and params.refresh_when == 'slack' and 'prior' in self._memory.carry

    @property
    def dense_seconds(self) -> float:
        """What a dense pass took, the longest of the last few; 0 before the first."""
        return max(self._refresher.took, default=0.0)

    def skip_refresh(self) -> None:
        """There was no time for :meth:`refresh`: :attr:`dense_seconds` may be out of date."""
        self._refresher.skip()

    def follows(self, observation: Observation) -> bool:
        """Whether a query on this observation would continue the last one's episode, going by
        time, cameras, instruction and requests. Raises like :meth:`act`.
        """
        return self._memory.follows(observation.checked(self.config))

    @property
    def refreshes(self) -> Refreshes:
        """The refreshes since the last query, which the next one will report."""
        return self._refresher.account

    def refresh(self, observation: Observation, cancelled: Callable[[], bool]) -> bool:
        """Between two queries: a dense pass on ``observation``, whose attention is the next
        query's prior. Returns whether it ended.

        ``cancelled`` is called between the decoder's layers (on a GPU only before the pass: a
        graph is replayed whole). An observation that does not continue the last query's is left
        alone, as are policies that gain nothing by it.
        """
        if not self.refreshes_in_slack or cancelled():
            return False
        observation = observation.checked(self.config)
        return self._refresher.run(observation, self.params, self._memory, cancelled)

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
            displacement = net_translation(self.config.action, self._actions)
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
        start, loaded = time.perf_counter(), self.loaded
        force, memory = self._in_force, self._memory
        params = force.params
        memory.gap_limit_s = gap_limit(params, self.config, self._took, self.query_period)
        reset = memory.open(observation, force.prior_key)
        decision = self._controller.decide(observation.speed, params, memory.controller)
        memory.controller = decision.state
        query = _Query(observation, force, reset, decision.reason, start)
        if reset is not None or params.scheduler == 'none':
            self._extrapolator.reset()
        else:
            query.actions, why = self._extrapolator.predict(
                observation, params, self.step_dt, self.config.action.gripper_dim
            )
            if query.actions is not None:
                query.reason, query.prepared = f'model not run: {why}', start
                return query

        seen = [self.history.preprocessed(*shown) for shown in observation.images.items()]
        images, reference = torch.stack(seen), None
        prompt, layout, proprio = loaded.encode(
            observation.instruction, observation.proprio, len(images)
        )
        query.layout, query.notes = layout, loaded.doubts(prompt, observation.proprio)
        reuses = pruner(params.pruner).plan(layout, params, Mode.COARSE).reuse
        mode = self._mode(query, decision)
        kept = memory.cache
        if reuses and mode is not Mode.DENSE and kept and not kept.filled(layout.length):
            mode, query.reason = Mode.DENSE, 'the prompt is of another length than what was kept'
        if force.compares and mode is not Mode.DENSE:
            query.history_steps = history_offset(memory.displacement, params, self.motion)
            # Whose keys and values are used again, with its images is compared.
            past = self._last_images(query) if reuses else self._past(query)
            reference = torch.stack(past) if past else None
            seen += past
            if reference is not None and self._changed(query, images, reference):
                mode = Mode.DENSE
        query.held = seen  # until the device is done with them
        start_noise = loaded.model.noise(seed=memory.queries)
        if noise is not None and start_noise is not None:
            start_noise = _given_noise(noise, start_noise)
        pull, flow = None, self.config.flow
        if continuation is not None and len(continuation.previous):
            chunk = self.config.chunk
            pull = guide(continuation, chunk, flow.width, flow.steps, self._device)
        query.inputs = inputs = StepInputs(
            images=images,
            prompt=prompt,
            ids=id_rows(prompt.ids, self._device),
            reference_images=None if mode is Mode.DENSE else reference,
            proprio=proprio,
            noise=start_noise,
            guide=pull,
            carry=memory.carry,
            cache=(memory.cache or KVCache(self.config.decoder.depth)) if reuses else None,
            seed=memory.queries,
            speed_xyz=known_translation(observation.speed, params),
            displacement=memory.displacement,
        )
        query.key = inputs.graph_key(layout, params, mode)
        query.prepared = time.perf_counter()
        return query

    def _run(self, query: _Query, details: bool) -> StepOutputs:
        """Run the model, unless the actions were extrapolated. Raises :class:`PolicyError`."""
        loaded, proprio = self.loaded, query.observation.proprio
        if query.key is None:
            normalised, nothing = loaded.normalised_actions(query.actions, proprio), torch.empty(0)
            left = DeviceOutputs(nothing, self._memory.carry, {}, None, PassMetadata(Mode.SKIPPED))
            outputs = StepOutputs(normalised, {}, 0, None, left)
        elif details:
            outputs = EagerEngine(loaded).run(query.key, query.inputs, details=True)
        else:
            outputs = self._engine.run(query.key, query.inputs)
        believed = outputs.actions
        if query.key is not None:
            with np.errstate(over='ignore', invalid='ignore'):
                query.actions = loaded.robot_actions(outputs.actions, proprio)
            # What the statistics clip anyway is no reason for doubt.
            if loaded.statistics.clip_actions:
                believed = np.clip(believed, -1.0, 1.0)
        scale = self.config.action.scale
        check_actions(believed, query.actions, scale, self.max_normalised_action)
        return outputs

    def _report(self, query: _Query, outputs: StepOutputs) -> PolicyResult:
        """The result, and what the next query must know."""
        observation, params, memory = query.observation, query.force.params, self._memory
        left, metadata = outputs.device_outputs, outputs.device_outputs.metadata
        ran = metadata.mode is not Mode.SKIPPED
        self._extrapolator.issued(query.actions, observation.stamp_ns, from_model=ran)
        # ADP carries how far the arm went, which is no attention.
        tokens = query.layout.vision_tokens if ran else 0
        prior = metadata.mode in (Mode.COARSE, Mode.FINE) and any(
            value.shape[-1:] == (tokens,) for value in memory.carry.values()
        )
        prior = prior and (params.pruner != 'specprune' or 'global' in metadata.sets)
        overlay = None
        if ran and self.wants_overlay:
            overlay = Overlay.of(query.inputs.images, query.layout.grid, left.sets, left.left)
        # The account belongs to the query; a comparison that was requested does not.
        took = time.perf_counter() - query.start
        deviation, kept, dense = None, None, metadata.mode is Mode.DENSE
        if ran:
            self._took, self._actions = took, query.actions
            if dense:
                self._refresher.took.append(took)
            if self.measure_deviation:
                deviation, kept = compare_with_dense(
                    self.loaded, query.inputs, query.layout, params, observation.proprio,
                    query.actions, left.left,
                )  # fmt: skip
            if query.layout != self._dense_flops[0]:
                self._dense_flops = query.layout, dense_flops(self.config, query.layout).flops
        stages = outputs.seconds or (0.0,) * 4
        refreshes, self._refresher.account = self._refresher.account, Refreshes()
        cache = query.inputs.cache if ran else None
        memory.close(observation, left.carry, cache, dense, ran)
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
            flops_ratio=metadata.flops / self._dense_flops[1] if ran else 0.0,
            times=StageTimes(query.prepared - query.start + stages[0], *stages[1:], took),
            device=str(self._device),
            overlay=overlay,
            action_deviation=deviation,
            kept_recall=kept,
            refreshes=refreshes,
            notes=(*metadata.notes, *query.notes),
            details=left.details,
        )

    def _mode(self, query: _Query, decision: Decision) -> Mode:
        """Dense where memory or the parameters require it, else what the controller decided."""
        memory, params = self._memory, query.force.params
        if memory.queries == 0 and params.first_dense:
            query.reason = f'first query after a reset: {query.reset}'
            return Mode.DENSE
        in_query = params.refresh_when == 'query'
        if in_query and params.refresh_period and memory.since_dense + 1 >= params.refresh_period:
            query.reason = f'every {params.refresh_period} queries'
            return Mode.DENSE
        return decision.mode

    def _changed(self, query: _Query, seen: Tensor, reference: Tensor) -> bool:
        """Whether so much changed since ``reference`` that the query is to be dense."""
        params = query.force.params
        if params.refresh_when != 'query' or params.refresh_change >= 1.0:
            return False
        similarity, cameras = patch_cosine(seen, reference, self.config.grid), len(seen)
        tau = torch.tensor(per_camera(params.tau, cameras), device=similarity.device)
        each = tau.repeat_interleave(similarity.numel() // cameras)
        share = float(changed_share(similarity, each))
        if share > params.refresh_change:
            query.reason = f'{share:.0%} of the patches changed'
            return True
        return False

    @torch.inference_mode()
    def _preprocess(self, camera: str, image: CameraImage) -> Tensor:
        return self.loaded.preprocessor.image(image.pixels, camera)

    def _last_images(self, query: _Query) -> list[Tensor]:
        """As :meth:`_past`, the images of the last query that the model was run for."""
        observation, last = query.observation, self._memory.answered
        if last is None:
            return []
        query.history_age = (observation.stamp_ns - last.stamp_ns) / SECOND_NS
        query.history_steps = round(query.history_age / self.step_dt)
        return [last.frames[c].get_preprocessed(self._preprocess, c) for c in observation.images]

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


def _given_noise(given: np.ndarray, drawn: Tensor) -> Tensor:
    """``given`` in the place of ``drawn``. Raises ``ObservationError`` for another shape."""
    noise = torch.from_numpy(np.asarray(given, np.float32)).to(drawn.device)
    if noise.shape != drawn.shape:
        raise ObservationError(
            f'noise has shape {list(noise.shape)}, the head starts from {list(drawn.shape)}'
        )
    return noise


@dataclass(frozen=True)
class _InForce:
    """Parameters in force, their version, and what follows from them for every query.

    ``prior_key``: what the scores carried from query to query mean, that is who observed where and
    which rows. ``compares``: queries compare with one. ``thresholds``: the controller's (SI).
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
    notes: list[str] = field(default_factory=list)
    actions: np.ndarray | None = None
