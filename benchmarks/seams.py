"""How much the commanded velocity jumps where chunks join, and how much inside them.

    specprune demo --seconds 60 --out out
    python benchmarks/seams.py out/bag --json benchmarks/results/seams.json

(after `. scripts/env.sh`). Chunks are taken in when the recording received them and turned into
commands at 100 Hz by the executor's own timeline. A jump is the change of the velocity vector
between two commands, m/s. `seam` is the command with which a chunk joins a motion under way;
`fade` are the commands while it takes over; `inside` are all others between two moving commands.
`hard` is no joining rule of ours: chunks simply replace each other, row by row, as a plain queue
does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from harness import percentiles, write
from specprune_ros.msg import ActionChunk

from specprune_ros.apps.bag import BagReader
from specprune_ros.nodes.common.remapping import profile_path
from specprune_ros.nodes.executor_node.node import chunk_of
from specprune_ros.robot import timeline
from specprune_ros.robot.geometry import Twist
from specprune_ros.robot.profile import load
from specprune_ros.robot.safety import Command, SafetyFilter, SafetyLimits
from specprune_ros.robot.timeline import Chunk, ChunkRules, ChunkTimeline, LateChunkError

PERIOD = 10_000_000  # ns


def chunks_of(bag: Path) -> list[tuple[int, Chunk]]:
    """Every chunk of a recording with the time it was received, ns."""
    with BagReader(bag) as reader:
        topics = [t for t, kind in reader.topics().items() if kind.endswith('/ActionChunk')]
        if not topics:
            raise SystemExit(f'{bag}: holds no ActionChunk')
        seen = reader.messages({topics[0]: ActionChunk})
        return [(item.stamp_ns, chunk_of(item.message)) for item in seen]


class HardQueue:
    """Rows of the newest chunk one after the other, beginning with the first: the baseline."""

    def __init__(self) -> None:
        self._chunk: Chunk | None = None
        self._begin = 0

    def add(self, chunk: Chunk, now: int) -> str:
        """Replace what is queued; how it joins, as :meth:`AddResult.add` says."""
        before, moving = self._chunk, self._chunk is not None and not self._done(now)
        self._chunk, self._begin = chunk, now
        if before is not None and chunk.episode != before.episode:
            return 'start'
        return 'seam' if moving else ''

    def velocity(self, now: int) -> np.ndarray | None:
        """The row at hand over the step time; ``None`` past the last."""
        if self._chunk is None or self._done(now):
            return None
        row = int((now - self._begin) * 1e-9 / self._chunk.step_dt)
        return self._chunk.motion[row, :3] / self._chunk.step_dt

    def _done(self, now: int) -> bool:
        return (now - self._begin) * 1e-9 >= self._chunk.horizon * self._chunk.step_dt


class AddResult:
    """The executor's timeline under one joining rule."""

    def __init__(self, rule: str, frame: str) -> None:
        self._line = ChunkTimeline(ChunkRules((frame,)), rule)

    def add(self, chunk: Chunk, now: int) -> str:
        """Take a chunk in: ``seam`` where it joins a motion, ``start`` where it drops one."""
        moving = not self._line.idle
        try:
            joined = self._line.add(chunk, now)
        except LateChunkError:
            return ''
        if joined.new_start:
            return 'start'
        return 'seam' if moving else ''

    def velocity(self, now: int) -> np.ndarray | None:
        """Commanded linear velocity; ``None`` where nothing is queued."""
        out = self._line.sample(now)
        return None if out.done else np.array(out.twist.linear)


def measure(chunks: list[tuple[int, Chunk]], rule: str, limits: SafetyLimits | None) -> dict:
    """Jumps by where they happen, m/s."""
    frame = chunks[0][1].frame
    source = HardQueue() if rule == 'hard' else AddResult(rule, frame)
    guard = SafetyFilter(limits, PERIOD * 1e-9) if limits is not None else None
    jumps: dict[str, list[float]] = {'seam': [], 'fade': [], 'inside': []}
    todo, before, fade_until, seams = list(chunks), None, 0, 0
    now = chunks[0][0]
    while now < chunks[-1][0] + 2_000_000_000:
        how = ''
        while todo and todo[0][0] <= now:
            chunk = todo.pop(0)[1]
            how = source.add(chunk, now) or how
            if how:
                fade_until = now + round(chunk.step_dt * 1e9)
                seams += how == 'seam'
        velocity = source.velocity(now)
        if guard is not None:
            wanted = tuple(velocity) if velocity is not None else (0.0, 0.0, 0.0)
            out = guard.filter(Command(twist=Twist(wanted)))
            velocity = np.array(out.twist.linear) if velocity is not None else None
        # A new episode drops the motion under way on purpose: no seam.
        if velocity is not None and before is not None and how != 'start':
            where = how if how else 'fade' if now <= fade_until else 'inside'
            jumps[where].append(float(np.linalg.norm(velocity - before)))
        before = velocity
        now += PERIOD
    return {'seams': seams, **{where: percentiles(values) for where, values in jumps.items()}}


def main() -> None:
    """Measure each rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path, help='a recording that holds ActionChunk messages')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    options = parser.parse_args()
    chunks = chunks_of(options.bag)
    limits = load(profile_path('sim_arm')).limits
    # Walls need a measured pose, which a recording of chunks has not.
    limits = SafetyLimits(
        limits.translation_speed,
        limits.rotation_speed,
        limits.translation_acceleration,
        limits.rotation_acceleration,
    )
    rows = []
    print(
        f'{"rule":18s}{"limits":8s}{"seams":>6s}  seam p50/max     fade p50/max     inside p50/max'
    )
    for rule in ('hard', *timeline.JOINING_RULES):
        for limited in (False, True):
            row = measure(chunks, rule, limits if limited else None)
            rows.append({'rule': rule, 'limited': limited, **row})
            text = '  '.join(
                f'{row[w].get("p50", 0):.4f} {row[w].get("max", 0):.4f} '
                for w in ('seam', 'fade', 'inside')
            )
            print(f'{rule:18s}{"yes" if limited else "no":8s}{row["seams"]:6d}  {text}')
    write(options.json, {'chunks': len(chunks), 'period_s': PERIOD * 1e-9, 'rows': rows})


if __name__ == '__main__':
    main()
