"""Avro container files: their columns, and the records of a byte range, block by block.

A file is a header and blocks of records, each followed by the file's sync marker. A block belongs to the input split in whose
byte range it starts, so many workers can read one file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any
from uuid import UUID

import fastavro
import pyarrow as pa

from clsd.features.errors import UserError
from clsd.pipeline.preprocess.column_types import refuse_repeated
from clsd.pipeline.shared.loaders import as_damage

_SYNC_BYTES = 16
_SEARCH_BYTES = 1 << 20
HINT = "write the file again, or leave it out of logs.files"

_PLAIN: dict[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "string": pa.string(),
    "enum": pa.string(),
    "bytes": pa.binary(),
    "fixed": pa.binary(),
    "map": pa.map_(pa.string(), pa.string()),
    "record": pa.struct([]),
}
#: By base and logical type; by the specification, an unknown logical type, or one on another base, is its base type.
_LOGICAL: dict[str, pa.DataType] = {
    "long timestamp-millis": pa.timestamp("us", tz="UTC"),
    "long timestamp-micros": pa.timestamp("us", tz="UTC"),
    "long timestamp-nanos": pa.timestamp("ns", tz="UTC"),
    "long local-timestamp-millis": pa.timestamp("us"),
    "long local-timestamp-micros": pa.timestamp("us"),
    "long local-timestamp-nanos": pa.timestamp("ns"),
    "int time-millis": pa.time64("us"),
    "long time-micros": pa.time64("us"),
    "int date": pa.date32(),
}
_DECIMAL_DIGITS = 38


def columns_of(path: str, file: IO[bytes]) -> dict[str, pa.DataType]:
    """Arrow types of a file's columns, by name. A union with null is its other branch; a record is an empty struct.

    Raises:
        UserError: the file is not an Avro container, or holds no records.
    """
    schema = _header(path, file).writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise UserError(path, "holds no records", "write one Avro record a row")
    refuse_repeated(path, [field["name"] for field in schema["fields"]])
    named: dict[str, pa.DataType] = {}
    return {field["name"]: _type(field["type"], named) for field in schema["fields"]}


def as_values(types: dict[str, pa.DataType], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values of records that Arrow does not take as the library gives them: a UUID becomes text, an integer of a union with
    numbers a number."""
    texts = [name for name, kind in types.items() if pa.types.is_string(kind)]
    lists = [name for name, kind in types.items() if pa.types.is_list(kind)]
    numbers = [name for name, kind in types.items() if pa.types.is_floating(kind)]
    for record in records:
        for name in numbers:
            if isinstance(record.get(name), int):
                record[name] = float(record[name])
        for name in texts:
            if isinstance(record.get(name), UUID):
                record[name] = str(record[name])
        for name in lists:
            record[name] = (
                [str(v) if isinstance(v, UUID) else v for v in record[name]] if record.get(name) else record.get(name)
            )
    return records


def blocks(path: str, file: IO[bytes], start: int, end: int) -> Iterator[list[dict[str, Any]]]:
    """The records of each block that starts within ``[start, end)``.

    Raises:
        UserError: a block is damaged or truncated, or its codec is not installed.
    """
    _header(path, file)
    length = file.tell()  # the library has read only the header
    file.seek(0)
    header = file.read(length)
    at = length if start <= length else _after_sync(file, start - _SYNC_BYTES, header[-_SYNC_BYTES:])
    if at < 0 or at >= end:
        return
    stream: Any = _Spliced(header, file, at)
    with as_damage(path, "is damaged or truncated", HINT):
        for block in fastavro.block_reader(stream):
            if at + (block.offset - length) >= end:
                return
            yield list(block)  # type: ignore[arg-type]  # records are rows: columns_of has seen to it


def records_before(path: str, file: IO[bytes], start: int) -> int:
    """Number of records in the blocks that start before a byte."""
    file.seek(0)
    count = 0
    with as_damage(path, "is damaged or truncated", HINT):
        for block in fastavro.block_reader(file):
            if block.offset >= start:
                break
            count += block.num_records
    return count


class _Spliced(io.RawIOBase):
    """A header followed by a file from an offset on, as one stream."""

    def __init__(self, header: bytes, file: IO[bytes], at: int) -> None:
        self._header, self._file, self._position = header, file, 0
        file.seek(at)

    def read(self, size: int = -1) -> bytes:
        head = self._header[self._position :] if size < 0 else self._header[self._position : self._position + size]
        self._position += len(head)
        rest = self._file.read(-1 if size < 0 else size - len(head)) if size != len(head) else b""
        self._position += len(rest)
        return head + rest

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True


def _header(path: str, file: IO[bytes]) -> Any:
    file.seek(0)
    with as_damage(path, "is not an Avro file", HINT):
        return fastavro.block_reader(file)


def _after_sync(file: IO[bytes], at: int, sync: bytes) -> int:
    """Offset after the first sync marker that starts at ``at`` or later; -1 if there is none."""
    file.seek(at)
    window = b""
    while True:
        more = file.read(_SEARCH_BYTES)
        if not more:
            return -1
        window += more
        result = window.find(sync)
        if result >= 0:
            return at + result + _SYNC_BYTES
        at += max(len(window) - _SYNC_BYTES + 1, 0)
        window = window[-_SYNC_BYTES + 1 :]


def _type(kind: Any, named: dict[str, pa.DataType]) -> pa.DataType:
    """The Arrow type of an Avro type. ``named`` are the named types seen so far; a name stands for its type from then on."""
    if isinstance(kind, list):
        return _union([_type(branch, named) for branch in kind if branch != "null"])
    if isinstance(kind, str):
        return named[kind] if kind in named else _PLAIN.get(kind, pa.struct([]))
    base = kind["type"]
    if base == "array":
        return pa.list_(_type(kind["items"], named))
    result = _logical(kind) or (
        _type(base, named) if isinstance(base, dict | list) else _PLAIN.get(base, pa.struct([]))
    )
    if base == "map":
        _type(kind["values"], named)
    if base == "record":
        for field in kind["fields"]:
            _type(field["type"], named)  # it may name types that later columns use
    if "name" in kind:
        named[kind["name"]] = result
    return result


def _logical(kind: dict[str, Any]) -> pa.DataType | None:
    if kind.get("logicalType") != "decimal" or kind["type"] not in ("bytes", "fixed"):
        return _LOGICAL.get(f"{kind['type']} {kind.get('logicalType')}")
    precision = kind.get("precision", 0)
    wide = pa.decimal128 if precision <= _DECIMAL_DIGITS else pa.decimal256
    return wide(precision, kind.get("scale", 0)) if 0 < precision <= 2 * _DECIMAL_DIGITS else None


def _union(branches: list[pa.DataType]) -> pa.DataType:
    """The type of a union without null: of numbers, the one that holds them all."""
    distinct = list(dict.fromkeys(branches))
    if len(distinct) == 1:
        return distinct[0]
    if distinct and all(kind in (pa.int64(), pa.float64()) for kind in distinct):
        return pa.float64()
    if not distinct:
        return pa.null()
    return pa.dense_union([pa.field(str(number), branch) for number, branch in enumerate(distinct)])
