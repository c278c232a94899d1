"""The first motion of an arm: what is sent, and what its preview says."""

import numpy as np
import pytest
from arm_profiles import ARM, HOME, NAMES, make_profile

from specprune_ros.robot import profile as profiles
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.jog import Jog, preview

START = Pose((0.5, -0.1, 0.3), (1.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize('adapter', profiles.ADAPTERS)
def test_two_centimetres_up_and_back_within_the_limits_of_every_adapter(adapter):
    arm = make_profile(adapter)
    joints = dict(zip(NAMES, HOME.tolist(), strict=True))
    start = START
    if adapter == profiles.JOINT_TRAJECTORY:
        start = ARM.tool_pose(NAMES, HOME.tolist())
    jog = Jog(arm, start)
    seen = preview(jog, ARM, joints)
    assert not seen.stopped
    assert seen.rise == pytest.approx(0.02, abs=0.001)
    assert 0.015 < seen.fastest < 0.5 * arm.limits.translation_speed
    assert seen.path[-1].position == pytest.approx(start.position, abs=0.001)
    assert seen.seconds == pytest.approx(jog.duration, abs=0.1)


def test_what_is_no_first_motion_is_refused_and_a_wall_is_said_before_anything_moves():
    arm = make_profile('pose')
    for changes, words in (
        ({'height': 0.2}, 'at most 0.05 m'),
        ({'height': 0.05, 'seconds': 0.5}, 'faster than half of limits.translation_speed'),
        ({'seconds': 0.1}, '0.5 to 20 s'),
    ):
        with pytest.raises(ValueError, match=words):
            Jog(arm, START, **changes)
    for z, words in ((0.69, 'z is 0.710, not 0.02 to 0.7'), (0.9, 'outside limits.workspace')):
        high = Pose((0.5, -0.1, z), START.orientation)
        assert words in preview(Jog(arm, high)).stopped


def test_the_gripper_column_comes_only_where_it_is_wanted():
    jog = Jog(make_profile('twist'), START)
    still, gripping = jog.chunk(9.0, 5, 1), jog.chunk(9.0, 5, 2, 0.0)
    assert still.gripper_dim == -1 and still.opening is None
    assert gripping.opening.tolist() == [0.0] * gripping.horizon
    assert np.abs(gripping.motion[:, :3] - START.position).max() < 1e-12  # back at the start
