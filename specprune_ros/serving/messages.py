"""Observations and results as maps of the wire, in both directions; needs no PyTorch.

A request is what openpi's clients send: camera images, state and prompt under the keys of their
robots (LIBERO, DROID, ALOHA) or under this policy's own camera names; ``specprune`` beside them
holds what openpi has no word for, all of it optional:

=====================  ============================================================================
``stamp_ns``           when the images were taken, by the client's clock; only compared with itself
``stamps_ns``          the same per camera, where they differ
``session``            a key, where one connection speaks for several robots
``reset``              why this query begins a new episode (``True``: no reason given)
``params``             pruning parameters to change, by name, from this query on
``speed``              ``v_t`` (m/s), ``v_r`` (rad/s), ``dz`` (m/s upwards), ``age_s``, ``source``
``position``           end-effector position in metres, ``[3]``
``past``               images to compare with, where the client keeps history: by camera,
                       ``{'image', 'stamp_ns'}``; an empty map says that there are none
``overlay``            send the masks of the tokens that were kept
``measure_deviation``  run a dense pass beside the query
``query_period``       seconds that the client leaves between two queries, where that is long: no
                       pause that begins a new episode
``check``              only check these parameters: no query is made
=====================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from specprune_ros.models.config import PolicyConfig
from specprune_ros.policy.image_bytes import ImageError, decode
from specprune_ros.policy.input_limits import MAX_SIDE
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.result import (
    Overlay,
    PolicyResult,
    Refreshes,
    StageTimes,
    Thresholds,
    TokenCounts,
)
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.interface import Mode
from specprune_ros.serving.protocol import EXTENSION, ProtocolError

# Keys of openpi's robots, by the camera's place in the policy's order.
IMAGE_KEYS = (
    ('observation/image', 'observation/exterior_image_1_left', 'images/cam_high', 'image'),
    (
        'observation/wrist_image',
        'observation/wrist_image_left',
        'images/cam_left_wrist',
        'wrist_image',
    ),
    ('observation/right_wrist_image', 'images/cam_right_wrist'),
)
STATE_KEYS = ('observation/state', 'state')
DROID_STATE = ('observation/joint_position', 'observation/gripper_position')
PROMPT_KEYS = ('prompt',)
MAX_KEY = 64  # characters of a session's key
_EXTENSIONS = frozenset(
    ('stamp_ns', 'stamps_ns', 'session', 'reset', 'params', 'params_version', 'speed', 'position')
    + ('past', 'overlay', 'measure_deviation', 'check', 'max_normalised_action', 'query_period')
)


def lookup(request: Mapping[Any, Any], key: str) -> Any:
    """The value of ``a/b`` as one key or as a map in a map; ``None`` where there is none."""
    if key in request:
        return request[key]
    head, _, rest = key.partition('/')
    inner = request.get(head)
    return lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def extension(request: object) -> dict[str, Any]:
    """The part of a request that is ours. Raises :class:`ProtocolError`."""
    if not isinstance(request, Mapping):
        raise ProtocolError(f'a request is a map, not {type(request).__name__}')
    ours = request.get(EXTENSION, {})
    if not isinstance(ours, dict):
        raise ProtocolError(f"'{EXTENSION}' is a map, not {type(ours).__name__}")
    unknown = [str(name) for name in ours if name not in _EXTENSIONS]
    if unknown:
        raise ProtocolError(f"'{EXTENSION}' knows no {', '.join(unknown)}")
    return ours


def session_key(ours: Mapping[str, Any]) -> str:
    """Which of a connection's sessions is meant; empty for its own."""
    key = ours.get('session', '')
    if not isinstance(key, str) or len(key) > MAX_KEY:
        raise ProtocolError(f"'session' is text of at most {MAX_KEY} characters")
    return key


@dataclass(frozen=True)
class RequestReader:
    """Requests to observations, for one policy.

    ``image_keys`` names the key of a camera's image, where none of the usual ones is meant;
    ``max_side`` bounds images in pixels.
    """

    config: PolicyConfig
    image_keys: Mapping[str, str] = field(default_factory=dict)
    max_side: int = MAX_SIDE

    def keys_of(self, index: int, camera: str) -> tuple[str, ...]:
        """Keys under which a camera's image is searched for, in order."""
        if camera in self.image_keys:
            return (self.image_keys[camera],)
        named = (f'observation/images/{camera}', f'observation/{camera}', f'images/{camera}')
        usual = IMAGE_KEYS[index] if index < len(IMAGE_KEYS) else ()
        return (*named, camera, *usual)

    def observation(self, request: Mapping[Any, Any], arrived_ns: int) -> Observation:
        """The observation of a query. ``arrived_ns`` stands in for a stamp.

        Raises ``ObservationError`` or :class:`ProtocolError`.
        """
        ours = extension(request)
        stamp = _whole(ours, 'stamp_ns', arrived_ns)
        stamps = ours.get('stamps_ns', {})
        if not isinstance(stamps, Mapping):
            raise ProtocolError("'stamps_ns' is a map of cameras to nanoseconds")
        images = {}
        for index, camera in enumerate(self.config.cameras):
            keys = self.keys_of(index, camera)
            found = next(
                (v for v in (lookup(request, key) for key in keys) if v is not None), None
            )
            if found is None and self.config.flow is not None:
                continue  # it takes any of its cameras
            if found is None:
                raise ObservationError(
                    f"camera '{camera}' is missing: want an image under one of {', '.join(keys)}; "
                    f'there are {", ".join(sorted(map(str, request))) or "none"}'
                )
            pixels = read_image(found, camera, self.max_side)
            images[camera] = CameraImage(pixels, _whole(stamps, camera, stamp))
        if not images:
            raise ObservationError(f'no image of {", ".join(self.config.cameras)}')
        prompt = next((request[key] for key in PROMPT_KEYS if key in request), '')
        if not isinstance(prompt, str):
            raise ProtocolError(f"'prompt' is text, not {type(prompt).__name__}")
        return Observation(
            images=images,
            instruction=prompt,
            proprio=self._state(request),
            speed=_speed(ours.get('speed')),
            position=_position(ours.get('position')),
            past=self._past(ours.get('past'), images),
        )

    def _state(self, request: Mapping[Any, Any]) -> np.ndarray | None:
        if not self.config.proprio_dim:
            return None
        for key in STATE_KEYS:
            value = lookup(request, key)
            if value is not None:
                return _vector(value, key)
        parts = [lookup(request, key) for key in DROID_STATE]
        if all(part is not None for part in parts):
            return np.concatenate(
                [_vector(part, key) for part, key in zip(parts, DROID_STATE, strict=True)]
            )
        return None  # the observation's own check says what is missing

    def _past(self, past: object, cameras: Iterable[str]) -> dict[str, CameraImage] | None:
        if past is None:
            return None
        if not isinstance(past, Mapping):
            raise ProtocolError("'past' is a map of cameras to images")
        if not past:
            return {}
        found = {}
        for camera in cameras:
            one = past.get(camera)
            if not isinstance(one, Mapping) or 'image' not in one:
                raise ProtocolError(f"'past' has no image of camera '{camera}'")
            pixels = read_image(one['image'], f'{camera} (past)', self.max_side)
            found[camera] = CameraImage(pixels, _whole(one, 'stamp_ns', None))
        return found


def read_image(value: object, camera: str, max_side: int = MAX_SIDE) -> np.ndarray:
    """Uint8 ``[height, width, 3]`` of what openpi's clients send: ``[H, W, 3]`` or ``[3, H, W]``,
    uint8, or floats from 0 to 1; or the bytes of a JPEG or PNG file. Raises ``ObservationError``.
    """
    if isinstance(value, bytes):
        return _decoded(value, camera, max_side)
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        shape = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
        raise ObservationError(
            f"camera '{camera}': want an array [height, width, 3] or the bytes of a JPEG or PNG "
            f'file, got {shape}'
        )
    if not value.size:
        raise ObservationError(
            f"camera '{camera}': an image of shape {list(value.shape)} is empty"
        )
    if value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if max(value.shape[:2]) > max_side:
        raise ObservationError(
            f"camera '{camera}': {value.shape[1]} x {value.shape[0]} pixels; at most {max_side} "
            'on a side are taken'
        )
    if value.dtype.kind == 'f':
        if not (np.isfinite(value).all() and value.min() >= 0.0 and value.max() <= 1.0):
            raise ObservationError(f"camera '{camera}': floating-point images go from 0 to 1")
        value = (255 * value).astype(np.uint8)  # rounds down, as openpi does
    return np.ascontiguousarray(value)


def _decoded(data: bytes, camera: str, max_side: int) -> np.ndarray:
    try:
        return decode(data, max_side)
    except ImageError as error:
        raise ObservationError(
            f"camera '{camera}': no JPEG or PNG file to read ({error})"
        ) from error


def _whole(values: Mapping[str, Any], name: str, default: int | None) -> int:
    value = values.get(name, default)
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ProtocolError(f"'{name}' is a whole number of nanoseconds, not {value!r}")
    return value


def _vector(value: object, name: str) -> np.ndarray:
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"'{name}' is no list of numbers ({error})") from error
    if vector.ndim != 1:
        raise ObservationError(f"'{name}' has shape {list(vector.shape)}, want one dimension")
    return vector


def _position(value: object) -> np.ndarray | None:
    if value is None:
        return None
    position = _vector(value, 'position')
    if position.shape != (3,):
        raise ObservationError(f"'position' has {len(position)} numbers, want 3")
    return position


def _speed(value: object) -> SpeedSample | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not {'v_t', 'v_r', 'dz'} <= value.keys():
        raise ProtocolError("'speed' is a map with v_t, v_r and dz, and maybe age_s and source")
    try:
        numbers = {name: float(value.get(name, 0.0)) for name in ('v_t', 'v_r', 'dz', 'age_s')}
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"'speed': {error}") from error
    return SpeedSample(**numbers, source=str(value.get('source', 'client'))[:MAX_KEY])


def request_of(observation: Observation, **ours: Any) -> dict[str, Any]:
    """An observation as a request, under this policy's own names. ``ours`` goes into the
    extension.
    """
    extra: dict[str, Any] = {'stamp_ns': observation.stamp_ns, **ours}
    stamps = {camera: image.stamp_ns for camera, image in observation.images.items()}
    if len(set(stamps.values())) > 1:
        extra['stamps_ns'] = stamps
    if observation.speed is not None:
        extra['speed'] = as_map(observation.speed)
    if observation.position is not None:
        extra['position'] = observation.position
    if observation.past is not None:
        extra['past'] = {
            camera: {'image': image.pixels, 'stamp_ns': image.stamp_ns}
            for camera, image in observation.past.items()
        }
    request: dict[str, Any] = {
        f'observation/images/{camera}': image.pixels
        for camera, image in observation.images.items()
    }
    if observation.proprio is not None:
        request['observation/state'] = observation.proprio
    return {**request, 'prompt': observation.instruction, EXTENSION: extra}


def as_map(value: Any) -> dict[str, Any]:
    """A dataclass as a map, one level deep."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def reply_of(result: PolicyResult, masks: bool = False) -> dict[str, Any]:
    """A result as the extension of a reply; the actions stand beside it. ``masks`` sends what the
    overlay needs.
    """
    reply = as_map(result)
    del reply['actions'], reply['overlay'], reply['normalised']
    reply['mode'] = result.mode.value
    reply['speed'] = None if result.speed is None else as_map(result.speed)
    reply['tokens'] = {**as_map(result.tokens), 'sets': dict(result.tokens.sets)}
    for name in ('times', 'thresholds', 'refreshes'):
        reply[name] = as_map(getattr(result, name))
    if masks and result.overlay is not None:
        reply['overlay'] = {**as_map(result.overlay), 'sets': dict(result.overlay.sets)}
    return reply


def result_of(actions: np.ndarray, reply: Mapping[str, Any]) -> PolicyResult:
    """The result that :func:`reply_of` was made from. Raises :class:`ProtocolError`."""
    try:
        values = {one.name: reply[one.name] for one in fields(PolicyResult) if one.name in reply}
        tokens, overlay = values['tokens'], values.get('overlay')
        return PolicyResult(
            **{
                **values,
                'actions': actions,
                'mode': Mode(values['mode']),
                'speed': _speed(values['speed']),
                'budgets': tuple(values['budgets']),
                'tokens': TokenCounts(
                    **{
                        **tokens,
                        'layers': tuple(tokens['layers']),
                        'after': tuple(tokens['after']),
                    }
                ),
                'times': StageTimes(**values['times']),
                'thresholds': Thresholds(**values['thresholds']),
                'refreshes': Refreshes(**values['refreshes']),
                'overlay': None
                if overlay is None
                else Overlay(**{**overlay, 'grid': tuple(overlay['grid'])}),
                'notes': tuple(values['notes']),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f'a reply of another version ({error!r})') from error
