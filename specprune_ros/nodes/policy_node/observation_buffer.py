"""The newest of every input, by time stamp, and when they add up to an observation worth acting
on.

Callbacks put, one inference thread takes. Nothing here knows ROS: stamps are nanoseconds of the
node's clock, so the same rules hold live, in simulation and on a replayed bag.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Condition

import numpy as np

from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import (
    CameraImage,
    Observation,
    ObservationError,
    check_instruction,
    normalise_instruction,
)
from specprune_ros.pruning.controller import SpeedSample

RECENT = 64  # images per camera, at most, among which those of one moment are found


class NotReady(Exception):
    """No chunk may be made now; the message names the input and what is wrong with it."""


@dataclass(frozen=True)
class Limits:
    """When an input counts as usable. All in seconds.

    ``image_age`` and ``state_age`` bound how old an input may be, ``future`` how far a stamp may
    lie ahead of the node's clock, ``sync`` how far the cameras' stamps may lie apart, ``reorder``
    how far back a late message may be stamped before it means that the clock itself went back.
    """

    image_age: float = 0.5
    state_age: float = 0.5
    future: float = 0.25
    sync: float = 0.05
    reorder: float = 0.5


@dataclass(frozen=True)
class Timed:
    """A state vector (float64), its stamp in nanoseconds, and the oldest of what it is made of."""

    value: np.ndarray
    stamp_ns: int
    oldest: str = ''


class ObservationBuffer:
    """Newest input per source; see the module's text. All methods are thread-safe."""

    def __init__(self, cameras: Sequence[str], needs_state: bool, limits: Limits) -> None:
        self.cameras = tuple(cameras)
        self.limits = limits
        self._needs_state = needs_state
        self._changed = Condition()
        self._images: dict[str, CameraImage] = {}  # the newest
        self._recent: dict[str, deque[CameraImage]] = {}
        self._set: dict[str, CameraImage] | None = None  # the newest of one moment
        self._set_ns = -1  # its oldest stamp
        self._faults: dict[str, str] = {}
        self._state: Timed | None = None
        self._position: Timed | None = None
        self._speed: SpeedSample | None = None
        self._speed_stamp, self._speed_lasts = 0, 0.0
        self._instruction = ''
        self._instruction_fault = 'none was given yet'
        self._used_ns = -1
        self._closed = False
        self.late = 0

    def put_image(self, camera: str, image: CameraImage) -> bool:
        """Store an image. Returns False for one that came late and was dropped."""
        with self._changed:
            self._faults.pop(camera, None)
            newest = self._images.get(camera)
            if newest is not None and image.stamp_ns <= newest.stamp_ns:
                back = newest.stamp_ns - image.stamp_ns
                if back < self.limits.reorder * SECOND_NS:
                    self.late += 1
                    return False
                # The clock went back: what the other inputs showed belongs to another time.
                self._forget_time()
            self._images[camera] = image
            self._recent.setdefault(camera, deque(maxlen=RECENT)).append(image)
            self._match()
            self._forget_old(camera)
            # Half a set wakes nobody: the other half comes sooner.
            if self._set_ns > self._used_ns:
                self._changed.notify_all()
            return True

    def fault(self, source: str, reason: str) -> None:
        """Note that the newest message of ``source`` could not be used, and why."""
        with self._changed:
            self._faults[source] = reason
            self._images.pop(source, None)
            self._recent.pop(source, None)
            self._match()

    def put_state(self, value: np.ndarray, stamp_ns: int, oldest: str = '') -> None:
        """Store proprioception, float64 ``[proprio_dim]``, as old as its ``oldest`` part."""
        with self._changed:
            self._faults.pop('proprioception', None)
            self._state = Timed(value, stamp_ns, oldest)

    def lose_state(self, reason: str) -> None:
        """Proprioception can no longer be trusted, and why."""
        with self._changed:
            self._faults['proprioception'] = reason
            self._state = None

    def put_position(self, value: np.ndarray, stamp_ns: int) -> None:
        """Store the end-effector position, float64 ``[3]``, metres."""
        with self._changed:
            self._position = Timed(value, stamp_ns)

    def put_speed(self, speed: SpeedSample | None, stamp_ns: int, lasts: float = 0.0) -> None:
        """Store the end-effector speed (``None``: not known any more). One that is commanded
        ``lasts`` so many seconds, in which it has no age.
        """
        with self._changed:
            self._speed, self._speed_lasts = speed, lasts
            self._speed_stamp = stamp_ns

    def put_instruction(self, text: str) -> None:
        """Store an instruction, blanks normalised. Raises :class:`ObservationError`; then the
        policy has none to obey.
        """
        text = normalise_instruction(text)
        with self._changed:
            self._instruction, self._instruction_fault = '', ''
            try:
                check_instruction(text)
            except ObservationError as error:
                self._instruction_fault = str(error)
                raise
            self._instruction = text
            self._changed.notify_all()

    def refuse_instruction(self, reason: str) -> None:
        """An instruction came that cannot be read; the one before it is no longer in force."""
        with self._changed:
            self._instruction, self._instruction_fault = '', reason

    @property
    def instruction(self) -> str:
        """The instruction in force, empty without one."""
        return self._instruction

    def clear(self) -> None:
        """Forget images and state (not the instruction)."""
        with self._changed:
            self._forget_time()
            self._faults.clear()

    def close(self) -> None:
        """Wake and end every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, timeout: float, newer_for: float = 0.0) -> bool:
        """Wait for a set of images not used before. False on time-out or after :meth:`close`.

        A set that lies here already may be almost a camera period old: wait up to ``newer_for``
        seconds for a newer one before settling for it.
        """
        with self._changed:
            after, end = self._used_ns, time.monotonic() + timeout
            if newer_for > 0 and self._set_ns > self._used_ns:
                after = max(image.stamp_ns for image in self._images.values())
                end = time.monotonic() + newer_for
            while not self._closed and self._set_ns <= after:
                if not self._changed.wait(end - time.monotonic()):
                    break
            return not self._closed and self._set_ns > self._used_ns

    def take(self, now_ns: int, use: bool = True) -> Observation:
        """The newest observation. Raises :class:`NotReady` where an input is missing, stale or
        wrong. Without ``use`` the same images may be taken for a query later.
        """
        with self._changed:
            images = self._set
            if use:
                self._used_ns = max(
                    (image.stamp_ns for image in (images or self._images).values()), default=-1
                )
            reason = self._unready(now_ns)
            if reason:
                raise NotReady(reason)
            position, speed, early = None, self._speed, -self.limits.future
            if self._position is not None:
                age = (now_ns - self._position.stamp_ns) / SECOND_NS
                if early <= age <= self.limits.state_age:
                    position = self._position.value
            if speed is not None:
                age = (now_ns - self._speed_stamp) / SECOND_NS
                # One from the future is no speed; one too old the controller judges itself.
                now = 0.0 if 0 <= age <= self._speed_lasts else age
                speed = None if age < early else replace(speed, age_s=now)
            return Observation(
                images=images,
                instruction=self._instruction,
                proprio=self._state.value if self._needs_state and self._state else None,
                speed=speed,
                position=position,
            )

    def unready(self, now_ns: int) -> str | None:
        """Why no observation can be taken now, or ``None``."""
        with self._changed:
            return self._unready(now_ns)

    def image_ages(self, now_ns: int) -> dict[str, float]:
        """Age of the newest image per camera, seconds; infinite without one."""
        with self._changed:
            return {
                camera: (now_ns - self._images[camera].stamp_ns) / SECOND_NS
                if camera in self._images
                else float('inf')
                for camera in self.cameras
            }

    def state_age(self, now_ns: int) -> float:
        """Age of the proprioception, seconds; infinite without any."""
        with self._changed:
            return (now_ns - self._state.stamp_ns) / SECOND_NS if self._state else float('inf')

    def _forget_time(self) -> None:
        self._images.clear()
        self._recent.clear()
        self._set, self._set_ns = None, -1
        self._state = None
        self._position = None
        self._speed = None
        self._used_ns = -1

    def _match(self) -> None:
        """Find the newest images of one moment, one per camera: to each image of one camera the
        nearest of the others. Cameras of different rates have no newest images that belong
        together. Those found before stay until there are newer ones.
        """
        whole = all(camera in self._images for camera in self.cameras)
        # A set is taken apart by a camera that fails, or by a limit that is new.
        if not whole or (self._set is not None and not self._near(self._set)):
            self._set, self._set_ns = None, -1
        if not whole:
            return
        newest = self._set_ns - 1  # what belongs to the same moment may have come nearer
        for anchor in reversed(self._recent[self.cameras[0]]):
            if anchor.stamp_ns <= newest:
                break  # what it and those before belong to is no newer
            images = {}
            for camera in self.cameras:
                away = math.inf
                for image in reversed(self._recent[camera]):
                    if abs(image.stamp_ns - anchor.stamp_ns) >= away:
                        break
                    away, images[camera] = abs(image.stamp_ns - anchor.stamp_ns), image
            oldest = min(image.stamp_ns for image in images.values())
            if oldest > newest and self._near(images):
                self._set, self._set_ns, newest = images, oldest, oldest

    def _near(self, images: dict[str, CameraImage]) -> bool:
        """Whether images count as those of one moment."""
        stamps = [image.stamp_ns for image in images.values()]
        return max(stamps) - min(stamps) <= self.limits.sync * SECOND_NS

    def _forget_old(self, camera: str) -> None:
        """Let go of the camera's images of which no newer set can be made: those that a set in
        force leaves behind, and those too old to be used. Images are large.
        """
        recent, limits = self._recent[camera], self.limits
        oldest = recent[-1].stamp_ns - (limits.image_age + limits.future) * SECOND_NS
        if self._set is not None:
            oldest = max(oldest, self._set_ns - limits.sync * SECOND_NS)
        while recent[0].stamp_ns < oldest:
            recent.popleft()

    def _unready(self, now_ns: int) -> str | None:
        if not self._instruction:
            return f'instruction: {self._instruction_fault}'
        for camera in self.cameras:
            if camera in self._faults:
                return f"camera '{camera}': {self._faults[camera]}"
            image = self._images.get(camera)
            if image is None:
                return f"camera '{camera}': no image yet"
            age = (now_ns - image.stamp_ns) / SECOND_NS
            if age > self.limits.image_age:
                return (
                    f"camera '{camera}': the newest image is {age:.2f} s old, "
                    f'the limit is {self.limits.image_age:.2f} s'
                )
            if age < -self.limits.future:
                return (
                    f"camera '{camera}': images are stamped {-age:.2f} s ahead of this node's "
                    'clock; synchronise the clocks or set use_sim_time alike'
                )
        age = math.inf if self._set is None else (now_ns - self._set_ns) / SECOND_NS
        if age > self.limits.image_age:
            stamps = [image.stamp_ns for image in self._images.values()]
            skew = (max(stamps) - min(stamps)) / SECOND_NS
            return (
                f'cameras {", ".join(self.cameras)}: no images within {self.limits.sync:.2f} s of '
                f'each other for {self.limits.image_age:.2f} s; the newest lie {skew:.2f} s apart'
            )
        if self._needs_state:
            if 'proprioception' in self._faults:
                return f'proprioception: {self._faults["proprioception"]}'
            if self._state is None:
                return 'proprioception: nothing received yet'
            age = (now_ns - self._state.stamp_ns) / SECOND_NS
            if age > self.limits.state_age:
                what = ' '.join(part for part in ('proprioception:', self._state.oldest) if part)
                return f'{what} {age:.2f} s old, the limit is {self.limits.state_age:.2f} s'
            if age < -self.limits.future:
                return f"proprioception: stamped {-age:.2f} s ahead of this node's clock"
        return None
