"""The wire format: openpi's msgpack maps with numpy arrays, read without trusting the sender.

An array is a map ``{b'__ndarray__': True, b'data': bytes, b'dtype': '<f4', b'shape': (2, 3)}``, a
numpy scalar ``{b'__npgeneric__': True, b'data': 1.0, b'dtype': '<f8'}``, as ``openpi-client``
writes them. Nothing here can run code: there is no pickle, and only numbers and booleans are
taken. A reply is one binary frame; an error is one text frame ``KIND: reason``.
"""

from __future__ import annotations

import hmac
import math
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 1  # of the map below EXTENSION
EXTENSION = 'specprune'  # the key, in requests and replies, of everything that openpi lacks
PORT = 8000  # openpi's
KEY_VARIABLE = 'SPECPRUNE_API_KEY'  # the environment's: what clients must send, and send
NO_KEY = 'want the header Authorization: Api-Key KEY'
MAX_MESSAGE = 32 << 20  # bytes of one message
MAX_DIMENSIONS = 8
# Python objects are many times as large as the bytes that make them (an empty map: 64 for 1), so
# they are counted; pixels travel as bytes. What a policy tells of itself holds some 300.
MAX_LENGTH = 1000  # elements of one list or map
MAX_ELEMENTS = 10_000  # of a message, lists and maps included
_KINDS = 'biuf'  # numpy kinds: boolean, signed, unsigned, float
_ARRAY, _SCALAR = b'__ndarray__', b'__npgeneric__'

# Kinds of errors. After BAD_REQUEST, BUSY and FAILED the session is as it was, or says in the next
# reply that it was reset.
BAD_REQUEST = 'bad request'
BUSY = 'busy'
STOPPING = 'stopping'
FAILED = 'failed'
ERROR_KINDS = (BAD_REQUEST, BUSY, STOPPING, FAILED)


class ProtocolError(ValueError):
    """Bytes that are no message of this protocol; the message says what is wrong."""


def may_enter(authorization: str, key: str) -> bool:
    """Whether the header ``Authorization`` holds the server's key; empty lets everybody in."""
    return not key or hmac.compare_digest(authorization.encode(), f'Api-Key {key}'.encode())


def pack(value: Any) -> bytes:
    """One message. Raises ``TypeError`` for what has no place in it."""
    return msgpack.packb(value, default=_encode)


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        array = np.ascontiguousarray(value)
        return {
            _ARRAY: True,
            b'data': array.tobytes(),
            b'dtype': array.dtype.str,
            b'shape': value.shape,
        }
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {_SCALAR: True, b'data': value.item(), b'dtype': value.dtype.str}
    kind = value.dtype if isinstance(value, (np.ndarray, np.generic)) else type(value).__name__
    raise TypeError(f'{kind} cannot be sent: numbers, text, lists, maps and arrays can')


def unpack(data: bytes) -> Any:
    """The value of a message; arrays own their memory. Raises :class:`ProtocolError`."""
    budget = _Budget()
    try:
        return msgpack.unpackb(
            data,
            object_hook=budget.map,
            list_hook=budget.list,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            strict_map_key=False,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        said = str(error) or type(error).__name__
        raise ProtocolError(f'{len(data)} bytes are no msgpack message ({said})') from error


class _Budget:
    """Counts the elements of one message while it is read."""

    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def list(self, value: list[Any]) -> list[Any]:
        self._take(len(value))
        return value

    def map(self, value: dict[Any, Any]) -> Any:
        self._take(len(value))
        return _decode(value)

    def _take(self, length: int) -> None:
        self._left -= 1 + length
        if self._left < 0:
            raise ProtocolError(f'a message of more than {MAX_ELEMENTS} elements')


def _decode(value: dict[Any, Any]) -> Any:
    if _ARRAY in value:
        dtype, data, shape = _dtype(value), value.get(b'data'), value.get(b'shape')
        if not isinstance(data, bytes):
            raise ProtocolError('an array without data')
        if (
            not isinstance(shape, (list, tuple))
            or len(shape) > MAX_DIMENSIONS
            or not all(type(side) is int and side >= 0 for side in shape)
        ):
            raise ProtocolError(f'an array of shape {_short(shape)}')
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ProtocolError(
                f'an array of shape {list(shape)} and type {dtype} with {len(data)} bytes'
            )
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder('='))
    if _SCALAR in value:
        number = value.get(b'data')
        if not isinstance(number, (bool, int, float)):
            raise ProtocolError(f'a scalar with {_short(number)}')
        try:
            return _dtype(value).type(number)
        except (ValueError, OverflowError, TypeError) as error:
            raise ProtocolError(f'a scalar: {error}') from error
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype:
    name = value.get(b'dtype')
    try:
        # Text only: of a list, numpy would make a structure.
        dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in _KINDS or dtype.itemsize > 8:
        raise ProtocolError(f'an array of type {_short(name)}: numbers and booleans are read')
    return dtype


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:60]}...'


def error_text(kind: str, reason: str) -> str:
    """The text frame of an error."""
    return f'{kind}: {reason}'


def read_error(text: str) -> tuple[str, str]:
    """Kind and reason of a text frame; openpi's own server sends a traceback, which has none."""
    kind, separator, reason = text.partition(': ')
    return (kind, reason) if separator and kind in ERROR_KINDS else (FAILED, text)
