"""Evaluation over a Ray cluster: the jobs of :mod:`.trials`, one episode player per CPU.

The checkpoint's folder and this package must be on every node. Needs the extra ``ray``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specprune_ros.sim.evaluation.episode import EXECUTED
from specprune_ros.sim.evaluation.trials import Job, Player, Trial, TrialFile, play_job


class MissingRay(ConnectionError):
    """Ray is not installed here, or no cluster answers; the message says what to do."""


class _Worker:
    """An episode player in a process of the cluster."""

    def __init__(self, checkpoint: Path, executed: int) -> None:
        self._player = Player(checkpoint, executed)

    def play(self, job: Job) -> list[Trial]:
        """The trials of a job."""
        return play_job(self._player, job)


def play_all_on_ray(
    address: str,
    todo: Sequence[Job],
    done: TrialFile,
    checkpoint: Path,
    processes: int = 0,
    executed: int = EXECUTED,
    tick: Callable[[int], None] = lambda played: None,
) -> None:
    """Play ``todo`` on the cluster at ``address`` (``auto``: the one this machine belongs to;
    ``local``: one of this machine alone) with ``processes`` players (0: one per CPU).

    A player that dies loses its job to another one: trials are seeded, so the numbers are the
    same. Raises :class:`MissingRay`.
    """
    if not todo:
        return
    ray = _connect(address)
    try:
        count = processes or int(ray.cluster_resources().get('CPU', 1))
        worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=2)(_Worker)
        folder = checkpoint.resolve()
        workers = [worker.remote(folder, executed) for _ in range(max(1, min(count, len(todo))))]
        waiting, running = list(reversed(todo)), {}
        for one in workers:
            running[one.play.remote(waiting.pop())] = one
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            one = running.pop(finished)
            trials = ray.get(finished)
            done.add(trials)
            tick(len(trials))
            if waiting:
                running[one.play.remote(waiting.pop())] = one
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingRay(
            f'{error}: pip install -r requirements/ray.txt -c constraints.txt '
            '(docs/how-to/scale.md)'
        ) from error
    try:
        host, separator, port = address.rpartition(':')
        if separator and '/' not in address:  # Ray itself waits two minutes, then ends the process
            socket.create_connection((host, int(port)), timeout=5).close()
        alone = address == 'local'  # also where RAY_ADDRESS or a running cluster is there to join
        ray.init(address=address, log_to_driver=False, include_dashboard=False if alone else None)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingRay(f'no Ray cluster at {address}: {error}') from error
    return ray
