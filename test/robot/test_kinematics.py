import numpy as np
import pytest

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Twist
from specprune_ros.robot.speed import JointSpeed, joint_velocities
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.urdf import urdf

NAMES = [joint.name for joint in rizon4.JOINTS]


def test_the_tool_goes_where_commanded():
    arm = JointSpeed(urdf(), 'tcp')
    q = np.array(rizon4.HOME)
    start = arm.tool_pose(NAMES, q)
    twist = Twist((0.05, -0.03, 0.02), (0.0, 0.1, -0.1))
    for _ in range(100):
        q = q + 0.01 * np.array(joint_velocities(arm.jacobian(NAMES, q), twist))
    moved = geometry.twist_between(start, arm.tool_pose(NAMES, q), 1.0)
    assert moved.six == pytest.approx(twist.six, abs=2e-3)


def test_velocities_stay_bounded_at_a_singularity():
    arm = JointSpeed(urdf(), 'tcp')
    jacobian = arm.jacobian(NAMES, [0.0] * 7)  # stretched straight up
    assert np.linalg.matrix_rank(jacobian, tol=1e-6) < 6
    speeds = joint_velocities(jacobian, Twist((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)))
    # At most |twist| / (2 damping).
    assert np.linalg.norm(speeds) <= np.linalg.norm([0.1] * 6) / 0.04
