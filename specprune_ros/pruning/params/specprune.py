"""SpecPrune's parameters and what all methods share; other methods' own travel with them.

The ROS parameters with their descriptors, ``config/specprune.yaml`` and the tables of the
documents are made from :func:`specs`. Speeds are SI; a negative one is that share of the
policy's fastest motion (:func:`~specprune_ros.pruning.controller.in_si`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specprune_ros.pruning.params.consistency import check_together
from specprune_ros.pruning.params.presets import PRESETS
from specprune_ros.pruning.params.schema import (
    METHODS,
    REFERENCE_GRID,
    ROWS,
    ParamError,
    ParamSpec,
    clean,
    layers,
    param,
    share,
    specs_of,
    speed,
)

REFRESHES = ('query', 'slack', 'never')
# The first parameter of each group, in the order of the fields.
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


@dataclass(frozen=True)
class PruningParams:
    """The pruning parameters in force for one query; immutable, checked on the way in.

    Build one with :meth:`from_mapping`, :meth:`preset_of` or :meth:`replace`: those check types,
    ranges and what cannot go together; ``registry.check_params`` compares with a model's layout.
    Another method's own parameters are attributes too (``params.fastv_layer``).
    """

    # What runs.
    preset: str = param(
        'default',
        'Starting point of all other parameters; setting it resets them.',
        'paper: ICML 2026 text; authors: their code C2; default: this package',
        choices=tuple(PRESETS),
        host_only=True,
    )
    pruner: str = param(
        'specprune', 'Pruning method.', 'docs/reference/pruners.md', choices=('specprune',)
    )
    mode: str = param(
        'auto',
        'auto follows the speed of the end effector; the others force one mode.',
        'P1 section 4.4; forcing is ours',
        choices=('auto', 'dense', 'coarse', 'fine'),
        host_only=True,
    )

    # Budgets of the static union.
    alpha: float = param(
        0.7,
        'Retention scale: every budget is multiplied by it, so larger keeps more.',
        'P2: 0.8 everywhere; ours: docs/explanation/fidelity.md',
        low=0.05,
        high=2.0,
    )
    k_global: int = param(
        30,
        "Tokens per camera and layer taken from the previous query's attention, before alpha.",
        'P2: K_G = 30',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    k_local: int = param(
        24,
        "Tokens per camera and layer taken from this query's first layers, before alpha.",
        'P2: K_L = 24',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    k_dynamic: int = param(
        20,
        'Tokens per camera taken where the image changed most, before alpha.',
        'P2: K_D = 20',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    fine_factor: float = param(
        40 / 24,
        'Budgets in fine mode over budgets in coarse mode.',
        'P1: K = 24 coarse, 40 fine',
        low=0.1,
        high=8.0,
    )
    fine_may_shrink: bool = param(
        False,
        'Allow a fine_factor below 1.',
        'C2 keeps fewer tokens in its precise mode; P1 and P2 keep more',
    )
    camera_factor: tuple[float, ...] = param(
        (1.0, 1.0),
        'Factor on k_global and k_local per camera; the last one repeats.',
        'C2: 24 third person, 19 wrist; ours spares the wrist, whose whole view moves',
        low=0.0,
        high=4.0,
    )
    camera_factor_dynamic: tuple[float, ...] = param(
        (1.0, 1.0),
        'Factor on k_dynamic per camera; the last one repeats.',
        'C2: 20 third person, 26 wrist',
        low=0.0,
        high=4.0,
    )
    cameras_kept: tuple[int, ...] = param(
        (),
        'Cameras, counted from 0, that are never pruned.',
        'an INT4 study that left the wrist camera whole: 93.3 % against 76.7 %',
        low=0,
        high=15,
    )
    tau: tuple[float, ...] = param(
        (0.986, 0.98),
        'A patch changed if its cosine with the reference image is below this; per camera.',
        'C2: 0.986 third person, 0.98 wrist',
        low=-1.0,
        high=1.0,
    )
    dynamic_rule: str = param(
        'least_similar',
        'least_similar: the k_dynamic least similar of the changed patches. '
        'complement: every changed patch, and at least k_dynamic (needs exact).',
        'P2; complement is C2',
        choices=('least_similar', 'complement'),
    )
    bucket: int = param(
        32,
        'The union is filled up to a multiple of this many vision tokens of the whole query.',
        'static shapes; 32 or 64 suit GPU tiles',
        unit='tokens',
        low=1,
        high=1024,
    )
    free_tokens: bool = param(
        True,
        'Keep tokens that cost nothing on this device, where that was measured (model.calibrate). '
        'Not with exact.',
        'ours; docs/how-to/bench.md',
    )
    exact: bool = param(
        False,
        'Keep the bare union, whatever its size: shapes depend on data, the host waits.',
        'P1, P2 and C2 do this',
    )
    prefilter: bool = param(
        False,
        'Prune once more after the first local layer, to twice k_local and the other sets.',
        'C2',
    )
    keep_min: int = param(
        32,
        'Never fewer vision tokens than this per query of two cameras.',
        'C2: 60; paper: none',
        unit='tokens of 512',
        low=1,
        high=512,
    )

    # Where it observes and prunes.
    layers_local: tuple[int, ...] = layers(
        (1, 2),
        'Layers of this query that choose V_local; the static prune follows the last.',
        'P2',
    )
    layers_global: tuple[int, ...] = layers(
        (15, 32), 'Layers whose attention becomes V_global of the next query.', 'P2; C2: 15 and 31'
    )
    rows_local: str = param(
        'text', 'Rows whose attention scores V_local.', 'P2; C2 too', choices=ROWS
    )
    rows_global: str = param(
        'auto',
        'Rows whose attention scores V_global; auto: text, or the action expert of a flow policy.',
        'P2; C2 too: text',
        choices=('auto', *ROWS),
    )
    rows_layer: str = param(
        'action',
        'Rows whose attention ranks tokens at the update layers (flow policies: text for action).',
        'C2; P2 words it image-to-text',
        choices=ROWS,
    )

    # The previous query as a prior.
    prior_fill: str = param(
        'memory',
        'Score of a token that a pruned pass did not see: zero, or its older score, '
        'rescaled on the tokens both passes saw.',
        'ours: with zero a token once dropped cannot return to V_global; C2: zero',
        choices=('zero', 'memory'),
    )
    prior_decay: float = share(
        0.9, 'Factor on a remembered score for every query that did not see the token.', 'ours'
    )
    first_dense: bool = param(
        True,
        'Run the first query after a reset without pruning.',
        'ours; C2 prunes it',
        host_only=True,
    )
    refresh_when: str = param(
        'query',
        'Where the prior is made anew by a dense pass: in the query (refresh_period, '
        'refresh_change), in the slack while a chunk is executed, or nowhere. There is a slack '
        'only with query_rate above 0 or query_when chunk.',
        'ours; a prior from a pruned pass only knows what was kept',
        choices=REFRESHES,
        host_only=True,
    )
    refresh_period: int = param(
        0,
        'Every n-th query is dense; 0 for never.',
        'ours: an unbiased prior now and then',
        unit='queries',
        low=0,
        high=10000,
        host_only=True,
    )
    refresh_change: float = share(
        1.0,
        'Run a dense query when more than this share of the patches changed; 1: never.',
        'ours',
        host_only=True,
    )
    reset_gap: float = param(
        5.0,
        'A pause between queries longer than this clears the memory; 1.5 times what a chunk or '
        'the query period takes, or 3 times what a query takes, is never one.',
        'ours',
        unit='s',
        low=0.05,
        high=3600.0,
        host_only=True,
    )

    # The reference image: T = floor(intercept + slope v) + offset.
    history_slope: float = param(
        -1.0,
        'k of T = floor(b + k v) + c.',
        'P2: -1; P1: -8/9',
        low=-100.0,
        high=0.0,
        host_only=True,
    )
    history_intercept: float = param(
        7.0,
        'b of T = floor(b + k v) + c.',
        'P2: 7; P1: 22/3',
        low=0.0,
        high=100.0,
        host_only=True,
    )
    history_offset: int = param(
        4,
        'c of T = floor(b + k v) + c.',
        'P1, P2: 4; C2: 3',
        unit='control steps',
        low=0,
        high=100,
        host_only=True,
    )
    history_unit: float = param(
        -1.0,
        'Displacement that counts as v = 1; negative: that share of the longest step.',
        'P1, P2: one unit of the command',
        unit='m',
        low=-1.0,
        high=10.0,
        host_only=True,
    )
    history_min: int = param(
        1,
        'Smallest T.',
        'C2 clamps',
        unit='control steps',
        low=1,
        high=20,
        host_only=True,
    )
    history_max: int = param(
        6,
        'Largest T.',
        'C2: 6; P2 reaches 11',
        unit='control steps',
        low=1,
        high=20,
        host_only=True,
    )

    # Layer-level pruning.
    prune_layers: tuple[int, ...] = layers(
        (5, 10, 15, 20), 'Layers after which the lowest scores are dropped.', 'P1 appendix'
    )
    update_layers: tuple[int, ...] = layers(
        (5, 10, 15, 20),
        'Layers that update the running score, before a prune at the same layer.',
        'ours; C2: 15, 20, 25',
    )
    prune_unscored: bool = param(
        False,
        'Allow a prune layer before the first update: all scores are zero there.',
        'C2 does',
    )
    drop_ratio: float = param(
        0.1,
        'Share dropped at each prune layer.',
        'P1, P2: 10 %',
        unit='share',
        low=0.0,
        high=0.9,
    )
    drop_of: str = param(
        'vision',
        'What drop_ratio is a share of: the vision tokens left, or all rows left.',
        'P1, P2: tokens kept; C2: all rows, so about 15 % of the vision tokens',
        choices=('vision', 'sequence'),
    )
    beta: float = share(0.2, 'Weight of a new score in S = (1 - beta) S + beta s.', 'P1, P2: 0.2')
    slope: float = param(
        10.0,
        'k of the rank weight sigmoid(-k rank), over the number of tokens unless slope_per_rank.',
        'k is not printed; C2: 1 per rank',
        low=0.0,
        high=1000.0,
    )
    slope_per_rank: bool = param(
        False,
        'Take slope per rank, not over the number of tokens.',
        'C2; weights past rank 90 are then zero in float32 and tie',
    )
    tie_break: str = param(
        'attention',
        'Order of equal scores: the attention of the last update, or the position.',
        'ours; C2: position',
        choices=('attention', 'index'),
    )
    confidence: str = param(
        'entropy',
        'Weight of a layer: 1 / (entropy + epsilon), or mean / (deviation + epsilon).',
        'P2; P1',
        choices=('entropy', 'mean_std', 'none'),
    )
    confidence_normalised: bool = param(
        True,
        'Divide the entropy by ln(tokens), so that layers with fewer tokens are not favoured.',
        'C2; P2 does not say',
    )
    confidence_when: str = param(
        'every',
        'Measure the weight at every query, or at the first of an episode and reuse it.',
        'P2: first; ours: every',
        choices=('every', 'first'),
    )
    epsilon: float = param(1e-8, 'epsilon of the layer weight.', 'C2: 1e-8', low=1e-12, high=1.0)

    # The action-aware controller.
    v_t_threshold: float = speed(
        -0.35,
        'Fine mode needs a translation slower than this.',
        'C2: 0.35 of the command range',
        'm/s',
    )
    v_r_threshold: float = speed(
        -0.2,
        'Fine mode needs a rotation slower than this.',
        'C2: 0.2 of the command range',
        'rad/s',
    )
    dz_threshold: float = speed(
        0.0,
        'Fine mode needs a vertical speed of at most this: the end effector is not being lifted.',
        'P1, P2: dz <= 0',
        'm/s',
    )
    v_t_exit: float = speed(
        -0.42,
        'Fine mode ends above this translation speed.',
        'P2: the threshold; ours a fifth more, against chatter',
        'm/s',
    )
    v_r_exit: float = speed(
        -0.24,
        'Fine mode ends above this rotation speed.',
        'P2: the threshold; C2: 0.3; ours a fifth more, against chatter',
        'rad/s',
    )
    dz_exit: float = speed(
        -0.2,
        'Fine mode ends above this vertical speed.',
        'C2: 0.2 of the command range; P2: only through the translation speed',
        'm/s',
    )
    controller_rule: str = param(
        'all',
        'all: every speed below its threshold. authors: translation slow, '
        'or planar, vertical and rotation speed all slow.',
        'P1, P2; C2',
        choices=('all', 'authors'),
        host_only=True,
    )
    v_xy_threshold: float = speed(
        -0.1, 'Planar speed of the authors rule.', 'C2: 0.1 of the command range', 'm/s'
    )
    controller_warmup: int = param(
        0,
        'Queries after a reset that stay coarse however slow; an unknown or stale speed still '
        'means fine.',
        'C2: 10 control steps, 2 queries of 8',
        unit='queries',
        low=0,
        high=1000,
        host_only=True,
    )
    speed_max_age: float = param(
        0.5,
        'An older speed counts as unknown, which means fine mode; that of a chunk holds while '
        'it is played.',
        'ours',
        unit='s',
        low=0.001,
        high=60.0,
        host_only=True,
    )

    # Queries without the model.
    scheduler: str = param(
        'none',
        'ridge: in steady motion, extrapolate the last actions instead of running the model; only '
        'for rows that are steps or joint positions, without a gripper among the joints.',
        'SP-VLA, arXiv 2506.12723 section 3.2',
        choices=('none', 'ridge'),
        host_only=True,
    )
    scheduler_size: int = param(
        6,
        'Executed actions that are extrapolated.',
        'SP-VLA: 6',
        low=2,
        high=64,
        host_only=True,
    )
    scheduler_v_min: float = param(
        0.1,
        'Slowest translation that counts as gliding.',
        'ours',
        unit='m/s',
        low=0.0,
        high=100.0,
        host_only=True,
    )
    scheduler_v_max: float = param(
        1.0,
        'Fastest translation that counts as gliding.',
        'ours',
        unit='m/s',
        low=0.0,
        high=100.0,
        host_only=True,
    )
    scheduler_share: float = share(
        0.5,
        'More than this share of those actions must come from the model.',
        'SP-VLA: 0.5',
        host_only=True,
    )
    scheduler_strength: float = param(
        1.0,
        'Ridge penalty on the slope.',
        'ours',
        low=0.0,
        high=1e6,
        host_only=True,
    )

    # Values of other methods' own parameters (``METHODS``) that differ from their defaults.
    own: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def preset_of(cls, name: str) -> PruningParams:
        """The parameters of a preset; raises :class:`ParamError` for an unknown name."""
        if name not in PRESETS:
            raise ParamError('preset', f'{name!r} is none of {", ".join(PRESETS)}')
        return cls(preset=name, **PRESETS[name])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PruningParams:
        """Parameters from names and values; what is absent comes from the preset.

        Raises :class:`ParamError` for an unknown name, a wrong type, a value outside its range or
        values that cannot go together.
        """
        return cls.preset_of('default').replace(**dict(values))

    def replace(self, **changes: Any) -> PruningParams:
        """A checked copy with some values changed; a new ``preset`` resets all others first."""
        known = {spec.name: spec for spec in specs()}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f'; did you mean {close[0]}?' if close else ''
                raise ParamError(name, f'no such parameter{hint}')
            values[name] = clean(known[name], value)
        start = self
        if 'preset' in values and values['preset'] != self.preset:
            start = self.preset_of(values['preset'])
        shared = {name: value for name, value in values.items() if name in _SHARED}
        own = dict(start.own)
        own |= {name: value for name, value in values.items() if name not in _SHARED}
        own = {name: value for name, value in own.items() if value != known[name].default}
        new = dataclasses.replace(start, **shared, own=tuple(sorted(own.items())))
        check_together(new, specs())
        return new

    def as_dict(self) -> dict[str, Any]:
        """Names and values, tuples as lists (for YAML and JSON)."""
        values = {spec.name: getattr(self, spec.name) for spec in specs()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def __getattr__(self, name: str) -> Any:
        """Another method's own parameter."""
        if not name.startswith('_'):
            for method in METHODS.values():
                for spec in method.specs:
                    if spec.name == name:
                        return dict(self.own).get(name, spec.default)
        raise AttributeError(f'no such parameter: {name}')


def specs() -> tuple[ParamSpec, ...]:
    """Every parameter: those all methods share, then each method's own."""
    names = tuple(METHODS)
    others = {'pruner': names, 'random_like': ('share', *(n for n in names if n != 'random'))}
    found, group = [], ''
    for spec in specs_of(PruningParams):
        group = GROUPS.get(spec.name, group)
        found.append(dataclasses.replace(spec, group=group))
    for method in METHODS.values():
        group = f'Method {method.name}'
        found += (dataclasses.replace(spec, group=group) for spec in method.specs)
    return tuple(
        dataclasses.replace(spec, choices=others[spec.name]) if spec.name in others else spec
        for spec in found
    )


_SHARED = frozenset(spec.name for spec in specs_of(PruningParams))
