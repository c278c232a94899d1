"""Golden packs: a tiny checkpoint, inputs, and what its authors' own code made of them.

A pack is a folder with ``checkpoint/`` and ``cases.npz`` (its README.md tells). :func:`run` loads
the checkpoint through the public loader, gives :meth:`Policy.act` the same in float32, dense, and
compares. Packs lie in ``test/data/parity`` of the sources; they are not installed.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.load import inspect_checkpoint, load_policy_model
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.params import PruningParams

IMAGES_OFF, ROWS_OFF, ACTIONS_OFF = 2e-3, 1e-3, 2e-3  # what the packs' READMEs allow
FOLDER = Path(__file__).parents[2] / 'test' / 'data' / 'parity'


@dataclass(frozen=True)
class Parity:
    """How far from its authors' numbers a pack is here.

    ``ids``: all token ids equal. ``images_differ`` of ``image_values``, by at most
    ``image_largest`` of 255. ``rows`` (those the head reads), ``normalised`` and ``actions``:
    largest difference over the largest value, the worst case of all; ``None`` where the pack has
    none.
    """

    pack: str
    family: str
    cases: int
    ids: bool
    images_differ: int
    image_values: int
    image_largest: int
    rows: float | None
    normalised: float
    actions: float

    @property
    def passed(self) -> bool:
        """Whether everything is within the tolerance of the packs."""
        return (
            self.ids
            and self.images_differ <= IMAGES_OFF * self.image_values
            and self.image_largest <= 1
            and (self.rows or 0.0) <= ROWS_OFF
            and max(self.normalised, self.actions) <= ACTIONS_OFF
        )

    def __str__(self) -> str:
        rows = '' if self.rows is None else f'rows {self.rows:.1e}, '
        return (
            f'{self.pack} ({self.family}, {self.cases} cases): {rows}normalised '
            f'{self.normalised:.1e}, actions {self.actions:.1e}, {self.images_differ} of '
            f'{self.image_values} image values differ (by {self.image_largest}): '
            f'{"passed" if self.passed else "FAILED"}'
        )


def unpack(archive: Path, place: Path) -> Path:
    """The pack in ``archive`` (``<name>.tar.xz``) as the folder ``place/<name>``.

    Only files are written: Debian 12's Python 3.11.2 has no filter for what an archive may hold.
    Raises ``ValueError`` for one that would lie outside ``place``.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = place / member.name
            if not path.resolve().is_relative_to(place.resolve()):
                raise ValueError(f'{archive}: {member.name!r} lies outside the pack')
            if content := tar.extractfile(member) if member.isfile() else None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    return place / archive.name.removesuffix('.tar.xz')


def of_family(family: str, folder: Path = FOLDER) -> Iterator[Parity]:
    """Run every pack in ``folder`` whose checkpoint is of this family, by name."""
    for archive in sorted(folder.glob('*.tar.xz')):
        with tempfile.TemporaryDirectory() as place:
            pack = unpack(archive, Path(place))
            if inspect_checkpoint(pack / 'checkpoint').family == family:
                yield run(pack)


def largest(ours: np.ndarray | Tensor, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f'shape {a.shape} against {b.shape}')
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def run(pack: Path) -> Parity:
    """Run a pack. Raises what loading and acting raise."""
    with np.load(pack / 'cases.npz', allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    keys = sorted(name.removesuffix('.ids') for name in data if name.endswith('.ids'))
    policy = Policy(
        load_policy_model(pack / 'checkpoint', progress=False), PruningParams(pruner='dense')
    )
    policy.max_normalised_action = float('inf')  # random weights
    compared = [_case(policy, data, key) for key in keys]
    rows = [case.rows for case in compared if case.rows is not None]
    return Parity(
        pack=pack.name,
        family=policy.config.family,
        cases=len(keys),
        ids=all(case.ids for case in compared),
        images_differ=sum(case.images_differ for case in compared),
        image_values=sum(case.image_values for case in compared),
        image_largest=max(case.image_largest for case in compared),
        rows=max(rows, default=None),
        normalised=max(case.normalised for case in compared),
        actions=max(case.actions for case in compared),
    )


def observation(data: dict[str, np.ndarray], key: str) -> Observation:
    """The input of a case."""
    i = int(key)
    images = {
        str(name): CameraImage(data[f'{key}.picture.{name}'], stamp_ns=1)
        for name in data['cameras']
    }
    proprio = np.asarray(data['proprio'][i], np.float64) if 'proprio' in data else None
    return Observation(images, str(data['instructions'][i]), proprio)


@torch.inference_mode()
def _case(policy: Policy, data: dict[str, np.ndarray], key: str) -> Parity:
    loaded, given = policy.loaded, observation(data, key)
    noise = data.get(f'{key}.noise')
    policy.reset('next case')
    actions = policy.act(given, noise=noise).actions

    prompt = loaded.tokenizer.encode(given.instruction)
    seen = loaded.preprocessor([image.pixels for image in given.images.values()])
    off, size, worst = 0, 0, 0
    if f'{key}.seen' in data:
        difference = np.abs(seen.images.numpy().astype(int) - data[f'{key}.seen'])
        off, size, worst = int((difference > 0).sum()), difference.size, int(difference.max())
    proprio = None
    if given.proprio is not None:
        scaled = loaded.statistics.normalise_proprio(given.proprio)
        proprio = torch.from_numpy(np.asarray(scaled, np.float32))
    embedded = loaded.model.embed(seen.tensor, prompt, proprio)
    layout = embedded.layout
    output = loaded.model.decoder(embedded.hidden, layout, read=layout.action)
    rows = None
    if f'{key}.head_rows' in data:
        found = output.rows(*layout.action, layout)[0]
        rows = largest(found, data[f'{key}.head_rows'])
    start = None if noise is None else torch.from_numpy(noise)
    normalised = loaded.model.head(output, layout, start).double().numpy()
    if loaded.statistics.binarise is not None:  # theirs are clipped and binarised
        i = loaded.statistics.binarise
        normalised = normalised.clip(-1, 1)
        normalised[:, i] = normalised[:, i] >= 0.5
    return Parity(
        pack='',
        family='',
        cases=1,
        ids=bool(np.array_equal(prompt.ids, data[f'{key}.ids'])),
        images_differ=off,
        image_values=size,
        image_largest=worst,
        rows=rows,
        normalised=largest(normalised, data[f'{key}.normalised']),
        actions=largest(actions, data[f'{key}.actions']),
    )
