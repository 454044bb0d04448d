"""Measure a trained model on held-out rows: metrics.json and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clsd.features.arrays import Array
from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.features.tf_runtime import tf
from clsd.models.calibration import Calibrator
from clsd.models.metrics import Measured, calibration_curve, measure, measure_groups, sigmoid
from clsd.models.ranking import group_spread, intensity_auc, ndcg
from clsd.pipeline.evaluation.rank_correlations import rank_correlations
from clsd.pipeline.evaluation.report import CALIBRATION_METRICS, render
from clsd.pipeline.shared.checksums import describe_file, require_unchanged
from clsd.pipeline.shared.config import Config, EvaluateSettings
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import atomic_directory, write_text
from clsd.pipeline.shared.headline_metrics import headline
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.shared.package_versions import versions
from clsd.pipeline.shared.progress import say_there_already, warn
from clsd.pipeline.training.checkpoints import RUN_FILE, read_run
from clsd.pipeline.training.popularity import item_popularity
from clsd.pipeline.training.scoring import Scorer, cheap_calibrator
from clsd.pipeline.training.trained_model import load_trained

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"


def evaluate(
    dataset: Dataset,
    run: str | Path,
    out: str | Path,
    *,
    settings: EvaluateSettings | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure the best model of a run and write ``metrics.json`` and ``report.html``. A result of the same run and settings is
    reused.

    Args:
        dataset: the data set on which the run was trained.
        run: the training run's directory.
        out: directory of the two files.
        settings: what to measure; None for the settings of the run's config.
        overwrite: replace a result of another run or of other settings.

    Returns:
        the content of metrics.json.

    Raises:
        UserError: there is no such run, it has another data set, or the split has no rows.
    """
    run = as_path(run)
    out = as_path(out)
    if finished := _finished(dataset, run, out, settings, overwrite):
        say_there_already()
        return finished
    config, model = load_trained(run, dataset)
    if settings is not None:
        config = config.model_copy(update={"evaluate": settings})
    split = config.evaluate.split
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score(split)
    # Without a teacher, one forward pass gives the exact weight.
    calibrator = cheap_calibrator(model, dataset) if model.scoring_needs_teacher else None
    metrics = measure_rows(config, dataset, rows, calibrator)
    metrics["split"] = split
    metrics["settings"] = config.evaluate.model_dump(mode="json")
    metrics["training"] = read_run(run, "train again")
    metrics["versions"] = versions()
    with atomic_directory(out, marker=METRICS_FILE, overwrite=overwrite, sole=True) as temporary:
        write_text(temporary / REPORT_FILE, render(config, dataset.manifest, metrics, dataset.statistics))
        metrics["files"] = [describe_file(temporary, REPORT_FILE)]
        write_json(temporary / METRICS_FILE, metrics)
    return metrics


def _finished(
    dataset: Dataset, run: Path, out: Path, settings: EvaluateSettings | None, overwrite: bool
) -> dict[str, Any] | None:
    """The metrics in ``out`` if they are of this run and of these settings; None for a damaged result that may be replaced."""
    if not all((directory / file).exists() for directory, file in ((run, RUN_FILE), (out, METRICS_FILE))):
        return None
    try:
        metrics = read_json(out / METRICS_FILE, "evaluation", "evaluate again with --overwrite")
        require_unchanged(out, metrics.get("files", []), "evaluate again with --overwrite")
    except UserError:
        if not overwrite:
            raise
        return None
    wanted = settings or load_config(run / "config.yaml").evaluate
    trained = read_run(run, "train again")
    same_run = metrics["training"]["fingerprint"] == trained["fingerprint"]
    same_run &= trained["dataset_fingerprint"] == dataset.manifest["fingerprint"]
    return dict(metrics) if same_run and metrics["settings"] == wanted.model_dump(mode="json") else None


def measure_rows(
    config: Config, dataset: Dataset, rows: dict[str, Array], calibrator: Calibrator | None = None
) -> dict[str, Any]:
    """All metrics of scored rows: overall, calibrated, by group, and confidence against intensity.

    Args:
        config: the run's config.
        dataset: the rows' data set.
        rows: the result of :meth:`clsd.pipeline.training.scoring.Scorer.score`.
        calibrator: the cheap calibration, measured beside the exact one.
    """
    label, logit = rows["label"], rows["logit"]
    user = rows["user"] if config.row_schema.user else None
    calibrated = rows["ctr_logit"]
    clicked = label > 0.5
    bins = config.evaluate.calibration_bins
    out: dict[str, Any] = {
        "score": _as_json(measure(label, logit, user)),
        "ctr": _as_json(measure(label, calibrated, user)),
        "calibration": {
            "score": calibration_curve(label, sigmoid(logit), bins).tolist(),
            "ctr": calibration_curve(label, sigmoid(calibrated), bins).tolist(),
        },
        "confidence": {
            "clicks": _spread(rows["confidence"][clicked]),
            "all": _spread(rows["confidence"]),
            **_spreads(config, rows, clicked),
        },
        "groups": {},
    }
    for group in config.row_schema.groups:
        ids = rows["ids"][:, config.row_schema.id_slices[group].start]
        names = dict(enumerate(dataset.transform.id_names(group)))
        measured = measure_groups(ids, names, label, logit, user)
        corrected = measure_groups(ids, names, label, calibrated, None)
        codes = {names.get(int(g), str(g)): int(g) for g in np.unique(ids)}
        out["groups"][group] = {
            name: {
                **_as_json(result),
                **{f"ctr_{key}": value for key, value in corrected[name].values.items() if key in CALIBRATION_METRICS},
                "confidence": _spread(rows["confidence"][clicked & (ids == codes[name])]),
            }
            for name, result in measured.items()
        }
    if calibrator is not None:
        cheap = logit - calibrator.log_weight(logit, rows["correction"]).numpy() + np.log(dataset.kept_negatives)
        out["ctr_cheap"] = _as_json(measure(label, cheap, user))
        out["calibrator"] = calibrator._asdict()
    if config.row_schema.intensity:
        out["ranking"] = _ranking(config, rows, user)
    if config.confidence.weighted and config.row_schema.intensity:
        known = clicked & np.isfinite(rows["intensity"])
        popularity = _popularity(config, dataset, rows["ids"])
        out["intensity"] = rank_correlations(
            rows["confidence"][known],
            rows["intensity"][known],
            None if user is None else user[known],
            None if popularity is None else popularity[known],
        )
    return out


def known_headline(evaluation: Path, run: Path) -> dict[str, float] | None:
    """The headline metrics that ``clsd evaluate`` wrote for a run; None if it did not measure this run."""
    if not (evaluation / METRICS_FILE).exists():
        return None
    try:
        metrics = read_json(evaluation / METRICS_FILE, "evaluation", "evaluate again with --overwrite")
    except UserError as error:
        warn(f"{error}: taken as not evaluated")
        return None
    mine = read_run(run, "run `clsd train` first")["fingerprint"]
    return headline(metrics) if metrics["training"]["fingerprint"] == mine else None


def _ranking(config: Config, rows: dict[str, Array], user: Array | None) -> dict[str, Any]:
    """Ranking by intensity: NDCG per user, and AUC of intensity among the clicks."""
    if not np.isfinite(rows["logit"]).all():
        return {"undefined": dict.fromkeys(("ndcg", "intensity_auc"), "some predictions are not finite")}
    at = config.compare.ndcg_at
    known = (rows["label"] > 0.5) & np.isfinite(rows["intensity"])
    gain = np.where(known, np.maximum(rows["intensity"], 0.0), 0.0)
    result: dict[str, tuple[float | None, str]] = {
        "intensity_auc": (
            intensity_auc(rows["logit"][known], rows["intensity"][known]),
            "fewer than 2 clicks, or all of one intensity",
        ),
        "ndcg": (None, "the log names no users"),
    }
    users = 0
    if user is not None:
        value, users = ndcg(user, rows["logit"], gain, at)
        result["ndcg"] = (value, "no user has a click of an intensity above 0")
    out: dict[str, Any] = {name: value for name, (value, _) in result.items() if value is not None}
    undefined = {name: reason for name, (value, reason) in result.items() if value is None}
    return {"at": at, "users": users, **out, **({"undefined": undefined} if undefined else {})}


def _spreads(config: Config, rows: dict[str, Array], clicked: Array) -> dict[str, float]:
    """Ratio of the largest to the smallest mean confidence of a group's clicks; the largest ratio of all group features."""
    ids = rows["ids"][clicked]
    result = [
        group_spread(rows["confidence"][clicked], ids[:, config.row_schema.id_slices[group].start])
        for group in config.row_schema.groups
    ]
    known = [value for value in result if value is not None]
    return {"group_spread": max(known)} if known else {}


def _popularity(config: Config, dataset: Dataset, ids: Array) -> Array | None:
    """Training clicks of each row's item, ``[n]``; None without an item feature that has a vocabulary."""
    result = item_popularity(config, dataset)
    return None if result is None else result[1][ids[:, config.row_schema.id_slices[result[0]].start]]


def _as_json(measured: Measured) -> dict[str, Any]:
    return {**measured.values, "undefined": measured.undefined} if measured.undefined else dict(measured.values)


def _spread(values: Array) -> dict[str, float]:
    """Count, mean and quantiles of values; the count alone if there are none."""
    if len(values) == 0:
        return {"rows": 0}
    quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
    named = zip(("p10", "p25", "median", "p75", "p90"), (float(q) for q in quantiles), strict=True)
    return {"rows": len(values), "mean": float(np.mean(values)), **dict(named)}
