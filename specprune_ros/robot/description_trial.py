"""A robot description read once by the kinematics library, in a limited child process."""

from __future__ import annotations

from specprune_ros.limited_process import MEBIBYTE, LimitedProcessError, RefusedError, call
from specprune_ros.robot.description import UrdfError, check, check_size
from specprune_ros.robot.speed import JointSpeed

CHILD_MEMORY = 1024 * MEBIBYTE
CHILD_SECONDS = 20.0  # imports on a busy machine included; reading takes milliseconds


class UntriedError(UrdfError):
    """The child gave no answer: that may be this machine's fault, and pass."""


def try_out(text: str, tip_frame: str, base_frame: str = '', prefix: str = '') -> None:
    """Read a description in a limited child process. Blocks; raises ``UrdfError``, and
    ``UntriedError`` where the child crashed, ran out of memory or time, or could not be started.

    Afterwards this process can build it without harm: the same text took the child less than
    ``CHILD_MEMORY`` bytes.
    """
    check_size(text)
    try:
        call(
            f'{__name__}:_read',
            {'text': text, 'tip': tip_frame, 'base': base_frame, 'prefix': prefix},
            memory=CHILD_MEMORY,
            seconds=CHILD_SECONDS,
        )
    except RefusedError as error:
        raise UrdfError(str(error)) from None
    except (LimitedProcessError, OSError, MemoryError) as error:
        raise UntriedError(f'robot_description cannot be read: {error}') from None


def _read(request: dict[str, str]) -> bool:
    """In the child: build the kinematics and use them once."""
    try:
        check(request['text'])
        kinematics = JointSpeed(
            request['text'], request['tip'], base_frame=request['base'], prefix=request['prefix']
        )
        names = kinematics.joint_names
        pose = kinematics.tool_pose(names, [0.0] * len(names))
        if not pose.finite():
            raise UrdfError('robot_description puts the tool at no finite place')
    except ValueError as error:
        raise RefusedError(str(error)) from None
    return True
