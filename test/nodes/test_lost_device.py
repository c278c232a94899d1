"""A device that fails while the node works: a clear state, no more chunks, and the way back."""

import time
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]

FAULTY = Path(__file__).with_name('faulty_node.py')
CONFIGURE, ACTIVATE, DEACTIVATE = 1, 3, 4
WARN, ERROR = b'\x01', b'\x02'


@pytest.fixture
def rig(rig_with, tmp_path):
    """A node that has made chunks, with what listens to its transitions."""
    from lifecycle_msgs.msg import TransitionEvent

    from specprune_ros.nodes.common.qos import every

    rig = rig_with(program=(FAULTY, tmp_path))
    rig.events = []
    rig.node.create_subscription(
        TransitionEvent, '/specprune_node/transition_event', rig.events.append, every(100)
    )
    assert rig.feed(60.0, until=lambda: len(rig.chunks) >= 3), rig.process.text()
    return rig


def break_it(rig, folder, how, words):
    """Ask for a fault and wait until the diagnostics tell of it."""
    (folder / how).touch()
    assert rig.feed(60.0, until=lambda: words in rig.health()), rig.process.text()
    assert rig.diagnoses[-1].status[0].level == ERROR


def chunks_again(rig):
    """Chunks come, and the diagnostics forget what was."""
    have = len(rig.chunks)
    assert rig.feed(60.0, until=lambda: len(rig.chunks) > have + 1), rig.process.text()
    assert rig.feed(60.0, until=lambda: rig.diagnoses[-1].status[0].level != ERROR)
    return rig.chunks[have]


def no_chunks(rig, seconds):
    rig.spin(0.2)  # one may be under way
    have = len(rig.chunks)
    rig.feed(seconds)
    assert len(rig.chunks) == have


def test_what_a_failing_device_does_and_how_it_is_recovered(rig, tmp_path):
    # Out of memory: the query is refused, the node stays and goes on by itself.
    break_it(rig, tmp_path, 'full', 'out of memory')
    assert rig.health().startswith('no chunk: cpu is out of memory (1048576.00 GiB more wanted)')
    assert 'bfloat16' in rig.health()
    no_chunks(rig, 0.3)
    assert rig.state() == 'active'
    (tmp_path / 'full').unlink()
    chunks_again(rig)

    # Not captured as it was to be: chunks go on, and the diagnostics warn.
    (tmp_path / 'eager').touch()
    assert rig.feed(60.0, until=lambda: rig.health().startswith('slower than meant: no CUDA'))
    assert rig.diagnoses[-1].status[0].level == WARN
    assert rig.diagnostic('engine') == 'eager; no CUDA graph: the driver has none'
    chunks_again(rig)

    # A call that failed on a device that still works: refused like the first.
    break_it(rig, tmp_path, 'refused', 'cpu refused a call: CUDA error: an illegal memory access')
    assert rig.state() == 'active'
    (tmp_path / 'refused').unlink()
    chunks_again(rig)

    # Lost: out of active by the lifecycle's error path, and it stays in sight.
    break_it(rig, tmp_path, 'lost', 'configure and activate again')
    health = rig.health()
    assert health.startswith('cpu was lost: CUDA error: an illegal memory access was encountered')
    assert rig.state() == 'unconfigured'
    path = [(e.start_state.label, e.goal_state.label) for e in rig.events]
    assert path[-3:] == [
        ('active', 'deactivating'),
        ('deactivating', 'errorprocessing'),
        ('errorprocessing', 'unconfigured'),
    ]
    no_chunks(rig, 1.2)
    assert rig.health() == health
    assert rig.images['agent'].get_subscription_count() == 0
    # While this process has no hold on the device configuring says that it must end.
    for _ in range(2):
        assert not rig.transition(CONFIGURE)
        assert rig.state() == 'unconfigured'
    assert rig.wait(lambda: rig.health().startswith('configure: this process cannot use cpu'), 5.0)
    assert 'restart the node' in rig.health()
    (tmp_path / 'lost').unlink()
    assert rig.transition(CONFIGURE), rig.process.text()
    assert rig.transition(ACTIVATE)
    assert chunks_again(rig).sequence == 1
    assert rig.process.stop() == 0
    assert 'Traceback' not in rig.process.text()


@pytest.mark.slow
def test_a_query_that_never_ends_is_reported_and_what_it_gives_after_a_stop_is_not_sent(
    rig, tmp_path
):
    break_it(rig, tmp_path, 'hangs', 'no chunk: a query has been under way for 1')
    assert rig.transition(DEACTIVATE)
    assert rig.state() == 'inactive'
    have = len(rig.chunks)
    (tmp_path / 'hangs').unlink()
    rig.feed(1.0)
    assert len(rig.chunks) == have
    assert rig.transition(ACTIVATE)
    assert chunks_again(rig).sequence == 1


@pytest.mark.slow
def test_the_arm_stops_at_once_when_the_device_is_lost(rig, tmp_path):
    from geometry_msgs.msg import TwistStamped

    from specprune_ros.nodes.common.qos import every
    from specprune_ros.nodes.common.remapping import profile_path, ros_arguments

    tree = yaml.safe_load(profile_path('sim_arm').read_text())
    tree['limits']['workspace'] = {'min': [-1.0, -1.0, -1.0], 'max': [1.0, 1.0, 1.0]}
    profile = tmp_path / 'robot.yaml'
    profile.write_text(yaml.safe_dump(tree))
    commands = []
    rig.node.create_subscription(
        TwistStamped,
        '/sim_arm/cmd_twist',
        lambda m: commands.append((time.monotonic(), m.twist)),
        every(100),
    )
    topics = {
        '~/action_chunk': '/specprune_node/action_chunk',
        '/sim_arm/tcp_pose': '/specprune_node/ee_pose',
        '/sim_arm/joint_states': '/specprune_node/joint_states',
    }
    executor = rig.run(
        'chunk_executor',
        ros_arguments(topics, {'profile': str(profile), 'realtime_priority': 0}),
    )

    def moving():
        return [at for at, twist in commands if twist.linear.x]

    assert rig.feed(60.0, until=lambda: len(moving()) > 20), executor.text()
    break_it(rig, tmp_path, 'lost', 'configure and activate again')
    reported = time.monotonic()
    rig.feed(1.0)
    # Not by the limit for the age of chunks (2 s): the diagnostics stop it.
    assert max(moving()) < reported + 0.3
    assert 'was lost' in executor.text()
