"""Avro container files: their columns, and the records of a byte range, block by block.

A file is a header and blocks of records, each followed by the file's sync marker. A block belongs to the input split in whose
byte range it starts, so many workers can read one file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any

import fastavro
import pyarrow as pa

from clsd.features.errors import UserError

_SYNC_BYTES = 16
_SEARCH_BYTES = 1 << 20
_HINT = "write the file again, or leave it out of logs.files"

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
}
_LOGICAL: dict[str, pa.DataType] = {
    "timestamp-millis": pa.timestamp("us", tz="UTC"),
    "timestamp-micros": pa.timestamp("us", tz="UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
    "date": pa.date32(),
}


def columns_of(path: str, file: IO[bytes]) -> dict[str, pa.DataType]:
    """Arrow types of a file's columns, by name. A union with null is its other branch; nested records are ignored.

    Raises:
        UserError: the file is not an Avro container, or holds no records.
    """
    schema = _header(path, file).writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise UserError(path, "holds no records", "write one Avro record a row")
    result = {field["name"]: _type(field["type"]) for field in schema["fields"]}
    return {name: kind for name, kind in result.items() if kind is not None}


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
    try:
        for block in fastavro.block_reader(stream):
            if at + (block.offset - length) >= end:
                return
            yield list(block)  # type: ignore[arg-type]  # records are rows: columns_of has seen to it
    except UserError:
        raise
    except Exception as error:  # codecs may raise anything
        raise UserError(path, f"is damaged or truncated ({type(error).__name__}: {error})", _HINT) from None


def records_before(file: IO[bytes], start: int) -> int:
    """Number of records in the blocks that start before a byte."""
    file.seek(0)
    count = 0
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
    try:
        return fastavro.block_reader(file)
    except Exception as error:
        raise UserError(path, f"is not an Avro file ({type(error).__name__}: {error})", _HINT) from None


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


def _type(kind: Any) -> pa.DataType | None:
    """The Arrow type of an Avro type; None for types that no column can have."""
    if isinstance(kind, list):
        branches = [branch for branch in kind if branch != "null"]
        return _type(branches[0]) if len(branches) == 1 else None
    if isinstance(kind, dict):
        if kind.get("logicalType") in _LOGICAL:
            return _LOGICAL[kind["logicalType"]]
        if kind["type"] == "array":
            items = _type(kind["items"])
            return None if items is None else pa.list_(items)
        return None if kind["type"] in ("record", "map") or kind.get("logicalType") else _type(kind["type"])
    return _PLAIN.get(kind)
