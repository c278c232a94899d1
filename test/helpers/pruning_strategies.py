"""Hypothesis strategies for layouts and pruning parameters, and what every pass must satisfy."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from small_models import small_layout

from specprune_ros.pruning.params import PRESETS, PruningParams

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)

shares = st.floats(0.05, 1.0)
layouts = st.builds(
    small_layout,
    cameras=st.integers(1, 3),
    grid=st.sampled_from([4, 8]),
    depth=st.sampled_from([5, 8]),
    causal=st.booleans(),
    words=st.integers(0, 4),
)
changes = st.fixed_dictionaries(
    {
        'preset': st.sampled_from(sorted(PRESETS)),
        'alpha': shares,
        'k_global': st.integers(0, 60),
        'k_local': st.integers(0, 60),
        'k_dynamic': st.integers(0, 60),
        'camera_factor': st.lists(st.floats(0.2, 1.0), min_size=1, max_size=3),
        'bucket': st.sampled_from([1, 16, 64]),
        'drop_ratio': st.floats(0.0, 0.5),
        'drop_of': st.sampled_from(['vision', 'sequence']),
        'keep_min': st.integers(1, 200),
        'tau': st.lists(st.floats(0.9, 1.0), min_size=1, max_size=2),
        'prior_fill': st.sampled_from(['zero', 'memory']),
        'prefilter': st.booleans(),
        'tie_break': st.sampled_from(['attention', 'index']),
    }
)


def parameters(change, exact):
    exact = exact or change['preset'] == 'authors'
    return PruningParams.from_mapping({**change, 'exact': exact})


def check_rows(layout, outcome, output, running):
    """Only vision rows go, the rest keep order and position; sizes are the announced ones."""
    vision = range(layout.vision_start, layout.vision_stop)
    positions = output.positions.tolist()
    others = [row for row in range(layout.length) if row not in vision]
    assert [row for row in positions if row not in vision] == others
    ids = output.vision_ids
    whole = ids[ids >= 0]
    assert torch.equal(whole, whole.unique(sorted=True))
    if len(whole) == len(ids):
        assert [row for row in positions if row in vision] == (
            whole + layout.vision_start
        ).tolist()
    assert [boundary for boundary, _ in outcome.kept] == sorted(running.schedule.prune)
    for boundary, kept in outcome.kept:
        announced = running.schedule.prune[boundary]
        assert announced is None or announced == len(kept)
        assert 0 < len(kept) <= layout.vision_tokens
    for earlier, later in zip(outcome.kept, outcome.kept[1:], strict=False):
        merged = (earlier[1] < 0).any() or (later[1] < 0).any()
        assert merged or set(later[1].tolist()) <= set(earlier[1].tolist())
    if outcome.kept:
        assert torch.equal(outcome.kept[-1][1], ids)
