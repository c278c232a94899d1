"""Sizes and conventions of a policy, as plain data: towers, decoder, cameras, actions."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

FAMILIES = ('openvla-oft', 'db-oft', 'cogact', 'db-cogact', 'pi0', 'pi05')
COGNITION = ('cogact', 'db-cogact')  # one row conditions a diffusion transformer
FLOW_FAMILIES = ('pi0', 'pi05')
ACTIVATIONS = ('gelu', 'quick_gelu', 'gelu_tanh')
NORMS = ('q99', 'min_max', 'identity')
KINDS = ('ee_delta', 'ee_pose', 'joint_position', 'joint_delta')
ROTATIONS = ('none', 'vector', 'euler_xyz', 'quaternion')
REFERENCES = ('none', 'previous_step', 'observation')
ACCUMULATES = ('command', 'measurement', 'none')
GRIPPER_SENSES = ('one_is_open', 'one_is_closed')
GATES = ('silu', 'gelu_tanh')
ROPES = ('exact', 'bf16')
STATES = ('none', 'token', 'prompt')
ROBOTS = ('none', 'aloha')
RESIZES = (
    'lanczos3', 'bicubic', 'pad_bicubic', 'square_lanczos', 'pad_pillow', 'pad_bilinear',
    'pad_bilinear_04',
)  # fmt: skip
PRE_FILTERS = ('bicubic', 'area', 'linear')

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CROP_AREA = 0.9  # of an image, where ``center_crop`` is set

_T = TypeVar('_T')


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field and what would be right."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# Far above any model; below what hangs a machine that only wants to say what a folder holds.
MOST = {
    'width': 1 << 16,
    'depth': 256,
    'heads': 1 << 10,
    'kv_heads': 1 << 10,
    'mlp': 1 << 18,
    'vocab': 1 << 21,
    'patch': 256,
    'image_size': 4096,
    'registers': 64,
    'head_blocks': 64,
    'head_size': 1 << 12,
    'pre_resize': 4096,
    'action_dim': 256,
    'proprio_dim': 256,
    'chunk': 1024,
    'max_prompt': 1 << 16,
    'steps': 1000,
    'ddim_steps': 1000,
    'train_steps': 10_000,
    'control_hz': 1000.0,
    'rope_theta': 1e12,
}
MOST_ENTRIES = 256  # cameras, towers, action columns
MOST_SCALE = 1e4  # SI units of one action unit
MOST_TEXT = 1000  # characters


def _bounded(config: Any) -> None:
    """No number, list or text of a configuration may be larger than a model's can be."""
    kind = type(config).__name__
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        most = MOST.get(field.name, 1 << 31)
        if isinstance(value, int | float):
            right = math.isfinite(value) and abs(value) <= most
            _require(right, f'{kind}.{field.name} is {value!r:.40}; at most {most:g}')
        elif isinstance(value, str):
            _require(len(value) <= MOST_TEXT, f'{kind}.{field.name} has {len(value)} characters')
        elif isinstance(value, tuple):
            _require(
                len(value) <= MOST_ENTRIES,
                f'{kind}.{field.name} has {len(value)} entries; at most {MOST_ENTRIES}',
            )


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
    final_norm: bool = False
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        _bounded(self)
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
    """A Llama-shaped decoder (Llama 2, Qwen2, Gemma): pre-norm, RoPE, gated MLP.

    ``causal`` is false for OpenVLA-OFT and pi0, whose attention is bidirectional over the whole
    sequence. ``vocab`` 0: no embedding table (an action expert). ``head_size`` 0 means width /
    heads. ``embed_scale`` multiplies the rows of the embedding table (Gemma: sqrt(width)).
    ``rope`` ``bf16`` rounds the rotary frequencies to bfloat16, as a cast of the whole module does
    in PyTorch.
    ``adaptive``: the norms take scale, shift and gate from a condition (pi0.5's expert).
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
    head_size: int = 0
    activation: str = 'silu'
    embed_scale: float = 1.0
    rope: str = 'exact'
    adaptive: bool = False

    def __post_init__(self) -> None:
        _bounded(self)
        if self.kv_heads == 0:
            object.__setattr__(self, 'kv_heads', self.heads)
        for field in ('width', 'depth', 'heads', 'mlp', 'kv_heads'):
            _positive(self, field)
        _require(self.vocab >= 0, f'decoder: vocab must be >= 0, is {self.vocab}')
        if self.head_size == 0:
            _require(
                self.width % self.heads == 0 and (self.width // self.heads) % 2 == 0,
                f'decoder: width {self.width} / heads {self.heads} must be a whole, even number',
            )
        _require(
            self.head_size >= 0 and self.head_size % 2 == 0,
            f'decoder: head_size {self.head_size} must be even',
        )
        _one_of(self, 'activation', GATES)
        _one_of(self, 'rope', ROPES)
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
        return self.head_size or self.width // self.heads


@dataclass(frozen=True)
class ActionConfig:
    """What a row of actions means, in the words of ``ActionChunk.msg``.

    ``scale`` turns un-normalised action units into SI per dimension (metres, radians, gripper
    0..1); LIBERO's actions, for example, are commands in -1..1 of a controller that moves 0.05 m
    and 0.5 rad per unit. ``gripper_range`` are the values of the gripper column that mean 0 and 1;
    a binary gripper switches half-way between. ``accumulates`` says what the authors' own client
    adds a delta to: the last ``command`` or the ``measurement`` (for the reader; an executor that
    integrates a chunk does the first).
    """

    dims: tuple[str, ...] = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
    kind: str = 'ee_delta'
    rotation: str = 'vector'
    reference: str = 'previous_step'
    gripper_dim: int = 6
    gripper_sense: str = 'one_is_open'
    gripper_range: tuple[float, float] = (0.0, 1.0)
    accumulates: str = 'command'
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _bounded(self)
        if not self.scale:
            object.__setattr__(self, 'scale', (1.0,) * len(self.dims))
        _one_of(self, 'kind', KINDS)
        _one_of(self, 'rotation', ROTATIONS)
        _one_of(self, 'reference', REFERENCES)
        _one_of(self, 'gripper_sense', GRIPPER_SENSES)
        _one_of(self, 'accumulates', ACCUMULATES)
        low, high = self.gripper_range
        _require(low < high, f'action.gripper_range must ascend, is {self.gripper_range}')
        _require(
            len(set(self.dims)) == len(self.dims), f'action.dims holds a name twice: {self.dims}'
        )
        _require(
            -1 <= self.gripper_dim < len(self.dims),
            f'action.gripper_dim {self.gripper_dim} must be -1..{len(self.dims) - 1}',
        )
        _require(
            len(self.scale) == len(self.dims),
            f'action.scale has {len(self.scale)} entries, action.dims has {len(self.dims)}',
        )
        _require(
            all(math.isfinite(x) and abs(x) <= MOST_SCALE for x in self.scale),
            f'action.scale must be finite and at most {MOST_SCALE:g}, is {self.scale!r:.80}',
        )

    @property
    def gripper_threshold(self) -> float:
        """Value of the gripper column at which a binary gripper switches."""
        return sum(self.gripper_range) / 2


@dataclass(frozen=True)
class DDIMConfig:
    """The sampler of DB-OFT's head called DiT: the language model itself predicts the noise."""

    steps: int = 10
    train_steps: int = 100

    def __post_init__(self) -> None:
        _bounded(self)
        for field in ('steps', 'train_steps'):
            _positive(self, field)
        _require(
            self.steps <= self.train_steps,
            f'ddim.steps {self.steps} must not exceed ddim.train_steps {self.train_steps}',
        )


@dataclass(frozen=True)
class DiTConfig:
    """CogACT's diffusion transformer head and its sampler.

    ``guidance`` is the classifier-free guidance scale; up to 1 it is off and a step runs one
    branch.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    ddim_steps: int = 10
    train_steps: int = 100
    guidance: float = 1.5

    def __post_init__(self) -> None:
        _bounded(self)
        for field in ('width', 'depth', 'heads', 'ddim_steps', 'train_steps'):
            _positive(self, field)
        _require(self.width % self.heads == 0, 'dit.width must be a multiple of dit.heads')
        _require(0 <= self.guidance <= 100, f'dit.guidance must be 0 to 100, is {self.guidance}')
        strided_times(self.train_steps, self.ddim_steps)


def strided_times(train_steps: int, steps: int) -> list[int]:
    """Sampled times, ascending, as OpenAI's respacing (``ddimN``) and CogACT's change of it choose
    them: the first stride that gives exactly ``steps``; a single one lies at 50.
    """
    if steps == 1:
        return [50]
    for stride in range(1, train_steps):
        times = list(range(0, train_steps, stride))
        if len(times) == steps:
            return times
    raise ConfigError(
        f'dit.ddim_steps {steps}: no stride through {train_steps} training steps gives that many; '
        'take 1, 2, 4, 5, 10, 20, 25 or 50'
    )


@dataclass(frozen=True)
class FlowConfig:
    """The action expert of pi0 and pi0.5, and its flow sampler.

    ``expert`` attends, layer by layer, to the keys and values of the prefix decoder and to its own
    rows; ``expert.adaptive`` is pi0.5. ``steps`` of the sampler. ``width`` is the columns of a row
    in the model, of which the first ``action_dim`` mean something. ``state``: how proprioception
    goes in (a row of the expert, text of the prompt, not at all); ``state_padded``: its text goes
    on with zeros to ``width`` values (lerobot before 0.5). ``min_period`` and ``max_period`` of
    the time code. ``relative``: action columns that are offsets to the state at the observation.
    ``robot`` ``aloha``: openpi's joint signs and gripper angles of that arm.
    """

    expert: DecoderConfig
    steps: int = 10
    width: int = 32
    state: str = 'token'
    state_padded: bool = False
    min_period: float = 4e-3
    max_period: float = 4.0
    relative: tuple[int, ...] = ()
    robot: str = 'none'

    def __post_init__(self) -> None:
        _bounded(self)
        for field in ('steps', 'width', 'min_period', 'max_period'):
            _positive(self, field)
        _one_of(self, 'state', STATES)
        _one_of(self, 'robot', ROBOTS)
        _require(self.expert.width % 2 == 0, 'flow.expert.width must be even: sines and cosines')


@dataclass(frozen=True)
class PolicyConfig:
    """A whole policy.

    ``cameras`` names the images in the order the model takes them. ``control_hz`` is the number
    of action rows played per second. ``proprio_dim`` 0 means no proprioception token.
    ``convention`` names the row of ``conventions.CONVENTIONS`` the checkpoint follows, if any.
    ``execute`` is how many rows of a chunk its authors run before they ask again; 0: all.
    ``projector`` is the hidden widths between the towers' channels and the decoder, by default
    the family's. ``resize`` is how an image gets to the towers' size, ``pre_resize`` a square that
    it is stretched to before that (0: none), with ``pre_filter``; ``center_crop``, ``jpeg`` and
    ``reencode`` (JPEG and resampling also for an image that has the right size already) belong to
    the authors' image path. ``template``
    names the prompt (``tokens.TEMPLATES``), cut off by an error above ``max_prompt`` tokens.
    ``stop_id`` is the token that ends the sequence. ``position_code`` adds, after the projector,
    a LayerNorm and a unit-size 2-D sine code; small policies trained from scratch need it,
    released checkpoints do not have it. ``flow`` is the action expert of a flow policy, which
    takes any of ``cameras``; ``camera_aliases`` are further names of them, ``(alias, camera)``.
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
    ddim: DDIMConfig | None = None
    flow: FlowConfig | None = None
    camera_aliases: tuple[tuple[str, str], ...] = ()
    resize: str = 'lanczos3'
    pre_resize: int = 0
    pre_filter: str = 'bicubic'
    center_crop: bool = True
    jpeg: bool = True
    reencode: bool = False
    position_code: bool = False
    template: str = 'openvla'
    max_prompt: int = 512
    stop_id: int = 2
    execute: int = 0
    convention: str = ''

    def __post_init__(self) -> None:
        _bounded(self)
        _one_of(self, 'family', FAMILIES)
        if not self.projector and self.family not in FLOW_FAMILIES:
            width = self.decoder.width
            dexbotic = self.family.startswith('db-')
            hidden = (width,) if dexbotic else (4 * self.vision_width, width)
            object.__setattr__(self, 'projector', hidden)
        _one_of(self, 'norm', NORMS)
        _one_of(self, 'resize', RESIZES)
        _one_of(self, 'pre_filter', PRE_FILTERS)
        _require(self.execute >= 0, f'execute must be >= 0, is {self.execute}')
        _require(
            0 <= self.pre_resize <= 4096, f'pre_resize must be 0 to 4096, is {self.pre_resize}'
        )
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
        _require(
            (self.dit is not None) == (self.family in COGNITION),
            f'dit belongs to the families {" and ".join(COGNITION)}, and they need it',
        )
        _require(
            self.ddim is None or self.family == 'db-oft',
            f'ddim belongs to the family db-oft, not to {self.family}',
        )
        if self.family in COGNITION:
            _require(self.proprio_dim == 0, f'proprio_dim must be 0 for family {self.family}')
        if self.family in FLOW_FAMILIES:
            self._check_flow()
        if self.family == 'openvla-oft' or self.family in FLOW_FAMILIES:
            _require(
                not self.decoder.causal,
                f'decoder.causal must be false for family {self.family}: its attention is '
                'bidirectional',
            )
        else:
            _require(self.decoder.causal, f'decoder.causal must be true for family {self.family}')

    def _check_flow(self) -> None:
        flow, decoder = self.flow, self.decoder
        _require(flow is not None, f'flow must be given for family {self.family}')
        expert = flow.expert
        _require(
            expert.adaptive == (self.family == 'pi05'),
            f'flow.expert.adaptive must be {self.family == "pi05"} for family {self.family}',
        )
        for name in ('depth', 'kv_heads', 'head_dim', 'rope', 'rope_theta'):
            _require(
                getattr(expert, name) == getattr(decoder, name),
                f"flow.expert.{name} must be the decoder's, {getattr(decoder, name)}: they share "
                'keys and values',
            )
        _require(self.action_dim <= flow.width, f'action_dim must be at most {flow.width}')
        _require(self.proprio_dim <= flow.width, f'proprio_dim must be at most {flow.width}')
        _require(
            (self.proprio_dim > 0) == (flow.state != 'none'),
            f'proprio_dim {self.proprio_dim} and flow.state {flow.state!r} do not go together',
        )
        _require(
            all(0 <= i < min(self.action_dim, self.proprio_dim) for i in flow.relative),
            f'flow.relative {flow.relative} must name columns of both action and state',
        )

    def camera(self, name: str) -> str | None:
        """The camera that a robot calls ``name``, with or without lerobot's prefix, or
        ``None``.
        """
        name = name.removeprefix('observation.images.')
        name = dict(self.camera_aliases).get(name, name)
        return name if name in self.cameras else None

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
        """Rows of the decoder that actions are read from: K * D, 1 (CogACT), 0 (flow)."""
        if self.family in FLOW_FAMILIES:
            return 0  # they are the expert's
        return 1 if self.family in COGNITION else self.chunk * self.action_dim

    @property
    def rows_run(self) -> int:
        """Rows of a chunk that are run before the policy is asked again."""
        return min(self.execute or self.chunk, self.chunk)

    @property
    def vision_width(self) -> int:
        """Channels of one vision token before the projector."""
        return sum(tower.width for tower in self.towers)

    def check_cameras(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless images of these cameras, in this order, are what the model
        reads: as many as it has, or for a flow policy some of them by their own names.
        """
        known = self.cameras
        fits = len(names) == len(known)
        if self.flow is not None:
            fits = bool(names) and list(names) == [name for name in known if name in names]
        if not fits:
            some = '' if self.flow is None else ' (some of them, by name and in this order)'
            raise ValueError(
                f'cameras names {len(names)} ({", ".join(names)}), but the model reads '
                f'{len(known)}: {", ".join(known)}{some}'
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars, ready for JSON."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Inverse of :meth:`to_dict`. Raises ``ConfigError`` naming an unknown or bad field."""
        return checked(cls, data, '')

    def override(self, changes: Mapping[str, Any]) -> PolicyConfig:
        """A checked copy with some fields changed. Objects are merged field by field, ``towers``
        tower by tower; lists and numbers are replaced. Raises ``ConfigError``.
        """
        changes = dict(changes)
        towers = changes.get('towers')
        if towers is not None:
            _require(
                isinstance(towers, list | tuple) and len(towers) == len(self.towers),
                f'towers must be a list of {len(self.towers)} objects, one per tower',
            )
        plain = self.to_dict()
        if 'decoder' in changes and 'projector' not in changes:
            plain['projector'] = ()  # follows from the widths
        return self.from_dict(_merged(plain, changes))


def _merged(old: Any, new: Any) -> Any:
    """``new`` over ``old``, objects field by field."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if (
        isinstance(old, list)
        and old
        and isinstance(old[0], Mapping)
        and isinstance(new, list | tuple)
    ):
        return [_merged(a, b) for a, b in zip(old, new, strict=True)]
    return new


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def checked(kind: type[_T], data: Any, where: str) -> _T:
    """The dataclass ``kind`` from plain data, every field checked against its annotation.

    ``where`` names the data in a ``ConfigError``.
    """
    name = where or 'config'
    _require(isinstance(data, Mapping), f'{name} must be an object, is {data!r}')
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f'did you mean {close[0]}? ' if close else ''
            raise ConfigError(f'{name} has no field {key!r}; {hint}known are {sorted(fields)}')
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    _require(not missing, f'{name} lacks {missing}')
    hints = get_type_hints(kind)
    prefix = f'{where}.' if where else ''
    return kind(**{key: _value(hints[key], item, f'{prefix}{key}') for key, item in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` wants it, or ``ConfigError``."""
    if get_origin(hint) is UnionType:  # X | None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else checked(hint, value, where)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        _require(isinstance(value, list | tuple), f'{where} must be a list, is {value!r}')
        if kinds[-1] is ...:
            kinds = (kinds[0],) * len(value)
        _require(
            len(kinds) == len(value), f'{where} must have {len(kinds)} entries, has {len(value)}'
        )
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_value(kind, item, f'{where}[{i}]') for i, (kind, item) in pairs)
    allowed = (int, float) if hint is float else hint
    right = isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
    right = right and (hint is not float or math.isfinite(value))
    _require(right, f'{where} must be {hint.__name__}, is {value!r}')
    return value
