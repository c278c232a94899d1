"""A thread that publishes, so that the next query need not wait for messages to be made."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from specprune_ros.policy.observation import Observation
from specprune_ros.policy.result import PolicyResult

DEPTH = 4  # events that may wait


@dataclass(frozen=True)
class QueryEvent:
    """What a query came to: a result of ``observation``, or a ``refusal``, the reason why there
    is no chunk. ``generation`` is the publisher's when the query began; ``begin_ns`` and
    ``end_ns`` are the node's times at which inference began and ended.
    """

    generation: int
    refusal: str = ''
    observation: Observation | None = None
    result: PolicyResult | None = None
    begin_ns: int = 0
    end_ns: int = 0


class Publisher(threading.Thread):
    """Hands events to ``publish`` in the order they came; those of before a stop are dropped.

    ``generation`` counts the stops. None is lost, and not many can wait: where ``DEPTH`` do,
    :meth:`put` waits too.
    """

    def __init__(self, publish: Callable[[QueryEvent], None]) -> None:
        super().__init__(name='publisher', daemon=True)
        self._publish = publish
        self.generation = 0
        self._events: queue.Queue[QueryEvent | None] = queue.Queue(DEPTH)

    def put(self, event: QueryEvent, period: float = 0.1) -> bool:
        """Hand an event over; while there is no room wait, and every ``period`` seconds see
        whether a stop made it void. Returns whether it was taken.
        """
        while event.generation == self.generation:
            try:
                self._events.put(event, timeout=period)
            except queue.Full:
                continue
            return True
        return False

    @property
    def behind(self) -> bool:
        """Whether an event waits for the one under way."""
        return not self._events.empty()

    def settle(self, timeout: float) -> bool:
        """Wait until nothing waits and nothing is under way; returns whether that came true."""
        events = self._events
        with events.all_tasks_done:
            return events.all_tasks_done.wait_for(
                lambda: not (self.is_alive() and events.unfinished_tasks), timeout
            )

    def close(self, timeout: float = 5.0) -> None:
        """End after the event under way; what waits is void."""
        self.generation += 1
        if self.is_alive():
            with contextlib.suppress(queue.Full):
                self._events.put(None, timeout=timeout)
            self.join(timeout)

    def run(self) -> None:
        """Thread body."""
        while (event := self._events.get()) is not None:
            try:
                if event.generation == self.generation:
                    self._publish(event)
            except Exception as error:  # a message that cannot be made must not end the thread
                reason = f'the result cannot be published: {type(error).__name__}: {error}'
                self._publish(QueryEvent(event.generation, reason))
            finally:
                del event  # with the images it may hold
                self._events.task_done()
