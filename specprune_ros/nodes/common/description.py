"""``robot_description`` from a topic: read in a child process, and only the first counts.

A description decides what a joint angle means, so whoever can send another one moves the limits
with it. The first one that fits is kept for as long as the reader lives; the same text again is
nothing new, another text is reported and not used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from std_msgs.msg import String

from specprune_ros.bounded_files import read_text
from specprune_ros.nodes.common import bounded_subscription as bounded
from specprune_ros.nodes.common.qos import both_durabilities
from specprune_ros.robot.description import MAX_URDF, UrdfError, digest
from specprune_ros.robot.description_trial import UntriedError, try_out

AGAIN = 0.1  # s between two looks whether one that came at a bad time may be read now
LATER = 5.0  # s after which one that could not be tried out is tried again
TRIALS = 5


def read_file(file: str, frames: tuple[str, str, str]) -> str:
    """The URDF of a file, tried out; empty where none is named. ``frames``: tip, base and joint
    prefix. Raises ``FileError`` or ``UrdfError``.
    """
    if not file:
        return ''
    text = read_text(Path(file), MAX_URDF)
    try_out(text, *frames)
    return text


class DescriptionReader:
    """Subscribes on construction; :meth:`close` unsubscribes. Callbacks come in the node's thread.

    ``use`` takes the text that was tried out and may raise ``UrdfError`` to refuse it after all.
    ``refused`` gets the reason of a refusal; ``another`` that one came which differs from the one
    in use. ``busy`` says why none may be read now (the arm moves), or nothing; a text that was
    refused for it is tried again afterwards, as a latched one comes only once. So is one that the
    child process gave no answer to, ``TRIALS`` times in all. ``sha256``: the only text that is
    taken, where the profile names one.
    """

    def __init__(
        self,
        node: Any,
        topic: str,
        frames: tuple[str, str, str],
        use: Callable[[str], None],
        refused: Callable[[str], None],
        another: Callable[[str], None],
        busy: Callable[[], str] = lambda: '',
        sha256: str = '',
    ) -> None:
        self._node, self._frames, self._sha256 = node, frames, sha256.lower()
        self._use, self._refused, self._another, self._busy = use, refused, another, busy
        self.used = ''  # digest of the description in use
        self._thread: threading.Thread | None = None
        self._result: tuple[str, str, bool] | None = None  # text, what is wrong, whether for good
        self._trials = 0
        self._kept: tuple[str, bool] | None = None  # to be read later; whether it was tried out
        self._timer: Any = None
        self._done = node.create_guard_condition(self._finish)
        self._reading = ''
        self._subscriptions = [
            bounded.subscribe(
                node, String, topic, self._on_text, quality, refused, bounded.DESCRIPTION
            )
            for quality in both_durabilities()
        ]

    def close(self) -> None:
        """Unsubscribe; what is being read is not used any more."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._node.destroy_guard_condition(self._done)
        self._done = None
        self._forget()

    def _on_text(self, message: String) -> None:
        text = message.data
        if self.used:
            if digest(text) != self.used:
                self._another(
                    'another one came; the first counts until the node is configured anew'
                )
            return
        reason = self._busy()
        if self._sha256 and digest(text) != self._sha256:
            self._refused(f'its SHA-256 is {digest(text)}, the profile names {self._sha256}')
        elif self._thread is not None or (self._kept is not None and self._kept[1]):
            # Received by both subscriptions, or said twice.
            if digest(text) != self._reading:
                self._refused('another one came while the first was being read')
        elif reason:
            self._trials = 0
            self._keep(text, False, AGAIN)
            self._refused(reason)
        else:
            self._trials = 0
            self._read(text)

    def _read(self, text: str) -> None:
        self._forget()
        self._trials += 1
        self._reading = digest(text)
        self._thread = threading.Thread(target=self._try, args=(text,), daemon=True)
        self._thread.start()

    def _keep(self, text: str, tried: bool, seconds: float) -> None:
        self._forget()
        self._kept = text, tried
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(seconds, self._again, clock=steady)

    def _forget(self) -> None:
        self._kept = None
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def _again(self) -> None:
        if self._kept is None or self._thread is not None or self._busy():
            return
        text, tried = self._kept
        if tried:
            self._forget()
            self._take(text)
        else:
            self._read(text)

    def _try(self, text: str) -> None:
        try:
            try_out(text, *self._frames)
            self._result = (text, '', True)
        except UntriedError as error:
            self._result = (text, str(error), False)
        except UrdfError as error:
            self._result = (text, str(error), True)
        except Exception as error:
            self._result = (text, f'robot_description could not be tried out: {error}', False)
        done = self._done
        if done is not None:
            done.trigger()

    def _finish(self) -> None:
        if self._result is None:
            return
        text, reason, certain = self._result
        self._result = self._thread = None
        if reason and not certain and self._trials < TRIALS:
            # Whoever publishes it may say it only once.
            self._keep(text, False, LATER)
            self._refused(f'{reason}; it is tried again in {LATER:g} s')
        elif reason:
            self._refused(reason)
        elif reason := self._busy():
            self._keep(text, True, AGAIN)
            self._refused(reason)
        else:
            self._take(text)

    def _take(self, text: str) -> None:
        try:
            self._use(text)
            self.used = digest(text)
        except UrdfError as error:
            self._refused(str(error))
