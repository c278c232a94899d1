"""Which tensors a run reads that it did not make: a captured graph must not outlive them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Collects them while a run happens under it: weights, and constants that caches keep.

    A graph knows addresses only. A constant that a cache lets go of would leave it reading what
    lies there afterwards, without a word; whoever keeps this object keeps them. The caches must be
    full: what a run makes first counts as its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Note what goes in from outside and what comes out."""
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                place = _storage(value)
                if place not in self._made:
                    self.tensors.setdefault(place, value)
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage(value) not in self.tensors:
                self._made.add(_storage(value))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
