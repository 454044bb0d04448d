"""Score logs of any size with an exported model: a Beam job around Beam's RunInference (`clsd score`).

The job reads the log as preprocessing does, and calls the model's raw-feature signature as a model server does. The output
files hold the log's rows; sorted by name, they are in the log's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from clsd.features.errors import UserError
from clsd.features.paths import address, as_path
from clsd.features.schema import Schema, digest_of
from clsd.features.tokens import plain
from clsd.pipeline.preprocess.columns import KEY, POSITION
from clsd.pipeline.preprocess.dead_letters import DeadLetter, DeadLetterWriter, write_dead_letters
from clsd.pipeline.preprocess.input_splits import InputSplit, plan
from clsd.pipeline.preprocess.manifest import refuse_if_refused
from clsd.pipeline.preprocess.sources import Reader
from clsd.pipeline.preprocess.spill import SPILL, Spilled, load, spill
from clsd.pipeline.serving.serving_inputs import OUTPUTS, require_free_names, serving_arrays
from clsd.pipeline.shared import beam_private, engine, progress
from clsd.pipeline.shared.checksums import describe_file, require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.files import atomic_directory, atomic_file, make_directory, remove_file, remove_tree
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.shared.log_writer import json_lines
from clsd.pipeline.shared.model_versions import exported_config, read_metadata
from clsd.pipeline.shared.threads import ONE, Threads

#: The file that marks a complete directory of scores and describes it.
SCORES_FILE = "scores.json"
#: Number of rows per call of the model.
BATCH_ROWS = 8192
_DEAD = "dead"
#: The count of the stage after reading, and the stage's name.
SCORING = (("rows scored", "scoring"),)

beam_private.shorten_waits()


class Part(NamedTuple):
    """Some rows of an input split.

    Args:
        input_split: index of the input split.
        number: index of the part within its input split.
        spilled: the rows.
    """

    input_split: int
    number: int
    spilled: Spilled


class Read(beam.DoFn):  # type: ignore[misc]
    """Reads input splits into rows that parse; the others go to a second output."""

    def __init__(self, config: Config, directory: str, threads: Threads) -> None:
        self._reader, self._directory = Reader(config.logs, config.seed, threads), directory

    def process(self, input_split: InputSplit) -> Iterator[Any]:
        dead_letters, number = DeadLetterWriter(self._directory, input_split), 0
        for part in self._reader.read(input_split):
            if isinstance(part, DeadLetter):
                for refused_rows in dead_letters.take(part):
                    yield beam.pvalue.TaggedOutput(_DEAD, refused_rows)
                progress.add("rows refused", 1, self._directory)
            else:
                for spilled in spill(self._directory, [part.rows]):
                    yield Part(input_split.index, number, spilled)
                    number += 1
            progress.add("rows read", 1 if isinstance(part, DeadLetter) else part.rows.num_rows, self._directory)
        for refused_rows in dead_letters.rest():
            yield beam.pvalue.TaggedOutput(_DEAD, refused_rows)
        progress.add(progress.READ, 1, self._directory)


class ExportedModel(ModelHandler[Part, PredictionResult, Any]):  # type: ignore[misc]
    """Beam's handler of an exported version; it calls ``serving_default``.

    Args:
        schema: the schema; it says which column each input reads.
        model: directory of the version.
        directory: directory of the job.
    """

    def __init__(self, schema: Schema, model: str, directory: str) -> None:
        super().__init__(max_batch_size=1)  # each element holds many rows already
        self._schema, self._model, self._directory = schema, model, directory

    def load_model(self) -> Any:
        """Load the model, once per worker."""
        from clsd.pipeline.serving.predict import Predictor

        return Predictor(as_path(self._model))

    def run_inference(
        self, batch: Sequence[Part], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Each part's rows as a table with their scores."""
        for part in batch:
            table = pa.Table.from_batches([load(part.spilled)])
            answers: dict[str, list[Any]] = {name: [] for name in OUTPUTS}
            for at in range(0, table.num_rows, BATCH_ROWS):
                inputs = serving_arrays(self._schema, table.slice(at, BATCH_ROWS), model.inputs)
                for name, values in model.call(inputs).items():
                    answers[name].append(values)
            for name, values in answers.items():
                table = table.append_column(name, pa.chunked_array(values, pa.float32()))
            progress.add("rows scored", table.num_rows, self._directory)
            Metrics.counter("clsd", "rows_scored").inc(table.num_rows)
            yield PredictionResult(part, table)


def score(
    config: Config,
    model: str | Path,
    out: str | Path,
    *,
    format: str = "parquet",
    overwrite: bool = False,
    beam_options: list[str] | None = None,
) -> dict[str, Any]:
    """Score the config's logs. Scores of the same model and logs are reused.

    Args:
        config: the logs and their schema.
        model: an exported version.
        out: directory of the output files, of ``dead_letters.jsonl.gz`` if lines did not parse, and of scores.json.
        format: parquet or jsonl.
        overwrite: score again, and replace the content of ``out``.
        beam_options: options of Beam.

    Returns:
        the content of scores.json: rows, parts, and the mean of each score.

    Raises:
        UserError: a fault of the logs, the model or the disk.
    """
    model = as_path(model)
    out = as_path(out)
    metadata = read_metadata(model, "copy it again, or export it again")
    config, input_splits = _to_be_scored(config, exported_config(model))
    fingerprint = _fingerprint(config, input_splits, metadata, format)
    if not overwrite and (out / SCORES_FILE).exists():
        earlier = read_json(out / SCORES_FILE, "directory of scores", "pass --overwrite to score again")
        if earlier.get("fingerprint") == fingerprint:
            require_unchanged(out, earlier["parts"], "pass --overwrite to score again")
            progress.say_there_already()
            return earlier
    with atomic_directory(out, marker=SCORES_FILE, overwrite=overwrite, shared=True, sole=True) as temporary:
        make_directory(temporary / SPILL)
        job = address(temporary)
        with progress.launching(job):
            engine.run(
                lambda pipeline, threads: build(pipeline, config, input_splits, address(model), job, format, threads),
                temporary,
                beam_options or [],
                input_splits=len(input_splits),
                threads=config.preprocess.threads,
                stalled_minutes=config.preprocess.stalled_minutes,
            )
        beam_private.release_models()
        summary = read_json(temporary / "job.json", "summary of the job", "run it again")
        refuse_if_refused(config, summary, temporary, out)
        for name in (SPILL, progress.REPORTS):
            remove_tree(temporary / name)
        remove_file(temporary / "job.json")
        summary = {"model": str(model), "logs": config.logs.files, "fingerprint": fingerprint, **summary}
        write_json(temporary / SCORES_FILE, summary)
    progress.settle({f"rows {what}": n for what, n in summary["rows"].items()})
    return dict(summary)


def _fingerprint(config: Config, input_splits: list[InputSplit], metadata: dict[str, Any], format: str) -> str:
    """Fingerprint of the scores: of the model's version, the logs with their sizes and times, and the settings that read them."""
    parts = config.model_dump(mode="json", include={"logs", "row_schema"}, by_alias=True)
    files = sorted({(split.path, split.size, split.modified) for split in input_splits})
    return digest_of([parts, files, metadata["fingerprint"], metadata["version"], metadata["files"], format])


def _to_be_scored(config: Config, exported: Config) -> tuple[Config, list[InputSplit]]:
    """The config for logs from which nothing is learnt, and their input splits. Histories are read from the log, and columns that
    are not inputs are copied where the log has them.

    Raises:
        UserError: the config's features are not the model's, a column has the name of a score, a history is not in the log.
    """
    require_free_names([*config.row_schema.columns, *(f.source for f in config.row_schema.histories)])
    theirs = {f.name: f for f in config.row_schema.inputs}
    for feature in exported.row_schema.inputs:
        mine = theirs.get(feature.name)
        # A log may hold text where a request holds a list; a CSV file must.
        split = getattr(mine, "separator", "") and not getattr(feature, "separator", "") and feature.dtype == "string"  # type: ignore[union-attr]
        for what in ("kind", "dtype", *(() if split else ("separator",))):
            if getattr(mine, what, None) != getattr(feature, what, None):
                said = f"the model's '{feature.name}' has {what} {getattr(feature, what)!r}"
                raise UserError(
                    "rows.features", said, "describe the log's features as the model's, or leave out --config"
                )
    dumped = config.row_schema.model_dump(mode="json", by_alias=True)
    histories = [feature.source for feature in config.row_schema.histories]
    for feature in dumped["features"]:
        if feature.get("clicks_of"):
            feature["clicks_of"] = ""
    roles = ("label", "user", "timestamp", "intensity")
    inputs = [f for f in dumped["features"] if (f["column"] or f["name"]) not in histories]
    bare = Schema.model_validate({**dumped, "features": inputs, **dict.fromkeys(roles, ""), "passthrough": []})
    input_splits = plan(config.logs, bare)
    columns_of_splits = [{*input_split.unread, *input_split.types} for input_split in input_splits]

    def has(column: str) -> bool:
        return all(column in columns for columns in columns_of_splits)

    for column in histories:
        if not has(column):
            what = (
                f"has no column '{column}': preprocessing derived it from the clicks of the log, but scoring reads it"
            )
            raise UserError(input_splits[0].path, what, "add the history to the log")
    kept = {role: dumped[role] if has(dumped[role]) else "" for role in roles}
    carried = [name for name in dumped["passthrough"] if has(name)]
    if lost := [name for name in dumped["passthrough"] if not has(name)]:
        progress.warn(f"the logs have no column {', '.join(lost)} (rows.passthrough): not copied")
    rows = Schema.model_validate({**dumped, **kept, "passthrough": carried})
    return config.model_copy(update={"row_schema": rows}), plan(config.logs, rows)


def build(
    root: beam.Pipeline,
    config: Config,
    input_splits: list[InputSplit],
    model: str,
    directory: str,
    format: str,
    threads: Threads = ONE,
) -> None:
    """Build the job's Beam graph; all its files are written under ``directory``."""
    read = (
        root
        | "InputSplits" >> beam.Create(input_splits)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(config, directory, threads)).with_outputs(_DEAD, main="rows")
    )
    written = (
        read.rows
        | "Even" >> beam.Reshuffle()
        | "Score" >> RunInference(ExportedModel(config.row_schema, model, directory))
        | "Write" >> beam.Map(partial(_write_part, directory, format))
    )
    dead = (
        read.dead
        | "OneFile" >> beam.GroupBy(lambda _: 0)
        | "DeadLetters" >> beam.Map(partial(write_dead_letters, directory))
    )
    _ = (
        root
        | "Once" >> beam.Create([directory])
        | "Summary" >> beam.Map(_write_summary, beam.pvalue.AsList(written), beam.pvalue.AsList(dead))
    )


def _write_part(directory: str, format: str, result: Any) -> dict[str, Any]:
    part, table = result.example, result.inference
    # A block of text with odd lines yields them out of order.
    table = table.sort_by(POSITION).drop_columns([KEY, POSITION])
    table = pa.table({name: plain(table[name]) for name in table.column_names})
    name = f"part-{part.input_split:05}-{part.number:05}.{format}"
    with atomic_file(as_path(directory) / name) as file:
        if format == "parquet":
            pq.write_table(table, file)
        else:
            for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
                file.write("".join(json_lines(batch).to_pylist()).encode())
    sums = {name: float(pc.sum(table[name].cast(pa.float64())).as_py()) for name in OUTPUTS}
    return {**describe_file(as_path(directory), name), "rows": table.num_rows, "sums": sums}


def _write_summary(directory: str, written: list[dict[str, Any]], dead: list[dict[str, Any]]) -> None:
    rows, refused = sum(part["rows"] for part in written), sum(dead_letters["rows"] for dead_letters in dead)
    means = {name: sum(part["sums"][name] for part in written) / rows for name in OUTPUTS} if rows else {}
    parts = [
        {key: value for key, value in part.items() if key != "sums"}
        for part in sorted(written, key=lambda part: part["file"])
    ]
    summary = {
        "rows": {"read": rows + refused, "refused": refused, "scored": rows},
        "dead": dead,
        "mean": means,
        "parts": parts,
    }
    write_json(as_path(directory) / "job.json", summary)
