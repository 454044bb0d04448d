"""The command of training."""

from __future__ import annotations

import click

from clsd.features.paths import as_path
from clsd.pipeline.commands.options import (
    config_option,
    dataset_option,
    load,
    overwrite_option,
    runs_option,
    set_option,
)
from clsd.pipeline.shared.progress import say


@click.command()
@config_option
@set_option
@runs_option
@dataset_option
@click.option("--out", metavar="DIR", help="Directory of the run; by default the one under --runs.")
@click.option(
    "--base",
    metavar="RUN",
    help="Start from this finished run or exported model; it must be trained on the data set that this one is based on.",
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
    """Train a model on a data set. An interrupted run continues after its newest checkpoint."""
    from clsd.pipeline.shared.dataset import Dataset
    from clsd.pipeline.training.train import train as job

    config, paths = load(config_path, overrides, runs)
    target = as_path(out) if out else paths.train
    dataset = Dataset.load(dataset_dir or paths.dataset)
    run = job(config, dataset, target, overwrite=overwrite, base=as_path(base) if base else None)
    say(f"best epoch: {run['best_epoch']} of {run['epochs']} ({run['stopped']})")
    click.echo(target)
