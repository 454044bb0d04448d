"""The graph of the preprocessing job.

Its elements are paths of spilled Arrow batches, never single rows (:mod:`clsd.pipeline.preprocess.spill`)::

    input splits ─▶ read, check ─▶ (histories by user) ─▶ split ─▶ (negatives) ─▶ encode ─▶ group by shard ─▶ write ─▶ job.json
                     └─▶ dead letters                                  └─▶ count ─▶ transform ─┘

Nothing is learnt from validation or test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import ToDict
from apache_beam.transforms.window import GlobalWindows

from clsd.features.hashing import seeded
from clsd.features.paths import as_path
from clsd.features.schema import Schema
from clsd.features.tokens import with_dictionaries
from clsd.features.transform import Transform
from clsd.pipeline.preprocess import data_statistics, negatives, shards, splits
from clsd.pipeline.preprocess.columns import KEY, POSITION, SPLIT, USER
from clsd.pipeline.preprocess.counting import Measure, MergePartials
from clsd.pipeline.preprocess.dead_letters import DeadLetter, DeadLetterWriter, write_dead_letters
from clsd.pipeline.preprocess.golden_rows import SmallestKeys
from clsd.pipeline.preprocess.histories import add_histories
from clsd.pipeline.preprocess.input_splits import InputSplit
from clsd.pipeline.preprocess.learning import described_transform, learn
from clsd.pipeline.preprocess.row_checks import check, refused_text
from clsd.pipeline.preprocess.sources import Reader
from clsd.pipeline.preprocess.spill import OverSpilled, Spilled, load, load_together, spill
from clsd.pipeline.shared import beam_private, progress
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import GOLDEN_FILE, STATISTICS_FILE
from clsd.pipeline.shared.files import atomic_file
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.loaders import read_parquet
from clsd.pipeline.shared.threads import ONE, Threads

#: Users are hashed into parts if a step needs all rows of a user: bytes of log per part, and the least number of parts.
USER_PART_BYTES, USER_PARTS = 64 << 20, 32
#: Batches are encoded together once they hold this many rows, or the bundle ends.
ENCODE_ROWS = 1 << 20
_DEAD, _COUNTS = "dead", "counts"

beam_private.shorten_waits()  # at import: workers import this module, but do not run the launching code


class ReadAndCheck(beam.DoFn):  # type: ignore[misc]
    """Reads input splits and checks their rows; assigns train, validation or test if the row alone decides. Also outputs dead
    letters and counts."""

    def __init__(self, config: Config, directory: str, threads: Threads) -> None:
        self._reader, self._schema = Reader(config.logs, config.seed, threads), config.row_schema
        self._directory, self._split = directory, _split_of_row(config)
        self._read = Metrics.counter("clsd", "rows_read")
        self._kept = Metrics.counter("clsd", "rows_kept")
        self._refused = Metrics.counter("clsd", "rows_refused")

    def process(self, input_split: InputSplit) -> Iterator[Any]:
        read = refused = 0
        dead_letters = DeadLetterWriter(self._directory, input_split)
        for part in self._reader.read(input_split):
            faulty: list[DeadLetter] = []
            if isinstance(part, DeadLetter):
                faulty, rows, kept = [part], 1, 0
            else:
                batch, wrong = check(self._schema, part.rows)
                for row, reason in wrong:
                    position = part.rows.column(POSITION)[row].as_py()
                    text = part.text(position)
                    text = refused_text(part.rows, row) if text is None else text
                    faulty.append(DeadLetter(input_split.path, self._reader.line(input_split, position), reason, text))
                rows, kept = part.rows.num_rows, batch.num_rows
                yield from spill(self._directory, [self._split(batch)])
            for dead_letter in faulty:
                Metrics.counter("clsd.refused", dead_letter.reason).inc()
                for refused_rows in dead_letters.take(dead_letter):
                    yield beam.pvalue.TaggedOutput(_DEAD, refused_rows)
            read, refused = read + rows, refused + len(faulty)
            for what, n in (("rows read", rows), ("rows kept", kept), ("rows refused", len(faulty))):
                progress.add(what, n, self._directory)
        for refused_rows in dead_letters.rest():
            yield beam.pvalue.TaggedOutput(_DEAD, refused_rows)
        progress.add(progress.READ, 1, self._directory)
        self._read.inc(read)
        self._kept.inc(read - refused)
        self._refused.inc(refused)
        yield beam.pvalue.TaggedOutput(_COUNTS, {"rows": (read, read - refused)})


class Encode(beam.DoFn):  # type: ignore[misc]
    """Encodes batches and partitions their rows by shard.

    It encodes several batches at once, because a lookup in a large vocabulary spends most of its time building an index.
    """

    def __init__(self, config: Config, directory: str, threads: Threads) -> None:
        self._schema, self._rows_per_shard, self._seed = (
            config.row_schema,
            config.preprocess.rows_per_shard,
            config.seed,
        )
        self._directory, self._threads = directory, threads
        self._waiting: list[Spilled] = []
        self._transform: Transform | None = None
        self._counts: dict[str, Any] = {}

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, batch: Spilled, transform: dict[str, Any], counts: dict[str, Any]) -> Iterator[Any]:
        if self._transform is None:
            self._transform, self._counts = Transform.load(self._schema, transform, self._vocabulary), counts
        self._waiting.append(batch)
        if sum(waiting.rows for waiting in self._waiting) >= ENCODE_ROWS:
            yield from self._encode()

    def finish_bundle(self) -> Iterator[Any]:
        for result in self._encode() if self._waiting else ():
            if isinstance(result, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(result.tag, GlobalWindows.windowed_value(result.value))
            else:
                yield GlobalWindows.windowed_value(result)

    def _vocabulary(self, name: str) -> pa.Table:
        file = as_path(self._directory) / name
        return read_parquet(file.read_bytes(), file, "run `clsd preprocess` again")

    def _encode(self) -> Iterator[Any]:
        assert self._transform is not None
        table, self._waiting = load_together(self._waiting), []
        rows, split = shards.encode_rows(self._transform, table, self._threads), table.column(SPLIT).to_numpy()
        num_shards = shards.shard_counts(self._counts, self._rows_per_shard)
        parts = dict(shards.partition(split, rows, num_shards, self._seed))
        for (name, _, _), part in parts.items():
            yield beam.pvalue.TaggedOutput(_COUNTS, shards.statistics(self._schema, name, part))
        spilled = spill(self._directory, (part.to_batch() for part in parts.values()))
        progress.add("rows encoded", len(rows), self._directory)
        yield from zip(parts, spilled, strict=True)


class MapInThreads(beam.DoFn):  # type: ignore[misc]
    """Processes the groups of a bundle in threads.

    Args:
        work: a function of (key, values); the values are small.
        threads: the worker's threads.
    """

    def __init__(self, work: Callable[[tuple[Any, Iterable[Any]]], Any], threads: Threads) -> None:
        self._work, self._threads = work, threads
        self._waiting: list[tuple[Any, list[Any]]] = []

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, element: tuple[Any, Iterable[Any]]) -> None:
        self._waiting.append((element[0], list(element[1])))

    def finish_bundle(self) -> Iterator[Any]:
        for result in self._threads.map(self._work, self._waiting):
            yield GlobalWindows.windowed_value(result)
        self._waiting = []


def build(
    pipeline: beam.Pipeline,
    config: Config,
    input_splits: list[InputSplit],
    directory: str,
    base: str = "",
    threads: Threads = ONE,
) -> None:
    """Add the job's graph to a Beam pipeline; it writes everything under ``directory``.

    Args:
        pipeline: a ``beam.Pipeline``.
        config: the config.
        input_splits: what :func:`clsd.pipeline.preprocess.input_splits.plan` gave.
        directory: directory of the shards, the vocabularies and the job's summary, ``job.json``.
        base: directory of an earlier data set whose ids are kept; "" for none.
        threads: threads per worker.
    """
    schema, job, seed = config.row_schema, config.preprocess, config.seed
    read = (
        pipeline
        | "InputSplits" >> beam.Create(input_splits)
        | "SpreadInputSplits" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadAndCheck(config, directory, threads)).with_outputs(_DEAD, _COUNTS, main="rows")
    )
    rows = _split(
        read.rows, config, directory, sum({input_split.path: input_split.size for input_split in input_splits}.values())
    )
    if job.negatives:
        items = rows | "Catalogue" >> beam.CombineGlobally(OverSpilled(negatives.Catalogue(job.negatives)))
        catalogue = beam.pvalue.AsSingleton(items)
        rows = rows | "Negatives" >> beam.FlatMap(
            _apply_and_spill, directory, partial(_add_negatives, config), catalogue
        )
    if job.keep_negatives < 1:
        keep = partial(negatives.keep_share, job.keep_negatives, seed)
        rows = rows | "KeepNegatives" >> beam.FlatMap(_apply_and_spill, directory, keep)
    rows = rows | "Rebalance" >> beam.Reshuffle()

    learnt = (
        rows
        | "Measure" >> beam.ParDo(Measure(schema, directory, threads))
        | "Features" >> beam.GroupByKey()
        | "Learn" >> beam.ParDo(MapInThreads(partial(learn, schema, directory, base), threads))
        | "AsDict" >> ToDict()
    )
    transform = beam.pvalue.AsSingleton(
        learnt | "Transform" >> beam.Map(partial(described_transform, schema, directory, base))
    )
    statistics = beam.pvalue.AsSingleton(learnt | "Describe" >> beam.Map(partial(data_statistics.describe, schema)))
    rows_per_split = beam.pvalue.AsSingleton(learnt | "Count" >> beam.Map(lambda result: result.get("splits", {})))

    encoded = rows | "Encode" >> beam.ParDo(Encode(config, directory, threads), transform, rows_per_split).with_outputs(
        _COUNTS, main="rows"
    )
    written = (
        encoded.rows
        | "Gather" >> beam.GroupByKey()
        | "Write"
        >> beam.ParDo(MapInThreads(partial(_write_shard, schema, job.rows_per_block, job.gzip, directory), threads))
    )
    golden = rows | "Golden" >> beam.CombineGlobally(OverSpilled(SmallestKeys(job.golden_rows)))
    dead = (
        read.dead
        | "OneFile" >> beam.GroupBy(lambda _: 0)
        | "DeadLetters" >> beam.Map(partial(write_dead_letters, directory))
    )
    rows_read_and_kept = read.counts | "Counts" >> beam.CombineGlobally(MergePartials()).without_defaults()
    out_of_vocabulary_counts = (
        encoded.counts | "OutOfVocabularyCounts" >> beam.CombineGlobally(MergePartials()).without_defaults()
    )
    _ = (
        pipeline
        | "SummaryTrigger" >> beam.Create([directory])
        | "Summary"
        >> beam.Map(
            _write_summary,
            transform=transform,
            golden=beam.pvalue.AsSingleton(golden),
            written=beam.pvalue.AsList(written),
            dead=beam.pvalue.AsList(dead),
            rows_read_and_kept=beam.pvalue.AsSingleton(rows_read_and_kept, default_value={"rows": (0, 0)}),
            rows_per_split=rows_per_split,
            statistics=statistics,
            out_of_vocabulary_counts=beam.pvalue.AsSingleton(out_of_vocabulary_counts, default_value={}),
        )
    )


def _needs_users(config: Config) -> bool:
    """Whether a stage needs all rows of a user."""
    return (
        config.preprocess.split.by == "user_time"
        or config.preprocess.negatives is not None
        or bool(config.row_schema.histories)
    )


def _split_of_row(config: Config) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """A function that adds the split if the row alone decides it; otherwise the identity."""
    settings = config.preprocess.split
    if settings.by == "hash":
        return partial(splits.by_hash, settings, config.row_schema.user, config.seed)
    given = splits.given_boundaries(settings) if settings.by == "time" else None
    return partial(splits.by_time, given, settings.gap) if given else lambda batch: batch


def _split(rows: PCollection[Spilled], config: Config, directory: str, log_bytes: int) -> PCollection[Spilled]:
    settings = config.preprocess.split
    if _needs_users(config):
        parts = max(USER_PARTS, log_bytes // USER_PART_BYTES)
        rows = (
            rows
            | "UserParts" >> beam.FlatMap(partial(_partition_by_user, directory, parts, config.seed))
            | "Users" >> beam.GroupByKey()
            | "JoinUserRows" >> beam.FlatMap(partial(_join_user_rows, directory, config))
        )
    if settings.by == "time" and not settings.test_from:
        times = rows | "Boundaries" >> beam.CombineGlobally(OverSpilled(splits.TimeBoundaries(settings)))
        by_time = partial(_split_by_time, settings.gap)
        rows = rows | "SplitByTime" >> beam.FlatMap(
            _apply_and_spill, directory, by_time, beam.pvalue.AsSingleton(times)
        )
    return rows


def _apply_and_spill(
    batch: Spilled, directory: str, change: Callable[..., pa.RecordBatch], learnt: Any = None
) -> Iterable[Spilled]:
    """Apply ``change`` to a batch, with ``learnt`` as its second argument if given, and spill the result."""
    rows = load(batch)
    return spill(directory, [change(rows) if learnt is None else change(rows, learnt)])


def _split_by_time(gap: int, batch: pa.RecordBatch, boundaries: tuple[int, int]) -> pa.RecordBatch:
    return splits.by_time(boundaries, gap, batch)


def _partition_by_user(directory: str, parts: int, seed: int, spilled: Spilled) -> Iterator[tuple[int, Spilled]]:
    batch = load(spilled)
    part = (seeded(batch.column(USER).to_numpy(), seed, 0x0521) % np.uint64(parts)).astype(np.int64)
    order, starts = shards.sorted_codes(part)
    # Drop the dictionaries: otherwise each part would carry the whole batch's.
    ordered = with_dictionaries((), pa.Table.from_batches([batch.take(pa.array(order))]))
    user_parts = spill(
        directory, (ordered.slice(start, stop - start) for start, stop in pairwise([*starts, len(order)]))
    )
    yield from zip(part[order[starts]].tolist(), user_parts, strict=True)


def _join_user_rows(directory: str, config: Config, element: tuple[int, Iterable[Spilled]]) -> Iterable[Spilled]:
    """All rows of a part's users in a deterministic order, with their histories and split."""
    (batch,) = load_together(element[1]).combine_chunks().sort_by(KEY).combine_chunks().to_batches()
    batch = add_histories(config.row_schema, batch)
    if config.preprocess.split.by == "user_time":
        batch = splits.by_user_time(config.preprocess.split, batch)
    return spill(directory, [with_dictionaries(config.row_schema.single_valued, pa.Table.from_batches([batch]))])


def _add_negatives(config: Config, batch: pa.RecordBatch, catalogue: pa.Table | None) -> pa.RecordBatch:
    assert config.preprocess.negatives is not None
    rows = with_dictionaries((), pa.Table.from_batches([batch]))
    with_negatives = negatives.add_negatives(
        config.preprocess.negatives, config.row_schema, config.seed, rows, catalogue
    )
    return with_dictionaries(config.row_schema.single_valued, pa.Table.from_batches([with_negatives]))


def _write_shard(schema: Schema, rows_per_block: int, gzipped: bool, directory: str, element: Any) -> dict[str, Any]:
    shard = shards.write_shard(schema, rows_per_block, gzipped, directory, element)
    progress.add("rows written", shard["rows"], directory)
    Metrics.counter("clsd", "rows_written").inc(shard["rows"])
    return shard


def _write_summary(
    directory: str,
    transform: dict[str, Any],
    golden: pa.RecordBatch | None,
    written: list[dict[str, Any]],
    dead: list[dict[str, Any]],
    rows_read_and_kept: dict[str, tuple[int, int]],
    rows_per_split: dict[str, tuple[int, int]],
    statistics: dict[str, Any],
    out_of_vocabulary_counts: dict[str, Any],
) -> None:
    """Write what the launching process needs to complete the data set. This runs on one worker."""
    if golden is not None:
        with atomic_file(as_path(directory) / GOLDEN_FILE) as file:
            pq.write_table(pa.Table.from_batches([golden]), file)
    rows, kept = rows_read_and_kept["rows"]
    summary = {
        "rows": {"read": rows, "kept": kept, "refused": rows - kept, "in_gap": rows_per_split.get("gap", (0, 0))[0]},
        "dead": list(dead),
        "shards": sorted(written, key=lambda shard: shard["file"]),
        "transform": transform,
        "quality": out_of_vocabulary_counts,
        "features": statistics["features"],
    }
    write_json(as_path(directory) / STATISTICS_FILE, statistics)
    write_json(as_path(directory) / "job.json", summary)
