"""Click logs to Arrow batches: which files, in which pieces, parsed in C++, bad lines set aside.

A log is cut into :class:`Piece` s when the job is planned: byte ranges of an uncompressed text file, row groups of a
Parquet file, whole files of what cannot be split. A piece depends on the files alone and not on the workers, and every row
carries a random key made from its place in its piece (column ``_key``), so that whatever is drawn for a row, its shard,
its place in the shuffle, its sampled negatives, is the same on every engine and for any number of workers.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from features.encode import raw_type
from features.errors import UserError, did_you_mean
from features.hashing import seeded
from features.schema import Schema
from pipeline.config import LogSettings

KEY = "_key"
#: A row's place in its piece, from 0; :meth:`Reader.line` makes a line number of it.
POSITION = "_position"
BLOCK_BYTES = 8 << 20
_HEAD_BYTES = 1 << 20
_FEW_LINES = 16


@dataclass(frozen=True)
class Piece:
    """A part of one log file that one worker reads.

    Args:
        path: the file.
        index: position among all pieces of the job; part of each row's key.
        format: jsonl, csv or parquet.
        start, end: bytes of a text file, or the first and last-plus-one row group; end -1: all of it.
        columns: names of a CSV file's fields, in order.
        types: Arrow type of each column that is read, by name.
    """

    path: str
    index: int
    format: str
    start: int = 0
    end: int = -1
    columns: tuple[str, ...] = ()
    types: dict[str, pa.DataType] = field(default_factory=dict)
    has_header: bool = False


@dataclass(frozen=True)
class Refused:
    """A row that broke the schema: a dead letter."""

    path: str
    line: int
    reason: str
    text: str


def plan(logs: LogSettings, schema: Schema) -> list[Piece]:
    """Find the files, look at the head of each, and cut them into pieces.

    Raises:
        UserError: a pattern that matches nothing, an unreadable or empty file, a missing column.
    """
    if not logs.files:
        raise UserError("logs.files", "names no file", "give paths or patterns, or set logs.dataset and use `clsd run`")
    paths: dict[str, int] = {}
    for pattern, match in zip(logs.files, _match(logs.files), strict=True):
        if not match:
            raise UserError(pattern, "no such file", "correct logs.files, or fetch the data first with `clsd dataset`")
        paths |= match
    pieces: list[Piece] = []
    for path, size in sorted(paths.items()):
        for start, end, piece in _cut(path, size, logs, schema):
            pieces.append(Piece(**{**piece, "index": len(pieces), "start": start, "end": end}))
    return pieces


def _match(patterns: list[str]) -> Iterator[dict[str, int]]:
    for pattern in patterns:
        try:
            (result,) = FileSystems.match([pattern])
        except (BeamIOError, ValueError) as error:
            raise UserError(pattern, f"cannot be looked up ({error})", "correct logs.files") from None
        yield {metadata.path: metadata.size_in_bytes for metadata in result.metadata_list}


def _cut(path: str, size: int, logs: LogSettings, schema: Schema) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, the piece's other arguments) for each piece of a file."""
    kind = logs.format if logs.format != "auto" else _format_of(path)
    if size == 0:
        raise UserError(path, "is empty", "leave it out of logs.files, or write the log again")
    if kind == "parquet":
        with open_binary(path) as file:
            parquet = _parquet(path, file)
            types = _types(path, kind, schema, {f.name: f.type for f in parquet.schema_arrow})
            for group in range(parquet.num_row_groups):
                yield group, group + 1, {"path": path, "format": kind, "types": types}
        return
    head = _head(path)
    columns: tuple[str, ...] = ()
    if kind == "csv":
        columns = tuple(logs.csv.columns) or _header(path, head, logs.csv.delimiter)
        found = _inferred_csv(path, head, columns, logs)
    else:
        found = _inferred_json(path, head)
    piece = {
        "path": path,
        "format": kind,
        "columns": columns,
        "types": _types(path, kind, schema, found),
        "has_header": kind == "csv" and not logs.csv.columns,
    }
    chunk = logs.chunk_mebibytes << 20
    if path.endswith(".gz"):
        yield 0, -1, piece
    else:
        for start in range(0, size, chunk):
            yield start, min(start + chunk, size), piece


def _format_of(path: str) -> str:
    name = path.removesuffix(".gz")
    endings = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
    for ending, kind in endings.items():
        if name.endswith(ending) and not (kind == "parquet" and path.endswith(".gz")):
            return kind
    raise UserError(path, "has an ending that tells no format", "set logs.format to jsonl, csv or parquet")


def open_binary(path: str) -> IO[bytes]:
    """Open a local or remote file as it is, without decompressing it."""
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]
    except (BeamIOError, OSError) as error:
        raise UserError(path, f"cannot be opened ({error})", "correct logs.files or the file's permissions") from None


def _decompressed(path: str, file: IO[bytes]) -> Any:
    # Not Beam's own decompression: that takes a truncated file for a short one.
    return gzip.open(file) if path.endswith(".gz") else file


def _head(path: str) -> bytes:
    """The first whole lines of a text file."""
    with open_binary(path) as file:
        try:
            head = _decompressed(path, file).read(_HEAD_BYTES)
        except (EOFError, OSError, zlib.error):
            with open_binary(path) as again:
                head = zlib.decompressobj(wbits=31).decompress(_safe_read(again, _HEAD_BYTES)) if path.endswith(".gz") else b""
    head = head.removeprefix(b"\xef\xbb\xbf")
    return head[: head.rfind(b"\n") + 1] if len(head) >= _HEAD_BYTES else head


def _safe_read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if data[:2] != b"\x1f\x8b":
        raise UserError(getattr(file, "name", "a log file"), "ends in .gz and is no gzip file", "rename it, or compress it")
    return data


def _parquet(path: str, file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(path, f"is no whole Parquet file ({str(error).splitlines()[0]})", "write it again") from None


def _header(path: str, head: bytes, delimiter: str) -> tuple[str, ...]:
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    try:
        names = tuple(name.strip().strip('"') for name in line.decode().split(delimiter))
    except UnicodeDecodeError:
        raise UserError(f"{path}:1", "the header is no UTF-8 text", "is it a CSV? set logs.format") from None
    return names


def _inferred_json(path: str, head: bytes) -> dict[str, pa.DataType]:
    """Types of the columns in the first lines, found by pyarrow; lines that do not parse are left out."""
    lines = [line for line in head.split(b"\n") if line.strip()][:2000]
    good: list[bytes] = []
    for part in _bisect(lines, lambda chunk: pa.json.read_json(pa.BufferReader(b"\n".join(chunk)))):
        good.extend(part.lines if part.table is not None else [])
    if not good:
        raise UserError(path, "none of its first lines is JSON", "write one JSON object a line, or set logs.format")
    return _majority(_bisect(good, lambda chunk: pa.json.read_json(pa.BufferReader(b"\n".join(chunk)))))


def _majority(parts: Iterator[_Part]) -> dict[str, pa.DataType]:
    """Each column's type in most of the lines: a single odd line must not decide how a file is read."""
    votes: dict[str, Counter[pa.DataType]] = {}
    for part in parts:
        for f in part.table.schema if part.table is not None else []:
            votes.setdefault(f.name, Counter())[f.type] += 0 if pa.types.is_null(f.type) else len(part.lines)
    return {name: count.most_common(1)[0][0] for name, count in votes.items()}


def _inferred_csv(path: str, head: bytes, columns: tuple[str, ...], logs: LogSettings) -> dict[str, pa.DataType]:
    body = head if logs.csv.columns else head.split(b"\n", 1)[-1]
    lines = [line for line in body.split(b"\n") if line.strip()][:2000]
    found = _majority(_bisect(lines, lambda chunk: _csv(chunk, columns, {}, logs)))
    return {name: found.get(name, pa.null()) for name in columns}


def _types(path: str, kind: str, schema: Schema, found: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """The type to read each needed column as; optional columns that the file lacks are left out."""
    types: dict[str, pa.DataType] = {}
    for feature in schema.features:
        if feature.source not in found and not feature.optional:
            raise _missing_column(path, feature.source, found)
        if feature.source in found:
            types[feature.source] = raw_type(feature)
            _check_type(path, kind, feature.name, types[feature.source], found[feature.source])
            if pa.types.is_list(types[feature.source]) and kind == "csv":
                raise UserError(path, f"'{feature.source}' is read as a list, and a CSV has none", "set the feature's separator")
    for column in [schema.label, schema.user, schema.timestamp]:
        if column and column not in found:
            raise _missing_column(path, column, found)
    if schema.user:
        types.setdefault(schema.user, _text_or_int(found[schema.user]))
    for column in [schema.label, schema.timestamp]:
        if column:
            types[column] = found[column] if not pa.types.is_null(found[column]) else pa.int64()
    if schema.timestamp and schema.timestamp_unit == "iso" and kind != "parquet":
        types[schema.timestamp] = pa.string()
    if schema.intensity in found:
        types.setdefault(schema.intensity, pa.float64())
    for column in schema.passthrough:
        if column in found:
            types.setdefault(column, pa.string() if kind == "csv" else found[column])
    return types


def _check_type(path: str, kind: str, feature: str, wanted: pa.DataType, found: pa.DataType) -> None:
    """JSON says what is text and what is a number; a schema that says otherwise would refuse every row."""
    if kind != "jsonl" or pa.types.is_null(found):
        return
    if pa.types.is_string(wanted) and pa.types.is_integer(found):
        raise UserError(path, f"feature '{feature}' is read as text, and the log has integers", "set the feature's dtype: int64")
    if pa.types.is_integer(wanted) and pa.types.is_string(found):
        raise UserError(path, f"feature '{feature}' is read as int64, and the log has text", "set the feature's dtype: string")
    if pa.types.is_string(wanted) and pa.types.is_list(found):
        raise UserError(path, f"feature '{feature}' is read as text, and the log has lists", "remove the feature's separator")
    if pa.types.is_list(wanted) and not pa.types.is_list(found):
        raise UserError(path, f"feature '{feature}' is read as a list, and the log has none", "set the feature's separator")


def _text_or_int(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_integer(kind) else pa.string()


def _missing_column(path: str, column: str, found: dict[str, Any]) -> UserError:
    hint = did_you_mean(column, found)
    return UserError(path, f"has no column '{column}'", f"{hint} Correct the config's rows, or mark the feature optional: true")


class Reader:
    """Reads pieces; one object a worker.

    Args:
        logs: formats and dialects.
        seed: of the rows' keys.
    """

    def __init__(self, logs: LogSettings, seed: int) -> None:
        self._logs, self._seed = logs, seed
        self._before = (-1, 0)

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch | Refused]:
        """The batches of a piece, with ``_key`` uint64 and ``_position`` int64 columns, and the lines that did not parse."""
        if piece.format == "parquet":
            yield from self._read_parquet(piece)
        else:
            yield from self._read_text(piece)

    def line(self, piece: Piece, position: int) -> int:
        """Number of a row in its file, from 1; a CSV's header is a line. What stands before the piece is counted once."""
        if self._before[0] != piece.index:
            self._before = (piece.index, _lines_before(piece))
        return self._before[1] + position + 1

    def _placed(self, piece: Piece, table: pa.Table, positions: np.ndarray[Any, Any]) -> pa.Table:
        keys = pa.array(seeded(positions.astype(np.uint64), self._seed, piece.index))
        return table.append_column(KEY, keys).append_column(POSITION, pa.array(positions))

    def _read_parquet(self, piece: Piece) -> Iterator[pa.RecordBatch | Refused]:
        with open_binary(piece.path) as file:
            parquet = _parquet(piece.path, file)
            try:
                table = parquet.read_row_groups(list(range(piece.start, piece.end)), columns=list(piece.types), use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(piece.path, f"row group {piece.start} is damaged ({error})", "write the file again") from None
        target = pa.schema([*piece.types.items(), (KEY, pa.uint64()), (POSITION, pa.int64())])
        table = self._placed(piece, table.select(list(piece.types)), np.arange(table.num_rows))

        def cast(rows: list[int]) -> pa.Table:
            part = table.slice(rows[0], len(rows)).cast(target)
            part.validate(full=True)
            return part

        for part in _bisect(list(range(table.num_rows)), cast):
            if part.table is not None:
                yield from part.table.combine_chunks().to_batches(max_chunksize=65_536)
            else:
                for row, reason in zip(part.lines, part.reasons, strict=True):
                    text = str({c: table[c][row].as_py() for c in piece.types})
                    yield Refused(piece.path, self.line(piece, row), reason, text)

    def _read_text(self, piece: Piece) -> Iterator[pa.RecordBatch | Refused]:
        position = 0
        for block in self._blocks(piece):
            lines = block.split(b"\n")
            if lines[-1] == b"":
                lines.pop()
            numbers = list(range(len(lines)))
            for part in _bisect(numbers, lambda rows, lines=lines: self._parse(piece, lines, rows)):  # type: ignore[misc]
                if part.table is not None:
                    placed = self._placed(piece, part.table, position + np.asarray(part.lines))
                    yield from placed.combine_chunks().to_batches()
                    continue
                for row, reason in zip(part.lines, part.reasons, strict=True):
                    text = lines[row].decode("utf-8", errors="backslashreplace")
                    yield Refused(piece.path, self.line(piece, position + row), reason, text)
            position += len(lines)

    def _parse(self, piece: Piece, lines: list[bytes], rows: list[int]) -> pa.Table:
        chunk = [lines[row] for row in rows] if len(rows) != len(lines) else lines
        if piece.format == "csv":
            table = _csv(chunk, piece.columns, piece.types, self._logs)
        else:
            table = _json(chunk, piece.types)
        if table.num_rows != len(chunk):
            raise pa.ArrowInvalid("an empty line" if any(not line.strip() for line in chunk) else "more or fewer rows than lines")
        table.validate(full=True)
        return table

    def _blocks(self, piece: Piece) -> Iterator[bytes]:
        """Whole lines, about :data:`BLOCK_BYTES` at a time. A line belongs to the piece in which it starts."""
        with open_binary(piece.path) as raw:
            file = _decompressed(piece.path, raw)
            if piece.start > 0:
                file.seek(piece.start - 1)
                at = piece.start - 1 + len(file.readline())
            else:
                mark = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
                file.seek(mark)
                at = mark
                if piece.has_header:
                    at += len(file.readline())
            while piece.end < 0 or at < piece.end:
                want = BLOCK_BYTES if piece.end < 0 else min(BLOCK_BYTES, piece.end - at)
                try:
                    block = file.read(want) + file.readline()
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    what = f"the gzip file is truncated or damaged ({error})"
                    raise UserError(piece.path, what, "fetch or write it again, or leave it out of logs.files") from None
                if not block:
                    return
                at += len(block)
                yield block


def _lines_before(piece: Piece) -> int:
    """Number of lines (or rows of a Parquet file) that stand before the piece's first."""
    if piece.format == "parquet":
        with open_binary(piece.path) as file:
            metadata = _parquet(piece.path, file).metadata
            return sum(metadata.row_group(group).num_rows for group in range(piece.start))
    if piece.start == 0:
        return int(piece.has_header)
    count, at = 0, 0
    with open_binary(piece.path) as file:
        while at < piece.start and (block := file.read(min(BLOCK_BYTES, piece.start - at))):
            count, at = count + block.count(b"\n"), at + len(block)
        if not block.endswith(b"\n"):
            count += 1  # the line that the piece starts in belongs to the piece before
    return count


def _json(lines: list[bytes], types: dict[str, pa.DataType]) -> pa.Table:
    data = b"\n".join(lines)
    return pa.json.read_json(
        pa.BufferReader(data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore" if types else "infer"
        ),
    )


def _csv(lines: list[bytes], columns: tuple[str, ...], types: dict[str, pa.DataType], logs: LogSettings) -> pa.Table:
    data = b"\n".join(lines)
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=list(columns)),
        parse_options=pa.csv.ParseOptions(delimiter=logs.csv.delimiter, ignore_empty_lines=False),
        convert_options=pa.csv.ConvertOptions(
            column_types=types,
            include_columns=list(types) or None,
            null_values=logs.csv.null_values,
            strings_can_be_null=True,
        ),
    )


@dataclass
class _Part:
    lines: list[Any]
    table: pa.Table | None
    reasons: list[str] = field(default_factory=list)


def _bisect(lines: list[Any], parse: Callable[[list[Any]], pa.Table]) -> Iterator[_Part]:
    """Parse all lines at once; where that fails, halves, down to the single lines that are at fault. Order is kept."""
    if not lines:
        return
    try:
        yield _Part(lines, parse(lines))
        return
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if len(lines) == 1:
            yield _Part(lines, None, [_reason(str(error))])
            return
    parts = 2 if len(lines) > _FEW_LINES else len(lines)
    size = -(-len(lines) // parts)
    for start in range(0, len(lines), size):
        yield from _bisect(lines[start : start + size], parse)


def _reason(message: str) -> str:
    """A short reason that does not contain the row's own text, so that dead letters can be counted by it."""
    lowered = message.lower()
    for words, reason in (
        (("empty line", "empty csv", "empty json"), "empty line"),
        (("utf8", "utf-8"), "broken UTF-8"),
        (("columns, got",), "wrong number of fields"),
        (("conversion error", "changed from", "failed to parse", "out of bounds", "casting"), "wrong type"),
        (("json",), "no JSON"),
    ):
        if any(word in lowered for word in words):
            return reason
    return "cannot be parsed"

