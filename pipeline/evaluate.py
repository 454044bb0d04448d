"""A trained model on held-out rows: metrics.json and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from features.errors import UserError, did_you_mean
from features.schema import NumericFeature
from features.tf_runtime import tf
from features.transform import first_value_id
from models.metrics import Measured, calibration_curve, measure, measure_groups, sigmoid
from pipeline.config import Config, EvaluateSettings
from pipeline.dataset import Dataset
from pipeline.files import read_json, whole_directory, write_json, write_text
from pipeline.relation import relate
from pipeline.report import render
from pipeline.scoring import Scorer
from pipeline.train import RUN_FILE, load_trained
from pipeline.versions import versions

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"


def evaluate(
    dataset: Dataset, run: Path, out: Path, *, settings: EvaluateSettings | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Measure the best model of a run and write ``metrics.json`` and ``report.html``.

    Args:
        dataset: the data set it was trained on.
        run: the training run's directory.
        out: directory of the two files.
        settings: what to measure; as the run's own config says if None.
        overwrite: replace what is in ``out``.

    Returns:
        the content of metrics.json.

    Raises:
        UserError: no such run, another data set, no rows in that split.
    """
    config, model = load_trained(run, dataset)
    if settings is not None:
        config = config.model_copy(update={"evaluate": settings})
    split = config.evaluate.split
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score(split)
    metrics = measure_rows(config, dataset, rows)
    metrics["split"] = split
    metrics["settings"] = config.evaluate.model_dump(mode="json")
    metrics["training"] = read_json(run / RUN_FILE, "run", "")
    metrics["versions"] = versions()
    with whole_directory(out, marker=METRICS_FILE, overwrite=overwrite) as aside:
        write_json(aside / METRICS_FILE, metrics)
        write_text(aside / REPORT_FILE, render(config, dataset.manifest, metrics))
    return metrics


def measure_rows(config: Config, dataset: Dataset, rows: dict[str, Any]) -> dict[str, Any]:
    """All metrics of scored rows: overall, calibrated, by group, and confidence against intensity.

    Args:
        config: of the run.
        dataset: whose rows these are.
        rows: what :meth:`pipeline.scoring.Scorer.score` gives.
    """
    label, logit = rows["label"], rows["logit"]
    user = rows["user"] if config.rows.user else None
    calibrated = logit - np.log(rows["weight"])
    clicked = label > 0.5
    bins = config.evaluate.calibration_bins
    out: dict[str, Any] = {
        "score": _plain(measure(label, logit, user)),
        "ctr": _plain(measure(label, calibrated, user)),
        "calibration": {
            "score": calibration_curve(label, sigmoid(logit), bins).tolist(),
            "ctr": calibration_curve(label, sigmoid(calibrated), bins).tolist(),
        },
        "confidence": {"clicks": _spread(rows["confidence"][clicked]), "all": _spread(rows["confidence"])},
        "groups": {},
    }
    for group in config.rows.groups:
        ids = rows["ids"][:, config.rows.id_slices[group].start]
        names = dict(enumerate(dataset.transform.id_names(group)))
        measured = measure_groups(ids, names, label, logit, user)
        codes = {names.get(int(g), str(g)): int(g) for g in np.unique(ids)}
        out["groups"][group] = {
            name: {**_plain(found), "confidence": _spread(rows["confidence"][clicked & (ids == codes[name])])}
            for name, found in measured.items()
        }
    if config.confidence.weighted and config.rows.intensity:
        known = clicked & np.isfinite(rows["intensity"])
        popularity = _popularity(config, dataset, rows["ids"])
        out["intensity"] = relate(
            rows["confidence"][known],
            rows["intensity"][known],
            None if user is None else user[known],
            None if popularity is None else popularity[known],
        )
    return out


def _popularity(config: Config, dataset: Dataset, ids: Any) -> Any:
    """Training clicks of each row's item, ``[n]``; None where no vocabulary feature names the item."""
    item = config.evaluate.item
    if not item and config.preprocess.negatives:
        source = config.preprocess.negatives.item
        item = next((f.name for f in config.rows.categorical if f.source == source), "")
    if not item:
        return None
    try:
        feature = config.rows.feature(item)
    except KeyError:
        hint = did_you_mean(item, [f.name for f in config.rows.categorical])
        raise UserError(f"evaluate.item: {item}", "is no feature", hint) from None
    if isinstance(feature, NumericFeature) or config.rows.owner(feature).encoding != "vocabulary":
        return None
    owner = config.rows.owner(feature)
    clicks = np.concatenate([np.zeros(first_value_id(owner)), dataset.transform.vocabularies[owner.name].clicks])
    return clicks[ids[:, config.rows.id_slices[item].start]]


def _plain(measured: Measured) -> dict[str, Any]:
    return {**measured.values, "undefined": measured.undefined} if measured.undefined else dict(measured.values)


def _spread(values: Any) -> dict[str, float]:
    """Rows, mean and quantiles of some values; rows alone where there are none."""
    if len(values) == 0:
        return {"rows": 0}
    quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
    named = zip(("p10", "p25", "median", "p75", "p90"), (float(q) for q in quantiles), strict=True)
    return {"rows": len(values), "mean": float(np.mean(values)), **dict(named)}
