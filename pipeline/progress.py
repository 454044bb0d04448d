"""What a person sees while something takes long."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

#: Everything for people goes to standard error; standard output is for what a script reads.
console = Console(stderr=True)

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def add(what: str, n: int) -> None:
    """Count something that workers **in this process** did; on other engines see the Beam metrics of the same names."""
    with _lock:
        _counts[what] += n


@contextmanager
def watching(title: str) -> Iterator[None]:
    """A line with the counts and their rate while the block runs."""
    with _lock:
        _counts.clear()
    started, done = time.monotonic(), threading.Event()

    def line() -> str:
        elapsed = time.monotonic() - started
        with _lock:
            counts = dict(_counts)
        shown = "  ".join(f"{what} {n:,}" for what, n in counts.items() if n)
        rate = f"  {counts['rows read'] / elapsed:,.0f} rows/s" if counts.get("rows read") and elapsed > 1 else ""
        return f"[bold]{title}[/bold]  {elapsed:.0f} s  {shown}{rate}"

    with console.status(line()) as status:

        def refresh() -> None:
            while not done.wait(0.5):
                status.update(line())

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
    console.print(line(), highlight=False, soft_wrap=True)
