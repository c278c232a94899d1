"""The demo's course: each instruction from the same scene, pruned and dense, and whatever a person
says in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from specprune_ros.apps.monitor import Monitor
from specprune_ros.apps.processes import NodeDied, NodeProcess
from specprune_ros.sim.tasks.task_result import RUNNING, UNKNOWN, TaskResult

PRUNED, DENSE = 'specprune', 'dense'
DEMO, PERSON = 'demo', 'person'
START_PATIENCE = 60.0  # s until the first chunk
ANSWER_PATIENCE = 30.0  # s until a node answers a service call
OVERTAKEN = 2.0  # s until an instruction that did not reach the arm is sent again
AFTERWARDS = 0.7  # s that a finished instruction is shown
UNJUDGED = 10.0  # s that an instruction nobody can judge is obeyed before the sequence goes on
REFUSAL = 'cannot configure'  # in a node's log
LEAST = 2.0  # s left that make it worth starting an instruction


class TimeIsUp(Exception):
    """The demo's seconds are over."""


@dataclass
class Attempt:
    """One instruction, who said it, how it went and what it cost.

    ``pruner`` is that of most of its queries: a person may change it meanwhile. ``verdict`` is
    the arm's, in simulated seconds, of which ``real_time_factor`` passed in a second. ``cut``
    says why it was not carried through, empty if it was.
    """

    instruction: str
    said_by: str
    pruner: str
    verdict: TaskResult
    cut: str = ''
    queries: int = 0
    tokens_mean: float | None = None
    flops_ratio: float | None = None
    query_ms_p50: float | None = None
    seconds_taken: float = 0.0
    real_time_factor: float | None = None

    @property
    def summary(self) -> str:
        """How it went, in a few words."""
        if self.cut:
            return self.cut
        if self.verdict.outcome == UNKNOWN:
            return 'not judged'
        if not self.verdict.final:
            return RUNNING
        return f'{self.verdict.outcome.replace("_", " ")}, {self.verdict.seconds:.1f} s'

    @property
    def simulated_seconds(self) -> float | None:
        """How long it took, where it succeeded."""
        return self.verdict.seconds if self.verdict.success else None

    def take(self, cost: Mapping[str, Any]) -> None:
        """What its queries cost (:meth:`.QueryStats.since`)."""
        for name, value in cost.items():
            if value is not None:
                setattr(self, name, value)

    def numbers(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        numbers = asdict(self)
        verdict = numbers.pop('verdict')
        verdict.pop('instruction')
        return numbers | verdict | {'success': self.verdict.success}


class DemoSequence:
    """Runs the demo over ROS: services, parameters and topics, as a person could.

    ``show`` is called often with the seconds gone, for displays; ``say`` takes lines worth
    printing.
    """

    def __init__(
        self,
        monitor: Monitor,
        executor: SingleThreadedExecutor,
        processes: Sequence[NodeProcess],
        names: tuple[str, str, str],
        show: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        """``names`` of the nodes: policy, arm, executor."""
        self._monitor, self._executor, self._processes = monitor, executor, processes
        self._policy, self._arm, self._mover = names
        self._show, self._tell = show, say
        self._clients: dict[str, Any] = {}
        self._begin, self._end, self._seconds = 0.0, math.inf, 0.0
        self._sampled = 0.0
        self._pruner = ''
        self._going = True  # whether policy and executor are enabled
        self._number = 0  # of the last instruction that is done with
        self.attempts: list[Attempt] = []
        self.not_reached: list[tuple[str, str]] = []
        self.memory: dict[str, list[int]] = {process.name: [] for process in processes}

    def run(
        self,
        instructions: Sequence[str],
        seconds: float,
        listens: bool = False,
        performed: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait for the first chunk, then perform. Raises :class:`NodeDied`.

        It ends when every instruction was followed, or after ``seconds``, simulated ones that
        count from the first instruction. With ``listens`` it goes on for people until it is
        interrupted; ``performed`` is called when only they speak.
        """
        self._wait_for_chunk()
        self._begin = self._monitor.seconds
        self._seconds = seconds
        plan = [(words, pruner) for words in instructions for pruner in (PRUNED, DENSE)]
        done = 0
        try:
            for words, pruner in plan:
                self._perform(words, pruner)
                done += 1
            self._obey_person()
            if listens:
                performed()
                self._listen()
            self._tell('the sequence is over; with --stay the demo goes on and listens to you')
        except TimeIsUp:
            pass
        finally:
            self._monitor.recording_gif = False
            begun = {(a.instruction, a.pruner) for a in self.attempts if a.said_by == DEMO}
            self.not_reached = [step for step in plan[done:] if step not in begun]

    @property
    def elapsed(self) -> float:
        """Simulated seconds since the first instruction."""
        return self._monitor.seconds - self._begin

    # The course.

    def _perform(self, words: str, pruner: str) -> None:
        """One instruction from a fresh scene; anew if a person spoke in between."""
        while True:
            self._obey_person()
            if self._end - self._monitor.seconds < LEAST:
                raise TimeIsUp
            self._set_scene(pruner)
            if self._end == math.inf:
                self._begin = self._monitor.seconds
                self._end = self._begin + self._seconds
            if self._monitor.spoken:
                continue
            if not self._follow(self._say(words), DEMO):
                return

    def _listen(self) -> None:
        """The rest of the time belongs to whoever watches."""
        self._use(PRUNED)
        self._tell('the sequence is over; now it is your turn')
        while True:
            self._spin(lambda: bool(self._monitor.spoken))
            self._obey_person()

    def _obey_person(self) -> None:
        """Follow what a person said, from the scene as it is; the newest instruction counts."""
        while self._monitor.spoken:
            words = self._monitor.spoken.pop()
            self._monitor.spoken.clear()
            self._tell(f'you said: {words}')
            self._spin(partial(self._judging, words), OVERTAKEN)
            if not self._judging(words):  # an instruction of the demo came right after it
                self._monitor.say(words)
            self._let_go()
            self._follow(words, PERSON)

    def _set_scene(self, pruner: str) -> None:
        """The scene from its start, the arm and the policy at rest, nothing remembered."""
        self._monitor.recording_gif = self._going = False
        self._call(SetBool, f'{self._mover}/enable', SetBool.Request(data=False))
        self._call(SetBool, f'{self._policy}/enable', SetBool.Request(data=False))
        self._use(pruner)
        self._call(Trigger, f'{self._arm}/reset', Trigger.Request())
        self._call(Trigger, f'{self._mover}/reset', Trigger.Request())

    def _say(self, words: str) -> str:
        """Say it, then let policy and arm go. The time of the verdict begins here."""
        self._monitor.say(words)
        self._spin(lambda: self._judging(words) or bool(self._monitor.spoken), ANSWER_PATIENCE)
        self._let_go()
        return words

    def _let_go(self) -> None:
        if not self._going:
            self._call(SetBool, f'{self._mover}/enable', SetBool.Request(data=True))
            self._call(SetBool, f'{self._policy}/enable', SetBool.Request(data=True))
            self._going = True

    def _use(self, pruner: str) -> None:
        """Change the pruning method while the node runs, as ``ros2 param set`` does."""
        value = Parameter('pruning.pruner', value=pruner).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        (result,) = self._call(SetParameters, f'{self._policy}/set_parameters', request).results
        if not result.successful:
            raise NodeDied(f'pruning.pruner = {pruner} was refused: {result.reason}')
        self._pruner = pruner

    def _follow(self, words: str, said_by: str) -> bool:
        """Watch an instruction to its verdict. Returns whether a person said something else."""
        monitor = self._monitor
        attempt = Attempt(words, said_by, self._pruner, TaskResult(words))
        self.attempts.append(attempt)
        mark = monitor.tally.mark()
        # What is dense has no kept patches to show.
        monitor.recording_gif = said_by == PERSON or self._pruner != DENSE
        begin, started = monitor.seconds, time.monotonic()
        monitor.caption = lambda: (
            attempt.summary
            if attempt.verdict.final
            else f'{RUNNING} {monitor.seconds - begin:.1f} s'
        )
        try:
            self._spin(lambda: bool(monitor.spoken) or self._received(attempt))
            if not attempt.verdict.final:
                attempt.cut = 'you said something else'
                return True
            why = f' ({attempt.verdict.detail})' if attempt.verdict.detail else ''
            self._tell(f'{words}, {attempt.pruner}: {attempt.summary}{why}')
            unknown = attempt.verdict.outcome == UNKNOWN
            self._spin(lambda: bool(monitor.spoken), UNJUDGED if unknown else AFTERWARDS)
            return bool(monitor.spoken)
        except TimeIsUp:
            if not attempt.verdict.final:
                attempt.cut = 'the time was over'
            raise
        finally:
            self._number = max(self._number, attempt.verdict.number)
            attempt.take(monitor.tally.since(mark))
            attempt.seconds_taken = time.monotonic() - started
            attempt.real_time_factor = (monitor.seconds - begin) / attempt.seconds_taken

    def _received(self, attempt: Attempt) -> bool:
        """Take the arm's word on this instruction; whether it is final."""
        if self._judging(attempt.instruction):
            attempt.verdict = self._monitor.verdict
        return attempt.verdict.final

    def _judging(self, words: str) -> bool:
        """Whether the arm has received this instruction, and not only the same one before."""
        verdict = self._monitor.verdict
        return verdict.instruction == words and verdict.number > self._number

    # Waiting.

    def _wait_for_chunk(self) -> None:
        begin, checked_at = time.monotonic(), 0.0
        while not self._monitor.tally.chunks:
            self._executor.spin_once(timeout_sec=0.05)
            now = time.monotonic()
            if now - checked_at < 0.5:
                continue
            checked_at = now
            for process in self._processes:
                process.check()
                # A node that could not take what it was given stays, and waiting does not help.
                problems = [text for text in process.tail().splitlines() if REFUSAL in text]
                if problems:
                    raise NodeDied(f'{process.name}: {problems[-1].split("]: ")[-1]}')
            if now - begin > START_PATIENCE:
                policy = next(p for p in self._processes if p.name == self._policy.lstrip('/'))
                raise NodeDied(
                    f'no chunk within {START_PATIENCE:.0f} s '
                    f'({self._monitor.diagnosis or "no diagnostics"});\n{policy.tail()}'
                )

    def _spin(self, until: Callable[[], bool], seconds: float | None = None) -> None:
        """Serve ROS until something is true or ``seconds`` are over. Raises :class:`TimeIsUp`."""
        end = None if seconds is None else time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if self._monitor.seconds > self._end:
                raise TimeIsUp
            if end is not None and now > end:
                return
            self._executor.spin_once(timeout_sec=0.02)
            if now - self._sampled >= 1.0:
                self._sampled = now
                for process in self._processes:
                    process.check()
                    self.memory[process.name].append(process.memory() or 0)
            self._show(self.elapsed)

    def _call(self, kind: Any, service: str, request: Any) -> Any:
        if service not in self._clients:
            self._clients[service] = self._monitor.create_client(kind, service)
        client = self._clients[service]
        self._spin(client.service_is_ready, ANSWER_PATIENCE)
        future = client.call_async(request)
        self._spin(future.done, ANSWER_PATIENCE)
        if not future.done():
            raise NodeDied(f'{service} did not answer within {ANSWER_PATIENCE:.0f} s')
        return future.result()
