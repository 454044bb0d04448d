"""Batches that wait on disk between two stages of the job.

What travels through the engine, its shuffle included, is only where they lie: a batch is written once, mapped into memory
where it is needed, and never pickled. So the memory of the job does not grow with the log, on an engine that keeps
its elements in memory too. The directory has to be one that every worker sees, as that of the shards has.

A bundle that an engine tries twice writes twice, under another name, and what the engine forgets is never read.
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

#: Name of the directory, within that of the data set while it is made.
SPILL = ".spill"
#: Bytes at whose multiples a batch begins, so that its columns are views wherever the file is mapped.
_ALIGNED = 64


@dataclass(frozen=True)
class Spilled:
    """Where a batch lies.

    Args:
        path: the file.
        start, end: bytes of the batch in it, an Arrow IPC stream of its own.
        rows: how many rows it has.
    """

    path: str
    start: int
    end: int
    rows: int


def spill(directory: str, batches: Iterable[pa.RecordBatch]) -> list[Spilled]:
    """Write batches to a new file; empty ones are left out."""
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
    """The batch; of a local file its columns are views of the mapped file, read when they are touched."""
    if is_remote(spilled.path):
        path: Any = as_path(spilled.path)
        data = pa.py_buffer(
            path.fs.cat_file(path.path, start=spilled.start, end=spilled.end)
        )  # one request, of these bytes alone
    else:
        with pa.memory_map(spilled.path) as file:
            file.seek(spilled.start)
            data = file.read_buffer(spilled.end - spilled.start)
    return pa.ipc.open_stream(data).read_next_batch()


def load_together(spilled: Iterable[Spilled]) -> pa.Table:
    """All of these batches as one table."""
    return pa.Table.from_batches([load(one) for one in spilled])


class OverSpilled(beam.CombineFn):  # type: ignore[misc]
    """A combiner of batches, over batches that lie on disk.

    Args:
        combine: what adds the batches up.
    """

    def __init__(self, combine: beam.CombineFn) -> None:
        self._combine = combine

    def create_accumulator(self) -> Any:
        return self._combine.create_accumulator()

    def add_input(self, accumulator: Any, spilled: Spilled) -> Any:
        return self._combine.add_input(accumulator, load(spilled))

    def merge_accumulators(self, accumulators: Any) -> Any:
        return self._combine.merge_accumulators(accumulators)

    def extract_output(self, accumulator: Any) -> Any:
        return self._combine.extract_output(accumulator)
