"""Dexbotic folders (DB-OFT, DB-CogACT): one safetensors model with its action head inside,
``norm_stats.json``.

The language model's fields lie at the top level of ``config.json``; ``llm_config`` is the hub name
it once came from and is not followed. Everything else is read from tensor names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specprune_ros.models import conventions
from specprune_ros.models.checkpoint import shards, tensor_names
from specprune_ros.models.checkpoint.files import CheckpointError, read_json
from specprune_ros.models.checkpoint.report import Report, check_rope
from specprune_ros.models.checkpoint.vision_sizes import Shapes, clip_sizes, count_layers
from specprune_ros.models.config import DDIMConfig, DecoderConfig, DiTConfig, PolicyConfig
from specprune_ros.models.presets import CLIP_L_336, DB_COGACT_7B, DB_OFT_7B

TOWER = 'model.mm_vision_tower.vision_tower.vision_model.'
HEAD = 'model.action_head.'
BASES = {'dexbotic_oft': DB_OFT_7B, 'dexbotic_cogact': DB_COGACT_7B}
CLASSES = {'dexbotic_oft': 'OFTForCausalLM', 'dexbotic_cogact': 'CogACTForCausalLM'}
DIT_HEADS = {384: 4, 768: 12, 1024: 16}  # by width: DiT-S, DiT-B, DiT-L
# What the rest of the family would need, in the order of Dexbotic's model zoo.
REFUSED = {
    'dexbotic': 'the base model, which writes its actions as text, token by token; load a policy '
    'fine-tuned from it (DB-OFT or DB-CogACT)',
    'dexbotic_oft_discrete': 'DB-OFT with the discrete head, which reads actions from the output '
    'words; train with action_model_type DiT or Linear instead',
    'dexbotic_memvla': 'MemVLA, whose memory of past observations is fed back into the model; the '
    'memory bank and its attention would have to be added. DB-CogACT is that policy without it',
    'dexbotic_pi0': "Dexbotic's pi0, which has an action expert beside a Gemma model and other "
    "tensor names than openpi's and lerobot's; convert it to one of those layouts",
    'dexbotic_pi05': "Dexbotic's pi0.5, which has an action expert beside a Gemma model and other "
    "tensor names than openpi's and lerobot's; convert it to one of those layouts",
    'dexbotic_dm0': 'DM0, whose flow-matching action expert is not written here',
    'dexbotic_dm0_prog': 'DM0, whose flow-matching action expert is not written here',
    'dexbotic_navila': 'NaVILA, a navigation model that answers in text; it commands no arm',
}


def refuse(where: object, kind: str) -> None:
    """Raise ``CheckpointError`` for a Dexbotic model type that cannot be loaded."""
    why = REFUSED.get(kind, 'not a model of Dexbotic 0.2.0 that is known here')
    raise CheckpointError(
        f'{where}: model_type {kind!r} is {why}. Of Dexbotic, DB-OFT (dexbotic_oft, heads DiT and '
        'Linear) and DB-CogACT (dexbotic_cogact) can be loaded'
    )


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for a DB-OFT or DB-CogACT folder."""
    where = report.path / 'config.json'
    kind = config['model_type']
    llm = config.get('llm_config')
    if isinstance(llm, Mapping):  # a hand-made folder: Dexbotic writes a name
        own = {name: config.get(name) for name in ('model_type', 'architectures')}
        config = {**config, **llm, **own}
    _check(report, config)
    found = shards.find(report.path, report)
    shapes = found.shapes
    tower, source = clip_sizes(shapes, TOWER, CLIP_L_336)
    report.fact('tower 0', f'{tower.name} {tower.depth} x {tower.width}', source)
    declared = config.get('mm_hidden_size', tower.width)
    if declared != tower.width:
        report.problem(
            f'{where}: mm_hidden_size is {declared}, the tower is {tower.width} wide; config.json '
            'and weights are of different downloads'
        )
    base = BASES[kind]
    sizes: dict[str, Any] = {
        'action_dim': _count(where, config, 'action_dim', 7),
        'chunk': _count(where, config, 'chunk_size', 16),
        'proprio_dim': 0,
    }
    if kind == 'dexbotic_oft':
        if config.get('use_proprio'):
            sizes['proprio_dim'] = _count(where, config, 'proprio_dim', 7)
        head = config.get('action_model_type') or 'DiT'
        sizes['ddim'] = DDIMConfig() if head == 'DiT' else None
        report.fact('action head', head, 'config.json')
    else:
        sizes['dit'] = dit_sizes(shapes, f'{HEAD}net.') or _named_dit(where, config)
        width, depth = sizes['dit'].width, sizes['dit'].depth
        report.fact('action head', f'DiT {depth} x {width}', 'tensor shapes')
    fields = _convention(report, base, overrides, sizes['action_dim'])
    decoder = _decoder(report, config, shapes)
    policy = PolicyConfig(
        **{
            **{name: getattr(base, name) for name in COMMON},
            'towers': (tower,),
            'decoder': decoder,
            **fields,
            **sizes,
        }
    )
    policy = report.override(policy, overrides)
    for name in ('action_dim', 'chunk', 'proprio_dim'):
        report.fact(name, getattr(policy, name), 'given' if name in overrides else 'config.json')
    policy = _fit_window(report, config, policy)
    report.config = policy
    entries = tensor_names.dexbotic_model(policy)
    found.report_absent(report, entries, 2)
    report.compare(entries, found.present, found.absent_names)


COMMON = (
    'family', 'cameras', 'control_hz', 'norm', 'action', 'resize', 'center_crop', 'jpeg',
    'template', 'stop_id',
)  # fmt: skip


def _check(report: Report, config: Mapping[str, Any]) -> None:
    """Note every setting that would change what the network computes."""
    where, kind = report.path / 'config.json', config['model_type']
    classes = config.get('architectures') or [CLASSES[kind]]
    if classes != [CLASSES[kind]]:
        report.problem(
            f'{where}: architectures is {classes}, only {CLASSES[kind]} is supported (the Hybrid '
            'class of Dexbotic also answers in text)'
        )
    head = config.get('action_model_type') or ('DiT' if kind == 'dexbotic_oft' else 'DiT-B')
    allowed = ('DiT', 'Linear') if kind == 'dexbotic_oft' else ('DiT-S', 'DiT-B', 'DiT-L')
    if head not in allowed:
        report.problem(
            f'{where}: action_model_type is {head!r}, only {", ".join(allowed)} can be run'
        )
    for name, expected in (
        ('mm_projector_type', 'mlp2x_gelu'),
        ('chat_template', 'dexbotic'),
        ('image_aspect_ratio', 'pad'),
        ('hidden_act', 'silu'),
    ):
        if config.get(name) not in (None, expected):
            report.problem(f'{where}: {name} is {config[name]!r}, only {expected!r} is supported')
    tower = config.get('mm_vision_tower', 'openai/clip-vit-large-patch14-336')
    # As Dexbotic tells them apart: by the name, SigLIP first.
    name = str(tower).lower()
    if tower is None or 'sig' in name or 'clip' not in name:
        report.problem(f'{where}: mm_vision_tower is {tower!r}, only CLIP towers are supported')
    check_rope(report, config)


def _count(where: object, config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f'{where}: {name} must be a whole number above 0, is {value!r}')
    return value


def _number(where: object, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f'{where}: {name} must be a number, is {value!r}')
    return float(value)


def dit_sizes(shapes: Shapes, prefix: str) -> DiTConfig | None:
    """CogACT's diffusion transformer by its tensors under ``prefix``."""
    embedder = shapes.get(f'{prefix}x_embedder.linear.weight')
    if embedder is None:
        return None
    width = embedder[0]
    heads = DIT_HEADS.get(width, max(1, width // 64))
    return DiTConfig(width=width, depth=count_layers(shapes, f'{prefix}blocks.'), heads=heads)


def _named_dit(where: object, config: Mapping[str, Any]) -> DiTConfig:
    """The size ``config.json`` names, while the shard that holds the head is absent."""
    name = config.get('action_model_type') or 'DiT-B'
    sizes = {'DiT-S': (384, 6), 'DiT-B': (768, 12), 'DiT-L': (1024, 24)}
    if name not in sizes:
        raise CheckpointError(f'{where}: action_model_type {name!r} is of no known size')
    width, depth = sizes[name]
    return DiTConfig(width=width, depth=depth, heads=DIT_HEADS[width])


def _convention(
    report: Report, base: PolicyConfig, overrides: Mapping[str, Any], action_dim: int
) -> dict[str, Any]:
    """The fields of the checkpoint's row in the table of conventions; raw numbers without one."""
    given = overrides.get('platform')
    platform = given or conventions.from_folder(report.path)
    row = conventions.find(platform, base.family)
    names = ', '.join(conventions.platforms(base.family))
    if given and row is None:
        raise CheckpointError(
            f'platform {given!r} has no row for {base.family}; there are {names}'
        )
    if row is not None and len(row.fields['action'].dims) == action_dim:
        report.follow(row, 'given' if given else "the folder's name")
        return {**row.fields, 'convention': row.name}
    report.fact('platform', 'unknown', "neither given nor in the folder's name")
    report.notes.append(
        'no file says what robot or benchmark the actions are for: they are the raw numbers of '
        f"norm_stats.json, the gripper's sense included, which no executor takes. Give platform "
        f'as one of {names}, or state what they mean in specprune.json'
    )
    report.guess, report.raw = 'unknown', True
    dims = tuple(f'action_{i + 1}' for i in range(action_dim))
    fields: dict[str, Any] = {'action': conventions.plain_action(dims)}
    if action_dim >= TWO_ARMS:
        fields['cameras'] = conventions.find('robotwin', base.family).fields['cameras']
        report.notes.append(
            f'{action_dim} numbers an action are two arms: three images are taken, as by '
            f'Dexbotic-CogACT-HArm ({", ".join(fields["cameras"])}); give cameras for others'
        )
    return fields


def _decoder(report: Report, config: Mapping[str, Any], shapes: Shapes) -> DecoderConfig:
    where = report.path / 'config.json'
    names = {
        'width': 'hidden_size',
        'depth': 'num_hidden_layers',
        'heads': 'num_attention_heads',
        'mlp': 'intermediate_size',
        'vocab': 'vocab_size',
    }
    absent = sorted(name for name in names.values() if name not in config)
    if absent:
        raise CheckpointError(
            f"{where}: lacks {', '.join(absent)}, the language model's fields at the top level"
        )
    sizes = {ours: _count(where, config, theirs, 0) for ours, theirs in names.items()}
    rope = config.get('rope_theta') or (config.get('rope_parameters') or {}).get('rope_theta')
    prefix = 'model.llm.layers.0.self_attn.q_proj'
    # No field says which language model it is: only Qwen2 has a bias here.
    known = f'{prefix}.weight' in shapes
    bias = f'{prefix}.bias' in shapes if known else True
    decoder = DecoderConfig(
        **sizes,
        kv_heads=_count(where, config, 'num_key_value_heads', sizes['heads']),
        rope_theta=_number(where, 'rope_theta', rope or 10000.0),
        rms_norm_eps=_number(where, 'rms_norm_eps', config.get('rms_norm_eps', 1e-6)),
        causal=True,
        qkv_bias=bias,
    )
    kind = 'Qwen2' if bias else 'Llama'
    report.fact('decoder', f'{kind} {decoder.depth} x {decoder.width}', 'config.json, top level')
    report.fact('rms_norm_eps', decoder.rms_norm_eps, 'config.json')
    report.fact('rope_theta', decoder.rope_theta, 'config.json')
    return decoder


def _fit_window(report: Report, config: Mapping[str, Any], policy: PolicyConfig) -> PolicyConfig:
    """The policy with prompts so short that no layer's attention window is ever felt."""
    if not config.get('use_sliding_window') or config.get('sliding_window') is None:
        return policy
    window = _count(report.path / 'config.json', config, 'sliding_window', 1)
    others = policy.vision_tokens + int(policy.proprio_dim > 0) + policy.action_tokens + 1
    room = window - others
    if room < MIN_PROMPT:
        report.problem(
            f'{report.path / "config.json"}: use_sliding_window is true with a sliding_window of '
            f'{window}: shorter than a query of {others} rows and its prompt; only attention over '
            'the whole sequence is supported'
        )
        return policy
    if room < policy.max_prompt:
        report.notes.append(
            f'prompts may have {room} tokens: longer ones would pass the sliding_window of '
            f'{window}'
        )
        return policy.override({'max_prompt': room})
    return policy


TWO_ARMS = 14  # numbers of an action: end-effector poses and grippers of two arms
MIN_PROMPT = 96  # tokens: the template, and an instruction of some 40 words


def statistics(report: Report) -> dict[str, Any]:
    """The bounds that ``norm_stats.json`` gives for serving, as robots; without the file -1..1.

    Keys beside ``default`` are data sets, used in training. Bounds may be numbers or lists of one,
    which hold for every dimension. Raises ``CheckpointError``.
    """
    path = report.path / 'norm_stats.json'
    dim = report.config.action_dim if report.config else 7
    if not path.exists():
        report.notes.append('norm_stats.json is absent: actions are scaled to -1..1')
        return {'default': {'action': {'min': [-1.0] * dim, 'max': [1.0] * dim}}}
    data = read_json(path)
    data = data.get('norm_stats', data)
    if not isinstance(data, Mapping):
        raise CheckpointError(f'{path}: norm_stats must be an object')
    entry = data if 'min' in data and 'max' in data else data.get('default')
    if not isinstance(entry, Mapping) or not {'min', 'max'} <= set(entry):
        raise CheckpointError(
            f'{path}: has no "default" with min and max, only {sorted(data)}; statistics of a '
            'pi0-like model (mean, std, q01) belong to another family'
        )
    others = sorted(name for name in data if name != 'default') if entry is not data else []
    if others:
        report.notes.append(f'norm_stats.json: not used in serving: {", ".join(others[:4])}')
    bounds = {}
    for name in ('min', 'max'):
        values = entry[name] if isinstance(entry[name], list) else [entry[name]]
        bounds[name] = values * dim if len(values) == 1 else values
    return {'default': {'action': bounds}}
