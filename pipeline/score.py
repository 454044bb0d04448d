"""Logs of any size, scored by an exported model: a Beam job around Beam's RunInference.

The log is read as preprocessing reads it, and the model is asked as a model server asks it, by its raw-feature signature; what
comes out is the log's rows, a part for each piece of the log, in the log's order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from features.errors import UserError
from features.places import address, place
from features.schema import Schema
from features.tokens import plain
from pipeline import beam_waits, engine, progress
from pipeline.columns import KEY, POSITION
from pipeline.config import Config
from pipeline.dead_letters import Collector, Refused, write_dead_letters
from pipeline.files import make_directory, read_json, remove_file, remove_tree, whole_directory, whole_file, write_json
from pipeline.plan import Piece, plan
from pipeline.raw import arrow_inputs
from pipeline.signatures import OUTPUTS
from pipeline.sources import Reader
from pipeline.spill import SPILL, Spilled, load, load_together, spill
from pipeline.threads import ONE, Threads

#: What says that a directory of scores is whole, and what they are of.
SCORES_FILE = "scores.json"
#: Rows that the model is asked for at a time.
ASKED_ROWS = 8192
_DEAD = "dead"

beam_waits.shorten()


@dataclass(frozen=True, order=True)
class Part:
    """Some rows of a piece; they sort as they stand in the log.

    Args:
        piece: its place among all pieces.
        number: of those of one piece, in order.
        laid: the rows.
    """

    piece: int
    number: int
    laid: Spilled = field(compare=False)


class Read(beam.DoFn):  # type: ignore[misc]
    """Pieces to rows that parse; those that do not go elsewhere."""

    def __init__(self, config: Config, directory: str, threads: Threads) -> None:
        self._reader, self._directory = Reader(config.logs, config.seed, threads), directory

    def process(self, piece: Piece) -> Iterator[Any]:
        letters, number = Collector(self._directory, piece), 0
        for part in self._reader.read(piece):
            if isinstance(part, Refused):
                for laid in letters.take(part):
                    yield beam.pvalue.TaggedOutput(_DEAD, laid)
                progress.add("rows refused", 1, self._directory)
            else:
                for place_of in spill(self._directory, [part]):
                    yield Part(piece.index, number, place_of)
                    number += 1
            progress.add("rows read", 1 if isinstance(part, Refused) else part.num_rows, self._directory)
        for laid in letters.rest():
            yield beam.pvalue.TaggedOutput(_DEAD, laid)
        progress.add(progress.READ, 1, self._directory)


class ExportedModel(ModelHandler[Part, PredictionResult, Any]):  # type: ignore[misc]
    """An exported version, asked by ``serving_default``.

    Args:
        schema: which column each input reads.
        model: directory of the version.
        directory: the job's.
    """

    def __init__(self, schema: Schema, model: str, directory: str) -> None:
        super().__init__(max_batch_size=1)  # each element is many rows already
        self._schema, self._model, self._directory = schema, model, directory

    def load_model(self) -> Any:
        """The model, once a worker."""
        from pipeline.predict import Predictor

        return Predictor(place(self._model))

    def run_inference(
        self, batch: Sequence[Part], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Each part with its rows' scores, laid on disk beside the others."""
        for part in batch:
            table = pa.Table.from_batches([load(part.laid)])
            answers: dict[str, list[Any]] = {name: [] for name in OUTPUTS}
            for at in range(0, table.num_rows, ASKED_ROWS):
                inputs = arrow_inputs(self._schema, table.slice(at, ASKED_ROWS), model.inputs)
                for name, values in model.ask(inputs).items():
                    answers[name].append(values)
            for name, values in answers.items():
                table = table.append_column(name, pa.chunked_array(values, pa.float32()))
            (laid,) = spill(self._directory, table.combine_chunks().to_batches(max_chunksize=table.num_rows))
            progress.add("rows scored", table.num_rows, self._directory)
            Metrics.counter("clsd", "rows_scored").inc(table.num_rows)
            yield PredictionResult(part, Part(part.piece, part.number, laid))


def score(
    config: Config,
    model: Path,
    out: Path,
    *,
    form: str = "parquet",
    overwrite: bool = False,
    beam_options: list[str] | None = None,
) -> dict[str, Any]:
    """Score the config's logs.

    Args:
        config: where the logs are, and what their rows mean to the model.
        model: an exported version.
        out: directory of the parts, of ``dead_letters.jsonl.gz`` where lines did not parse, and of scores.json.
        form: parquet or jsonl.
        overwrite: replace what is there.
        beam_options: passed through to Beam.

    Returns:
        the content of scores.json: rows, parts, and of the scores each the mean.

    Raises:
        UserError: of the logs, the model or the disk.
    """
    config, pieces = _to_be_scored(config)
    with whole_directory(out, marker=SCORES_FILE, overwrite=overwrite, shared=True) as aside:
        make_directory(aside / SPILL)
        job = address(aside)
        with progress.launching(job):
            engine.run(
                lambda pipeline, threads: build(pipeline, config, pieces, address(model), job, form, threads),
                aside,
                beam_options or [],
                pieces=len(pieces),
                threads=config.preprocess.threads,
                stalled_minutes=config.preprocess.stalled_minutes,
            )
        told = read_json(aside / "job.json", "summary of the job", "run it again")
        if not told["rows"]["scored"]:
            raise UserError(", ".join(config.logs.files), "has no row that can be read", "correct logs.format")
        for name in (SPILL, progress.REPORTS):
            remove_tree(aside / name)
        remove_file(aside / "job.json")
        write_json(aside / SCORES_FILE, {"model": str(model), "logs": config.logs.files, **told})
    progress.settle({f"rows {what}": n for what, n in told["rows"].items()})
    return {"model": str(model), "logs": config.logs.files, **told}


def _to_be_scored(config: Config) -> tuple[Config, list[Piece]]:
    """The config for logs that nothing was learnt from: a history is what the log says it is, and the columns that are no inputs
    are carried along where the log has them."""
    features = [
        feature.model_copy(update={"clicks_of": "", "optional": True}) if feature in config.rows.histories else feature
        for feature in config.rows.features
    ]
    roles = [
        config.rows.label,
        config.rows.user,
        config.rows.timestamp,
        config.rows.intensity,
        *config.rows.passthrough,
    ]
    bare = {"features": features, "label": "", "user": "", "timestamp": "", "intensity": ""}
    rows = config.rows.model_copy(update={**bare, "passthrough": []})
    there = [set(piece.unread) for piece in plan(config.logs, rows)]
    carried = [name for name in dict.fromkeys(roles) if name and all(name in unread for unread in there)]
    rows = rows.model_copy(update={"passthrough": carried})
    return config.model_copy(update={"rows": rows}), plan(config.logs, rows)


def build(
    root: Any, config: Config, pieces: list[Piece], model: str, directory: str, form: str, threads: Threads = ONE
) -> None:
    """The job's graph on a Beam pipeline; everything it makes is written under ``directory``."""
    read = (
        root
        | "Pieces" >> beam.Create(pieces)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(config, directory, threads)).with_outputs(_DEAD, main="rows")
    )
    written = (
        read.rows
        | "Even" >> beam.Reshuffle()
        | "Score" >> RunInference(ExportedModel(config.rows, model, directory))
        | "ByPiece" >> beam.Map(lambda result: (result.inference.piece, result.inference))
        | "Gather" >> beam.GroupByKey()
        | "Write" >> beam.Map(partial(_write_part, config.rows, directory, form, len(pieces)))
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


def _write_part(
    schema: Schema, directory: str, form: str, pieces: int, element: tuple[int, Iterable[Part]]
) -> dict[str, Any]:
    number, parts = element
    table = load_together(part.laid for part in sorted(parts))
    # Blocks of text whose faults are looked for take their odd lines out of turn.
    table = table.sort_by(POSITION).drop_columns([KEY, POSITION])
    table = pa.table({name: plain(table[name]) for name in table.column_names})
    name = f"part-{number:05}-of-{pieces:05}.{form}"
    with whole_file(place(directory) / name) as file:
        if form == "parquet":
            pq.write_table(table, file)
        else:
            for batch in table.to_batches(max_chunksize=ASKED_ROWS):
                file.write("".join(json.dumps(row, default=str) + "\n" for row in batch.to_pylist()).encode())
    sums = {name: float(pc.sum(table[name].cast(pa.float64())).as_py()) for name in OUTPUTS}
    return {"file": name, "rows": table.num_rows, "sums": sums}


def _write_summary(directory: str, written: list[dict[str, Any]], dead: list[dict[str, Any]]) -> None:
    rows, refused = sum(part["rows"] for part in written), sum(letters["rows"] for letters in dead)
    means = {name: sum(part["sums"][name] for part in written) / rows for name in OUTPUTS} if rows else {}
    parts = [{name: part[name] for name in ("file", "rows")} for part in sorted(written, key=lambda part: part["file"])]
    summary = {"rows": {"read": rows + refused, "refused": refused, "scored": rows}, "mean": means, "parts": parts}
    write_json(place(directory) / "job.json", summary)
