"""Batches that are spilled to disk between two stages of the job.

The engine passes only their paths on, also in its shuffle. A batch is written once, memory-mapped where it is needed,
and never pickled. So the job's memory does not grow with the log, even on an engine that keeps its elements in memory.
Every worker must see the directory.

A bundle that an engine retries is written again under another name; what the engine discards is never read.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa

from clsd.features.paths import as_path, is_remote

#: Directory of spilled batches, within the data set's while it is made.
SPILL = ".spill"
#: Batches start at multiples of this, so that their columns are views of the mapped file.
_ALIGNED = 64


@dataclass(frozen=True)
class Spilled:
    """A spilled batch.

    Args:
        path: the file.
        start, end: byte range of the batch, an Arrow IPC stream.
        rows: number of rows.
    """

    path: str
    start: int
    end: int
    rows: int


def spill(directory: str, batches: Iterable[pa.RecordBatch]) -> list[Spilled]:
    """Write batches to a new file; empty ones are skipped."""
    batches = [batch for batch in batches if batch.num_rows]
    if not batches:
        return []
    path = posixpath.join(directory, SPILL, f"{uuid.uuid4().hex}.arrow")
    result = []
    with as_path(path).open("wb") as file:
        start = 0
        for batch in batches:
            with pa.ipc.new_stream(file, batch.schema) as writer:
                writer.write_batch(batch)
            end = file.tell()
            result.append(Spilled(path, start, end, batch.num_rows))
            file.write(bytes(-end % _ALIGNED))
            start = file.tell()
    return result


def load(spilled: Spilled) -> pa.RecordBatch:
    """Load a batch; the columns of a local one are views of the mapped file."""
    if is_remote(spilled.path):
        path: Any = as_path(spilled.path)
        data = pa.py_buffer(
            path.fs.cat_file(path.path, start=spilled.start, end=spilled.end)
        )  # one request for these bytes
    else:
        with pa.memory_map(spilled.path) as file:
            file.seek(spilled.start)
            data = file.read_buffer(spilled.end - spilled.start)
    return pa.ipc.open_stream(data).read_next_batch()


def load_together(spilled: Iterable[Spilled]) -> pa.Table:
    """Load batches as one table."""
    return pa.Table.from_batches([load(one) for one in spilled])


class OverSpilled(beam.CombineFn):  # type: ignore[misc]
    """Applies a combiner of batches to spilled batches.

    Args:
        combine: the combiner.
    """

    def __init__(self, combine: beam.CombineFn) -> None:
        self._combine = combine

    def create_accumulator(self) -> Any:
        return self._combine.create_accumulator()

    def add_input(self, accumulator: Any, spilled: Spilled) -> Any:
        return self._combine.add_input(accumulator, load(spilled))

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        return self._combine.merge_accumulators(accumulators)

    def extract_output(self, accumulator: Any) -> Any:
        return self._combine.extract_output(accumulator)
