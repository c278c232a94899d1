"""The real policy node whose device fails on request: ``python faulty_node.py FOLDER ...``.

While FOLDER has a file of the name, the decoder's next pass raises what PyTorch raises:

- ``refused``: ``torch.AcceleratorError`` for this call alone;
- ``lost``: the same, and everything that requests memory fails too, as in a process whose context
  is gone (a kernel that reads where it must not does that);
- ``full``: a true ``RuntimeError`` of the allocator;
- ``hangs``: nothing, it just does not return;
- ``eager``: nothing fails, but the engine says that it could not capture what it was to capture.
"""

import sys
import time
from pathlib import Path

import torch

FOLDER = Path(sys.argv.pop(1))
LOST = (
    'CUDA error: an illegal memory access was encountered\n'
    'CUDA kernel errors might be asynchronously reported at some other API call'
)


def fail(folder=FOLDER):
    """Raise what the folder requests."""
    if (folder / 'lost').exists() or (folder / 'refused').exists():
        raise torch.AcceleratorError(LOST)
    while (folder / 'hangs').exists():
        time.sleep(0.05)
    if (folder / 'full').exists():
        torch.empty(2**50, dtype=torch.uint8)


def main() -> int:
    """The node, with the faults in its decoder and in ``torch.zeros``."""
    from specprune_ros.models.decoder import Decoder
    from specprune_ros.nodes.policy_node import node as specprune_node
    from specprune_ros.policy.engine.eager import EagerEngine

    forward, zeros = Decoder.forward, torch.zeros

    def decode(*args, **kwargs):
        fail()
        return forward(*args, **kwargs)

    def make(*args, **kwargs):
        if (FOLDER / 'lost').exists():
            raise torch.AcceleratorError(LOST)
        return zeros(*args, **kwargs)

    def trouble(engine):
        return 'no CUDA graph: the driver has none' if (FOLDER / 'eager').exists() else ''

    Decoder.forward, torch.zeros, EagerEngine.trouble = decode, make, property(trouble)
    return specprune_node.main()


if __name__ == '__main__':
    raise SystemExit(main())
