"""What is compared in closed loop: pruners with their parameters, and the controls."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

from specprune_ros.pruning.params import PRESETS, PruningParams
from specprune_ros.pruning.registry import names

CONTROLS = ('asked', 'wrong colour', 'blind')
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # P1 section 5.3 and beyond
REFRESH = (2, 4, 8, 16)  # queries; 0, never, is the default


@dataclass(frozen=True)
class EvaluationSetting:
    """A row of a table.

    ``control``: ``asked`` shows the policy what is there and says what is wanted, ``wrong colour``
    names another cube, ``blind`` shows black images. ``against`` is the label of the row this
    one is also compared with, beside dense.
    """

    label: str
    params: PruningParams = field(default_factory=PruningParams)
    control: str = 'asked'
    against: str = ''

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ValueError(f'control: {self.control!r}, want one of {list(CONTROLS)}')

    def key(self, weights: str, executed: int) -> str:
        """Hex digest of all that decides this row's episodes, but their seeds."""
        params = self.params.as_dict()
        del params['free_tokens']  # the model of an evaluation never knows what is free
        what = [weights, params, self.control, executed]
        text = json.dumps(what, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


DENSE = EvaluationSetting('dense', PruningParams(pruner='dense'))


def specprune(label: str, **changes: object) -> EvaluationSetting:
    """A setting of SpecPrune that differs from its defaults by ``changes``."""
    return EvaluationSetting(
        label, PruningParams().replace(**changes), against=f'random like {label}'
    )


def random_like(setting: EvaluationSetting) -> EvaluationSetting:
    """The control of a SpecPrune setting: as many tokens after the same layers, at random."""
    params = setting.params.replace(pruner='random', random_like='specprune')
    return EvaluationSetting(f'random like {setting.label}', params)


def main_table() -> list[EvaluationSetting]:
    """Dense with its controls, SpecPrune, and random at SpecPrune's layers and counts."""
    default = specprune('specprune')
    return [
        DENSE,
        EvaluationSetting('dense, wrong colour', DENSE.params, 'wrong colour'),
        EvaluationSetting('dense, blind', DENSE.params, 'blind'),
        default,
        random_like(default),
    ]


def pruner_table() -> list[EvaluationSetting]:
    """Every pruner with its published settings, and SpecPrune's presets with their controls."""
    rows = [DENSE]
    for preset in PRESETS:
        label = 'specprune' if preset == 'default' else f'specprune:{preset}'
        row = specprune(label, preset=preset)
        # Where the counts depend on the data, nobody can drop as many without looking.
        rows += [replace(row, against='')] if row.params.exact else [row, random_like(row)]
    rows += [
        EvaluationSetting(name, PruningParams(pruner=name))
        for name in names()
        if name not in ('specprune', 'dense')
    ]
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


TABLES = {
    'main': main_table,
    'pruners': pruner_table,
    'ablations': ablation_table,
}


def table(name: str) -> list[EvaluationSetting]:
    """The rows of a table. Raises ``ValueError`` for an unknown name."""
    try:
        return TABLES[name]()
    except KeyError:
        raise ValueError(f'table: {name!r}, want one of {", ".join(TABLES)}') from None
