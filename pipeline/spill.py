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

from features.places import is_remote, place

#: Name of the directory, within that of the data set while it is made.
SPILL = ".spill"


@dataclass(frozen=True)
class Spilled:
    """Where a batch lies.

    Args:
        path: an Arrow IPC file.
        part: which of its batches.
        rows: how many rows it has.
    """

    path: str
    part: int
    rows: int


def spill(directory: str, batches: Iterable[pa.RecordBatch]) -> list[Spilled]:
    """Write batches of one schema, with the same dictionaries, to a new file; empty ones are left out."""
    batches = [batch for batch in batches if batch.num_rows]
    if not batches:
        return []
    path = posixpath.join(directory, SPILL, f"{uuid.uuid4().hex}.arrow")
    with place(path).open("wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return [Spilled(path, part, batch.num_rows) for part, batch in enumerate(batches)]


def load(spilled: Spilled) -> pa.RecordBatch:
    """The batch; of a local file its columns are views of the mapped file, read when they are touched."""
    if is_remote(spilled.path):
        with place(spilled.path).open("rb") as file:
            return pa.ipc.open_file(file).get_batch(spilled.part)
    return pa.ipc.open_file(pa.memory_map(spilled.path)).get_batch(spilled.part)


def load_together(spilled: Iterable[Spilled]) -> pa.Table:
    """All of these batches as one table."""
    return together([load(one) for one in spilled])


def together(batches: list[pa.RecordBatch]) -> pa.Table:
    """Batches of several files as one table: columns in the same order, and what a file lacks is null."""
    whole = pa.unify_schemas([batch.schema for batch in batches], promote_options="permissive")

    def column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        there = field.name in batch.schema.names
        return batch.column(field.name).cast(field.type) if there else pa.nulls(batch.num_rows, field.type)

    aligned = ([column(batch, field) for field in whole] for batch in batches)
    return pa.Table.from_batches([pa.RecordBatch.from_arrays(columns, schema=whole) for columns in aligned])


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
