"""Real-time chunking over DDS: the executor reports what it executed, the policy node goes on."""

import numpy as np
import pytest

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
CAMERAS = ['base_0_rgb', 'left_wrist_0_rgb']


def test_the_executor_says_what_it_has_executed_and_which_chunk_it_took_in(bench):
    from sensor_msgs.msg import TimeReference

    b, reported = bench(), []
    b.listen(TimeReference, '/chunk_executor/executed', reported)
    b.moving()
    b.run(1.0)
    seconds = [m.time_ref.sec + 1e-9 * m.time_ref.nanosec for _, m in reported]
    stamps = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for _, m in reported]
    assert len(reported) > 5
    assert seconds[-1] > 0.1
    # Never more than the clock: what is executed in a second is a second, or less where it stops.
    assert seconds == sorted(seconds)
    assert all(
        0 <= step <= 0.03 + clock
        for step, clock in zip(np.diff(seconds), np.diff(stamps), strict=True)
    )
    taken = [m.source for _, m in reported if m.source]
    assert taken and all(source.startswith('chunk ') for source in taken)


def test_the_policy_node_goes_on_from_what_is_left(rig_with):
    from rclpy.duration import Duration
    from rclpy.time import Time
    from sensor_msgs.msg import TimeReference
    from specprune_ros.msg import ActionChunk

    from specprune_ros.nodes.common.qos import every
    from specprune_ros.nodes.common.time import stamp_ns

    rig = rig_with(
        model__preset='pi0-tiny', cameras=CAMERAS, rtc__enabled=True, pruning__pruner='dense'
    )
    publisher = rig.node.create_publisher(TimeReference, '/specprune_node/executed', every())
    began = rig.now()

    def report(source=''):
        message = TimeReference(source=source)
        message.header.stamp = rig.stamp()
        # An arm that hardly moves: something is left however long a query takes here.
        message.time_ref = Time(nanoseconds=(rig.now() - began) // 200).to_msg()
        publisher.publish(message)

    rig.node.create_timer(0.02, report)
    rig.node.create_subscription(
        ActionChunk,
        '/specprune_node/action_chunk',
        lambda chunk: report(f'chunk {stamp_ns(chunk)}'),
        every(),
    )

    def said():
        values = rig.diagnoses[-1].status[0].values if rig.diagnoses else []
        return next((v.value for v in values if v.key == 'real-time chunking'), '')

    assert rig.feed(200.0, until=lambda: said().startswith('goes on')), rig.process.text()
    chunk = rig.chunks[-1]
    assert chunk.horizon == 10  # whole, whatever its authors run of it
    assert np.isfinite(chunk.data).all()
    assert Duration.from_msg(chunk.step_dt).nanoseconds == 50_000_000


def test_a_policy_that_cannot_go_on_refuses_the_parameter(rig_with):
    rig = rig_with(rtc__enabled=True)
    rig.spin(0.1)
    for _ in range(1500):
        if 'only a flow policy (pi0, pi0.5) can go on' in rig.process.text():
            break
        rig.spin(0.1)
    assert 'only a flow policy (pi0, pi0.5) can go on' in rig.process.text()
