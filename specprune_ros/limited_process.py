"""One function call in a process of its own with limited memory and time.

For input that may crash, exhaust or hang a library: the caller gets an answer or an error,
whatever happens in the child. Nothing but the named function's JSON comes back, so a child that
was taken over by its input cannot hand code to its parent.

The child is ``python -P -m specprune_ros.limited_process package.module:function``: argument on
standard input, result on a file descriptor of its own, so that prints do not disturb it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from typing import Any

from specprune_ros.python_process import python_environment, python_module

MEBIBYTE = 1 << 20
MOST_OUTPUT = 64 * MEBIBYTE  # bytes of a result that are read
ONE_THREAD = ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS')
_TAIL = 400  # characters of the child's complaints that are passed on


class LimitedProcessError(RuntimeError):
    """The child gave no result: it crashed, raised, or ran out of memory or time. Says which."""


class RefusedError(ValueError):
    """Raised by a called function to refuse its input with a message of its own, which
    :func:`call` raises again in the parent.
    """


def call(function: str, argument: Any, *, memory: int, seconds: float) -> Any:
    """The JSON result of ``function`` (``package.module:name``) on the JSON value ``argument``.

    ``memory`` bounds the child's private memory in bytes (RLIMIT_DATA: files mapped read-only do
    not count, as PyTorch maps them they do), ``seconds`` its processor time and the time waited
    for it.

    Raises ``RefusedError`` with the function's own words, or ``LimitedProcessError``.
    """
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            python_module(__name__, function, str(writer), str(memory), str(seconds)),
            # A numerical library's threads, one per processor, take memory each.
            env=python_environment(**dict.fromkeys(ONE_THREAD, '1')),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(writer,),
            # Ctrl-C is for the parent, which waits for an answer or ends it.
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        text, complaints = _converse(process, reader, json.dumps(argument).encode(), seconds)
    finally:
        os.close(reader)
    try:
        answer = json.loads(text)
        if 'refused' in answer:
            raise RefusedError(answer['refused'])
        return answer['result']
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, RefusedError):
            raise
        raise LimitedProcessError(_why(process.returncode, complaints, memory)) from None


def _converse(
    process: subprocess.Popen, reader: int, argument: bytes, seconds: float
) -> tuple[bytes, str]:
    """Write the argument, read the result; the child is dead afterwards."""
    import threading

    found: list[bytes] = []

    def read() -> None:
        with open(reader, 'rb', closefd=False) as file:
            found.append(file.read(MOST_OUTPUT))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        _, complaints = process.communicate(argument, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise LimitedProcessError(f'no answer within {seconds:g} s') from None
    finally:
        # Also what it may have started, which holds the pipe open.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        thread.join(5.0)
    return b''.join(found), complaints.decode(errors='replace')


def _why(status: int, complaints: str, memory: int) -> str:
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        return 'it took too much processor time or memory'
    if 'MemoryError' in complaints or 'bad_alloc' in complaints or 'memory' in complaints.lower():
        return f'it needs more than {memory // MEBIBYTE} MiB of memory'
    if status < 0:
        return f'the library that reads it crashed ({signal.Signals(-status).name})'
    last = complaints.strip().splitlines()[-1:] or [f'status {status}']
    return last[0][-_TAIL:]


def main(arguments: list[str]) -> int:
    """The child: limits first, then imports, then the call."""
    function, writer, memory, seconds = arguments
    _limit(int(memory), float(seconds))
    argument = json.loads(sys.stdin.buffer.read())
    module, name = function.split(':')
    try:
        answer = {'result': getattr(importlib.import_module(module), name)(argument)}
    except RefusedError as error:
        answer = {'refused': str(error)}
    with open(int(writer), 'wb') as file:
        file.write(json.dumps(answer).encode())
    return 0


def _limit(memory: int, seconds: float) -> None:
    whole = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Files it may write: none. What it prints goes to pipes, which this does not limit.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == '__main__':
    # Under this name the exceptions are those that other modules import.
    from specprune_ros import limited_process

    raise SystemExit(limited_process.main(sys.argv[1:]))
