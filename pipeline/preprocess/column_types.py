"""The columns of a log file and their Arrow types, inferred from the head of the file."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.errors import UserError, did_you_mean
from clsd.features.schema import Schema
from clsd.features.tokens import arrow_type, source_type
from clsd.pipeline.preprocess.parsing import (
    DAMAGED,
    Part,
    bisect,
    compression_of,
    csv_fields,
    decompressed,
    open_binary,
    parse_csv,
    parse_json,
)
from clsd.pipeline.shared.config import CsvSettings, LogSettings

_HEAD_BYTES = 1 << 20
_FEW_LINES, _SAMPLED_LINES = 20, 2000
#: Length from which a line is no row of a log.
_LONGEST_LINE = 64 << 20
#: Patterns of text that means an integer, a number or a boolean.
_SHAPES = {
    pa.int64(): r"^\s*[+-]?\d+\s*$",
    pa.float64(): r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$",
    pa.bool_(): r"^(?i:true|false)$",
}

#: Text that means a number, and not an integer.
_FRACTION = r"^\s*[+-]?(\d+\.\d*|\.\d+|\d+[eE])"


def read_head(path: str) -> bytes:
    """The first whole lines of a text file. A damaged compressed file is refused later, when it is read."""
    parts: list[bytes] = []
    whole = False  # whether all of the file was read
    with open_binary(path) as raw:
        try:
            file = decompressed(path, raw)
            # At least one line: a single one may be longer than a head.
            while sum(map(len, parts)) < _HEAD_BYTES or (
                not any(b"\n" in part for part in parts) and sum(map(len, parts)) < _LONGEST_LINE
            ):
                part = file.read(_HEAD_BYTES // 16)
                if whole := not part:
                    break
                parts.append(bytes(part))
            if not whole and not any(b"\n" in part for part in parts):
                what = f"has a line of more than {_LONGEST_LINE >> 20} MiB"
                raise UserError(path, what, "write one row a line, or set logs.format")
        except DAMAGED as error:
            if not parts:
                what = f"is damaged, or no {compression_of(path)} file ({error})"
                raise UserError(path, what, "fetch it again, or rename it") from None
    head = b"".join(parts)
    head = head.removeprefix(b"\xef\xbb\xbf")
    return head if whole else head[: head.rfind(b"\n") + 1]


def csv_header(path: str, head: bytes, dialect: CsvSettings) -> tuple[str, ...]:
    """The names of a CSV file's columns."""
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    if line.startswith(b"\x1f\x8b"):
        raise UserError(path, "is compressed by gzip", "let its name end in .gz")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise UserError(path, "is no UTF-8 text, perhaps UTF-16", "convert it to UTF-8")
    try:
        names = tuple(name.strip() for name in csv_fields(line.decode(), dialect))
    except (ValueError, csv.Error):
        raise UserError(f"{path}:1", "the header is not UTF-8 text", "is it a CSV? set logs.format") from None
    if not any(names):
        raise UserError(f"{path}:1", "the first line is empty, and it must name the columns", "remove it")
    return names


def infer_json(path: str, head: bytes) -> dict[str, pa.DataType]:
    """Types of the columns in the first lines, inferred by pyarrow; lines that do not parse are ignored."""
    lines = [line for line in head.split(b"\n") if line.strip() and _is_utf8(line)][:_SAMPLED_LINES]
    good: list[bytes] = []
    for part in bisect(lines, lambda chunk: parse_json(b"\n".join(chunk), {})):
        good.extend(part.lines if part.table is not None else [])
    if not good and (column := _repeated_key(lines)):
        raise UserError(path, f"has column '{column}' twice in its first lines", "rename one of them")
    if not good:
        raise UserError(
            path, "none of its first lines is JSON in UTF-8", "write one JSON object a line, or set logs.format"
        )
    return _majority(bisect(good, lambda chunk: parse_json(b"\n".join(chunk), {})))


def refuse_repeated(where: str, names: Sequence[str]) -> None:
    """Refuse a file that has two columns of one name: nobody knows which of them is meant."""
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise UserError(where, f"has column '{repeated[0]}' {Counter(names)[repeated[0]]} times", "rename the others")


def _repeated_key(lines: list[bytes]) -> str | None:
    """A key that stands twice in an object among the lines."""
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        repeated.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)

    for line in lines[:_FEW_LINES]:
        with suppress(ValueError, RecursionError):
            json.loads(line, object_pairs_hook=look)
    return repeated[0] if repeated else None


def find_json_keys(path: str, columns: list[str]) -> list[str]:
    """The columns whose quoted name occurs anywhere in a JSON file."""
    open_ = {column: json.dumps(column, ensure_ascii=False).encode() for column in columns}
    there, tail = [], b""
    with open_binary(path) as raw:
        file = decompressed(path, raw)
        try:
            while open_ and (block := file.read(8 << 20)):
                window = tail + block
                there += [column for column, name in open_.items() if name in window]
                open_ = {column: name for column, name in open_.items() if column not in there}
                tail = block[-256:]
        except DAMAGED:
            pass  # a damaged file is refused when it is read
    return there


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _majority(parts: Iterator[Part]) -> dict[str, pa.DataType]:
    """The most frequent type of each column, so that a single odd line does not decide."""
    votes: dict[str, Counter[pa.DataType]] = {}
    for part in parts:
        for f in part.table.schema if part.table is not None else []:
            votes.setdefault(f.name, Counter())[f.type] += 0 if pa.types.is_null(f.type) else len(part.lines)
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def infer_csv(
    path: str, head: bytes, columns: tuple[str, ...], logs: LogSettings, typed: list[str], ids: list[str]
) -> dict[str, pa.DataType]:
    """All columns as text, except ``typed`` and ``ids``, which get the type of most of their values.

    If some number of a ``typed`` column has a fraction, all of them are read as such; not so of ids, which would lose digits.
    """
    body = head if logs.csv.columns else head.split(b"\n", 1)[-1]
    lines = [line for line in body.split(b"\n") if line.strip()][:_SAMPLED_LINES]
    as_text = dict.fromkeys(columns, pa.string())
    tables = [part.table for part in bisect(lines, lambda chunk: parse_csv(b"\n".join(chunk), columns, as_text, logs))]
    whole = pa.concat_tables([pa.schema(as_text).empty_table(), *(table for table in tables if table is not None)])
    result = as_text | {name: _type_of_most(whole[name]) for name in [*typed, *ids] if name in as_text}
    for name in typed:
        if result.get(name) == pa.int64() and pc.any(pc.match_substring_regex(whole[name], _FRACTION)).as_py():
            result[name] = pa.float64()
    return result


def _type_of_most(column: pa.ChunkedArray) -> pa.DataType:
    """int64, float64, bool or text: the type of most values."""
    values = column.drop_null()
    for kind, shape in _SHAPES.items():
        if len(values) and 2 * pc.sum(pc.match_substring_regex(values, shape)).as_py() > len(values):
            return kind
    return pa.string() if len(values) else pa.null()


def column_types(
    path: str, kind: str, schema: Schema, result: dict[str, pa.DataType], head: bytes = b""
) -> dict[str, pa.DataType]:
    """The type that each needed column is read as, without optional columns that the file lacks.

    Args:
        path: the file.
        kind: its format.
        schema: the schema.
        result: the types of the file's columns.
        head: the first lines of a text file.
    """
    result = {name: _plain(kind_of) for name, kind_of in result.items()}
    types: dict[str, pa.DataType] = {}
    for made in schema.histories:
        if made.source in result:
            what = f"has a column '{made.source}' already, and clicks_of would make another"
            raise UserError(path, what, "remove clicks_of to read the log's, or rename the feature")
    for feature in (f for f in schema.features if f not in schema.histories):
        if feature.source not in result and not feature.optional:
            raise _missing_column(path, feature.source, result)
        if feature.source not in result and kind == "jsonl":  # it may occur later; absent values are null
            types[feature.source] = source_type(schema, feature.source)
        elif feature.source in result:
            types[feature.source] = source_type(schema, feature.source)
            _check_type(path, kind, feature.name, types[feature.source], result[feature.source])
            if pa.types.is_list(types[feature.source]) and kind == "csv":
                raise UserError(
                    path,
                    f"'{feature.source}' is read as a list, which a CSV cannot hold",
                    "set the feature's separator",
                )
    for column in [schema.label, schema.user, schema.timestamp, schema.intensity, *schema.passthrough]:
        if column and column not in result:
            raise _missing_column(path, column, result)
    for column in [schema.user, schema.intensity]:
        if column and pa.types.is_nested(result[column]):
            raise UserError(path, f"'{column}' holds {_nested(result[column])}", "log one value a row")
    if schema.user:
        # In a CSV always text: whether "007" is a number must not depend on the file's other users.
        whole = pa.types.is_signed_integer(result[schema.user])  # an unsigned one may not fit
        as_int = whole or (kind == "jsonl" and pa.types.is_floating(result[schema.user]))
        as_int &= kind != "csv"
        types.setdefault(schema.user, pa.int64() if as_int else pa.string())
    for column in [schema.label, schema.timestamp]:
        if column:
            types[column] = result[column] if not pa.types.is_null(result[column]) else pa.int64()
            _check_scalar(path, column, types[column])
    if schema.timestamp:
        _check_time(path, kind, schema, types[schema.timestamp])
    of_text = kind in ("csv", "jsonl")
    if schema.timestamp and of_text and (schema.timestamp_unit == "iso" or _is_time(types[schema.timestamp])):
        types[schema.timestamp] = pa.string()
    for feature in (f for f in schema.features if f.source == schema.timestamp):
        whole, wanted = pa.types.is_integer(types[feature.source]), arrow_type(feature)
        number = whole or pa.types.is_floating(types[feature.source])
        fits = number if pa.types.is_floating(wanted) else whole or (pa.types.is_string(wanted) and not number)
        if not fits:
            what = f"feature '{feature.name}' reads '{feature.source}' as {wanted}, and it is {types[feature.source]}"
            raise UserError(path, what, "give the feature a column of its own")
    if schema.intensity:
        types.setdefault(schema.intensity, pa.float64())
    for column in schema.passthrough:
        # The JSON parser needs the type; a time is text and is kept as written.
        typed = kind == "jsonl" and not pa.types.is_null(result[column]) and not _is_time(result[column])
        nested = pa.types.is_nested(result[column])
        types.setdefault(column, result[column] if typed or nested else pa.string())
        if typed and pa.types.is_floating(types[column]) and _holds_long_integers(head, column):
            what = f"passthrough '{column}' holds integers that a column with fractions, or beyond int64, cannot hold"
            raise UserError(path, what, "log them as text")
        if pa.types.is_nested(types[column]):
            what = f"passthrough '{column}' holds {_nested(types[column])}"
            raise UserError(path, what, "carry text, numbers or booleans, or leave it out")
    return types


def parsed_as(
    kind: str, schema: Schema, head: bytes, types: dict[str, pa.DataType], result: dict[str, pa.DataType]
) -> dict[str, pa.DataType]:
    """Types that columns of integers are parsed as, where most of the text has numbers with a fraction.

    A tool that has no missing integers writes 12.0.
    """
    fractional = fractions_of({name: types[name] for name in schema.id_columns if name in types})
    columns = [name for name, found in fractional.items() if result.get(name) == found]
    # A type inferred from JSON is that of the widest value.
    rows = _json_rows(head) if kind == "jsonl" and columns else []
    return {name: fractional[name] for name in columns if kind != "jsonl" or _mostly_fractional(rows, name)}


def fractions_of(types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """For columns of integers, and of lists of integers, the types of the same with fractions."""
    fractional = {pa.int64(): pa.float64(), pa.list_(pa.int64()): pa.list_(pa.float64())}
    return {name: fractional[kind] for name, kind in types.items() if kind in fractional}


def _json_rows(head: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in head.split(b"\n")[:_SAMPLED_LINES]:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _holds_long_integers(head: bytes, column: str) -> bool:
    return any(type(row.get(column)) is int and abs(row[column]) > 2**53 for row in _json_rows(head))


def _mostly_fractional(rows: list[dict[str, Any]], column: str) -> bool:
    values = [row.get(column) for row in rows]
    flat = [value for one in values for value in (one if isinstance(one, list) else [one])]
    return sum(type(value) is float for value in flat) > sum(type(value) is int for value in flat)


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _check_scalar(path: str, column: str, kind: pa.DataType) -> None:
    """Refuse labels and times that are not numbers, booleans, text or times."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    scalar = number or pa.types.is_boolean(kind)
    if not (scalar or pa.types.is_string(kind) or _is_time(kind)):
        raise UserError(path, f"'{column}' holds {kind}", "log numbers, text, or timestamps")


def _check_time(path: str, kind: str, schema: Schema, found: pa.DataType) -> None:
    """Refuse a type of timestamps that the unit does not fit."""
    number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    if schema.timestamp_unit == "iso" and number and kind not in ("csv", "jsonl"):
        what = f"'{schema.timestamp}' holds {found}, and rows.timestamp_unit is iso"
        raise UserError(path, what, "set rows.timestamp_unit to s, ms, us or ns")
    if pa.types.is_boolean(found):
        raise UserError(path, f"'{schema.timestamp}' holds booleans", "log numbers, text, or timestamps")
    if found in (pa.float16(), pa.float32()):
        what = f"'{schema.timestamp}' holds {found}, which does not hold every second"
        raise UserError(path, what, "log int64 or float64")


def _check_type(path: str, kind: str, feature: str, wanted: pa.DataType, result: pa.DataType) -> None:
    """Refuse a file if every row of it would be refused."""
    if kind == "csv" or pa.types.is_null(result):
        return
    if not pa.types.is_list(wanted) and pa.types.is_nested(result):
        what = _nested(result)
        hint = "make it a bag or a sequence, and remove a separator" if what == "lists" else _FLATTEN
        raise UserError(path, f"feature '{feature}' is read as one value, and the log has {what}", hint)
    inner = result.value_type if _is_list(result) else None
    if pa.types.is_list(wanted) and inner is not None and pa.types.is_nested(inner):
        what = "lists of lists" if _is_list(inner) else "lists of objects"
        raise UserError(path, f"feature '{feature}' is read as a list of values, and the log has {what}", _FLATTEN)
    if pa.types.is_list(wanted) and pa.types.is_nested(result) and inner is None:
        raise UserError(path, f"feature '{feature}' is read as a list, and the log has {_nested(result)}", _FLATTEN)
    if pa.types.is_list(wanted) and not pa.types.is_nested(result):
        raise UserError(
            path, f"feature '{feature}' is read as a list, and the log has none", "set the feature's separator"
        )
    if not pa.types.is_nested(result) and not _can_cast(result, wanted):
        what = f"feature '{feature}' is read as {wanted}, and the log has {result}"
        raise UserError(path, what, "log numbers or text, or another kind of feature")
    if kind != "jsonl":
        return
    if pa.types.is_string(wanted) and pa.types.is_boolean(result):
        raise UserError(path, f"feature '{feature}' is read as text, and the log has booleans", "log them as text")
    if pa.types.is_string(wanted) and (pa.types.is_integer(result) or pa.types.is_floating(result)):
        what = "integers" if pa.types.is_integer(result) else "numbers"
        raise UserError(
            path, f"feature '{feature}' is read as text, and the log has {what}", "set the feature's dtype: int64"
        )
    if pa.types.is_integer(wanted) and pa.types.is_string(result):
        raise UserError(
            path, f"feature '{feature}' is read as int64, and the log has text", "set the feature's dtype: string"
        )


def _can_cast(found: pa.DataType, wanted: pa.DataType) -> bool:
    try:
        pa.nulls(0, found).cast(wanted)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


_FLATTEN = "log its parts as columns of their own"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _nested(kind: pa.DataType) -> str:
    """What a nested type holds, for a message."""
    if pa.types.is_union(kind):
        return f"values of several types ({', '.join(str(kind.field(i).type) for i in range(kind.num_fields))})"
    return "lists" if _is_list(kind) else "objects"


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: large or dictionary-encoded text is text."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _missing_column(path: str, column: str, result: dict[str, Any]) -> UserError:
    if len(result) == 1 and (marks := [mark for mark in ";\t|," if mark in next(iter(result))]):
        hint = f"is the delimiter {marks[0]!r}? set logs.csv.delimiter"
        return UserError(path, f"has no column '{column}', and only one column", hint)
    hint = did_you_mean(column, result)
    return UserError(
        path, f"has no column '{column}'", f"{hint}; correct the config's rows, or mark the feature optional: true"
    )
