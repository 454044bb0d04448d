"""Casts columns of typed formats (Parquet, Avro, numbers in JSON) to the schema's types.

An id that a tool has turned into a number with a fraction, because some value was missing, is an integer again: 1234567890123.0
is "1234567890123", and NaN is missing. Arrow's cast would make the texts "1.234567890123e+12" and "nan", which no client sends.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Column
from clsd.features.tokens import plain

#: From here on, a float type does not hold every whole number: 2^53 may have been 2^53 + 1.
_EXACT = {pa.float16(): 2.0**11, pa.float32(): 2.0**24, pa.float64(): 2.0**53}


def cast(column: Column, field: pa.Field, *, is_id: bool) -> Column:
    """A column as the type of a field.

    Args:
        column: the column as the file has it.
        field: name and wanted type.
        is_id: whether its values are ids, so that a number with a fraction is not one.

    Raises:
        pa.ArrowInvalid: a value does not fit; the message names the column.
    """
    if pa.types.is_dictionary(column.type) and column.type.value_type == field.type:
        return column
    try:
        return _cast(plain(column), field.type, is_id=is_id)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"Column(/{field.name}) failed to cast: {error}") from None


def shown(value: pa.Scalar) -> Any:
    """A value for a dead letter, as JSON takes it; broken UTF-8 is escaped, and what Python cannot hold is text."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes().decode(errors="backslashreplace")
    except (ValueError, OverflowError):  # nanoseconds, or a year above 9999
        return str(value.cast(pa.string()))


def _cast(column: Column, kind: pa.DataType, *, is_id: bool) -> Column:
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_cast(chunk, kind, is_id=is_id) for chunk in column.chunks], kind)
    if pa.types.is_list(kind):
        return _cast_lists(column, kind, is_id=is_id)
    is_text_or_int = pa.types.is_string(kind) or pa.types.is_integer(kind)
    if is_id and is_text_or_int and column.type in _EXACT:
        column = _whole_floats(column)
    elif is_id and is_text_or_int and pa.types.is_decimal(column.type):
        column = _whole_decimals(column)
    elif pa.types.is_string(kind) and column.type in _EXACT:
        column = _nan_as_null(column.cast(pa.float64()))
    # A number may lose its last digits: float64 does not hold every int64.
    return column.cast(kind, safe=not (pa.types.is_integer(column.type) and pa.types.is_floating(kind)))


def _cast_lists(lists: pa.Array, kind: pa.DataType, *, is_id: bool) -> pa.Array:
    if not pa.types.is_nested(lists.type):
        return lists.cast(kind)
    lists = lists.cast(pa.list_(lists.type.value_type))
    if lists.type == kind:
        return lists
    if lists.offset or lists.offsets[-1].as_py() != len(lists.values):  # a slice shares the values of the whole
        lists = lists.take(pa.array(range(len(lists))))
    values = _cast(lists.values, kind.value_type, is_id=is_id)
    return pa.ListArray.from_arrays(lists.offsets, values, mask=lists.is_null())


def _whole_floats(values: pa.Array) -> pa.Array:
    largest = _EXACT[values.type]
    values = _nan_as_null(values.cast(pa.float64()))
    fits = pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), largest))
    if pc.all(fits).as_py() is False:
        raise pa.ArrowInvalid(f"an id that is not a whole number below 2^{round(largest).bit_length() - 1}")
    return values.cast(pa.int64())


def _whole_decimals(values: pa.Array) -> pa.Array:
    if values.type.scale == 0:
        return values
    try:
        return values.cast(pa.decimal128(38, 0))
    except pa.ArrowInvalid:
        raise pa.ArrowInvalid("an id that is not a whole number") from None


def _nan_as_null(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
