"""Finds the log files, their columns, and the input splits in which workers read them.

Input splits depend on the files alone, not on the workers: byte ranges of uncompressed text and Avro, row groups of Parquet,
whole files of compressed text.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import as_path, is_remote
from clsd.features.schema import Schema
from clsd.features.tokens import arrow_type
from clsd.pipeline.preprocess import avro
from clsd.pipeline.preprocess.columns import KEY, POSITION, RESERVED
from clsd.pipeline.preprocess.parsing import (
    DAMAGED,
    Part,
    bisect,
    compression_of,
    csv_fields,
    decompressed,
    open_binary,
    open_parquet,
    parse_csv,
)
from clsd.pipeline.shared.config import CsvSettings, LogSettings
from clsd.pipeline.shared.files import as_user_errors

_HEAD_BYTES = 1 << 20
#: Patterns of text that means an integer, a number or a boolean.
_SHAPES = {
    pa.int64(): r"^\s*[+-]?\d+\s*$",
    pa.float64(): r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$",
    pa.bool_(): r"^(?i:true|false)$",
}


@dataclass(frozen=True)
class InputSplit:
    """A part of one log file, which one worker reads.

    Args:
        path: the file.
        index: position among all input splits of the job; part of each row's key.
        format: jsonl, csv, parquet or avro.
        start, end: bytes of a text file, or the first and last-plus-one row group; end -1: all of it.
        size, modified: of the whole file, in bytes and in seconds since 1970 (0 where the file system does not tell).
        columns: names of a CSV file's fields, in order.
        types: Arrow type of each column that is read, by name.
        coded: columns that are passed on dictionary-encoded: features with one value per row.
        unread: columns of the file (by its first lines) that nothing reads.
    """

    path: str
    index: int
    format: str
    start: int = 0
    end: int = -1
    size: int = 0
    modified: float = 0.0
    columns: tuple[str, ...] = ()
    types: dict[str, pa.DataType] = field(default_factory=dict)
    coded: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    has_header: bool = False


def plan(logs: LogSettings, schema: Schema) -> list[InputSplit]:
    """Find the files, read the head of each, and split them.

    Raises:
        UserError: a pattern matches nothing, a file is unreadable or empty, or a column is missing.
    """
    if not logs.files:
        raise UserError("logs.files", "names no file", "give paths or patterns, or set logs.dataset and use `clsd run`")
    _refuse_reserved(schema)
    paths: dict[str, FileMetadata] = {}
    for pattern, match in zip(logs.files, _match(logs.files), strict=True):
        if not match:
            raise UserError(pattern, "no such file", "correct logs.files, or fetch the data first with `clsd dataset`")
        paths |= match
    input_splits: list[InputSplit] = []
    for path, file in sorted(paths.items()):
        result: dict[str, Any] = {"size": file.size_in_bytes, "modified": file.last_updated_in_seconds or 0.0}
        for start, end, input_split in _cut(path, file.size_in_bytes, logs, schema):
            result["coded"] = tuple(name for name in schema.single_valued if name in input_split["types"])
            input_splits.append(
                InputSplit(**{**input_split, **result, "index": len(input_splits), "start": start, "end": end})
            )
    return input_splits


def _refuse_reserved(schema: Schema) -> None:
    """Refuse columns with the names that the job adds."""
    carried = [*(feature.source for feature in schema.features), schema.intensity, *schema.passthrough]
    for column in [name for name in carried if name in RESERVED] + [c for c in schema.columns if c in (KEY, POSITION)]:
        raise UserError("rows", f"column '{column}' has a reserved name", "rename it in the log")


def _match(patterns: list[str]) -> Iterator[dict[str, FileMetadata]]:
    for pattern in patterns:
        if is_remote(pattern):
            yield _match_objects(pattern)
            continue
        try:
            (result,) = FileSystems.match([pattern])
        except (BeamIOError, ValueError) as error:
            raise UserError(pattern, f"cannot be looked up ({error})", "correct logs.files") from None
        yield {metadata.path: metadata for metadata in result.metadata_list}


def _match_objects(pattern: str) -> dict[str, FileMetadata]:
    """Match objects with the same client that reads and writes them elsewhere, not Beam's."""
    root: Any = as_path(pattern)
    with as_user_errors(pattern):
        result = root.fs.glob(root.path, detail=True)
    files = {f"{root.protocol}://{name}": file for name, file in result.items() if file["type"] == "file"}
    return {path: FileMetadata(path, file["size"], _seconds(file)) for path, file in files.items()}


def _seconds(file: dict[str, Any]) -> float:
    when = file.get("LastModified") or file.get("mtime") or 0.0
    return when.timestamp() if isinstance(when, datetime) else float(when)


def _cut(path: str, size: int, logs: LogSettings, schema: Schema) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, the other arguments) of each input split of a file."""
    kind = logs.format if logs.format != "auto" else _format_of(path)
    if size == 0:
        raise UserError(path, "is empty", "leave it out of logs.files, or write the log again")
    if kind == "parquet":
        with open_binary(path) as file:
            parquet = open_parquet(path, file)
            there = {f.name: f.type for f in parquet.schema_arrow}
            types = _types(path, kind, schema, there)
            for group in range(parquet.num_row_groups):
                yield group, group + 1, {"path": path, "format": kind, "types": types, "unread": _unread(there, types)}
        return
    chunk = logs.chunk_mebibytes << 20
    if kind == "avro":
        with open_binary(path) as file:
            there = avro.columns_of(path, file)
            types = _types(path, kind, schema, there)
        for start in range(0, size, chunk):
            read = {"types": types, "unread": _unread(there, types)}
            yield start, min(start + chunk, size), {"path": path, "format": kind, **read}
        return
    head = _head(path)
    columns: tuple[str, ...] = ()
    if kind == "csv":
        columns = tuple(logs.csv.columns) or _header(path, head, logs.csv)
        result = _inferred_csv(path, head, columns, logs, [schema.label, schema.timestamp])
    else:
        result = _inferred_json(path, head)
        # A key that the first lines lack may occur later: search the file for it.
        optional = {feature.source for feature in schema.features if feature.optional}
        late = [column for column in schema.columns if column not in result and column not in optional]
        result |= dict.fromkeys(_keys_anywhere(path, late), pa.null()) if late else {}
    types = _types(path, kind, schema, result)
    input_split: dict[str, Any] = {
        "path": path,
        "format": kind,
        "columns": columns,
        "types": types,
        "unread": _unread(result, types),
        "has_header": kind == "csv" and not logs.csv.columns,
    }
    if compression_of(path):
        yield 0, -1, input_split
    else:
        for start in range(0, size, chunk):
            yield start, min(start + chunk, size), input_split


def _unread(there: dict[str, Any], types: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(there.keys() - types.keys()))


def _format_of(path: str) -> str:
    compression = compression_of(path)
    name = path.removesuffix(compression)
    endings = {
        ".jsonl": "jsonl",
        ".json": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
        ".avro": "avro",
    }
    for ending, kind in endings.items():
        if name.endswith(ending) and not (kind in ("parquet", "avro") and compression):
            return kind
    raise UserError(
        path, "has an ending that does not tell the format", "set logs.format to jsonl, csv, parquet or avro"
    )


def _head(path: str) -> bytes:
    """The first whole lines of a text file. A damaged compressed file is refused later, when it is read."""
    parts: list[bytes] = []
    with open_binary(path) as raw:
        try:
            file = decompressed(path, raw)
            while sum(map(len, parts)) < _HEAD_BYTES and (part := file.read(_HEAD_BYTES // 16)):
                parts.append(bytes(part))
        except DAMAGED as error:
            if not parts:
                what = f"is damaged, or no {compression_of(path)} file ({error})"
                raise UserError(path, what, "fetch it again, or rename it") from None
    head = b"".join(parts)
    whole = len(head) < _HEAD_BYTES
    head = head.removeprefix(b"\xef\xbb\xbf")
    return head if whole else head[: head.rfind(b"\n") + 1]


def _header(path: str, head: bytes, dialect: CsvSettings) -> tuple[str, ...]:
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    try:
        names = tuple(name.strip() for name in csv_fields(line.decode(), dialect))
    except (ValueError, csv.Error):
        raise UserError(f"{path}:1", "the header is not UTF-8 text", "is it a CSV? set logs.format") from None
    return names


def _inferred_json(path: str, head: bytes) -> dict[str, pa.DataType]:
    """Types of the columns in the first lines, inferred by pyarrow; lines that do not parse are ignored."""
    lines = [line for line in head.split(b"\n") if line.strip() and _is_utf8(line)][:2000]
    good: list[bytes] = []
    for part in bisect(lines, lambda chunk: pa.json.read_json(pa.BufferReader(b"\n".join(chunk)))):
        good.extend(part.lines if part.table is not None else [])
    if not good:
        raise UserError(
            path, "none of its first lines is JSON in UTF-8", "write one JSON object a line, or set logs.format"
        )
    return _majority(bisect(good, lambda chunk: pa.json.read_json(pa.BufferReader(b"\n".join(chunk)))))


def _keys_anywhere(path: str, columns: list[str]) -> list[str]:
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


def _inferred_csv(
    path: str, head: bytes, columns: tuple[str, ...], logs: LogSettings, typed: list[str]
) -> dict[str, pa.DataType]:
    """All columns as text, except ``typed``, which get the type of most of their values."""
    body = head if logs.csv.columns else head.split(b"\n", 1)[-1]
    lines = [line for line in body.split(b"\n") if line.strip()][:2000]
    as_text = dict.fromkeys(columns, pa.string())
    tables = [part.table for part in bisect(lines, lambda chunk: parse_csv(b"\n".join(chunk), columns, as_text, logs))]
    whole = pa.concat_tables([pa.schema(as_text).empty_table(), *(table for table in tables if table is not None)])
    return as_text | {name: _type_of_most(whole[name]) for name in typed if name in as_text}


def _type_of_most(column: pa.ChunkedArray) -> pa.DataType:
    """int64, float64, bool or text: the type of most values."""
    values = column.drop_null()
    for kind, shape in _SHAPES.items():
        if len(values) and 2 * pc.sum(pc.match_substring_regex(values, shape)).as_py() > len(values):
            return kind
    return pa.string() if len(values) else pa.null()


def _types(path: str, kind: str, schema: Schema, result: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """The type that each needed column is read as, without optional columns that the file lacks."""
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
            types[feature.source] = arrow_type(feature)
        elif feature.source in result:
            types[feature.source] = arrow_type(feature)
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
    if schema.user:
        # In a CSV always text: whether "007" is a number must not depend on the file's other users.
        as_int = kind != "csv" and pa.types.is_integer(result[schema.user])
        types.setdefault(schema.user, pa.int64() if as_int else pa.string())
    for column in [schema.label, schema.timestamp]:
        if column:
            types[column] = result[column] if not pa.types.is_null(result[column]) else pa.int64()
            _check_scalar(path, column, types[column])
    of_text = kind in ("csv", "jsonl")
    if schema.timestamp and of_text and (schema.timestamp_unit == "iso" or _is_time(types[schema.timestamp])):
        types[schema.timestamp] = pa.string()
    for feature in (f for f in schema.features if f.source == schema.timestamp):
        number = pa.types.is_integer(types[feature.source]) or pa.types.is_floating(types[feature.source])
        if not number and not pa.types.is_string(arrow_type(feature)):
            what = f"feature '{feature.name}' reads '{feature.source}' as a number, and it is {types[feature.source]}"
            raise UserError(path, what, "give the feature a column of its own")
    if schema.intensity:
        types.setdefault(schema.intensity, pa.float64())
    for column in schema.passthrough:
        # The JSON parser needs the type; a time is text and is kept as written.
        typed = kind == "jsonl" and not pa.types.is_null(result[column]) and not _is_time(result[column])
        nested = pa.types.is_nested(result[column])
        types.setdefault(column, result[column] if typed or nested else pa.string())
        if pa.types.is_nested(types[column]):
            raise UserError(
                path, f"passthrough '{column}' holds lists", "carry text, numbers or booleans, or leave it out"
            )
    return types


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _check_scalar(path: str, column: str, kind: pa.DataType) -> None:
    """Refuse labels and times that are not numbers, booleans, text or times."""
    scalar = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (scalar or pa.types.is_string(kind) or _is_time(kind)):
        raise UserError(path, f"'{column}' holds {kind}", "log numbers, text, or timestamps")


def _check_type(path: str, kind: str, feature: str, wanted: pa.DataType, result: pa.DataType) -> None:
    """Refuse a file if every row of it would be refused."""
    if kind == "csv" or pa.types.is_null(result):
        return
    if not pa.types.is_list(wanted) and pa.types.is_nested(result):
        what = "lists" if pa.types.is_list(result) or pa.types.is_large_list(result) else "objects"
        hint = "make it a bag or a sequence, and remove a separator" if what == "lists" else "log its parts as columns"
        raise UserError(path, f"feature '{feature}' is read as one value, and the log has {what}", hint)
    if pa.types.is_list(wanted) and not pa.types.is_nested(result):
        raise UserError(
            path, f"feature '{feature}' is read as a list, and the log has none", "set the feature's separator"
        )
    if kind != "jsonl":
        return
    if pa.types.is_string(wanted) and pa.types.is_integer(result):
        raise UserError(
            path, f"feature '{feature}' is read as text, and the log has integers", "set the feature's dtype: int64"
        )
    if pa.types.is_integer(wanted) and pa.types.is_string(result):
        raise UserError(
            path, f"feature '{feature}' is read as int64, and the log has text", "set the feature's dtype: string"
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: large or dictionary-encoded text is text."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _missing_column(path: str, column: str, result: dict[str, Any]) -> UserError:
    hint = did_you_mean(column, result)
    return UserError(
        path, f"has no column '{column}'", f"{hint}; correct the config's rows, or mark the feature optional: true"
    )
