"""Every parameter of the pruning methods: default, unit, range, meaning and source, in one place.

The ROS parameters with their descriptors, ``config/specprune.yaml`` and the tables of the
documents are made from :func:`specs`. Token budgets are written for one camera of 16 x 16 patches
and layers for a decoder of 32 layers; :mod:`specprune_ros.pruning.budget` scales them to the
model. Speeds are SI; a negative one is that share of the policy's fastest motion
(:func:`~specprune_ros.pruning.controller.in_si`).

Sources: "P1" is arXiv 2509.05614 v1, "P2" its ICML 2026 version, "C2" the authors' code.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specprune_ros.pruning.interface import TokenLayout

REFERENCE_GRID = 256  # patches per camera the token budgets are written for
REFERENCE_DEPTH = 32  # layers the layer numbers are written for

PRUNERS = (
    'specprune',
    'dense',
    'random',
    'fastv',
    'divprune',
    'sparsevlm',
    'vla_cache',
    'efficientvla',
    'sp_vla',
    'adp',
    'vla_pruner',
    'team_vla',
)
PRESETS = ('default', 'paper', 'authors')
# The first parameter of each group, in the order of the fields; those of other methods follow.
GROUPS = {
    'preset': 'Method',
    'alpha': 'Token budgets',
    'layers_local': 'Where it observes and prunes',
    'prior_fill': 'The last query as prior',
    'history_slope': 'Reference image',
    'prune_layers': 'Layer by layer',
    'v_t_threshold': 'Speed and mode',
    'scheduler': 'Queries without the model',
}
REFRESHES = ('query', 'slack', 'never')
ROWS = ('text', 'prompt', 'action', 'last', 'all')


class ParamError(ValueError):
    """A parameter that is refused; ``name`` says which, ``message`` why and what would do."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(f'{name}: {message}')


@dataclass(frozen=True)
class ParamSpec:
    """What may be known about one parameter before it is set.

    ``type`` is one of ``bool``, ``int``, ``float``, ``str``, ``int[]``, ``float[]``. ``range`` is
    ``(low, high, step)``, both ends allowed, step 0 for any value between; lists: of each element.
    ``group`` is a heading to show it under.
    """

    name: str
    type: str
    default: Any
    unit: str
    range: tuple[float, float, float] | None
    choices: tuple[str, ...]
    description: str
    source: str
    group: str = ''

    @property
    def low(self) -> float | None:
        """Smallest value allowed, ``None`` without a range."""
        return None if self.range is None else self.range[0]

    @property
    def high(self) -> float | None:
        """Largest value allowed, ``None`` without a range."""
        return None if self.range is None else self.range[1]


def _p(
    default: Any,
    kind: str,
    description: str,
    source: str,
    *,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    step: float = 0,
    choices: tuple[str, ...] = (),
) -> Any:
    if kind in ('int', 'int[]') and low is not None:
        step = 1
    return field(
        default=default,
        metadata={
            'type': kind,
            'unit': unit,
            'range': None if low is None else (low, high, step),
            'choices': choices,
            'description': description,
            'source': source,
        },
    )


def _layers(default: tuple[int, ...], description: str, source: str) -> Any:
    return _p(
        default, 'int[]', description, source, unit='layer of 32', low=1, high=REFERENCE_DEPTH
    )


def _share(default: float, description: str, source: str, low: float = 0.0) -> Any:
    return _p(default, 'float', description, source, unit='share', low=low, high=1.0)


def _speed(default: float, description: str, source: str, unit: str) -> Any:
    text = f'{description} Negative: that share of the fastest motion.'
    return _p(default, 'float', text, source, unit=unit, low=-1.0, high=100.0)


@dataclass(frozen=True)
class PruningParams:
    """The pruning parameters in force for one query; immutable, checked on the way in.

    Build one with :meth:`from_mapping`, :meth:`preset_of` or :meth:`replace`: those check types,
    ranges and what cannot go together. :meth:`check` compares with a model's layout.
    """

    # What runs.
    preset: str = _p(
        'default',
        'str',
        'Starting point of all other parameters; setting it resets them.',
        'paper: ICML 2026 text; authors: their code C2; default: this package',
        choices=PRESETS,
    )
    pruner: str = _p('specprune', 'str', 'Pruning method.', 'docs/pruners.md', choices=PRUNERS)
    mode: str = _p(
        'auto',
        'str',
        'auto follows the speed of the end effector; the others force one mode.',
        'P1 section 4.4; forcing is ours',
        choices=('auto', 'dense', 'coarse', 'fine'),
    )

    # Budgets of the static union.
    alpha: float = _p(
        0.8,
        'float',
        'Retention scale: every budget is multiplied by it, so larger keeps more.',
        'P2: 0.8 everywhere',
        low=0.05,
        high=2.0,
    )
    k_global: int = _p(
        30,
        'int',
        "Tokens per camera and layer taken from the previous query's attention, before alpha.",
        'P2: K_G = 30',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    k_local: int = _p(
        24,
        'int',
        "Tokens per camera and layer taken from this query's first layers, before alpha.",
        'P2: K_L = 24',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    k_dynamic: int = _p(
        20,
        'int',
        'Tokens per camera taken where the image changed most, before alpha.',
        'P2: K_D = 20',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    fine_factor: float = _p(
        40 / 24,
        'float',
        'Budgets in fine mode over budgets in coarse mode.',
        'P1: K = 24 coarse, 40 fine',
        low=0.1,
        high=8.0,
    )
    fine_may_shrink: bool = _p(
        False,
        'bool',
        'Allow a fine_factor below 1.',
        'C2 keeps fewer tokens in its precise mode; P1 and P2 keep more',
    )
    camera_factor: tuple[float, ...] = _p(
        (1.0, 1.0),
        'float[]',
        'Factor on k_global and k_local per camera; the last one repeats.',
        'C2: 24 third person, 19 wrist; ours spares the wrist, whose whole view moves',
        low=0.0,
        high=4.0,
    )
    camera_factor_dynamic: tuple[float, ...] = _p(
        (1.0, 1.0),
        'float[]',
        'Factor on k_dynamic per camera; the last one repeats.',
        'C2: 20 third person, 26 wrist',
        low=0.0,
        high=4.0,
    )
    cameras_kept: tuple[int, ...] = _p(
        (),
        'int[]',
        'Cameras, counted from 0, that are never pruned.',
        'an INT4 study that left the wrist camera whole: 93.3 % against 76.7 %',
        low=0,
        high=15,
    )
    tau: tuple[float, ...] = _p(
        (0.986, 0.98),
        'float[]',
        'A patch changed if its cosine with the reference image is below this; per camera.',
        'C2: 0.986 third person, 0.98 wrist',
        low=-1.0,
        high=1.0,
    )
    dynamic_rule: str = _p(
        'least_similar',
        'str',
        'least_similar: the k_dynamic least similar of the changed patches. '
        'complement: every changed patch, and at least k_dynamic (needs exact).',
        'P2; complement is C2',
        choices=('least_similar', 'complement'),
    )
    bucket: int = _p(
        32,
        'int',
        'The union is filled up to a multiple of this many vision tokens of the whole query.',
        'static shapes; 32 or 64 suit GPU tiles',
        unit='tokens',
        low=1,
        high=1024,
    )
    free_tokens: bool = _p(
        True,
        'bool',
        'Keep tokens that cost nothing on this device, where that was measured (model.calibrate). '
        'Not with exact.',
        'ours; docs/bench.md',
    )
    exact: bool = _p(
        False,
        'bool',
        'Keep the bare union, whatever its size: shapes depend on data, the host waits.',
        'P1, P2 and C2 do this',
    )
    prefilter: bool = _p(
        False,
        'bool',
        'Prune once more after the first local layer, to twice k_local and the other sets.',
        'C2',
    )
    keep_min: int = _p(
        32,
        'int',
        'Never fewer vision tokens than this per query of two cameras.',
        'C2: 60; paper: none',
        unit='tokens of 512',
        low=1,
        high=512,
    )

    # Where it observes and prunes.
    layers_local: tuple[int, ...] = _layers(
        (1, 2),
        'Layers of this query that choose V_local; the static prune follows the last.',
        'P2',
    )
    layers_global: tuple[int, ...] = _layers(
        (15, 32), 'Layers whose attention becomes V_global of the next query.', 'P2; C2: 15 and 31'
    )
    rows_local: str = _p(
        'text', 'str', 'Rows whose attention scores V_local.', 'P2; C2 too', choices=ROWS
    )
    rows_global: str = _p(
        'text', 'str', 'Rows whose attention scores V_global.', 'P2; C2 too', choices=ROWS
    )
    rows_layer: str = _p(
        'action',
        'str',
        'Rows whose attention ranks tokens at the update layers.',
        'C2; P2 words it image-to-text',
        choices=ROWS,
    )

    # The previous query as a prior.
    prior_fill: str = _p(
        'memory',
        'str',
        'Score of a token that a pruned pass did not see: zero, or its older score, '
        'rescaled on the tokens both passes saw.',
        'ours: with zero a token once dropped cannot return to V_global; C2: zero',
        choices=('zero', 'memory'),
    )
    prior_decay: float = _share(
        0.9, 'Factor on a remembered score for every query that did not see the token.', 'ours'
    )
    first_dense: bool = _p(
        True, 'bool', 'Run the first query after a reset without pruning.', 'ours; C2 prunes it'
    )
    refresh_when: str = _p(
        'query',
        'str',
        'Where the prior is made anew by a dense pass: in the query (refresh_period, '
        'refresh_change), in the slack while a chunk is executed, or nowhere.',
        'ours; a prior from a pruned pass only knows what was kept',
        choices=REFRESHES,
    )
    refresh_period: int = _p(
        0,
        'int',
        'Every n-th query is dense; 0 for never.',
        'ours: an unbiased prior now and then',
        unit='queries',
        low=0,
        high=10000,
    )
    refresh_change: float = _share(
        1.0,
        'Run a dense query when more than this share of the patches changed; 1: never.',
        'ours',
    )
    reset_gap: float = _p(
        5.0,
        'float',
        'A pause between queries longer than this clears the memory.',
        'ours',
        unit='s',
        low=0.05,
        high=3600.0,
    )

    # The reference image: T = floor(intercept + slope v) + offset.
    history_slope: float = _p(
        -1.0, 'float', 'k of T = floor(b + k v) + c.', 'P2: -1; P1: -8/9', low=-100.0, high=0.0
    )
    history_intercept: float = _p(
        7.0, 'float', 'b of T = floor(b + k v) + c.', 'P2: 7; P1: 22/3', low=0.0, high=100.0
    )
    history_offset: int = _p(
        4,
        'int',
        'c of T = floor(b + k v) + c.',
        'P1, P2: 4; C2: 3',
        unit='control steps',
        low=0,
        high=100,
    )
    history_unit: float = _p(
        -1.0,
        'float',
        'Displacement that counts as v = 1; negative: that share of the longest step.',
        'P1, P2: one unit of the command',
        unit='m',
        low=-1.0,
        high=10.0,
    )
    history_min: int = _p(
        1, 'int', 'Smallest T.', 'C2 clamps', unit='control steps', low=1, high=20
    )
    history_max: int = _p(
        6, 'int', 'Largest T.', 'C2: 6; P2 reaches 11', unit='control steps', low=1, high=20
    )

    # Layer-level pruning.
    prune_layers: tuple[int, ...] = _layers(
        (5, 10, 15, 20), 'Layers after which the lowest scores are dropped.', 'P1 appendix'
    )
    update_layers: tuple[int, ...] = _layers(
        (5, 10, 15, 20),
        'Layers that update the running score, before a prune at the same layer.',
        'ours; C2: 14, 19, 24',
    )
    prune_unscored: bool = _p(
        False,
        'bool',
        'Allow a prune layer before the first update: all scores are zero there.',
        'C2 does',
    )
    drop_ratio: float = _p(
        0.1,
        'float',
        'Share dropped at each prune layer.',
        'P1, P2: 10 %',
        unit='share',
        low=0.0,
        high=0.9,
    )
    drop_of: str = _p(
        'vision',
        'str',
        'What drop_ratio is a share of: the vision tokens left, or all rows left.',
        'P1, P2: tokens kept; C2: all rows, so about 15 % of the vision tokens',
        choices=('vision', 'sequence'),
    )
    beta: float = _share(0.2, 'Weight of a new score in S = (1 - beta) S + beta s.', 'P1, P2: 0.2')
    slope: float = _p(
        10.0,
        'float',
        'k of the rank weight sigmoid(-k rank), over the number of tokens unless slope_per_rank.',
        'k is not printed; C2: 1 per rank',
        low=0.0,
        high=1000.0,
    )
    slope_per_rank: bool = _p(
        False,
        'bool',
        'Take slope per rank, not over the number of tokens.',
        'C2; weights past rank 90 are then zero in float32 and tie',
    )
    tie_break: str = _p(
        'attention',
        'str',
        'Order of equal scores: the attention of the last update, or the position.',
        'ours; C2: position',
        choices=('attention', 'index'),
    )
    confidence: str = _p(
        'entropy',
        'str',
        'Weight of a layer: 1 / (entropy + epsilon), or mean / (deviation + epsilon).',
        'P2; P1',
        choices=('entropy', 'mean_std', 'none'),
    )
    confidence_normalised: bool = _p(
        True,
        'bool',
        'Divide the entropy by ln(tokens), so that layers with fewer tokens are not favoured.',
        'C2; P2 does not say',
    )
    confidence_when: str = _p(
        'every',
        'str',
        'Measure the weight at every query, or at the first of an episode and reuse it.',
        'P2: first; ours: every',
        choices=('every', 'first'),
    )
    epsilon: float = _p(
        1e-8, 'float', 'epsilon of the layer weight.', 'C2: 1e-8', low=1e-12, high=1.0
    )

    # The action-aware controller.
    v_t_threshold: float = _speed(
        -0.35,
        'Fine mode needs a translation slower than this.',
        'C2: 0.35 of the command range',
        'm/s',
    )
    v_r_threshold: float = _speed(
        -0.2,
        'Fine mode needs a rotation slower than this.',
        'C2: 0.2 of the command range',
        'rad/s',
    )
    dz_threshold: float = _speed(
        0.0,
        'Fine mode needs a vertical speed of at most this: the end effector is not being lifted.',
        'P1, P2: dz <= 0',
        'm/s',
    )
    v_t_exit: float = _speed(
        -0.42,
        'Fine mode ends above this translation speed.',
        'P2: the threshold; ours a fifth more, against chatter',
        'm/s',
    )
    v_r_exit: float = _speed(
        -0.24,
        'Fine mode ends above this rotation speed.',
        'P2: the threshold; C2: 0.3; ours a fifth more, against chatter',
        'rad/s',
    )
    dz_exit: float = _speed(
        -0.2,
        'Fine mode ends above this vertical speed.',
        'C2: 0.2 of the command range; P2: only through the translation speed',
        'm/s',
    )
    controller_rule: str = _p(
        'all',
        'str',
        'all: every speed below its threshold. authors: translation slow, '
        'or planar, vertical and rotation speed all slow.',
        'P1, P2; C2',
        choices=('all', 'authors'),
    )
    v_xy_threshold: float = _speed(
        -0.1, 'Planar speed of the authors rule.', 'C2: 0.1 of the command range', 'm/s'
    )
    controller_warmup: int = _p(
        0,
        'int',
        'Queries after a reset that stay coarse whatever the speed.',
        'C2: 10 control steps, 2 queries of 8',
        unit='queries',
        low=0,
        high=1000,
    )
    speed_max_age: float = _p(
        0.5,
        'float',
        'An older speed counts as unknown, which means fine mode.',
        'ours',
        unit='s',
        low=0.001,
        high=60.0,
    )

    # Queries without the model.
    scheduler: str = _p(
        'none',
        'str',
        'ridge: while the hand glides, extrapolate the last actions instead of asking the model.',
        'SP-VLA, arXiv 2506.12723 section 3.2',
        choices=('none', 'ridge'),
    )
    scheduler_size: int = _p(
        6, 'int', 'Executed actions that are extrapolated.', 'SP-VLA: 6', low=2, high=64
    )
    scheduler_v_min: float = _p(
        0.1,
        'float',
        'Slowest translation that counts as gliding.',
        'ours',
        unit='m/s',
        low=0.0,
        high=100.0,
    )
    scheduler_v_max: float = _p(
        1.0,
        'float',
        'Fastest translation that counts as gliding.',
        'ours',
        unit='m/s',
        low=0.0,
        high=100.0,
    )
    scheduler_share: float = _share(
        0.5, 'More than this share of those actions must come from the model.', 'SP-VLA: 0.5'
    )
    scheduler_strength: float = _p(
        1.0, 'float', 'Ridge penalty on the slope.', 'ours', low=0.0, high=1e6
    )

    # Rivals.
    random_layer: int = _p(
        2, 'int', 'Layer after which random tokens go.', 'ours', unit='layer of 32', low=0, high=31
    )
    random_keep: float = _share(0.4, 'Share of the vision tokens that random keeps.', 'ours')
    random_like: str = _p(
        'share',
        'str',
        "Where random drops how many: its own layer and share, or SpecPrune's layers and counts.",
        'ours; the control of docs/fidelity.md',
        choices=('share', 'specprune'),
    )
    fastv_layer: int = _p(
        2,
        'int',
        'K: FastV drops after this layer.',
        'FastV: 2',
        unit='layer of 32',
        low=1,
        high=31,
    )
    fastv_ratio: float = _share(0.5, 'R: share of the vision tokens FastV drops.', 'FastV: 50 %')
    fastv_rows: str = _p(
        'all',
        'str',
        'Rows whose attention FastV averages.',
        'FastV paper: all; its code: last',
        choices=ROWS,
    )
    divprune_keep: float = _share(
        0.098, 'Share of the vision tokens DivPrune keeps.', 'DivPrune: 9.8 %'
    )
    sparsevlm_layers: tuple[int, ...] = _layers(
        (2, 6, 15), 'Layers after which SparseVLM drops.', 'SparseVLM code'
    )
    sparsevlm_keep: tuple[int, ...] = _p(
        (300, 200, 110),
        'int[]',
        'Tokens SparseVLM keeps after each of its layers, without the recycled ones.',
        'SparseVLM code, 192 tokens on average',
        unit='tokens of 576',
        low=1,
        high=576,
    )
    sparsevlm_recycle: float = _share(
        0.3, 'Share of the dropped tokens that are clustered.', 'SparseVLM: 30 %'
    )
    sparsevlm_merge: float = _share(0.1, 'Clusters over clustered tokens.', 'SparseVLM: 1/10')
    vla_cache_layers: tuple[int, ...] = _layers(
        (2, 6, 9, 11), 'Layers after which VLA-Cache stops computing patches.', 'VLA-Cache code'
    )
    vla_cache_similarity: float = _p(
        0.996,
        'float',
        'Cosine from which a patch is static.',
        'VLA-Cache: 0.996',
        low=-1.0,
        high=1.0,
    )
    vla_cache_static: int = _p(
        150,
        'int',
        'Most static patches per camera.',
        'VLA-Cache: 150',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    vla_cache_relevant: int = _p(
        100,
        'int',
        'Patches per camera that the text attended to and that are always computed.',
        'VLA-Cache: 100',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    vla_cache_attention: int = _p(
        16,
        'int',
        'Layer whose attention says what is relevant.',
        'VLA-Cache: 15 counted from 0',
        unit='layer of 32',
        low=1,
        high=32,
    )
    vla_cache_damping: float = _share(
        0.55, 'Factor on a rise of the reuse share from layer to layer.', 'VLA-Cache: 0.55'
    )
    efficientvla_layer: int = _p(
        2,
        'int',
        'Layer whose attention chooses tokens.',
        'ours; the paper says one layer',
        unit='layer of 32',
        low=1,
        high=31,
    )
    efficientvla_skip: tuple[int, ...] = _layers(
        (4, 5, 6, 7),
        'Layers left out.',
        'a calibration on OFT found these most redundant; 28 layers as in P1',
    )
    efficientvla_keep: int = _p(
        56,
        'int',
        'Tokens kept per camera.',
        'EfficientVLA: 56',
        unit='tokens of 256',
        low=1,
        high=REFERENCE_GRID,
    )
    efficientvla_key: int = _p(
        6,
        'int',
        'Key tokens per camera that come first.',
        'EfficientVLA: a few (4 to 8)',
        unit='tokens of 256',
        low=1,
        high=REFERENCE_GRID,
    )
    efficientvla_task: float = _share(
        0.5, 'Share of the remaining places filled by relevance, the rest by diversity.', 'ours'
    )
    sp_vla_layer: int = _p(
        2,
        'int',
        'Layer after which SP-VLA drops.',
        'ours; not printed',
        unit='layer of 32',
        low=1,
        high=31,
    )
    sp_vla_threshold: float = _share(
        0.4, 'Attention, as a share of the best token, that makes a token semantic.', 'ours'
    )
    sp_vla_speed: float = _p(
        0.35,
        'float',
        'Speed from which the threshold holds in full; it relaxes to a quarter at rest.',
        'ours; the paper relaxes it at low speed',
        unit='m/s',
        low=0.0,
        high=10.0,
    )
    sp_vla_edges: float = _share(
        0.1, 'Share of edge pixels that makes a patch spatial.', 'ours; not printed'
    )
    sp_vla_low: float = _p(
        100.0, 'float', 'Lower Canny threshold.', 'a usual choice', low=0.0, high=2000.0
    )
    sp_vla_high: float = _p(
        200.0, 'float', 'Upper Canny threshold.', 'a usual choice', low=0.0, high=2000.0
    )
    adp_keep: float = _share(
        0.75, 'Share of the vision tokens ADP keeps when it prunes.', 'ADP code: 0.75'
    )
    adp_split: tuple[float, ...] = _p(
        (0.4, 0.6),
        'float[]',
        'How the kept tokens are shared between the cameras.',
        'ADP code: 0.4 third person, 0.6 wrist',
        low=0.0,
        high=1.0,
    )
    adp_window: int = _p(
        3, 'int', 'Past moves the gate compares with.', 'ADP: 3', unit='queries', low=1, high=100
    )
    adp_run: int = _p(
        3,
        'int',
        'Pruned queries in a row after which one is dense.',
        'ADP: 3',
        unit='queries',
        low=1,
        high=1000,
    )
    vla_pruner_layer: int = _p(
        3,
        'int',
        'Layer after which VLA-Pruner drops.',
        'VLA-Pruner: 3',
        unit='layer of 32',
        low=1,
        high=31,
    )
    vla_pruner_keep: float = _share(
        0.5, 'Share of the vision tokens VLA-Pruner keeps.', 'VLA-Pruner: 50, 25 or 12.5 %'
    )
    vla_pruner_action_layer: int = _p(
        16,
        'int',
        'Layer whose action attention is remembered.',
        'VLA-Pruner code: 15 counted from 0',
        unit='layer of 32',
        low=1,
        high=32,
    )
    vla_pruner_window: int = _p(
        3,
        'int',
        'Queries of action attention remembered; dense until they are.',
        'VLA-Pruner: 3',
        unit='queries',
        low=1,
        high=100,
    )
    vla_pruner_decay: float = _share(
        0.8, 'Weight of each older query over the newer.', 'VLA-Pruner: 0.8'
    )
    team_vla_kernel: int = _p(
        3,
        'int',
        'Odd width of the window that finds dense marks.',
        'ours; not found',
        unit='patches',
        low=1,
        high=15,
    )
    team_vla_density: float = _share(
        0.2, 'Marked share of the window from which a patch is added.', 'ours; not found'
    )
    team_vla_sample: int = _p(
        8,
        'int',
        'Every n-th patch is kept as context.',
        'ours; not found',
        unit='patches',
        low=1,
        high=256,
    )
    team_vla_layer: int = _p(
        16,
        'int',
        'Layer after which TEAM-VLA merges.',
        'ours; the paper: in the middle',
        unit='layer of 32',
        low=1,
        high=31,
    )
    team_vla_anchors: int = _p(
        80,
        'int',
        'Tokens left after merging, both cameras.',
        'TEAM-VLA: about 80',
        unit='tokens of 512',
        low=1,
        high=512,
    )

    @classmethod
    def preset_of(cls, name: str) -> PruningParams:
        """The parameters of a preset; raises :class:`ParamError` for an unknown name."""
        if name not in PRESETS:
            raise ParamError('preset', f'{name!r} is none of {", ".join(PRESETS)}')
        return cls(preset=name, **_PRESET_CHANGES[name])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PruningParams:
        """Parameters from names and values; what is absent comes from the preset.

        Raises :class:`ParamError` for an unknown name, a wrong type, a value outside its range or
        values that cannot go together.
        """
        return cls.preset_of('default').replace(**dict(values))

    def replace(self, **changes: Any) -> PruningParams:
        """A checked copy with some values changed; a new ``preset`` resets all others first."""
        clean = {name: _clean(name, value) for name, value in changes.items()}
        start = self
        if 'preset' in clean and clean['preset'] != self.preset:
            start = self.preset_of(clean['preset'])
        new = dataclasses.replace(start, **clean)
        _check_together(new)
        return new

    def as_dict(self) -> dict[str, Any]:
        """Names and values, tuples as lists (for YAML and JSON)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def check(self, layout: TokenLayout) -> None:
        """Raise :class:`ParamError` where these parameters and a model cannot go together."""
        from specprune_ros.pruning.registry import pruner

        for camera in self.cameras_kept:
            if camera >= layout.cameras:
                raise ParamError(
                    'cameras_kept',
                    f'camera {camera} does not exist: the model has {layout.cameras}, from 0',
                )
        pruner(self.pruner).plan(layout, self, _planned_mode(self))


def _planned_mode(params: PruningParams) -> Any:
    from specprune_ros.pruning.interface import Mode

    return Mode.FINE if params.mode == 'auto' else Mode(params.mode)


@cache
def specs() -> tuple[ParamSpec, ...]:
    """Every parameter in the order of :class:`PruningParams`."""
    found, group = [], ''
    for f in dataclasses.fields(PruningParams):
        method = next((p for p in PRUNERS if f.name.startswith(f'{p}_')), '')
        group = f'Method {method}' if method else GROUPS.get(f.name, group)
        found.append(ParamSpec(name=f.name, default=f.default, group=group, **f.metadata))
    return tuple(found)


@cache
def _spec_of() -> dict[str, ParamSpec]:
    return {spec.name: spec for spec in specs()}


def _clean(name: str, value: Any) -> Any:
    """The value in its own type, or a :class:`ParamError`."""
    spec = _spec_of().get(name)
    if spec is None:
        close = difflib.get_close_matches(name, _spec_of(), n=1)
        hint = f'; did you mean {close[0]}?' if close else ''
        raise ParamError(name, f'no such parameter{hint}')
    if spec.type.endswith('[]'):
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ParamError(name, f'must be a list of {spec.type[:-2]}, got {value!r}')
        return tuple(_clean_one(spec, spec.type[:-2], item) for item in value)
    return _clean_one(spec, spec.type, value)


def _clean_one(spec: ParamSpec, kind: str, value: Any) -> Any:
    wrong = ParamError(spec.name, f'must be {kind}, got {value!r} ({type(value).__name__})')
    if kind == 'bool':
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind == 'str':
        if not isinstance(value, str):
            raise wrong
        if spec.choices and value not in spec.choices:
            raise ParamError(spec.name, f'{value!r} is none of {", ".join(spec.choices)}')
        return value
    if isinstance(value, bool) or not isinstance(value, Integral if kind == 'int' else Real):
        raise wrong
    number = int(value) if kind == 'int' else float(value)
    if not math.isfinite(number):
        raise ParamError(spec.name, f'must be finite, got {value!r}')
    if spec.range is not None and not spec.range[0] <= number <= spec.range[1]:
        unit = f' ({spec.unit})' if spec.unit else ''
        raise ParamError(
            spec.name, f'{number:g} is outside {spec.range[0]:g} to {spec.range[1]:g}{unit}'
        )
    return number


def _check_together(p: PruningParams) -> None:
    """Raise :class:`ParamError` where parameters contradict each other on every model."""
    _check_budgets(p)
    _check_layers(p)
    if p.fine_factor < 1 and not p.fine_may_shrink:
        raise ParamError(
            'fine_factor',
            f'{p.fine_factor:g} would keep fewer tokens in fine mode than in coarse mode; '
            'take at least 1, or set fine_may_shrink',
        )
    if p.scheduler_v_min > p.scheduler_v_max:
        raise ParamError(
            'scheduler_v_min',
            f'{p.scheduler_v_min:g} is above scheduler_v_max = {p.scheduler_v_max:g}',
        )
    if p.history_unit == 0:
        raise ParamError('history_unit', 'must not be 0')
    if p.history_min > p.history_max:
        raise ParamError('history_min', f'{p.history_min} is above history_max = {p.history_max}')
    for enter, leave in (
        ('v_t_threshold', 'v_t_exit'),
        ('v_r_threshold', 'v_r_exit'),
        ('dz_threshold', 'dz_exit'),
    ):
        low, high = getattr(p, enter), getattr(p, leave)
        # A share and an SI value are compared where the policy is known.
        if low * high >= 0 and abs(high) < abs(low):
            raise ParamError(
                leave,
                f'{high:g} is below {enter} = {low:g}: fine mode would end where it begins',
            )
    if len(p.sparsevlm_layers) != len(p.sparsevlm_keep):
        raise ParamError(
            'sparsevlm_keep',
            f'has {len(p.sparsevlm_keep)} numbers for the {len(p.sparsevlm_layers)} layers of '
            'sparsevlm_layers',
        )
    if p.sp_vla_low > p.sp_vla_high:
        raise ParamError('sp_vla_low', f'{p.sp_vla_low:g} is above sp_vla_high')
    if p.team_vla_kernel % 2 == 0:
        raise ParamError('team_vla_kernel', f'must be odd, got {p.team_vla_kernel}')
    if sum(p.adp_split) <= 0:
        raise ParamError('adp_split', 'must hold a positive share')
    if p.efficientvla_key > p.efficientvla_keep:
        raise ParamError(
            'efficientvla_key',
            f'{p.efficientvla_key} is above efficientvla_keep = {p.efficientvla_keep}',
        )
    if p.dynamic_rule == 'complement' and not p.exact:
        raise ParamError(
            'dynamic_rule',
            'complement has no bound on its size, so it needs exact = true',
        )


def _check_budgets(p: PruningParams) -> None:
    for name in ('camera_factor', 'camera_factor_dynamic', 'tau'):
        if not getattr(p, name):
            raise ParamError(name, 'must name at least one camera')
    for name, factors in (
        ('k_global', p.camera_factor),
        ('k_local', p.camera_factor),
        ('k_dynamic', p.camera_factor_dynamic),
    ):
        budget = getattr(p, name) * p.alpha * max(1.0, p.fine_factor) * max(factors)
        if math.ceil(budget - 1e-6) > REFERENCE_GRID:
            raise ParamError(
                name,
                f'{getattr(p, name)} x alpha {p.alpha:g} x fine_factor {p.fine_factor:g} x camera '
                f'factor {max(factors):g} = {budget:.0f} tokens, but a camera has '
                f'{REFERENCE_GRID} (budgets are written for a 16 x 16 grid)',
            )


def _check_layers(p: PruningParams) -> None:
    for spec in specs():
        if spec.unit == 'layer of 32' and spec.type == 'int[]' or spec.name == 'cameras_kept':
            values = getattr(p, spec.name)
            if any(b <= a for a, b in zip(values, values[1:], strict=False)):
                raise ParamError(spec.name, f'must ascend, got {list(values)}')
    if not p.layers_local:
        raise ParamError('layers_local', 'must name at least one layer: the static prune follows')
    static = p.layers_local[-1]
    if static >= REFERENCE_DEPTH:
        raise ParamError('layers_local', 'nothing is left to save after the last layer')
    if p.prune_layers and p.prune_layers[0] <= static:
        raise ParamError(
            'prune_layers',
            f'{p.prune_layers[0]} is not after the static prune at layer {static} (layers_local)',
        )
    if p.prune_layers and not p.prune_unscored:
        first = p.update_layers[0] if p.update_layers else None
        if first is None or p.prune_layers[0] < first:
            raise ParamError(
                'prune_layers',
                f'{p.prune_layers[0]} prunes before the first score (update_layers = '
                f'{list(p.update_layers)}): all tokens would tie there; add an update at or '
                'before it, or set prune_unscored',
            )
    if p.prefilter and len(p.layers_local) < 2:
        raise ParamError('prefilter', 'needs two layers in layers_local')


_PRESET_CHANGES: dict[str, dict[str, Any]] = {
    'default': {},
    'paper': {
        'camera_factor': (1.0, 0.8),
        'camera_factor_dynamic': (1.0, 0.8),
        'bucket': 16,
        'free_tokens': False,
        'keep_min': 1,
        'prior_fill': 'zero',
        'history_max': 11,
        'confidence_normalised': False,
        'confidence_when': 'first',
        'v_t_exit': -0.35,
        'v_r_exit': -0.2,
        'dz_exit': 100.0,
    },
    'authors': {
        'alpha': 1.0,
        'k_global': 12,
        'k_local': 24,
        'k_dynamic': 20,
        'fine_factor': 15 / 24,
        'fine_may_shrink': True,
        'camera_factor': (1.0, 0.79),
        'camera_factor_dynamic': (1.0, 1.3),
        'dynamic_rule': 'complement',
        'free_tokens': False,
        'exact': True,
        'prefilter': True,
        'keep_min': 60,
        'layers_global': (15, 31),
        'prior_fill': 'zero',
        'first_dense': False,
        'history_slope': -8 / 9,
        'history_intercept': 22 / 3,
        'history_offset': 3,
        'prune_layers': (10, 15, 20, 25),
        'update_layers': (14, 19, 24),
        'prune_unscored': True,
        'drop_of': 'sequence',
        'slope': 1.0,
        'slope_per_rank': True,
        'tie_break': 'index',
        'confidence_when': 'first',
        'v_t_exit': 100.0,
        'v_r_exit': -0.3,
        'dz_threshold': -0.1,
        'controller_rule': 'authors',
        'controller_warmup': 2,
    },
}
