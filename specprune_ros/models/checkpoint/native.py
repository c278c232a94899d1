"""This package's own format: safetensors, config.json, tokenizer.json, dataset_statistics.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from specprune_ros.bounded_files import replacing
from specprune_ros.models.build import empty
from specprune_ros.models.checkpoint.files import CheckpointError, SafetensorsFile
from specprune_ros.models.checkpoint.report import Report, human
from specprune_ros.models.checkpoint.tensor_names import Entry, Slot
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.statistics import Statistics

FORMAT, VERSION = 'specprune_ros', 1
WEIGHTS = 'model.safetensors'


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for a folder of our own format."""
    where = report.path / 'config.json'
    if config.get('version') != VERSION:
        report.problem(
            f'{where}: version {config.get("version")}, this release reads version {VERSION}'
        )
        return
    policy = report.override(PolicyConfig.from_dict(config.get('policy', {})), overrides)
    report.config, report.reported = policy, 'config.json'
    for name in ('action_dim', 'proprio_dim', 'chunk', 'cameras', 'control_hz', 'norm'):
        report.fact(name, getattr(policy, name), 'given' if name in overrides else 'config.json')
    entries = {
        name: Entry(tuple(parameter.shape), (Slot(name),))
        for name, parameter in empty(policy).named_parameters()
    }
    path = report.path / WEIGHTS
    if not path.exists():
        report.lacks(WEIGHTS, sum(4 * torch.Size(e.shape).numel() for e in entries.values()))
        return
    report.compare(entries, [SafetensorsFile(path)], set())


def save_policy_model(
    folder: Path | str,
    model: nn.Module,
    tokenizer: Tokenizer,
    statistics: Statistics,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a policy network as a folder that ``load_policy_model`` reads.

    ``dtype`` is that of the stored weights (default: as they are). ``metadata`` goes into
    config.json. Files are written beside their places and moved when whole, so an interrupted or
    failed write leaves what was there. Raises ``CheckpointError`` where it cannot be written, as
    on a full disk.
    """
    folder = Path(folder)
    tensors = {
        name: parameter.detach().to('cpu', dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    config = {
        'format': FORMAT,
        'version': VERSION,
        'policy': model.config.to_dict(),
        'metadata': dict(metadata or {}),
    }
    writers: dict[str, Callable[[Path], Any]] = {
        WEIGHTS: lambda path: save_file(tensors, path),
        'tokenizer.json': lambda path: path.write_text(tokenizer.to_str(), encoding='utf-8'),
        'dataset_statistics.json': lambda path: path.write_text(
            json.dumps(statistics.to_json(), indent=1), encoding='utf-8'
        ),
        # Last: a folder without it is not taken for a checkpoint.
        'config.json': lambda path: path.write_text(
            json.dumps(config, indent=1), encoding='utf-8'
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < need + (8 << 20):
            raise OSError(f'{human(free)} free')
        for name, write in writers.items():
            with replacing(folder / name) as part:
                write(part)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f'{folder}: cannot be written ({error}); {human(need)} are needed. Nothing that was '
            'there is damaged: make room or choose another folder'
        ) from error
    return folder
