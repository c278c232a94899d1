"""SpecPrune-VLA (arXiv 2509.05614): the union of three sets, then a few more layer by layer.

Static prune after the last local layer: V_retain = V_global u V_dynamic u V_local. V_global is
what the text of the previous query attended to in a middle and the last layer; V_dynamic is where
the image changed; V_local is what the text looks at in the first layers of this query. After
that a running score, updated from rank and confidence at a few layers, drops the lowest tokens at
others.

The first query of an episode runs dense and only observes, unless ``first_dense`` is off. The
equations are in ``scores``, the counts in ``budget``, the readings of what the paper leaves open
in ``docs/reference/pruners.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from specprune_ros.pruning import scores
from specprune_ros.pruning import scores as sets
from specprune_ros.pruning.budget import (
    Budgets,
    after_drop,
    budgets,
    free_count,
    least,
    per_camera,
    scale_layers,
)
from specprune_ros.pruning.interface import (
    Mode,
    PassOutcome,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
    ids_in,
)
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.scores import constant


@dataclass(frozen=True)
class Plan:
    """Where one query observes and prunes, in the model's own layers, and with which rows.

    ``planned``: vision tokens left after each prune by the method's budgets; ``counts``: with
    those that are free on top.
    """

    local: tuple[int, ...]
    globals: tuple[int, ...]
    updates: tuple[int, ...]
    drops: tuple[int, ...]
    rows_local: RowGroup
    rows_global: RowGroup
    rows_layer: RowGroup
    budgets: Budgets | None
    planned: dict[int, int]
    counts: dict[int, int]
    schedule: PruneSchedule
    notes: tuple[str, ...]

    @property
    def static(self) -> int:
        """Boundary of the static prune."""
        return self.local[-1]

    @property
    def last_drop(self) -> int:
        """Boundary of the last layer-level prune, 0 without one."""
        return self.drops[-1] if self.drops else 0

    @property
    def ties_carry_over(self) -> tuple[int, ...]:
        """Prunes after which the next one comes without an update in between."""
        return tuple(
            here
            for here, following in zip(self.drops, self.drops[1:], strict=False)
            if not any(here < layer <= following for layer in self.updates)
        )


def rows_or_action(layout: TokenLayout, name: str, notes: list[str]) -> RowGroup:
    """The requested row group, or the action rows where it is empty (an empty instruction).

    The action rows of an expert come too late to score tokens of the same query: there the text
    stands in.
    """
    group = RowGroup(name)
    if group is RowGroup.ACTION and layout.expert_rows:
        group = RowGroup.TEXT
    if layout.rows(group):
        return group
    stand_in = RowGroup.PROMPT if layout.expert_rows else RowGroup.ACTION
    note = f'no {name} rows to score with: the {stand_in.value} rows stand in'
    if note not in notes:
        notes.append(note)
    return stand_in


def rows_of_prior(layout: TokenLayout, name: str, notes: list[str]) -> RowGroup:
    """The rows whose attention is the next query's prior; ``auto`` is the text, or an action
    expert where there is one.
    """
    if layout.expert_rows and name in ('auto', RowGroup.ACTION):
        return RowGroup.ACTION
    return rows_or_action(layout, 'text' if name == 'auto' else name, notes)


@lru_cache(maxsize=64)
def make_plan(layout: TokenLayout, params: PruningParams, mode: Mode) -> Plan:
    """The plan of a query; raises :class:`ParamError` where layout and parameters do not fit."""
    depth = layout.depth
    notes: list[str] = []
    rows_local = rows_or_action(layout, params.rows_local, notes)
    rows_global = rows_of_prior(layout, params.rows_global, notes)
    rows_layer = rows_or_action(layout, params.rows_layer, notes)
    local = scale_layers(params.layers_local, depth)
    if not local or local[-1] >= depth:
        raise ParamError(
            'layers_local',
            f'the static prune would follow layer {params.layers_local[-1]} of 32, '
            f'but the model has only {depth} layers',
        )
    globals_ = scale_layers(params.layers_global, depth)
    updates = scale_layers(params.update_layers, depth, after=local[-1])
    drops = tuple(
        layer
        for layer in scale_layers(params.prune_layers, depth, after=local[-1])
        if layer < depth and params.drop_ratio > 0
    )
    # An update after the last prune changes nothing.
    updates = tuple(layer for layer in updates if drops and layer <= drops[-1])
    observed_layers: dict[int, list[RowGroup]] = {}

    def observe(layers: tuple[int, ...], group: RowGroup) -> None:
        for layer in layers:
            groups = observed_layers.setdefault(layer, [])
            if group not in groups:
                groups.append(group)

    observe(globals_, rows_global)
    if mode is Mode.DENSE:
        # Without pruning the layer weights can still be measured, for an episode to reuse.
        if params.confidence_when == 'first' and params.confidence != 'none':
            observe(updates, rows_layer)
        return Plan(
            local, globals_, updates, drops, rows_local, rows_global, rows_layer,
            None, {}, {}, _schedule(observed_layers, {}), tuple(notes),
        )  # fmt: skip
    observe(updates, rows_layer)
    observe(local, rows_local)
    allowed = budgets(layout, params, mode)
    planned: dict[int, int] = {}
    if params.prefilter and len(local) > 1:
        planned[local[0]] = _prefilter_count(layout, params, allowed)
    current = planned[local[-1]] = min(allowed.filled, planned.get(local[0], allowed.filled))
    for layer in drops:
        current = planned[layer] = after_drop(current, layout, params)
    # Each from its own plan, not from the count before it: free tokens do not add up over layers.
    counts = {layer: free_count(count, layout, params) for layer, count in planned.items()}
    prune = dict.fromkeys(counts) if params.exact else counts
    return Plan(
        local, globals_, updates, drops, rows_local, rows_global, rows_layer,
        allowed, planned, counts, _schedule(observed_layers, prune), tuple(notes),
    )  # fmt: skip


def free_tokens(layout: TokenLayout, params: PruningParams, mode: Mode) -> dict[int, int] | None:
    """Vision tokens kept beyond the plan after each prune, because they cost nothing here.

    ``None`` where that was not measured or is not wanted, and where the pruner has counts of its
    own. Raises ParamError where layout and parameters do not fit.
    """
    follows = params.pruner == 'specprune' or (
        params.pruner == 'random' and params.random_like == 'specprune'
    )
    requested = params.free_tokens and not params.exact and mode in (Mode.COARSE, Mode.FINE)
    if layout.latency_curve is None or not (follows and requested):
        return None
    plan = make_plan(layout, params, mode)
    return {layer: plan.counts[layer] - count for layer, count in plan.planned.items()}


def _schedule(observe: dict[int, list[RowGroup]], prune: dict[int, int | None]) -> PruneSchedule:
    return PruneSchedule(
        observed_layers={layer: tuple(groups) for layer, groups in sorted(observe.items())},
        prune=dict(sorted(prune.items())),
    )


def _prefilter_count(layout: TokenLayout, params: PruningParams, allowed: Budgets) -> int:
    """Bound of the first of two prunes: 2 K_L of the first layer, and the other two sets."""
    requested = sum(
        layout.patches
        if camera in params.cameras_kept
        else min(
            layout.patches,
            2 * allowed.local[camera]
            + len(params.layers_global) * allowed.globals[camera]
            + allowed.dynamic[camera],
        )
        for camera in range(layout.cameras)
    )
    # The second prune can only keep what the first one did: leave it room for its own bucket.
    requested = max(requested, allowed.filled)
    return min(-(-requested // params.bucket) * params.bucket, layout.vision_tokens)


class SpecPrune:
    """The method of the paper as a :class:`~specprune_ros.pruning.interface.Pruner`."""

    name = 'specprune'
    pure = True
    uses_similarity = True
    carries_prior = True  # which a dense pass between two queries can make anew

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Schedule of one query; raises ParamError where layout and parameters do not fit."""
        return make_plan(layout, params, mode).schedule

    def begin(self, context: QueryContext) -> SpecPrunePass:
        """Start a pass."""
        return SpecPrunePass(context)


class SpecPrunePass:
    """One query of SpecPrune.

    Carries to the next query: ``prior`` float32 ``[global layers, V]``, the text's attention per
    layer, and ``confidence`` float32 ``[update layers]``.
    """

    def __init__(self, context: QueryContext) -> None:
        self.context = context
        self.layout = context.layout
        self.params = context.params
        self.mode = context.mode
        self.plan = make_plan(context.layout, context.params, context.mode)
        self.schedule = self.plan.schedule
        self.outcome = PassOutcome(notes=list(self.plan.notes))
        self.ids: Tensor | None = None  # patch ids of the current rows; None while all are there
        self.local: dict[int, Tensor] = {}
        self.observed: dict[int, tuple[Tensor, Tensor | None]] = {}  # score and ids, per layer
        self.confidence: dict[int, Tensor] = {}
        self.running: Tensor | None = None  # S, one per current row
        self.attention: Tensor | None = None  # raw score of the last update, for ties
        self.order: Tensor | None = None  # rows by that score, until rows are dropped
        self.union: Tensor | None = None
        self.fused: Tensor | None = None
        self.prior = self._carried('prior', (len(self.plan.globals), self.layout.vision_tokens))
        self.known_confidence = None
        if self.params.confidence_when == 'first':
            self.known_confidence = self._carried('confidence', (len(self.plan.updates),))

    def _carried(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        value = self.context.carry.get(key)
        if value is not None and tuple(value.shape) != shape:
            self.outcome.notes.append(
                f'the remembered {key} is of shape {tuple(value.shape)}, not {shape}: left out'
            )
            return None
        return value

    # What the decoder calls.

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Take head-mean attention ``[rows, current]`` of one layer and row group."""
        plan = self.plan
        score = scores.image_to_text(attention)
        if layer in plan.local and group is plan.rows_local and self.mode is not Mode.DENSE:
            self.local[layer] = self._spread(score)
        if layer in plan.globals and group is plan.rows_global:
            # An expert is observed when the pass is over, about the tokens of each layer.
            self.observed[layer] = (score, ids_in(layer, self.outcome))
        if layer in plan.updates and group is plan.rows_layer:
            weight = self._confidence(layer, attention)
            if self.mode is not Mode.DENSE:
                self._update(score, weight)

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """Choose at one of the scheduled boundaries."""
        if boundary in self.plan.drops:
            keep = self._drop(boundary, rows)
        else:
            keep = self._static(boundary, rows.device)
        if self.ids is None:
            self.ids = keep
        else:
            self.ids = self.ids[keep]
        if self.running is not None and boundary != self.plan.last_drop:
            self.running = self.running[keep]
            # Not needed where the next prune has an update of its own before it.
            stale = boundary in self.plan.ties_carry_over and self.attention is not None
            self.attention = self.attention[keep] if stale else None
        self.order = None
        self.outcome.kept.append((boundary, self.ids))
        return Selection(keep)

    def finish(self) -> PassOutcome:
        """Close the pass: the prior and the layer weights for the next query, sets and scores."""
        if self.observed:
            prior = self._remember()
            self.outcome.carry['prior'] = prior
            self.outcome.scores['global'] = prior.mean(0)
            if self.plan.budgets is not None:
                # Not a method of this pass: a cycle would keep the query's tensors until Python's
                # collector comes by, long after the next queries have worked around them.
                observed = [self._spread(*self.observed[layer]) for layer in self.plan.globals]
                allowed = self.plan.budgets.globals
                self.outcome.attended = partial(_attended, observed, self.layout, allowed)
        if self.known_confidence is not None:
            self.outcome.carry['confidence'] = self.known_confidence
        elif self.params.confidence_when == 'first' and self.confidence:
            measured = [self.confidence[layer] for layer in sorted(self.confidence)]
            self.outcome.carry['confidence'] = torch.stack(measured)
        return self.outcome

    # Static prune.

    def _static(self, boundary: int, device: torch.device) -> Tensor:
        """V_global u V_dynamic u V_local, filled up to the bucket (P2 section 4.2)."""
        first = boundary != self.plan.static
        union, fused = self._join(first, device)
        if self.ids is not None:
            union, fused = union[self.ids], fused[self.ids]
        if not self.params.exact:
            return sets.fill(union, fused, self.plan.counts[boundary])
        lowest = least(self.layout, self.params)
        best = sets.fill(union, fused, max(lowest, int(union.sum())))
        return best

    def _join(self, first: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """The union as a mask ``[V]`` and the fused score that fills it up, ``[V]``.

        ``first``: the authors' extra prune after the first layer, with twice the local budget.
        """
        layout, params, allowed = self.layout, self.params, self.plan.budgets
        assert allowed is not None
        cameras, patches = layout.cameras, layout.patches
        observed = [self.local[layer] for layer in self.plan.local if layer in self.local]
        sources = torch.stack(observed)
        requested = [tuple(2 * k for k in allowed.local) if first else allowed.local] * len(
            observed
        )
        if self.prior is not None:
            sources = torch.cat([sources, self.prior])
            requested += [allowed.globals] * len(self.plan.globals)
        elif params.k_global and not first:
            self.outcome.notes.append('no previous attention: V_global is empty')
        limits = [(0.0,) * cameras] * len(requested)
        similarity = self.context.similarity if params.k_dynamic else None
        moved = similarity is not None and params.dynamic_rule == 'least_similar'
        tau = per_camera(params.tau, cameras)
        joined = sources
        if moved:
            # The k least similar of those below tau are the k highest of - cosine above - tau.
            joined = torch.cat([sources, -similarity[None]])
            requested.append(allowed.dynamic)
            limits.append(tuple(-t for t in tau))
        views = joined.view(-1, cameras, patches)
        best = sets.top_k(views, constant(tuple(requested), torch.int64, device))
        # A token that no pass has scored is in no set, however few others there are.
        best &= views > constant(tuple(limits), torch.float32, device).unsqueeze(-1)
        best = best.view(-1, layout.vision_tokens)
        union = best.any(0)
        self.outcome.sets['local'] = best[: len(observed)].any(0)
        if self.prior is not None:
            self.outcome.sets['global'] = best[len(observed) : len(sources)].any(0)
        if moved:
            self.outcome.sets['dynamic'] = best[-1]
        elif similarity is not None:
            self.outcome.sets['dynamic'] = sets.changed(
                similarity.view(cameras, patches),
                constant(tau, torch.float32, device),
                constant(allowed.dynamic, torch.int64, device),
                params.dynamic_rule,
            ).view(-1)
            union = union | self.outcome.sets['dynamic']
        elif params.k_dynamic and not first:
            self.outcome.notes.append('no reference image: V_dynamic is empty')
        if params.cameras_kept:
            union = union | self._whole_cameras(device)
        fused = sets.shares(sources).sum(0)
        self.outcome.scores['local'] = sources[: len(observed)].mean(0)
        self.outcome.scores['fused'] = fused
        return union, fused

    def _whole_cameras(self, device: torch.device) -> Tensor:
        kept = tuple(camera in self.params.cameras_kept for camera in range(self.layout.cameras))
        return constant(kept, torch.bool, device).repeat_interleave(
            self.layout.patches, output_size=self.layout.vision_tokens
        )

    # Layer-level prune.

    def _confidence(self, layer: int, attention: Tensor) -> Tensor | None:
        """w_conf of an update layer: measured, or the one the episode's first query measured."""
        params = self.params
        if params.confidence == 'none':
            return None
        if self.known_confidence is not None:
            return self.known_confidence[self.plan.updates.index(layer)]
        if params.confidence == 'entropy':
            weight = scores.entropy_confidence(
                attention, params.epsilon, params.confidence_normalised
            )
        else:
            weight = scores.mean_std_confidence(attention, params.epsilon)
        self.confidence[layer] = weight
        return weight

    def _update(self, score: Tensor, weight: Tensor | None) -> None:
        """S <- (1 - beta) S + beta w_rank w_conf (P1, P2)."""
        count = score.shape[0]
        slope = self.params.slope if self.params.slope_per_rank else self.params.slope / count
        order = torch.sort(score, descending=True, stable=True).indices
        by_rank = scores.rank_weights(count, slope, score.device)
        fresh = torch.empty_like(score).scatter_(0, order, by_rank)
        if weight is not None:
            fresh = fresh * weight
        if self.running is None:  # S starts at zero
            self.running = fresh * self.params.beta
        else:
            self.running = scores.ema(self.running, fresh, self.params.beta)
        self.attention, self.order = score, order

    def _drop(self, boundary: int, rows: Tensor) -> Tensor:
        """Drop the lowest running scores; ties by the last raw attention, then by position."""
        count = rows.shape[0]
        keep = self.plan.counts[boundary]
        if self.params.exact:
            keep = after_drop(count, self.layout, self.params)
        running = self.running
        if running is None:
            running = torch.zeros(count, device=rows.device)
        if self.params.cameras_kept and self.ids is not None:
            running = running.masked_fill(self._whole_cameras(rows.device)[self.ids], torch.inf)
        if boundary == self.plan.last_drop:
            self.outcome.scores['layer'] = self._spread(running)
        if self.params.tie_break == 'attention' and self.attention is not None:
            order = self.order
            if order is None:
                order = torch.sort(self.attention, descending=True, stable=True).indices
            order = order[torch.sort(running[order], descending=True, stable=True).indices]
        else:
            order = torch.sort(running, descending=True, stable=True).indices
        return order[:keep].sort().values

    # Memory.

    def _spread(self, score: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores of rows at their patches ``[V]``, the current ones unless ``ids`` says which.

        Zero where a token is gone.
        """
        ids = self.ids if ids is None else ids
        if ids is None or score.shape[0] == self.layout.vision_tokens:
            return score
        return score.new_zeros(self.layout.vision_tokens).scatter_(0, ids, score)

    def _remember(self) -> Tensor:
        """The prior ``[global layers, V]``; tokens this pass dropped keep an older score.

        Attention over fewer tokens is larger for each, so the old scores are rescaled by what the
        tokens seen both times weighed then and now, and fade by ``prior_decay``.
        """
        keep_old = self.params.prior_fill == 'memory' and self.prior is not None
        remembered = []
        for row, layer in enumerate(self.plan.globals):
            score, ids = self.observed[layer]
            if ids is None or not keep_old:
                remembered.append(self._spread(score, ids))
                continue
            assert self.prior is not None
            old = self.prior[row]
            scale = score.sum() / old[ids].sum().clamp_min(1e-30)
            remembered.append((old * (scale * self.params.prior_decay)).scatter_(0, ids, score))
        return torch.stack(remembered)


def _attended(observed: list[Tensor], layout: TokenLayout, allowed: tuple[int, ...]) -> Tensor:
    """V_t: what this query's own deep layers (scores ``[V]`` each) rank highest, to judge the
    prior by.
    """
    stacked = torch.stack(observed)
    k = constant(allowed, torch.int64, stacked.device)
    best = sets.top_k(stacked.view(-1, layout.cameras, layout.patches), k)
    return best.view(-1, layout.vision_tokens).logical_and(stacked > 0).any(0)
