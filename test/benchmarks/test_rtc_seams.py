"""The three ways to join chunks, on a policy whose chunks scatter."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
rtc_seams = pytest.importorskip('rtc_seams')


def test_going_on_from_the_chunk_before_leaves_small_seams():
    found = {rule: rtc_seams.run(rule, 8.0, 0.2, 0.15, 0) for rule in rtc_seams.RULES}
    jumps = {rule: row['seam']['max'] for rule, row in found.items()}
    assert jumps['rtc'] < 0.5 * jumps['latest']
    assert jumps['weighted_overlap'] < jumps['latest']
    # 0.2 s are four rows, and that is what was counted.
    assert {row['delay_rows'] for row in found.values()} == {4}
