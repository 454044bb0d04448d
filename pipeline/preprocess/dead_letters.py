"""Refused rows, each with its place, its reason and its text: laid down where they are found, and one file of them in the end."""

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
from clsd.pipeline.shared.files import whole_file

#: The file, in the data set's directory.
DEAD_LETTERS = "dead_letters.jsonl.gz"
#: Letters that are laid down together.
TOGETHER = 50_000


@dataclass(frozen=True)
class DeadLetter:
    """A row that broke the schema: a dead letter.

    Args:
        path: the log file.
        line: of the file, from 1.
        reason: why.
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
    """Where some of a piece's dead letters lie; they sort as what they are of.

    Args:
        input_split: its place among all pieces.
        number: of those of one piece, in order.
        materialised: the letters.
    """

    input_split: int
    number: int
    materialised: Spilled = field(compare=False)


class DeadLetterWriter:
    """Takes a piece's dead letters one by one and lays them down many at a time.

    Args:
        directory: the job's.
        input_split: what they are of.
    """

    def __init__(self, directory: str, input_split: InputSplit) -> None:
        self._directory, self._input_split = directory, input_split
        self._waiting: list[DeadLetter] = []
        self._laid = self._last = 0

    def take(self, dead_letter: DeadLetter) -> Iterator[DeadLetterBatch]:
        """One more; gives where those before it lie, when they are laid down."""
        # Of a block those that do not parse come after those that do: it must not be laid down in two parts.
        if len(self._waiting) >= TOGETHER and dead_letter.line > self._last:
            yield from self.rest()
        self._waiting.append(dead_letter)
        self._last = max(self._last, dead_letter.line)

    def rest(self) -> Iterator[DeadLetterBatch]:
        """Lay down those that wait, by their lines: one that does not parse is found before those of its block that do."""
        self._waiting.sort(key=lambda dead_letter: (dead_letter.line, dead_letter.reason, dead_letter.text))
        batch = pa.RecordBatch.from_pylist([asdict(dead_letter) for dead_letter in self._waiting], _AS_ARROW)
        self._waiting = []
        for materialised in spill(self._directory, [batch]):
            yield DeadLetterBatch(self._input_split.index, self._laid, materialised)
            self._laid += 1


def write_dead_letters(directory: str, element: tuple[Any, Iterable[DeadLetterBatch]]) -> dict[str, Any]:
    """Write all of them into one compressed file, in the order of the logs, and no more than :data:`TOGETHER` in memory.

    Returns:
        ``rows``, ``reasons`` (reason -> rows) and the ``first`` of them.
    """
    reasons: Counter[str] = Counter()
    first: dict[str, Any] | None = None
    with (
        whole_file(as_path(directory) / DEAD_LETTERS) as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        for dead_letters in sorted(element[1]):
            for dead_letter in load(dead_letters.materialised).to_pylist():
                first = first or dead_letter
                reasons[dead_letter["reason"]] += 1
                file.write((json.dumps(dead_letter, ensure_ascii=False) + "\n").encode())
    return {"rows": reasons.total(), "reasons": dict(sorted(reasons.items())), "first": first}
