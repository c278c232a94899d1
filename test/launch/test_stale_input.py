"""demo.launch.py: the arm moves, its driver falls silent, the executor stops commanding it.

Alone: python -m pytest test/launch/test_stale_input.py
"""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from listener import include, listening, need_launch_pytest, record_exits

need_launch_pytest()

import launch_pytest  # noqa: E402
from launch import LaunchDescription  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]
SLACK = 0.5  # s that a busy test machine may add; the executor's own tests are stricter
exits = {}


@launch_pytest.fixture
def demo(domain, small):
    return LaunchDescription(
        [
            record_exits(exits),
            include('demo.launch.py', params_file=small, seed=3, log_level='warn'),
        ]
    )


@pytest.mark.launch(fixture=demo)
def test_a_silent_driver_stops_the_commands(domain):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    from geometry_msgs.msg import PoseStamped, TwistStamped
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from rcl_interfaces.msg import Log
    from rclpy.qos import qos_profile_rosout_default

    from specprune_ros.nodes.common.remapping import load_profile

    def moving(entry):
        twist = entry[1].twist
        parts = (twist.linear.x, twist.linear.y, twist.linear.z)
        return any((*parts, twist.angular.x, twist.angular.y, twist.angular.z))

    allowed = load_profile('sim_arm').watchdog.state_age
    with listening(domain) as listener:
        commands = listener.hear(TwistStamped, '/sim_arm/cmd_twist')
        states = listener.hear(PoseStamped, '/sim_arm/tcp_pose')
        reports = listener.hear(DiagnosticArray, '/diagnostics')
        logs = []
        listener.node.create_subscription(Log, '/rosout', logs.append, qos_profile_rosout_default)
        moves = listener.wait(lambda: sum(map(moving, commands)) > 20, exits, 90.0)
        assert moves, f'the arm never moved; processes that ended: {exits}'

        deactivate = Transition(id=Transition.TRANSITION_DEACTIVATE)
        request = ChangeState.Request(transition=deactivate)
        assert listener.call(ChangeState, '/sim_arm/change_state', request).success
        listener.spin(3.0)

        silent = states[-1][0]
        assert time.monotonic() - silent > 2.5  # the driver is indeed silent
        after = [entry for entry in commands if entry[0] > silent + allowed + SLACK]
        assert not any(map(moving, after)), 'moves blindly'
        assert not moving(commands[-1])
        executor = [
            status
            for _, report in reports
            for status in report.status
            if status.name.startswith('chunk_executor')
        ]
        assert executor[-1].level == DiagnosticStatus.ERROR
        assert 's old' in executor[-1].message, executor[-1].message
        assert int({pair.key: pair.value for pair in executor[-1].values}['stops']) >= 1
        assert logs and not [log for log in logs if log.level < Log.WARN]
        words = []
        for path in Path('/proc').glob('*/cmdline'):
            with suppress(OSError):  # one that ended meanwhile
                words.append(path.read_bytes().split(b'\0'))
        for name in (b'sim_arm', b'specprune_node', b'chunk_executor'):
            assert any(name + b':=warn' in line for line in words), name
    yield
    ended = {name.rsplit('-', 1)[0] for name in exits}
    assert {'sim_arm', 'specprune_node', 'chunk_executor'} <= ended
    assert set(exits.values()) == {0}, exits
