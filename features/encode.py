"""Encodes raw Arrow batches into ids and values, column by column."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from clsd.features.arrays import Column, Float32s, Int32s, Int64s
from clsd.features.hashing import bin_of
from clsd.features.schema import (
    FIRST_OOV_ID,
    MISSING_ID,
    PADDING_ID,
    Categorical,
    CategoricalFeature,
    NumericFeature,
    SequenceFeature,
)
from clsd.features.tokens import arrow_type, as_float32, coded, coded_lists
from clsd.features.transform import NumericState, Transform, first_value_id

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def encode(
    transform: Transform, rows: pa.RecordBatch | pa.Table, map_features: Callable[..., Iterable[Any]] = map
) -> tuple[Int32s, Float32s]:
    """Encode the features of raw rows.

    Args:
        transform: the schema and what was learnt from the training split.
        rows: columns as :func:`clsd.features.tokens.arrow_type` gives them, dictionary-encoded or not. An absent
            column is all missing. The chunks of a table are looked up together, because a lookup in a large vocabulary costs the
            same for few rows as for many.
        each: applies a function to every feature, like ``map``; features are independent.

    Returns:
        ids int32 ``[rows, schema.width]`` and values float32 ``[rows, n_numeric]``.
    """
    schema = transform.schema
    ids = np.zeros((rows.num_rows, schema.width), dtype=np.int32)
    values = np.zeros((rows.num_rows, len(schema.numeric)), dtype=np.float32)

    def fill(feature: Categorical | NumericFeature) -> None:
        column, id_columns = _column(rows, feature), schema.id_slices.get(feature.name, slice(0))
        if isinstance(feature, CategoricalFeature):
            ids[:, id_columns.start] = _categorical_ids(transform, feature, column)
        elif not isinstance(feature, NumericFeature):
            ids[:, id_columns] = _ragged_ids(transform, feature, column)
        elif feature.transform == "quantile":
            x = as_float32(column)
            bucket = np.searchsorted(_boundaries(transform.numerics[feature.name]), x, side="right")
            ids[:, id_columns.start] = np.where(np.isnan(x), MISSING_ID, FIRST_OOV_ID + 1 + bucket)
        else:
            position = schema.numeric.index(feature)
            values[:, position] = scale(feature, transform.numerics[feature.name], as_float32(column))

    deque(map_features(fill, schema.features), maxlen=0)
    return ids, values


def scale(feature: NumericFeature, state: NumericState, x: Float32s) -> Float32s:
    """(t(x) - mean) / sd, where t is the identity or log(1 + max(x, 0)). NaN becomes 0, the mean.

    The transform ``none`` gives x itself. It is computed in float64, because a large mean would swallow a small difference, and
    limited to float32. A request holds x as float32, so x is float32 here too.
    """
    if feature.transform == "none":
        return np.nan_to_num(x, nan=0.0)
    wide = x.astype(np.float64)
    transformed = np.log1p(np.maximum(wide, 0.0)) if feature.transform == "log1p" else wide
    scaled = np.clip((transformed - state.mean) / state.sd, -LARGEST_FLOAT32, LARGEST_FLOAT32)
    return np.asarray(np.where(np.isnan(x), 0.0, scaled), dtype=np.float32)


def _column(rows: pa.RecordBatch | pa.Table, feature: Categorical | NumericFeature) -> Column:
    index = rows.schema.get_field_index(feature.source)
    return pa.nulls(rows.num_rows, arrow_type(feature)) if index < 0 else rows.column(index)


def _boundaries(state: NumericState) -> Float32s:
    return np.asarray(state.boundaries, dtype=np.float32)


def _categorical_ids(transform: Transform, feature: Categorical, column: Column) -> Int32s:
    tokens, codes = coded(feature, column)
    return np.append(_value_ids(transform, feature, tokens), MISSING_ID).astype(np.int32)[codes]


def _value_ids(transform: Transform, feature: Categorical, tokens: pa.StringArray) -> Int64s:
    """Ids of tokens; unknown tokens get an out-of-vocabulary id. No token stands for a missing value."""
    vocabulary_source = transform.schema.vocabulary_source(feature)
    first = first_value_id(vocabulary_source)
    if vocabulary_source.encoding == "hash":
        return first + bin_of(tokens, vocabulary_source.size)
    if vocabulary_source.encoding == "identity":
        numbers = tokens.cast(pa.int64()).to_numpy(zero_copy_only=False)
        result = np.where((numbers >= 0) & (numbers < vocabulary_source.size), numbers, -1)
    else:
        result = transform.vocabularies[vocabulary_source.name].index(tokens).astype(np.int64)
    unknown: Any = FIRST_OOV_ID
    if vocabulary_source.oov_buckets > 1 and bool((result < 0).any()):
        unknown = FIRST_OOV_ID + bin_of(tokens, vocabulary_source.oov_buckets)
    return np.asarray(np.where(result >= 0, first + result, unknown), dtype=np.int64)


def _ragged_ids(transform: Transform, feature: Categorical, column: Column) -> Int32s:
    """int32 ``[rows, max_length]``: values packed to the left without empty ones, padded with 0."""
    (tokens, codes), lengths = coded_lists(feature, column)
    present = codes >= 0
    row = np.repeat(np.arange(len(lengths)), lengths)[present]
    counts = np.bincount(row, minlength=len(lengths))
    position = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    if isinstance(feature, SequenceFeature):  # the newest values are last, and those are kept
        position = position - np.repeat(np.maximum(counts - feature.max_length, 0), counts)
    fits = (position >= 0) & (position < feature.max_length)
    out = np.full((len(lengths), feature.max_length), PADDING_ID, dtype=np.int32)
    ids = _value_ids(transform, feature, tokens)[codes[present]]
    out[row[fits], position[fits]] = ids[fits]
    return out
