"""Threads of a worker. Columns and blocks of text are independent, and Arrow and NumPy release Python's lock."""

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
    """A number of threads; with one, everything runs in the caller's thread.

    Args:
        number: threads of a worker's process, shared by its stages.
        ahead: items per thread that are processed in advance.
    """

    number: int = 1
    ahead: int = 8

    def map(self, work: Callable[[From], To], items: Iterable[From]) -> Iterator[To]:
        """Like ``map``, in order. The caller's thread reads ``items``, not far ahead.

        >>> list(Threads(2).map(abs, [-1, 2, -3]))
        [1, 2, 3]
        """
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


#: One thread: everything runs in the caller's thread.
ONE = Threads()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
