"""arms.launch.py inside a user's launch file: two arms from one file, whose nodes come up by
events, obey their own parameters, meet on no topic, and end with status 0.

Alone: python -m pytest test/launch/test_bring_up.py
"""

import pytest
from listener import cameras_and_arm, include, listening, need_launch_pytest, record_exits

need_launch_pytest()

import launch_pytest  # noqa: E402
from launch import LaunchDescription  # noqa: E402
from launch.actions import GroupAction  # noqa: E402
from launch_ros.actions import PushRosNamespace  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
LEFT, RIGHT = '/cell/left', '/cell/right'
POLICY, EXECUTOR = f'{LEFT}/specprune_node', f'{LEFT}/chunk_executor'
exits = {}


@launch_pytest.fixture(scope='module')
def cell(domain, small, tmp_path_factory):
    """Two namespaces deep, the left arm in dry run, each beside an arm that starts by itself."""
    file = tmp_path_factory.mktemp('arms') / 'cell.yaml'
    # An instruction that were YAML, if it were read as YAML.
    file.write_text("left: {instruction: 'pick: 1e3', dry_run: true}\nright: {robot: sim_arm}\n")
    return LaunchDescription(
        [
            record_exits(exits),
            GroupAction(
                [
                    PushRosNamespace('cell'),
                    *cameras_and_arm('left'),
                    *cameras_and_arm('right'),
                    include('arms.launch.py', arms=file, params_file=small, instruction='lift'),
                ]
            ),
        ]
    )


@pytest.mark.launch(fixture=cell)
def test_both_arms_are_brought_up_and_meet_on_no_topic(domain):
    from geometry_msgs.msg import TwistStamped
    from specprune_ros.msg import ActionChunk

    with listening(domain) as listener:
        chunks, commands = {}, {}
        for space, topic in (
            (LEFT, 'chunk_executor/dry_run/command'),
            (RIGHT, 'sim_arm/cmd_twist'),
        ):
            chunks[space] = listener.hear(ActionChunk, f'{space}/specprune_node/action_chunk')
            commands[space] = listener.hear(TwistStamped, f'{space}/{topic}')
        received = (*chunks.values(), *commands.values())
        assert listener.wait(lambda: all(len(messages) > 2 for messages in received), exits, 200.0)
        assert {chunk.instruction for _, chunk in chunks[LEFT]} == {'pick: 1e3'}
        assert {chunk.instruction for _, chunk in chunks[RIGHT]} == {'lift'}
        for space in (LEFT, RIGHT):
            for node in ('specprune_node', 'chunk_executor'):
                assert listener.state(f'{space}/{node}') == 'active'
        assert listener.node.count_publishers(f'{LEFT}/sim_arm/cmd_twist') == 0  # a dry run
        spaces = {
            info.node_namespace
            for info in listener.node.get_publishers_info_by_topic(f'{RIGHT}/sim_arm/cmd_twist')
        }
        assert spaces == {RIGHT}
        of_all = {'/diagnostics', '/parameter_events', '/rosout', '/clock'}
        topics = {name for name, _ in listener.node.get_topic_names_and_types()} - of_all
        assert not [t for t in topics if not t.startswith((f'{LEFT}/', f'{RIGHT}/'))]


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
    names = {'specprune_node', 'chunk_executor', 'sim_arm', 'play'}
    assert len(exits) == 2 * len(names)
    assert {name.rsplit('-', 1)[0] for name in exits} == names
    assert set(exits.values()) == {0}, exits
