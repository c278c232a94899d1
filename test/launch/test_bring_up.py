"""specprune.launch.py inside a user's launch file: nodes come up by events, obey their
parameters, and end with status 0.

Alone: python -m pytest test/launch/test_bring_up.py
"""

import pytest
from listener import cameras_and_arm, include, listening, need_launch_pytest, record_exits

need_launch_pytest()

import launch_pytest  # noqa: E402
from launch import LaunchDescription  # noqa: E402
from launch.actions import GroupAction  # noqa: E402
from launch_ros.actions import PushRosNamespace  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]
POLICY, EXECUTOR = '/cell/arm1/specprune_node', '/cell/arm1/chunk_executor'
exits = {}


@launch_pytest.fixture(scope='module')
def cell(domain, small):
    """Two namespaces deep, in dry run, beside an arm that starts by itself."""
    ours = include(
        'specprune.launch.py',
        robot='sim_arm',
        instruction='pick: 1e3',  # YAML, if it were read as YAML
        namespace='arm1',
        params_file=small,
        dry_run='true',
    )
    return LaunchDescription(
        [
            record_exits(exits),
            *cameras_and_arm(),
            GroupAction([PushRosNamespace('cell'), ours]),
        ]
    )


@pytest.mark.launch(fixture=cell)
def test_both_nodes_are_brought_up_and_chunks_become_dry_commands(domain):
    from geometry_msgs.msg import TwistStamped
    from specprune_ros.msg import ActionChunk

    with listening(domain) as listener:
        chunks = listener.hear(ActionChunk, f'{POLICY}/action_chunk')
        commands = listener.hear(TwistStamped, f'{EXECUTOR}/dry_run/command')
        assert listener.wait(lambda: len(chunks) > 2 and commands, exits)
        assert listener.state(POLICY) == 'active'
        assert listener.state(EXECUTOR) == 'active'
        assert chunks[-1][1].instruction == 'pick: 1e3'
        assert listener.node.count_publishers('/sim_arm/cmd_twist') == 0


@pytest.mark.launch(fixture=cell)
def test_parameters_come_from_profile_file_and_arguments(domain):
    with listening(domain) as listener:
        names = ('autostart', 'cameras', 'speed.tip_frame', 'model.threads', 'use_sim_time')
        autostart, *rest = listener.get(POLICY, *names)
        assert autostart is False  # launch did it
        assert rest == [['agent', 'wrist'], 'tcp', 1, False]
        assert listener.get(EXECUTOR, 'dry_run', 'policy') == [True, POLICY]


@pytest.mark.launch(fixture=cell)
def test_parameters_are_live_and_checked(domain):
    from specprune_ros.msg import ActionChunk, PruneStats

    with listening(domain) as listener:
        stats = listener.hear(PruneStats, f'{POLICY}/prune_stats')
        listener.hear(ActionChunk, f'{POLICY}/action_chunk')
        accepted, reason = listener.set(POLICY, 'pruning.alpha', 9.0)
        assert not accepted
        assert 'alpha' in reason
        assert listener.set(POLICY, 'pruning.pruner', 'dense') == (True, '')
        assert listener.wait(lambda: stats and stats[-1][1].pruner == 'dense', exits)
        accepted, reason = listener.set(POLICY, 'cameras', ['agent'])
        assert not accepted
        assert 'fixed while the node is configured' in reason


@pytest.mark.launch(fixture=cell)
def test_transitions_after_the_first_are_the_users_own(domain):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    with listening(domain) as listener:
        for number in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            request = ChangeState.Request(transition=Transition(id=number))
            assert listener.call(ChangeState, f'{EXECUTOR}/change_state', request).success
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        assert listener.call(ChangeState, f'{EXECUTOR}/change_state', request).success
        listener.spin(2.0)
        assert listener.state(EXECUTOR) == 'inactive'  # launch must not activate it again


@pytest.mark.launch(fixture=cell, shutdown=True)
def test_every_process_ends_with_status_0():
    names = ('specprune_node', 'chunk_executor', 'sim_arm', 'play')
    assert exits == dict.fromkeys(names, 0)
