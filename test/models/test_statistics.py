"""Scales: the published numbers, the traps, and statistics that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest

from specprune_ros.models.statistics import Statistics, StatisticsError

OFT = Path(__file__).parents[3] / 'shared' / 'data' / 'openvla_oft_libero_10'
real = pytest.mark.skipif(not OFT.is_dir(), reason='the OFT small files are not beside this tree')
ENTRY = {
    'action': {
        'q01': [-1.0, -2.0, 0.0],
        'q99': [1.0, 6.0, 1.0],
        'min': [-4.0, -4.0, 0.0],
        'max': [4.0, 8.0, 1.0],
        'mask': [True, True, False],
    },
    'proprio': {'q01': [0.0, -1.0], 'q99': [2.0, 1.0], 'min': [-1, -1], 'max': [3, 1]},
}
ROBOTS = {'lab_no_noops': ENTRY}


def test_actions_are_scaled_where_masked_and_never_clipped():
    s = Statistics.from_json(ROBOTS, 'lab')
    out = s.unnormalise_actions(np.array([[0.0, 1.0, 0.3], [-3.0, -1.0, 1.7]], np.float32))
    assert out.dtype == np.float64
    # a = (a' + 1) / 2 (high - low + 1e-8) + low; the gripper passes through.
    expected = [[0.0, 6.0, 0.3], [-3.0, -2.0, 1.7]]
    np.testing.assert_allclose(out, expected, atol=5e-8)
    assert out[0, 1] == 0.5 * 2 * (8 + 1e-8) - 2
    np.testing.assert_allclose(s.normalise_actions(out)[:, :2], [[0, 1], [-3, -1]], atol=1e-12)


def test_proprioception_is_clipped_and_has_no_mask():
    s = Statistics.from_json(ROBOTS)
    out = s.normalise_proprio(np.array([1.5, -9.0], np.float32))
    np.testing.assert_allclose(out, [0.5, -1.0], atol=1e-8)
    assert out.dtype == np.float64


def test_min_max_uses_the_extremes():
    s = Statistics.from_json(ROBOTS, norm='min_max')
    np.testing.assert_allclose(s.unnormalise_actions(np.ones(3)), [4, 8, 1], atol=2e-8)
    np.testing.assert_allclose(s.normalise_proprio(np.array([3.0, 0.0])), [1, 0], atol=1e-8)


def test_cogact_clips_and_binarises_and_has_no_epsilon():
    s = Statistics.from_json(ROBOTS, epsilon=0.0, clip_actions=True, binarise=2)
    out = s.unnormalise_actions(np.array([[2.0, 0.0, 0.49], [-2.0, 0.0, 0.5]]))
    assert out.tolist() == [[1.0, 2.0, 0.0], [-1.0, 2.0, 1.0]]


def test_identity_passes_everything_through():
    s = Statistics.identity()
    assert s.unnormalise_actions(np.array([3.0])).tolist() == [3.0]
    assert s.normalise_proprio(np.array([3.0])).tolist() == [3.0]


@real
def test_the_released_statistics():
    path = OFT / 'dataset_statistics.json'
    s = Statistics.from_json(path, 'libero_10', action_dim=7, proprio_dim=8)
    assert s.key == 'libero_10_no_noops'
    assert s.action_mask.tolist() == [True] * 6 + [False]
    q01, q99 = (np.array(json.loads(path.read_text())[s.key]['action'][q]) for q in ('q01', 'q99'))
    low = s.unnormalise_actions(-np.ones(7))
    high = s.unnormalise_actions(np.ones(7))
    np.testing.assert_allclose(low[:6], q01[:6], atol=1e-7)
    np.testing.assert_allclose(high[:6], q99[:6], atol=1e-7)
    # The gripper leaves the head on its own scale: -1 stays -1 instead of becoming q01 = 0.
    assert (low[6], high[6]) == (-1.0, 1.0)
    np.testing.assert_allclose(s.action_low[:3], [-0.635, -0.774, -0.763], atol=5e-4)
    np.testing.assert_allclose(s.proprio_high[:3], [0.153, 0.329, 1.255], atol=5e-4)


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        ({}, {'key': 'other'}, r"no key 'other'; there are \['lab_no_noops'\]"),
        ({'second': ENTRY}, {}, 'holds 2 robots, give unnorm_key as one of'),
        ({}, {'action_dim': 7}, 'action has 3 dimensions, the model 7: .* another robot'),
        ({}, {'proprio_dim': 8}, 'proprio has 2 dimensions, the model 8'),
        ({'lab_no_noops': {'action': ENTRY['action']}}, {'proprio_dim': 2}, 'proprio is missing'),
        ({'lab_no_noops': {'action': {'q01': [0]}}}, {}, 'action.q99 is missing'),
        ({'lab_no_noops': {'action': {'q01': [2], 'q99': [1]}}}, {}, 'must not exceed'),
        (
            {'lab_no_noops': {'action': {'q01': [float('nan')], 'q99': [1]}}},
            {},
            'finite numbers',
        ),
        ({'lab_no_noops': {'action': {'q01': 'x', 'q99': [1]}}}, {}, 'list of numbers'),
        ({}, {'norm': 'mean'}, 'norm must be q99, min_max or identity'),
    ],
)
def test_statistics_that_cannot_be_used(change, options, message):
    with pytest.raises(StatisticsError, match=message):
        Statistics.from_json({**ROBOTS, **change}, **options)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(StatisticsError, match=r'nothing.json: cannot be read \(No such file'):
        Statistics.from_json(tmp_path / 'nothing.json')
    broken = tmp_path / 'broken.json'
    broken.write_text('{"a": ')
    with pytest.raises(StatisticsError, match='broken.json: not valid JSON'):
        Statistics.from_json(broken)


def test_values_of_the_wrong_length_are_refused():
    s = Statistics.from_json(ROBOTS)
    with pytest.raises(StatisticsError, match='actions have 7 dimensions'):
        s.unnormalise_actions(np.zeros((8, 7)))
    with pytest.raises(StatisticsError, match='proprioception has 8 values'):
        s.normalise_proprio(np.zeros(8))
