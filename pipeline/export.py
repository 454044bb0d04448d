"""A trained model to a versioned SavedModel that a model server loads."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from features.encode import encode
from features.errors import UserError
from features.serving import ServingTransform
from features.tf_runtime import tf
from models.clsd import ClsdModel, Scores
from pipeline import canary
from pipeline.columns import KEY
from pipeline.config import Config, dump_config
from pipeline.dataset import Dataset
from pipeline.files import read_json, whole_directory, write_json
from pipeline.predict import GOLDEN_FILE, MODEL_FILE, PROVENANCE_FILE
from pipeline.raw import raw_inputs
from pipeline.scoring import cheap_calibrator
from pipeline.train import RUN_FILE, load_trained
from pipeline.versions import versions

OUTPUTS = ("score", "ctr", "confidence")
Score: TypeAlias = Callable[[Any, Any], Scores]


class ServingModel(tf.Module):  # type: ignore[misc]
    """Raw rows in; ``score``, ``ctr`` and ``confidence`` out.

    score = sigmoid(s), to rank by; ctr = sigmoid(s - log w), the calibrated click-through rate; confidence = a / c, how much
    a click on the row would be believed (1 is the mean click). All float32 ``[rows]``.

    Args:
        transform: the raw-feature transform, whose tables become assets.
        score: ids and values to :class:`models.clsd.Scores`, by a model on one device.
    """

    def __init__(self, transform: ServingTransform, score: Score) -> None:
        super().__init__(name="clsd_serving")
        self.transform = transform
        specs = transform.signature()

        def answer(raw: dict[str, Any]) -> dict[str, Any]:
            scores = score(*transform(raw))
            ctr = tf.sigmoid(scores.ctr_logit)
            found = {"score": tf.sigmoid(scores.logit), "ctr": ctr, "confidence": scores.confidence}
            return {name: tf.identity(value, name=name) for name, value in found.items()}

        self.raw = tf.function(lambda **raw: answer(raw)).get_concrete_function(**specs)
        self.examples = tf.function(lambda examples: answer(transform.parse_examples(examples))).get_concrete_function(
            tf.TensorSpec([None], tf.string, name="examples")
        )
        # What the graph reads: the Keras objects would bring their optimizers, training graphs and unasked teachers along.
        self.weights = list(self.raw.variables)

    def signatures(self) -> dict[str, Any]:
        """Signatures by TF Serving's names."""
        return {"serving_default": self.raw, "serialized_examples": self.examples}


def export(dataset: Dataset, run: Path, out: Path, *, version: int | None = None) -> Path:
    """Publish the best model of a run as ``out/<version>``.

    The SavedModel is written aside; a process without this project loads it, asks both signatures for golden rows and
    compares the answers with the trainer's; then one rename makes the version visible.

    Args:
        dataset: the data set the run was trained on.
        run: the training run's directory.
        out: the directory that a model server watches.
        version: the version's number; seconds since 1970 if None.

    Raises:
        UserError: no such run, the version exists, the disk is full, or the canary found a difference.
    """
    config, model = load_trained(run, dataset)
    number = int(time.time()) if version is None else version
    target = out / str(number)
    if target.exists():
        raise UserError(str(target), "exists already", "choose another --version; a version is never replaced")
    with (
        whole_directory(target, marker=MODEL_FILE) as aside,
        tempfile.TemporaryDirectory(prefix="clsd-assets-") as assets,
    ):
        score = scoring_of(config, dataset, model)
        serving = ServingModel(ServingTransform(dataset.transform, Path(assets)), score)
        tf.saved_model.save(serving, str(aside), signatures=serving.signatures())
        (aside / GOLDEN_FILE).parent.mkdir()
        write_json(aside / GOLDEN_FILE, golden_rows(dataset, score, list(serving.transform.signature())))
        fingerprint = read_json(run / RUN_FILE, "finished training run", "train again")["fingerprint"]
        write_json(aside / PROVENANCE_FILE, _provenance(config, dataset, number, fingerprint))
        _fly_canary(aside, aside / GOLDEN_FILE, config.export.canary_tolerance)
    return target


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
        return model.score
    calibrator = cheap_calibrator(model, dataset)
    if calibrator is None:
        what = "has no validation split to fit the cheap calibration on"
        raise UserError(str(dataset.directory), what, "set export.calibration: exact")
    return lambda ids, values: model.score_cheaply(ids, values, calibrator)


def golden_rows(dataset: Dataset, score: Score, inputs: list[str]) -> dict[str, Any]:
    """Raw test rows and the scores that the trainer's own path gives them."""
    table = dataset.golden()
    return {"inputs": raw_inputs(dataset.schema, table, inputs), "expected": trainer_scores(dataset, score, table)}


def trainer_scores(dataset: Dataset, score: Score, table: pa.Table) -> dict[str, list[float]]:
    """The outputs for raw rows by the path that training took: encoded by Arrow and NumPy, scored by the model."""
    out: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    for batch in table.drop_columns([KEY]).combine_chunks().to_batches(max_chunksize=8192):
        ids, values = encode(dataset.transform, batch)
        scores = score(tf.constant(ids), tf.constant(values))
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


def _provenance(config: Config, dataset: Dataset, version: int, fingerprint: str) -> dict[str, Any]:
    return {
        "name": config.name,
        "version": version,
        "fingerprint": fingerprint,
        "dataset_fingerprint": dataset.manifest["fingerprint"],
        "columns": {feature.name: feature.source for feature in config.rows.features},
        "config": dump_config(config),
        "versions": versions(),
    }
