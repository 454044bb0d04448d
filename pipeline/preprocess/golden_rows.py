"""The golden rows: raw rows for the canary."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.tokens import with_dictionaries
from clsd.pipeline.preprocess.columns import KEY, SPLIT, SPLITS


class SmallestKeys(beam.CombineFn):  # type: ignore[misc]
    """A uniform sample of raw rows of the test split: those with the smallest random keys.

    Without a test split, they are validation or training rows; the canary needs some.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def create_accumulator(self) -> list[pa.RecordBatch]:
        return []

    def add_input(self, accumulator: list[pa.RecordBatch], batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        splits, keys = batch.column(SPLIT).to_numpy(), batch.column(KEY).to_numpy()
        for split in range(len(SPLITS)):
            positions = np.flatnonzero(splits == split)
            if len(positions) > self._rows:
                positions = positions[np.argpartition(keys[positions], self._rows)[: self._rows]]
            if len(positions):
                accumulator.append(with_dictionaries((), pa.Table.from_batches([batch.take(pa.array(positions))])))
        return accumulator if len(accumulator) < 16 else [self._smallest(accumulator)]

    def merge_accumulators(self, accumulators: Iterable[list[pa.RecordBatch]]) -> list[pa.RecordBatch]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return [self._smallest(parts)] if parts else []

    def extract_output(self, accumulator: list[pa.RecordBatch]) -> pa.RecordBatch | None:
        if not accumulator:
            return None
        rows = self._smallest(accumulator)
        return rows.filter(pc.equal(rows.column(SPLIT), rows.column(SPLIT)[0]))

    def _smallest(self, parts: list[pa.RecordBatch]) -> pa.RecordBatch:
        table = pa.Table.from_batches(parts)
        order = pc.sort_indices(table, sort_keys=[(SPLIT, "descending"), (KEY, "ascending")])
        return table.take(order[: self._rows]).combine_chunks().to_batches()[0]
