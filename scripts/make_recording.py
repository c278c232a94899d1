"""Makes the recording that comes with the package: the expert lifting a cube, seen by two cameras.

    . scripts/env.sh && python scripts/make_recording.py

The same seed gives the same motion. Images are JPEG, ten a second; states thirty a second.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from rclpy.time import Time
from std_msgs.msg import Header, String

from specprune_ros.apps.bag import BagWriter, jpeg_of
from specprune_ros.nodes.common.remapping import profile_path
from specprune_ros.nodes.sim_arm_node import joint_state, tool_pose, tool_twist
from specprune_ros.robot.profile import load
from specprune_ros.sim.arm.urdf import urdf
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import apply
from specprune_ros.sim.tasks.expert import Expert
from specprune_ros.sim.tasks.tasks import CONTROL_HZ, make_episode

OUT = Path(__file__).parents[1] / 'specprune_ros' / 'sim' / 'recording'
SEED = 7
SECONDS = 6.0
STATES = 3  # for each image
BEGIN = 1_700_000_000 * 10**9  # ns, any time of this century
DELIVERY = 2_000_000  # ns from stamp to reception


def main() -> None:
    """Write the recording anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    profile = load(profile_path('sim_arm'))
    seen = profile.observation
    world = World(image_size=(224, 224))
    episode = make_episode(SEED, 'lift')
    world.reset(episode.seed, episode.layout)
    expert = Expert(world, episode.task)

    with BagWriter(OUT) as bag:

        def write(topic: str, message: object, stamp: int) -> None:
            bag.write(topic, message, stamp + DELIVERY)

        write(seen.robot_description, String(data=urdf()), BEGIN)
        write('/specprune_node/instruction', String(data=episode.task.instruction), BEGIN)
        for step in range(round(SECONDS * CONTROL_HZ)):
            action = expert()
            share = np.concatenate((action[:6] / STATES, action[6:]))
            for part in range(STATES):
                at = BEGIN + round((step + part / STATES) / CONTROL_HZ * 1e9)
                stamp = Time(nanoseconds=at).to_msg()
                if part == 0:
                    for name, camera in seen.cameras.items():
                        image = jpeg_of(world.render(name), Header(stamp=stamp, frame_id=name))
                        write(f'{camera.topic}/compressed', image, at)
                write(seen.joint_states, joint_state(world, stamp), at)
                write(seen.ee_pose, tool_pose(world, stamp), at)
                write(seen.ee_twist, tool_twist(world, stamp), at)
                apply(world, share, 1.0 / CONTROL_HZ / STATES)
    world.close()
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f'{OUT}: {size / 1e6:.2f} MB, "{episode.task.instruction}"')


if __name__ == '__main__':
    main()
