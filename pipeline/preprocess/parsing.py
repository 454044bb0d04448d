"""Open log files, compressed ones too, parse their lines into Arrow tables in C++, and find the lines that do not parse."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.pipeline.shared.config import CsvSettings, LogSettings
from clsd.pipeline.shared.loaders import as_damage

_FEW_LINES = 16
_MAX_DEPTH = 200


def open_binary(path: str) -> IO[bytes]:
    """Open a local or remote file without decompressing it."""
    try:
        return as_path(path).open("rb")
    except OSError as error:
        raise UserError(path, f"cannot be opened ({error})", "correct logs.files or the file's permissions") from None


#: Endings of compressed text files, and their readers. Beam's decompression is not used: it takes a truncated file for
#: a short one.
COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
}
#: What readers of a truncated or damaged file raise.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)


def compression_of(path: str) -> str:
    """The ending of a compressed text file, or ""."""
    return next((ending for ending in COMPRESSED if path.endswith(ending)), "")


def decompressed(path: str, file: IO[bytes]) -> io.BufferedReader:
    """The file, or a decompressing reader over it, by its name; it has ``peek``."""
    result = COMPRESSED[compression_of(path)](file) if compression_of(path) else file
    return cast(io.BufferedReader, result if hasattr(result, "peek") else io.BufferedReader(result))


def open_parquet(path: str, file: IO[bytes], dictionary_columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file; text columns in ``dictionary_columns`` are read dictionary-encoded.

    Raises:
        UserError: it is not a complete Parquet file.
    """
    with as_damage(path, "is not a complete Parquet file", "write it again"):
        return pq.ParquetFile(file, read_dictionary=list(dictionary_columns))


def parse_json(data: bytes, types: dict[str, pa.DataType]) -> pa.Table:
    """Parse JSON lines with the given types; without types, all columns with inferred types. Raises pa.ArrowException."""
    all_objects = data.count(b"\n{") + data.startswith(b"{") == data.count(b"\n") + 1
    # Arrow's parser crashes on null, and counts no empty lines.
    if not all_objects and (odd := _NO_OBJECT.search(data)):
        raise pa.ArrowInvalid("not a JSON object" if odd[0].strip() else "an empty line")
    if is_deep(data):
        raise pa.ArrowInvalid("nested too deeply")
    return pa.json.read_json(
        pa.BufferReader(data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore" if types else "infer"
        ),
    )


#: A line that does not begin with a brace.
_NO_OBJECT = re.compile(rb"^[ \t\r]*(?:[^{\s]|$)", re.MULTILINE)


def is_deep(data: bytes) -> bool:
    """Whether a line of JSON is nested so deeply that Arrow's parser, which calls itself, would crash the process.

    Brackets are counted first, those within text too: a line with few of them cannot be deep.
    """
    if len(data) <= 2 * _MAX_DEPTH:
        return False
    buffer = np.frombuffer(data, np.uint8)
    opened = np.flatnonzero((buffer | 32) == ord("{"))  # [ and { differ in that bit
    if len(opened) <= _MAX_DEPTH:
        return False
    ends = np.append(np.flatnonzero(buffer == ord("\n")), len(buffer))
    counts = np.diff(np.searchsorted(opened, ends), prepend=0)
    starts = np.append(0, ends[:-1] + 1)
    return any(_depth(data[starts[line] : ends[line]]) > _MAX_DEPTH for line in np.flatnonzero(counts > _MAX_DEPTH))


def _depth(line: bytes) -> int:
    deepest = depth = 0
    for bracket in re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}"]', b"", line):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def parse_csv(data: bytes, columns: tuple[str, ...], types: dict[str, pa.DataType], logs: LogSettings) -> pa.Table:
    """Parse CSV lines without a header with the given types, or inferred ones. Raises pa.ArrowException."""
    dialect, quote = logs.csv, logs.csv.quote.encode()
    if b"\r" in data and b"\r" in data.removesuffix(b"\r").replace(b"\r\n", b"\n"):
        raise pa.ArrowInvalid("a carriage return within a line")
    # An open quote in a line before the last one swallows the line break, so that rows are missing; the caller counts them.
    lines = data.split(b"\n") if quote and quote in data else [b""]
    if any(line.count(quote) % 2 and _has_open_quote(line, dialect) for line in lines) or _has_open_quote(
        lines[-1], dialect
    ):
        raise pa.ArrowInvalid("a line break inside quotes, or a quote without its pair")
    options = pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=list(columns))
    try:
        return _read_csv(data, options, types, dialect)
    except pa.ArrowInvalid as error:
        number = re.search(r"In CSV column #(\d+)", str(error))
        if number is None:
            raise
        raise pa.ArrowInvalid(f"Column(/{columns[int(number[1])]}) failed to cast: {error}") from None


def _read_csv(data: bytes, options: Any, types: dict[str, pa.DataType], dialect: CsvSettings) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=options,
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quote or False,
            escape_char=dialect.escape or False,
            ignore_empty_lines=False,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=types,
            include_columns=list(types) or None,
            null_values=dialect.null_values,
            strings_can_be_null=True,
        ),
    )


def suspicious_json_column(line: bytes, types: dict[str, pa.DataType]) -> str | None:
    """A cheap check of a JSON line: the name of a wrong column, "" for a wrong line, None if nothing looks wrong.

    The parser decides.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a line may be nested too deeply for Python
        return ""
    if not isinstance(row, dict):
        return ""
    return next((name for name, kind in types.items() if not _fits(row.get(name), kind)), None)


def suspicious_csv_column(
    line: bytes, columns: tuple[str, ...], types: dict[str, pa.DataType], logs: LogSettings
) -> str | None:
    """A cheap check of a CSV line; results as for :func:`suspicious_json_column`."""
    try:
        fields = csv_fields(line.decode(), logs.csv)
    except (ValueError, csv.Error):
        return ""
    if len(fields) != len(columns) or _has_open_quote(line, logs.csv):
        return ""
    for name, text in zip(columns, fields, strict=True):
        kind = types.get(name, pa.null())
        python = int if pa.types.is_integer(kind) else float if pa.types.is_floating(kind) else str
        try:
            python("0" if text in logs.csv.null_values else text)
        except ValueError:
            return name
    return None


def csv_fields(line: str, dialect: CsvSettings) -> list[str]:
    """The fields of one line. Raises csv.Error."""
    (fields,) = csv.reader(
        [line],
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        escapechar=dialect.escape or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
    )
    return fields


def _has_open_quote(line: bytes, dialect: CsvSettings) -> bool:
    """Whether a field begins with a quote and does not end with one. A quote within an unquoted field (12" vinyl) is text."""
    if not dialect.quote or dialect.quote.encode() not in line:
        return False
    return _whole_line(dialect.quote, dialect.delimiter, dialect.escape).fullmatch(line) is None


@cache
def _whole_line(quote: str, delimiter: str, escape: str) -> re.Pattern[bytes]:
    """Matches a line of whole fields, quoted or not."""
    q, d, e = (re.escape(text).encode() for text in (quote, delimiter, escape))
    plain = rb"[^" + q + e + rb"]*"
    inside = plain + rb"(?:(?:" + q + q + (rb"|" + e + rb"." if escape else b"") + rb")" + plain + rb")*"
    field = rb"(?:" + q + inside + q + rb"(?!" + q + rb")|(?!" + q + rb"))[^" + d + rb"]*"
    return re.compile(field + rb"(?:" + d + field + rb")*", re.DOTALL)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_integer(kind):
        return type(value) is int and -(2**63) <= value < 2**63
    if pa.types.is_floating(kind):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    expected = {pa.types.is_string: str, pa.types.is_boolean: bool, pa.types.is_list: list}
    return all(isinstance(value, python) for is_kind, python in expected.items() if is_kind(kind))


@dataclass
class Part:
    """Some lines and their table; or one line, no table, and the reason."""

    lines: list[Any]
    table: pa.Table | None
    reasons: list[str] = field(default_factory=list)


Parse = Callable[[list[Any]], pa.Table]


def parse_all(
    rows: int, parse: Parse, odd: Callable[[int], str | None]
) -> tuple[pa.Table | None, list[int], list[tuple[int, str]]]:
    """Parse a block of rows. If that fails, set the faulty rows aside and parse the others together.

    Args:
        rows: number of rows.
        parse: gives the table of the rows at some positions, or raises pa.ArrowException.
        odd: a cheap check of the row at a position, such as :func:`suspicious_json_column`. It names the faulty column, and saves
            many parses if few rows are bad.

    Returns:
        the table of the good rows (None if there are none), their positions, and (position, reason) of the others.
    """
    positions = list(range(rows))
    try:
        return (parse(positions), positions, []) if rows else (None, [], [])
    except (pa.ArrowException, UnicodeDecodeError):
        suspects = {row: column for row in positions if (column := odd(row)) is not None}
    faults = {}
    for row, column in suspects.items():
        (part,) = bisect([row], parse)
        if part.table is None:
            faults[row] = f"wrong type in '{column}'" if column and part.reasons[0] == "wrong type" else part.reasons[0]
    tables, good = [], []
    for part in bisect([row for row in positions if row not in faults], parse):
        if part.table is None:
            faults[part.lines[0]] = part.reasons[0]
        else:
            tables.append(part.table)
            good += part.lines
    return (pa.concat_tables(tables) if tables else None), good, sorted(faults.items())


def bisect(lines: list[Any], parse: Parse) -> Iterator[Part]:
    """Parse all lines together; if that fails, in halves, down to the faulty lines. The order is kept."""
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


#: Reasons that name the column.
_OF_A_COLUMN = ("wrong type", "a column twice", "not a whole number")


def _reason(message: str) -> str:
    """A short reason without the row's own text, so that dead letters can be counted by reason."""
    lowered = message.lower()
    for words, reason in (
        (("empty line", "empty csv", "empty json"), "empty line"),
        (("utf8", "utf-8"), "broken UTF-8"),
        (("specified twice",), "a column twice"),
        (("not a whole number",), "not a whole number"),
        (("inside quotes",), "a quote that is not closed in its line"),
        (("columns, got",), "wrong number of fields"),
        (
            (
                "conversion error",
                "unsupported cast",
                "changed from",
                "failed to",
                "failed of",
                "out of bounds",
                "casting",
                "out of range",
            ),
            "wrong type",
        ),
        (("too deeply",), "nested too deeply"),
        (("not a json object",), "not a JSON object"),
        (("carriage return",), "a carriage return within a line"),
        (("json",), "not JSON"),
    ):
        if any(word in lowered for word in words):
            named = re.search(r"Column\(/([^/)]+)", message) if reason in _OF_A_COLUMN else None
            return f"{reason} in '{named[1]}'" if named else reason
    return "cannot be parsed"
