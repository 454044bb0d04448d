"""Click logs to a data set: the Beam job.

Every element is an Arrow record batch or a block of encoded rows, never a single row::

    pieces ─▶ read ─▶ check ─▶ (by user: negatives) ─▶ split (, keep) ─▶ encode ─▶ by shard ─▶ shuffle, write ─▶ manifest
                 └──▶ dead letters        └──▶ count, measure ──▶ transform ──┘

Nothing is learnt from validation or test rows. ``dataset.json`` is written last, by the launching process, after the share
of refused rows has been found small enough.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.combiners import ToDict
from apache_beam.transforms.window import GlobalWindows

from features.errors import UserError
from features.hashing import hash64, seeded
from features.schema import Schema
from features.transform import Transform
from pipeline import negatives, profile, progress, shards, splits
from pipeline.analyse import MergePartials, fit, partials
from pipeline.columns import KEY, POSITION, SPLIT, USER
from pipeline.config import Config, LogSettings
from pipeline.dataset import GOLDEN_FILE, STATISTICS_FILE, Dataset
from pipeline.files import read_json, whole_directory, write_json
from pipeline.histories import add_histories
from pipeline.manifest import manifest, refuse_if_bad
from pipeline.plan import Piece, plan
from pipeline.sources import Reader, Refused
from pipeline.validate import check, refused_text

#: Parts into which users are hashed where a step needs all rows of a user at once.
USER_PARTS = 32
#: Rows that are encoded together, and no fewer batches than one.
ENCODE_ROWS = 262_144
_DEAD, _TALLY = "dead", "tally"


class ReadAndCheck(beam.DoFn):  # type: ignore[misc]
    """Pieces to checked batches; refused rows and counts go to outputs of their own."""

    def __init__(self, logs: LogSettings, schema: Schema, seed: int) -> None:
        self._reader, self._schema = Reader(logs, seed), schema
        self._read = Metrics.counter("clsd", "rows_read")
        self._refused = Metrics.counter("clsd", "rows_refused")

    def process(self, piece: Piece) -> Iterator[Any]:
        kept = 0
        refusals: list[Refused] = []
        for part in self._reader.read(piece):
            if isinstance(part, Refused):
                refusals.append(part)
                progress.add("rows read", 1)
                continue
            batch, wrong = check(self._schema, part)
            for row, reason in wrong:
                line = self._reader.line(piece, part.column(POSITION)[row].as_py())
                refusals.append(Refused(piece.path, line, reason, refused_text(part, row)))
            kept += batch.num_rows
            progress.add("rows read", part.num_rows)
            if batch.num_rows:
                yield batch
        progress.add(progress.READ, 1)
        self._read.inc(kept + len(refusals))
        self._refused.inc(len(refusals))
        progress.add("rows refused", len(refusals))
        for refused in refusals:
            Metrics.counter("clsd.refused", refused.reason).inc()
            yield beam.pvalue.TaggedOutput(_DEAD, refused)
        yield beam.pvalue.TaggedOutput(_TALLY, {"rows": (kept + len(refusals), kept)})


class Encode(beam.DoFn):  # type: ignore[misc]
    """Batches to encoded rows by shard, several batches at a time: a look-up in a vocabulary of millions costs what building
    its index costs, once for all rows that are looked up together."""

    def __init__(self, schema: Schema, rows_per_shard: int, seed: int) -> None:
        self._schema, self._rows_per_shard, self._seed = schema, rows_per_shard, seed
        self._waiting: list[pa.RecordBatch] = []
        self._learnt: tuple[Transform, Any] | None = None

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, batch: pa.RecordBatch, transform: Transform, counts: Any) -> Iterator[Any]:
        self._learnt = transform, counts
        self._waiting.append(batch)
        if sum(waiting.num_rows for waiting in self._waiting) >= ENCODE_ROWS:
            yield from self._encode()

    def finish_bundle(self) -> Iterator[Any]:
        for found in self._encode() if self._waiting else ():
            if isinstance(found, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(found.tag, GlobalWindows.windowed_value(found.value))
            else:
                yield GlobalWindows.windowed_value(found)

    def _encode(self) -> Iterator[Any]:
        assert self._learnt is not None
        transform, counts = self._learnt
        together, self._waiting = pa.Table.from_batches(_aligned(self._waiting)).combine_chunks(), []
        for batch in together.to_batches():
            rows = shards.encode_rows(transform, batch)
            yield beam.pvalue.TaggedOutput(_TALLY, shards.statistics(self._schema, batch, rows))
            progress.add("rows encoded", len(rows))
            yield from shards.partition(batch, rows, shards.shard_counts(counts, self._rows_per_shard), self._seed)


def build(root: Any, config: Config, pieces: list[Piece], directory: str, base: str = "") -> None:
    """The job's graph on a Beam pipeline; everything it makes is written under ``directory``.

    Args:
        root: a ``beam.Pipeline``.
        config: the whole run's settings.
        pieces: what :func:`pipeline.plan.plan` found.
        directory: where shards, vocabularies and the job's own summary, ``job.json``, go.
        base: directory of an earlier data set whose ids are kept; "" for none.
    """
    schema, job, seed = config.rows, config.preprocess, config.seed
    read = (
        root
        | "Pieces" >> beam.Create(pieces)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadAndCheck(config.logs, schema, seed)).with_outputs(_DEAD, _TALLY, main="rows")
    )
    rows = _split(read.rows, config)
    if job.negatives:
        catalogue = rows | "Catalogue" >> beam.CombineGlobally(negatives.Catalogue(job.negatives))
        rows = rows | "Negatives" >> beam.Map(_negatives, config, beam.pvalue.AsSingleton(catalogue))
    if job.keep_negatives < 1:
        rows = rows | "KeepNegatives" >> beam.Map(partial(negatives.keep_share, job.keep_negatives, seed))

    merged = (
        rows
        | "Measure" >> beam.FlatMap(partial(_measure, schema))
        | "Merge" >> beam.CombinePerKey(MergePartials())
        | "One" >> ToDict()
    )
    transform = beam.pvalue.AsSingleton(merged | "Fit" >> beam.Map(partial(_fit, schema, base)))
    described = beam.pvalue.AsSingleton(merged | "Describe" >> beam.Map(partial(profile.describe, schema)))
    counts = beam.pvalue.AsSingleton(merged | "Count" >> beam.Map(lambda found: found.get("splits", {})))

    encoded = rows | "Encode" >> beam.ParDo(Encode(schema, job.rows_per_shard, seed), transform, counts).with_outputs(
        _TALLY, main="rows"
    )
    written = (
        encoded.rows
        | "Gather" >> beam.GroupByKey()
        | "Write" >> beam.Map(partial(_write_shard, schema, job.rows_per_block, job.gzip, directory))
    )
    golden = rows | "Golden" >> beam.CombineGlobally(SmallestKeys(job.golden_rows))
    dead = (
        read.dead | "OneFile" >> beam.GroupBy(lambda _: 0) | "DeadLetters" >> beam.Map(partial(_write_dead, directory))
    )
    tally = read.tally | "Tally" >> beam.CombineGlobally(MergePartials()).without_defaults()
    quality = encoded.tally | "Quality" >> beam.CombineGlobally(MergePartials()).without_defaults()
    _ = (
        root
        | "Once" >> beam.Create([directory])
        | "Summary"
        >> beam.Map(
            _write_summary,
            transform=transform,
            golden=beam.pvalue.AsSingleton(golden),
            written=beam.pvalue.AsList(written),
            dead=beam.pvalue.AsList(dead),
            tally=beam.pvalue.AsSingleton(tally),
            counts=counts,
            described=described,
            quality=beam.pvalue.AsSingleton(quality, default_value={}),
        )
    )


def _split(rows: Any, config: Config) -> Any:
    settings = config.preprocess.split
    by_user = settings.by == "user_time" or config.preprocess.negatives is not None or config.rows.histories
    if by_user:
        rows = (
            rows
            | "UserParts" >> beam.FlatMap(partial(_by_user, config.seed))
            | "Users" >> beam.GroupByKey()
            | "Together" >> beam.Map(_together)
        )
    if config.rows.histories:
        rows = rows | "Histories" >> beam.Map(partial(add_histories, config.rows))
    if settings.by == "user_time":
        return rows | "SplitByUser" >> beam.Map(partial(splits.by_user_time, settings))
    if settings.by == "hash":
        return rows | "SplitByHash" >> beam.Map(partial(splits.by_hash, settings, config.seed))
    given = splits.given_boundaries(settings)
    if given:
        return rows | "SplitByTime" >> beam.Map(partial(splits.by_time, given, settings.gap))
    boundaries = beam.pvalue.AsSingleton(rows | "Times" >> beam.CombineGlobally(splits.TimeBoundaries(settings)))
    return rows | "SplitByTime" >> beam.Map(_split_by_time, settings.gap, boundaries)


def _split_by_time(batch: pa.RecordBatch, gap: int, boundaries: tuple[int, int]) -> pa.RecordBatch:
    return splits.by_time(boundaries, gap, batch)


def _by_user(seed: int, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    part = (seeded(hash64(batch.column(USER)), seed, 0x0521) % np.uint64(USER_PARTS)).astype(np.int64)
    for at, places in shards.grouped(part):
        yield at, batch.take(pa.array(places))


def _together(element: tuple[int, Iterable[pa.RecordBatch]]) -> pa.RecordBatch:
    """All rows of a part's users, in an order that does not depend on how they arrived."""
    table = pa.Table.from_batches(_aligned(list(element[1])))
    return table.sort_by(KEY).combine_chunks().to_batches()[0]


def _aligned(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Batches of several files with the same columns in the same order: what a file lacks is null."""
    whole = pa.unify_schemas([batch.schema for batch in batches], promote_options="permissive")
    return [
        pa.RecordBatch.from_arrays(
            [
                batch.column(f.name).cast(f.type) if f.name in batch.schema.names else pa.nulls(batch.num_rows, f.type)
                for f in whole
            ],
            schema=whole,
        )
        for batch in batches
    ]


def _negatives(batch: pa.RecordBatch, config: Config, catalogue: pa.Table | None) -> pa.RecordBatch:
    assert config.preprocess.negatives is not None
    return negatives.add_negatives(config.preprocess.negatives, config.rows, config.seed, batch, catalogue)


def _measure(schema: Schema, batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    yield from partials(schema, batch)
    yield from profile.partials(schema, batch)


def _fit(schema: Schema, base: str, merged: dict[str, Any]) -> Transform:
    return fit(schema, merged, Dataset.load(base).transform if base else None)


def _write_shard(schema: Schema, rows_per_block: int, gzipped: bool, directory: str, element: Any) -> dict[str, Any]:
    shard = shards.write_shard(schema, rows_per_block, gzipped, directory, element)
    progress.add("rows written", shard["rows"])
    Metrics.counter("clsd", "rows_written").inc(shard["rows"])
    return shard


class SmallestKeys(beam.CombineFn):  # type: ignore[misc]
    """A uniform sample of the test split's raw rows: those with the smallest random keys (all of them, if they are few).

    A log too small for a test split gives validation or training rows instead: the canary needs some.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def create_accumulator(self) -> list[pa.RecordBatch]:
        return []

    def add_input(self, accumulator: list[pa.RecordBatch], batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        for split in (2, 1, 0):
            rows = batch.filter(pc.equal(batch.column(SPLIT), split))
            if rows.num_rows:
                accumulator.append(rows.take(pc.sort_indices(rows.column(KEY))[: self._rows]))
        return accumulator if len(accumulator) < 16 else [self._smallest(accumulator)]

    def merge_accumulators(self, accumulators: Any) -> list[pa.RecordBatch]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return [self._smallest(parts)] if parts else []

    def extract_output(self, accumulator: list[pa.RecordBatch]) -> pa.RecordBatch | None:
        if not accumulator:
            return None
        rows = self._smallest(accumulator)
        return rows.filter(pc.equal(rows.column(SPLIT), rows.column(SPLIT)[0]))

    def _smallest(self, parts: list[pa.RecordBatch]) -> pa.RecordBatch:
        table = pa.Table.from_batches(_aligned(parts))
        order = pc.sort_indices(table, sort_keys=[(SPLIT, "descending"), (KEY, "ascending")])
        return table.take(order[: self._rows]).combine_chunks().to_batches()[0]


def _write_dead(directory: str, element: tuple[int, Iterable[Refused]]) -> dict[str, Any]:
    """All dead letters in one compressed file, in order; returns their counts by reason and the first of them."""
    letters = sorted(element[1], key=lambda refused: (refused.path, refused.line, refused.reason, refused.text))
    path = Path(directory) / "dead_letters.jsonl.gz"
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        for refused in letters:
            file.write((json.dumps(refused.__dict__, ensure_ascii=False) + "\n").encode())
    reasons: dict[str, int] = {}
    for refused in letters:
        reasons[refused.reason] = reasons.get(refused.reason, 0) + 1
    return {"rows": len(letters), "reasons": dict(sorted(reasons.items())), "first": letters[0].__dict__}


def _write_summary(
    directory: str,
    transform: Transform,
    golden: Any,
    written: Any,
    dead: Any,
    tally: Any,
    counts: Any,
    described: Any,
    quality: Any,
) -> None:
    """What the launching process needs to finish: written by one worker, in one place."""
    transform.save(Path(directory))
    if golden is not None:
        pq.write_table(pa.Table.from_batches([golden]), Path(directory) / GOLDEN_FILE)
    rows, kept = tally["rows"]
    summary = {
        "rows": {"read": rows, "kept": kept, "refused": rows - kept, "in_gap": counts.get("gap", (0, 0))[0]},
        "dead": list(dead),
        "shards": sorted(written, key=lambda shard: shard["file"]),
        "transform": transform.describe(),
        "quality": quality,
        "features": described["features"],
    }
    write_json(Path(directory) / STATISTICS_FILE, described)
    write_json(Path(directory) / "job.json", summary)


def preprocess(
    config: Config,
    out: Path,
    *,
    base: Path | None = None,
    overwrite: bool = False,
    beam_options: list[str] | None = None,
) -> Dataset:
    """Run the job and publish the data set by one rename.

    Args:
        config: the whole run's settings.
        out: the data set's directory.
        base: an earlier data set of the same rows: its ids and scales are kept, values that are new are added after them.
        overwrite: replace what is there.
        beam_options: passed through to Beam, such as ``["--runner=FlinkRunner"]``.

    Raises:
        UserError: anything about the logs, the settings or the disk that a user can mend.
    """
    earlier = Dataset.load(base) if base else None
    if earlier:
        earlier.require(config.rows)
    pieces = plan(config.logs, config.rows)
    out = Path(out)
    with whole_directory(out, marker="dataset.json", overwrite=overwrite) as aside:
        _run(config, pieces, aside, beam_options or [], str(base.resolve()) if base else "")
        summary = read_json(aside / "job.json", "summary of the job", "run it again")
        refuse_if_bad(config, summary, aside, out)
        (aside / "job.json").unlink()
        for left in aside.glob("*/.*.partial"):  # of a bundle that an engine tried twice
            left.unlink()
        write_json(aside / "dataset.json", manifest(config, pieces, summary, aside, earlier))
    return Dataset.load(out)


def _run(config: Config, pieces: list[Piece], directory: Path, beam_options: list[str], base: str) -> None:
    try:
        # Worker processes log every channel they open unless told otherwise; what the user gives comes later and wins.
        quiet = "--default_sdk_harness_log_level=ERROR"
        options = PipelineOptions([quiet, *beam_options], save_main_session=False)
        pipeline = beam.Pipeline(options=options)
    except (SystemExit, ValueError) as error:
        raise UserError(
            "-- " + " ".join(beam_options),
            f"Beam does not take these options ({error})",
            "see `clsd preprocess --help`",
        ) from None
    _warn_of_unknown(beam_options)
    progress.add(progress.PLANNED, len(pieces))
    build(pipeline, config, pieces, str(directory.resolve()), base)
    try:
        pipeline.run().wait_until_finish()
    except UserError:
        raise
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # the engine makes an error of its own of Ctrl-C
            raise KeyboardInterrupt from None
        raise _inner_user_error(error) or _engine_failure(error) or error from None


def _engine_failure(error: Exception) -> UserError | None:
    """A job that its engine gave up, a killed worker for one; an exception of our own code within it is a bug, and stays one."""
    text = str(error)
    if " failed in state " not in text or "Traceback (most recent call last)" in text:
        return None
    reason = text.split(" failed in state ", 1)[1].split("\n", 1)[0].rsplit(": ", 1)[-1].strip()
    return UserError(
        "Beam's engine", f"gave the job up ({reason})", "see its log, and run the same again: no data set was written"
    )


def _warn_of_unknown(beam_options: list[str]) -> None:
    """Beam ignores an option that it does not know; a job server may know it, so this is no error."""
    parser: Any = argparse.ArgumentParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    for option in parser.parse_known_args(beam_options)[1]:
        if option.startswith("-"):
            progress.console.print(f"[yellow]warning[/yellow] Beam itself does not know {option}", highlight=False)


def _inner_user_error(error: BaseException) -> UserError | None:
    """A worker's UserError inside the exception that the engine made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        marker = "features.errors.UserError: "
        if marker in str(seen):  # a portable engine hands over the worker's traceback as text
            line = str(seen).rsplit(marker, 1)[1].split("\n", 1)[0].split(" [while running", 1)[0]
            where, _, what = line.partition(": ")
            return UserError(where, what, "")
        seen = seen.__cause__ or seen.__context__
    return None
