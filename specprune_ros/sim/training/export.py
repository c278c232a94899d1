"""From a training run to a checkpoint folder, and the check that the two belong together."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch

from specprune_ros.bounded_files import boundary, file_hash, read_json, replacing
from specprune_ros.models.load import save_policy_model
from specprune_ros.sim.training.recipe import Recipe, tokenizer
from specprune_ros.sim.training.train import Trainer, TrainError

SHIPPED = Path(__file__).parents[1] / 'weights'
RECIPE = 'recipe.json'


def revision() -> str:
    """The git revision of this checkout, with ``+`` when files differ; empty without git."""
    root = Path(__file__).parents[3]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(root), *arguments], capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip() if done.returncode == 0 else ''

    try:
        head = git('rev-parse', 'HEAD')
        return head + ('+' if head and git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.TimeoutExpired):
        return ''


def export(trainer: Trainer, folder: Path, data: str, results: dict[str, object]) -> Path:
    """Write the averaged weights (float16) with configuration, statistics, tokenizer and recipe.

    ``data`` is the hash of the training frames; ``results`` are numbers worth keeping beside the
    weights. Returns the folder.
    """
    recipe = trainer.recipe.until(trainer.stage)
    save_policy_model(
        folder,
        trainer.averaged(),
        tokenizer(),
        trainer.frames.statistics,
        dtype=torch.float16,
        metadata={'recipe': recipe.hash, 'data': data, 'revision': revision()},
    )
    record = {
        'recipe': recipe.to_dict(),
        'recipe_sha256': recipe.hash,
        'data_sha256': data,
        'weights_sha256': file_hash(folder / 'model.safetensors'),
        'revision': revision(),
        'torch': torch.__version__,
        'steps_done': trainer.done,
        'results': results,
    }
    with replacing(folder / RECIPE) as part:
        part.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    return folder


def check_shipped(folder: Path = SHIPPED) -> dict[str, object]:
    """The record beside a trained policy, after checking that weights and recipe fit it.

    Raises :class:`TrainError` naming what does not.
    """
    with boundary(folder / RECIPE, TrainError, 'no record of a training run'):
        record = read_json(folder / RECIPE)
        recipe = Recipe.from_dict(record['recipe'])
        hashes = recipe.hash, record['recipe_sha256'], record['weights_sha256']
    if hashes[0] != hashes[1]:
        raise TrainError(f'{folder / RECIPE}: the recipe was changed after training')
    weights = folder / 'model.safetensors'
    try:
        found = file_hash(weights)
    except OSError as error:
        raise TrainError(f'{weights}: cannot be read ({error.strerror})') from error
    if found != record['weights_sha256']:
        raise TrainError(f'{weights}: not the file that was trained (hash differs); restore it')
    return record
