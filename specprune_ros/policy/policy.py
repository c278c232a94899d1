"""Model, pruner and memory together: the package's one public Python interface."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import DecoderOutput, KVCache
from specprune_ros.models.embedded import Embedded
from specprune_ros.models.flops import dense_flops, query_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt
from specprune_ros.policy.glide import Glide
from specprune_ros.policy.history import FrameHistory
from specprune_ros.policy.memory import SECOND_NS, Memory
from specprune_ros.policy.observation import Observation, Picture
from specprune_ros.policy.result import Overlay, PolicyResult, StageTimes, TokenCounts
from specprune_ros.pruning.controller import Controller, Decision, history_offset
from specprune_ros.pruning.interface import (
    Mode,
    PassOutcome,
    PrunePass,
    QueryContext,
    TokenLayout,
)
from specprune_ros.pruning.meters import action_deviation, kept_recall
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import changed_share, patch_cosine

HISTORY_STEPS = 20  # control steps of pictures kept for V_dynamic


class PolicyError(RuntimeError):
    """The model gave something no arm may be given; the message says what."""


class Policy:
    """A vision-language-action policy with token pruning: :meth:`act` turns looks into motions.

    ``loaded`` is a model with its tokenizer, preprocessing and statistics. :meth:`act` belongs to
    one thread; :attr:`history`, :meth:`set_params` and :meth:`reset` may be used from any.
    ``absurd`` is the largest normalised action that is believed (-1 to 1 spans the training data).
    """

    def __init__(
        self, loaded: LoadedModel, params: PruningParams | None = None, absurd: float = 10.0
    ) -> None:
        self.loaded = loaded
        self.config: PolicyConfig = loaded.config
        self.step_dt = 1.0 / self.config.control_hz
        # Two pictures a control step are as many as a look back by control steps can tell apart.
        self.history = FrameHistory(
            round(HISTORY_STEPS * self.step_dt * SECOND_NS), round(0.45 * self.step_dt * SECOND_NS)
        )
        self.absurd = absurd
        self.measure_deviation = False
        self.wants_overlay = True
        self._memory = Memory(self.history)
        self._controller = Controller()
        self._glide = Glide()
        self._took = 0.0
        self._dense: tuple[TokenLayout | None, int] = (None, 1)
        self._device = next(loaded.model.parameters()).device
        self._swap = threading.Lock()
        self._snapshot = (params or PruningParams(), 1)

    @property
    def params(self) -> PruningParams:
        """The parameters the next query runs with."""
        return self._snapshot[0]

    @property
    def params_version(self) -> int:
        """Counts changes of the parameters, from 1."""
        return self._snapshot[1]

    @property
    def episode(self) -> int:
        """Counts resets of the memory."""
        return self._memory.episode

    def layout(self, instruction: str = 'move') -> TokenLayout:
        """The token layout of a query with this instruction."""
        return self.loaded.model.layout(self.loaded.tokenizer.encode(instruction))

    def check_params(self, params: PruningParams) -> None:
        """Raise ``ParamError`` where these parameters and this model cannot go together."""
        params.check(self.layout())

    def set_params(self, params: PruningParams) -> int:
        """Use ``params`` from the next query on; returns their version. Raises ``ParamError``."""
        self.check_params(params)
        with self._swap:
            self._snapshot = (params, self._snapshot[1] + 1)
            return self._snapshot[1]

    def reset(self, reason: str = 'asked for') -> None:
        """Forget everything before the next query."""
        self._memory.request_reset(reason)

    def warm_up(self) -> float:
        """Run two queries on grey pictures and forget them; returns the second's seconds."""
        size = self.config.image_size
        grey = np.full((size, size, 3), 128, np.uint8)
        times = self.act(self._blank(Picture(grey, 0))).times
        times = self.act(self._blank(Picture(grey, round(self.step_dt * SECOND_NS)))).times
        self.history.clear()
        self._memory = Memory(self.history)
        return times.total

    def _blank(self, picture: Picture) -> Observation:
        dim = self.config.proprio_dim
        return Observation(
            pictures={camera: picture for camera in self.config.cameras},
            instruction='warm up',
            proprio=np.zeros(dim) if dim else None,
        )

    @torch.inference_mode()
    def act(self, observation: Observation) -> PolicyResult:
        """One query.

        Raises ``ObservationError`` for an observation that does not fit the model and
        :class:`PolicyError` for actions that are not finite or absurd; memory is then forgotten.
        """
        observation.check(len(self.config.cameras), self.config.proprio_dim)
        try:
            return self._query(observation, *self._snapshot)
        except Exception as error:
            # Half a query must not be the next one's past.
            self.reset(f'after an error: {error}')
            raise

    def _query(
        self, observation: Observation, params: PruningParams, version: int
    ) -> PolicyResult:
        start = time.perf_counter()
        method = pruner(params.pruner)
        memory = self._memory
        # A slow model must not take its own slowness for a pause.
        memory.gap_limit_s = max(params.reset_gap, 3.0 * self._took)
        reset = memory.open(observation, _meaning(params))
        decision = self._controller.decide(observation.speed, params, memory.controller)
        memory.controller = decision.state
        if params.scheduler == 'ridge':
            glided = self._glided(observation, params, version, reset, start)
            if glided is not None:
                return glided

        seen = self._see(observation)
        displacement = memory.displacement(observation)
        steps = history_offset(displacement, params)
        similarity, history_age = None, None
        if params.refresh_change < 1.0 or getattr(method, 'uses_similarity', False):
            similarity, history_age = self._similarity(observation, seen, steps)
        mode, reason = self._mode(params, decision, reset, similarity)
        prompt = self.loaded.tokenizer.encode(observation.instruction)
        proprio = self._proprio(observation)
        pixels = self.loaded.preprocessor.normalise(seen)
        seen_at = time.perf_counter()

        embedded = self.loaded.model.embed(pixels, prompt, proprio)
        self._settle()
        embedded_at = time.perf_counter()

        context = QueryContext(
            layout=embedded.layout,
            params=params,
            mode=mode,
            similarity=similarity,
            carry=memory.carry,
            pictures=seen,
            vision=embedded.vision,
            text=embedded.text,
            probe=partial(self.loaded.model.decoder.probe, embedded.hidden, embedded.layout),
            speed_xyz=observation.speed.v_t if observation.speed else None,
            displacement=displacement,
            seed=memory.queries,
        )
        prune_pass = method.begin(context)
        cache = self._cache(method.plan(embedded.layout, params, Mode.COARSE).reuse)
        output = self._decode(embedded, prune_pass, cache)
        outcome = prune_pass.finish()
        self._settle()
        decoded = time.perf_counter()

        actions, normalised = self._actions(output, embedded.layout)
        acted = time.perf_counter()
        # What the statistics clip anyway is no reason for doubt.
        clips = self.loaded.statistics.clip_actions
        self._believe(np.clip(normalised, -1.0, 1.0) if clips else normalised)
        self._glide.issued(actions, observation.stamp_ns, from_model=True)
        prior = mode is not Mode.DENSE and bool(memory.carry)
        prior = prior and (params.pruner != 'specprune' or 'global' in outcome.sets)
        tokens = self._tokens(embedded.layout, outcome, output)
        flops, ratio = self._flops(embedded.layout, output)
        overlay = self._overlay(seen, embedded.layout, outcome)
        notes = self._notes(outcome, prompt)
        recall = outcome.recall if prior else None
        # The account belongs to the query; a comparison that somebody asked for does not.
        self._took = time.perf_counter() - start
        times = StageTimes(
            seen_at - start,
            embedded_at - seen_at,
            decoded - embedded_at,
            acted - decoded,
            self._took,
        )
        deviation, kept = None, None
        if self.measure_deviation:
            deviation, kept = self._against_dense(embedded, context, actions, outcome)
        memory.close(observation, outcome.carry, cache, mode is Mode.DENSE)
        return PolicyResult(
            actions=actions,
            episode=memory.episode,
            params_version=version,
            pruner=params.pruner,
            mode=mode,
            reason=reason,
            reset=reset,
            speed=observation.speed,
            tokens=tokens,
            alpha=params.alpha,
            budgets=(params.k_global, params.k_local, params.k_dynamic),
            history_steps=None if similarity is None else steps,
            history_age=history_age,
            prior_valid=prior,
            prior_recall=recall,
            flops=flops,
            flops_ratio=ratio,
            times=times,
            device=str(self._device),
            overlay=overlay,
            action_deviation=deviation,
            kept_recall=kept,
            notes=notes,
        )

    def _glided(
        self,
        observation: Observation,
        params: PruningParams,
        version: int,
        reset: str | None,
        start: float,
    ) -> PolicyResult | None:
        """A result without the model, where the scheduler allows it (SP-VLA)."""
        if reset is not None:
            self._glide.reset()
            return None
        speed = observation.speed.v_t if observation.speed else None
        actions, reason = self._glide.predict(
            observation.stamp_ns, self.step_dt, speed, params, self.config.action.gripper_dim
        )
        if actions is None:
            return None
        self._believe(self.loaded.statistics.normalise_actions(actions))
        self._glide.issued(actions, observation.stamp_ns, from_model=False)
        memory = self._memory
        memory.close(observation, memory.carry, memory.cache, dense=False)
        total = time.perf_counter() - start
        return PolicyResult(
            actions=actions,
            episode=memory.episode,
            params_version=version,
            pruner=params.pruner,
            mode=Mode.SKIPPED,
            reason=f'model not run: {reason}',
            reset=None,
            speed=observation.speed,
            tokens=TokenCounts(self.config.vision_tokens, {}, 0, (), (), 0.0),
            alpha=params.alpha,
            budgets=(params.k_global, params.k_local, params.k_dynamic),
            history_steps=None,
            history_age=None,
            prior_valid=False,
            prior_recall=None,
            flops=0.0,
            flops_ratio=0.0,
            times=StageTimes(0.0, 0.0, 0.0, 0.0, total),
            device=str(self._device),
            overlay=None,
        )

    def _mode(
        self,
        params: PruningParams,
        decision: Decision,
        reset: str | None,
        similarity: Tensor | None,
    ) -> tuple[Mode, str]:
        """Dense where memory or the parameters ask for it, else what the controller decided."""
        memory = self._memory
        if memory.queries == 0 and params.first_dense:
            return Mode.DENSE, f'first query after a reset: {reset}'
        if params.refresh_period and memory.since_dense + 1 >= params.refresh_period:
            return Mode.DENSE, f'every {params.refresh_period} queries'
        if params.refresh_change < 1.0 and similarity is not None:
            tau = torch.tensor(params.tau, device=similarity.device)
            cameras = torch.arange(len(self.config.cameras), device=similarity.device)
            per_camera = tau[cameras.clamp(max=len(params.tau) - 1)]
            each = per_camera.repeat_interleave(similarity.numel() // len(self.config.cameras))
            share = float(changed_share(similarity, each))
            if share > params.refresh_change:
                return Mode.DENSE, f'{share:.0%} of the patches changed'
        return decision.mode, decision.reason

    def _see(self, observation: Observation) -> Tensor:
        """The pictures as the policy sees them, uint8 ``[cameras, S, S, 3]`` on the device.

        What is prepared here the history keeps too: as a past picture it is not prepared again.
        """
        seen = []
        for camera, picture in observation.pictures.items():
            prepared = self._prepare(camera, picture)
            frame = self.history.of(camera, picture)
            if frame is not None:
                frame.keep(prepared)
            seen.append(prepared)
        return torch.stack(seen)

    def _prepare(self, camera: str, picture: Picture) -> Tensor:
        return self.loaded.preprocessor.picture(picture.pixels, camera)

    def _similarity(
        self, observation: Observation, pictures: Tensor, steps: int
    ) -> tuple[Tensor | None, float | None]:
        """Patch cosine with the picture ``steps`` control steps ago, and its age in seconds."""
        stamp = observation.stamp_ns
        wanted = stamp - round(steps * self.step_dt * SECOND_NS)
        past = [
            self.history.at(camera, wanted, picture.stamp_ns)
            for camera, picture in observation.pictures.items()
        ]
        found = [frame for frame in past if frame is not None]
        if len(found) < len(past):
            return None, None
        then = torch.stack(
            [
                frame.look(partial(self._prepare, camera))
                for frame, camera in zip(found, observation.pictures, strict=True)
            ]
        )
        similarity = patch_cosine(pictures, then, self.config.grid)
        return similarity, (stamp - min(frame.stamp_ns for frame in found)) / SECOND_NS

    def _proprio(self, observation: Observation) -> Tensor | None:
        if not self.config.proprio_dim or observation.proprio is None:
            return None
        normalised = self.loaded.statistics.normalise_proprio(observation.proprio)
        return torch.from_numpy(np.asarray(normalised, np.float32)).to(self._device)

    def _cache(self, reuses: bool) -> KVCache | None:
        if not reuses:
            return None
        return self._memory.cache or KVCache(self.config.decoder.depth)

    def _decode(
        self, embedded: Embedded, prune_pass: PrunePass | None, cache: KVCache | None
    ) -> DecoderOutput:
        model = self.loaded.model
        return model.decoder(
            embedded.hidden,
            embedded.layout,
            prune_pass,
            cache,
            model.read(embedded.layout),
        )

    def _actions(
        self, output: DecoderOutput, layout: TokenLayout
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions in action units and as the head gave them, float64 ``[chunk, action_dim]``."""
        head = self.loaded.model.head(output, layout, seed=self._memory.queries)
        normalised = head.float().cpu().numpy().astype(np.float64)
        return self.loaded.statistics.unnormalise_actions(normalised), normalised

    def _believe(self, normalised: np.ndarray) -> None:
        """Raise :class:`PolicyError` unless the actions are finite and within reason."""
        if not np.isfinite(normalised).all():
            raise PolicyError('the model gave actions that are not finite; nothing was sent')
        largest = float(np.abs(normalised).max())
        if largest > self.absurd:
            raise PolicyError(
                f'the model gave a normalised action of {largest:.1f}; more than '
                f'{self.absurd:g} is not believed (absurd_action)'
            )

    def _against_dense(
        self,
        embedded: Embedded,
        context: QueryContext,
        actions: np.ndarray,
        outcome: PassOutcome,
    ) -> tuple[np.ndarray, float | None]:
        """Largest |pruned - dense| per dimension, and the share of what dense attends to most
        that was kept, on the same observation.
        """
        method = pruner('specprune')
        listening = method.begin(replace(context, mode=Mode.DENSE, carry={}))
        output = self._decode(embedded, listening, None)
        dense, _ = self._actions(output, embedded.layout)
        deviation = action_deviation(torch.from_numpy(actions), torch.from_numpy(dense)).numpy()
        scores = listening.finish().carry.get('prior')
        if scores is None or not context.params.k_global:
            return deviation, None
        everything = torch.arange(embedded.layout.vision_tokens, device=scores.device)
        left = outcome.kept[-1][1] if outcome.kept else everything
        count = min(context.params.k_global * embedded.layout.cameras, len(everything))
        return deviation, kept_recall(left, scores, count)

    def _overlay(
        self, pictures: Tensor, layout: TokenLayout, outcome: PassOutcome
    ) -> Overlay | None:
        """What a picture of the query needs, where one is wanted."""
        if not self.wants_overlay:
            return None
        kept = np.ones(layout.vision_tokens, bool)
        if outcome.kept:
            ids = outcome.kept[-1][1].cpu().numpy()
            kept[:] = False
            kept[ids[ids >= 0]] = True
        sets = {name: members.cpu().numpy() for name, members in outcome.sets.items()}
        return Overlay(pictures.cpu().numpy(), layout.grid, sets, kept)

    def _tokens(
        self, layout: TokenLayout, outcome: PassOutcome, output: DecoderOutput
    ) -> TokenCounts:
        union = torch.zeros(layout.vision_tokens, dtype=torch.bool)
        for name, members in outcome.sets.items():
            if name != 'fill':
                union |= members.cpu()
        present = [count for count in output.layer_tokens if count]
        return TokenCounts(
            total=layout.vision_tokens,
            sets={name: int(members.sum()) for name, members in outcome.sets.items()},
            union=int(union.sum()),
            layers=tuple(boundary for boundary, _ in outcome.kept),
            after=tuple(len(ids) for _, ids in outcome.kept),
            mean=float(np.mean(present)) if present else float(layout.vision_tokens),
        )

    def _flops(self, layout: TokenLayout, output: DecoderOutput) -> tuple[float, float]:
        """Operations of the query and their share of the dense query's."""
        spent = query_flops(self.config, output).flops
        if layout != self._dense[0]:
            self._dense = layout, dense_flops(self.config, layout).flops
        return float(spent), spent / self._dense[1]

    def _notes(self, outcome: PassOutcome, prompt: Prompt) -> tuple[str, ...]:
        """What the user should know of this query."""
        notes = list(outcome.notes)
        if prompt.unknown:
            notes.append(
                f'outside the vocabulary of this policy: {", ".join(prompt.unknown)}; '
                'it was not trained on these words'
            )
        if self.loaded.preprocessor.note:
            notes.append(self.loaded.preprocessor.note)
        return tuple(notes)

    def _settle(self) -> None:
        """Let a GPU finish, so that stage times are what they say."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)


def _meaning(params: PruningParams) -> tuple[object, ...]:
    """What the scores carried from query to query mean: who listened where, to which rows."""
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
