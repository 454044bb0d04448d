"""The headline metrics, by which models are compared and published: names, place in ``metrics.json``, better direction."""

from __future__ import annotations

from typing import Any, NamedTuple


class HeadlineMetric(NamedTuple):
    """One metric.

    Args:
        part, key: its place in ``metrics.json``.
        better: 1 if more is better, -1 if less is better, 0 if neither.
    """

    part: str
    key: str
    better: int


HEADLINE_METRICS: dict[str, HeadlineMetric] = {
    "auc": HeadlineMetric("score", "auc", 1),
    "gauc": HeadlineMetric("score", "gauc", 1),
    "log_loss": HeadlineMetric("ctr", "log_loss", -1),
    "log_loss_score": HeadlineMetric("score", "log_loss", -1),
    "ndcg": HeadlineMetric("ranking", "ndcg", 1),
    "intensity_auc": HeadlineMetric("ranking", "intensity_auc", 1),
    "predicted_over_real": HeadlineMetric("ctr", "predicted_over_real", 0),
    "predicted_over_real_score": HeadlineMetric("score", "predicted_over_real", 0),
    "ece": HeadlineMetric("ctr", "ece", -1),
    "ece_score": HeadlineMetric("score", "ece", -1),
    "group_spread": HeadlineMetric("confidence", "group_spread", 0),
    "confidence_given_popularity": HeadlineMetric("intensity", "given_popularity", 0),
}
#: Names of the metrics that can be worse: those that a margin can be set for.
DIRECTED_METRICS = tuple(name for name, metric in HEADLINE_METRICS.items() if metric.better)


def headline(metrics: dict[str, Any]) -> dict[str, float]:
    """The headline metrics of ``metrics.json`` by name; undefined ones are left out.

    >>> headline({"score": {"auc": 0.7}, "ctr": {}})
    {'auc': 0.7}
    """
    return {
        name: metrics[metric.part][metric.key]
        for name, metric in HEADLINE_METRICS.items()
        if metric.key in metrics.get(metric.part, {})
    }
