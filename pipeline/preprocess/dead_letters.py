"""Dead letters: refused rows with file, line, reason and text. Workers spill them; one file holds all of them in the end."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from clsd.features.paths import as_path
from clsd.pipeline.preprocess.input_splits import InputSplit
from clsd.pipeline.preprocess.spill import Spilled, load, spill
from clsd.pipeline.shared.files import atomic_file

#: The file, in the data set's directory.
DEAD_LETTERS = "dead_letters.jsonl.gz"
#: Dead letters that are spilled together.
TOGETHER = 50_000


@dataclass(frozen=True)
class DeadLetter:
    """A row that does not parse or breaks the schema.

    Args:
        path: the log file.
        line: line in the file, from 1.
        reason: why it was refused.
        text: the row.
    """

    path: str
    line: int
    reason: str
    text: str


_AS_ARROW = pa.schema(
    [(each.name, pa.int64() if each.name == "line" else pa.large_string()) for each in fields(DeadLetter)]
)


@dataclass(frozen=True, order=True)
class DeadLetterBatch:
    """Some spilled dead letters of an input split; they sort in the order of the logs.

    Args:
        input_split: index of the input split.
        number: index of this batch within the input split.
        spilled: the spilled dead letters.
    """

    input_split: int
    number: int
    spilled: Spilled = field(compare=False)


class DeadLetterWriter:
    """Takes the dead letters of an input split one by one, and spills many at a time.

    Args:
        directory: the job's directory.
        input_split: the input split.
    """

    def __init__(self, directory: str, input_split: InputSplit) -> None:
        self._directory, self._input_split = directory, input_split
        self._waiting: list[DeadLetter] = []
        self._spilled = self._last = 0

    def take(self, dead_letter: DeadLetter) -> Iterator[DeadLetterBatch]:
        """Take one; gives the batch of earlier ones when they are spilled."""
        # In a block, rows that do not parse come after those that break the schema: a block must not be cut.
        if len(self._waiting) >= TOGETHER and dead_letter.line > self._last:
            yield from self.rest()
        self._waiting.append(dead_letter)
        self._last = max(self._last, dead_letter.line)

    def rest(self) -> Iterator[DeadLetterBatch]:
        """Spill the waiting ones, sorted by line."""
        self._waiting.sort(key=lambda dead_letter: (dead_letter.line, dead_letter.reason, dead_letter.text))
        batch = pa.RecordBatch.from_pylist([asdict(dead_letter) for dead_letter in self._waiting], _AS_ARROW)
        self._waiting = []
        for spilled in spill(self._directory, [batch]):
            yield DeadLetterBatch(self._input_split.index, self._spilled, spilled)
            self._spilled += 1


def write_dead_letters(directory: str, element: tuple[Any, Iterable[DeadLetterBatch]]) -> dict[str, Any]:
    """Write all dead letters into one compressed file, in the order of the logs, with at most :data:`TOGETHER` in memory.

    Returns:
        ``rows``, ``reasons`` (rows by reason), and the ``first`` dead letter.
    """
    reasons: Counter[str] = Counter()
    first: dict[str, Any] | None = None
    with (
        atomic_file(as_path(directory) / DEAD_LETTERS) as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        for dead_letters in sorted(element[1]):
            for dead_letter in load(dead_letters.spilled).to_pylist():
                first = first or dead_letter
                reasons[dead_letter["reason"]] += 1
                file.write((json.dumps(dead_letter, ensure_ascii=False) + "\n").encode())
    return {"rows": reasons.total(), "reasons": dict(sorted(reasons.items())), "first": first}
