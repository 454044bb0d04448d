"""The commands of evaluation: evaluate, compare, validate."""

from __future__ import annotations

import json
import sys

import click

from clsd.features.paths import as_path
from clsd.pipeline.commands.options import (
    Bound,
    config_option,
    dataset_option,
    load,
    overwrite_option,
    results,
    run_option,
    runs_option,
    set_option,
)
from clsd.pipeline.commands.tables import show_drift, show_metrics
from clsd.pipeline.shared.files import local_path
from clsd.pipeline.shared.progress import console, say


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@run_option
@click.option(
    "--out", metavar="DIR", help="Directory of metrics.json and report.html; by default the one under --runs."
)
@overwrite_option
def evaluate(
    config_path: str, overrides: tuple[str, ...], runs: str, dataset_dir: str, run_dir: str, out: str, overwrite: bool
) -> None:
    """Evaluate the best model of a run on held-out rows: metrics.json and report.html."""
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
@click.option("--variants", default="", metavar="A,B,…", help="Variants besides the controls; by default `configured`.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Trainings per variant.")
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Trainings at the same time.")
@click.option("--no-controls", is_flag=True, help="Omit the controls; no basis for a claim.")
@click.option("--out", metavar="DIR", help="Directory of the comparison; by default the one under --runs.")
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
    """Measure what the method gains on your data, against controls, over seeds.

    \b
    All variants of a seed start from one warm-up. Controls, always included if the log allows:
      plain, constant, permuted, permuted-raw, popularity, rce, tce, oracle
    Variants for --variants:
      configured (the config's own), stable, paper, two-level, two-level-permuted, item, soft, odds, no-gate,
      gate-calibration, no-blend, gradient-mass, ema, previous, self, self-no-blend, and those of
      compare.variants in the config

    An interrupted comparison continues where it stopped. compare.json and report.html are written last. * marks a
    difference beyond chance after correction for the number of variants.
    """
    from clsd.pipeline.evaluation.compare_report import table
    from clsd.pipeline.evaluation.compare_runs import REPORT_FILE
    from clsd.pipeline.evaluation.compare_runs import compare as job
    from clsd.pipeline.shared.dataset import Dataset

    config, paths = load(config_path, overrides, runs)
    target = local_path(out or paths.compare)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    comparison = job(
        config,
        Dataset.load(dataset_dir or paths.dataset),
        target,
        variants=names,
        seeds=seeds,
        jobs=jobs,
        controls=not no_controls,
        overwrite=overwrite,
    )
    for reference in comparison["differences"]:
        # Without a terminal, lines are not wrapped.
        console.print(table(comparison, reference), width=console.width if console.is_terminal else 160, crop=False)
    click.echo(target / REPORT_FILE)


@click.command()
@click.argument("directory")
@click.option("--against", required=True, metavar="DATASET", help="The older data set.")
@click.option(
    "--max-psi", type=Bound(), default=0.25, show_default=True, help="Largest population stability index of a feature."
)
def validate(directory: str, against: str, max_psi: float) -> None:
    """Show which features of a data set drifted since an older one.

    Compares the training splits: the population stability index (PSI) of each feature, the share of missing values, and the
    CTR. A PSI below 0.1 is usually called stable, above 0.25 a shift. Exit code 3 if a feature exceeds --max-psi. Standard
    output has the same as JSON.
    """
    from clsd.pipeline.evaluation.drift import drift
    from clsd.pipeline.shared.dataset import Dataset

    old, new = Dataset.load(against), Dataset.load(directory)
    result = drift(old, new)
    show_drift(old, new, result, max_psi)
    far_moved = [feature.feature for feature in result if feature.psi is not None and feature.psi > max_psi]
    ctr = [data.log_ctr for data in (old, new)]
    click.echo(json.dumps({"ctr": ctr, "features": [feature._asdict() for feature in result], "moved": far_moved}))
    if far_moved:
        say(f"drifted by more than {max_psi:g}: {', '.join(far_moved)}")
        sys.exit(3)
