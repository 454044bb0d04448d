"""Finds the log files, their columns, and the input splits in which workers read them.

Input splits depend on the files alone, not on the workers: byte ranges of uncompressed text and Avro, row groups of Parquet,
whole files of compressed text.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json

from clsd.features.errors import UserError
from clsd.features.paths import as_path, is_remote
from clsd.features.schema import CategoricalFeature, Schema
from clsd.pipeline.preprocess import avro
from clsd.pipeline.preprocess.column_types import (
    column_types,
    csv_header,
    find_json_keys,
    infer_csv,
    infer_json,
    parsed_as,
    read_head,
    refuse_repeated,
)
from clsd.pipeline.preprocess.columns import KEY, POSITION, RESERVED
from clsd.pipeline.preprocess.parsing import (
    compression_of,
    open_binary,
    open_parquet,
)
from clsd.pipeline.shared.config import LogSettings
from clsd.pipeline.shared.files import as_user_errors
from clsd.pipeline.shared.progress import warn


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
        parsed_as: types that columns of a text file are parsed as, where they are not ``types``: ids that are written with a
            fraction, such as 12.0.
        ids: columns of ids.
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
    parsed_as: dict[str, pa.DataType] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
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
    files: dict[str, LogFile] = {}
    seen: set[str] = set()  # a file that several patterns name is read once, however they spell it
    for pattern in logs.files:
        match = _match_objects(pattern) if is_remote(pattern) else _match_local(pattern)
        if not match:
            raise UserError(pattern, "no such file", "correct logs.files, or fetch the data first with `clsd dataset`")
        same = {path: path if is_remote(path) else str(Path(path).resolve()) for path in match}
        new = {path: file for path, file in match.items() if same[path] not in seen}
        seen |= {same[path] for path in new}
        files |= new
    input_splits: list[InputSplit] = []
    for path, file in sorted(files.items()):
        result: dict[str, Any] = file._asdict()
        for start, end, input_split in _cut(path, file.size, logs, schema):
            result["coded"] = tuple(name for name in schema.single_valued if name in input_split["types"])
            result["ids"] = tuple(name for name in schema.id_columns if name in input_split["types"])
            input_splits.append(
                InputSplit(**{**input_split, **result, "index": len(input_splits), "start": start, "end": end})
            )
    read = {input_split.path for input_split in input_splits}
    empty = [path for path in sorted(files) if path not in read]
    if not read:
        raise UserError(", ".join(logs.files), "is empty", "write the log again, or leave it out of logs.files")
    if empty:
        warn(f"{len(empty)} of {len(files)} files are empty, such as {empty[0]}: skipped")
    return input_splits


def _refuse_reserved(schema: Schema) -> None:
    """Refuse columns with the names that the job adds."""
    carried = [*(feature.source for feature in schema.features), schema.intensity, *schema.passthrough]
    for column in [name for name in carried if name in RESERVED] + [c for c in schema.columns if c in (KEY, POSITION)]:
        raise UserError("rows", f"column '{column}' has a reserved name", "rename it in the log")


class LogFile(NamedTuple):
    """A log file's size in bytes, and its modification time in seconds since 1970 (0 where the file system does not tell)."""

    size: int
    modified: float


def _match_local(pattern: str) -> dict[str, LogFile]:
    """The files that a path or pattern names. A file whose name is the pattern itself wins: a name may have brackets."""
    pattern = pattern.removeprefix("file://")
    paths = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207  (a pattern may be absolute)
    files = {path: Path(path).stat() for path in paths if Path(path).is_file()}
    return {path: LogFile(stat.st_size, stat.st_mtime) for path, stat in files.items()}


def _match_objects(pattern: str) -> dict[str, LogFile]:
    """As :func:`_match_local`, in an object store; by the same client that reads and writes objects elsewhere, not Beam's."""
    root: Any = as_path(pattern)
    with as_user_errors(pattern):
        is_file = root.fs.isfile(root.path)
        result = {root.path: root.fs.info(root.path)} if is_file else root.fs.glob(root.path, detail=True)
    files = {f"{root.protocol}://{name}": file for name, file in result.items() if file["type"] == "file"}
    return {path: LogFile(file["size"], _seconds(file)) for path, file in files.items()}


def _seconds(file: dict[str, Any]) -> float:
    when = file.get("LastModified") or file.get("mtime") or 0.0
    return when.timestamp() if isinstance(when, datetime) else float(when)


def _cut(path: str, size: int, logs: LogSettings, schema: Schema) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, the other arguments) of each input split of a file."""
    kind = logs.format if logs.format != "auto" else _format_of(path)
    if size == 0:
        return
    if kind == "parquet":
        with open_binary(path) as file:
            parquet = open_parquet(path, file)
            refuse_repeated(path, parquet.schema_arrow.names)
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
    if not head.strip():
        return
    columns: tuple[str, ...] = ()
    if kind == "csv":
        columns = tuple(logs.csv.columns) or csv_header(path, head, logs.csv)
        refuse_repeated("logs.csv.columns" if logs.csv.columns else f"{path}:1", columns)
        numbers = [f.source for f in schema.features if isinstance(f, CategoricalFeature) and f.dtype == "int64"]
        result = infer_csv(path, head, columns, logs, [schema.label, schema.timestamp], numbers)
        _warn_of_fractions(path, schema, head, columns, logs)
    else:
        result = infer_json(path, head)
        # A key that the first lines lack may occur later: search the file for it.
        optional = {feature.source for feature in schema.features if feature.optional}
        late = [column for column in schema.columns if column not in result and column not in optional]
        result |= dict.fromkeys(find_json_keys(path, late), pa.null()) if late else {}
    types = column_types(path, kind, schema, result, head)
    input_split: dict[str, Any] = {
        "path": path,
        "format": kind,
        "columns": columns,
        "types": types,
        "parsed_as": parsed_as(kind, schema, head, types, result),
        "unread": _unread(result, types),
        "has_header": kind == "csv" and not logs.csv.columns,
    }
    if compression_of(path):
        yield 0, -1, input_split
    else:
        for start in range(0, size, chunk):
            yield start, min(start + chunk, size), input_split


def _warn_of_fractions(path: str, schema: Schema, head: bytes, columns: tuple[str, ...], logs: LogSettings) -> None:
    """Warn of ids that are read as text, and that a tool wrote as 12.0: the served model would not know 12."""
    texts = {f.source: f.name for f in schema.features if isinstance(f, CategoricalFeature) and f.dtype == "string"}
    for column, kind in infer_csv(path, head, columns, logs, [], [*texts]).items():
        if column in texts and pa.types.is_floating(kind):
            what = f"{path}: feature '{texts[column]}' is read as text, and the log has numbers such as 12.0"
            warn(f"{what}; with dtype: int64 they are read as 12")


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
