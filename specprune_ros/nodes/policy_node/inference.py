"""The one thread that owns the model, from loading it to its last query."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from specprune_ros.nodes.policy_node.observation_buffer import NotReady, ObservationBuffer
from specprune_ros.nodes.policy_node.publisher import Publisher, QueryEvent
from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule, QueryScheduler
from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import ObservationError
from specprune_ros.policy.result import PolicyError, PolicyResult

if TYPE_CHECKING:
    from rclpy.clock import Clock

    from specprune_ros.nodes.policy_node.chunk_continuation import ChunkContinuation
    from specprune_ros.policy.policy import Policy
    from specprune_ros.serving.client import RemotePolicy

# How long to wait for images before saying what is missing, in seconds.
PATIENCE = 0.1
# A dense pass in the slack begins between these times what one takes before the query is due.
REFRESH_FIRST, REFRESH_LAST = 1.6, 1.15
PREPARE = 0.02  # s before a query is due at which the images of its look-back are prepared
_DEAD: list[Policy] = []  # on devices that were lost, until the process ends


class InferenceThread(threading.Thread):
    """Loads the policy, then turns observations into results while active.

    Everything that queries the model happens here; the engine captures in a thread of its own.
    ``build`` makes the policy; ``clock`` is the node's. ``publish`` takes what each query
    came to, in order, in a thread of its own while the next query runs; ``follow`` takes each
    result with the time (ns) at which inference ended and the seconds that the chunk takes the
    arm, before the next query. ``lose`` takes the
    message about a device that was lost, after which the thread ends. :attr:`schedule` says how
    the user wants queries, :attr:`chunking` lets a query go on from the chunk before, if set.
    """

    def __init__(
        self,
        build: Callable[[], Policy | RemotePolicy],
        observation_buffer: ObservationBuffer,
        clock: Clock,
        publish: Callable[[QueryEvent], None],
        lose: Callable[[str], None],
        schedule: QuerySchedule,
        follow: Callable[[PolicyResult, int, float], None] | None = None,
    ) -> None:
        super().__init__(name='inference', daemon=True)
        self._build = build
        self._observation_buffer = observation_buffer
        self._clock = clock
        self._lose = lose
        self._follow = follow
        self.schedule = schedule
        self._chunks = QueryScheduler()
        self._begun = -math.inf  # s, monotonic: the last query
        self._busy = False
        self._plays = 0.0  # s that the last chunk takes the arm
        self._slack_used = True  # nothing to refresh before the first query
        self._instruction = ''  # of the last query
        self.chunking: ChunkContinuation | None = None
        self._publisher = Publisher(publish)
        self._built = threading.Event()
        self._active = threading.Event()
        self._idle = threading.Event()
        self._ending = threading.Event()
        self._error: Exception | None = None
        self.policy: Policy | RemotePolicy | None = None

    def load(
        self, timeout: float, interrupted: Callable[[], bool] = lambda: False
    ) -> Policy | RemotePolicy:
        """Start the thread and wait for the policy, unless ``interrupted`` becomes true.

        Raises what building it raised, ``TimeoutError`` or ``InterruptedError``.
        """
        self.start()
        self._publisher.start()
        end = time.monotonic() + timeout
        while not self._built.wait(PATIENCE) and time.monotonic() < end:
            if interrupted():
                raise InterruptedError('requested to end while loading')
        if not self._built.is_set():
            raise TimeoutError(
                f'the model was not ready after {timeout:.0f} s (model.load_timeout)'
            )
        if self._error is not None:
            raise self._error
        assert self.policy is not None
        return self.policy

    @property
    def busy_for(self) -> float:
        """Seconds that the query under way has taken; 0 where none is."""
        return time.monotonic() - self._begun if self._busy else 0.0

    def activate(self) -> None:
        """Begin to query."""
        self._idle.clear()
        self._active.set()

    def deactivate(self, timeout: float = 5.0) -> bool:
        """Stop querying and publishing; returns whether what was under way ended in time."""
        self._active.clear()
        self._publisher.generation += 1
        end = time.monotonic() + timeout
        while self.is_alive() and not self._idle.wait(min(timeout, PATIENCE)):
            if time.monotonic() > end:
                return False
        return self._publisher.settle(max(end - time.monotonic(), 0.0))

    @property
    def behind(self) -> bool:
        """Whether another result waits to be published."""
        return self._publisher.behind

    def close(self, timeout: float = 5.0) -> None:
        """End the thread and let go of the model; one that is still loading is not waited for."""
        self._ending.set()
        self._active.set()
        self._observation_buffer.close()
        self._publisher.close(timeout)
        if self.is_alive() and self._built.is_set():
            self.join(timeout)
        if not self.is_alive():
            self.policy = None

    def run(self) -> None:
        """Thread body."""
        try:
            self.policy = self._build()
        except Exception as error:
            # Whatever a model file provokes is for the thread that waits in load() to report.
            self._error = error
            return
        finally:
            self._built.set()
        try:
            self._work()
        finally:
            if not any(policy is self.policy for policy in _DEAD):
                self.policy.close()

    def _work(self) -> None:
        while True:
            if not self._active.is_set():
                self._chunks.reset()
                self._idle.set()
            self._active.wait()
            if self._ending.is_set():
                return
            schedule = self.schedule
            early = self._early(schedule)
            if early > 0:
                if not self._slack(early, schedule):
                    return
                continue
            if not self._observation_buffer.wait(PATIENCE, schedule.newer_for):
                reason = self._observation_buffer.unready(self._clock.now().nanoseconds)
                if reason and self._active.is_set():
                    self._refuse(reason, self._publisher.generation)
                continue
            self._begun, self._busy, self._slack_used = time.monotonic(), True, False
            try:
                if not self._query():
                    return
            finally:
                self._busy = False

    def _slack(self, early: float, schedule: QuerySchedule) -> bool:
        """Use the time until a query is due; returns whether one can be made then.

        Once between two queries, as late as it surely ends in time, the prior is made anew
        (``pruning.refresh_when``) and the past images that the query will compare with are
        prepared. Otherwise wait, in slices, so that deactivation need not wait for a slow rate.
        """
        policy = self.policy
        assert policy is not None
        refreshes = policy.refreshes_in_slack
        needs = policy.dense_seconds if refreshes else 0.0
        first, last = REFRESH_FIRST * needs + PREPARE, REFRESH_LAST * needs
        if refreshes and not needs:  # what a dense pass takes is to be found out
            first = early
        if self._slack_used or early > first:
            self._ending.wait(min(early - (0.0 if self._slack_used else first), PATIENCE))
            return True
        self._slack_used, generation, begin = (
            True,
            self._publisher.generation,
            self._clock.now().nanoseconds,
        )

        def due() -> bool:
            return generation != self._publisher.generation or self._early(schedule) <= 0

        try:
            if refreshes and early > last:
                policy.refresh(self._observation_buffer.take(begin, use=False), due)
            elif refreshes:
                policy.skip_refresh()
            policy.prepare_reference(begin + round(early * SECOND_NS), due)
        except (NotReady, ObservationError):
            return True  # the query will meet it, and say so
        except Exception as error:  # whatever fails must stop the arm, and say so
            failure = error.with_traceback(None)
        else:
            return True
        policy.reset(f'after an error: {failure}')
        return self._failed(failure, generation)

    def _early(self, schedule: QuerySchedule) -> float:
        """Seconds until the next query is due."""
        early = self._begun + schedule.period - time.monotonic()
        # A new instruction does not wait for the old one's motion.
        if schedule.by_chunk and self._observation_buffer.instruction == self._instruction:
            early = max(early, self._chunks.early(self._clock.now().nanoseconds / SECOND_NS))
        return early

    def _query(self) -> bool:
        """One query; returns whether another can be made."""
        assert self.policy is not None
        begin, generation = self._clock.now().nanoseconds, self._publisher.generation
        if not self._active.is_set():  # deactivated before the generation was read
            return True
        try:
            observation = self._observation_buffer.take(begin)
            chunking = self.chunking
            before = None if chunking is None else chunking.go_on(observation)
            # Only a flow policy knows the word.
            more = {} if before is None else {'continuation': before}
            self.policy.query_period = max(self.schedule.period, self._plays)
            result = self.policy.act(observation, **more)
            if generation != self._publisher.generation:
                return True
            if chunking is not None:
                chunking.issued(observation, result)
            end = self._clock.now().nanoseconds
            whole = chunking is not None and chunking.enabled
            rows = len(result.actions) if whole else self.policy.config.rows_run
            self._plays = rows * self.policy.step_dt
            if self._follow is not None:
                self._follow(result, end, self._plays)
        except (NotReady, ObservationError, PolicyError) as error:
            self._refuse(str(error), generation)
            return True
        except Exception as error:  # whatever fails must stop the arm, and say so
            failure = error.with_traceback(None)  # whose frames would hold the query's tensors
        else:
            self._publisher.put(QueryEvent(generation, '', observation, result, begin, end))
            self._instruction = observation.instruction
            observed = observation.stamp_ns / SECOND_NS
            self._chunks.delivered(observed, end / SECOND_NS, self._plays)
            return True
        return self._failed(failure, generation)

    def _failed(self, error: Exception, generation: int) -> bool:
        """Say why a query failed; returns whether another can be made."""
        device = self.policy.device
        fault = None
        if device is not None:
            from specprune_ros.policy.device import check_alive, fault_of, release

            fault = fault_of(error, device)
        if fault is None:
            self._refuse(f'the policy failed: {type(error).__name__}: {error}', generation)
            return True
        if not fault.lost:
            self._refuse(fault.message, generation)
            release(device)
            return True
        try:
            check_alive(device)
        except Exception:  # of whatever kind: it cannot add 1 to 0
            # Letting go of its tensors calls the device, and would end the process unreported.
            _DEAD.append(self.policy)
            self._active.clear()
            self._lose(fault.message)
            return False
        # One call was wrong, and nothing else.
        self._refuse(f'{device} refused a call: {fault.said}', generation)
        return True

    def _refuse(self, reason: str, generation: int) -> None:
        self._publisher.put(QueryEvent(generation, reason))
