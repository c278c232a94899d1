"""``specprune verify``: the golden packs of the checkpoint's family, then the checkpoint: one
observation, dense, keeping everything, and pruned.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprune_ros.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from specprune_ros.models.config import PolicyConfig
    from specprune_ros.models.load import LoadedModel
    from specprune_ros.policy.forward_step import StepDetails
    from specprune_ros.policy.observation import Observation
    from specprune_ros.policy.parity import Parity
    from specprune_ros.policy.policy import Policy
    from specprune_ros.pruning.interface import PrunePass, QueryContext


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'verify',
        parents=[options.device(), options.checkpoint()],
        help='run the golden packs of a family, then a checkpoint: dense and pruned',
    )
    parser.add_argument('path', type=Path, help='local folder of a downloaded checkpoint')
    parser.add_argument(
        '--observation',
        type=Path,
        help='NPZ file: images (uint8 [height, width, 3], in camera order), state, '
        'task_description; default: seeded noise',
    )
    parser.add_argument('--instruction', help='instruction; default that of the observation')
    parser.add_argument(
        '--packs', type=Path, help='folder of golden packs; default: those of the sources'
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file')
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when all is finite and keep-all equals dense, 1 when not, 2 on bad input."""
    from specprune_ros.cli.output import working, write_json
    from specprune_ros.policy.build import build_policy

    try:
        policy = build_policy(
            path=str(args.path),
            device=args.device,
            dtype=args.dtype,
            unnorm_key=args.unnorm_key or '',
            platform=args.platform or '',
            progress=True,
        )
        observation = read_observation(policy.config, args.observation, args.instruction)
        packs = run_packs(policy.config.family, args.packs)
        with working('three queries: dense, keeping all, pruned'):
            numbers = verify(policy, observation)
    except (ValueError, RuntimeError) as error:
        print(f'specprune verify: {error}')
        return 2
    numbers['packs'] = [asdict(pack) | {'passed': pack.passed} for pack in packs]
    numbers['ok'] &= all(pack.passed for pack in packs)
    show(policy, numbers)
    write_json(args.json, numbers)
    return 0 if numbers['ok'] else 1


def run_packs(family: str, folder: Path | None) -> list[Parity]:
    """Run the golden packs of a family and print each; their numbers are the authors' own."""
    from specprune_ros.policy import parity, parity_flow

    folder = folder or parity.FOLDER
    found = []
    for pack in chain(parity.of_family(family, folder), parity_flow.of_family(family, folder)):
        print(f'golden pack {pack}', flush=True)
        found.append(pack)
    if not found:
        print(f'golden packs: none of {family} in {folder}; a clone of the sources has them')
    return found


def read_observation(
    config: PolicyConfig, path: Path | None, instruction: str | None
) -> Observation:
    """The observation of a file, or seeded noise. Raises ``ValueError`` naming what is wrong."""
    import numpy as np

    from specprune_ros.policy.observation import CameraImage, Observation

    images, state, task = [], np.zeros(config.proprio_dim), 'pick up the bowl'
    if path is None:
        rng = np.random.default_rng(0)
        size = config.image_size
        images = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in config.cameras]
    else:
        from specprune_ros.bounded_files import boundary, read_npz

        with boundary(f'--observation {path}', ValueError, 'cannot be read'):
            arrays = read_npz(path)
        images = [a for a in arrays.values() if a.dtype == np.uint8 and a.ndim == 3]
        state = np.asarray(arrays.get('state', state), np.float64)
        task = str(arrays.get('task_description', task))
        if len(images) < len(config.cameras):
            raise ValueError(
                f'--observation {path}: holds {len(images)} images, the model takes '
                f'{len(config.cameras)}: {", ".join(config.cameras)}'
            )
    shown = dict(zip(config.cameras, images, strict=False))
    return Observation(
        images={name: CameraImage(image, 0) for name, image in shown.items()},
        instruction=instruction or task,
        proprio=state if config.proprio_dim else None,
    )


def verify(policy: Policy, observation: Observation) -> dict[str, Any]:
    """Actions of a dense query, keep-all against dense, and pruned against dense."""
    from dataclasses import replace

    from specprune_ros.policy.observation import CameraImage
    from specprune_ros.pruning.controller import SpeedSample

    if policy.loaded.statistics.clip_actions:
        # Such actions are clipped before they are scaled.
        policy.max_normalised_action = float('inf')
    first = policy.act(observation, details=True)
    same = keep_all_difference(policy.loaded, first.details)
    policy.measure_deviation = True
    step = round(policy.step_dt * policy.config.chunk * 1e9)
    later = {
        name: CameraImage(image.pixels, image.stamp_ns + step)
        for name, image in observation.images.items()
    }
    # A fast end effector: the controller then prunes as hard as it ever does.
    fast = SpeedSample(v_t=1.0, v_r=1.0, dz=0.0, source='verify')
    pruned = policy.act(replace(observation, images=later, speed=fast))
    span = _span(first.actions)
    return {
        'ok': bool(same == 0.0),
        'instruction': observation.instruction,
        'dims': list(policy.config.action.dims),
        'unnorm_key': policy.loaded.statistics.key,
        'actions': first.actions.tolist(),
        'keep_all_difference': same,
        'pruner': pruned.pruner,
        'mode': pruned.mode.value,
        'tokens_in': pruned.tokens.total,
        'tokens_mean': pruned.tokens.mean,
        'flops_ratio': pruned.flops_ratio,
        'deviation': pruned.action_deviation.tolist(),
        'spread': span.tolist(),
        'seconds_dense': first.times.total,
        'seconds_pruned': pruned.times.total,
        'device': first.device,
        'notes': [*policy.loaded.notes, *pruned.notes],
    }


def keep_all_difference(loaded: LoadedModel, details: StepDetails) -> float:
    """Largest difference of normalised actions between dense and a pass that drops nothing."""
    import torch

    from specprune_ros.policy.forward_step import forward_step
    from specprune_ros.pruning.interface import PruneSchedule
    from specprune_ros.pruning.rivals.base import BasePrunePass, KeepAll

    def actions(begin: Callable[[QueryContext], PrunePass]) -> torch.Tensor:
        given = forward_step(loaded, details.key, details.inputs, begin=begin)
        return given.packed[: -len(given.metadata.sets) - 3]  # without the counts

    with torch.inference_mode():
        dense = actions(lambda context: BasePrunePass(context, PruneSchedule()))
        kept = actions(lambda context: KeepAll(context.layout))
    return float((dense - kept).abs().max())


def _span(actions: np.ndarray) -> np.ndarray:
    return actions.max(axis=0) - actions.min(axis=0)


def show(policy: Policy, numbers: dict[str, Any]) -> None:
    """Print the result for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = Console(soft_wrap=True)
    out.width = max(out.width, 14 * (len(numbers['dims']) + 1))
    out.print(f'[bold]{escape(numbers["instruction"])}[/] on {numbers["device"]}')
    table = Table('step', *numbers['dims'], title='actions, dense, in action units')
    for i, row in enumerate(numbers['actions']):
        table.add_row(str(i), *(f'{value:+.4f}' for value in row))
    table.add_section()
    table.add_row('deviation', *(f'{value:.4f}' for value in numbers['deviation']))
    out.print(table)
    same = numbers['keep_all_difference']
    verdict = 'NOT equal: do not use' if same else 'equal, as it must be'
    out.print(f'keep-all against dense: {same:g} ({verdict})')
    out.print(
        f'{numbers["pruner"]} ({numbers["mode"]}): {numbers["tokens_mean"]:.0f} of '
        f'{numbers["tokens_in"]} vision tokens, {numbers["flops_ratio"]:.0%} of the operations; '
        f'largest deviation {max(numbers["deviation"]):.4f}'
    )
    out.print(
        f'{numbers["seconds_dense"] * 1e3:.0f} ms dense, '
        f'{numbers["seconds_pruned"] * 1e3:.0f} ms pruned (first runs, not a benchmark)'
    )
    for note in dict.fromkeys(numbers['notes']):
        out.print(f'note: {escape(note)}')
