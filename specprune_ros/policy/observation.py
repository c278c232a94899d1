"""What a query is made of: images, an instruction, the robot's state, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specprune_ros.policy.constants import MAX_INSTRUCTION, MAX_SIDE, MIN_SIDE
from specprune_ros.pruning.controller import SpeedSample


class ObservationError(ValueError):
    """An observation the policy must not act on; the message names the input and what would be
    right.
    """


@dataclass(frozen=True)
class CameraImage:
    """One camera image: uint8 ``[height, width, 3]`` RGB and the time it was taken
    (nanoseconds).
    """

    pixels: np.ndarray
    stamp_ns: int

    def check(self, camera: str) -> None:
        """Raise :class:`ObservationError` unless this is an image a policy can look at."""
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ObservationError(
                f"camera '{camera}': expected uint8 [height, width, 3], "
                f'got {self.pixels.dtype} {list(shape)}'
            )
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[:2]):
            raise ObservationError(
                f"camera '{camera}': {shape[1]} x {shape[0]} pixels; each side must be "
                f'between {MIN_SIDE} and {MAX_SIDE}'
            )


@dataclass(frozen=True)
class Observation:
    """One consistent look at the world.

    ``images`` maps camera names, in the policy's order, to images. ``proprio`` is float64
    ``[proprio_dim]`` in the units of the policy's statistics, or ``None`` for a policy without
    proprioception. ``speed`` is the end-effector speed (``None`` unknown), ``position`` the end-
    effector position in metres, float64 ``[3]`` (``None`` unknown). ``past`` are the images to
    compare with, where whoever asks keeps the history (empty: there are none); ``None`` leaves
    that to the policy's own history.
    """

    images: Mapping[str, CameraImage]
    instruction: str
    proprio: np.ndarray | None = None
    speed: SpeedSample | None = None
    position: np.ndarray | None = None
    past: Mapping[str, CameraImage] | None = None

    @property
    def stamp_ns(self) -> int:
        """Observation time: the newest image's stamp, in nanoseconds."""
        return max(image.stamp_ns for image in self.images.values())

    def check(self, cameras: int, proprio_dim: int) -> None:
        """Raise :class:`ObservationError` unless a policy with these inputs can act on this."""
        if len(self.images) != cameras:
            raise ObservationError(
                f'{len(self.images)} camera(s) given ({", ".join(self.images) or "none"}), '
                f'the model reads {cameras}'
            )
        for camera, image in self.images.items():
            image.check(camera)
        for camera, image in (self.past or {}).items():
            image.check(f'{camera} (past)')
            if camera not in self.images or image.stamp_ns >= self.images[camera].stamp_ns:
                raise ObservationError(f"camera '{camera}': its past image is not older")
        if self.past and len(self.past) != len(self.images):
            raise ObservationError('past images of some cameras are missing')
        check_instruction(self.instruction)
        if proprio_dim:
            if self.proprio is None:
                raise ObservationError(
                    f'proprioception is missing; the model reads {proprio_dim} numbers'
                )
            if self.proprio.shape != (proprio_dim,):
                raise ObservationError(
                    f'proprioception has shape {list(self.proprio.shape)}, '
                    f'the model reads [{proprio_dim}]'
                )
            if not np.isfinite(self.proprio).all():
                raise ObservationError('proprioception is not finite')


def normalise_instruction(text: str) -> str:
    """One line with single blanks and none at the ends, as the authors' data and prompts have.

    A trailing newline or a doubled blank is another token, hence another prompt.
    """
    return ' '.join(text.split())


def check_instruction(text: str) -> None:
    """Raise :class:`ObservationError` unless ``text`` is an instruction of sensible length."""
    if not text.strip():
        raise ObservationError('the instruction is empty; say what the robot should do')
    if len(text) > MAX_INSTRUCTION:
        raise ObservationError(
            f'the instruction has {len(text)} characters; at most {MAX_INSTRUCTION} are read'
        )
