"""What a query is made of: images, an instruction, the robot's state, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from specprune_ros.policy.input_limits import MAX_INSTRUCTION, MAX_SIDE, MIN_SIDE
from specprune_ros.pruning.controller import SpeedSample

if TYPE_CHECKING:
    from specprune_ros.models.config import PolicyConfig


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


@dataclass(frozen=True)
class Observation:
    """What is known of the world at one time.

    ``images`` maps camera names, in the policy's order, to images. ``proprio`` is float64
    ``[proprio_dim]`` in the units of the policy's statistics, or ``None`` for a policy without
    proprioception. ``speed`` is the end-effector speed (``None`` unknown), ``position`` the end-
    effector position in metres, float64 ``[3]`` (``None`` unknown). ``past`` are the images to
    compare with, where the caller keeps the history (empty: there are none); ``None`` leaves
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

    def checked(self, config: PolicyConfig) -> Observation:
        """This observation as the model takes it. Raises :class:`ObservationError` where it does
        not fit.

        A flow policy takes any of its cameras; their images come under its names and in its order.
        """
        images, observation = self.images, self
        if config.flow is not None:
            names = {name: config.camera(name) for name in images}
            strange = [name for name, camera in names.items() if camera is None]
            if strange or len(set(names.values())) != len(names) or not names:
                known = [*config.cameras, *(alias for alias, _ in config.camera_aliases)]
                raise ObservationError(
                    f'cameras given: {", ".join(names) or "none"}; the model knows '
                    f'{", ".join(known)}, each once'
                )
            given = {names[name]: image for name, image in images.items()}
            ordered = {camera: given[camera] for camera in config.cameras if camera in given}
            observation = replace(self, images=ordered)
        elif len(images) != len(config.cameras):
            raise ObservationError(
                f'{len(images)} camera(s) given ({", ".join(images) or "none"}), '
                f'the model reads {len(config.cameras)}'
            )
        past = self.past or {}
        for name, image in (*images.items(), *((f'{c} (past)', i) for c, i in past.items())):
            pixels, shape = image.pixels, image.pixels.shape
            if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
                raise ObservationError(
                    f"camera '{name}': expected uint8 [height, width, 3], "
                    f'got {pixels.dtype} {list(shape)}'
                )
            if not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[:2]):
                raise ObservationError(
                    f"camera '{name}': {shape[1]} x {shape[0]} pixels; each side must be "
                    f'between {MIN_SIDE} and {MAX_SIDE}'
                )
        for camera, image in past.items():
            if camera not in images or image.stamp_ns >= images[camera].stamp_ns:
                raise ObservationError(f"camera '{camera}': its past image is not older")
        if past and len(past) != len(images):
            raise ObservationError('past images of some cameras are missing')
        check_instruction(self.instruction)
        if config.proprio_dim:
            if self.proprio is None:
                raise ObservationError(
                    f'proprioception is missing; the model reads {config.proprio_dim} numbers'
                )
            if self.proprio.shape != (config.proprio_dim,):
                raise ObservationError(
                    f'proprioception has shape {list(self.proprio.shape)}, '
                    f'the model reads [{config.proprio_dim}]'
                )
            if not np.isfinite(self.proprio).all():
                raise ObservationError('proprioception is not finite')
        return observation


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
