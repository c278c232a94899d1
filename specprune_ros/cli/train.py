"""``specprune train``: record expert episodes and train the policy of the simulated arm."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'train', help='train the policy of the simulated arm from nothing to weights'
    )
    parser.add_argument('--out', type=Path, default=Path('out/policy'), help='checkpoint folder')
    parser.add_argument(
        '--work',
        type=Path,
        default=Path('out/train'),
        help='folder of data shards and training state; a second run goes on from it',
    )
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:N or auto')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (0: PyTorch chooses)')
    parser.add_argument(
        '--processes', type=int, default=0, help='processes that record data (0: one per core)'
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='FIELD=VALUE',
        help='change a field of the recipe or of a stage, e.g. seed=1 or slow.steps=500; may be '
        'given again',
    )
    parser.add_argument(
        '--episodes',
        type=int,
        default=20,
        help='closed-loop episodes per family and control at the end (0: none)',
    )
    parser.add_argument('--json', type=Path, help='write the results here')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from specprune_ros.cli.output import write_json
    from specprune_ros.sim.arm.render_backend import NoRenderer, choose
    from specprune_ros.sim.training.export import RECIPE
    from specprune_ros.sim.training.train import TrainError

    try:
        recipe = change(args.set)
        choose()
        device = args.device
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if args.threads:
            torch.set_num_threads(args.threads)
        before, results = None, {}
        for stage in recipe.stages:
            done = args.work / stage.name / 'policy'
            if (done / RECIPE).exists():
                results[stage.name] = results_of(recipe.until(stage), done)
            else:
                record_all(recipe, stage, args.work / 'data' / stage.data, args.processes, before)
                results[stage.name] = train_stage(recipe, stage, args.work, device, before)
            before = done
        args.out.mkdir(parents=True, exist_ok=True)
        for file in before.iterdir():
            shutil.copyfile(file, args.out / file.name)
        if args.episodes:
            results['closed_loop'] = evaluate(args.out, args.episodes)
            note(args.out, {'closed_loop': results['closed_loop']})
    except KeyboardInterrupt:
        print(f'interrupted; the same command goes on from {args.work}', file=sys.stderr)
        return 130
    except (TrainError, NoRenderer, ValueError, OSError) as error:
        print(f'specprune train: {error}', file=sys.stderr)
        return 1
    print(f'weights: {args.out}')
    write_json(args.json, results)
    return 0


def results_of(recipe: Any, done: Path) -> dict[str, Any]:
    """What a stage that is done measured. Raises ``TrainError`` where another recipe made it."""
    from specprune_ros.bounded_files import boundary, read_json
    from specprune_ros.sim.training.export import RECIPE
    from specprune_ros.sim.training.train import TrainError

    with boundary(done / RECIPE, TrainError, 'no record of a training run'):
        record = read_json(done / RECIPE)
        made_by, results = record['recipe_sha256'], dict(record['results'])
    if made_by != recipe.hash:
        raise TrainError(
            f'{done}: was trained by another recipe; give another --work, or delete '
            f'{done.parent} and the stages after it'
        )
    return results


def train_stage(
    recipe: Any, stage: Any, work: Path, device: str, before: Path | None
) -> dict[str, Any]:
    """Train one stage on the weights in ``before`` (``None``: from nothing) and export it."""
    from specprune_ros.sim.training.dataset import data_hash, load_shard, shard_path
    from specprune_ros.sim.training.export import RECIPE, export
    from specprune_ros.sim.training.grow import grown
    from specprune_ros.sim.training.recipe import policy_config, tokenizer
    from specprune_ros.sim.training.train import Frames, Trainer, fit

    data = [
        [load_shard(shard_path(work / 'data' / name, i)) for i in range(count)]
        for name, count in recipe.data(stage)
    ]
    own, others = data[0], [shard for shards in data[1:] for shard in shards]
    held_out = max(1, len(own) // 40) if len(own) > 1 else 0
    trained = own[: len(own) - held_out] + others
    frames = Frames(trained, recipe, stage)
    print(f'{stage.name}: {len(frames)} frames of {len(trained) * stage.shard_episodes} episodes')
    config = policy_config(recipe, stage)
    start = None if before is None else grown(before, config, tokenizer(), recipe.seed)
    trainer = Trainer(recipe, frames, device, start)
    state = work / stage.name / 'state.pt'
    state.parent.mkdir(parents=True, exist_ok=True)
    if state.exists():
        trainer.load(state)
        print(f'goes on at step {trainer.done} of {trainer.total} ({state})')
    elif before is not None and (before.parent / 'state.pt').exists():
        trainer.take_head(before.parent / 'state.pt')
    bar = progress_bar(stage.name, trainer.total, trainer.done)
    fit(trainer, state, lambda step, *losses: bar(step + 1, describe(*losses)))
    bar(trainer.total, 'done', True)
    results: dict[str, Any] = {}
    if before is not None:
        results['began_with'] = json.loads((before / RECIPE).read_text())['weights_sha256']
    if held_out:
        check = trainer.validate(Frames(own[-held_out:], recipe, stage, frames.statistics))
        results['validation'] = {k: round(v, 4) for k, v in check.items()}
        print('held-out frames: ' + ', '.join(f'{k} {v:.4f}' for k, v in check.items()))
    export(trainer, work / stage.name / 'policy', data_hash(own + others), results)
    return results


def note(folder: Path, results: dict[str, Any]) -> None:
    """Add ``results`` to the record beside the weights."""
    from specprune_ros.bench.host_info import as_json
    from specprune_ros.sim.training.export import RECIPE

    record = json.loads((folder / RECIPE).read_text(encoding='utf-8'))
    (folder / RECIPE).write_text(
        as_json({**record, 'results': record['results'] | results}), encoding='utf-8'
    )


def change(settings: list[str]) -> Any:
    """The default recipe with ``FIELD=VALUE`` and ``STAGE.FIELD=VALUE`` changes.

    Raises ``ValueError`` naming a bad one.
    """
    from dataclasses import replace

    from specprune_ros.sim.training.recipe import Recipe

    recipe = Recipe()
    for setting in settings:
        name, equals, text = setting.partition('=')
        stage, dot, field = name.rpartition('.')
        stages = {each.name: each for each in recipe.stages}
        if dot and stage not in stages:
            raise ValueError(f'--set {setting}: {stage!r} is none of the stages {sorted(stages)}')
        owner = stages[stage] if dot else recipe
        known = [f for f, value in vars(owner).items() if isinstance(value, int | float | str)]
        if not equals or field not in known:
            raise ValueError(f'--set {setting}: want FIELD=VALUE with one of {sorted(known)}')
        kind = type(getattr(owner, field))
        try:
            changed = replace(owner, **{field: kind(text)})
        except ValueError as error:
            raise ValueError(f'--set {setting}: want a {kind.__name__} ({error})') from error
        if dot:
            stages[stage] = changed
            recipe = replace(recipe, stages=tuple(stages.values()))
        else:
            recipe = changed
    return recipe


def record_all(
    recipe: Any, stage: Any, folder: Path, processes: int, before: Path | None = None
) -> None:
    """Record the missing shards in several processes. Raises ``TrainError`` where those that are
    there were recorded otherwise.
    """
    from functools import partial

    from torch import set_num_threads

    from specprune_ros.sim.processes import in_processes
    from specprune_ros.sim.training.dataset import record, shard_path
    from specprune_ros.sim.training.train import TrainError

    made_by, recording = folder / 'recording.sha256', recipe.recording(stage)
    if any(folder.glob('shard_*.npz')) or made_by.exists():
        if not made_by.is_file() or made_by.read_text(encoding='utf-8').strip() != recording:
            raise TrainError(
                f'{folder}: was recorded by another recipe; give another --work, or delete it'
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        made_by.write_text(recording + '\n', encoding='utf-8')
    missing = [[i] for i in range(stage.shards) if not shard_path(folder, i).exists()]
    if not missing:
        return
    bar = progress_bar('recording', len(missing))
    one = partial(record, recipe, stage, folder, before=before)
    # One thread each: threads of several processes waiting for each other on the same cores took
    # four times as long.
    recorded = in_processes(one, missing, processes, set_num_threads, 1)
    for done, _ in enumerate(recorded, start=1):
        bar(done, f'{done * stage.shard_episodes} episodes', done == len(missing))


def evaluate(folder: Path, episodes: int) -> list[dict[str, Any]]:
    """Closed-loop success of the exported policy on tuning seeds, printed and returned."""
    from dataclasses import asdict

    from specprune_ros.policy.build import build_policy
    from specprune_ros.pruning.params import PruningParams
    from specprune_ros.sim.arm.world import World
    from specprune_ros.sim.evaluation.evaluate import TUNING_SEED, run_row
    from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
    from specprune_ros.sim.evaluation.settings import CONTROLS
    from specprune_ros.sim.tasks.tasks import FAMILIES

    runner = PolicyRunner(build_policy(str(folder), params=PruningParams(pruner='dense')))
    world = World()
    rows = []
    try:
        for family in FAMILIES:
            for control in CONTROLS:
                seeds = range(TUNING_SEED, TUNING_SEED + episodes)
                row = run_row(world, runner, family, control, seeds)
                print(
                    f'{family:5s} {control:13s} {row.successes:4d}/{row.episodes} '
                    f'({row.low:.0%}..{row.high:.0%})'
                )
                rows.append({k: v for k, v in asdict(row).items() if k != 'outcomes'})
    finally:
        world.close()
    return rows


def describe(action: float, patch: float, hit: float) -> str:
    """The losses of a step for the progress bar."""
    if math.isnan(action):
        return f'grounding: patch {patch:.3f}, found {hit:.0%}'
    return f'action {action:.4f}, patch {patch:.3f}, found {hit:.0%}'


def progress_bar(title: str, total: int, first: int = 0) -> Any:
    """A function ``(done, text, last=False)`` that draws a progress bar on stderr."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=first, desc=title, mininterval=1.0, file=sys.stderr)

    def draw(done: int, text: str, last: bool = False) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)
        if last:
            bar.close()

    return draw
