"""DB-OFT (Dexbotic) folders: one safetensors model with its action head inside,
``norm_stats.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specprune_ros.models.checkpoint import layout, shards
from specprune_ros.models.checkpoint.files import CheckpointError, read_json
from specprune_ros.models.checkpoint.report import Report
from specprune_ros.models.checkpoint.vision_sizes import clip_sizes
from specprune_ros.models.config import DecoderConfig, PolicyConfig
from specprune_ros.models.presets import CLIP_L_336, DB_OFT_7B

TOWER = 'model.mm_vision_tower.vision_tower.vision_model.'


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for a DB-OFT folder."""
    where = report.path / 'config.json'
    kind = config.get('action_model_type', 'DiT')
    if kind == 'DiT':
        report.problem(
            f'{where}: action_model_type is DiT: one action needs a pass of the language model '
            'per diffusion step, so single-pass pruning does not apply; use a Linear checkpoint'
        )
        return
    if kind != 'Linear':
        report.problem(f'{where}: action_model_type is {kind!r}, only Linear is supported')
        return
    for name, expected in (('mm_projector_type', 'mlp2x_gelu'), ('chat_template', 'dexbotic')):
        if config.get(name, expected) != expected:
            report.problem(f'{where}: {name} is {config[name]!r}, only {expected!r} is supported')
    tower_name = str(config.get('mm_vision_tower', 'openai/clip-vit-large-patch14-336'))
    if 'clip' not in tower_name.lower():
        report.problem(
            f'{where}: mm_vision_tower is {tower_name!r}, only CLIP towers are supported'
        )
        return
    if config.get('image_aspect_ratio') not in (None, 'pad'):
        report.problem(
            f'{where}: image_aspect_ratio is {config["image_aspect_ratio"]!r}, only pad is '
            'supported'
        )
    found = shards.find(report.path, report)
    tower, source = clip_sizes(found.shapes, TOWER, CLIP_L_336)
    report.fact('tower 0', f'{tower.name} {tower.depth} x {tower.width}', source)
    overrides = dict(overrides)
    overrides.pop('platform', None)
    sizes = {
        'action_dim': int(config.get('action_dim', 7)),
        'chunk': int(config.get('chunk_size', 16)),
        'proprio_dim': int(config.get('proprio_dim', 7)) if config.get('use_proprio') else 0,
    }
    for name, value in sizes.items():
        report.fact(name, overrides.get(name, value), 'config.json')
    cameras = overrides.get('cameras', DB_OFT_7B.cameras)
    report.fact(
        'cameras', cameras, 'given' if 'cameras' in overrides else 'one image: no file says it'
    )
    policy = PolicyConfig(
        **{
            'family': 'db-oft',
            'towers': (tower,),
            'decoder': _decoder(report, config),
            'cameras': cameras,
            'control_hz': DB_OFT_7B.control_hz,
            'norm': 'min_max',
            'action': DB_OFT_7B.action,
            'resize': DB_OFT_7B.resize,
            'center_crop': False,
            'jpeg': False,
            'template': 'dexbotic',
            'stop_id': 0,
            **sizes,
            **overrides,
        }
    )
    report.config = policy
    entries = layout.db_oft_model(policy)
    found.report_absent(report, entries, 2)
    report.compare(entries, found.present, found.absent_names)


def _decoder(report: Report, config: Mapping[str, Any]) -> DecoderConfig:
    where = report.path / 'config.json'
    llm = config.get('llm_config')
    if not isinstance(llm, Mapping):
        raise CheckpointError(f'{where}: llm_config is missing')
    kind = llm.get('model_type')
    if kind not in ('qwen2', 'llama'):
        raise CheckpointError(f'{where}: llm_config.model_type is {kind!r}; qwen2 or llama wanted')
    names = {
        'width': 'hidden_size',
        'depth': 'num_hidden_layers',
        'heads': 'num_attention_heads',
        'mlp': 'intermediate_size',
        'vocab': 'vocab_size',
    }
    absent = sorted(name for name in names.values() if name not in llm)
    if absent:
        raise CheckpointError(f'{where}: llm_config lacks {", ".join(absent)}')
    rope = llm.get('rope_theta') or (llm.get('rope_parameters') or {}).get('rope_theta', 10000.0)
    decoder = DecoderConfig(
        **{ours: int(llm[theirs]) for ours, theirs in names.items()},
        kv_heads=int(llm.get('num_key_value_heads', llm['num_attention_heads'])),
        rope_theta=float(rope),
        rms_norm_eps=float(llm.get('rms_norm_eps', 1e-6)),
        causal=True,
        qkv_bias=kind == 'qwen2',
    )
    report.fact('decoder', f'{kind} {decoder.depth} x {decoder.width}', 'config.json, llm_config')
    report.fact('rms_norm_eps', decoder.rms_norm_eps, 'config.json, llm_config')
    report.fact('rope_theta', decoder.rope_theta, 'config.json, llm_config')
    return decoder


def statistics(report: Report) -> dict[str, Any]:
    """``norm_stats.json`` as robots; without the file, -1..1."""
    path = report.path / 'norm_stats.json'
    if not path.exists():
        report.notes.append('norm_stats.json is absent: actions are scaled to -1..1')
        dim = report.config.action_dim if report.config else 7
        return {'default': {'action': {'min': [-1.0] * dim, 'max': [1.0] * dim}}}
    data = read_json(path)
    data = data.get('norm_stats', data)
    if not isinstance(data, Mapping):
        raise CheckpointError(f'{path}: norm_stats must be an object')
    if 'min' in data and 'max' in data:
        data = {'default': data}
    robots = {}
    for name, entry in data.items():
        if isinstance(entry, Mapping):
            robots[name] = entry if 'action' in entry else {'action': entry}
    return robots
