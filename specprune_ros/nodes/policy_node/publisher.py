"""A thread that publishes, so that the next query need not wait for messages to be made."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]
DEPTH = 4  # jobs that may wait


class Publisher(threading.Thread):
    """Does its jobs one after the other, in the order they came. None is lost, and not many can
    wait: where ``DEPTH`` do, :meth:`put` waits too. A job must not raise.
    """

    def __init__(self) -> None:
        super().__init__(name='publisher', daemon=True)
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._busy = False
        self._closed = False

    def put(self, job: Job, given_up: Callable[[], bool], look: float = 0.1) -> bool:
        """Hand a job over. While there is no room wait for it, and every ``look`` seconds ask
        whether to give up; returns whether it was taken.
        """
        with self._changed:
            while not self._closed and len(self._jobs) >= DEPTH:
                if given_up():
                    return False
                self._changed.wait(look)
            if self._closed:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    @property
    def behind(self) -> bool:
        """Whether a job waits for the one under way."""
        return bool(self._jobs)

    def settle(self, timeout: float) -> bool:
        """Wait until nothing waits and nothing is under way; returns whether that came true."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self.is_alive() or not (self._jobs or self._busy), timeout
            )

    def close(self, timeout: float = 5.0) -> None:
        """Forget what waits and end after the job under way."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Thread body."""
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._jobs)
                if self._closed:
                    return
                job = self._jobs.popleft()
                self._busy = True
                self._changed.notify_all()
            job()
            del job  # with the images it may hold
