"""Work in several processes, which end with the one that started them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from specprune_ros.policy.build import usable_cores

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    begin: Callable[..., None],
    *arguments: Any,
) -> Iterator[Result]:
    """``function`` of each item, in the order in which they are ready.

    ``processes`` of 0 is one per core that this process may use. Each calls ``begin(*arguments)``
    first. What ``function`` raises is raised here, and what had not begun then is dropped, as
    where nobody reads on.
    """
    workers = min(processes or usable_cores(), len(items))
    if not workers:
        return
    with ProcessPoolExecutor(workers, get_context('spawn'), _begin, (begin, arguments)) as pool:
        try:
            for job in as_completed([pool.submit(function, item) for item in items]):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # A parent that is killed outright cannot stop its workers, and they would wait for work for
    # ever.
    Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
