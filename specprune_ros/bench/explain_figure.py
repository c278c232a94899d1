"""The image of one query: cameras with kept patches, scores, and tokens per layer."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from specprune_ros.policy.overlay import COLOURS, OTHER
from specprune_ros.policy.overlay import draw as draw_overlay
from specprune_ros.policy.result import Overlay

if TYPE_CHECKING:
    from specprune_ros.bench.explain import Explanation

INK, PALE, GROUND = '#1f2933', '#7b8794', '#ffffff'
SAVED, SPENT = '#d9e2ec', '#2f6f9f'
NAMES = {
    'global': 'global: the previous query attended here',
    'dynamic': 'dynamic: the image changed here',
    'local': 'local: the first layers look here',
    'fill': 'filled up to the bucket',
}
TITLES = {
    'local': 'score in the first layers',
    'fused': 'fused score (fills the bucket)',
    'global': "score in the deep layers,\nthe next query's prior",
    'prior': 'score in the previous query',
    'layer': 'running score at the last prune',
    'attention': 'attention score',
    'action': 'action attention',
}
LETTERS = 7.0  # of the instruction on an inch
HEATS = ('local', 'attention', 'action', 'global', 'layer')


def draw(explanation: Explanation, path: Path) -> None:
    """Write the image; the format follows the file's ending (PNG, SVG, PDF)."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    cameras = len(explanation.cameras)
    columns = _columns(explanation)
    places = max(4, len(columns))  # the lower row needs room for its text
    with plt.rc_context({'font.family': 'DejaVu Sans', 'text.color': INK, 'axes.labelcolor': INK}):
        width = 2.55 * places + 0.4
        figure = plt.figure(figsize=(width, 2.62 * cameras + 4.0), facecolor=GROUND)
        grid = figure.add_gridspec(
            cameras + 1,
            places,
            height_ratios=[*([1.0] * cameras), 0.86],
            left=0.75 / width,
            right=0.985,
            top=1 - 1.15 / (2.62 * cameras + 4.0),
            bottom=0.085,
            wspace=0.05,
            hspace=0.16,
        )
        for row in range(cameras):
            for column, (title, image) in enumerate(columns):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(image[row], interpolation='nearest')
                axes.set_xticks([])
                axes.set_yticks([])
                for side in axes.spines.values():
                    side.set_visible(False)
                if row == 0:
                    axes.set_title(title, fontsize=9.5, color=INK, pad=6)
                if column == 0:
                    axes.set_ylabel(explanation.cameras[row].replace('_', ' '), fontsize=9.5)
        split = places - 2
        _tokens(figure.add_subplot(grid[cameras, :split]), explanation)
        _legend(figure.add_subplot(grid[cameras, split:]), explanation)
        left, height = 0.75 / width, 2.62 * cameras + 4.0
        said = shorten(f'“{explanation.instruction}”', round(LETTERS * width), placeholder=' …”')
        figure.text(left, 1 - 0.3 / height, said, fontsize=14, weight='bold', va='center')
        figure.text(
            left, 1 - 0.58 / height, explanation.title, fontsize=10, color=PALE, va='center'
        )
        figure.savefig(path, dpi=110, facecolor=GROUND)
        plt.close(figure)


def _columns(explanation: Explanation) -> list[tuple[str, np.ndarray]]:
    """Titles and images ``[cameras, height, width, 3]`` of the upper rows."""
    columns = [('what the policy sees', _zoomed(explanation.images))]
    first, last = _first(explanation), _last(explanation)
    if first is not None:
        columns.append((_caption(first, explanation.tokens), _kept(explanation, first)))
    if last is not None and last is not first:
        columns.append((_caption(last, explanation.tokens), _kept(explanation, last)))
    known = [name for name in HEATS if name in explanation.scores]
    own = [name for name in explanation.scores if name not in TITLES]
    columns += [
        (TITLES.get(name, fill(name.replace('_', ' '), 28)), _heat(explanation, score))
        for name in [*own, *known][:3]
        if (score := explanation.scores[name]).shape == (explanation.tokens,)
    ]
    if explanation.similarity is not None:
        columns.append(
            ('change since the reference', _heat(explanation, 1 - explanation.similarity, 0.03))
        )
    return columns


def _whole(explanation: Explanation) -> list[tuple[int, np.ndarray]]:
    """Boundaries behind which patches of the images are left; merged tokens have no patch."""
    return [kept for kept in explanation.kept if (kept[1] >= 0).any()]


def _first(explanation: Explanation) -> tuple[int, np.ndarray] | None:
    """The boundary of the first full choice (the authors' extra prune after layer 1 is not)."""
    whole = _whole(explanation)
    extra = len(whole) > 1 and whole[0][0] == 1 and whole[1][0] == 2
    return whole[1 if extra else 0] if whole else None


def _last(explanation: Explanation) -> tuple[int, np.ndarray] | None:
    whole = _whole(explanation)
    return whole[-1] if whole else None


def _caption(kept: tuple[int, np.ndarray], total: int) -> str:
    boundary, ids = kept
    place = f'after layer {boundary}' if boundary else 'before layer 1'
    return f'left {place}: {len(ids)} of {total}'


def _zoomed(images: np.ndarray, zoom: int = 2) -> np.ndarray:
    return images.repeat(zoom, axis=1).repeat(zoom, axis=2)


def _kept(explanation: Explanation, kept: tuple[int, np.ndarray]) -> np.ndarray:
    members = np.zeros(explanation.tokens, bool)
    members[kept[1][kept[1] >= 0]] = True
    overlay = Overlay(explanation.images, explanation.grid, explanation.sets, members)
    return np.stack([draw_overlay(overlay, c, zoom=2) for c in range(len(explanation.cameras))])


def _heat(explanation: Explanation, score: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """A score over the greyed image, from its 5th to its 99th percentile.

    ``floor``: the smallest range that is shown in full brightness.
    """
    from matplotlib import colormaps

    rows, columns = explanation.grid
    low = float(np.percentile(score, 5))
    span = max(float(np.percentile(score, 99)) - low, floor, 1e-12)
    share = np.clip((score - low) / span, 0, 1).reshape(len(explanation.cameras), rows, columns)
    images = _zoomed(explanation.images).astype(np.float64)
    height, width = images.shape[1] // rows, images.shape[2] // columns
    share = share.repeat(height, axis=1).repeat(width, axis=2)
    images = images[:, : share.shape[1], : share.shape[2]]
    grey = images.mean(-1, keepdims=True).repeat(3, -1) * 0.45
    colour = 255 * colormaps['inferno'](share)[..., :3]
    strength = 0.25 + 0.65 * share[..., None]
    return np.clip(grey * (1 - strength) + colour * strength, 0, 255).astype(np.uint8)


def _tokens(axes: Any, explanation: Explanation) -> None:
    """Vision tokens in every layer, as bars; what was saved is pale."""
    depth = len(explanation.layer_tokens)
    layers = np.arange(1, depth + 1)
    axes.bar(layers, [explanation.tokens] * depth, width=0.86, color=SAVED)
    axes.bar(layers, explanation.layer_tokens, width=0.86, color=SPENT)
    axes.set_xlim(0.4, depth + 0.6)
    axes.set_ylim(0, explanation.tokens * 1.16)
    step = max(1, depth // 16)
    axes.set_xticks(layers[step - 1 :: step] if step > 1 else layers)
    axes.set_xlabel('decoder layer', fontsize=9)
    axes.set_ylabel('vision tokens', fontsize=9)
    axes.tick_params(labelsize=8, colors=PALE, length=0)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.spines['bottom'].set_color(SAVED)
    previous = None
    for layer, tokens in zip(layers, explanation.layer_tokens, strict=True):
        if tokens != previous and tokens:
            axes.text(
                layer,
                tokens + explanation.tokens * 0.025,
                str(tokens),
                ha='center',
                fontsize=8,
                color=INK,
            )
        previous = tokens


def _legend(axes: Any, explanation: Explanation) -> None:
    """Sets with their counts, and what the query cost."""
    axes.axis('off')
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    y = 0.97
    if explanation.sets:
        axes.text(0.06, y, 'chosen by', fontsize=9, weight='bold', va='top')
    union = np.zeros(explanation.tokens, bool)
    for members in explanation.sets.values():
        union |= members
    entries = [(name, int(members.sum())) for name, members in explanation.sets.items()]
    first = _first(explanation)
    if first is not None and explanation.sets:
        ids = first[1]
        extra = int((~union[ids[ids >= 0]]).sum())
        if extra:
            entries.append(('fill', extra))
    for name, number in entries:
        y -= 0.125
        colour = [part / 255 for part in COLOURS.get(name, OTHER)]
        axes.add_patch(_box(axes, 0.06, y - 0.062, colour))
        axes.text(0.135, y - 0.03, str(number), fontsize=9, va='center', weight='bold')
        axes.text(0.235, y - 0.03, NAMES.get(name, name), fontsize=9, va='center')
    y -= 0.2
    lines = [
        f'{explanation.flops_ratio:.0%} of the operations of a dense query',
        f'{explanation.decoder_ratio:.0%} in the language model alone',
    ]
    if explanation.recall is not None:
        lines.append(f'the prior named {explanation.recall:.0%} of what this query attended to')
    lines += [_short(note) for note in explanation.notes[:3]]
    for number, line in enumerate(lines):
        axes.text(
            0.06,
            y - 0.1 * number,
            line,
            fontsize=8.5,
            color=INK if number < 3 else PALE,
            va='center',
        )


def _short(note: str, length: int = 64) -> str:
    return note if len(note) <= length else note[: length - 1].rstrip() + '…'


def _box(axes: Any, x: float, y: float, colour: list[float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.05, 0.068, color=colour, transform=axes.transAxes)
