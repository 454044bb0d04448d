"""Metric sums of several batches or replicas, and the metrics computed from them."""

from __future__ import annotations

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models.step_metrics import METRIC_SUMS, SUMS, empty_sums, local_metric_sums, merged, metrics_from

PER_ROW = len(SUMS)


def _totals(rng: np.random.Generator, rows: int = 20, clicks: bool = True) -> np.ndarray:
    w, positive = rng.uniform(0.1, 3, rows), (rng.random(rows) < 0.5) * float(clicks)
    sums = [float(x) for x in rng.uniform(1, 9, PER_ROW)]
    return np.array(local_metric_sums(sums, tf.constant(w, tf.float32), tf.constant(positive, tf.float32)))


def test_figures_are_ratios_of_the_totals() -> None:
    totals = {"rows": 10, "loss": 5, "predicted": 4, "clicks": 2, "weight": 3, "weight_squared": 5, "gate_loss": 1}
    totals |= {"gate_rows": 4, "least_weight": 1, "largest_weight": 2}
    result = metrics_from(tf.constant([float(totals[name]) for name in METRIC_SUMS]))
    expected = {
        "loss": 0.5,
        "predicted_ctr": 0.4,
        "ctr": 0.2,
        "mean_weight": 1.5,
        "least_weight": 1.0,
        "largest_weight": 2.0,
        "effective_clicks": 0.9,
        "gate_loss": 0.25,
    }
    assert {name: float(x) for name, x in result.items()} == pytest.approx(expected)


def test_figures_of_the_clicks_are_0_without_clicks() -> None:
    sums = [8.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    result = metrics_from(local_metric_sums(sums, tf.ones([8]), tf.zeros([8])))
    of_clicks = ("ctr", "mean_weight", "least_weight", "largest_weight", "effective_clicks", "gate_loss")
    assert {name: float(result[name]) for name in of_clicks} == dict.fromkeys(of_clicks, 0.0)
    assert float(result["loss"]) == 0.25


def test_extremes_are_those_of_the_clicks_alone() -> None:
    w, positive = tf.constant([0.1, 0.5, 2.0, 9.0]), tf.constant([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(local_metric_sums([0.0] * PER_ROW, w, positive)[PER_ROW:], [0.5, 2.0])
    none = local_metric_sums([0.0] * PER_ROW, w, tf.zeros([4]))
    np.testing.assert_array_equal(none[PER_ROW:], [np.inf, -np.inf])


def test_merging_adds_the_sums_and_takes_the_extremes() -> None:
    rng = np.random.default_rng(0)
    parts = np.array([_totals(rng), _totals(rng, clicks=False), _totals(rng)])
    whole = merged(tf.constant(parts))
    np.testing.assert_allclose(whole[:PER_ROW], parts[:, :PER_ROW].sum(axis=0), rtol=1e-6)
    assert float(whole[-2]) == parts[:, -2].min() and float(whole[-1]) == parts[:, -1].max()


def test_merging_nothing_changes_nothing() -> None:
    totals = _totals(np.random.default_rng(1))
    np.testing.assert_array_equal(merged(tf.stack([empty_sums(), tf.constant(totals)])), totals)
    np.testing.assert_array_equal(merged(tf.stack([empty_sums(), empty_sums()])), empty_sums())
