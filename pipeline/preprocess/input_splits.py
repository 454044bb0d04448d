"""Finds the log files, their columns, and the input splits in which workers read them.

Input splits depend on the files alone, not on the workers: byte ranges of uncompressed text and Avro, row groups of Parquet,
whole files of compressed text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.json
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from clsd.features.errors import UserError
from clsd.features.paths import as_path, is_remote
from clsd.features.schema import Schema
from clsd.pipeline.preprocess import avro
from clsd.pipeline.preprocess.column_types import (
    column_types,
    csv_header,
    find_json_keys,
    infer_csv,
    infer_json,
    read_head,
)
from clsd.pipeline.preprocess.columns import KEY, POSITION, RESERVED
from clsd.pipeline.preprocess.parsing import (
    compression_of,
    open_binary,
    open_parquet,
)
from clsd.pipeline.shared.config import LogSettings
from clsd.pipeline.shared.files import as_user_errors


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
            types = column_types(path, kind, schema, there)
            for group in range(parquet.num_row_groups):
                yield group, group + 1, {"path": path, "format": kind, "types": types, "unread": _unread(there, types)}
        return
    chunk = logs.chunk_mebibytes << 20
    if kind == "avro":
        with open_binary(path) as file:
            there = avro.columns_of(path, file)
            types = column_types(path, kind, schema, there)
        for start in range(0, size, chunk):
            read = {"types": types, "unread": _unread(there, types)}
            yield start, min(start + chunk, size), {"path": path, "format": kind, **read}
        return
    head = read_head(path)
    columns: tuple[str, ...] = ()
    if kind == "csv":
        columns = tuple(logs.csv.columns) or csv_header(path, head, logs.csv)
        result = infer_csv(path, head, columns, logs, [schema.label, schema.timestamp])
    else:
        result = infer_json(path, head)
        # A key that the first lines lack may occur later: search the file for it.
        optional = {feature.source for feature in schema.features if feature.optional}
        late = [column for column in schema.columns if column not in result and column not in optional]
        result |= dict.fromkeys(find_json_keys(path, late), pa.null()) if late else {}
    types = column_types(path, kind, schema, result)
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
