"""The whole system as the demo starts it: arm, policy and executor, each a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specprune_ros.apps.processes import NodeProcess, wait_until
from specprune_ros.nodes.common.remapping import (
    policy_parameters,
    policy_remappings,
    profile_path,
    ros_arguments,
)
from specprune_ros.robot.profile import load

ARM, POLICY, EXECUTOR = 'sim_arm', 'specprune_node', 'chunk_executor'
NODES = (ARM, POLICY, EXECUTOR)
START_PATIENCE = 90.0  # s until a node says that it is active


class System:
    """Three node processes. ``remap`` replaces topics (the arm's name to another); ``parameters``
    are per node. Use as a context manager.
    """

    def __init__(
        self,
        log: Path,
        parameters: Mapping[str, Mapping[str, Any]],
        remap: Mapping[str, str] | None = None,
        profile: str = 'sim_arm',
    ) -> None:
        self.log = log
        self.profile_file = profile_path(profile)
        self.profile = load(self.profile_file)
        other = remap or {}
        policy = {
            name: other.get(topic, topic)
            for name, topic in policy_remappings(self.profile).items()
        }
        chunks, pose = f'/{POLICY}/action_chunk', self.profile.observation.ee_pose
        executor = {'~/action_chunk': other.get(chunks, chunks)}
        executor |= {topic: other[topic] for topic in (pose,) if topic in other}
        own = {
            ARM: {},
            POLICY: {
                **policy_parameters(self.profile),
                'instruction': 'lift the red cube',
                'model.threads': 1,
            },
            EXECUTOR: {'profile': str(self.profile_file)},
        }
        topics = {ARM: {}, POLICY: policy, EXECUTOR: executor}
        self._arguments = {
            name: ros_arguments(topics[name], {**own[name], **parameters.get(name, {})})
            for name in NODES
        }
        self.processes: dict[str, NodeProcess] = {}
        self._starts = 0

    def __enter__(self) -> System:
        for name in NODES:
            self.start(name)
        for name in NODES:
            self.wait(name)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> dict[str, int]:
        """Stop the executor first; exit statuses by node."""
        return {name: self.processes[name].stop() for name in reversed(NODES)}

    def start(self, name: str) -> NodeProcess:
        """Start one node, with a log of its own."""
        self._starts += 1
        log = self.log / f'{name}.{self._starts}.log'
        self.processes[name] = NodeProcess(name, self._arguments[name], log)
        return self.processes[name]

    def wait(self, name: str) -> None:
        """Wait until a node answers as active. Raises ``NodeDied`` or ``TimeoutError``."""
        process = self.processes[name]

        def up() -> bool:
            process.check()
            # The arm logs nothing when it is up; its first image is waited for by the caller.
            return name == ARM or 'active:' in process.log.read_text(errors='replace')

        if not wait_until(up, START_PATIENCE, step=0.1):
            raise TimeoutError(f'{name} is not active:\n{process.tail()}')

    def kill(self, name: str) -> None:
        """End a node without a warning, as a crash or the system's memory killer would."""
        process = self.processes[name].process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def alive(self, name: str) -> bool:
        """Whether a node's process runs."""
        return self.processes[name].process.poll() is None
