"""Where chunks join while a query takes 0.2 s: jumps of the velocity, distance from the path.

    python benchmarks/rtc_seams.py --json benchmarks/results/rtc_seams.json

(after `. scripts/env.sh`). The policy is the exact flow of a Gaussian: chunks that follow a circle
and correct the error they see, scattered smoothly around that, anew in every query, as a flow
policy's are. Its velocity field is known in closed form; sampler, guidance, delays and joining are
the package's own. The arm does what the timeline asks. A jump is the change of the commanded
velocity between two commands of 100 Hz, m/s: `seam` from a chunk's arrival until it has faded in
(one step), `inside` everywhere else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from harness import percentiles
from record import write

from specprune_ros.models.families.pi0 import integrate
from specprune_ros.policy.real_time_chunking import ChunkFollower, ChunkingRules, guide
from specprune_ros.robot import chunk as chunks
from specprune_ros.robot.chunk import Chunk, ChunkRules
from specprune_ros.robot.timeline import ChunkTimeline

PERIOD, STEP, CHUNK, STEPS = 0.01, 0.05, 20, 10  # s, s, rows, of the sampler
SPAN = 0.02  # m, what a normalised action of 1 moves in a step
RADIUS, LAP = 0.15, 8.0  # m, s
RULES = ('latest', 'weighted_overlap', 'rtc')


def path(at: float) -> np.ndarray:
    """Where the tool is to be at a time in seconds, m."""
    angle = 2 * np.pi * at / LAP
    return RADIUS * np.array([np.cos(angle), np.sin(angle), 0.3 * np.sin(2 * angle)])


class GaussianFlow:
    """Rows of three normalised displacements, scattered smoothly (over some six rows)."""

    def __init__(self, scatter: float) -> None:
        apart = np.subtract.outer(np.arange(CHUNK), np.arange(CHUNK))
        smooth = np.exp(-0.5 * (apart / 6.0) ** 2) + 1e-6 * np.eye(CHUNK)
        self.covariance = scatter**2 * smooth
        self.gains = []
        for step in range(STEPS):
            t = 1 - step / STEPS
            both = t**2 * np.eye(CHUNK) + (1 - t) ** 2 * self.covariance
            gain = (t * np.eye(CHUNK) - (1 - t) * self.covariance) @ np.linalg.inv(both)
            self.gains.append(torch.from_numpy(gain))

    def chunk(self, now: float, place: np.ndarray, noise: torch.Tensor, pull) -> np.ndarray:
        """Normalised rows from what is seen at ``now``: the way ahead, the error taken back."""
        times = now + STEP * np.arange(CHUNK + 1)
        ahead = np.diff([path(t) for t in times], axis=0)
        ahead += (path(now) - place) / CHUNK
        mean = torch.from_numpy(ahead / SPAN)

        def velocity(x: torch.Tensor, step: int) -> torch.Tensor:
            t = 1 - step / STEPS
            return self.gains[step] @ (x[0] - (1 - t) * mean)[None] - mean

        return integrate(velocity, noise[None], STEPS, pull)[0].numpy()


def message(rows: np.ndarray, stamp_ns: int, sequence: int) -> Chunk:
    """The chunk as the executor gets it."""
    data = np.concatenate([SPAN * rows, np.zeros((CHUNK, 3))], 1)
    return Chunk(
        stamp_ns=stamp_ns, frame='base', sequence=sequence, episode=1, step_dt=STEP,
        horizon=CHUNK, dims=('x', 'y', 'z', 'rx', 'ry', 'rz'), kind=chunks.KIND_EE_DELTA,
        rotation=chunks.ROTATION_VECTOR, reference=chunks.REFERENCE_PREVIOUS_STEP, data=data,
    )  # fmt: skip


def run(rule: str, seconds: float, delay: float, scatter: float, seed: int) -> dict:
    """One rule for so long."""
    policy, generator = GaussianFlow(scatter), torch.Generator().manual_seed(seed)
    joining = 'latest' if rule == 'rtc' else rule
    line, chunks = ChunkTimeline(ChunkRules(('base',)), joining), ChunkFollower(STEP)
    place, before = path(0.0), None
    jumps: dict[str, list[float]] = {'seam': [], 'inside': []}
    errors, sequence, busy, fading = [], 0, None, -1.0
    for tick in range(round(seconds / PERIOD)):
        now = tick * PERIOD
        now_ns = round(now * 1e9)
        if busy is not None and now >= busy[0]:
            moving = not line.idle
            line.add(busy[1], now_ns)
            chunks.joined(busy[1].stamp_ns, line.axis)
            fading, busy = (now + STEP if moving else fading), None
        velocity = np.array(line.sample(now_ns).twist.linear if not line.idle else (0, 0, 0))
        chunks.executed(now_ns, line.axis)
        if busy is None:  # the next query sees the arm as it is now
            noise = torch.randn(CHUNK, 3, generator=generator, dtype=torch.float64)
            pull = None
            if rule == 'rtc':
                found = chunks.go_on(now_ns, 1, '', ChunkingRules())
                if found is not None:
                    pull = guide(found, CHUNK, 3, STEPS, torch.device('cpu'))
            rows, sequence = policy.chunk(now, place, noise, pull), sequence + 1
            chunks.issued(now_ns, 1, '', rows, SPAN * rows)
            busy = now + delay, message(rows, now_ns, sequence)
        if before is not None and now > 1.0:
            where = 'seam' if now <= fading else 'inside'
            jumps[where].append(float(np.linalg.norm(velocity - before)))
            errors.append(float(np.linalg.norm(place - path(now))))
        before = velocity
        place = place + PERIOD * velocity
    return {
        'rule': rule, 'seed': seed, 'chunks': sequence, 'delay_rows': chunks.delay,
        **{where: percentiles(values) for where, values in jumps.items()},
        'error_rms_m': float(np.sqrt(np.mean(np.square(errors)))),
        'error_max_m': max(errors),
    }  # fmt: skip


def main() -> None:
    """Measure each rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=120.0)
    parser.add_argument('--delay', type=float, default=0.2, help='of a query, s')
    parser.add_argument('--scatter', type=float, default=0.15, help='of a row, normalised')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--json', type=Path, help='write the result to this file')
    options = parser.parse_args()
    rows = [
        run(rule, options.seconds, options.delay, options.scatter, seed)
        for rule in RULES
        for seed in range(options.seeds)
    ]
    print(f'{"rule":18s} seam p50 / max (m/s)   inside max   error rms / max (mm)')
    for row in rows:
        print(
            f'{row["rule"]:18s} {row["seam"]["p50"]:.4f} / {row["seam"]["max"]:.4f}'
            f'      {row["inside"]["max"]:.4f}       {1e3 * row["error_rms_m"]:.1f} / '
            f'{1e3 * row["error_max_m"]:.1f}'
        )
    fixed = {'delay_s': options.delay, 'scatter': options.scatter, 'seconds': options.seconds}
    write(options.json, {**fixed, 'step_s': STEP, 'rows_per_chunk': CHUNK, 'rows': rows})


if __name__ == '__main__':
    main()
