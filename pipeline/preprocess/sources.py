"""Reads input splits of click logs into Arrow batches; lines that do not parse become dead letters.

Every row carries a random key (column ``_key``), made from the seed, the input split and the row's position in it. Whatever is
drawn for a row (its shard, its position in the shuffle, its sampled negatives) is therefore the same on every engine and for
any number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clsd.features.errors import UserError
from clsd.features.hashing import seeded
from clsd.features.tokens import plain, with_dictionaries
from clsd.pipeline.preprocess import avro, casting
from clsd.pipeline.preprocess.column_types import fractions_of
from clsd.pipeline.preprocess.columns import KEY, POSITION
from clsd.pipeline.preprocess.dead_letters import DeadLetter
from clsd.pipeline.preprocess.input_splits import InputSplit
from clsd.pipeline.preprocess.parsing import (
    DAMAGED,
    compression_of,
    decompressed,
    open_binary,
    open_parquet,
    parse_all,
    parse_csv,
    parse_json,
    suspicious_csv_column,
    suspicious_json_column,
)
from clsd.pipeline.shared.config import LogSettings
from clsd.pipeline.shared.loaders import as_damage
from clsd.pipeline.shared.threads import ONE, Threads

#: Bytes of text that are parsed together; a larger block does not fit into the processor's cache.
BLOCK_BYTES = 4 << 20
#: Largest number of rows per batch.
BATCH_ROWS = 262_144


class ReadBatch(NamedTuple):
    """Rows that were read together, with the lines that they were read from.

    Args:
        rows: the columns that the schema reads, ``_key`` uint64 and ``_position`` int64.
        blocks: the blocks of text that hold these rows; none for a typed format (Parquet, Avro).
    """

    rows: pa.RecordBatch
    blocks: tuple[_Lines, ...]

    def text(self, position: int) -> str | None:
        """The line at a position, as it stands in the log; None for a format that has no lines."""
        for lines in self.blocks:
            if lines.first <= position < lines.first + len(lines):
                return lines.shown(position - lines.first)
        return None


class Reader:
    """Reads input splits. Each worker has one reader.

    Args:
        logs: settings of the logs.
        seed: seed of the rows' keys.
        threads: threads that parse blocks and encode columns.
    """

    def __init__(self, logs: LogSettings, seed: int, threads: Threads = ONE) -> None:
        self._logs, self._seed, self._threads = logs, seed, threads
        self._lines_before_split = (-1, 0)
        self._line_breaks_at: dict[str, dict[int, int]] = {}

    def read(self, input_split: InputSplit) -> Iterator[ReadBatch | DeadLetter]:
        """The batches of an input split, and a dead letter for each line that does not parse.

        A batch has at most :data:`BATCH_ROWS` rows, unless one block of text has more.
        """
        read = {"parquet": self._read_parquet, "avro": self._read_avro}.get(input_split.format, self._read_text)
        waiting: list[_Table] = []
        for part in chain(read(input_split), [None]):
            if isinstance(part, DeadLetter):
                yield part
                continue
            rows = sum(table.num_rows for table, _ in waiting)
            if waiting and (part is None or rows + part.table.num_rows > BATCH_ROWS):
                tables, blocks = zip(*waiting, strict=True)
                batch = with_dictionaries(input_split.coded, pa.concat_tables(tables), self._threads.map)
                yield ReadBatch(batch, tuple(lines for lines in blocks if lines is not None))
                waiting = []
            waiting += [part] if part is not None else []

    def line(self, input_split: InputSplit, position: int) -> int:
        """Line number of a row in its file, from 1, a CSV's header included. Earlier lines are counted once per input split."""
        if self._lines_before_split[0] != input_split.index:
            self._lines_before_split = (input_split.index, self._lines_before(input_split))
        return self._lines_before_split[1] + position + 1

    def _lines_before(self, input_split: InputSplit) -> int:
        """Number of lines (or rows of Parquet or Avro) before the input split."""
        if input_split.format == "avro":
            with open_binary(input_split.path) as file:
                return avro.records_before(input_split.path, file, input_split.start)
        if input_split.format == "parquet":
            with open_binary(input_split.path) as file:
                metadata = open_parquet(input_split.path, file).metadata
                return sum(metadata.row_group(group).num_rows for group in range(input_split.start))
        if input_split.start == 0:
            return int(input_split.has_header)
        # Continue from the nearest counted offset: the input splits of a large file would otherwise read it again and again.
        known = self._line_breaks_at.setdefault(input_split.path, {0: 0})
        at = max(place for place in known if place < input_split.start)
        breaks = known[at]
        with open_binary(input_split.path) as file:
            file.seek(at)
            while at < input_split.start and (block := file.read(min(BLOCK_BYTES, input_split.start - at))):
                breaks, at = breaks + block.count(b"\n"), at + len(block)
        known[input_split.start] = breaks
        # The line in which the input split starts belongs to the previous input split.
        return breaks if block.endswith(b"\n") else breaks + 1

    def _with_keys(self, input_split: InputSplit, table: pa.Table, positions: np.ndarray[Any, Any]) -> pa.Table:
        keys = pa.array(seeded(positions.astype(np.uint64), self._seed, input_split.index))
        return table.append_column(KEY, keys).append_column(POSITION, pa.array(positions))

    def _read_parquet(self, input_split: InputSplit) -> Iterator[_Table | DeadLetter]:
        with open_binary(input_split.path) as file:
            parquet = open_parquet(input_split.path, file, dictionary_columns=input_split.coded)
            batches = parquet.iter_batches(
                BATCH_ROWS,
                range(input_split.start, input_split.end),
                columns=list(input_split.types),
                use_threads=self._threads.number > 1,
            )
            first = 0
            while True:
                with as_damage(input_split.path, f"row group {input_split.start} is damaged", "write the file again"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield from self._cast_rows(input_split, pa.Table.from_batches([batch]), first)
                first += batch.num_rows

    def _read_avro(self, input_split: InputSplit) -> Iterator[_Table | DeadLetter]:
        position = 0
        records: list[dict[str, Any]] = []
        with open_binary(input_split.path) as file:
            result = avro.columns_of(input_split.path, file)
            schema = pa.schema([(name, result[name]) for name in input_split.types])
            for block in chain(avro.blocks(input_split.path, file, input_split.start, input_split.end), [None]):
                records += avro.as_values({name: result[name] for name in input_split.types}, block or [])
                if len(records) >= BATCH_ROWS or block is None:  # blocks usually have a few hundred rows
                    with as_damage(input_split.path, "holds values that are not of its schema's types", avro.HINT):
                        table = pa.Table.from_pylist(records, schema=schema)
                    yield from self._cast_rows(input_split, table, position)
                    position, records = position + len(records), []

    def _cast_rows(self, input_split: InputSplit, table: pa.Table, first: int) -> Iterator[_Table | DeadLetter]:
        """Cast rows of a typed format to the schema's types; ``first`` is the position of the first row."""
        target = pa.schema([*input_split.types.items(), (KEY, pa.uint64()), (POSITION, pa.int64())])
        table = self._with_keys(input_split, table.select(list(input_split.types)), first + np.arange(table.num_rows))

        @cache
        def decoded() -> pa.Table:
            return pa.table([plain(column) for column in table.columns], names=table.column_names)

        def cast(rows: list[int]) -> pa.Table:
            # One bad value in a dictionary would fail every row.
            part = decoded().take(pa.array(rows)) if len(rows) < table.num_rows else table
            result = pa.table({f.name: casting.cast(part[f.name], f, is_id=f.name in input_split.ids) for f in target})
            result.validate(full=True)
            return result

        good, _, faults = parse_all(table.num_rows, cast, lambda row: None)
        if good is not None:
            yield _Table(good, None)
        for row, reason in faults:
            values = {name: casting.shown(decoded()[name][row]) for name in input_split.types}
            text = json.dumps(values, ensure_ascii=False, default=str)
            yield DeadLetter(input_split.path, self.line(input_split, first + row), reason, text)

    def _read_text(self, input_split: InputSplit) -> Iterator[_Table | DeadLetter]:
        def parse(lines: _Lines) -> Any:
            return lines, *parse_all(
                len(lines),
                lambda rows: self._parse(input_split, lines, rows),
                lambda row: self._suspicious_column(input_split, lines[row]),
            )

        for lines, table, rows, faults in self._threads.map(parse, self._lines_of(input_split)):
            if table is not None:
                yield _Table(self._with_keys(input_split, table, lines.first + np.asarray(rows)), lines)
            for row, reason in faults:
                line = self.line(input_split, lines.first + row)
                yield DeadLetter(input_split.path, line, reason, lines.shown(row))

    def _lines_of(self, input_split: InputSplit) -> Iterator[_Lines]:
        first = 0
        for block in self._blocks(input_split):
            lines = _Lines(block.removesuffix(b"\n"), first)
            yield lines
            first += len(lines)

    def _parse(self, input_split: InputSplit, lines: _Lines, rows: list[int]) -> pa.Table:
        text = lines.text if len(rows) == len(lines) else b"\n".join(lines[row] for row in rows)
        fractional = input_split.parsed_as
        try:
            table = self._parse_as({**input_split.types, **fractional}, input_split, text)
        except pa.ArrowInvalid:
            if len(rows) > 1:
                raise
            # A single row: an integer may be written as 12.0, although most are not.
            fractional = fractions_of({name: input_split.types[name] for name in input_split.ids})
            table = self._parse_as({**input_split.types, **fractional}, input_split, text)
        for name in fractional:
            wanted, at = pa.field(name, input_split.types[name]), table.schema.get_field_index(name)
            table = table.set_column(at, wanted, casting.cast(table[name], wanted, is_id=True))
        if table.num_rows != len(rows):
            raise pa.ArrowInvalid(
                "an empty line"
                if any(not line.strip() for line in text.split(b"\n"))
                else "more or fewer rows than lines"
            )
        table.validate(full=True)
        return table

    def _parse_as(self, types: dict[str, pa.DataType], input_split: InputSplit, text: bytes) -> pa.Table:
        if input_split.format == "csv":
            return parse_csv(text, input_split.columns, types, self._logs)
        return parse_json(text, types)

    def _suspicious_column(self, input_split: InputSplit, line: bytes) -> str | None:
        types = {**input_split.types, **input_split.parsed_as}
        if input_split.format == "csv":
            return suspicious_csv_column(line, input_split.columns, types, self._logs)
        return suspicious_json_column(line, types)

    def _blocks(self, input_split: InputSplit) -> Iterator[bytes]:
        """Whole lines, about :data:`BLOCK_BYTES` at a time. A line belongs to the input split in which it starts."""
        with open_binary(input_split.path) as raw:
            file = decompressed(input_split.path, raw)
            if input_split.start > 0:
                file.seek(input_split.start - 1)
                at = input_split.start - 1 + len(file.readline())
            else:
                at = len(file.read(3)) if file.peek(3)[:3] == b"\xef\xbb\xbf" else 0
                if input_split.has_header:
                    at += len(file.readline())
            while input_split.end < 0 or at < input_split.end:
                size = BLOCK_BYTES if input_split.end < 0 else min(BLOCK_BYTES, input_split.end - at)
                try:
                    block = file.read(size)
                    if block and not block.endswith(b"\n"):
                        block += file.readline()
                except DAMAGED as error:
                    if not compression_of(input_split.path):
                        raise
                    what = f"the {compression_of(input_split.path)} file is truncated or damaged ({error})"
                    raise UserError(
                        input_split.path, what, "fetch or write it again, or leave it out of logs.files"
                    ) from None
                if not block:
                    return
                at += len(block)
                yield block


class _Lines:
    """The lines of a block of text, split only when a single line is asked for.

    Args:
        text: the block, without its last line break.
        first: position of its first line in the input split.
    """

    def __init__(self, text: bytes, first: int) -> None:
        self.text, self.first = text, first
        self._size = text.count(b"\n") + 1
        self._lines: list[bytes] | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> bytes:
        if self._lines is None:
            self._lines = self.text.split(b"\n")
        return self._lines[row]

    def shown(self, row: int) -> str:
        """A line for a dead letter; broken UTF-8 is escaped."""
        return self[row].decode("utf-8", errors="backslashreplace").rstrip("\r")


class _Table(NamedTuple):
    """Parsed rows, and the block of text that they come from, if there is one."""

    table: pa.Table
    lines: _Lines | None
