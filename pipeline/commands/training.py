"""Commands that train and measure."""

from __future__ import annotations

import click

from clsd.features.paths import as_path
from clsd.pipeline.commands.options import (
    config_option,
    dataset_option,
    load,
    overwrite_option,
    results,
    run_option,
    runs_option,
    set_option,
)
from clsd.pipeline.commands.tables import show_metrics
from clsd.pipeline.shared.files import local_path
from clsd.pipeline.shared.progress import console, say


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@click.option("--out", metavar="DIR", help="Directory of the run, instead of the one under --runs.")
@click.option(
    "--base", metavar="RUN", help="A finished run on the data set before, or a model exported from it: begin with that."
)
@overwrite_option
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
    from clsd.pipeline.shared.dataset import Dataset
    from clsd.pipeline.training.train import train as job

    config, paths = load(config_path, overrides, runs)
    target = as_path(out) if out else paths.train
    dataset = Dataset.load(dataset_dir or paths.dataset)
    run = job(config, dataset, target, overwrite=overwrite, base=as_path(base) if base else None)
    say(f"epoch {run['best_epoch']} of {run['epochs']} is kept ({run['stopped']})")
    click.echo(target)


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@run_option
@click.option("--out", metavar="DIR", help="Where metrics.json and report.html go, instead of the place under --runs.")
@overwrite_option
def evaluate(
    config_path: str, overrides: tuple[str, ...], runs: str, dataset_dir: str, run_dir: str, out: str, overwrite: bool
) -> None:
    """Measure the kept model on held-out rows: metrics.json, and report.html to look at."""
    from clsd.pipeline.evaluation.evaluate import evaluate as job

    config, paths, dataset, run = results(config_path, overrides, runs, dataset_dir, run_dir)
    target = as_path(out) if out else paths.evaluation
    metrics = job(dataset, run, target, settings=config.evaluate, overwrite=overwrite)
    show_metrics(metrics)
    click.echo(target / "report.html")


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@click.option("--variants", default="", metavar="A,B,…", help="Variants beside the controls; `configured` if left out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each variant.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at the same time.")
@click.option("--no-controls", is_flag=True, help="Leave the controls out; not for a claim.")
@click.option("--out", metavar="DIR", help="Directory of the comparison, instead of the one under --runs.")
@overwrite_option
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
    from clsd.pipeline.evaluation.compare_report import table
    from clsd.pipeline.evaluation.compare_runs import REPORT_FILE
    from clsd.pipeline.evaluation.compare_runs import compare as job
    from clsd.pipeline.shared.dataset import Dataset

    config, paths = load(config_path, overrides, runs)
    target = local_path(out or paths.compare)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    dataset = job(
        config,
        Dataset.load(dataset_dir or paths.dataset),
        target,
        variants=names,
        seeds=seeds,
        jobs=jobs,
        controls=not no_controls,
        overwrite=overwrite,
    )
    for reference in dataset["differences"]:
        # Where nobody's screen bounds the lines, they are not folded.
        console.print(table(dataset, reference), width=console.width if console.is_terminal else 160, crop=False)
    click.echo(target / REPORT_FILE)
