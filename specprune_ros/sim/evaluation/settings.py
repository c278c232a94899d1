"""What is compared in closed loop: pruners with their parameters, and the controls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import specprune_ros
from specprune_ros.pruning.interface import Pruner
from specprune_ros.pruning.params import PRESETS, PruningParams
from specprune_ros.pruning.registry import names, pruner, sources

CONTROLS = ('instructed', 'wrong colour', 'blind')
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # P1 section 5.3 and beyond
REFRESH = (2, 4, 8, 16)  # queries; 0, never, is the default

# The rooms and files of this package that decide how an episode goes, beside the method itself.
PACKAGE = Path(specprune_ros.__file__).parent
ROOMS = ('pruning', 'models', 'policy', 'robot', 'sim/arm', 'sim/tasks', 'sim/libero')
EPISODES = tuple(f'sim/evaluation/{name}.py' for name in ('episode', 'evaluate', 'policy_runner'))


@dataclass(frozen=True)
class EvaluationSetting:
    """A row of a table.

    ``control``: ``instructed`` shows the policy what is there and says what is wanted,
    ``wrong colour`` names another cube, ``blind`` shows black images. ``against`` is the label of
    the row this one is also compared with, beside dense. Rows of one ``curve`` differ in one knob.
    """

    label: str
    params: PruningParams = field(default_factory=PruningParams)
    control: str = 'instructed'
    against: str = ''
    curve: str = ''

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ValueError(f'control: {self.control!r}, want one of {list(CONTROLS)}')

    @property
    def measurable(self) -> bool:
        """Whether it can differ from dense."""
        return self.params.pruner != 'dense'

    def key(self, weights: str, executed: int) -> str:
        """Hex digest of all that decides this row's episodes, but their seeds. ``weights``: of the
        checkpoint (:func:`.trials.checkpoint_hash`).

        That is also the source of the pruning method and of the package's rooms that play an
        episode. Another method, a plugin or not, changes nothing. Raises ``PluginError`` for a
        method without a source file.
        """
        standard, params = PruningParams().as_dict(), self.params.as_dict()
        # Only what was changed: another method brings parameters of its own, at their defaults.
        params = {name: value for name, value in params.items() if value != standard[name]}
        params.pop('free_tokens', None)  # the model of an evaluation never knows what is free
        code = [package_hash(), method_hash(self.params.pruner)]
        if self.params.random_like in names():
            code.append(method_hash(self.params.random_like))
        what = [weights, params, self.control, executed, code]
        text = json.dumps(what, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_hash(name: str) -> str:
    """Hex digest of a method's own source files. Raises ``ParamError`` or ``PluginError``."""
    return _method_hash(name, pruner(name))


@cache
def _method_hash(name: str, method: Pruner) -> str:
    return _digest(sources(name))


@cache
def package_hash() -> str:
    """Hex digest of what plays an episode with any method."""
    methods = PACKAGE / 'pruning' / 'rivals'
    files = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob('*.py'))]
    files = [path for path in files if path.parent != methods or path.name == 'base.py']
    return _digest([*files, *(PACKAGE / name for name in EPISODES)])


def _digest(files: Sequence[Path]) -> str:
    made = hashlib.sha256()
    for path in files:
        made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()[:16]


DENSE = EvaluationSetting('dense', PruningParams(pruner='dense'))


def specprune(label: str, **changes: object) -> EvaluationSetting:
    """A setting of SpecPrune that differs from its defaults by ``changes``."""
    return EvaluationSetting(
        label, PruningParams().replace(**changes), against=f'random like {label}'
    )


def random_like(setting: EvaluationSetting) -> EvaluationSetting:
    """The control of a setting: as many tokens after the same layers as its method, at random."""
    params = setting.params.replace(pruner='random', random_like=setting.params.pruner)
    return EvaluationSetting(f'random like {setting.label}', params)


def with_control(setting: EvaluationSetting) -> list[EvaluationSetting]:
    """A setting against its own control; alone where there is none: dense, random itself, and
    SpecPrune's exact mode, whose counts nobody knows without looking.
    """
    params = setting.params
    if params.pruner in ('dense', 'random') or (params.pruner == 'specprune' and params.exact):
        return [replace(setting, against='')]
    control = random_like(setting)
    return [replace(setting, against=control.label), control]


def main_table() -> list[EvaluationSetting]:
    """Dense with its controls; SpecPrune and random at its layers and counts; SpecPrune with fewer
    tokens, its prior made anew in the slack and so no dense first query.
    """
    default = specprune('specprune')
    fewer = specprune('specprune, slack', alpha=0.4, refresh_when='slack', first_dense=False)
    return [
        DENSE,
        EvaluationSetting('dense, wrong colour', DENSE.params, 'wrong colour'),
        EvaluationSetting('dense, blind', DENSE.params, 'blind'),
        default,
        random_like(default),
        replace(fewer, against=''),
    ]


def pruner_table() -> list[EvaluationSetting]:
    """Every pruner as published and SpecPrune's presets, each against its own control."""
    rows = [DENSE]
    for preset in PRESETS:
        label = 'specprune' if preset == 'default' else f'specprune:{preset}'
        rows += with_control(specprune(label, preset=preset))
    for name in names():
        if name not in ('specprune', 'dense'):
            rows += with_control(EvaluationSetting(name, PruningParams(pruner=name)))
    return rows


def ablation_table() -> list[EvaluationSetting]:
    """What each part of SpecPrune is worth (P2 table 5), refresh periods, and alpha."""
    rows = [
        DENSE,
        specprune('specprune'),
        specprune('no prior', k_global=0),
        specprune('no frame difference', k_dynamic=0),
        specprune('no local set', k_local=0),
        specprune('no entropy weights', confidence='none'),
        specprune('no layer-level prune', drop_ratio=0.0),
        specprune('no controller, coarse', mode='coarse'),
        specprune('no controller, fine', mode='fine'),
    ]
    rows += [specprune(f'refresh every {n}', refresh_period=n) for n in REFRESH]
    rows += alpha_table()
    return [EvaluationSetting(row.label, row.params, row.control) for row in rows]


def alpha_table() -> list[EvaluationSetting]:
    """SpecPrune over the retention scale alpha, each with its control."""
    rows = []
    for alpha in ALPHAS:
        setting = specprune(f'alpha {alpha:g}', alpha=alpha)
        rows += [setting, random_like(setting)]
    return rows


# One knob per method, from many tokens to few: on 512 tokens of 605 and 16 layers, with towers of
# a tenth of a query, about 75, 55, 40 and 25 % of a dense query's operations where the method can
# be had at that. VLA-Cache, ADP and SP-VLA keep what their data-dependent rules say.
KNOBS: dict[str, tuple[dict[str, object], ...]] = {
    'specprune': tuple({'alpha': a} for a in (1.8, 1.2, 0.6, 0.1)),
    'random': tuple({'random_keep': k} for k in (0.75, 0.5, 0.3, 0.05)),
    'fastv': tuple({'fastv_ratio': r} for r in (0.25, 0.5, 0.7, 0.95)),
    'divprune': tuple({'divprune_keep': k} for k in (0.75, 0.55, 0.35, 0.15)),
    'sparsevlm': tuple(
        {'sparsevlm_keep': tuple(round(s * k) for k in (300, 200, 110))}
        for s in (1.9, 1.6, 1.0, 0.2)
    ),
    'vla_cache': tuple(
        {'vla_cache_static': s, 'vla_cache_relevant': r}
        for s, r in ((150, 100), (200, 50), (240, 10), (256, 0))
    ),
    'efficientvla': tuple({'efficientvla_keep': k} for k in (216, 150, 90, 24)),
    'sp_vla': tuple({'sp_vla_threshold': t} for t in (0.2, 0.3, 0.4, 0.7)),
    'adp': tuple({'adp_keep': k} for k in (0.75, 0.5, 0.3, 0.1)),
    'vla_pruner': tuple({'vla_pruner_keep': k} for k in (0.7, 0.45, 0.25, 0.05)),
    'team_vla': tuple(
        {'team_vla_sample': n, 'team_vla_anchors': a}
        for n, a in ((1, 400), (2, 240), (3, 140), (8, 80))
    ),
}
LOCAL = (384, 256, 128)  # of 512 tokens, by the attention of the second layer alone


def curve_table() -> list[EvaluationSetting]:
    """Every method over its own retention knob; SpecPrune with the prior made anew in the slack
    as well, and with as many tokens at random; fixed counts by local attention alone.
    """
    rows = [DENSE]
    for name, knobs in KNOBS.items():
        for knob in knobs:
            value = ' '.join(_plain(v) for v in knob.values())
            params = PruningParams(pruner=name).replace(**knob)
            row = EvaluationSetting(f'{name} {value}', params, curve=name)
            if name != 'specprune':
                rows.append(row)
                continue
            control = replace(random_like(row), curve='random like specprune')
            slack = params.replace(refresh_when='slack')
            rows += [
                replace(row, against=control.label),
                control,
                EvaluationSetting(
                    f'{name} {value}, slack',
                    slack,
                    'instructed',
                    control.label,
                    'specprune, slack',
                ),
            ]
    for kept in LOCAL:
        params = PruningParams(pruner='fastv').replace(
            fastv_rows='text', fastv_ratio=1 - kept / 512
        )
        rows.append(EvaluationSetting(f'local {kept}', params, curve='local attention'))
    return rows


def _plain(value: object) -> str:
    return '/'.join(map(str, value)) if isinstance(value, tuple) else f'{value:g}'


TABLES = {
    'main': main_table,
    'pruners': pruner_table,
    'ablations': ablation_table,
    'curves': curve_table,
}


def table(name: str) -> list[EvaluationSetting]:
    """The rows of a table. Raises ``ValueError`` for an unknown name."""
    try:
        return TABLES[name]()
    except KeyError:
        raise ValueError(f'table: {name!r}, want one of {", ".join(TABLES)}') from None
