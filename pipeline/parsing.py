"""Lines of a log file to Arrow tables, in C++, and which lines are at fault where that fails."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from features.errors import UserError
from pipeline.config import LogSettings

_FEW_LINES = 16


def open_binary(path: str) -> IO[bytes]:
    """Open a local or remote file as it is, without decompressing it."""
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]
    except (BeamIOError, OSError) as error:
        raise UserError(path, f"cannot be opened ({error})", "correct logs.files or the file's permissions") from None


def decompressed(path: str, file: IO[bytes]) -> Any:
    """The file, or a gzip reader over it if its name ends in .gz."""
    # Not Beam's own decompression: that takes a truncated file for a short one.
    return gzip.open(file) if path.endswith(".gz") else file


def open_parquet(path: str, file: Any) -> pq.ParquetFile:
    """The file as Parquet; a UserError if it is none or not whole."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(path, f"is no whole Parquet file ({str(error).splitlines()[0]})", "write it again") from None


def parse_json(lines: list[bytes], types: dict[str, pa.DataType]) -> pa.Table:
    """JSON lines to a table of the given types; without types, of all columns and inferred types. Raises pa.ArrowException."""
    data = b"\n".join(lines)
    return pa.json.read_json(
        pa.BufferReader(data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore" if types else "infer"
        ),
    )


def parse_csv(
    lines: list[bytes], columns: tuple[str, ...], types: dict[str, pa.DataType], logs: LogSettings
) -> pa.Table:
    """CSV lines without a header to a table of the given types, or of inferred ones. Raises pa.ArrowException."""
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
class Part:
    """Some lines and their table; or one line, no table, and the reason."""

    lines: list[Any]
    table: pa.Table | None
    reasons: list[str] = field(default_factory=list)


def bisect(lines: list[Any], parse: Callable[[list[Any]], pa.Table]) -> Iterator[Part]:
    """Parse all lines at once; where that fails, halves, down to the single lines that are at fault. Order is kept."""
    if not lines:
        return
    try:
        yield Part(lines, parse(lines))
        return
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if len(lines) == 1:
            yield Part(lines, None, [_reason(str(error))])
            return
    parts = 2 if len(lines) > _FEW_LINES else len(lines)
    size = -(-len(lines) // parts)
    for start in range(0, len(lines), size):
        yield from bisect(lines[start : start + size], parse)


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
