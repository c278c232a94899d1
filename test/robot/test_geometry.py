import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose, Twist

angle = st.floats(-3.0, 3.0)
vector = st.tuples(angle, angle, angle)


def quaternion(v):
    return geometry.from_rotation_vector(v)


@given(vector)
def test_rotation_vector_agrees_with_scipy(v):
    assert np.allclose(
        Rotation.from_quat(quaternion(v)).as_matrix(), Rotation.from_rotvec(v).as_matrix()
    )


@given(vector)
def test_rotation_vector_goes_the_shorter_way(v):
    back = geometry.rotation_vector(quaternion(v))
    assert math.hypot(*back) <= math.pi + 1e-9
    assert np.allclose(
        Rotation.from_rotvec(back).as_matrix(), Rotation.from_rotvec(v).as_matrix(), atol=1e-9
    )


@given(vector)
def test_the_angle_between_two_orientations_is_scipys(v):
    """A rotation vector is ambiguous: the other way round is the same orientation."""
    angle = math.hypot(*v)
    if angle > 1e-3:
        other = quaternion(geometry.scale(v, 1.0 - math.tau / angle))
        assert geometry.norm(geometry.rotation_between(quaternion(v), other)) < 1e-6
        longer = geometry.rotation_vector(tuple(-c for c in quaternion(v)), shorter=False)
        assert math.hypot(*longer) == pytest.approx(math.tau - angle)


@given(vector)
def test_euler_is_fixed_axis_roll_pitch_yaw(v):
    expected = Rotation.from_euler('xyz', v).as_matrix()  # lower case: fixed axes
    assert np.allclose(
        Rotation.from_quat(geometry.from_euler_xyz(*v)).as_matrix(), expected, atol=1e-9
    )


@given(vector, vector, vector)
def test_multiply_and_rotate_compose(a, b, v):
    both = Rotation.from_rotvec(a) * Rotation.from_rotvec(b)
    out = geometry.rotate(geometry.multiply(quaternion(a), quaternion(b)), v)
    assert np.allclose(out, both.apply(v), atol=1e-9)


@given(vector, vector, vector, vector)
def test_twist_between_leads_there(p, a, q, b):
    start, goal = Pose(p, quaternion(a)), Pose(q, quaternion(b))
    end = geometry.integrate(start, geometry.twist_between(start, goal, 0.5), 0.5)
    assert np.allclose(end.position, goal.position, atol=1e-9)
    assert math.hypot(*geometry.rotation_between(end.orientation, goal.orientation)) < 1e-6


@given(vector, vector, st.floats(0.0, 1.0))
def test_blend_agrees_with_slerp(a, b, share):
    out = geometry.blend(Pose((0, 0, 0), quaternion(a)), Pose((1, 2, 3), quaternion(b)), share)
    turn = Rotation.from_rotvec(b) * Rotation.from_rotvec(a).inv()
    expected = Rotation.from_rotvec(share * turn.as_rotvec()) * Rotation.from_rotvec(a)
    assert np.allclose(out.position, (share, 2 * share, 3 * share))
    if turn.magnitude() < math.pi - 1e-6:  # at half a turn both ways are as short
        assert np.allclose(
            Rotation.from_quat(out.orientation).as_matrix(), expected.as_matrix(), atol=1e-7
        )


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_finite_finds_what_is_not(bad):
    assert not Pose((bad, 0, 0)).finite()
    assert not Pose((0, 0, 0), (0, 0, bad, 1)).finite()
    assert not Pose((0, 0, 0), (0, 0, 0, 0)).finite()
    assert Pose((0, 0, 0)).finite()
    assert not Twist((0, 0, 0), (bad, 0, 0)).finite()


def test_normalised_survives_nothing():
    assert geometry.normalised((0, 0, 0, 0)) == geometry.IDENTITY
    assert geometry.normalised((math.nan, 0, 0, 1)) == geometry.IDENTITY
