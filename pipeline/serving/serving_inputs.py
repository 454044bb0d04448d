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

#: What a model says of a row.
OUTPUTS = ("score", "ctr", "confidence")


def serving_inputs(schema: Schema, table: pa.Table, names: list[str]) -> dict[str, list[Any]]:
    """Columns of a raw table as lists for the inputs ``names``; missing is "", the int sentinel, or None for a number.

    Args:
        schema: which column each input reads.
        table: raw rows, columns as :func:`clsd.features.encode.arrow_type` says.
        names: inputs of the signature.
    """
    out: dict[str, list[Any]] = {}
    for name in names:
        feature = schema.feature(name)
        kind = arrow_type(feature)
        there = feature.source in table.schema.names
        column = table[feature.source].cast(kind).to_pylist() if there else [None] * table.num_rows
        if isinstance(feature, NumericFeature):
            out[name] = [value if value is not None and math.isfinite(value) else None for value in column]
        elif pa.types.is_list(kind):
            out[name] = [[_present(v, feature.dtype) for v in (row or [])] for row in column]
        else:
            out[name] = [_present(value, "string" if pa.types.is_string(kind) else "int64") for value in column]
    return out


def require_free_names(columns: Iterable[str]) -> None:
    """Refuse columns that have the name of a score, where rows and their scores stand side by side.

    Raises:
        UserError: naming the column.
    """
    for column in columns:
        if column in OUTPUTS:
            what = f"a column is named '{column}', as a score of the model is"
            raise UserError("rows", what, "rename it in the log, and the feature's `column` with it")


def serving_arrays(schema: Schema, table: pa.Table, signature: dict[str, Any]) -> dict[str, Any]:
    """Columns of a raw table as arrays of a signature's dtypes, without a Python object for each number.

    Args:
        schema: which column each input reads.
        table: raw rows, columns as :func:`clsd.features.tokens.arrow_type` says, dictionary-encoded or not; one may be missing.
        signature: ``tf.TensorSpec`` by name, of ``serving_default``.
    """
    out = {}
    for name in signature:
        feature = schema.feature(name)
        kind = arrow_type(feature)
        there = feature.source in table.schema.names
        column = as_type(table[feature.source], kind) if there else pa.chunked_array([pa.nulls(table.num_rows, kind)])
        if isinstance(feature, NumericFeature):
            out[name] = as_float32(column)
            continue
        if pa.types.is_string(kind) and signature[name].shape.rank == 2:  # a log's text of what a request has as a list
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
    """Lists as arrays of a signature's dtypes; ragged lists are padded, missing numbers become NaN.

    Args:
        inputs: by name, equally long.
        signature: ``tf.TensorSpec`` by name.
    """
    return {name: _as_array(inputs[name], spec.dtype.name, spec.shape.rank) for name, spec in signature.items()}


def _as_array(values: list[Any], dtype: str, rank: int) -> Any:
    shape = [len(values)]
    for _ in range(rank - 2):  # a request's candidates, as many in each
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
