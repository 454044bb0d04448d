"""Export a trained model as a versioned SavedModel for a model server (`clsd export`)."""

from __future__ import annotations

import subprocess
import sys
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
from clsd.pipeline.serving import canary
from clsd.pipeline.serving.publishing import enforce, enforce_against, parse_requirement
from clsd.pipeline.serving.serving_inputs import OUTPUTS, serving_inputs
from clsd.pipeline.serving.signatures import Score, ServingModel
from clsd.pipeline.serving.warmup_requests import warmup_requests
from clsd.pipeline.shared.config import Config, ExportSettings, unknown_candidate
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import alone_in, read_json, whole_directory, write_json
from clsd.pipeline.shared.headline_metrics import HEADLINE_METRICS
from clsd.pipeline.shared.model_versions import (
    DONE_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    WARMUP_REQUESTS_FILE,
    WITHDRAWN,
    keep_newest,
    newest_version,
    remove_unpublished,
    versions_in,
)
from clsd.pipeline.shared.package_versions import versions
from clsd.pipeline.shared.progress import say
from clsd.pipeline.training.checkpoints import RUN_FILE
from clsd.pipeline.training.scoring import cheap_calibrator
from clsd.pipeline.training.trained_model import load_trained

#: Rows of a request for ``rank``, and requests, that the canary asks.
_RANKED, _RANK_REQUESTS = 16, 2


@dataclass(frozen=True)
class PublishingRequirements:
    """What a model must be before it is published.

    Args:
        metrics: its own, by the names of :data:`HEADLINE_METRICS`; None if it was not evaluated.
        require: bounds, such as ``auc>=0.7``.
        against: a version, or a directory of versions of which the newest is in service, that it may not be worse than.
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
    gates: PublishingRequirements | None = None,
    keep: int | None = None,
) -> Path:
    """Publish the best model of a run as ``out/<version>``.

    The SavedModel is written aside; a process without this project loads it, asks every signature for golden rows and
    compares the answers with the trainer's; then one rename makes the version visible, in an object store its
    ``saved_model.pb``, which comes last but for a file that says so.

    Args:
        dataset: the data set the run was trained on.
        run: the training run's directory.
        out: the directory that a model server watches.
        version: the version's number; seconds since 1970 if None.
        settings: how to export; as the run's own config says if None.
        gates: what it must reach.
        keep: how many of the newest versions stay, 0 for all; as the settings say if None.

    Raises:
        UserError: no such run, the version exists, the disk is full, or the canary found a difference.
        OutOfBoundsError: it does not pass the gates.
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
    with alone_in(out):  # two exports would both find the number free
        remove_unpublished(out)
        if target.exists():
            raise UserError(str(target), "exists already", "choose another --version; a version is never replaced")
        newest = [version.name for version in versions_in(out)[-1:]]
        if newest and number < int(newest[0]):
            what = f"is not above {newest[0]}, so no server would serve it"
            raise UserError(str(target), what, "choose a larger --version")
        fingerprint = read_json(run / RUN_FILE, "finished training run", "train again")["fingerprint"]
        if gone := withdrawn(out, fingerprint, config.export):
            what = "is a withdrawn version of this run"
            raise UserError(str(gone), what, "rename it to its number to serve it again, or remove it")
        gates = gates or PublishingRequirements()
        _pass(config, gates, out)
        _publish(config, dataset, model, fingerprint, target, gates)
        if num_candidates := config.export.keep if keep is None else keep:
            for old in keep_newest(out, num_candidates):
                say(f"removed version {old.name}")
    return target


def _publish(
    config: Config, dataset: Dataset, model: ClsdModel, fingerprint: str, target: Path, gates: PublishingRequirements
) -> None:
    with (
        whole_directory(target, marker=MODEL_FILE, done=DONE_FILE) as aside,
        tempfile.TemporaryDirectory(prefix="clsd-assets-") as assets,
    ):
        score = scoring_of(config, dataset, model)
        serving = ServingModel(
            ServingTransform(dataset.transform, Path(assets)), model.spec, score, config.export.candidates
        )
        serving.save(aside)
        (aside / GOLDEN_FILE).parent.mkdir()
        golden = golden_rows(dataset, score, serving)
        write_json(aside / GOLDEN_FILE, golden)
        with (aside / WARMUP_REQUESTS_FILE).open("wb") as file:
            write_records(file, warmup_requests(serving.inputs, golden))
        metadata = {
            "name": config.name,
            "version": int(target.name),
            "fingerprint": fingerprint,
            "dataset_fingerprint": dataset.manifest["fingerprint"],
            "columns": {feature.name: feature.source for feature in config.row_schema.features},
            "config": dump_config(config),
            "export": config.export.model_dump(mode="json"),
            "metrics": gates.metrics,
            "variables": serving.names(model),
            "versions": versions(),
        }
        write_json(aside / PROVENANCE_FILE, metadata)
        _fly_canary(aside, aside / GOLDEN_FILE, config.export.canary_tolerance)
        (aside / DONE_FILE).touch()


def is_of(version: Path, fingerprint: str, settings: ExportSettings) -> bool:
    """Whether a version is of the run with this fingerprint, exported as these settings say; what a version must be to be
    published, and how many stay, say nothing of what it is."""
    if not (version / PROVENANCE_FILE).exists():
        return False
    metadata = read_json(version / PROVENANCE_FILE, "model", "remove it")
    asked, mine = settings.model_dump(mode="json", exclude={"keep", "margins"}), metadata.get("export", {})
    return bool(metadata["fingerprint"] == fingerprint and {name: mine.get(name) for name in asked} == asked)


def withdrawn(out: Path, fingerprint: str, settings: ExportSettings) -> Path | None:
    """The version of this run and these settings that ``clsd rollback`` took out of service, if there is one."""
    there = out.iterdir() if out.is_dir() else iter(())
    return next((v for v in there if v.name.startswith(WITHDRAWN) and is_of(v, fingerprint, settings)), None)


def _pass(config: Config, gates: PublishingRequirements, out: Path) -> None:
    requirements = [parse_requirement(text, HEADLINE_METRICS) for text in gates.require]
    if (requirements or gates.against) and gates.metrics is None:
        raise UserError(
            "--require" if requirements else "--against", "needs metrics of the model", "run `clsd evaluate` first"
        )
    metrics = gates.metrics or {}
    enforce(metrics, requirements)
    # The first version that is published to where the others will be has none to be held against.
    if gates.against is not None and (address(gates.against) != address(out) or versions_in(out)):
        served = newest_version(gates.against)
        known = read_json(served / PROVENANCE_FILE, "model that clsd exported", "").get("metrics")
        if known is None:
            raise UserError(
                str(served), "does not say its metrics", "evaluate and export it again, or leave out --against"
            )
        enforce_against(metrics, known, config.export.margins, str(served))


def scoring_of(config: Config, dataset: Dataset, model: ClsdModel) -> Score:
    """How the exported model scores: exactly, or without a second forward pass, as ``export.calibration`` says.

    Raises:
        UserError: a control, which is for comparisons alone; a cheap calibration without a validation split.
    """
    settings = config.confidence
    if settings.weighted and (settings.control != "none" or settings.source in ("popularity", "intensity")):
        named = f"control: {settings.control}" if settings.control != "none" else f"source: {settings.source}"
        raise UserError(f"confidence.{named}", "is a control of a comparison", "export a model of the method instead")
    if config.export.calibration == "exact" or not model.asks_teacher:
        return model.score_inputs
    calibrator = cheap_calibrator(model, dataset)
    if calibrator is None:
        what = "has no validation split to fit the cheap calibration on"
        raise UserError(str(dataset.directory), what, "set export.calibration: exact")
    return lambda rows: model.score_cheaply(rows, calibrator)


def golden_rows(dataset: Dataset, score: Score, serving: ServingModel) -> dict[str, Any]:
    """Raw test rows, and requests for ``rank`` put together of them, with the scores that the trainer's own path gives them."""
    table = dataset.golden().drop_columns([KEY])
    inputs = list(serving.inputs["serving_default"])
    golden: dict[str, Any] = {
        "inputs": serving_inputs(dataset.schema, table, inputs),
        "expected": trainer_scores(dataset, serving.spec, score, table),
    }
    if serving.candidates and table.num_rows:
        num_candidates = min(_RANKED, table.num_rows)
        asked, answers = [], []
        for request in range(_RANK_REQUESTS):
            # The user of one row and the candidates of others.
            at = [(request * num_candidates + i) % table.num_rows for i in range(num_candidates)]
            mixed = table.take(at)
            for feature in dataset.schema.features:
                if feature.name not in serving.candidates and feature.source in table.schema.names:
                    index = mixed.schema.get_field_index(feature.source)
                    mixed = mixed.set_column(
                        index, feature.source, table.column(feature.source).take([at[0]] * num_candidates)
                    )
            result = serving_inputs(dataset.schema, mixed, inputs)
            asked.append({name: x if name in serving.candidates else x[0] for name, x in result.items()})
            answers.append(trainer_scores(dataset, serving.spec, score, mixed))
        golden["rank"] = {
            "candidates": serving.candidates,
            "inputs": {name: [request[name] for request in asked] for name in inputs},
            "expected": {name: [answer[name] for answer in answers] for name in OUTPUTS},
        }
    return golden


def trainer_scores(dataset: Dataset, spec: InputSpec, score: Score, table: pa.Table) -> dict[str, list[float]]:
    """The outputs for raw rows by the path that training took: encoded by Arrow and NumPy, scored by the model."""
    out: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    for batch in table.combine_chunks().to_batches(max_chunksize=8192):
        ids, values = encode(dataset.transform, batch)
        scores = score(ModelInputs.of(spec, tf.constant(ids), tf.constant(values)))
        ctr = tf.sigmoid(scores.ctr_logit)
        for name, value in zip(OUTPUTS, (tf.sigmoid(scores.logit), ctr, scores.confidence), strict=True):
            out[name] += np.asarray(value).astype(float).tolist()
    return out


def _fly_canary(model_dir: Path, golden: Path, tolerance: float) -> None:
    command = [
        sys.executable,
        "-I",
        str(Path(canary.__file__).resolve()),
        str(model_dir.resolve()),
        str(golden.resolve()),
        str(tolerance),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=model_dir, check=False)
    if done.returncode == 0:
        return
    said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"])[-1]
    what = (
        f"the canary's scores differ from the trainer's by {said}"
        if done.stdout.strip()
        else f"the canary failed ({said})"
    )
    raise UserError(str(golden.parent.parent), what, "nothing was published; please report this with the config")
