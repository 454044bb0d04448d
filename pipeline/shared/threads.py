"""Several cores for one worker: columns and blocks of text are independent, and Arrow and NumPy let go of Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

From = TypeVar("From")
To = TypeVar("To")


@dataclass(frozen=True)
class Threads:
    """As many threads; with one, everything runs where it is called.

    Args:
        number: of threads that a worker's process has, shared by its stages.
        ahead: items a thread that are done before they are asked for.
    """

    number: int = 1
    ahead: int = 8

    def map(self, work: Callable[[From], To], items: Iterable[From]) -> Iterator[To]:
        """What ``work`` makes of each item, in order. ``items`` is read by the caller's thread, and not far ahead."""
        if self.number == 1:
            yield from map(work, items)
            return
        waiting: deque[Future[To]] = deque()
        try:
            for item in items:
                waiting.append(_pool(self.number).submit(work, item))
                if len(waiting) >= self.number * self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="clsd")


#: One thread: everything runs where it is called.
ONE = Threads()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
