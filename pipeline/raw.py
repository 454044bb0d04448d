"""Raw rows as a model server is asked with them: by name, dtype and rank of the signature's inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from features.schema import MISSING_INT, NumericFeature, Schema
from features.tokens import raw_type


def raw_inputs(schema: Schema, table: pa.Table, names: list[str]) -> dict[str, list[Any]]:
    """Columns of a raw table as lists for the inputs ``names``; missing is "", the int sentinel, or None for a number.

    Args:
        schema: which column each input reads.
        table: raw rows, columns as :func:`features.encode.raw_type` says.
        names: inputs of the signature.
    """
    out: dict[str, list[Any]] = {}
    for name in names:
        feature = schema.feature(name)
        kind = raw_type(feature)
        there = feature.source in table.schema.names
        column = table[feature.source].cast(kind).to_pylist() if there else [None] * table.num_rows
        if isinstance(feature, NumericFeature):
            out[name] = [value if value is not None and math.isfinite(value) else None for value in column]
        elif pa.types.is_list(kind):
            out[name] = [[_present(v, feature.dtype) for v in (row or [])] for row in column]
        else:
            out[name] = [_present(value, "string" if pa.types.is_string(kind) else "int64") for value in column]
    return out


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
    out = {}
    for name, spec in signature.items():
        values, dtype = inputs[name], spec.dtype.name
        if dtype == "float32":
            out[name] = np.array([np.nan if v is None else v for v in values], np.float32)
            continue
        python = object if dtype == "string" else np.int64
        if spec.shape.rank == 2:
            width = max((len(row) for row in values), default=0)
            padding = "" if dtype == "string" else MISSING_INT
            padded = [[*row, *[padding] * (width - len(row))] for row in values]
            out[name] = np.array(padded, dtype=python).reshape(len(values), width)
        else:
            out[name] = np.array(values, dtype=python)
    return out
