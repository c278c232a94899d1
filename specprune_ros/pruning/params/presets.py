"""Starting points of the parameters: what each preset changes of the defaults."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    'default': {},
    'paper': {
        'camera_factor': (1.0, 0.8),
        'camera_factor_dynamic': (1.0, 0.8),
        'bucket': 16,
        'free_tokens': False,
        'keep_min': 1,
        'prior_fill': 'zero',
        'history_max': 11,
        'rows_layer': 'text',
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
        # Theirs count from 0: 10, 15, 20, 25 and 14, 19, 24.
        'prune_layers': (11, 16, 21, 26),
        'update_layers': (15, 20, 25),
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
