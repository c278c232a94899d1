"""OpenVLA-OFT folders: shards and index, action head, proprioception projector, FiLM backbone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from specprune_ros import validation
from specprune_ros.models import conventions
from specprune_ros.models.checkpoint import lora, shards, tensor_names
from specprune_ros.models.checkpoint.files import CheckpointError, TensorDict, read_json
from specprune_ros.models.checkpoint.report import Report, check_rope, entry_bytes, human
from specprune_ros.models.checkpoint.vision_sizes import Shapes, timm_sizes
from specprune_ros.models.config import ConfigError, DecoderConfig, PolicyConfig, VisionConfig
from specprune_ros.models.presets import DINOV2_L, LLAMA2_7B, SIGLIP_SO400M

TIMM = {
    'vit_large_patch14_reg4_dinov2.lvd142m': DINOV2_L,
    'vit_so400m_patch14_siglip_224': SIGLIP_SO400M,
}
TOWERS = ('featurizer.', 'fused_featurizer.')
EXPECTED = {
    'arch_specifier': 'no-align+fused-gelu-mlp',
    'image_resize_strategy': 'resize-naive',
    'use_fused_vision_backbone': True,
}


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for an OpenVLA-OFT folder."""
    folder = report.path
    for name, value in EXPECTED.items():
        if config.get(name, value) != value:
            report.problem(
                f'{folder / "config.json"}: {name} is {config[name]!r}, only {value!r} is '
                'supported'
            )
    found = shards.find(folder, report)
    parts = {
        name: _component(report, name)
        for name in ('action_head', 'proprio_projector', 'vision_backbone')
    }
    if _candidates(folder, 'noisy_action_projector'):
        report.problem(
            f'{folder}: holds a noisy_action_projector: this is the diffusion variant, which '
            'needs one pass of the language model per step; only the L1 head is supported'
        )
    film = parts['vision_backbone']
    if film is not None:
        film = TensorDict(film.path, partial(lora.merge, film.path))
        report.fact('film', True, film.path.name)
    with found.blamed(report):
        policy = _config(report, config, overrides, found.shapes, parts, film)
    if policy is None:
        return
    report.config = policy
    entries = tensor_names.oft_model(policy)
    found.report_absent(report, entries, 2)
    report.compare(entries, found.present, found.absent_names)
    for name, made in (
        ('action_head', tensor_names.l1_head('model.', policy)),
        ('proprio_projector', tensor_names.proprio('', policy) if policy.proprio_dim else {}),
        ('vision_backbone', tensor_names.oft_film(policy) if film is not None else {}),
    ):
        source = film if name == 'vision_backbone' else parts[name]
        if source is not None and made:
            report.compare(made, [source], set())
        elif source is not None:
            report.problem(f'{source.path}: not expected, the policy takes no proprioception')
        elif made:
            width = 2 if name == 'action_head' else 4
            report.lacks(f'{name}--<step>_checkpoint.pt', entry_bytes(made, made, width))


def _config(
    report: Report,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    shapes: Shapes,
    parts: Mapping[str, TensorDict | None],
    film: TensorDict | None,
) -> PolicyConfig | None:
    head, proprio = parts['action_head'], parts['proprio_projector']
    action_dim = _dim(head, 'model.fc2.weight', 0)
    proprio_dim = _dim(proprio, 'fc1.weight', 1)
    keys = list(report.statistics_keys)
    given = overrides.get('platform')
    platform = given or conventions.from_dimensions(keys, action_dim, proprio_dim)
    row = conventions.find(platform, 'openvla-oft')
    if row is None:
        report.problem(
            f'{report.path}: no file says which robot this is for (action dimension {action_dim}, '
            f'proprioception {proprio_dim}, platform {platform}); give platform as one of '
            f'{", ".join(conventions.platforms("openvla-oft"))}'
        )
        return None
    if not given and not conventions.named(platform, report.requested_key, keys):
        report.guess = platform
    report.follow(row, 'given' if given else 'dimensions and statistics')
    constants = dict(row.fields)
    for name, value, source in (
        ('action_dim', action_dim, head),
        ('proprio_dim', proprio_dim, proprio),
    ):
        if value is not None and name not in overrides:
            constants[name] = value
            report.fact(name, value, f'{source.path.name}, tensor shapes')
        else:
            report.fact(name, overrides.get(name, constants[name]), f'platform {platform}')
    if constants['action_dim'] != len(constants['action'].dims):
        dims = tuple(f'action_{i + 1}' for i in range(constants['action_dim']))
        constants['action'] = conventions.plain_action(dims)
    policy = PolicyConfig(
        family='openvla-oft',
        towers=_towers(report, config, shapes, film),
        decoder=_decoder(report, config),
        film=film is not None,
        template='openvla',
        convention=row.name,
        **constants,
    )
    policy = report.override(policy, overrides)
    for name in ('chunk', 'cameras', 'norm', 'control_hz'):
        source = 'given' if name in overrides else f'platform {platform}: no file holds it'
        report.fact(name, getattr(policy, name), source)
    fc1 = shapes.get('projector.fc1.weight')
    if fc1 is not None and fc1[0] != policy.projector[0]:
        raise CheckpointError(f'{report.path}: projector.fc1 has {fc1[0]} rows, not 4 x channels')
    return policy


def _dim(source: TensorDict | None, name: str, axis: int) -> int | None:
    if source is None or name not in source.tensors:
        return None
    return source.tensors[name].shape[axis]


def _decoder(report: Report, config: Mapping[str, Any]) -> DecoderConfig:
    text = config.get('text_config') or {}
    if not isinstance(text, Mapping):
        raise CheckpointError(f'{report.path / "config.json"}: text_config must be an object')
    check_rope(report, text, 'text_config.')
    known = LLAMA2_7B
    eps = text.get('rms_norm_eps', 1e-6)
    if eps != 1e-6:
        report.problem(
            f'{report.path / "config.json"}: text_config.rms_norm_eps is {eps}, OpenVLA-OFT is '
            'fine-tuned and run with 1e-6'
        )
    heads = text.get('num_attention_heads', known.heads)
    values = {
        'width': text.get('hidden_size', known.width),
        'depth': text.get('num_hidden_layers', known.depth),
        'heads': heads,
        'kv_heads': text.get('num_key_value_heads', heads),
        'mlp': text.get('intermediate_size', known.mlp),
        'vocab': text.get('vocab_size', known.vocab),
        'rope_theta': text.get('rope_theta', known.rope_theta),
        'rms_norm_eps': eps,
    }
    source = f'{report.path / "config.json"}: text_config'
    decoder = validation.parse(DecoderConfig, values, ConfigError, source)
    source = 'config.json' if 'hidden_size' in text else 'Llama defaults (config.json is silent)'
    report.fact('decoder', f'{decoder.depth} x {decoder.width}', source)
    report.fact('rms_norm_eps', eps, source)
    return decoder


def _towers(
    report: Report, config: Mapping[str, Any], shapes: Shapes, film: TensorDict | None
) -> tuple[VisionConfig, ...]:
    names = config.get('timm_model_ids')
    if names != list(TIMM):
        raise CheckpointError(
            f'{report.path / "config.json"}: timm_model_ids is {names}, expected {list(TIMM)} in '
            'this order'
        )
    means, stds, source = normalisation(report.path)
    report.fact('image statistics', means, source)
    if film is not None:
        shapes = {f'vision_backbone.{n}': info.shape for n, info in film.tensors.items()}
    towers = []
    for i, name in enumerate(names):
        tower, where = timm_sizes(shapes, f'vision_backbone.{TOWERS[i]}', TIMM[name])
        report.fact(f'tower {i}', f'{tower.name} {tower.depth} x {tower.width}', where)
        towers.append(
            VisionConfig(**{**tower.__dict__, 'mean': tuple(means[i]), 'std': tuple(stds[i])})
        )
    return tuple(towers)


def normalisation(folder: Path) -> tuple[list[list[float]], list[list[float]], str]:
    """Means and stds per tower. ``tvf_normalize_params`` overrides ``means``/``stds``, as on
    load.
    """
    path = folder / 'preprocessor_config.json'
    data = read_json(path)
    params = data.get('tvf_normalize_params')
    try:
        if params:
            found, source = [(p['mean'], p['std']) for p in params], 'tvf_normalize_params'
        else:
            found, source = list(zip(data['means'], data['stds'], strict=True)), 'means and stds'
        means, stds = (
            [[float(x) for x in row] for row in rows] for rows in zip(*found, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{path}: must hold tvf_normalize_params, or means and stds, three numbers a tower'
        ) from error
    return means, stds, f'{path.name}, {source}'


def _candidates(folder: Path, component: str) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if component in path.name and 'checkpoint' in path.name and path.suffix == '.pt'
    )


def _component(report: Report, component: str) -> TensorDict | None:
    files = _candidates(report.path, component)
    if len(files) > 1:
        report.problem(
            f'{report.path}: {len(files)} files for {component} '
            f'({", ".join(file.name for file in files)}); keep one'
        )
        return None
    if not files:
        return None
    try:
        loaded = TensorDict(files[0])
    except CheckpointError as error:
        report.problem(str(error))
        return None
    report.fact(component, human(files[0].stat().st_size), files[0].name)
    return loaded
