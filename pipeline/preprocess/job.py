"""Preprocessing: plans the job, runs it, and publishes the data set.

The launching process writes ``dataset.json`` last, after the result has passed the checks of ``manifest.refuse_if_bad``.
"""

from __future__ import annotations

from pathlib import Path

from clsd.features.paths import address, as_path
from clsd.pipeline.preprocess.columns import SPLITS
from clsd.pipeline.preprocess.graph import build
from clsd.pipeline.preprocess.input_splits import InputSplit, plan
from clsd.pipeline.preprocess.manifest import (
    dead_letters_beside,
    fingerprint,
    manifest,
    modified,
    refuse_if_bad,
    warn_of_narrow_numbers,
)
from clsd.pipeline.preprocess.spill import SPILL
from clsd.pipeline.shared import engine, progress
from clsd.pipeline.shared.artefacts import DatasetManifest
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import atomic_directory, files_in, make_directory, remove_file, remove_tree
from clsd.pipeline.shared.json_files import read_json, write_json


def preprocess(
    config: Config,
    out: str | Path,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    beam_options: list[str] | None = None,
) -> Dataset:
    """Run the job and publish the data set by one rename. A data set of the same settings and logs is reused.

    Args:
        config: the config.
        out: the data set's directory.
        base: an earlier data set with the same schema; its ids and scales are kept, and new values get ids after them.
        overwrite: make the data set anew, and replace the one in ``out``.
        beam_options: options for Beam, such as ``["--runner=FlinkRunner"]``.

    Raises:
        UserError: wrong logs or settings, a full disk, or a failed engine.
    """
    out, base = as_path(out), as_path(base) if base else None
    earlier = Dataset.load(base) if base else None
    if earlier:
        earlier.require(config.row_schema)
    input_splits = plan(config.logs, config.row_schema)
    if not overwrite and is_made(config, input_splits, out, earlier):
        made = Dataset.load(out)
        made.require_small_files()
        progress.say_there_already()
        return made
    with atomic_directory(out, marker="dataset.json", overwrite=overwrite, shared=True, sole=True) as temporary:
        # Created here and not by the workers: a worker that outlives its job must not create them again.
        for name in (SPILL, "vocabularies", *SPLITS):
            make_directory(temporary / name)
        with progress.launching(address(temporary)):
            directory, base_directory = address(temporary), address(base) if base else ""
            engine.run(
                lambda pipeline, threads: build(pipeline, config, input_splits, directory, base_directory, threads),
                temporary,
                beam_options or [],
                input_splits=len(input_splits),
                threads=config.preprocess.threads,
                stalled_minutes=config.preprocess.stalled_minutes,
            )
        summary = read_json(temporary / "job.json", "summary of the job", "run it again")
        progress.settle(
            {
                **{f"rows {what}": summary["rows"][what] for what in ("read", "kept", "refused")},
                "rows written": sum(shard["rows"] for shard in summary["shards"]),
            }
        )
        refuse_if_bad(config, summary, temporary, out)
        warn_of_narrow_numbers(summary)
        remove_file(temporary / "job.json")
        for name in (SPILL, progress.REPORTS):
            remove_tree(temporary / name)
        for split in {*SPLITS} - {shard["split"] for shard in summary["shards"]}:
            remove_tree(temporary / split)
        for name in files_in(temporary):
            if name.endswith(".partial"):  # left by a bundle that the engine retried
                remove_file(temporary / name)
        write_json(temporary / "dataset.json", manifest(config, input_splits, summary, temporary, earlier))
    remove_file(dead_letters_beside(out))  # left by an earlier attempt that failed
    return Dataset.load(out)


def is_made(config: Config, input_splits: list[InputSplit], out: Path, base: Dataset | None = None) -> bool:
    """Whether ``out`` holds a data set of the same settings and logs, and no log was written since."""
    file = out / "dataset.json"
    if not file.exists():
        return False
    made = read_json(file, "data set", "pass --overwrite to make it again", DatasetManifest)
    same: bool = made["fingerprint"] == fingerprint(config, input_splits, base)
    return same and bool(made["sources_modified"] == modified(input_splits))
