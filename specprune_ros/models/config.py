"""Sizes and conventions of a policy, as plain data: towers, decoder, cameras, actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

FAMILIES = ('openvla-oft', 'db-oft', 'cogact')
ACTIVATIONS = ('gelu', 'quick_gelu')
NORMS = ('q99', 'min_max', 'identity')
KINDS = ('ee_delta', 'ee_pose', 'joint_position', 'joint_delta')
ROTATIONS = ('none', 'vector', 'euler_xyz', 'quaternion')
REFERENCES = ('none', 'previous_step', 'observation')
GRIPPER_SENSES = ('one_is_open', 'one_is_closed')
RESIZES = ('lanczos3', 'bicubic', 'pad_bicubic')

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

_T = TypeVar('_T')


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field and what would be right."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: Any, field: str) -> None:
    value = getattr(config, field)
    _require(value > 0, f'{type(config).__name__}.{field} must be > 0, is {value}')


def _one_of(config: Any, field: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, field)
    _require(
        value in allowed,
        f'{type(config).__name__}.{field} must be one of {", ".join(allowed)}; is {value!r}',
    )


@dataclass(frozen=True)
class VisionConfig:
    """One vision transformer.

    ``depth`` counts the blocks of the whole tower. The policies read the output of the
    second-to-last block without the final norm, so only ``depth - skip_last`` blocks are built.
    ``mean`` and ``std`` normalise images scaled to 0..1. Class and register tokens carry no
    position of their own (where a checkpoint has one, as CLIP, the loader adds it to the token).
    """

    name: str
    width: int
    depth: int
    heads: int
    mlp: int
    patch: int = 14
    image_size: int = 224
    class_token: bool = False
    registers: int = 0
    layer_scale: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    activation: str = 'gelu'
    norm_eps: float = 1e-6
    skip_last: int = 1
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        for field in ('width', 'depth', 'heads', 'mlp', 'patch', 'image_size'):
            _positive(self, field)
        _require(
            self.width % self.heads == 0,
            f'tower {self.name}: width {self.width} must be a multiple of heads {self.heads}',
        )
        _require(
            self.image_size % self.patch == 0,
            f'tower {self.name}: image_size {self.image_size} must be a multiple of patch '
            f'{self.patch}',
        )
        _require(
            0 <= self.skip_last < self.depth,
            f'tower {self.name}: skip_last {self.skip_last} must be 0..{self.depth - 1}',
        )
        _one_of(self, 'activation', ACTIVATIONS)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch

    @property
    def blocks(self) -> int:
        """Blocks that are built and run."""
        return self.depth - self.skip_last

    @property
    def prefix(self) -> int:
        """Class and register tokens, which are dropped from the output."""
        return int(self.class_token) + self.registers


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-shaped decoder (Llama 2, Qwen2): pre-norm, RoPE, SwiGLU.

    ``causal`` is false for OpenVLA-OFT, whose attention is bidirectional over the whole sequence.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    vocab: int
    kv_heads: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    causal: bool = False
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        if self.kv_heads == 0:
            object.__setattr__(self, 'kv_heads', self.heads)
        for field in ('width', 'depth', 'heads', 'mlp', 'vocab', 'kv_heads'):
            _positive(self, field)
        _require(
            self.width % self.heads == 0 and (self.width // self.heads) % 2 == 0,
            f'decoder: width {self.width} / heads {self.heads} must be a whole, even number',
        )
        _require(
            self.heads % self.kv_heads == 0,
            f'decoder: heads {self.heads} must be a multiple of kv_heads {self.kv_heads}',
        )
        _require(
            self.rms_norm_eps > 0, f'decoder: rms_norm_eps must be > 0, is {self.rms_norm_eps}'
        )
        _require(self.rope_theta > 0, f'decoder: rope_theta must be > 0, is {self.rope_theta}')

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class ActionConfig:
    """What a row of actions means, in the words of ``ActionChunk.msg``.

    ``scale`` turns un-normalised action units into SI per dimension (metres, radians, gripper
    0..1); LIBERO's actions, for example, are commands in -1..1 of a controller that moves 0.05 m
    and 0.5 rad per unit.
    """

    dims: tuple[str, ...] = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
    kind: str = 'ee_delta'
    rotation: str = 'vector'
    reference: str = 'previous_step'
    gripper_dim: int = 6
    gripper_sense: str = 'one_is_open'
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.scale:
            object.__setattr__(self, 'scale', (1.0,) * len(self.dims))
        _one_of(self, 'kind', KINDS)
        _one_of(self, 'rotation', ROTATIONS)
        _one_of(self, 'reference', REFERENCES)
        _one_of(self, 'gripper_sense', GRIPPER_SENSES)
        _require(
            -1 <= self.gripper_dim < len(self.dims),
            f'action.gripper_dim {self.gripper_dim} must be -1..{len(self.dims) - 1}',
        )
        _require(
            len(self.scale) == len(self.dims),
            f'action.scale has {len(self.scale)} entries, action.dims has {len(self.dims)}',
        )


@dataclass(frozen=True)
class DiTConfig:
    """CogACT's diffusion transformer head and its sampler."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    ddim_steps: int = 10
    train_steps: int = 100
    guidance: float = 1.5

    def __post_init__(self) -> None:
        for field in ('width', 'depth', 'heads', 'ddim_steps', 'train_steps'):
            _positive(self, field)
        _require(self.width % self.heads == 0, 'dit.width must be a multiple of dit.heads')
        _require(
            self.train_steps % self.ddim_steps == 0,
            f'dit.ddim_steps {self.ddim_steps} must divide dit.train_steps {self.train_steps}',
        )


@dataclass(frozen=True)
class PolicyConfig:
    """A whole policy.

    ``cameras`` names the images in the order the model takes them. ``control_hz`` is the number
    of action rows played per second. ``proprio_dim`` 0 means no proprioception token.
    ``projector`` is the hidden widths between the towers' channels and the decoder, by default
    the family's. ``center_crop`` and ``jpeg`` belong to the authors' image path. ``template``
    names the prompt (``tokens.TEMPLATES``), cut off by an error above ``max_prompt`` tokens.
    ``stop_id`` is the token that ends the sequence. ``position_code`` adds, after the projector,
    a LayerNorm and a unit-size 2-D sine code; small policies trained from scratch need it,
    released checkpoints do not have it.
    """

    family: str
    towers: tuple[VisionConfig, ...]
    decoder: DecoderConfig
    cameras: tuple[str, ...] = ('third_person', 'wrist')
    proprio_dim: int = 8
    action_dim: int = 7
    chunk: int = 8
    control_hz: float = 20.0
    norm: str = 'q99'
    action: ActionConfig = ActionConfig()
    projector: tuple[int, ...] = ()
    film: bool = False
    head_blocks: int = 2
    dit: DiTConfig | None = None
    resize: str = 'lanczos3'
    pre_resize: int = 0
    center_crop: bool = True
    jpeg: bool = True
    position_code: bool = False
    template: str = 'openvla'
    max_prompt: int = 512
    stop_id: int = 2

    def __post_init__(self) -> None:
        _one_of(self, 'family', FAMILIES)
        if not self.projector:
            width = self.decoder.width
            hidden = (width,) if self.family == 'db-oft' else (4 * self.vision_width, width)
            object.__setattr__(self, 'projector', hidden)
        _one_of(self, 'norm', NORMS)
        _one_of(self, 'resize', RESIZES)
        _require(len(self.towers) > 0, 'towers must name at least one vision tower')
        _require(
            0 <= self.stop_id < self.decoder.vocab,
            f'stop_id {self.stop_id} must be below decoder.vocab {self.decoder.vocab}',
        )
        for field in ('action_dim', 'chunk', 'max_prompt'):
            _positive(self, field)
        _require(self.control_hz > 0, f'control_hz must be > 0, is {self.control_hz}')
        _require(self.proprio_dim >= 0, f'proprio_dim must be >= 0, is {self.proprio_dim}')
        _require(len(self.cameras) > 0, 'cameras must name at least one camera')
        _require(
            len(set(self.cameras)) == len(self.cameras),
            f'cameras must be different names, are {self.cameras}',
        )
        sizes = {(tower.image_size, tower.grid) for tower in self.towers}
        _require(
            len(sizes) == 1, f'towers must share image_size and patch grid, have {sorted(sizes)}'
        )
        _require(
            len(self.action.dims) == self.action_dim,
            f'action.dims names {len(self.action.dims)} columns, action_dim is {self.action_dim}',
        )
        if self.family == 'cogact':
            _require(self.dit is not None, 'dit must be given for family cogact')
            _require(self.proprio_dim == 0, 'proprio_dim must be 0 for family cogact')
        if self.family == 'openvla-oft':
            _require(
                not self.decoder.causal,
                'decoder.causal must be false for family openvla-oft: its attention is '
                'bidirectional',
            )
        else:
            _require(self.decoder.causal, f'decoder.causal must be true for family {self.family}')

    @property
    def image_size(self) -> int:
        """Side of the square image the towers take, in pixels."""
        return self.towers[0].image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns of one camera."""
        return self.towers[0].grid, self.towers[0].grid

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of all cameras, V."""
        return len(self.cameras) * self.grid[0] * self.grid[1]

    @property
    def action_tokens(self) -> int:
        """Rows the actions are read from, A = K * D (1 for CogACT)."""
        return 1 if self.family == 'cogact' else self.chunk * self.action_dim

    @property
    def vision_width(self) -> int:
        """Channels of one vision token before the projector."""
        return sum(tower.width for tower in self.towers)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars, ready for JSON."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Inverse of :meth:`to_dict`. Raises ``ConfigError`` naming an unknown or bad field."""
        values = dict(data)
        _require(isinstance(values.get('towers'), list | tuple), 'towers must be a list')
        values['towers'] = tuple(
            _build(VisionConfig, tower, f'towers[{i}]') for i, tower in enumerate(values['towers'])
        )
        _require('decoder' in values, 'decoder is missing')
        values['decoder'] = _build(DecoderConfig, values['decoder'], 'decoder')
        if 'action' in values:
            values['action'] = _build(ActionConfig, values['action'], 'action')
        if values.get('dit') is not None:
            values['dit'] = _build(DiTConfig, values['dit'], 'dit')
        return _build(cls, values, 'config')


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


_SCALARS: dict[str, tuple[type, ...]] = {
    'int': (int,),
    'float': (float, int),
    'str': (str,),
    'bool': (bool,),
}


def _build(kind: type[_T], data: Any, where: str) -> _T:
    _require(isinstance(data, Mapping), f'{where} must be an object, is {type(data).__name__}')
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    _require(not unknown, f'{where} has unknown fields {unknown}; known are {sorted(fields)}')
    values = {}
    for name, value in data.items():
        value = tuple(value) if isinstance(value, list) else value
        expected = _SCALARS.get(str(fields[name].type))
        if expected is not None:
            right = isinstance(value, expected) and (
                bool in expected or not isinstance(value, bool)
            )
            _require(right, f'{where}.{name} must be {fields[name].type}, is {value!r}')
        values[name] = value
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    _require(not missing, f'{where} lacks {missing}')
    return kind(**values)
