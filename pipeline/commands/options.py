"""Options that several commands share, and what they resolve to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from clsd.features.paths import as_path
from clsd.pipeline.run import Paths
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config

config_option = click.option(
    "--config", "config_path", required=True, metavar="FILE", help="Config of the run, a YAML file; see configs/."
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as train.epochs=3. Repeatable.",
)
runs_option = click.option(
    "--runs", default="runs", show_default=True, metavar="DIR", help="Results go to DIR/<name of the config>."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace a result of other settings.")


class Bound(click.ParamType):  # type: ignore[type-arg]
    """A number from 0 on that is finite: every comparison with NaN is false, so it would bound nothing."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Part of click."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            self.fail(f"{value} is not a finite number from 0 on", param, ctx)
        return number


dataset_option = click.option(
    "--dataset", "dataset_dir", metavar="DIR", help="Data set; by default the one under --runs."
)
beam_argument = click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
run_option = click.option("--run", "run_dir", metavar="DIR", help="Training run; by default the one under --runs.")


def load(config_path: str, overrides: tuple[str, ...], runs: str) -> tuple[Config, Paths]:
    """The config with its overrides, and the paths of its results."""
    config = load_config(config_path, list(overrides))
    return config, Paths(as_path(runs) / config.name)


def results(
    config_path: str, overrides: tuple[str, ...], runs: str, dataset_dir: str, run_dir: str
) -> tuple[Config, Paths, Any, Path]:
    """The config, the paths of its results, the data set, and the training run."""
    from clsd.pipeline.shared.dataset import Dataset

    config, paths = load(config_path, overrides, runs)
    return config, paths, Dataset.load(dataset_dir or paths.dataset), as_path(run_dir) if run_dir else paths.train
