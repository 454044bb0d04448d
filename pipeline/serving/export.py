"""Export a trained model as a versioned SavedModel for a model server (`clsd export`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clsd.features.encode import encode
from clsd.features.errors import UserError
from clsd.features.paths import address, as_path
from clsd.features.records import write_records
from clsd.features.serving_transform import ServingTransform
from clsd.features.tf_runtime import tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.input_spec import InputSpec
from clsd.models.model_inputs import ModelInputs
from clsd.pipeline.preprocess.columns import KEY
from clsd.pipeline.serving.publishing import enforce, enforce_against, parse_requirement
from clsd.pipeline.serving.serving_inputs import OUTPUTS, serving_inputs
from clsd.pipeline.serving.signatures import Score, ServingModel
from clsd.pipeline.serving.verify import run_canary
from clsd.pipeline.serving.warmup_requests import warmup_requests
from clsd.pipeline.shared.checksums import describe_file
from clsd.pipeline.shared.config import Config, ExportSettings, unknown_candidate
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import atomic_directory, directory_lock, files_in
from clsd.pipeline.shared.headline_metrics import HEADLINE_METRICS
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.model_versions import (
    DONE_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    WARMUP_REQUESTS_FILE,
    WITHDRAWN,
    keep_newest,
    newest_version,
    read_metadata,
    remove_unpublished,
    verified_metadata,
    versions_in,
)
from clsd.pipeline.shared.package_versions import versions
from clsd.pipeline.shared.progress import say, warn
from clsd.pipeline.training.checkpoints import read_run
from clsd.pipeline.training.scoring import cheap_calibrator
from clsd.pipeline.training.trained_model import load_trained

#: Number of candidates per ``rank`` request, and number of such requests, among the golden rows.
_CANDIDATES_PER_REQUEST, _RANK_REQUESTS = 16, 2


@dataclass(frozen=True)
class PublishingRequirements:
    """The requirements that a model must meet before it is published.

    Args:
        metrics: the model's metrics, by the names of :data:`HEADLINE_METRICS`; None if it was not evaluated.
        require: bounds, such as ``auc>=0.7``.
        against: a version, or a directory of versions of which the newest is served. The model must not be worse than
            that version by more than ``export.margins``.
    """

    metrics: dict[str, float] | None = None
    require: Sequence[str] = ()
    against: Path | None = None


def export(
    dataset: Dataset,
    run: str | Path,
    out: str | Path,
    *,
    version: int | None = None,
    settings: ExportSettings | None = None,
    requirements: PublishingRequirements | None = None,
    keep: int | None = None,
) -> Path:
    """Publish the best model of a run as ``out/<version>``.

    The SavedModel is written to a hidden directory. A process that cannot import clsd loads it, calls each signature with golden
    rows, and compares the results with the trainer's. Then one rename makes the version visible. In an object store, the files
    are copied with ``saved_model.pb`` last, followed by an empty file that marks the end.

    Args:
        dataset: the run's data set.
        run: the training run's directory.
        out: the directory that a model server watches.
        version: number of the version; None for seconds since 1970.
        settings: how to export; None for the settings of the run's config.
        requirements: what the model must meet.
        keep: number of newest versions to keep, 0 for all; None for ``settings.keep``.

    Raises:
        UserError: there is no such run, the version exists, the disk is full, or the canary found a difference.
        OutOfBoundsError: the model does not meet the requirements.
    """
    run = as_path(run)
    out = as_path(out)
    config, model = load_trained(run, dataset)
    if settings is not None:
        config = config.model_copy(update={"export": settings})
    if unknown := unknown_candidate(dataset.schema, config.export.candidates):
        raise UserError("export.candidates", unknown, "correct the setting")
    number = int(time.time()) if version is None else version
    target = out / str(number)
    with directory_lock(out):  # two exports must not take the same number
        remove_unpublished(out)
        if target.exists():
            raise UserError(str(target), "exists already", "choose another --version; a version is never replaced")
        newest = [version.name for version in versions_in(out)[-1:]]
        if newest and number < int(newest[0]):
            what = f"is lower than version {newest[0]}, so no server would load it"
            raise UserError(str(target), what, "choose a larger --version")
        fingerprint = read_run(run, "train again")["fingerprint"]
        if gone := withdrawn(out, fingerprint, config.export):
            what = "is a withdrawn version of this run"
            raise UserError(str(gone), what, "rename it to its number to serve it again, or remove it")
        requirements = requirements or PublishingRequirements()
        _check_requirements(config, requirements, out)
        _publish(config, dataset, model, fingerprint, target, requirements)
        if num_versions := config.export.keep if keep is None else keep:
            for old in keep_newest(out, num_versions):
                say(f"removed version {old.name}")
    return target


def _publish(
    config: Config,
    dataset: Dataset,
    model: ClsdModel,
    fingerprint: str,
    target: Path,
    requirements: PublishingRequirements,
) -> None:
    with (
        atomic_directory(target, marker=MODEL_FILE, done=DONE_FILE) as temporary,
        tempfile.TemporaryDirectory(prefix="clsd-assets-") as assets,
    ):
        score = scoring_function(config, dataset, model)
        serving = ServingModel(
            ServingTransform(dataset.transform, Path(assets)), model.spec, score, config.export.candidates
        )
        serving.save(temporary)
        (temporary / GOLDEN_FILE).parent.mkdir()
        golden = golden_rows(dataset, score, serving)
        write_json(temporary / GOLDEN_FILE, golden)
        with (temporary / WARMUP_REQUESTS_FILE).open("wb") as file:
            write_records(file, warmup_requests(serving.inputs, golden))
        metadata = {
            "name": config.name,
            "version": int(target.name),
            "fingerprint": fingerprint,
            "dataset_fingerprint": dataset.manifest["fingerprint"],
            "columns": {feature.name: feature.source for feature in config.row_schema.features},
            "config": dump_config(config),
            "export": config.export.model_dump(mode="json"),
            "metrics": requirements.metrics,
            "variables": serving.names(model),
            "versions": versions(),
            "files": [describe_file(temporary, name) for name in files_in(temporary)],
        }
        write_json(temporary / PROVENANCE_FILE, metadata)
        run_canary(
            temporary, config.export.canary_tolerance, "nothing was published; please report this with the config"
        )
        (temporary / DONE_FILE).touch()


def was_exported_from(version: Path, fingerprint: str, settings: ExportSettings) -> bool:
    """Whether a version was exported from the run with this fingerprint, with these settings.

    Settings that do not change the model are ignored: margins of requirements, and the number of versions to keep.
    """
    if not (version / PROVENANCE_FILE).exists():
        return False
    try:
        metadata = read_metadata(version, "remove it")
    except UserError as error:  # an earlier version of clsd wrote it, perhaps: another export does not need it
        warn(f"{error.where} {error.what}: not reused")
        return False
    wanted, exported = settings.model_dump(mode="json", exclude={"keep", "margins"}), metadata.get("export", {})
    return bool(metadata["fingerprint"] == fingerprint and {name: exported.get(name) for name in wanted} == wanted)


def withdrawn(out: Path, fingerprint: str, settings: ExportSettings) -> Path | None:
    """The version of this run and these settings that ``clsd rollback`` withdrew, if there is one."""
    entries = out.iterdir() if out.is_dir() else iter(())
    return next(
        (v for v in entries if v.name.startswith(WITHDRAWN) and was_exported_from(v, fingerprint, settings)), None
    )


def _check_requirements(config: Config, requirements: PublishingRequirements, out: Path) -> None:
    bounds = [parse_requirement(text, HEADLINE_METRICS) for text in requirements.require]
    if (bounds or requirements.against) and requirements.metrics is None:
        raise UserError(
            "--require" if bounds else "--against", "needs metrics of the model", "run `clsd evaluate` first"
        )
    metrics = requirements.metrics or {}
    enforce(metrics, bounds)
    # If the first version is compared with its own directory, there is no version to compare with yet.
    if requirements.against is not None and (address(requirements.against) != address(out) or versions_in(out)):
        served = newest_version(requirements.against)
        known = verified_metadata(served, "restore it, or leave out --against")["metrics"]
        if known is None:
            raise UserError(str(served), "has no metrics", "evaluate and export it again, or leave out --against")
        enforce_against(metrics, known, config.export.margins, str(served))


def scoring_function(config: Config, dataset: Dataset, model: ClsdModel) -> Score:
    """The scoring function of the exported model: exact, or without a second forward pass, by ``export.calibration``.

    Raises:
        UserError: the model is a control, or the cheap calibration has no validation split.
    """
    settings = config.confidence
    if settings.weighted and (settings.control != "none" or settings.source in ("popularity", "intensity")):
        named = f"control: {settings.control}" if settings.control != "none" else f"source: {settings.source}"
        raise UserError(f"confidence.{named}", "is a control of a comparison", "export a model of the method instead")
    if config.export.calibration == "exact" or not model.scoring_needs_teacher:
        return model.score_inputs
    calibrator = cheap_calibrator(model, dataset)
    if calibrator is None:
        what = "has no validation split to fit the cheap calibration on"
        raise UserError(str(dataset.directory), what, "set export.calibration: exact")
    return lambda rows: model.score_cheaply(rows, calibrator)


def golden_rows(dataset: Dataset, score: Score, serving: ServingModel) -> dict[str, Any]:
    """Raw test rows, and ``rank`` requests composed from them, with the trainer's scores."""
    table = dataset.golden().drop_columns([KEY])
    inputs = list(serving.inputs["serving_default"])
    golden: dict[str, Any] = {
        "inputs": serving_inputs(dataset.schema, table, inputs),
        "expected": trainer_scores(dataset, serving.spec, score, table),
    }
    if serving.candidates and table.num_rows:
        num_candidates = min(_CANDIDATES_PER_REQUEST, table.num_rows)
        requests, answers = [], []
        for request in range(_RANK_REQUESTS):
            # The user of one row, and the candidates of others.
            positions = [(request * num_candidates + i) % table.num_rows for i in range(num_candidates)]
            candidate_rows = table.take(positions)
            for feature in dataset.schema.features:
                if feature.name not in serving.candidates and feature.source in table.schema.names:
                    index = candidate_rows.schema.get_field_index(feature.source)
                    candidate_rows = candidate_rows.set_column(
                        index, feature.source, table.column(feature.source).take([positions[0]] * num_candidates)
                    )
            result = serving_inputs(dataset.schema, candidate_rows, inputs)
            requests.append({name: x if name in serving.candidates else x[0] for name, x in result.items()})
            answers.append(trainer_scores(dataset, serving.spec, score, candidate_rows))
        golden["rank"] = {
            "candidates": serving.candidates,
            "inputs": {name: [request[name] for request in requests] for name in inputs},
            "expected": {name: [answer[name] for answer in answers] for name in OUTPUTS},
        }
    return golden


def trainer_scores(dataset: Dataset, spec: InputSpec, score: Score, table: pa.Table) -> dict[str, list[float]]:
    """The outputs for raw rows as in training: encoded with Arrow and NumPy, scored by the model."""
    out: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    for batch in table.combine_chunks().to_batches(max_chunksize=8192):
        ids, values = encode(dataset.transform, batch)
        scores = score(ModelInputs.of(spec, tf.constant(ids), tf.constant(values)))
        ctr = tf.sigmoid(scores.ctr_logit)
        for name, value in zip(OUTPUTS, (tf.sigmoid(scores.logit), ctr, scores.confidence), strict=True):
            out[name] += np.asarray(value).astype(float).tolist()
    return out
