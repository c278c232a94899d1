"""Which OpenGL MuJoCo renders with, found by trying, before MuJoCo is imported.

MuJoCo binds its renderer when it is imported (``MUJOCO_GL``) and its default needs a display.
Each candidate is tried in a child process, so that a driver that crashes takes nothing with it.
"""

from __future__ import annotations

import os
import subprocess
import sys

CANDIDATES = ('egl', 'osmesa')
_CHECKED = 'SPECPRUNE_MUJOCO_GL_CHECKED'  # inherited: child processes need not try again
_WHY = 'SPECPRUNE_MUJOCO_GL_WHY'  # inherited: why nothing worked
_TIMEOUT_S = 30.0
_APT = {
    'egl': 'libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 libopengl0 libgl1',
    'osmesa': 'libosmesa6',
}
_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
from OpenGL import GL
assert GL.glGetString(GL.GL_VERSION)
context.free()
print('renders')
"""


class NoRenderer(RuntimeError):
    """No OpenGL that works without a display; the message names the packages that bring one."""


def probe(backend: str) -> str | None:
    """Try to make an OpenGL context with ``backend``; ``None`` if it works, else the reason."""
    environment = dict(os.environ, MUJOCO_GL=backend)
    environment.pop('PYOPENGL_PLATFORM', None)
    try:
        done = subprocess.run(
            [sys.executable, '-P', '-c', _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f'no answer within {_TIMEOUT_S:.0f} s'
    if 'renders' in done.stdout:  # the exit status may be bad: OSMesa complains while leaving
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'ended with status {done.returncode}'


def message(reasons: dict[str, str]) -> str:
    """What to tell a person when no backend works: what was tried and the commands that help."""
    tried = '; '.join(f'{backend}: {reason}' for backend, reason in reasons.items())
    return (
        f'MuJoCo cannot render without a display here ({tried}). On Debian or Ubuntu: '
        f'`apt-get install {_APT["egl"]}` (EGL) or `apt-get install {_APT["osmesa"]}` (OSMesa).'
    )


def choose() -> str:
    """Set ``MUJOCO_GL`` to a backend that works and return it: EGL, else OSMesa.

    A ``MUJOCO_GL`` set by the user is tried first and alone. Where nothing works ``MUJOCO_GL`` is
    set to ``disable``, so that physics without images still runs, and :class:`NoRenderer` is
    raised.
    """
    wanted = os.environ.get('MUJOCO_GL', '').strip().lower()
    if wanted and os.environ.get(_CHECKED) == wanted:
        if wanted == 'disable':
            raise NoRenderer(os.environ.get(_WHY) or message({'earlier attempts': 'none worked'}))
        return wanted
    reasons: dict[str, str] = {}
    for backend in (wanted,) if wanted else CANDIDATES:
        reason = probe(backend)
        if reason is None:
            os.environ['MUJOCO_GL'] = os.environ[_CHECKED] = backend
            return backend
        reasons[backend] = reason
    os.environ['MUJOCO_GL'] = os.environ[_CHECKED] = 'disable'
    others = [b for b in CANDIDATES if wanted and b != wanted and probe(b) is None]
    if others:
        why = f'MUJOCO_GL={wanted} does not work here ({reasons[wanted]})'
        why += f', {others[0]} does: unset it'
    else:
        why = message(reasons)
    os.environ[_WHY] = why
    raise NoRenderer(why)


def prepare() -> NoRenderer | None:
    """Choose a backend before MuJoCo is imported; returns the error instead of raising it."""
    try:
        choose()
    except NoRenderer as error:
        return error
    return None
