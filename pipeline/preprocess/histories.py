"""Histories: what each user clicked before each row, from the log itself."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Int64s
from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import LABEL, TIME, USER


def add_histories(schema: Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add a list column for each of ``schema.histories``.

    A row's list holds the values of the user's last ``max_length`` clicks strictly before the row's time. So no row sees its
    own click, nor one of the same instant. The oldest click comes first; clicks of one instant are in the batch's order. A
    row of the test split sees the user's older clicks of all splits, as a server would.

    Args:
        schema: the schema.
        batch: **all** rows of its users, in a deterministic order.
    """
    users = pc.dictionary_encode(batch.column(USER)).indices.to_numpy().astype(np.int64)
    times, moments = np.unique(batch.column(TIME).to_numpy(), return_inverse=True)
    instants = users * len(times) + moments.astype(np.int64)  # one number per user and time, rising in both
    for feature in schema.histories:
        values = batch.column(feature.clicks_of)
        clicked = (batch.column(LABEL).to_numpy() == 1) & np.asarray(values.is_valid())
        clicks = np.flatnonzero(clicked)
        clicks = clicks[np.argsort(instants[clicks], kind="stable")]
        before = np.searchsorted(instants[clicks], instants, side="left")
        first = np.searchsorted(instants[clicks], users * len(times), side="left")
        first = np.maximum(first, before - feature.max_length)
        taken = clicks[_ranges(first, before)]
        offsets = np.concatenate([[0], np.cumsum(before - first)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), values.take(pa.array(taken)))
        batch = batch.append_column(feature.source, lists)
    return batch


def _ranges(first: Int64s, last: Int64s) -> Int64s:
    """Concatenated ranges: first[0] ... last[0] - 1, first[1] ... last[1] - 1, and so on."""
    lengths = last - first
    starts = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(first - starts, lengths) + np.arange(lengths.sum()), np.int64)
