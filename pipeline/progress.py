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

#: Counted to know how far a job is, and not shown themselves.
PLANNED, READ = "pieces planned", "pieces read"
#: The stages of preprocessing after reading, in order: what is counted in each, and its name.
_STAGES = (("rows counted", "counting"), ("rows encoded", "encoding"), ("rows written", "writing"))

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def add(what: str, n: int) -> None:
    """Count something that workers **in this process** did; on other engines see the Beam metrics of the same names."""
    with _lock:
        _counts[what] += n


def stage_of(counts: dict[str, int], elapsed: float) -> str:
    """What preprocessing does at the moment, and about how many seconds are left; "" where nothing is planned.

    Reading, counting, encoding and writing are taken to cost alike; how many rows there are is extrapolated from the pieces read.
    """
    if not counts.get(PLANNED):
        return ""
    read = counts.get(READ, 0) / counts[PLANNED]
    rows = counts.get("rows read", 0) / read if read else 0.0
    shares = [read, *(min(counts.get(what, 0) / rows, 1.0) if rows else 0.0 for what, _ in _STAGES)]
    names = ["reading", *(name for _, name in _STAGES)]
    stage = next((name for name, share in zip(names, shares, strict=True) if share < 1.0), "finishing")
    share = sum(shares) / len(shares)
    left = f", about {elapsed * (1 - share) / share:.0f} s left" if 0.05 < share < 1.0 else ""
    return f"  [dim]{stage}{left}[/dim]"


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
        shown = "  ".join(f"{what} {n:,}" for what, n in counts.items() if n and what not in (PLANNED, READ))
        rate = f"  {counts['rows read'] / elapsed:,.0f} rows/s" if counts.get("rows read") and elapsed > 1 else ""
        stage = "" if done.is_set() else stage_of(counts, elapsed)
        return f"[bold]{title}[/bold]  {elapsed:.0f} s  {shown}{rate}{stage}"

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
