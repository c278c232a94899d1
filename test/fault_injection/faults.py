"""Faults on purpose: what the system does when cameras, joints, clocks, processes and disks fail.

    python test/fault_injection/faults.py --count 800 --json benchmarks/results/faults.json

(after `. scripts/env.sh`). The simulated arm, the policy (tiny, random weights) and the executor
run as processes over DDS; between arm and policy lie lanes that are disturbed, seeded. Judged is
what the executor wrote, by the middleware's own time stamps. For every injection:

- every command, those of a stop included, is finite and within the profile's limits of speed,
  acceleration and jerk;
- braking begins at most 100 ms after a limit of the watchdog ran out: the tool pose's age, or the
  time since the last row of the queue was executed (both reckoned here, not by the executor); a
  refused chunk and a jump of the clock count at once; and commands end with one of rest, at most
  as long after that as the limits make braking take;
- how far the tool was outside the workspace is reported (the simulated arm slips at the ends of
  its joints);
- every process lives, but for the one that is killed;
- the arm moves again when the fault has ended, without anything else being started anew;

and what `fault_kinds.py` adds for its kind. Kinds of the clock run in a second set of processes,
under simulated time published here.

A stop that came late counts as not survived whatever the cause. Beside it stands how long the
process in question was ready to run without a core in that time, by the kernel's account; where
it would have been in time otherwise, and nothing else was wrong, the injection is also counted as
`held_up`, and does not turn the exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

# Where this file is run by itself.
sys.path.append(str(Path(__file__).parents[2] / 'benchmarks'))

from core_waits import STEAL, Waits
from fault_kinds import KINDS, SUPERVISED, Kind, fill, limit_file_size
from fault_rig import SECOND, Axis, Rig, Sent
from record import write
from system import ARM, EXECUTOR, NODES, POLICY, System

from specprune_ros.apps.processes import wait_until
from specprune_ros.robot import chunk as chunks
from specprune_ros.robot.chunk import ChunkRules
from specprune_ros.robot.safety import JERK_RATIO

RATE = 100.0  # Hz, of the executor's commands
GAP = 0.15  # s without commands: another motion
STOPS_FOR = 'stops for '
IN_TIME = 0.1  # s after a limit, until braking begins
TIGHT = 1.0 + 1e-6
ARRIVED = 0.2  # s after which a message has been received
RECOVERY = 30.0  # s until the arm must move again
EPISODE_WAIT = 15.0  # s until the policy must have reported a new episode
DRIVER_SLOW = 0.02  # m/s that counts as holding still
PICTURE_RATE = 15.0  # Hz
TMPFS = '16m'
AGES = ('dry queue', 'tool pose')
SUPERVISOR = 'supervisor'
LANES = 'lanes'  # this suite's own thread between arm and policy


def mark_braking(commands: list[Sent]) -> None:
    """Say of each command whether it belongs to the slowing down that ends with one of rest."""
    after: Sent | None = None
    for sent in reversed(commands):
        if sent.zero:
            sent.braking = True
        elif after is not None and after.braking and after.at - sent.at < GAP * SECOND:
            sent.braking = _size(sent) > _size(after) + 1e-9
        after = sent


def _size(sent: Sent) -> float:
    return math.hypot(*sent.linear) + 0.1 * math.hypot(*sent.angular)


@dataclass
class Result:
    """One injection. Times in seconds; ``over``: from a limit to the last command before braking;
    NaN where none ran out. ``rest``: the longest stop, from its reason to the command of rest, by
    the executor's own clock."""

    kind: str
    number: int
    over: float = math.nan
    recovery: float = math.nan
    rest: float = math.nan
    speed: float = 0.0  # share of the limit, largest
    acceleration: float = 0.0  # as speed
    jerk: float = 0.0  # as speed
    outside: float = 0.0  # m, largest
    stopped: bool = False
    late: dict = field(default_factory=dict)  # of the largest ``over``: where, and who waited
    waited: dict = field(default_factory=dict)  # s without a core, by thread, whole injection
    only_late: bool = True  # nothing in ``broken`` but lateness
    lanes_late: float = 0.0  # s a state took through this suite, longest
    reasons: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """Whether every invariant held."""
        return not self.broken

    @property
    def held_up(self) -> bool:
        """Whether it was late alone, and in time but for the wait for a core."""
        waited = self.late.get('waited_s', {}).get(self.late.get('who'), 0.0)
        return bool(self.broken) and self.only_late and self.over - waited <= IN_TIME


class Suite:
    """A running system and what is known of it; kinds of faults call back."""

    def __init__(self, log: Path, sim_time: bool, disk: str) -> None:
        self.sim_time = sim_time
        self.disk = disk
        self.log = log
        own = {'use_sim_time': True} if sim_time else {}
        self.system = System(
            log,
            {
                ARM: {'image_rate': PICTURE_RATE, 'width': 112, 'height': 112, **own},
                POLICY: {'query_rate': 10.0, **own},
                EXECUTOR: own,
            },
            remap=Rig.remap_of('sim_arm'),
        )
        profile = self.system.profile
        self.rig = Rig(profile, sim_time)
        kinds = (chunks.KIND_EE_DELTA, chunks.KIND_EE_POSE)
        self._axis = Axis(ChunkRules((profile.base_frame,), (), kinds), sim_time)
        self._waits = Waits(self._threads)
        self._commands = self._chunks = self._poses = 0
        self._stops: Counter[str] = Counter()
        self._before: list[Sent] = []  # the last two commands judged
        self._result: Result | None = None
        self.at_once: int | None = None
        self.stalled_at: int | None = None
        self._driver_gone = False

    def __enter__(self) -> Suite:
        self.system.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.rig.straight()
        self._waits.close()
        self.statuses = self.system.stop()
        self.rig.close()

    def _threads(self) -> dict[str, tuple[int, int]]:
        pids = {name: p.process.pid for name, p in self.system.processes.items()}
        if (supervisor := child_of(pids[EXECUTOR])) is not None:
            pids[SUPERVISOR] = supervisor
        own = (os.getpid(), self.rig.lane_thread)
        return {**{name: (pid, pid) for name, pid in pids.items()}, LANES: own}

    def _over(self, what: str, limit: int, last: int, who: str = EXECUTOR) -> float:
        """A limit ran out at ``limit`` and was heeded at ``last`` (ns). Seconds between."""
        over, result = (last - limit) / SECOND, self._result
        if over > 0.0 and not over <= result.over:
            result.over = over
            result.late = {'limit': what, 'who': who, 'begin_ns': limit, 'end_ns': last}
        return over

    # What kinds call.

    def pause(self, seconds: float) -> None:
        """Let the fault act."""
        time.sleep(seconds)

    def wait_for_motion(self) -> None:
        """Wait until the tool moves."""
        begin = time.time_ns()
        wait_until(
            lambda: any(v > DRIVER_SLOW for at, v in self.rig.received.speeds if at > begin),
            RECOVERY,
        )

    def breaks(self, what: str, late: bool = False) -> None:
        """An invariant did not hold; ``late``: that of time."""
        self._result.only_late &= late
        if what not in self._result.broken:
            self._result.broken.append(what)

    def must_stop_at_once(self, why: str) -> None:
        """A stop action must have been sent within 100 ms after ``at_once``."""
        begin = self.at_once
        commands = list(self.rig.received.commands)
        recent = [sent for sent in commands if begin - 0.05 * SECOND < sent.at < begin]
        if not recent or recent[-1].zero:
            return  # it did not move, or had just been stopped
        mark_braking(commands)
        after = [sent for sent in commands if sent.at >= begin]
        stops = [sent.at for sent in after if sent.zero]
        driven = [
            sent.at for sent in after if not sent.braking and (not stops or sent.at < stops[0])
        ]
        last = max(driven, default=begin) if stops else begin + 99 * SECOND
        if not stops and self._counted_a_stop():
            self._result.stopped = True
            return  # the next chunk took the motion up again before it had come to rest
        took = self._over(why, begin, last)
        self._result.stopped |= bool(stops)
        if took > IN_TIME:
            what = f'stopped after {took:.3f} s' if stops else 'no stop'
            self.breaks(f'{why}: {what}', late=bool(stops))

    def _counted_a_stop(self) -> bool:
        """Whether the executor has counted a stop since the injection before."""
        counted, now = self.rig.received.counted, time.time_ns()
        wait_until(lambda: any(at > now for at, _ in counted), 3.0)
        stops = [int(v) for key, v in counted[-1][1].items() if key.startswith(STOPS_FOR)]
        return sum(stops) > self._stops.total()

    def supervisor_must_have_stopped(self, stalled: int) -> None:
        """The executor stood still from ``stalled`` (ns) on: braking began within 100 ms after the
        supervisor's limit, and the arm is at rest.
        """
        commands = list(self.rig.received.commands)
        first = next((i for i, sent in enumerate(commands) if sent.at > stalled), len(commands))
        # One command may have been under way.
        own = [sent for sent in commands[: first + 1] if sent.at < stalled + 0.05 * SECOND]
        after = commands[len(own) :]
        if not own or own[-1].zero:
            return  # it had just been stopped
        if not after or not after[-1].zero:
            self.breaks('a stalled executor left the arm moving')
            return
        limit = own[-1].at + round(SUPERVISED * SECOND)
        took = self._over('supervisor', limit, after[0].at, SUPERVISOR)
        if took > IN_TIME:
            self.breaks(f'the supervisor began to stop {took:.3f} s after its limit', late=True)

    def executor_died(self) -> None:
        """The executor's account begins anew; the driver must hold still by itself."""
        time.sleep(2 * ARRIVED)
        self._judge_stream()
        self._axis.restart()
        self._before = []
        self._stops = Counter()

    def driver_died(self) -> None:
        """Tool poses end with the driver; where it starts again is no motion."""
        self._driver_gone = True

    @contextlib.contextmanager
    def no_space(self) -> Iterator[None]:
        """The disk that holds the logs is full."""
        if self.disk == 'tmpfs':
            filler = fill(self.log)
            try:
                yield
            finally:
                filler.unlink()
            return
        processes = [p.process.pid for p in self.system.processes.values()]
        for pid in processes:
            limit_file_size(pid, 1)
        try:
            yield
        finally:
            for pid in processes:
                limit_file_size(pid, -1)

    # One injection.

    def settle(self) -> bool:
        """Wait until the arm is commanded steadily."""
        begin = time.time_ns()
        return wait_until(lambda: self.rig.flowing(begin), RECOVERY)

    def inject(self, kind: Kind, number: int, rng: np.random.Generator) -> Result:
        """Inject once and judge."""
        result = self._result = Result(kind.name, number)
        self.at_once = self.stalled_at = None
        self._driver_gone = False
        begin = time.time_ns()
        counted = self.rig.received.counted
        self._episodes = int(counted[-1][1].get('new episodes', 0)) if counted else 0
        try:
            kind.inject(self, rng)
        finally:
            self.rig.straight()
        ended = time.time_ns()
        if not wait_until(lambda: self.rig.flowing(ended), RECOVERY):
            self.breaks(f'not moving {RECOVERY:.0f} s after the fault: {self.rig.received.health}')
        result.recovery = (time.time_ns() - ended) / SECOND
        if kind.resets and not wait_until(lambda: self._reset_since(begin), EPISODE_WAIT):
            self.breaks('no new episode was reported')
        self._judge_stream()
        self._judge_stop(kind, begin, ended)
        self._judge_processes()
        self._judge_machine(begin)
        self._trim()
        return result

    def _judge_machine(self, begin: int) -> None:
        """Who waited for a core: in the whole injection, and where it was latest."""
        result, now = self._result, time.time_ns()
        names = (EXECUTOR, SUPERVISOR, ARM, LANES, STEAL)
        result.waited = {name: self._waits.between(name, begin, now) for name in names}
        late = result.late
        if late:
            first, last = late.pop('begin_ns'), late.pop('end_ns')
            late['after_begin_s'] = (first - begin) / SECOND
            late['waited_s'] = {
                name: self._waits.between(name, first, last) for name in (late['who'], STEAL)
            }

    def _reset_since(self, begin: int) -> bool:
        if any(
            at > begin and 'first query after a reset' in stats.reason
            for at, stats in self.rig.received.stats
        ):
            return True
        # The first words of a process may be lost on those who have not found it yet.
        return any(
            at > begin and int(values.get('new episodes', 0)) > self._episodes
            for at, values in self.rig.received.counted
        )

    def _judge_stream(self) -> None:
        """Every command not checked yet: limits, and time after the watchdog's limits."""
        received, result = self.rig.received, self._result
        watch = self.system.profile.watchdog
        # Commands and chunks come by different ways: judge only what all of must have arrived.
        until = time.time_ns() - round(ARRIVED * SECOND)
        commands = list(
            itertools.takewhile(lambda sent: sent.at < until, received.commands[self._commands :])
        )
        chunks = list(
            itertools.takewhile(lambda pair: pair[0] < until, received.chunks[self._chunks :])
        )
        self._commands += len(commands)
        self._chunks += len(chunks)
        chunks.sort(key=lambda pair: pair[0])  # two senders: not in the order of their stamps
        poses = np.array(self.rig.pose.passed)
        mark_braking(commands)
        self._mark_slowing(commands)
        for sent in commands:
            while chunks and chunks[0][0] <= sent.at:
                self._axis.chunk(chunks.pop(0)[1])
            dry = self._axis.command(sent)
            self._judge_limits(sent)
            if self.sim_time or sent.braking:
                continue  # ages are in the clock's time, not in ours; or they have been heeded
            if dry is not None:
                self._over(AGES[0], sent.at - round((dry - watch.dry_queue) * SECOND), sent.at)
            i = int(np.searchsorted(poses[:, 0], sent.at)) - 1 if len(poses) else -1
            if i >= 0:
                limit = int(poses[i, 1]) + round(watch.state_age * SECOND)
                self._over(AGES[1], limit, sent.at)
        for chunk in chunks:
            self._axis.chunk(chunk[1])
        if result.over > IN_TIME and result.late['limit'] in AGES:
            self.breaks(f'{result.late["limit"]}: late by {result.over:.3f} s', late=True)
        box = self.system.profile.limits.workspace
        positions = [p for _, p in received.positions[self._poses :]]
        self._poses = len(received.positions)
        if positions and box is not None:
            at = np.array(positions)
            result.outside = float(max(0.0, (at - box[1]).max(), (np.array(box[0]) - at).max()))

    def _mark_slowing(self, commands: list[Sent]) -> None:
        limits = self.system.profile.limits
        pairs = (
            ('linear', limits.translation_acceleration),
            ('angular', limits.rotation_acceleration),
        )
        for before, sent in itertools.pairwise(commands):
            for part, acceleration in pairs:
                lost = math.hypot(*getattr(before, part)) - math.hypot(*getattr(sent, part))
                sent.slowing |= lost > 0.5 * acceleration / RATE

    def _judge_limits(self, sent: Sent) -> None:
        """Speed, acceleration and jerk of one command; before a motion there is rest."""
        limits, result, dt = self.system.profile.limits, self._result, 1.0 / RATE
        rows = np.zeros((3, 6))
        if self._before and self._before[-1].zero:
            self._before = []
        for i, row in enumerate((*self._before, sent)):
            rows[i + 2 - len(self._before)] = (*row.linear, *row.angular)
        self._before = [*self._before[-1:], sent]
        if not np.isfinite(rows).all():
            self.breaks('a command is not finite')
            return
        changes = np.diff(rows, axis=0) / dt
        jerk = (changes[1] - changes[0]) / dt
        pairs = (
            ('speed', rows[2], limits.translation_speed, limits.rotation_speed),
            (
                'acceleration',
                changes[1],
                limits.translation_acceleration,
                limits.rotation_acceleration,
            ),
            ('jerk', jerk, *limits.jerks),
        )
        for what, row, linear, angular in pairs:
            share = max(np.linalg.norm(row[:3]) / linear, np.linalg.norm(row[3:]) / angular)
            setattr(result, what, max(getattr(result, what), float(share)))
            if share > TIGHT:
                self.breaks(f'a command is {share:.3f} of the limit of {what}')

    def _judge_stop(self, kind: Kind, begin: int, ended: int) -> None:
        result, received = self._result, self.rig.received
        before = [sent for sent in received.commands if sent.at < begin]
        window = before[-100:] + [sent for sent in received.commands if sent.at >= begin]
        gap = None
        ends = [*(sent.at for sent in window[1:]), ended]
        for sent, after in zip(window, ends[: len(window)], strict=True):
            pause = (GAP if sent.zero else kind.pause) * SECOND
            if after - sent.at > pause and after > begin and sent.at < ended:
                held_up = self._waits.between(EXECUTOR, sent.at, after) * SECOND
                if sent.zero or held_up < 0.5 * (after - sent.at):
                    gap = sent
                    break
        result.stopped |= gap is not None
        if gap is not None and not gap.zero:
            self.breaks('the last command before the pause was no stop')
        if kind.stops and gap is None:
            self.breaks('the arm was not stopped')
        if self.stalled_at is not None and gap is not None:
            stall = round(self.system.profile.watchdog.clock_stall * SECOND)
            driven = [sent.at for sent in window if not sent.braking and sent.at < gap.at]
            if self._over('clock stall', self.stalled_at + stall, max(driven)) > IN_TIME:
                self.breaks(f'stopped {result.over:.3f} s after the limit', late=True)
        result.reasons = self._reasons_since(ended)
        took = [
            float(values['last stop took (s)'])
            for at, values in received.counted
            if at > begin and values.get('last stop took (s)')
        ]
        if result.reasons and took:
            result.rest = max(took)
            if result.rest > self._longest_rest():
                self.breaks(f'{result.rest:.3f} s from braking to rest', late=True)
        slow = [late for lane in self.rig.lanes for at, late in list(lane.late) if at > begin]
        result.lanes_late = max(slow, default=0) / SECOND
        expected = set(kind.reasons)
        if result.lanes_late > 0.5 * self.system.profile.watchdog.state_age:
            expected.add('stale_state')  # poses come through this suite, which was held up
        known = gap is not None and gap.at > begin  # else it received with the injection before
        if known and kind.stops and kind.reasons and not expected & set(result.reasons):
            self.breaks(f'the executor gave as reasons {result.reasons}')

    def _longest_rest(self) -> float:
        """How long the limits make braking take, and what a busy machine may add, s."""
        limits = self.system.profile.limits
        brake = max(
            limits.translation_speed / limits.translation_acceleration,
            limits.rotation_speed / limits.rotation_acceleration,
        )
        return math.sqrt(3.0) * brake + 2.0 / JERK_RATIO + IN_TIME

    def _reasons_since(self, ended: int) -> list[str]:
        """The reasons of stops that the executor has counted since the last check."""
        received = self.rig.received
        wait_until(lambda: any(at > ended for at, _ in received.counted), 3.0)
        if not received.counted:
            return []
        now = Counter(
            {
                key.removeprefix(STOPS_FOR): int(value)
                for key, value in received.counted[-1][1].items()
                if key.startswith(STOPS_FOR)
            }
        )
        before, self._stops = self._stops, now
        return sorted(reason for reason, n in now.items() if n > before[reason])

    def _judge_processes(self) -> None:
        for name in NODES:
            if self.system.alive(name):
                continue
            process = self.system.processes[name]
            self.breaks(f'{name} died with status {process.process.returncode}: {process.tail(4)}')
            self.system.start(name)
            self.system.wait(name)
            if name == EXECUTOR:
                self.executor_died()
            self.settle()

    def _trim(self) -> None:
        """Forget what has been judged."""
        received = self.rig.received
        horizon = time.time_ns() - 10 * SECOND
        keep = next(
            (i for i, sent in enumerate(received.commands) if sent.at > horizon),
            len(received.commands),
        )
        keep = min(keep, self._commands)
        del received.commands[:keep]
        self._commands -= keep
        del received.chunks[: self._chunks]
        self._chunks = 0
        del received.positions[: max(0, self._poses - 500)]
        self._poses = len(received.positions)
        received.stats[:] = [pair for pair in received.stats if pair[0] > horizon]
        received.speeds[:] = [pair for pair in received.speeds if pair[0] > horizon]
        received.said[:] = [item for item in received.said if item[0] > horizon]


def child_of(pid: int) -> int | None:
    """A child of a process, which the executor has one of."""
    try:
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def plan(kinds: list[Kind], count: int, rng: np.random.Generator) -> list[Kind]:
    """``count`` injections in seeded order, each kind at least once."""
    shares = np.array([kind.share for kind in kinds])
    numbers = np.maximum(1, np.floor(shares / shares.sum() * count).astype(int))
    usual = [i for i, kind in enumerate(kinds) if kind.share == 1.0] or range(len(kinds))
    i = 0
    while numbers.sum() < count:
        numbers[usual[i % len(usual)]] += 1
        i += 1
    out = [kind for kind, n in zip(kinds, numbers, strict=True) for _ in range(n)]
    return [out[i] for i in rng.permutation(len(out))]


@contextlib.contextmanager
def log_folder() -> Iterator[tuple[Path, str]]:
    """A folder for logs that can be filled up: a file system of its own where that is allowed."""
    with tempfile.TemporaryDirectory() as name:
        mounted = (
            os.geteuid() == 0
            and subprocess.run(
                ['mount', '-t', 'tmpfs', '-o', f'size={TMPFS}', 'none', name], capture_output=True
            ).returncode
            == 0
        )
        before = os.environ.get('ROS_LOG_DIR')
        os.environ['ROS_LOG_DIR'] = name
        try:
            yield Path(name), 'tmpfs' if mounted else 'file size limit'
        finally:
            if before is None:
                os.environ.pop('ROS_LOG_DIR')
            else:
                os.environ['ROS_LOG_DIR'] = before
            if mounted:
                subprocess.run(['umount', '-l', name], capture_output=True)


def run(kinds: list[Kind], count: int, seed: int, limit_s: float) -> tuple[list[Result], dict]:
    """Inject; results and notes on the run."""
    order = plan(kinds, count, np.random.default_rng(seed))
    results: list[Result] = []
    notes: dict = {'exit_status': {}, 'log_tails': {}}
    begin = time.monotonic()
    for sim_time in (False, True):
        todo = [kind for kind in order if kind.sim_time == sim_time]
        if not todo:
            continue
        with log_folder() as (folder, disk):
            notes['full_disk_by'] = disk
            suite = Suite(folder, sim_time, disk)
            with suite:
                if not suite.settle():
                    raise SystemExit(
                        f'the arm does not move: {suite.rig.received.health}\n'
                        + '\n'.join(p.tail() for p in suite.system.processes.values())
                    )
                for kind in todo:
                    if time.monotonic() - begin > limit_s:
                        notes['ended_early'] = f'after {limit_s:.0f} s'
                        break
                    number = len(results)
                    result = suite.inject(kind, number, np.random.default_rng((seed, number)))
                    results.append(result)
                    print(
                        f'{time.monotonic() - begin:6.0f} s  {number + 1:4d}/{len(order)}  '
                        f'{kind.name:20s}{"" if result.survived else "BROKEN: "}'
                        + '; '.join(result.broken)
                        + (' (held up by the machine)' if result.held_up else ''),
                        flush=True,
                    )
                    if not result.survived:
                        notes['log_tails'][str(number)] = {
                            name: p.tail(12) for name, p in suite.system.processes.items()
                        }
            for name, status in suite.statuses.items():
                notes['exit_status'][name + (' (simulated time)' if sim_time else '')] = status
    notes['seconds'] = time.monotonic() - begin
    return results, notes


def rows_of(results: list[Result]) -> list[dict]:
    """One row per kind."""
    rows = []
    for kind in KINDS:
        mine = [r for r in results if r.kind == kind.name]
        if not mine:
            continue
        over = [1e3 * r.over for r in mine if math.isfinite(r.over)]
        rest = [1e3 * r.rest for r in mine if math.isfinite(r.rest)]
        recovery = [r.recovery for r in mine]
        latest = max(mine, key=lambda r: r.over if math.isfinite(r.over) else -1.0).late
        rows.append(
            {
                'kind': kind.name,
                'invariant': kind.invariant,
                'injected': len(mine),
                'survived': sum(r.survived for r in mine),
                'held_up': sum(r.held_up for r in mine),
                'stopped': sum(r.stopped for r in mine),
                'worst_stop_ms_after_limit': max(over) if over else None,
                'worst_stop_at': latest,
                'worst_rest_ms': max(rest) if rest else None,
                'worst_wait_ms': {
                    name: 1e3 * max(r.waited.get(name, 0.0) for r in mine)
                    for name in (EXECUTOR, ARM, LANES, STEAL)
                },
                'worst_lanes_late_ms': 1e3 * max(r.lanes_late for r in mine),
                'worst_speed_share': max(r.speed for r in mine),
                'worst_acceleration_share': max(r.acceleration for r in mine),
                'worst_jerk_share': max(r.jerk for r in mine),
                'worst_outside_mm': 1e3 * max(r.outside for r in mine),
                'recovery_p50_s': float(np.median(recovery)),
                'recovery_max_s': max(recovery),
                'stop_reasons': dict(Counter(x for r in mine for x in r.reasons)),
                'broken': dict(Counter(x for r in mine for x in r.broken)),
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    """The table."""
    print(
        f'{"kind":21s}{"injected":>9s}{"survived":>9s}{"stopped":>8s}{"braking":>9s}{"rest":>6s}'
        f'{"speed":>7s}{"accel":>7s}{"jerk":>7s}{"recovery":>10s}  broken'
    )
    print(
        f'{"":47s}{"ms after":>9s}{"ms":>6s}'
        f'{"of max":>7s}{"of max":>7s}{"of max":>7s}{"max s":>10s}'
    )
    for row in rows:
        worst, rest = row['worst_stop_ms_after_limit'], row['worst_rest_ms']
        print(
            f'{row["kind"]:21s}{row["injected"]:9d}{row["survived"]:9d}{row["stopped"]:8d}'
            f'{"-" if worst is None else f"{worst:.0f}":>9s}'
            f'{"-" if rest is None else f"{rest:.0f}":>6s}{row["worst_speed_share"]:7.3f}'
            f'{row["worst_acceleration_share"]:7.3f}{row["worst_jerk_share"]:7.3f}'
            f'{row["recovery_max_s"]:10.1f}  {"; ".join(row["broken"]) or "no"}'
        )


def main() -> int:
    """Run and report; exit status 0 where no invariant was broken by us."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=800, help='injections over all kinds')
    parser.add_argument('--seed', type=int, default=0, help='seed of order and faults')
    parser.add_argument('--kinds', nargs='+', metavar='KIND', help='only kinds that contain this')
    parser.add_argument('--seconds', type=float, default=3600.0, help='end after this long')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    args = parser.parse_args()
    kinds = [k for k in KINDS if not args.kinds or any(part in k.name for part in args.kinds)]
    if not kinds:
        parser.error(f'--kinds: none of {", ".join(k.name for k in KINDS)}')
    if args.count < 1:
        parser.error(f'--count is {args.count}; at least 1')
    results, notes = run(kinds, args.count, args.seed, args.seconds)
    rows = rows_of(results)
    show(rows)
    over = [r['worst_stop_ms_after_limit'] for r in rows if r['worst_stop_ms_after_limit']]
    bad = {name: status for name, status in notes['exit_status'].items() if status}
    ok = not bad and all(r.survived or r.held_up for r in results)
    print(
        f'{len(results)} injections in {notes["seconds"]:.0f} s, '
        f'{sum(r.survived for r in results)} survived, '
        f'{sum(r.held_up for r in results)} late because the machine held them up; worst stop '
        f'{max(over, default=0.0):.0f} ms after a limit; exit statuses '
        + (f'{bad}' if bad else 'all 0')
    )
    write(
        args.json,
        {
            'benchmark': 'faults',
            'seed': args.seed,
            'injected': len(results),
            'survived': sum(r.survived for r in results),
            'held_up': sum(r.held_up for r in results),
            'worst_stop_ms_after_limit': max(over, default=None),
            'worst_rest_ms': max((r['worst_rest_ms'] or 0.0 for r in rows), default=None),
            'worst_share_of_limits': {
                what: max(r[f'worst_{what}_share'] for r in rows)
                for what in ('speed', 'acceleration', 'jerk')
            },
            **notes,
            'rows': rows,
            'not_survived': [_plain(r) for r in results if not r.survived],
        },
    )
    return 0 if ok else 1


def _plain(result: Result) -> dict:
    return json.loads(
        json.dumps({**asdict(result), 'held_up': result.held_up}, default=str)
        .replace('NaN', 'null')
        .replace('Infinity', 'null')
    )


if __name__ == '__main__':
    sys.exit(main())
