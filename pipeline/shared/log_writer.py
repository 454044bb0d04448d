"""Writes click logs: Arrow record batches in, one log file out, with at most one batch in memory.

The file is written next to its path with the ending ``.partial`` and renamed at the end. So a full disk or an interrupted run
leaves nothing that could be mistaken for a log.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from clsd.features.errors import UserError, did_you_mean

LOG_FORMATS = ("jsonl", "csv", "parquet", "jsonl.gz", "csv.gz")

#: Separates the elements of a list in a CSV field.
CSV_LIST_SEPARATOR = "|"

# Rows that are turned into text together: few enough for the cache and for Arrow's 2 GB limit of a string array.
_TEXT_ROWS = 32_768
# Level 6 halves the speed of writing for 5 % smaller files.
_GZIP_LEVEL = 4
# Line separators other than \n are escaped too, for readers that split text with str.splitlines.
_JSON_SPECIAL = '["\\\\\\x00-\\x1f\\x7f-\\x{9f}\\x{2028}\\x{2029}]'
_JSON_LINE_ENDS = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def write_log(
    batches: Iterable[pa.RecordBatch], path: Path, format: str, on_rows: Callable[[int], None] | None = None
) -> int:
    """Writes ``batches`` as the log file ``path`` and returns the number of rows.

    Args:
        batches: batches of one schema: strings, integers, floats, booleans, and lists of these. NaN and infinities are
            written as missing values, which neither JSON nor CSV can tell from one another.
        path: the file; one that is there already is replaced once the new one is whole. Its folder must exist.
        format: one of :data:`LOG_FORMATS`; the name of ``path`` is not looked at.
        on_rows: called after each batch with the number of rows of that batch.

    Raises:
        UserError: the format is unknown, there are no rows, or the file cannot be written (full disk, no permission).
        TypeError: a column is of a type that a log cannot hold.
    """
    if format not in LOG_FORMATS:
        raise UserError(f"format '{format}'", "is not a log format", did_you_mean(format, LOG_FORMATS))
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as raw:
            rows = _write(batches, raw, format, on_rows)
        if rows == 0:
            raise UserError(str(path), "there are no rows to write", "ask for at least one row")
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
            hint = "free space, or choose another folder with --out"
            raise UserError(str(path), f"cannot be written ({reason})", hint) from error
        raise
    return rows


def _write(
    batches: Iterable[pa.RecordBatch], raw: IO[bytes], format: str, on_rows: Callable[[int], None] | None
) -> int:
    kind, _, compression = format.partition(".")
    rows = 0
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        return 0
    # Without a name and a time in the gzip header, the same rows give the same bytes.
    out = cast(IO[bytes], gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0)) if compression else raw
    try:
        with closing(_WRITERS[kind](out, first)) as writer:
            for batch in chain([first], stream):
                writer.write(batch)
                rows += batch.num_rows
                if on_rows:
                    on_rows(batch.num_rows)
    finally:
        if out is not raw:
            out.close()
    return rows


class _JsonLines:
    """One JSON object per line, every key in every line, missing values as null."""

    def __init__(self, out: IO[bytes], first: pa.RecordBatch) -> None:
        self._out = out

    def write(self, batch: pa.RecordBatch) -> None:
        for lines in _text_slices(batch):
            self._out.write(_bytes_of(json_lines(lines)))

    def close(self) -> None:
        pass


class _Csv:
    """A header and one line per row; strings in quotes, missing values empty, lists joined by ``|``."""

    def __init__(self, out: IO[bytes], first: pa.RecordBatch) -> None:
        self._writer = pa_csv.CSVWriter(out, _csv_batch(first.slice(0, 0)).schema)

    def write(self, batch: pa.RecordBatch) -> None:
        for rows in _text_slices(batch):
            self._writer.write_batch(_csv_batch(rows))

    def close(self) -> None:
        self._writer.close()


class _Parquet:
    """A Parquet file with one row group per batch."""

    def __init__(self, out: IO[bytes], first: pa.RecordBatch) -> None:
        self._writer = pq.ParquetWriter(out, first.schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, row_group_size=max(1, batch.num_rows))

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[str, type[_JsonLines] | type[_Csv] | type[_Parquet]] = {
    "jsonl": _JsonLines,
    "csv": _Csv,
    "parquet": _Parquet,
}


def _text_slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, _TEXT_ROWS):
        yield batch.slice(start, _TEXT_ROWS)


def _bytes_of(texts: pa.StringArray) -> memoryview | bytes:
    """The characters of all strings one after the other, without a copy."""
    _, offsets, data = texts.buffers()
    if data is None:
        return b""
    ends = np.frombuffer(offsets, np.int32)
    return memoryview(data)[ends[texts.offset] : ends[texts.offset + len(texts)]]


def json_lines(batch: pa.RecordBatch) -> pa.StringArray:
    """``[rows]`` strings, each one row as a JSON object with its newline."""
    if not batch.num_columns:
        return pa.array(["{}\n"] * batch.num_rows, pa.string())
    parts: list[pa.StringArray | str] = []
    for number, (field, column) in enumerate(zip(batch.schema, batch.columns, strict=True)):
        parts += [("," if number else "{") + json.dumps(field.name, ensure_ascii=False) + ":", _json_values(column)]
    return pc.binary_join_element_wise(*parts, "}\n", "", null_handling="replace", null_replacement="null")


def _json_values(values: pa.Array) -> pa.StringArray:
    """Each value as JSON text; null stays null."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _json_values(values.dictionary).take(values.indices)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _json_strings(values.cast(pa.string()))
    if pa.types.is_floating(kind):
        return _json_floats(values)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return values.cast(pa.string())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        joined = _join_lists(values, _json_values(values.flatten()).fill_null("null"), ",")
        return pc.binary_join_element_wise("[", joined, "]", "")
    raise TypeError(f"a log cannot hold a column of type {kind}")


def _json_strings(values: pa.StringArray) -> pa.StringArray:
    if pc.any(pc.match_substring_regex(values, _JSON_SPECIAL)).as_py():
        encoded = values.dictionary_encode()
        texts = [json.dumps(t, ensure_ascii=False).translate(_JSON_LINE_ENDS) for t in encoded.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(encoded.indices)
    return pc.binary_join_element_wise('"', values, '"', "")


def _json_floats(values: pa.Array) -> pa.StringArray:
    values = _finite(values)
    texts = values.cast(pa.string())
    # Arrow writes 5.0 as 5, which a reader would take for an integer; from 1e10 on it writes an exponent.
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 1e10))
    if not pc.any(whole).as_py():
        return texts
    return pc.if_else(whole, pc.binary_join_element_wise(texts, ".0", ""), texts)


def _finite(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))


def _join_lists(lists: pa.ListArray, texts: pa.StringArray, separator: str) -> pa.StringArray:
    """Joins ``texts``, the flattened elements of ``lists``, back into one string per list; null stays null."""
    ends = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), separator)
    return pc.if_else(lists.is_valid(), joined, pa.scalar(None, pa.string()))


def _csv_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([_csv_values(column) for column in batch.columns], names=batch.schema.names)


def _csv_values(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        return _finite(values)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return _join_lists(values, values.flatten().cast(pa.string()).fill_null(""), CSV_LIST_SEPARATOR)
    return values
