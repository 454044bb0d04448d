"""Summarise the runs of a comparison: means, paired differences, tests."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from clsd.pipeline.evaluation.compare_variants import about
from clsd.pipeline.evaluation.significance import Paired, holm, paired
from clsd.pipeline.shared.config import Config


class Metric(NamedTuple):
    """How to show a headline metric.

    Args:
        label: its name in tables.
        format: format string of a value.
        scale, unit: scale and unit of a difference.
        better: 1 if more is better, -1 if less is better, 0 if neither.
    """

    label: str
    format: str
    scale: float
    unit: str
    better: int


#: Metrics with a test. The p values of each metric are corrected for the number of variants (Holm).
TESTED: dict[str, Metric] = {
    "auc": Metric("AUC", "{:.4f}", 1e4, "1e-4", 1),
    "gauc": Metric("GAUC", "{:.4f}", 1e4, "1e-4", 1),
    "ndcg": Metric("NDCG by intensity", "{:.4f}", 1e4, "1e-4", 1),
    "intensity_auc": Metric("AUC of intensity within clicks", "{:.4f}", 1e4, "1e-4", 1),
    "log_loss": Metric("log loss of ctr", "{:.4f}", 1e4, "1e-4", -1),
}
#: Metrics without a test.
SHOWN: dict[str, Metric] = {
    "log_loss_score": Metric("log loss of score", "{:.4f}", 1e4, "1e-4", -1),
    "predicted_over_real_score": Metric("predicted / real CTR, score", "{:.3f}", 1, "", 0),
    "predicted_over_real": Metric("predicted / real CTR, ctr", "{:.3f}", 1, "", 0),
    "ece_score": Metric("ECE, score", "{:.4f}", 1e4, "1e-4", -1),
    "ece": Metric("ECE, ctr", "{:.4f}", 1e4, "1e-4", -1),
    "group_spread": Metric("confidence, largest / smallest group", "{:.3f}", 1, "", -1),
    "confidence_given_popularity": Metric("confidence ~ intensity, given popularity", "{:+.3f}", 1, "", 1),
    "seconds_per_step": Metric("milliseconds a step", "{:.1f}", 1e3, "ms", -1),
}
METRICS = {**TESTED, **SHOWN}


def compare_results(config: Config, results: dict[str, dict[int, Any]], bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The content of ``compare.json``.

    Args:
        config: the settings; they name the references and the level.
        results: the content of each ``result.json``, by variant and seed.
        bootstrap: result of the bootstrap over users.

    Returns:
        seeds, level, variants (about, collapsed, epochs, metrics with mean, sd and the value of each seed), differences (by
        reference, metric and variant: :class:`clsd.pipeline.evaluation.significance.Paired`, variant minus reference), bootstrap.
    """
    seeds = list(next(iter(results.values())))
    values = {name: {metric: _values(runs, metric) for metric in METRICS} for name, runs in results.items()}
    references = [name for name in config.compare.references if name in results]
    return {
        "name": config.name,
        "seeds": seeds,
        "split": config.evaluate.split,
        "level": config.compare.level,
        "ndcg_at": config.compare.ndcg_at,
        "variants": {
            name: {
                "about": about(config, name),
                "collapsed": {str(seed): run["collapsed"] for seed, run in runs.items() if run["collapsed"]},
                "epochs": [run["best_epoch"] for run in runs.values()],
                "metrics": {
                    metric: _mean_and_sd(result)
                    for metric, result in values[name].items()
                    if any(v is not None for v in result)
                },
            }
            for name, runs in results.items()
        },
        "differences": {
            reference: {metric: _against(values, metric, reference, config.compare.level) for metric in TESTED}
            for reference in references
        },
        "bootstrap": bootstrap,
    }


def _values(runs: dict[int, Any], metric: str) -> list[float | None]:
    """A metric by seed; None if it is undefined."""
    if metric == "seconds_per_step":
        return [run["seconds_per_step"] for run in runs.values()]
    return [run["metrics"].get(metric) for run in runs.values()]


def _mean_and_sd(values: list[float | None]) -> dict[str, Any]:
    defined = [v for v in values if v is not None]
    sd = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    return {"mean": float(np.mean(defined)), "sd": sd, "values": values}


def _against(values: dict[str, Any], metric: str, reference: str, level: float) -> dict[str, Any]:
    """Each variant minus the reference, paired over the seeds in which both have the metric. p is corrected within the metric."""
    by_variant: dict[str, Paired] = {}
    for name, mine in values.items():
        pairs = [
            (a, b)
            for a, b in zip(mine[metric], values[reference][metric], strict=True)
            if a is not None and b is not None
        ]
        if name != reference and pairs:
            by_variant[name] = paired([a - b for a, b in pairs], level)
    corrected = holm([result.p for result in by_variant.values()])
    return {
        name: asdict(replace(result, p_corrected=p))
        for (name, result), p in zip(by_variant.items(), corrected, strict=True)
    }
