"""Functions of this package that one query enters, from the camera callback to the chunk.

    python benchmarks/hops.py [--seconds 20] [--list] [--json FILE]

(after `. scripts/env.sh`). The node runs in a process of its own under ``sys.setprofile``; two
cameras and an arm are published from here. A function counts once per query: the subtree of the
last image's callback, the inference thread from its wait for images to the event it hands over,
and the publisher's thread until the chunk is published.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = '/specprune_ros/'
INNER = ('models/', 'pruning/')  # the arithmetic; the rest brings tensors there and back


class Recorder:
    """A profile function that keeps the functions entered by each query."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._image: list[CodeType] | None = None  # of the callback under way
        self._last_image: list[CodeType] = []
        self._query: list[CodeType] = []
        self._handed: list[list[CodeType]] = []  # of queries that wait to be published
        self._publish: list[CodeType] | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """See ``sys.setprofile``."""
        code = frame.f_code
        if event == 'return' and code.co_name == '_on_image' and self._image is not None:
            self._last_image, self._image = self._image, None
        if event != 'call':
            return
        name, thread = code.co_name, threading.current_thread().name
        caller = frame.f_back.f_code if frame.f_back else None
        if PACKAGE not in code.co_filename or '/msg/' in code.co_filename:
            if name == 'publish' and caller and caller.co_name == '_publish':
                self._published()
            return
        if name == '_on_image':
            self._image = []
        if thread == 'inference':
            if name == 'wait':
                self._query = []
            self._query.append(code)
            if name == 'put' and 'publisher' in code.co_filename:
                self._handed.append([*self._last_image, *self._query])
        elif self._image is not None:
            self._image.append(code)
        elif name == '_publish':  # of an event; one without a result publishes nothing
            self._publish = [*(self._handed.pop(0) if self._handed else ()), code]
        elif self._publish is not None:
            self._publish.append(code)

    def _published(self) -> None:
        """The first message of a query leaves: the chunk."""
        if self._publish is not None:
            made = {
                (c.co_filename.rpartition(PACKAGE)[2], getattr(c, 'co_qualname', c.co_name))
                for c in self._publish
                if not c.co_name.endswith('comp>') and c.co_name != '<genexpr>'
            }
            with self._path.open('a') as file:
                file.write(json.dumps(sorted(made)) + '\n')
        self._publish = None


def node(path: Path) -> int:
    """The policy node under the recorder, in this process."""
    from specprune_ros.nodes.policy_node.node import main as run

    recorder = Recorder(path)
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    return run()


def main() -> int:
    """Run and report."""
    if sys.argv[1:2] == ['--node']:
        path = Path(sys.argv[2])
        del sys.argv[1:3]
        return node(path)
    from harness import Cameras, Run, add_common
    from record import write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, seconds=20.0)
    parser.add_argument('--list', action='store_true', help='print every function')
    args = parser.parse_args()
    log = Path(tempfile.mkdtemp()) / 'queries.jsonl'
    program = [sys.executable, __file__, '--node', str(log)]
    with Run({'query_rate': 2.0, 'speed.source': 'joint_states'}, program) as run:
        Cameras(run, width=224, height=224, rate=10.0, state_ticks=3).play(args.seconds)
    queries = [json.loads(line) for line in log.read_text().splitlines()][2:]
    if not queries:
        raise SystemExit(f'no query in {args.seconds:g} s: take more --seconds')
    counts = Counter(len(query) for query in queries)
    typical = next(q for q in queries if len(q) == statistics.median_low(map(len, queries)))
    outer = [f for f in typical if not f[0].startswith(INNER)]
    rooms = Counter(file.partition('/')[0] for file, _ in typical)
    if args.list:
        print('\n'.join(f'{file}: {name}' for file, name in typical))
    print(
        f'{len(queries)} queries, functions entered: {dict(sorted(counts.items()))}; typical '
        f'{len(typical)} in {len({f for f, _ in typical})} files, of which {len(outer)} are not '
        f'in models/ or pruning/; {dict(rooms)}'
    )
    write(
        args.json,
        {
            'benchmark': 'hops',
            'queries': len(queries),
            'functions': len(typical),
            'outside_models_and_pruning': len(outer),
            'files': len({f for f, _ in typical}),
            'rooms': dict(rooms),
        },
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
