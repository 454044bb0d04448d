"""Vocabularies: the values of a feature that have an id, by falling frequency in the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clsd.features.arrays import Bools, Int32s, Int64s
from clsd.features.tokens import Coded

#: Partial counts of one feature's values, as the Beam job merges them.
COUNTS = pa.schema([("token", pa.string()), ("rows", pa.int64()), ("clicks", pa.int64())])


def count(values: Coded, clicks: Bools) -> pa.Table:
    """Rows and clicks of each distinct token of a batch.

    Args:
        values: n values. Missing values are not counted, and neither is text with a line break: in a SavedModel, a
            vocabulary is a text file with one value per line.
        clicks: bool ``[n]``.

    Returns:
        a table of schema :data:`COUNTS`; a token that occurs twice in ``values.tokens`` occurs twice.
    """
    tokens, codes = values
    rows = np.bincount(codes[codes >= 0], minlength=len(tokens))
    clicked = np.bincount(codes[(codes >= 0) & clicks], minlength=len(tokens))
    usable = pc.and_(pa.array(rows > 0), pc.invert(pc.match_substring_regex(tokens, "[\r\n]")))
    return pa.table({"token": tokens, "rows": rows, "clicks": clicked}, schema=COUNTS).filter(usable)


def merge(tables: list[pa.Table]) -> pa.Table:
    """The sum of partial counts, each token once, in any order."""
    whole = pa.concat_tables(tables) if tables else COUNTS.empty_table()
    # One thread: with a million tokens, merging the tables of Arrow's threads takes four times as long.
    sums = whole.group_by("token", use_threads=False).aggregate([("rows", "sum"), ("clicks", "sum")])
    return sums.select(["token", "rows_sum", "clicks_sum"]).rename_columns(COUNTS.names)


@dataclass(frozen=True)
class Vocabulary:
    """The values of a feature that have an id.

    Args:
        tokens: string array ``[size]``, by falling ``rows``, then by bytes; values of a base vocabulary come first.
        rows: int64 ``[size]``, rows of the training split that hold the value.
        clicks: int64 ``[size]``, clicks among them.
    """

    tokens: pa.StringArray
    rows: Int64s
    clicks: Int64s

    @classmethod
    def from_counts(cls, counts: pa.Table, *, min_count: int, max_size: int) -> Vocabulary:
        """The ``max_size`` most frequent values that occur at least ``min_count`` times, in a deterministic order."""
        kept = counts.filter(pc.greater_equal(counts["rows"], min_count))
        kept = kept.append_column("bytes", pc.cast(kept["token"], pa.binary()))  # sorted by bytes, without collation
        order = pc.sort_indices(kept, sort_keys=[("rows", "descending"), ("bytes", "ascending")])
        return cls.from_table(kept.take(order[:max_size]))

    def extended(self, counts: pa.Table, *, min_count: int, max_size: int) -> Vocabulary:
        """This vocabulary's values in their order with the counts of another log, followed by that log's new values.

        So every id keeps its meaning. New values are chosen and ordered as in :meth:`from_counts`. ``max_size`` limits
        the total but removes no old value.
        """
        fresh = counts.filter(pc.invert(pc.is_in(counts["token"], value_set=self.tokens)))
        room = max(max_size - len(self), 0)
        new = Vocabulary.from_counts(fresh, min_count=min_count, max_size=room)
        at = pc.index_in(self.tokens, value_set=counts["token"].combine_chunks())
        old = pa.table({"token": self.tokens, **{n: pc.fill_null(counts[n].take(at), 0) for n in ("rows", "clicks")}})
        return Vocabulary.from_table(pa.concat_tables([old.cast(COUNTS), new.table()]))

    @classmethod
    def from_table(cls, table: pa.Table) -> Vocabulary:
        """The inverse of :meth:`table`."""
        tokens = table["token"].combine_chunks()
        return cls(
            tokens=tokens if isinstance(tokens, pa.StringArray) else pa.array([], pa.string()),
            rows=table["rows"].to_numpy().astype(np.int64),
            clicks=table["clicks"].to_numpy().astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def index(self, tokens: pa.Array) -> Int32s:
        """Index of each token in the vocabulary, int32 ``[n]``; -1 for unknown tokens and null."""
        result = pc.index_in(tokens, value_set=self.tokens, skip_nulls=True)
        return np.asarray(pc.fill_null(result, -1).to_numpy(zero_copy_only=False), dtype=np.int32)

    def table(self) -> pa.Table:
        """The vocabulary as a table of schema :data:`COUNTS`, in id order."""
        return pa.table({"token": self.tokens, "rows": self.rows, "clicks": self.clicks}, schema=COUNTS)

    def write(self, file: IO[bytes]) -> None:
        """Write :meth:`table` as a Parquet file."""
        pq.write_table(self.table(), file)
