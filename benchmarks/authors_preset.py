"""How much of what the authors' pruning code keeps the preset ``authors`` keeps, difference by
difference (docs/reference/pruners.md).

    python benchmarks/authors_preset.py --packs FOLDER --json FILE

``FOLDER`` holds the packs ``specprune`` and ``oft_libero`` as folders. The differences are taken
away one after the other, and the overlap (Jaccard) of the kept sets with ``c2.kept`` is averaged
over all boundaries of all queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from record import write

from specprune_ros.models.load import LoadedModel, load_policy_model
from specprune_ros.pruning import specprune
from specprune_ros.pruning.budget import Budgets
from specprune_ros.pruning.interface import Mode, QueryContext, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.similarity import patch_cosine

AUTHORS = PruningParams.preset_of('authors')
OURS = specprune.budgets


@dataclass(frozen=True)
class Made:
    """What is made as theirs: ``similarity`` of the first query (``none``, ``itself``), or theirs
    in all (``theirs``); rows and budgets as functions.
    """

    name: str
    params: PruningParams = AUTHORS
    similarity: str = 'none'
    layout: Callable[[TokenLayout], TokenLayout] = lambda layout: layout
    budgets: Callable[[Budgets, Mode], Budgets] = lambda found, mode: found
    against: str = 'c2'


def kept(loaded: LoadedModel, data: dict[str, np.ndarray], made: Made) -> list[list[float]]:
    """The overlap at each boundary of each query."""
    specprune.make_plan.cache_clear()
    specprune.budgets = lambda layout, p, mode: made.budgets(OURS(layout, p, mode), mode)
    prompt = loaded.tokenizer.encode(str(data['instruction']))
    scaled = loaded.statistics.normalise_proprio(data['proprio'])
    proprio = torch.from_numpy(scaled.astype(np.float32))
    carry: dict[str, torch.Tensor] = {}
    overlaps = []
    for query in range(sum(name.endswith('.now') for name in data)):
        now, then = (torch.from_numpy(data[f'{query}.{name}']) for name in ('now', 'then'))
        embedded = loaded.model.embed(loaded.preprocessor.normalise(now), prompt, proprio)
        similarity = None
        if made.similarity == 'theirs':
            similarity = torch.full((embedded.layout.vision_tokens,), -1.0)
            similarity[torch.from_numpy(data[f'{query}.c2.static'])] = 1.0
        elif query or made.similarity == 'itself':
            similarity = patch_cosine(now, then, loaded.config.grid)
        layout = made.layout(embedded.layout)
        mode = Mode.FINE if data[f'{query}.precise'] else Mode.COARSE
        context = QueryContext(layout, made.params, mode, similarity, carry)
        run = specprune.SpecPrune().begin(context)
        loaded.model.decoder(embedded.hidden, layout, run, read=embedded.layout.action)
        outcome = run.finish()
        carry = outcome.carry
        row = []
        for boundary, ids in outcome.kept:
            theirs = data.get(f'{query}.{made.against}.kept.{boundary}')
            if theirs is not None:
                ours, theirs = set(ids.tolist()), set(theirs.tolist())
                row.append(round(len(ours & theirs) / len(ours | theirs), 3))
        overlaps.append(row)
    specprune.budgets = OURS
    return overlaps


def with_rows(layout: TokenLayout, first: int, prompt_length: int) -> TokenLayout:
    """C2's rows: the prompt after ten ids, and (``text``) the fixed 522 to 546 of V_global."""
    local = tuple(range(523, first + prompt_length - 1))
    return replace(layout, prompt=local, text=tuple(range(522, 547)))


def settings(prompt_length: int) -> list[Made]:
    """From the preset as it is to C2, difference by difference."""
    local = AUTHORS.replace(rows_local='prompt')
    low = local.replace(keep_min=59)
    first = 513  # row of the first prompt id after BOS, less one

    def rows(layout: TokenLayout) -> TokenLayout:
        return with_rows(layout, first, prompt_length)

    def local_rows(layout: TokenLayout) -> TokenLayout:
        return replace(rows(layout), text=layout.text)

    def late(layout: TokenLayout) -> TokenLayout:
        return replace(rows(layout), action=tuple(row + 1 for row in layout.action))

    def nothing_more(found: Budgets, mode: Mode) -> Budgets:
        return replace(found, dynamic=(0, 0))  # theirs are all those that changed

    def globals_too(found: Budgets, mode: Mode) -> Budgets:
        return replace(found, dynamic=(0, 0), globals=(12, 9) if mode is Mode.COARSE else (7, 6))

    same = {'similarity': 'theirs', 'budgets': nothing_more}
    more = {'similarity': 'theirs', 'budgets': globals_too}
    return [
        Made("the package's rows and budgets", against='c2_package_rows'),
        Made('as it is'),
        Made('first query', similarity='itself'),
        Made('order of equal cosines', **same),
        Made('rows of V_local', local, layout=local_rows, **same),
        Made('rows of V_global', local, layout=rows, **same),
        Made('K_G', local, layout=rows, **more),
        Made('floor', low, layout=rows, **more),
        Made('rows of the layer-level score', low, layout=late, **more),
    ]


@torch.inference_mode()
def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--packs', type=Path, required=True)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    loaded = load_policy_model(args.packs / 'oft_libero' / 'checkpoint', progress=False)
    with np.load(args.packs / 'specprune' / 'cases.npz', allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    rows = []
    for made in settings(int(data['prompt_length'])):
        overlaps = kept(loaded, data, made)
        flat = [value for row in overlaps for value in row]
        rows.append({'made as theirs': made.name, 'mean': round(sum(flat) / len(flat), 3)})
        rows[-1] |= {'against': made.against, 'boundaries': overlaps}
        print(f'{made.name}: {rows[-1]["mean"]:.3f}')
    write(args.json, {'overlap': rows})


if __name__ == '__main__':
    main()
