"""Judges what is said while the arm runs, by the simulator's true state."""

from __future__ import annotations

from dataclasses import replace

from specprune_ros.sim.arm.world import World
from specprune_ros.sim.tasks.task_result import RUNNING, UNKNOWN, TaskResult
from specprune_ros.sim.tasks.tasks import CONTROL_HZ, Judge, named_task


class TaskEvaluator:
    """Follows one instruction at a time with a :class:`Judge`, at the tasks' control rate.

    Time is the world's, and counts from the moment an instruction is received.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._judge: Judge | None = None
        self._due = 0.0
        self.verdict = TaskResult()

    def clear(self) -> TaskResult:
        """The scene starts anew: nothing was said."""
        self._judge, self.verdict = None, TaskResult(number=self.verdict.number)
        return self.verdict

    def on_instruction(self, instruction: str) -> TaskResult:
        """Judge this instruction from now on; one that cannot be judged is ``unknown``."""
        self._judge, number = None, self.verdict.number + 1
        try:
            task = named_task(self._world, instruction)
        except ValueError as error:
            self.verdict = TaskResult(instruction, UNKNOWN, 0.0, str(error), number)
            return self.verdict
        self._world.collision = ''  # what an earlier instruction led to is not this one's
        self._judge = Judge(self._world, task)
        self._due = self._world.time
        self.verdict = TaskResult(instruction, RUNNING, number=number)
        return self.verdict

    def step(self) -> TaskResult | None:
        """Look at the world; call it at least at the control rate. The verdict, once
        it is final.

        At most one check per control period counts, as where the tasks are played offline.
        """
        judge, now = self._judge, self._world.time
        if judge is None or now - self._due < 1.0 / CONTROL_HZ - 1e-6:
            return None
        self._due += 1.0 / CONTROL_HZ
        outcome = judge.step()
        if outcome == RUNNING:
            return None
        self._judge = None
        self.verdict = replace(
            self.verdict,
            outcome=outcome,
            seconds=now - judge.started,
            detail=self._world.collision,
        )
        return self.verdict
