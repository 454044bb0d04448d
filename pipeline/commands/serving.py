"""Commands about exported models."""

from __future__ import annotations

import json
import sys

import click

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.pipeline.commands.options import (
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


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@run_option
@click.option(
    "--out", metavar="DIR", help="The directory that the model server watches, instead of the one under --runs."
)
@click.option("--version", type=click.IntRange(min=1), help="Number of the version; seconds since 1970 if left out.")
@click.option(
    "--require",
    multiple=True,
    metavar="METRIC>=BOUND",
    help="Publish nothing unless `clsd evaluate` found this, such as auc>=0.7. May be repeated.",
)
@click.option(
    "--against",
    metavar="DIR",
    help="Publish nothing that is worse than this version, or the newest one in this directory.",
)
@click.option(
    "--keep", type=click.IntRange(min=0), help="Newest versions that stay; 0 for all; else as the config says."
)
@click.option("--evaluation", metavar="DIR", help="Where `clsd evaluate` wrote, instead of the place under --runs.")
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
    """The kept model as a SavedModel, after a process without this project has reproduced its scores.

    Exit code 3 if it does not pass --require or --against; nothing is published then.
    """
    from clsd.pipeline.evaluation.evaluate import known_headline
    from clsd.pipeline.serving.export import PublishingRequirements
    from clsd.pipeline.serving.export import export as job

    config, paths, result, run = results(config_path, overrides, runs, dataset_dir, run_dir)
    target = as_path(out) if out else paths.export
    metrics = known_headline(as_path(evaluation) if evaluation else paths.evaluation, run)
    gates = PublishingRequirements(metrics, require, as_path(against) if against else None)
    click.echo(job(result, run, target, version=version, settings=config.export, gates=gates, keep=keep))


@click.command()
@click.argument("models", metavar="DIR")
@click.option("--to", type=click.IntRange(min=1), help="The version to serve; the one before the newest if left out.")
def rollback(models: str, to: int | None) -> None:
    """Serve an earlier version again, by taking the newer ones out of DIR.

    DIR is what the model server watches. Version 7 becomes the folder withdrawn-7, which no server loads; its old name brings
    it back.
    """
    served, gone = withdraw(as_path(models), to)
    for version in gone:
        say(f"withdrawn: {version}")
    click.echo(served)


@click.command()
@click.option(
    "--model", "model_dir", required=True, metavar="DIR", help="An exported version, or the directory of versions."
)
@click.argument("rows", default="-", metavar="FILE")
def predict(model_dir: str, rows: str) -> None:
    """Score raw rows with an exported model.

    FILE holds one JSON object a line, by the names of the features or of the log's columns; - is standard input.
    One JSON object a row comes back:
    score to rank by, ctr to bid with, confidence that a click would have.
    """
    from clsd.pipeline.serving.predict import Predictor, read_rows

    predictor = Predictor(as_path(model_dir))
    where = "standard input" if rows == "-" else rows
    try:
        with click.open_file(rows, encoding="utf-8") as file:
            parsed = read_rows(file, where)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise UserError(where, f"cannot be read ({reason})", "give a file of JSON lines") from None
    for name, hint in predictor.unknown(parsed).items():
        warn(f"the model knows no '{name}', which is left out; {hint}")
    for answer in predictor.predict(parsed, where):
        click.echo(json.dumps(answer))


@click.command()
@click.option(
    "--model", "model_dir", required=True, metavar="DIR", help="An exported version, or the directory of versions."
)
@click.option(
    "--logs",
    multiple=True,
    metavar="FILE",
    help="A log or a pattern; those of the config if left out. May be repeated.",
)
@click.option(
    "--config", "config_path", metavar="FILE", help="How the logs are written; as the model's own were if left out."
)
@set_option
@click.option("--out", required=True, metavar="DIR", help="Where the scored rows and scores.json go.")
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
    """Score logs of any size with an exported model, by Apache Beam.

    A log is read as `clsd preprocess` reads it, but for its label, which it need not have, and for histories, which it must
    bring; lines that do not parse go to dead_letters.jsonl.gz. Its rows come out in parts, in its order where these are sorted by
    name: the columns that the config names (rows.passthrough carries others along) with score, ctr and confidence, as a model
    server would have answered. What stands after -- goes to Beam.
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
    help="Requests and their answers; JSON lines, or TF Serving's PredictionLog.",
)
@click.option(
    "--dataset", "dataset_dir", required=True, metavar="DIR", help="The data set that the model was trained on."
)
@click.option("--run", "run_dir", metavar="DIR", help="The training run; train beside the data set if left out.")
@click.option(
    "--model",
    "model_dir",
    metavar="DIR",
    help="The exported version in service, where it was exported with other settings.",
)
@click.option("--ignore", multiple=True, metavar="FEATURE", help="A feature that may move. May be repeated.")
@click.option("--max-difference", default=1e-4, show_default=True, help="Largest difference of a score that is none.")
@click.option("--max-psi", default=0.25, show_default=True, help="Largest stability index that a feature may have.")
def skew(
    served: str,
    dataset_dir: str,
    run_dir: str,
    model_dir: str,
    ignore: tuple[str, ...],
    max_difference: float,
    max_psi: float,
) -> None:
    """Whether a model in service scores as training would have, and is asked what it was trained on.

    \b
    LOG holds, a line each, the inputs by the names of the features or of the log's columns, and the answer's score, ctr,
    confidence, those that are known. Or it is a file of TFRecords of PredictionLog, which TF Serving writes itself.
    Compared are:
      scores     logged, and what the training run's model makes of the logged inputs by the path that training took
      features   the logged inputs, and the training split of the data set: the population stability index, values that are
                 missing, values that training did not know
    Exit code 3 if a score differs by more than --max-difference, or a feature moved by more than --max-psi beyond what chance
    makes of so few rows; standard output has the same as JSON.
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
