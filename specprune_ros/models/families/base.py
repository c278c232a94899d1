"""One query as the decoder takes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specprune_ros.pruning.interface import TokenLayout


@dataclass(frozen=True)
class Embedded:
    """Input rows of one query and where each kind sits.

    ``hidden``: ``[1, L, D]``. ``vision``: ``[V, D]`` projected vision tokens. ``text``: ``[P, D]``
    input embeddings of the prompt rows, in the order of ``layout.prompt``.
    """

    hidden: Tensor
    layout: TokenLayout
    vision: Tensor
    text: Tensor
