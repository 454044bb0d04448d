"""All stages in one call: fetch, preprocess, train, evaluate, export, predict. Finished results are reused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clsd.features.errors import UserError
from clsd.pipeline.shared.checksums import require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import as_user_error
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import local_path
from clsd.pipeline.shared.json_files import read_json
from clsd.pipeline.shared.progress import add, say, say_there_already, styled, warn, watching


@dataclass(frozen=True)
class Paths:
    """The directories of a run's results: one per stage, under ``runs/<name>``.

    Args:
        root: ``runs/<name>``.
    """

    root: Path

    @property
    def dataset(self) -> Path:
        """TFRecords and dataset.json."""
        return self.root / "dataset"

    @property
    def train(self) -> Path:
        """Checkpoints, config, history, TensorBoard events."""
        return self.root / "train"

    @property
    def evaluation(self) -> Path:
        """metrics.json and report.html."""
        return self.root / "evaluation"

    @property
    def compare(self) -> Path:
        """Runs of a comparison, compare.json and report.html."""
        return self.root / "compare"

    @property
    def export(self) -> Path:
        """SavedModel versions."""
        return self.root / "export"


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Args:
        paths: directories of the results.
        metrics: content of metrics.json.
        model: directory of the exported version.
        row, prediction: the golden row with the highest CTR, and the exported model's prediction for it.
    """

    paths: Paths
    metrics: dict[str, Any]
    model: Path
    row: dict[str, Any]
    prediction: dict[str, float]


def fetch_logs(config: Config, *, overwrite: bool = False) -> None:
    """Write the public data set of the config (``logs.dataset``) to the file that the config reads.

    Raises:
        UserError: ``logs.files`` is not a single file, or the data set cannot be fetched.
    """
    from clsd.pipeline.public_data import SyntheticSettings, write_dataset

    if not config.logs.dataset:
        return
    if len(config.logs.files) != 1:
        raise UserError(
            "logs.files", "must be one file where logs.dataset is set", "write files: [data/NAME/log.jsonl]"
        )
    target = local_path(config.logs.files[0])
    stem, _, ending = target.name.partition(".")
    if stem != "log":
        raise UserError(
            "logs.files", f"'{target.name}' is not what `clsd dataset` writes", "name it log.jsonl, log.csv, …"
        )
    synthetic = None
    if config.logs.dataset == "synthetic":
        try:
            synthetic = SyntheticSettings(**config.logs.dataset_options)
        except ValidationError as error:
            raise as_user_error(error, "logs.dataset_options", SyntheticSettings) from None
    with watching(f"dataset {config.logs.dataset}"):
        write_dataset(
            config.logs.dataset,
            target.parent,
            format=ending,
            synthetic=synthetic,
            overwrite=overwrite,
            on_rows=lambda n: add("rows written", n),
        )


def run(config: Config, paths: Paths, *, overwrite: bool = False, beam_options: list[str] | None = None) -> Outcome:
    """Run all stages. A stage is skipped if its result is there, with the same settings and data.

    Args:
        config: the whole run's settings.
        paths: where results go.
        overwrite: replace results of other settings instead of refusing.
        beam_options: options of Beam for the preprocessing job.
    """
    from clsd.pipeline.preprocess.job import preprocess

    _say(1, "click logs", ", ".join(config.logs.files))
    fetch_logs(config, overwrite=overwrite)

    _say(2, "preprocess", str(paths.dataset))
    dataset = _made_dataset(config, paths.dataset, overwrite)
    if dataset is not None:
        say_there_already()
    else:
        with watching("preprocess"):
            dataset = preprocess(config, paths.dataset, overwrite=overwrite, beam_options=beam_options)

    from clsd.pipeline.training.checkpoints import RUN_FILE
    from clsd.pipeline.training.train import run_fingerprint, train

    _say(3, "train", str(paths.train))
    fingerprint = run_fingerprint(config, dataset)
    finished = paths.train / RUN_FILE
    same = finished.exists() and _is_same_run(paths.train, fingerprint, overwrite)
    train(config, dataset, paths.train, overwrite=overwrite and not same)

    from clsd.pipeline.evaluation.evaluate import evaluate
    from clsd.pipeline.shared.headline_metrics import headline

    _say(4, "evaluate", str(paths.evaluation))
    # Evaluation is fast, so an older report may be replaced.
    metrics = evaluate(dataset, paths.train, paths.evaluation, settings=config.evaluate, overwrite=True)

    from clsd.pipeline.serving.export import PublishingRequirements, export, was_exported_from, withdrawn
    from clsd.pipeline.serving.predict import Predictor
    from clsd.pipeline.shared.model_versions import GOLDEN_FILE, versions_in

    _say(5, "export", str(paths.export))
    result = [
        version for version in versions_in(paths.export) if was_exported_from(version, fingerprint, config.export)
    ]
    gone = None if result else withdrawn(paths.export, fingerprint, config.export)
    if gone is not None:
        warn(f"{gone} is a withdrawn version of this run: not exported again")
        result = versions_in(paths.export)[-1:]
    if result:
        model = result[-1]
        if not gone:
            say_there_already()
    else:
        model = export(
            dataset,
            paths.train,
            paths.export,
            settings=config.export,
            requirements=PublishingRequirements(headline(metrics)),
        )

    _say(6, "predict", str(model))
    golden = read_json(model / GOLDEN_FILE, "model that clsd exported", "export it again")
    best = max(range(len(golden["expected"]["ctr"])), key=lambda at: golden["expected"]["ctr"][at])
    row = {name: values[best] for name, values in sorted(golden["inputs"].items())}
    return Outcome(paths, metrics, model, row, Predictor(model).predict([row])[0])


def _made_dataset(config: Config, directory: Path, overwrite: bool) -> Dataset | None:
    """The data set of this config, if it is there; None for a damaged one that may be replaced."""
    from clsd.pipeline.preprocess.input_splits import plan
    from clsd.pipeline.preprocess.job import is_made
    from clsd.pipeline.shared.dataset import Dataset

    input_splits = plan(config.logs, config.row_schema)
    try:
        if not is_made(config, input_splits, directory):
            return None
        dataset = Dataset.load(directory)
        dataset.require_small_files()
    except UserError:
        if not overwrite:
            raise
        return None
    return dataset


def _is_same_run(directory: Path, fingerprint: str, overwrite: bool) -> bool:
    """Whether a finished run is this one; a damaged one that may be replaced is not."""
    from clsd.pipeline.training.checkpoints import read_run

    try:
        run = read_run(directory, "pass --overwrite to start anew")
        require_unchanged(directory, run["files"], "restore it, or pass --overwrite to start anew")
    except UserError:
        if not overwrite:
            raise
        return False
    return bool(run["fingerprint"] == fingerprint)


def _say(number: int, stage: str, where: str) -> None:
    say(styled((f"{number}/6 {stage}", "bold cyan"), f"  {where}"))
