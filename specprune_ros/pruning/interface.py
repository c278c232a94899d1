"""What a pruner receives, what it answers, and when: the contract between models and pruners.

A query runs the decoder once. Before the pass a pruner announces a :class:`PruneSchedule` (where
it observes, where it prunes, how many tokens stay); during the pass it is handed small attention
rows and answers with the vision rows to keep; afterwards it returns what the next query should
remember.

Layers are counted from 1, as in the paper. Boundary ``l`` is the point after layer ``l``; boundary
0 is before layer 1. Everything here is free of ROS and of any particular model.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from specprune_ros.pruning.params import PruningParams

if TYPE_CHECKING:
    from torch import Tensor


class RowGroup(StrEnum):
    """Query rows whose attention over the vision columns a pruner can request."""

    TEXT = 'text'  # the words of the instruction, without the prompt template
    PROMPT = 'prompt'  # every text row after the images
    ACTION = 'action'  # the rows the actions are read from; the last row where they come later
    LAST = 'last'  # the last row of the sequence
    ALL = 'all'  # every row


class Mode(StrEnum):
    """What the action-aware controller decided for one query."""

    DENSE = 'dense'
    COARSE = 'coarse'
    FINE = 'fine'
    SKIPPED = 'skipped'  # the model was not run: the actions are extrapolated


@dataclass(frozen=True)
class TokenLayout:
    """Where each kind of row sits in one query's sequence, as positions before any pruning.

    ``vision_start`` is the first vision row; cameras follow each other, each ``rows x columns``
    patches in row-major order. ``text`` and ``prompt`` are positions in ascending order and may be
    empty. ``action`` is a half-open range, empty where the actions are denoised after the pass, in
    rows that follow it. ``depth`` is the number of decoder layers.
    ``latency_curve`` is what rows cost where the query runs, ``None`` where nobody measured it.
    ``expert_rows`` are the rows of an action expert that reads the keys and values of this
    sequence; ``action`` is then empty, at the end of the sequence, and the expert's rows are what
    ``RowGroup.ACTION`` means.
    """

    cameras: int
    grid: tuple[int, int]
    vision_start: int
    text: tuple[int, ...]
    prompt: tuple[int, ...]
    action: tuple[int, int]
    length: int
    depth: int
    causal: bool = False
    latency_curve: LatencyCurve | None = None
    expert_rows: int = 0

    @property
    def patches(self) -> int:
        """Vision tokens of one camera."""
        return self.grid[0] * self.grid[1]

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of all cameras, V."""
        return self.cameras * self.patches

    @property
    def vision_stop(self) -> int:
        """One past the last vision row."""
        return self.vision_start + self.vision_tokens

    def rows(self, group: RowGroup) -> tuple[int, ...]:
        """Positions of a row group, ascending."""
        if group is RowGroup.TEXT:
            return self.text
        if group is RowGroup.PROMPT:
            return self.prompt
        if group is RowGroup.ACTION and self.action[0] < self.action[1]:
            return tuple(range(*self.action))
        if group in (RowGroup.ACTION, RowGroup.LAST):
            return (self.length - 1,)
        return tuple(range(self.length))


@dataclass(frozen=True)
class PruneSchedule:
    """What a pruner will do in one pass, fixed before it starts.

    ``observed_layers`` maps a layer to the row groups observed in it. ``prune`` maps a boundary to
    the number of vision tokens left after it, or to ``None`` where the number depends on the data
    (``exact`` mode). ``skip`` are layers left out altogether. With ``reuse`` the rows not kept are
    not removed: their keys and values are taken from the previous query (VLA-Cache).
    """

    observed_layers: Mapping[int, tuple[RowGroup, ...]] = field(default_factory=dict)
    prune: Mapping[int, int | None] = field(default_factory=dict)
    skip: frozenset[int] = frozenset()
    reuse: bool = False

    @property
    def static(self) -> bool:
        """Whether every shape of the pass is known beforehand (a CUDA graph can hold it)."""
        return all(count is not None for count in self.prune.values())


@dataclass(frozen=True)
class Selection:
    """The vision rows that stay at one boundary.

    ``keep``: int64 ``[n]``, ascending, indexing the *current* vision rows (not patch ids).
    ``merge``: float32 ``[m, current]`` or ``None``; each row holds the weights of one new token
    made from the current vision rows, appended after the kept ones (SparseVLM's recycling,
    TEAM-VLA's merging). ``merge_position``: int64 ``[m]``, the current row whose position each new
    token takes.
    """

    keep: Tensor
    merge: Tensor | None = None
    merge_position: Tensor | None = None


@dataclass(frozen=True)
class QueryContext:
    """Everything a pruner may look at before the decoder starts.

    ``similarity``: float32 ``[V]``, cosine of every patch with the same patch in the reference
    frame (1 where unchanged), or ``None`` without a reference. ``carry``: what this pruner's
    previous pass returned, empty after a reset. ``images``: uint8 ``[cameras, height, width,
    3]`` as the policy saw them. ``vision``: ``[V, D]`` projected vision tokens. ``text``: ``[P,
    D]`` input embeddings of the prompt rows, in the order of ``layout.prompt``. ``probe(layer,
    group)`` gives the head-mean attention ``[rows, V]`` that ``layer`` would compute on the
    embeddings, before the pass. ``speed_xyz`` is the end-effector speed in m/s (``None`` unknown),
    ``displacement`` the net translation in metres since the previous query (``None`` unknown).
    """

    layout: TokenLayout
    params: PruningParams
    mode: Mode
    similarity: Tensor | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    vision: Tensor | None = None
    text: Tensor | None = None
    probe: Callable[[int, RowGroup], Tensor] | None = None
    speed_xyz: float | None = None
    displacement: float | None = None
    seed: int = 0


@dataclass
class PassOutcome:
    """What a finished pass reports.

    ``carry`` goes into the next query's context. ``sets`` names, per set, the patches (bool
    ``[V]``) that the set requested. ``kept`` lists ``(boundary, patch ids left after it)``; merged
    tokens have id -1. ``scores`` holds float32 ``[V]`` scores worth showing. ``notes`` are
    messages for the user, such as a fall-back that was taken. ``dense_because`` says why the pass
    ran dense although it was to prune (empty: it ran as planned). ``attended`` computes (bool
    ``[V]``) which tokens this pass's own deep layers ranked highest, as many as the prior may
    name.
    """

    carry: dict[str, Tensor] = field(default_factory=dict)
    sets: dict[str, Tensor] = field(default_factory=dict)
    kept: list[tuple[int, Tensor]] = field(default_factory=list)
    scores: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dense_because: str = ''
    attended: Callable[[], Tensor] | None = None

    @property
    def recall(self) -> float | None:
        """Share of ``attended`` that the set ``global`` named, ``None`` where unknown.

        Reads the tensors, so a GPU is waited for: not for use inside a pass.
        """
        named = self.sets.get('global')
        if named is None or self.attended is None:
            return None
        attended = self.attended()
        total = int(attended.sum())
        return int((named & attended).sum()) / total if total else None


def ids_in(layer: int, outcome: PassOutcome) -> Tensor | None:
    """Patch ids of the vision tokens that ``layer`` had, ``None`` where all were there."""
    before = [ids for boundary, ids in outcome.kept if boundary < layer]
    return before[-1] if before else None


class PrunePass(Protocol):
    """One query's pruner state. The decoder calls it in layer order."""

    schedule: PruneSchedule

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Take head-mean attention, float32 ``[rows, current vision tokens]``, of one layer.

        That of an action expert comes when the decoder is done, layer by layer, over the tokens
        that layer had, averaged over the last steps of its sampler.
        """

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """Choose among the current vision rows (``[current, D]`` hidden states) at a prune
        boundary.

        At a layer that is both observed and pruned, ``observe`` comes first.
        """

    def finish(self) -> PassOutcome:
        """Close the pass."""


class Pruner(Protocol):
    """A pruning method. Holds no state of its own between queries: memory lives in the policy.

    One that compares images has a class attribute ``uses_similarity = True``; for the others the
    comparison is not made. One whose pass depends on nothing but layout, parameters, mode and the
    context's tensors (``similarity``, ``carry``, ``images``, ``vision``, ``text``, ``probe``)
    has ``pure = True``: a CUDA graph may hold it.
    """

    name: str

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Schedule for a query of this layout; raises ``ParamError`` where the two do not fit."""

    def begin(self, context: QueryContext) -> PrunePass:
        """Start a pass."""


# What costs this share more still counts as costing nothing: the noise of a median of replays is
# about half a per cent, and inside a tile attention and norms go on growing a little with the
# rows. It is also the most that the decoder can lose by keeping free tokens.
FREE = 0.02


@dataclass(frozen=True)
class LatencyCurve:
    """``rows`` of a whole sequence, ascending, and the time ``ms`` of the decoder over each.

    Raises ``ValueError`` unless there is one positive, finite time for each of at least one number
    of rows.
    """

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        rows, ms = self.rows, self.ms
        if not rows or len(rows) != len(ms):
            raise ValueError(f'{len(ms)} times for {len(rows)} numbers of rows')
        if rows[0] < 1 or any(b <= a for a, b in zip(rows, rows[1:], strict=False)):
            raise ValueError(f'rows must be positive and ascend, are {list(rows)}')
        if not all(math.isfinite(time) and time > 0 for time in ms):
            raise ValueError(f'times must be positive, are {list(ms)}')

    def free(self, rows: int) -> int:
        """The most rows measured to cost no more than ``rows`` do; never fewer than ``rows``.

        A count costs what the cheapest of those not below it costs (a slower one in between is
        noise or a bad kernel, and there is a way around it), so the curve never falls. Between two
        measured counts the lower one's cost is all that is certain: more is free only where it
        costs no more than that. Below the least and above the most measured nothing is claimed.
        The answer never falls when ``rows`` rises.
        """
        place = bisect_right(self.rows, rows) - 1
        if place < 0:
            return rows
        limit = (1 + FREE) * min(self.ms[place:])
        last = max(i for i in range(place, len(self.ms)) if self.ms[i] <= limit)
        return max(rows, self.rows[last])
