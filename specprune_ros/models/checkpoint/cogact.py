"""CogACT folders: ``config.json``, statistics, and one file in ``checkpoints/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from specprune_ros.models import conventions
from specprune_ros.models.checkpoint import tensor_names
from specprune_ros.models.checkpoint.dexbotic import dit_sizes
from specprune_ros.models.checkpoint.files import CheckpointError, TensorDict
from specprune_ros.models.checkpoint.report import Report, entry_bytes
from specprune_ros.models.checkpoint.vision_sizes import count_layers, timm_sizes
from specprune_ros.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DecoderConfig,
    PolicyConfig,
)
from specprune_ros.models.presets import COGACT_7B, DINOV2_L, SIGLIP_SO400M

PARTS = ('vision_backbone', 'projector', 'llm_backbone', 'action_model')
BASE = 'prism-dinosiglip-224px+7b'
HEAD_DIM = 128  # of Llama 2 7B, the base of every CogACT


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for a CogACT folder."""
    base = config['vla'].get('base_vlm')
    if base != BASE:
        report.problem(
            f'{report.path / "config.json"}: vla.base_vlm is {base!r}, only {BASE!r} is supported'
        )
    eps = config.get('rms_norm_eps', 1e-5)
    if eps != 1e-5:
        report.problem(
            f'{report.path / "config.json"}: rms_norm_eps is {eps}; '
            'CogACT keeps the 1e-5 of Llama 2'
        )
    files = sorted((report.path / 'checkpoints').glob('*.pt'))
    if len(files) > 1:
        report.problem(f'{report.path / "checkpoints"}: holds {len(files)} .pt files; keep one')
        return
    if not files:
        entries = tensor_names.cogact_model(COGACT_7B)
        report.lacks('checkpoints/<step>.pt', entry_bytes(entries, entries, 4))
        return
    source = TensorDict(files[0], partial(_tensors, report, files[0]))
    shapes = {name: info.shape for name, info in source.tensors.items()}
    policy = _config(report, shapes, files[0], overrides)
    report.config = policy
    report.compare(tensor_names.cogact_model(policy), [source], set())


def _tensors(report: Report, path: Path, data: Mapping[str, Any]) -> dict[str, Tensor]:
    model = data.get('model')
    if not isinstance(model, Mapping) or not set(PARTS) <= set(model):
        raise CheckpointError(f'{path}: must hold "model" with {", ".join(PARTS)}')
    others = sorted(set(model) - set(PARTS))
    note = f'{path.name}: not used: {", ".join(map(str, others))}'
    if others and note not in report.notes:  # again, once the values are read
        report.notes.append(note)
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        if not isinstance(model[part], Mapping):
            raise CheckpointError(f'{path}: model.{part} must be a state dict')
        tensors |= {f'{part}.{name}': value for name, value in model[part].items()}
    return tensors


def _config(
    report: Report,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    overrides: Mapping[str, Any],
) -> PolicyConfig:
    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f'{path}: {name!r} is missing')
        return shapes[name]

    known = (replace(DINOV2_L, mean=IMAGENET_MEAN, std=IMAGENET_STD), SIGLIP_SO400M)
    towers = []
    for i, name in enumerate(('dino_featurizer.', 'siglip_featurizer.')):
        tower, where = timm_sizes(shapes, f'vision_backbone.{name}', known[i])
        report.fact(f'tower {i}', f'{tower.name} {tower.depth} x {tower.width}', where)
        towers.append(tower)
    llm, net = 'llm_backbone.llm.model.', 'action_model.net.'
    vocab, width = shape(f'{llm}embed_tokens.weight')
    decoder = DecoderConfig(
        width=width,
        depth=count_layers(shapes, f'{llm}layers.'),
        heads=width // HEAD_DIM,
        mlp=shape(f'{llm}layers.0.mlp.gate_proj.weight')[0],
        vocab=vocab,
        rms_norm_eps=1e-5,
        causal=True,
    )
    report.fact('decoder', f'{decoder.depth} x {decoder.width}', f'{path.name}, tensor shapes')
    report.fact('rms_norm_eps', 1e-5, 'Llama 2, as CogACT keeps it')
    action_dim = shape(f'{net}x_embedder.linear.weight')[1]
    dit = dit_sizes(shapes, net)
    chunk = shape(f'{net}positional_embedding')[0] - 1
    for name, value in (('action_dim', action_dim), ('chunk', chunk), ('proprio_dim', 0)):
        report.fact(name, value, f'{path.name}, tensor shapes')
    report.fact('action head', f'DiT {dit.depth} x {dit.width}', f'{path.name}, tensor shapes')
    given = overrides.get('platform')
    platform = given or conventions.from_statistics(report.requested_key)
    row = conventions.find(platform, 'cogact')
    fields: dict[str, Any] = {}
    if row is not None:
        report.follow(row, 'given' if given else f'the statistics {report.requested_key}')
        fields = {**row.fields, 'convention': row.name}
    elif given:
        raise CheckpointError(
            f'platform {given!r} has no row for cogact; there are '
            f'{", ".join(conventions.platforms("cogact"))}'
        )
    if row is None and action_dim == len(COGACT_7B.action.dims):
        report.guess = 'unknown'
    if action_dim != len(COGACT_7B.action.dims):
        dims = tuple(f'action_{i + 1}' for i in range(action_dim))
        fields['action'] = conventions.plain_action(dims)
    policy = replace(
        COGACT_7B,
        towers=tuple(towers),
        decoder=decoder,
        projector=(),
        action_dim=action_dim,
        chunk=chunk,
        dit=dit,
        **fields,
    )
    return report.override(policy, overrides)
