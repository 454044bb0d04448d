"""Messages and progress for people, on standard error."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unicodedata import category

from rich.console import Console
from rich.text import Text

from clsd.features.paths import as_path
from clsd.pipeline.shared.files import atomic_file, files_in, make_directory

#: Unicode's controls of writing direction; a name with them would rearrange the line.
_DIRECTIONS = {*map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def printable(text: str) -> str:
    """Text without control characters, line breaks apart: a value of a log must not colour or rearrange a terminal or a picture.

    >>> printable("caf\u00e9 \x1b[31m")
    'caf\u00e9 \\\\x1b[31m'
    """
    return "".join(
        c.encode("unicode_escape").decode() if (category(c) in ("Cc", "Cs") and c != "\n") or c in _DIRECTIONS else c
        for c in text
    )


class _LiteralConsole(Console):
    """A console that prints every string as it stands: a name may hold brackets or escape sequences."""

    def __init__(self) -> None:
        super().__init__(stderr=True, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Part of the console: strings that are printed, cells of tables included, come here."""
        return super().render_str(printable(text), **options)


#: Everything for people goes to standard error; standard output is for scripts.
console: Console = _LiteralConsole()


def say(text: str | Text, style: str | None = None) -> None:
    """Print a line for people; it is not folded, so that a log keeps it in one."""
    console.print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning for people."""
    say(styled(("warning", "yellow"), f" {text}"))


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of parts, each as it stands: plain text, or text with its style."""
    return Text.assemble(*((printable(p), "") if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))


#: Counts from which progress is computed; they are not shown.
PLANNED, READ = "input splits planned", "input splits read"
#: The stages of preprocessing after reading, in order: the count of each, and its name.
PREPROCESSING = (("rows counted", "counting"), ("rows encoded", "encoding"), ("rows written", "writing"))
#: Directory, within the job's, where workers in other processes report their counts; and the seconds between reports.
REPORTS, _EVERY = ".progress", 1.0

_counts: Counter[str] = Counter()
_lock = threading.Lock()
#: The job that this process runs.
_launched = ""


class _Report:
    """The counts of a worker for its job, in a file."""

    def __init__(self, job: str) -> None:
        self._file = as_path(job) / REPORTS / f"{uuid.uuid4().hex}.json"
        self._counts: Counter[str] = Counter()
        self._due = 0.0

    def add(self, what: str, n: int) -> None:
        self._counts[what] += n
        if time.monotonic() < self._due:
            return
        # Never fail here: the job's own writes will name what is wrong.
        with suppress(Exception), atomic_file(self._file) as file:
            file.write(json.dumps(self._counts).encode())
        self._due = time.monotonic() + _EVERY


_reports: dict[str, _Report] = {}


def add(what: str, n: int, job: str = "") -> None:
    """Add to a count.

    Args:
        what: the name that is shown.
        n: the number to add.
        job: directory of the job. A worker in another process than the launching one reports its counts there, on any engine.
            If an engine retries something, both tries are counted.
    """
    with _lock:
        if not job or job == _launched:
            _counts[what] += n
            return
        if job not in _reports:
            _reports.clear()  # reports of an earlier job
            _reports[job] = _Report(job)
        _reports[job].add(what, n)


def say_there_already() -> None:
    """Say that a stage reuses an earlier result."""
    say("    already done with the same settings and data", style="dim")


def settle(totals: dict[str, int]) -> None:
    """Replace all counts by those of a finished job."""
    with _lock:
        _counts.clear()
        _counts.update(totals)


@contextmanager
def launching(job: str) -> Iterator[None]:
    """Collect the counts of a job's workers, in this process and in others, while the block runs.

    Args:
        job: the directory that the workers share.
    """
    global _launched
    # Only here: a worker that outlives its job must not create it again.
    make_directory(as_path(job) / REPORTS)
    before, _launched = _launched, job
    try:
        yield
    finally:
        _launched = before


def reported(job: str) -> Counter[str]:
    """Sums of the counts that workers in other processes reported."""
    result: Counter[str] = Counter()
    directory = as_path(job) / REPORTS
    with suppress(Exception):  # the store is slow, or the job has just ended
        for name in files_in(directory):
            if name.endswith(".json") and not name.startswith("."):
                result.update(json.loads((directory / name).read_bytes()))
    return result


def stage_of(counts: dict[str, int], elapsed: float, stages: Sequence[tuple[str, str]] = PREPROCESSING) -> str:
    """The current stage of a job, and about how many seconds are left; "" if nothing is planned.

    The estimate takes all stages to cost the same, and extrapolates the number of rows from the input splits that were read.
    """
    if not counts.get(PLANNED):
        return ""
    read = counts.get(READ, 0) / counts[PLANNED]
    rows = counts.get("rows read", 0) / read if read else 0.0
    shares = [read, *(min(counts.get(what, 0) / rows, 1.0) if rows else 0.0 for what, _ in stages)]
    names = ["reading", *(name for _, name in stages)]
    stage = next((name for name, share in zip(names, shares, strict=True) if share < 1.0), "finishing")
    share = sum(shares) / len(shares)
    left = f", about {elapsed * (1 - share) / share:.0f} s left" if 0.05 < share < 1.0 else ""
    return f"  {stage}{left}"


@contextmanager
def watching(title: str, stages: Sequence[tuple[str, str]] = PREPROCESSING) -> Iterator[None]:
    """Show a line with the counts and their rate while the block runs."""
    with _lock:
        _counts.clear()
    started, done = time.monotonic(), threading.Event()

    def line() -> Text:
        elapsed = time.monotonic() - started
        elsewhere = reported(_launched) if _launched else Counter()
        with _lock:
            counts = dict(_counts + elsewhere)
        shown = "  ".join(f"{what} {n:,}" for what, n in counts.items() if n and what not in (PLANNED, READ))
        rate = f"  {counts['rows read'] / elapsed:,.0f} rows/s" if counts.get("rows read") and elapsed > 1 else ""
        stage = "" if done.is_set() else stage_of(counts, elapsed, stages)
        return styled((title, "bold"), f"  {elapsed:.0f} s  {shown}{rate}", (stage, "dim"))

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
    say(line())
