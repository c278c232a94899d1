"""``bench`` of a flow policy: prefix and expert apart, weights counted as they are read."""

from dataclasses import replace

import pytest
import torch

from specprune_ros.bench.roofline import weight_traffic
from specprune_ros.models.build import cast, empty
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.presets import PI0_3B, PI05_3B


@pytest.mark.parametrize(
    ('config', 'expert'), [(PI0_3B, 0.629), (PI05_3B, 0.629)], ids=['pi0', 'pi05']
)
def test_bytes_read_are_the_published_ones(config, expert):
    model = cast(empty(config), torch.bfloat16)
    rows = 532
    work = [LayerRows(rows, rows, rows)] * 17 + [LayerRows(rows, 0, rows)]
    found = weight_traffic(model, work)
    assert found.vision == pytest.approx(0.825e9, rel=0.01)
    assert found.decoder == pytest.approx(3.75e9, rel=0.01)
    # Each step reads the expert; what time modulates (pi0.5) lies in tables.
    assert found.head / config.flow.steps == pytest.approx(expert * 1e9, rel=0.03)
    fewer = replace(config, flow=replace(config.flow, steps=5))
    model.config = fewer
    assert weight_traffic(model, work).head == found.head // 2
