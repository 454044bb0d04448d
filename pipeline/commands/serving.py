"""Commands for exported models."""

from __future__ import annotations

import json
import sys
from itertools import islice

import click

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.pipeline.commands.options import (
    Bound,
    beam_argument,
    config_option,
    dataset_option,
    overwrite_option,
    results,
    run_option,
    runs_option,
    set_option,
)
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.model_versions import newest_version, withdraw
from clsd.pipeline.shared.progress import say, warn

#: Rows that `clsd predict` reads before it answers them.
_ROWS_AT_ONCE = 8192


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@run_option
@click.option("--out", metavar="DIR", help="Directory that the model server watches; by default the one under --runs.")
@click.option("--version", type=click.IntRange(min=1), help="Number of the version; by default seconds since 1970.")
@click.option(
    "--require",
    multiple=True,
    metavar="METRIC>=BOUND",
    help="Publish nothing unless `clsd evaluate` measured this, such as auc>=0.7. Repeatable.",
)
@click.option(
    "--against",
    metavar="DIR",
    help="Publish nothing that is worse than this version, or than the newest in this directory.",
)
@click.option(
    "--keep", type=click.IntRange(min=0), help="Number of newest versions to keep, 0 for all; by default export.keep."
)
@click.option(
    "--evaluation", metavar="DIR", help="Directory that `clsd evaluate` wrote; by default the one under --runs."
)
def export(
    config_path: str,
    overrides: tuple[str, ...],
    runs: str,
    dataset_dir: str,
    run_dir: str,
    out: str,
    version: int | None,
    require: tuple[str, ...],
    against: str,
    keep: int | None,
    evaluation: str,
) -> None:
    """Export the best model of a run as a SavedModel.

    A process without clsd must reproduce its scores before the version appears. Exit code 3, and nothing is published, if the
    model misses --require or --against.
    """
    from clsd.pipeline.evaluation.evaluate import known_headline
    from clsd.pipeline.serving.export import PublishingRequirements
    from clsd.pipeline.serving.export import export as job

    config, paths, result, run = results(config_path, overrides, runs, dataset_dir, run_dir)
    target = as_path(out) if out else paths.export
    metrics = known_headline(as_path(evaluation) if evaluation else paths.evaluation, run)
    requirements = PublishingRequirements(metrics, require, as_path(against) if against else None)
    click.echo(job(result, run, target, version=version, settings=config.export, requirements=requirements, keep=keep))


@click.command()
@click.argument("models", metavar="DIR")
@click.option("--to", type=click.IntRange(min=1), help="Version to serve; by default the one before the newest.")
def rollback(models: str, to: int | None) -> None:
    """Serve an earlier version again by withdrawing the newer ones.

    DIR is what the model server watches. Version 7 is renamed to withdrawn-7, which no server loads. Its old name brings it back.
    """
    served, gone = withdraw(as_path(models), to)
    for version in gone:
        say(f"withdrawn: {version}")
    click.echo(served)


@click.command()
@click.option("--model", "model_dir", required=True, metavar="DIR", help="Exported version, or directory of versions.")
@click.argument("rows", default="-", metavar="FILE")
def predict(model_dir: str, rows: str) -> None:
    """Score raw rows with an exported model.

    FILE has one JSON object per line, by the names of features or of the log's columns; - is standard input. The output has
    one JSON object per row: score for ranking, ctr for bidding, and the confidence that a click would have. Rows are read and
    answered some thousands at a time; rows before a faulty one are answered.
    """
    from clsd.pipeline.serving.predict import Predictor, read_rows

    predictor = Predictor(as_path(model_dir))
    where = "standard input" if rows == "-" else rows
    first, warned = 1, set[str]()
    try:
        with click.open_file(rows, encoding="utf-8-sig") as file:
            if file is None:
                raise UserError(where, "is closed", "give a file of JSON lines")
            parsed = read_rows(file, where)
            while some := list(islice(parsed, _ROWS_AT_ONCE)):
                for name, hint in predictor.unknown(some).items():
                    if name not in warned:
                        warn(f"the model does not know '{name}'; it is ignored; {hint}")
                        warned.add(name)
                click.echo("\n".join(json.dumps(answer) for answer in predictor.predict(some, where, first)))
                first += len(some)
    except (FileNotFoundError, PermissionError, IsADirectoryError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(where, f"cannot be read ({reason})", "give a file of JSON lines") from None


@click.command()
@click.option("--model", "model_dir", required=True, metavar="DIR", help="Exported version, or directory of versions.")
@click.option(
    "--logs",
    multiple=True,
    metavar="FILE",
    help="Log or glob pattern; by default those of the config. Repeatable.",
)
@click.option(
    "--config", "config_path", metavar="FILE", help="Config that describes the logs; by default the model's own."
)
@set_option
@click.option("--out", required=True, metavar="DIR", help="Directory of the scored rows and scores.json.")
@click.option("--format", type=click.Choice(["parquet", "jsonl"]), default="parquet", show_default=True)
@overwrite_option
@beam_argument
def score(
    model_dir: str,
    logs: tuple[str, ...],
    config_path: str,
    overrides: tuple[str, ...],
    out: str,
    format: str,
    overwrite: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Score logs of any size with an exported model, with Apache Beam.

    Logs are read as `clsd preprocess` reads them. They need no label, but must have the histories. Lines that do not parse go to
    dead_letters.jsonl.gz. The output is in parts; sorted by name they are in the log's order. Each row has the columns that the
    config names (rows.passthrough adds others) and the score, ctr and confidence that a model server would give. Options after
    -- go to Beam.
    """
    from clsd.pipeline.serving.score import SCORING
    from clsd.pipeline.serving.score import score as job
    from clsd.pipeline.shared import progress
    from clsd.pipeline.shared.model_versions import exported_config

    model = newest_version(as_path(model_dir))
    config = load_config(config_path, list(overrides)) if config_path else exported_config(model, list(overrides))
    if logs:
        config = config.model_copy(update={"logs": config.logs.model_copy(update={"files": list(logs), "dataset": ""})})
    with progress.watching("score", stages=SCORING):
        result = job(config, model, as_path(out), format=format, overwrite=overwrite, beam_options=list(beam_options))
    means = ", ".join(f"{name} {value:.4g}" for name, value in result["mean"].items())
    say(f"{result['rows']['scored']:,} rows scored, mean {means}")
    click.echo(as_path(out))


@click.command()
@click.option(
    "--served",
    required=True,
    metavar="LOG",
    help="Served requests with their answers: JSON lines, or TF Serving's PredictionLog.",
)
@click.option("--dataset", "dataset_dir", required=True, metavar="DIR", help="Data set that the model was trained on.")
@click.option(
    "--run", "run_dir", metavar="DIR", help="Training run; by default the directory train beside the data set."
)
@click.option(
    "--model",
    "model_dir",
    metavar="DIR",
    help="Exported version in service, if it was exported with other settings than the run's.",
)
@click.option("--ignore", multiple=True, metavar="FEATURE", help="Feature that may drift. Repeatable.")
@click.option(
    "--max-difference",
    type=Bound(),
    default=1e-4,
    show_default=True,
    help="Largest difference of a score that is accepted.",
)
@click.option(
    "--max-psi", type=Bound(), default=0.25, show_default=True, help="Largest stability index that a feature may have."
)
def skew(
    served: str,
    dataset_dir: str,
    run_dir: str,
    model_dir: str,
    ignore: tuple[str, ...],
    max_difference: float,
    max_psi: float,
) -> None:
    """Compare served requests with training: their scores, and their features.

    \b
    LOG is JSON lines with the inputs, by the names of features or of the log's columns, and the known ones of score, ctr and
    confidence. Or it is a TFRecord file of PredictionLog, which TF Serving writes.
      scores     logged scores against those of the training run's model, computed the way training does
      features   logged inputs against the training split: population stability index, missing values, unknown values
    Exit code 3 if a score differs by more than --max-difference, or a feature drifted by more than --max-psi beyond what chance
    makes of so few rows. Standard output has the same as JSON.
    """
    from clsd.pipeline.commands.tables import show_skew
    from clsd.pipeline.serving.skew import skew as job
    from clsd.pipeline.shared.dataset import Dataset

    dataset = Dataset.load(dataset_dir)
    run = as_path(run_dir) if run_dir else dataset.directory.parent / "train"
    model = newest_version(as_path(model_dir)) if model_dir else None
    result = job(
        as_path(served), dataset, run, max_difference=max_difference, max_psi=max_psi, model=model, ignore=ignore
    )
    show_skew(result)
    click.echo(json.dumps(result))
    if result["differ"] or result["moved"]:
        parts = [f"{what} {', '.join(result[what])}" for what in ("differ", "moved") if result[what]]
        say(f"out of bounds: {'; '.join(parts)}")
        sys.exit(3)
