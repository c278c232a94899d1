"""Way B of a first day, in an environment that has flexiv_msgs: fake Rizon4 drivers, ``doctor``,
``jog --dry-run`` and ``jog``. Arguments: profile, serial number, folder. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from fake_arm import START, FakeArm

from specprune_ros.cli.main import main
from specprune_ros.robot.profile import load


class Rizon4(FakeArm):
    """With the vendor's gripper actions, driver status and TCP velocity."""

    def _make(self, cameras, rate):
        from flexiv_msgs.action import Grasp, Move
        from flexiv_msgs.msg import OperationalStatus
        from geometry_msgs.msg import AccelStamped
        from rclpy.action import ActionServer

        from specprune_ros.nodes.common.qos import every

        super()._make(cameras, rate)
        profile, self.goals = self.profile, []
        name = profile.gripper.name
        self.servers = [
            ActionServer(self.node, kind, f'{name}/{word}', self._gripping(kind, word))
            for kind, word in ((Move, 'move'), (Grasp, 'grasp'))
        ]
        self.speeds = self.node.create_publisher(
            AccelStamped, profile.observation.ee_twist, every()
        )
        self.status = self.node.create_publisher(
            OperationalStatus, profile.driver.ready_topic, every()
        )
        self.node.create_timer(0.2, self._say_ready)

    def _gripping(self, kind, word):
        def execute(handle):
            self.goals.append(word)
            handle.succeed()
            return kind.Result(success=True)

        return execute

    def _say_ready(self):
        from flexiv_msgs.msg import OperationalStatus

        ready = OperationalStatus(driver_state=1, operational=True)
        self.status.publish(self._stamp(ready))

    def _state(self):
        from geometry_msgs.msg import AccelStamped

        super()._state()
        self.speeds.publish(self._stamp(AccelStamped(), self.profile.base_frame))


def run(file: str, serial: str, folder: str) -> dict:
    """The three commands on one fake arm."""
    out: dict = {}
    profile = load(file, {'robot_sn': serial})
    words = ('--robot', file, '--robot-sn', serial)
    with Rizon4(int(os.environ['ROS_DOMAIN_ID']), profile) as arm:
        for name, line in (
            ('doctor', ('doctor', *words, '--seconds', '5', '--json', f'{folder}/doctor.json')),
            ('dry', ('jog', *words, '--dry-run')),
            ('jog', ('jog', *words, '--yes', '--fake', '--json', f'{folder}/jog.json')),
        ):
            begin = time.monotonic()
            out[name] = {'status': main(list(line)), 'seconds': time.monotonic() - begin}
            out[name]['commands'] = arm.commands
        out['rise'] = max(arm.heights, default=START.position[2]) - START.position[2]
        out['goals'] = arm.goals
    out['rows'] = json.loads(Path(folder, 'doctor.json').read_text())['rows']
    return out


if __name__ == '__main__':
    print(json.dumps(run(*sys.argv[1:4])))
