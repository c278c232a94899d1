"""How an instruction went in the simulated arm."""

from __future__ import annotations

from dataclasses import dataclass

WAITING = 'waiting'  # nothing was said since the scene started
RUNNING = 'running'
SUCCESS = 'success'
UNKNOWN = 'unknown'  # none of the instructions that can be judged in this scene
OPEN = (WAITING, RUNNING)


@dataclass(frozen=True)
class TaskResult:
    """``outcome`` is one of those above or of :data:`.tasks.Outcome`; ``seconds`` of simulated
    time since the instruction was said; ``detail`` says why; ``number`` counts the instructions
    received.
    """

    instruction: str = ''
    outcome: str = WAITING
    seconds: float = 0.0
    detail: str = ''
    number: int = 0

    @property
    def final(self) -> bool:
        """Whether it will not change any more."""
        return self.outcome not in OPEN

    @property
    def success(self) -> bool:
        """Whether the task was done."""
        return self.outcome == SUCCESS
