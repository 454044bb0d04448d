"""Finds rows that parse but break the schema, batch by batch, each with its reason."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Bools
from clsd.features.hashing import hash64
from clsd.features.schema import BagFeature, NumericFeature, Schema, SequenceFeature
from clsd.features.tokens import as_type, source_type
from clsd.pipeline.preprocess.casting import shown
from clsd.pipeline.preprocess.columns import KEY, LABEL, POSITION, TIME, USER

#: Hash of the empty text.
_NO_TEXT = hash64(pa.array([""]))[0]
_YEAR_2200 = 7_258_118_400_000_000
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def check(schema: Schema, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    """Separate a batch into usable and refused rows.

    Args:
        schema: the roles and ranges.
        batch: rows as :class:`clsd.pipeline.preprocess.sources.Reader` gives them.

    Returns:
        the usable rows with the columns of :func:`carried`; and (index in the batch, reason) of each refused row.
    """
    reasons = [""]
    first = np.zeros(batch.num_rows, np.int16)  # index of each row's first reason

    def refuse(wrong: Bools, reason: str) -> None:
        first[wrong & (first == 0)] = len(reasons)
        reasons.append(reason)

    label = _as_int(batch.column(schema.label))
    refuse(_nulls(batch.column(schema.label)), f"no {schema.label}")
    values = pc.fill_null(label, -1).to_numpy(zero_copy_only=False)
    refuse((values != 0) & (values != 1), f"{schema.label} is neither 0 nor 1")

    time = pa.array(np.zeros(batch.num_rows, np.int64))
    if schema.timestamp:
        time = microseconds(batch.column(schema.timestamp), schema.timestamp_unit)
        refuse(_nulls(time), f"no valid {schema.timestamp}")
        moments = pc.fill_null(time, 0).to_numpy(zero_copy_only=False)
        refuse(
            (moments < 0) | (moments >= _YEAR_2200),
            f"{schema.timestamp} not within 1970-2199: is timestamp_unit right?",
        )
    user = np.zeros(batch.num_rows, np.uint64)
    if schema.user:
        user = hash64(batch.column(schema.user))
        refuse((user == 0) | (user == _NO_TEXT), f"no {schema.user}")
    for feature in schema.features:
        if isinstance(feature, NumericFeature) and feature.source in batch.schema.names:
            x = np.asarray(batch.column(feature.source).to_numpy(zero_copy_only=False), dtype=np.float64)
            if feature.min is not None:
                refuse(x < feature.min, f"{feature.source} below {feature.min:g}")
            if feature.max is not None:
                refuse(x > feature.max, f"{feature.source} above {feature.max:g}")
        elif (
            isinstance(feature, (BagFeature, SequenceFeature))
            and feature.separator
            and feature.dtype == "int64"
            and feature.source in batch.schema.names
        ):
            values = pc.split_pattern(batch.column(feature.source), pattern=feature.separator)
            wrong = np.zeros(batch.num_rows, bool)
            wrong[pc.list_parent_indices(values).to_numpy()[~_are_int64(values.flatten())]] = True
            refuse(wrong, f"{feature.source} holds something other than integers")

    result = {name: batch.column(name) for name in batch.schema.names} | {
        LABEL: label,
        TIME: time,
        USER: pa.array(user),
    }
    fields = carried(schema)
    columns = [
        as_type(result[field.name], field.type) if field.name in result else pa.nulls(batch.num_rows, field.type)
        for field in fields
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=fields)
    usable = first == 0
    if usable.all():
        return batch, []
    refused = [(int(i), reasons[first[i]]) for i in np.flatnonzero(~usable)]
    return batch.filter(pa.array(usable)), refused


def carried(schema: Schema) -> pa.Schema:
    """The columns of checked rows, the same for every log file. Absent columns are null; passthrough columns are text.

    ``_label`` is 0 or 1, ``_time`` microseconds since 1970 (0 without a timestamp), ``_user`` a hash (0 without a user). The raw
    label, time and user are dropped unless a feature or ``passthrough`` names their columns.
    """
    types: dict[str, pa.DataType] = {}
    for feature in schema.features:
        if feature not in schema.histories:
            kind = source_type(schema, feature.source)
            types[feature.source] = pa.dictionary(pa.int32(), kind) if feature.source in schema.single_valued else kind
    if schema.intensity:
        types.setdefault(schema.intensity, pa.float64())
    for name in schema.passthrough:
        types.setdefault(name, pa.string())
    ours = {KEY: pa.uint64(), LABEL: pa.int64(), TIME: pa.int64(), USER: pa.uint64()}
    return pa.schema([*types.items(), *ours.items()])


def microseconds(column: pa.Array, unit: str) -> pa.Array:
    """A timestamp column as int64 microseconds since 1970 UTC; null if it cannot be read.

    Text without a time zone is UTC.
    """
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    if pa.types.is_string(column.type):
        return _parse_iso(column)
    factor = _MICROSECONDS.get(unit, 1)
    if pa.types.is_floating(column.type):  # a fraction of a second is kept to the microsecond
        wide = column.cast(pa.float64())
        return _as_int(pc.round(pc.divide(wide, 1000.0) if unit == "ns" else pc.multiply(wide, float(factor))))
    if pa.types.is_decimal(column.type):
        return microseconds(column.cast(pa.float64()), unit)
    whole = _as_int(column)
    if unit == "ns":
        return pc.divide(whole, 1000)
    limit = 2**62 // factor
    inside = pc.and_(pc.greater(whole, -limit), pc.less(whole, limit))
    return pc.multiply(pc.if_else(inside, whole, pa.scalar(None, pa.int64())), factor)


def refused_text(batch: pa.RecordBatch, position: int) -> str:
    """A refused row as JSON, for its dead letter."""
    row = {name: shown(batch.column(name)[position]) for name in batch.schema.names if name not in (KEY, POSITION)}
    return json.dumps(row, ensure_ascii=False, default=str)


def _parse_iso(column: pa.Array) -> pa.Array:
    # A zone follows a time: the -01 of 2026-05-01 is none.
    zoned = pc.fill_null(pc.match_substring_regex(column, r":[\d:.]*(Z|[+-]\d\d(:?\d\d)?)$"), False)
    iso = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)?)?$"
    well_formed = pc.if_else(
        pc.fill_null(pc.match_substring_regex(column, iso), False), column, pa.scalar(None, pa.string())
    )
    none = pa.scalar(None, pa.string())

    def parse(text: pa.Array, kind: pa.DataType) -> pa.Array:
        try:
            return text.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:  # some value has a month 13 or an hour 25: cast row by row
            values = []
            for value in text:
                try:
                    values.append(value.cast(kind).cast(pa.int64()).as_py())
                except pa.ArrowInvalid:
                    values.append(None)
            return pa.array(values, pa.int64())

    nanoseconds = pa.timestamp("ns")  # a log may have nine decimals; microseconds are kept
    local = parse(pc.if_else(zoned, none, well_formed), nanoseconds)
    utc = parse(pc.if_else(zoned, well_formed, none), pa.timestamp("ns", tz="UTC"))
    return pc.divide(pc.coalesce(local, utc), 1000)


def _are_int64(texts: pa.Array) -> Bools:
    """Whether each text is empty or a decimal integer that int64 holds, bool ``[n]``."""
    fits = np.array(pc.match_substring_regex(texts, r"^(-?\d{1,18})?$"), bool)
    for at in np.flatnonzero(~fits):  # rare: 19 digits, or leading zeros
        text = texts[at].as_py()
        sign, digits = text[: text.startswith("-")], text.removeprefix("-").lstrip("0")
        short = bool(re.fullmatch(r"-?[0-9]+", text)) and len(digits) <= 19
        fits[at] = short and -(2**63) <= int(f"{sign}{digits or 0}") < 2**63
    return fits


def _as_int(column: pa.Array) -> pa.Array:
    """Booleans and whole floats as int64; other values become null."""
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.int64(), safe=False)  # an unsigned overflow turns negative, which is refused
    if pa.types.is_decimal(column.type) or column.type == pa.float16():
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        whole: Any = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**62))
        return pc.if_else(whole, column, pa.scalar(None, column.type)).cast(pa.int64(), safe=False)
    return pa.nulls(len(column), pa.int64())


def _nulls(column: pa.Array) -> Bools:
    return np.asarray(column.is_null(), dtype=bool)
