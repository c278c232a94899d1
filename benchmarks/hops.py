"""Functions of this package that one query enters, from the camera callback to the chunk.

    python benchmarks/hops.py [--queries 5] [--list] [--json FILE]

(after `. scripts/env.sh`). The policy node runs in this process under ``sys.setprofile``; two
cameras' messages are handed to the callbacks of its subscriptions as bytes, as the middleware
does. A function counts once per query: in the last image's callback, in the inference thread from
its wait for images on, and in the publisher's thread until the chunk is published. Generated
constructors of dataclasses and comprehensions do not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = '/specprune_ros/'
INNER = ('models/', 'pruning/')  # the arithmetic; the rest brings tensors there and back
PATIENCE = 120.0  # s that one query may take


class Recorder:
    """A profile function that keeps the functions each query enters until its chunk leaves."""

    def __init__(self) -> None:
        self.published = threading.Event()
        self._callback: list[CodeType] = []
        self._inference: list[CodeType] = []  # since the last wait for images
        self._handed: list[CodeType] = []  # the same of the query that is published
        self._publishing: list[CodeType] = []

    def begin(self) -> None:
        """A camera's callback begins in this thread."""
        self._callback.clear()
        self._publishing.clear()
        self.published.clear()

    def functions(self) -> list[tuple[str, str]]:
        """File and name of what the query entered."""
        codes = (*self._callback, *self._handed, *self._publishing)
        made = {
            (code.co_filename.rpartition(PACKAGE)[2], getattr(code, 'co_qualname', code.co_name))
            for code in codes
            if not code.co_name.endswith('comp>') and code.co_name != '<genexpr>'
        }
        return sorted(made)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """See ``sys.setprofile``."""
        if event != 'call':
            return
        code = frame.f_code
        if code.co_name == 'publish' and 'rclpy' in code.co_filename:
            if type(frame.f_locals.get('msg')).__name__ == 'ActionChunk':
                self.published.set()
            return
        if PACKAGE not in code.co_filename or '/msg/' in code.co_filename:
            return
        thread = threading.current_thread().name
        if thread == 'inference':
            if code.co_name == 'wait':
                self._inference.clear()
            self._inference.append(code)
            if code.co_name == 'put' and 'publisher' in code.co_filename:
                self._handed = list(self._inference)
        elif thread == 'publisher' and not self.published.is_set():
            if self._publishing or code.co_name == '_publish':
                self._publishing.append(code)
        elif thread == 'MainThread':
            self._callback.append(code)


def measure(queries: int) -> list[list[tuple[str, str]]]:
    """What each of so many pruned queries entered: file and name of each function."""
    import numpy as np
    import rclpy
    from geometry_msgs.msg import PoseStamped
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState

    from specprune_ros.nodes.common.images import to_message
    from specprune_ros.nodes.common.remapping import ALLOWED, ros_arguments
    from specprune_ros.nodes.policy_node.node import SpecPruneNode
    from specprune_ros.sim.arm.rizon4 import JOINTS
    from specprune_ros.sim.arm.urdf import urdf

    parameters = {
        'instruction': 'lift the red cube',
        'query_rate': 0.0,
        'robot_description': urdf(),
        'model.random_weights': ALLOWED,
        'model.threads': 1,
        'max_age.image': 10.0,
        'max_age.state': 10.0,
    }
    recorder = Recorder()
    threading.setprofile(recorder)
    rclpy.init(args=['', *ros_arguments({}, parameters)])
    node = SpecPruneNode()
    found = []
    try:
        node.autostart()
        if node.last_error:
            raise SystemExit(node.last_error)
        given = {
            s.topic_name.rpartition('specprune_node/')[2]: s.callback for s in node.subscriptions
        }
        names = [joint.name for joint in JOINTS] + ['finger_joint1', 'finger_joint2']
        joints = JointState(name=names, position=[0.1] * 9, velocity=[0.0] * 9)
        pose = PoseStamped()
        pose.pose.orientation.w = 1.0
        rng = np.random.default_rng(0)
        for _ in range(queries + 2):  # the first runs dense, the second has little history
            messages = {'joint_states': joints, 'ee_pose': pose}
            for camera in ('agent', 'wrist'):
                pixels = rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)
                messages[f'image/{camera}'] = to_message(pixels)
            for topic, message in messages.items():
                message.header.stamp = node.get_clock().now().to_msg()
                raw = serialize_message(message)
                recorder.begin()
                sys.setprofile(recorder)
                given[topic](raw)
                sys.setprofile(None)
            if not recorder.published.wait(PATIENCE):
                raise SystemExit(f'no chunk after {PATIENCE:g} s: {node.last_error or "unknown"}')
            found.append(recorder.functions())
    finally:
        threading.setprofile(None)
        node.stop()
        node.teardown()
        node.destroy_node()
        rclpy.try_shutdown()
    return found[2:]


def main() -> int:
    """Run and report."""
    from record import write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--queries', type=int, default=5, help='pruned queries to count')
    parser.add_argument('--list', action='store_true', help='print every function')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    args = parser.parse_args()
    queries = measure(args.queries)
    counts = Counter(len(query) for query in queries)
    typical = next(q for q in queries if len(q) == statistics.median_low(map(len, queries)))
    outer = [function for function in typical if not function[0].startswith(INNER)]
    rooms = Counter(file.partition('/')[0] for file, _ in typical)
    if args.list:
        print('\n'.join(f'{file}: {name}' for file, name in typical))
    print(
        f'{len(queries)} queries, functions entered: {dict(sorted(counts.items()))}; typical '
        f'{len(typical)} in {len({file for file, _ in typical})} files, of which {len(outer)} in '
        f'{len({file for file, _ in outer})} files bring the tensors to models/ and pruning/ and '
        f'back; {dict(rooms)}'
    )
    write(
        args.json,
        {
            'benchmark': 'hops',
            'queries': len(queries),
            'functions': len(typical),
            'files': len({file for file, _ in typical}),
            'outside_models_and_pruning': len(outer),
            'files_outside': len({file for file, _ in outer}),
            'rooms': dict(rooms),
        },
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
