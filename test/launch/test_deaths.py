"""What follows when a node, or the launch itself, is killed outright. Needs launch, not
launch_pytest.

Alone: python -m pytest test/launch/test_deaths.py
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from listener import LAUNCH, RUN, listening

pytest.importorskip('launch_ros', reason='launch_ros is not installed: it comes with a ROS host')

pytestmark = [pytest.mark.ros, pytest.mark.timeout(400)]
PATIENCE = 120.0  # s


class Launched:
    """A launch file in a process of its own; its output as it comes."""

    def __init__(self, name, *arguments, domain, log):
        self.process = subprocess.Popen(
            [sys.executable, '-c', RUN, str(LAUNCH / f'{name}.launch.py'), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, 'ROS_LOG_DIR': str(log), 'ROS_DOMAIN_ID': str(domain)},
        )
        self.lines = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def said(self):
        return ''.join(self.lines)

    def pid(self, node):
        """Of a node's process, once launch has started it."""
        pattern = rf'{node}-\d+\]: process started with pid \[(\d+)\]'
        assert wait_for(lambda: re.search(pattern, self.said)), self.said
        return int(re.search(pattern, self.said).group(1))

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


def gone(pid):
    """Whether a process has ended (its parent may not have looked yet)."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
        return True


def test_without_its_policy_the_arm_stops_and_without_its_executor_everything(
    domain, small, tmp_path
):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    from geometry_msgs.msg import TwistStamped

    def moving(entry):
        twist = entry[1].twist
        return any((twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.z))

    demo = Launched('demo', 'checkpoint:=', f'params_file:={small}', domain=domain, log=tmp_path)
    try:
        policy, executor, arm = map(demo.pid, ('specprune_node', 'chunk_executor', 'sim_arm'))
        with listening(domain) as listener:
            commands = listener.hear(TwistStamped, '/sim_arm/cmd_twist')
            reports = listener.hear(DiagnosticArray, '/diagnostics')
            assert listener.wait(lambda: sum(map(moving, commands)) > 20, [], PATIENCE), demo.said

            os.kill(policy, signal.SIGKILL)
            killed = time.monotonic()
            assert wait_for(lambda: 'the executor stops the arm' in demo.said), demo.said

            def last_report():
                statuses = [s for at, report in reports if at > killed for s in report.status]
                return next((s for s in reversed(statuses) if 'chunk_executor' in s.name), None)

            def reported():
                status = last_report()
                return status is not None and 'nobody publishes' in status.message

            # DDS misses a process that was killed after its lease, 20 s.
            assert listener.wait(reported, [], PATIENCE), last_report()
            assert last_report().level in (DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
            assert not moving(commands[-1])
            assert demo.process.poll() is None
            assert not gone(executor)
            assert not gone(arm)

        os.kill(executor, signal.SIGKILL)
        assert demo.process.wait(PATIENCE) == 1, demo.said
        assert 'chunk_executor-' in demo.said.split('ended with status')[-2]
        assert wait_for(lambda: gone(arm))
    finally:
        demo.end()


def test_nodes_end_with_a_launch_that_is_killed(domain, small, tmp_path):
    ours = Launched('specprune', f'params_file:={small}', domain=domain, log=tmp_path)
    try:
        pids = [ours.pid(node) for node in ('specprune_node', 'chunk_executor')]
        with listening(domain) as listener:
            assert wait_for(lambda: listener.state('/chunk_executor') == 'active'), ours.said
        os.kill(ours.process.pid, signal.SIGKILL)
        assert wait_for(lambda: all(map(gone, pids))), ours.said
    finally:
        ours.end()
