"""Raw Arrow batches to ids and values, a column at a time."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.hashing import bin_of
from features.schema import (
    FIRST_OOV_ID,
    MISSING_ID,
    MISSING_INT,
    PADDING_ID,
    Categorical,
    CategoricalFeature,
    NumericFeature,
    SequenceFeature,
)
from features.transform import NumericState, Transform, first_value_id

Ids: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]


def encode(transform: Transform, batch: pa.RecordBatch) -> tuple[Ids, Floats]:
    """Encode the features of a batch of raw rows.

    Args:
        transform: the schema and what was learnt.
        batch: columns as :func:`raw_type` gives them; a column that is not there is all missing.

    Returns:
        ids int32 ``[rows, schema.width]`` and values float32 ``[rows, n_numeric]``.
    """
    schema = transform.schema
    ids = np.zeros((batch.num_rows, schema.width), dtype=np.int32)
    values = np.zeros((batch.num_rows, len(schema.numeric)), dtype=np.float32)
    for feature in schema.categorical:
        column = _column(batch, feature.source, raw_type(feature))
        at = schema.id_slices[feature.name]
        if isinstance(feature, CategoricalFeature):
            ids[:, at.start] = _categorical_ids(transform, feature, column)
        else:
            ids[:, at] = _ragged_ids(transform, feature, column)
    for number in schema.bucketed:
        x = _as_float32(_column(batch, number.source, pa.float64()))
        bucket = np.searchsorted(_boundaries(transform.numerics[number.name]), x, side="right")
        ids[:, schema.id_slices[number.name].start] = np.where(np.isnan(x), MISSING_ID, FIRST_OOV_ID + 1 + bucket)
    for position, number in enumerate(schema.numeric):
        x = _as_float32(_column(batch, number.source, pa.float64()))
        values[:, position] = scale(number, transform.numerics[number.name], x)
    return ids, values


def raw_type(feature: Categorical | NumericFeature) -> pa.DataType:
    """Arrow type of a feature's column in the log."""
    if isinstance(feature, NumericFeature):
        return pa.float64()
    single = pa.string() if feature.dtype == "string" else pa.int64()
    if isinstance(feature, CategoricalFeature):
        return single
    return pa.string() if feature.separator else pa.list_(single)


def tokens_of(feature: Categorical, column: pa.Array) -> pa.Array:
    """The column as text, for vocabularies; list columns are flattened. Empty text and the int sentinel become null."""
    if isinstance(feature, CategoricalFeature):
        return _clean(column)
    return _clean(_as_list(feature, column).flatten())


def is_missing(feature: Categorical | NumericFeature, column: pa.Array) -> npt.NDArray[np.bool_]:
    """Which rows have no value of a feature: null, NaN or an infinity, empty text, the int sentinel, a list without values."""
    column = column.cast(raw_type(feature))
    if isinstance(feature, NumericFeature):
        return np.isnan(_as_float32(column))
    if isinstance(feature, CategoricalFeature):
        return np.asarray(_clean(column).is_null())
    lists = _as_list(feature, column)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    there = np.asarray(_clean(lists.flatten()).is_valid())
    found = np.bincount(np.repeat(np.arange(len(lists)), lengths)[there], minlength=len(lists))
    return np.asarray(found == 0)


def scale(feature: NumericFeature, state: NumericState, x: Floats) -> Floats:
    """(t(x) - mean) / sd in float32, with t the identity or log(1 + max(x, 0)); 0 for NaN (the mean); x itself for none."""
    if feature.transform == "none":
        return np.nan_to_num(x, nan=0.0)
    moved = np.log1p(np.maximum(x, np.float32(0))) if feature.transform == "log1p" else x
    scaled = (moved - np.float32(state.mean)) * np.float32(1.0 / state.sd)
    return np.asarray(np.where(np.isnan(x), np.float32(0), scaled), dtype=np.float32)


def _column(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    at = batch.schema.get_field_index(name)
    return pa.nulls(batch.num_rows, kind) if at < 0 else batch.column(at).cast(kind)


def _as_float32(column: pa.Array) -> Floats:
    """Float32 with NaN where the log has null, NaN or an infinity."""
    wide = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    return np.asarray(np.where(np.isfinite(x), x, np.float32(np.nan)), dtype=np.float32)


def _boundaries(state: NumericState) -> Floats:
    return np.asarray(state.boundaries, dtype=np.float32)


def _clean(values: pa.Array) -> pa.Array:
    if pa.types.is_integer(values.type):
        real = pc.if_else(pc.equal(values, MISSING_INT), pa.scalar(None, pa.int64()), values)
        return pc.cast(real, pa.string())
    return pc.if_else(pc.equal(pc.binary_length(values), 0), pa.scalar(None, pa.string()), values)


def _as_list(feature: Categorical, column: pa.Array) -> pa.ListArray:
    separator = getattr(feature, "separator", "")
    if not separator:
        return column
    split = pc.split_pattern(column, pattern=separator)
    if feature.dtype == "int64":
        pieces = _clean(split.values).cast(pa.int64())  # an empty text has one empty piece, which is no number
        return pa.ListArray.from_arrays(split.offsets, pieces)
    return split


def _categorical_ids(transform: Transform, feature: Categorical, column: pa.Array) -> Ids:
    tokens = _clean(column)
    return np.where(np.asarray(tokens.is_null()), MISSING_ID, _value_ids(transform, feature, tokens)).astype(np.int32)


def _value_ids(transform: Transform, feature: Categorical, tokens: pa.Array) -> npt.NDArray[np.int64]:
    """Ids of tokens that are there; whatever stands for null is overwritten by the caller."""
    owner = transform.schema.owner(feature)
    first = first_value_id(owner)
    if owner.encoding == "hash":
        return first + bin_of(tokens, owner.size)
    if owner.encoding == "identity":
        numbers = pc.fill_null(pc.cast(tokens, pa.int64()), -1).to_numpy(zero_copy_only=False)
        found = np.where((numbers >= 0) & (numbers < owner.size), numbers, -1)
    else:
        found = transform.vocabularies[owner.name].index(tokens).astype(np.int64)
    unknown: Any = FIRST_OOV_ID
    if owner.oov_buckets > 1 and bool((found < 0).any()):
        unknown = FIRST_OOV_ID + bin_of(tokens, owner.oov_buckets)
    return np.asarray(np.where(found >= 0, first + found, unknown), dtype=np.int64)


def _ragged_ids(transform: Transform, feature: Categorical, column: pa.Array) -> Ids:
    """int32 ``[rows, max_length]``: values packed to the left, empty values left out, padded with 0."""
    lists = pc.fill_null(_as_list(feature, column), pa.scalar([], _as_list(feature, column).type))
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    tokens = _clean(lists.flatten())
    there = np.asarray(tokens.is_valid())
    row = np.repeat(np.arange(len(lists)), lengths)[there]
    kept = np.bincount(row, minlength=len(lists))
    place = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
    if isinstance(feature, SequenceFeature):  # the newest values stand last, and they are the ones to keep
        place = place - np.repeat(np.maximum(kept - feature.max_length, 0), kept)
    inside = (place >= 0) & (place < feature.max_length)
    out = np.full((len(lists), feature.max_length), PADDING_ID, dtype=np.int32)
    ids = _value_ids(transform, feature, tokens.filter(pa.array(there)))
    out[row[inside], place[inside]] = ids[inside]
    return out
