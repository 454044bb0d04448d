"""A column as its distinct tokens, and a code per value.

Counts, ids and hashes are thus computed once per distinct token, not once per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Column, Float32s, Int64s
from clsd.features.schema import MISSING_INT, Categorical, CategoricalFeature, NumericFeature, Schema


class Coded(NamedTuple):
    """n values.

    Args:
        tokens: string array of the values' texts; none is null or empty. A token may occur twice if the column came in chunks.
        codes: int64 ``[n]``, the index of each value's token; -1 for a missing value.
    """

    tokens: pa.StringArray
    codes: Int64s


def arrow_type(feature: Categorical | NumericFeature) -> pa.DataType:
    """Arrow type that a feature's column is read as."""
    if isinstance(feature, NumericFeature):
        return pa.float64()
    single = pa.string() if feature.dtype == "string" else pa.int64()
    if isinstance(feature, CategoricalFeature):
        return single
    return pa.string() if feature.separator else pa.list_(single)


def source_type(schema: Schema, source: str) -> pa.DataType:
    """Arrow type that a column is read as; if ids and numbers share it, that of the ids, as a number may lose digits."""
    readers = [feature for feature in schema.features if feature.source == source and feature not in schema.histories]
    return arrow_type(next((f for f in readers if not isinstance(f, NumericFeature)), readers[0]))


def as_float64(column: Column) -> Column:
    """The column as float64, which does not hold every int64."""
    return column.cast(pa.float64(), safe=not pa.types.is_integer(column.type))


def as_dictionary(column: Column) -> Column:
    """The column, dictionary-encoded."""
    return column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)


def as_type(column: Column, kind: pa.DataType) -> Column:
    """The column cast to a type, which may be a dictionary; Arrow casts only text to a dictionary."""
    if not pa.types.is_dictionary(kind):
        return as_float64(plain(column)) if pa.types.is_floating(kind) else plain(column).cast(kind)
    return as_dictionary(column if pa.types.is_dictionary(column.type) else column.cast(kind.value_type)).cast(kind)


def with_dictionaries(
    names: Sequence[str], table: pa.Table, each: Callable[..., Iterable[Any]] = map
) -> pa.RecordBatch:
    """The table as one batch; only the named columns are dictionary-encoded. A named column may be absent."""

    def stored(name: str) -> pa.Array:
        column = table.column(name)
        return (as_dictionary(column) if name in names else plain(column)).combine_chunks()

    return pa.RecordBatch.from_arrays(list(each(stored, table.column_names)), names=table.column_names)


def plain(column: Column) -> Column:
    """The column without dictionary encoding."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def coded(feature: Categorical, column: Column) -> Coded:
    """The values of a feature with one value per row."""
    kind = pa.string() if feature.dtype == "string" else pa.int64()
    return coded_as(kind, column)


def coded_lists(feature: Categorical, column: Column) -> tuple[Coded, Int64s]:
    """The values of a bag or sequence in one flat array, and the number of values per row, missing ones included.

    Returns:
        the values, and int64 ``[rows]``.
    """
    kind = pa.string() if feature.dtype == "string" else pa.int64()
    lists = column.cast(arrow_type(feature))
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    if separator := getattr(feature, "separator", ""):
        lists = pc.split_pattern(lists, pattern=separator)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten()
    if separator and feature.dtype == "int64":  # an empty text splits into one empty text, which is not a number
        values = _null_where_missing(values).cast(kind)
    return coded_as(kind, values), lengths


def as_float32(column: Column) -> Float32s:
    """The column as float32; null, NaN and infinities become NaN. Numbers below float32's normal range become 0, as TensorFlow
    computes."""
    wide = np.asarray(as_float64(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(over="ignore"):
        x = flushed(wide.astype(np.float32))
    return np.asarray(np.where(np.isfinite(x), x, np.float32(np.nan)), dtype=np.float32)


def flushed(x: Float32s) -> Float32s:
    """The values, with 0 in place of subnormal ones."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def coded_as(kind: pa.DataType, column: Column) -> Coded:
    """Single values of a column, as strings or int64. Null, empty text and the int sentinel are missing."""
    tokens, codes, known = [], [], 0
    for chunk in as_dictionary(column).chunks if isinstance(column, pa.ChunkedArray) else [as_dictionary(column)]:
        values = _null_where_missing(chunk.dictionary.cast(kind)).cast(pa.string())
        there = np.asarray(values.is_valid())
        code_of = np.append(np.where(there, known + np.cumsum(there) - 1, -1), -1)  # the last is null's
        at = pc.fill_null(chunk.indices, len(there)).to_numpy(zero_copy_only=False)
        tokens.append(values.drop_null())
        codes.append(code_of[at])
        known += len(tokens[-1])
    if not codes:
        return Coded(pa.array([], pa.string()), np.array([], np.int64))
    if len(codes) == 1:
        return Coded(tokens[0], codes[0])
    return Coded(pa.concat_arrays(tokens), np.concatenate(codes))


def _null_where_missing(values: pa.Array) -> pa.Array:
    missing = (
        pc.equal(values, MISSING_INT) if pa.types.is_integer(values.type) else pc.equal(pc.binary_length(values), 0)
    )
    return pc.if_else(missing, pa.scalar(None, values.type), values)
