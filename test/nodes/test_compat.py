"""What is used of rclpy without a promise works on the version that is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ros_processes import strict_messages

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[2]
PINS = (ROOT / 'constraints.txt').read_text()


def test_the_pinned_version_is_one_that_is_known():
    from specprune_ros.nodes.common import compat

    (pin,) = [line.split('==')[1] for line in PINS.splitlines() if line.startswith('ros-rclpy==')]
    assert pin.rsplit('.', 1)[0] in compat.KNOWN


def test_a_node_tells_its_state_and_what_it_was_started_with():
    import rclpy
    from rclpy.lifecycle import LifecycleNode
    from rclpy.parameter import Parameter

    from specprune_ros.nodes.common.compat import lifecycle_state, start_overrides

    context = rclpy.Context()
    rclpy.init(context=context)
    given = Parameter('rate', value=5.0)
    node = LifecycleNode('compat', context=context, parameter_overrides=[given])
    try:
        assert start_overrides(node) == {'rate': given}
        assert lifecycle_state(node) == 'unconfigured'
        node.trigger_configure()
        assert lifecycle_state(node) == 'inactive'
        # Changed before it is declared, it is what is declared.
        start_overrides(node)['rate'] = Parameter('rate', value=6.0)
        assert node.declare_parameter('rate', 1.0).value == 6.0
    finally:
        node.destroy_node()
        context.try_shutdown()


def test_the_dds_profile_variable_is_that_of_the_distribution():
    from specprune_ros.nodes.common.compat import dds_profile_variable

    assert dds_profile_variable('jazzy') == 'FASTRTPS_DEFAULT_PROFILES_FILE'
    for distro in ('kilted', 'lyrical', 'rolling', ''):
        assert dds_profile_variable(distro) == 'FASTDDS_DEFAULT_PROFILES_FILE'


def test_a_node_of_an_rclpy_that_is_not_known_is_refused_with_the_versions_that_are():
    from specprune_ros.nodes.common.compat import KNOWN, lifecycle_state, start_overrides

    class Other:
        """A node without the private names."""

    with pytest.raises(RuntimeError, match=KNOWN[-1]):
        lifecycle_state(Other())
    assert start_overrides(Other()) == {}


@pytest.mark.parametrize(
    ('distro', 'name', 'other'),
    [
        ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'),
        ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('lyrical', 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
    ],
)
def test_the_environment_names_the_dds_profile_as_the_distribution_reads_it(distro, name, other):
    shell = f'. {ROOT}/scripts/env.sh && echo "${{{name}:-}}|${{{other}:-}}"'
    done = subprocess.run(
        ['bash', '-c', shell],
        env={'PATH': os.environ['PATH'], 'ROS_DISTRO': distro},
        capture_output=True,
        text=True,
        check=True,
    )
    named, unnamed = done.stdout.strip().split('|')
    assert named.startswith(str(ROOT / 'config/fastdds')) and not unnamed


@pytest.mark.parametrize(('value', 'status'), [('[]', 0), ('()', 0), ('set()', 1), ('["x"]', 1)])
def test_nodes_are_tested_with_messages_that_refuse_sets(value, status):
    """As Lyrical will: the processes of all node tests run in this environment."""
    program = f'from sensor_msgs.msg import JointState; JointState().position = {value}'
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, **strict_messages()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert status == 0 or 'AssertionError' in done.stderr
