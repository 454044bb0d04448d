"""Raw rows as the inputs of a model server's request: by name, dtype and rank of the signature's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.errors import UserError
from clsd.features.schema import MISSING_INT, NumericFeature, Schema
from clsd.features.tokens import arrow_type, as_float32, as_type

#: The outputs of a model for a row.
OUTPUTS = ("score", "ctr", "confidence")


def serving_inputs(schema: Schema, table: pa.Table, names: list[str]) -> dict[str, list[Any]]:
    """Columns of a raw table as lists for the inputs ``names``. A missing value is "", the int sentinel, or None for a number.

    Args:
        schema: the schema; it says which column each input reads.
        table: raw rows, with columns of the types of :func:`clsd.features.tokens.arrow_type`.
        names: inputs of the signature.
    """
    out: dict[str, list[Any]] = {}
    for name in names:
        feature = schema.feature(name)
        kind = arrow_type(feature)
        has_column = feature.source in table.schema.names
        column = as_type(table[feature.source], kind).to_pylist() if has_column else [None] * table.num_rows
        if isinstance(feature, NumericFeature):
            out[name] = [value if value is not None and math.isfinite(value) else None for value in column]
        elif pa.types.is_list(kind):
            out[name] = [[_present(v, feature.dtype) for v in (row or [])] for row in column]
        else:
            out[name] = [_present(value, "string" if pa.types.is_string(kind) else "int64") for value in column]
    return out


def require_free_names(columns: Iterable[str]) -> None:
    """Refuse columns with the name of a score, because rows and scores are written side by side.

    Raises:
        UserError: naming the column.
    """
    for column in columns:
        if column in OUTPUTS:
            what = f"a column has the name of a score, '{column}'"
            raise UserError("rows", what, "rename it in the log, and the feature's `column` with it")


def serving_arrays(schema: Schema, table: pa.Table, signature: dict[str, Any]) -> dict[str, Any]:
    """Columns of a raw table as arrays of a signature's dtypes; fast, because it makes no Python objects for numbers.

    Args:
        schema: the schema; it says which column each input reads.
        table: raw rows, with columns of the types of :func:`clsd.features.tokens.arrow_type`, dictionary-encoded or not. A
            column may be absent.
        signature: the ``tf.TensorSpec`` of each input of ``serving_default``.
    """
    out = {}
    for name in signature:
        feature = schema.feature(name)
        kind = arrow_type(feature)
        has_column = feature.source in table.schema.names
        column = (
            as_type(table[feature.source], kind) if has_column else pa.chunked_array([pa.nulls(table.num_rows, kind)])
        )
        if isinstance(feature, NumericFeature):
            out[name] = as_float32(column)
            continue
        if pa.types.is_string(kind) and signature[name].shape.rank == 2:  # text in the log, a list in a request
            column = pc.split_pattern(column, getattr(feature, "separator", ""))
        elif not pa.types.is_list(kind):
            out[name] = _filled(column)
            continue
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        width = int(lengths.max(initial=0))
        values = _filled(column.combine_chunks().flatten())
        out[name] = np.full([len(lengths), width], "" if values.dtype == object else MISSING_INT, values.dtype)
        out[name][np.arange(width) < lengths[:, None]] = values
    return out


def _filled(values: pa.Array | pa.ChunkedArray) -> Any:
    missing = "" if pa.types.is_string(values.type) else MISSING_INT
    return pc.fill_null(values, missing).to_numpy(
        **({} if isinstance(values, pa.ChunkedArray) else {"zero_copy_only": False})
    )


def _present(value: Any, dtype: str) -> Any:
    if value is None:
        return "" if dtype == "string" else MISSING_INT
    return value


def as_arrays(inputs: dict[str, list[Any]], signature: dict[str, Any]) -> dict[str, Any]:
    """Lists as arrays of a signature's dtypes. Ragged lists are padded; missing numbers become NaN.

    Args:
        inputs: lists by name, of equal length.
        signature: the ``tf.TensorSpec`` of each input.
    """
    return {name: _as_array(inputs[name], spec.dtype.name, spec.shape.rank) for name, spec in signature.items()}


def _as_array(values: list[Any], dtype: str, rank: int) -> Any:
    shape = [len(values)]
    for _ in range(rank - 2):  # candidates; each request has as many
        shape.append(len(values[0]) if values else 0)
        values = [value for row in values for value in row]
    if rank > 1:
        width = max((len(row) for row in values), default=0)
        shape.append(width)
        padding = {"string": "", "int64": MISSING_INT, "float32": None}[dtype]
        values = [value for row in values for value in [*row, *[padding] * (width - len(row))]]
    if dtype == "float32":
        values = [np.nan if value is None else value for value in values]
    return np.array(values, {"string": object, "int64": np.int64, "float32": np.float32}[dtype]).reshape(shape)
