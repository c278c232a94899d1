"""The golden packs, and what Dexbotic's policies compute at 7B, as docs/how-to/checkpoints.md has
them.

    python benchmarks/parity.py --packs FOLDER --json benchmarks/results/parity.json

``FOLDER`` holds packs as folders or as ``.tar.xz`` (default: those of the repository). Operations
are counted from schedules, on no weights.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from record import write

from specprune_ros.models.build import empty
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.flops import count, dense_flops, scheduled_work
from specprune_ros.models.presets import default_tokenizer, preset
from specprune_ros.models.tokens import PromptTokenizer
from specprune_ros.policy import parity
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner

INSTRUCTION = 'put the carrot on the plate'


def packs(folder: Path) -> list[dict]:
    """Every pack with a checkpoint, run."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        unpacked = [parity.unpack(a, Path(place)) for a in sorted(folder.glob('*.tar.xz'))]
        for pack in (*unpacked, *sorted(folder.iterdir())):
            if not (pack / 'checkpoint').is_dir() or pack.name.startswith('pi0'):
                continue
            found = parity.run(pack)
            print(found, flush=True)
            rows.append(asdict(found) | {'passed': found.passed})
    return rows


def operations(name: str) -> list[dict]:
    """FLOPs per query of a 7B preset: dense and pruned, and everything run again in every step."""
    config = replace(preset(name), template='openvla')
    tokenizer = PromptTokenizer(default_tokenizer(), 'openvla', config.max_prompt)
    layout = empty(config).layout(tokenizer.encode(INSTRUCTION))
    dense = dense_flops(config, layout)
    rows = [{'model': name, 'pruner': 'dense', 'tflop': dense.flops / 1e12, 'ratio': 1.0}]
    if config.ddim is not None:
        whole = layout.length + 1 + config.action_tokens
        again = [LayerRows(whole, whole, whole)] * layout.depth
        # All of the prefix once more in every step, instead of its keys and values.
        linear = replace(config, ddim=None)
        steps = config.ddim.steps
        decoder = steps * count(linear, again).decoder
        total = dense.vision + dense.projector + decoder + steps * count(linear, again).head
        rows.append(
            {'model': name, 'pruner': 'dense, recomputed', 'tflop': 2 * total / 1e12}
            | {'ratio': total / dense.macs}
        )
    for method in ('specprune', 'fastv'):
        params = PruningParams().replace(pruner=method, free_tokens=False)
        schedule = pruner(method).plan(layout, params, Mode.COARSE)
        work, observed = scheduled_work(layout, schedule, schedule.prune)
        used = count(config, work, observed)
        rows.append(
            {'model': name, 'pruner': method, 'tflop': used.flops / 1e12}
            | {'ratio': used.macs / dense.macs}
        )
    return rows


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--packs', type=Path, default=parity.FOLDER)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    rows = [row for name in ('db-oft-dit-7b', 'db-cogact-7b') for row in operations(name)]
    for row in rows:
        print(f'{row["model"]}, {row["pruner"]}: {row["tflop"]:.2f} TFLOP, {row["ratio"]:.2f}')
    write(args.json, {'packs': packs(args.packs), 'operations': rows})


if __name__ == '__main__':
    main()
