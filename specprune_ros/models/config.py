"""Sizes and conventions of a policy, as plain data: towers, decoder, cameras, actions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from specprune_ros import validation
from specprune_ros.validation import validated

COGNITION = ('cogact', 'db-cogact')  # one row conditions a diffusion transformer
FLOW_FAMILIES = ('pi0', 'pi05')

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CROP_AREA = 0.9  # of an image, where ``center_crop`` is set


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field and what would be right."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _int(most: int, least: int = 1) -> Any:
    """A whole number of the model. ``most`` is far above any model's and below what hangs a
    machine that only reports what a folder holds.
    """
    return Annotated[int, Field(ge=least, le=most)]


def _float(most: float, **least: float) -> Any:
    return Annotated[float, Field(le=most, allow_inf_nan=False, **least)]


_SHORT = Field(max_length=256)  # cameras, towers, action columns
Text = Annotated[str, Field(max_length=1000)]
Width, Depth, Heads, Mlp = _int(1 << 16), _int(256), _int(1 << 10), _int(1 << 18)
Steps = _int(1000)
Positive, Finite = _float(1e12, gt=0), _float(1e12)


@validated(ConfigError)
class VisionConfig:
    """One vision transformer.

    ``depth`` counts the blocks of the whole tower. The policies read the output of the
    second-to-last block without the final norm, so only ``depth - skip_last`` blocks are built.
    ``mean`` and ``std`` normalise images scaled to 0..1. Class and register tokens carry no
    position of their own (where a checkpoint has one, as CLIP, the loader adds it to the token).
    """

    name: Text
    width: Width
    depth: Depth
    heads: Heads
    mlp: Mlp
    patch: _int(256) = 14
    image_size: _int(4096) = 224
    class_token: bool = False
    registers: _int(64, least=0) = 0
    layer_scale: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    activation: Literal['gelu', 'quick_gelu', 'gelu_tanh'] = 'gelu'
    norm_eps: Positive = 1e-6
    skip_last: _int(256, least=0) = 1
    final_norm: bool = False
    mean: tuple[Finite, Finite, Finite] = HALF
    std: tuple[Positive, Positive, Positive] = HALF

    def __post_init__(self) -> None:
        _require(
            self.width % self.heads == 0,
            f'width {self.width} must be a multiple of heads {self.heads}',
        )
        _require(
            self.image_size % self.patch == 0,
            f'image_size {self.image_size} must be a multiple of patch {self.patch}',
        )
        _require(
            self.skip_last < self.depth,
            f'skip_last {self.skip_last} must be 0..{self.depth - 1}',
        )

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


@validated(ConfigError)
class DecoderConfig:
    """A Llama-shaped decoder (Llama 2, Qwen2, Gemma): pre-norm, RoPE, gated MLP.

    ``causal`` is false for OpenVLA-OFT and pi0, whose attention is bidirectional over the whole
    sequence. ``vocab`` 0: no embedding table (an action expert). ``head_size`` 0 means width /
    heads. ``embed_scale`` multiplies the rows of the embedding table (Gemma: sqrt(width)).
    ``rope`` ``bf16`` rounds the rotary frequencies to bfloat16, as a cast of the whole module does
    in PyTorch.
    ``adaptive``: the norms take scale, shift and gate from a condition (pi0.5's expert).
    """

    width: Width
    depth: Depth
    heads: Heads
    mlp: Mlp
    vocab: _int(1 << 21, least=0)
    kv_heads: _int(1 << 10, least=0) = 0
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-6
    causal: bool = False
    qkv_bias: bool = False
    head_size: Annotated[int, Field(ge=0, le=1 << 12, multiple_of=2)] = 0
    activation: Literal['silu', 'gelu_tanh'] = 'silu'
    embed_scale: Finite = 1.0
    rope: Literal['exact', 'bf16'] = 'exact'
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.kv_heads == 0:
            object.__setattr__(self, 'kv_heads', self.heads)
        if self.head_size == 0:
            _require(
                self.width % self.heads == 0 and (self.width // self.heads) % 2 == 0,
                f'width {self.width} / heads {self.heads} must be a whole, even number',
            )
        _require(
            self.heads % self.kv_heads == 0,
            f'heads {self.heads} must be a multiple of kv_heads {self.kv_heads}',
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.width // self.heads


@validated(ConfigError)
class ActionConfig:
    """What a row of actions means, in the words of ``ActionChunk.msg``.

    ``scale`` turns un-normalised action units into SI per dimension (metres, radians, gripper
    0..1); LIBERO's actions, for example, are commands in -1..1 of a controller that moves 0.05 m
    and 0.5 rad per unit. ``gripper_range`` are the values of the gripper column that mean 0 and 1;
    a binary gripper switches half-way between. ``accumulates`` says what the authors' own client
    adds a delta to: the last ``command`` or the ``measurement`` (for the reader; an executor that
    integrates a chunk does the first).
    """

    dims: Annotated[tuple[Text, ...], _SHORT] = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
    kind: Literal['ee_delta', 'ee_pose', 'joint_position', 'joint_delta'] = 'ee_delta'
    rotation: Literal['none', 'vector', 'euler_xyz', 'quaternion'] = 'vector'
    reference: Literal['none', 'previous_step', 'observation'] = 'previous_step'
    gripper_dim: int = 6
    gripper_sense: Literal['one_is_open', 'one_is_closed'] = 'one_is_open'
    gripper_range: tuple[Finite, Finite] = (0.0, 1.0)
    accumulates: Literal['command', 'measurement', 'none'] = 'command'
    scale: Annotated[tuple[_float(1e4, ge=-1e4), ...], _SHORT] = ()

    def __post_init__(self) -> None:
        if not self.scale:
            object.__setattr__(self, 'scale', (1.0,) * len(self.dims))
        low, high = self.gripper_range
        _require(low < high, f'gripper_range: must ascend, is {self.gripper_range}')
        _require(len(set(self.dims)) == len(self.dims), f'dims: holds a name twice: {self.dims}')
        _require(
            -1 <= self.gripper_dim < len(self.dims),
            f'gripper_dim: {self.gripper_dim} must be -1..{len(self.dims) - 1}',
        )
        _require(
            len(self.scale) == len(self.dims),
            f'scale: has {len(self.scale)} entries, dims has {len(self.dims)}',
        )

    @property
    def gripper_threshold(self) -> float:
        """Value of the gripper column at which a binary gripper switches."""
        return sum(self.gripper_range) / 2


@validated(ConfigError)
class DDIMConfig:
    """The sampler of DB-OFT's head called DiT: the language model itself predicts the noise."""

    steps: Steps = 10
    train_steps: _int(10_000) = 100

    def __post_init__(self) -> None:
        _require(
            self.steps <= self.train_steps,
            f'steps: {self.steps} must not exceed train_steps {self.train_steps}',
        )


@validated(ConfigError)
class DiTConfig:
    """CogACT's diffusion transformer head and its sampler.

    ``guidance`` is the classifier-free guidance scale; up to 1 it is off and a step runs one
    branch.
    """

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    ddim_steps: Steps = 10
    train_steps: _int(10_000) = 100
    guidance: _float(100, ge=0) = 1.5

    def __post_init__(self) -> None:
        _require(self.width % self.heads == 0, 'width: must be a multiple of heads')
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
        f'ddim_steps: {steps}; no stride through {train_steps} training steps gives that many; '
        'take 1, 2, 4, 5, 10, 20, 25 or 50'
    )


@validated(ConfigError)
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
    steps: Steps = 10
    width: Width = 32
    state: Literal['none', 'token', 'prompt'] = 'token'
    state_padded: bool = False
    min_period: Positive = 4e-3
    max_period: Positive = 4.0
    relative: Annotated[tuple[int, ...], _SHORT] = ()
    robot: Literal['none', 'aloha'] = 'none'

    def __post_init__(self) -> None:
        _require(self.expert.width % 2 == 0, 'expert.width: must be even: sines and cosines')


@validated(ConfigError)
class PolicyConfig:
    """A whole policy.

    ``cameras`` names the images in the order the model takes them. ``control_hz`` is the number
    of action rows played per second. ``proprio_dim`` 0 means no proprioception token.
    ``convention`` names the row of ``conventions.CONVENTIONS`` the checkpoint follows, if any.
    ``execute`` is how many rows of a chunk its authors run before the next query; 0: all.
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

    family: Literal['openvla-oft', 'db-oft', 'cogact', 'db-cogact', 'pi0', 'pi05']
    towers: Annotated[tuple[VisionConfig, ...], Field(min_length=1, max_length=256)]
    decoder: DecoderConfig
    cameras: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)] = (
        'third_person',
        'wrist',
    )
    proprio_dim: _int(256, least=0) = 8
    action_dim: _int(256) = 7
    chunk: _int(1024) = 8
    control_hz: _float(1000, gt=0) = 20.0
    norm: Literal['q99', 'min_max', 'identity'] = 'q99'
    action: ActionConfig = ActionConfig()
    projector: Annotated[tuple[_int(1 << 18), ...], _SHORT] = ()
    film: bool = False
    head_blocks: _int(64, least=0) = 2
    dit: DiTConfig | None = None
    ddim: DDIMConfig | None = None
    flow: FlowConfig | None = None
    camera_aliases: Annotated[tuple[tuple[Text, Text], ...], _SHORT] = ()
    resize: Literal[
        'lanczos3',
        'bicubic',
        'pad_bicubic',
        'square_lanczos',
        'pad_pillow',
        'pad_bilinear',
        'pad_bilinear_04',
    ] = 'lanczos3'
    pre_resize: _int(4096, least=0) = 0
    pre_filter: Literal['bicubic', 'area', 'linear'] = 'bicubic'
    center_crop: bool = True
    jpeg: bool = True
    reencode: bool = False
    position_code: bool = False
    template: Text = 'openvla'
    max_prompt: _int(1 << 16) = 512
    stop_id: _int(1 << 21, least=0) = 2
    execute: _int(1 << 16, least=0) = 0
    convention: Text = ''

    def __post_init__(self) -> None:
        if not self.projector and self.family not in FLOW_FAMILIES:
            width = self.decoder.width
            dexbotic = self.family.startswith('db-')
            hidden = (width,) if dexbotic else (4 * self.vision_width, width)
            object.__setattr__(self, 'projector', hidden)
        _require(
            not self.pre_resize or not self.resize.startswith(('pad_pillow', 'pad_bilinear')),
            f'pre_resize does nothing before resize {self.resize}; must be 0',
        )
        _require(
            self.stop_id < self.decoder.vocab,
            f'stop_id: {self.stop_id} must be below decoder.vocab {self.decoder.vocab}',
        )
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
        """Rows of a chunk that are run before the next query."""
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
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Inverse of :meth:`to_dict`. Raises ``ConfigError`` naming an unknown or bad field."""
        return validation.parse(cls, data, ConfigError)

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
