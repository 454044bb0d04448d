"""The method's equations against what theory says of them (docs/method.md).

The same facts of a whole model: 1 and 6 in test_gradients.py, 2 to 5 in test_fixed_points.py, 8 in test_teacher.py, 7 in
tests/distributed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models import equations

UNBOUNDED = {"eps": 1e-9, "a_max": 1e9}


def _gradient(loss: Callable[[Any], Any], s: Any) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(s)
        value = loss(s)
    return tape.gradient(value, s).numpy()


def _logit(p: Any) -> Any:
    return np.log(p) - np.log1p(-p)


def _sigmoid(s: Any) -> Any:
    return 1 / (1 + np.exp(-s))


def _optimum(eta: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Where the expected loss of rows with CTR eta and weight w is smallest; float64."""
    return _sigmoid(np.log(w) + _logit(eta))


def _expected_loss(s: Any, eta: Any, w: Any) -> Any:
    click = equations.row_losses(s, tf.ones_like(s), w)
    return eta * click + (1 - eta) * equations.row_losses(s, tf.zeros_like(s), w)


# ---------------------------------------------------------------- fact 1


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.3])
def test_fact_1_raw_self_distillation_has_the_gradient_of_generalised_cross_entropy(alpha: float) -> None:
    s = tf.linspace(-3.0, 3.0, 25)  # q**alpha stays within the bounds

    def distilled(s: Any) -> Any:
        a = equations.confidence(tf.sigmoid(s), 0.0, 1.0, alpha=alpha)
        return equations.row_losses(s, tf.ones_like(s), equations.positive_weight(a, 1.0, math.inf))

    generalised = _gradient(lambda s: (1.0 - tf.sigmoid(s) ** alpha) / alpha, s)
    np.testing.assert_allclose(_gradient(distilled, s), generalised, atol=1e-6)


def test_fact_1_raw_self_distillation_leaves_cross_entropy_on_negatives() -> None:
    s = tf.linspace(-3.0, 3.0, 25)
    distilled = _gradient(lambda s: equations.row_losses(s, tf.zeros_like(s), tf.sigmoid(s)), s)
    np.testing.assert_allclose(distilled, _gradient(lambda s: -tf.math.log(1.0 - tf.sigmoid(s)), s), atol=1e-6)


def test_row_losses_are_weighted_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    s, w, y = rng.normal(size=200), rng.uniform(0.1, 5, 200), rng.integers(0, 2, 200).astype(float)
    p = _sigmoid(s)
    by_hand = -(y * w * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(
        equations.row_losses(tf.constant(s), tf.constant(y), tf.constant(w)), by_hand, rtol=1e-12
    )


def test_non_clicks_have_a_weight_of_their_own() -> None:
    rng = np.random.default_rng(4)
    s, w, v, y = rng.normal(size=200), rng.uniform(0.1, 5, 200), rng.uniform(0.1, 5, 200), rng.integers(0, 2, 200) * 1.0
    p = _sigmoid(s)
    by_hand = -(y * w * np.log(p) + (1 - y) * v * np.log(1 - p))
    np.testing.assert_allclose(equations.row_losses(*(tf.constant(x) for x in (s, y, w, v))), by_hand, rtol=1e-12)


def test_row_losses_stay_finite_at_extreme_logits() -> None:
    losses = equations.row_losses(tf.constant([-1e4, 1e4]), tf.constant([1.0, 0.0]), tf.ones([2]))
    np.testing.assert_array_equal(losses, [1e4, 1e4])


# ---------------------------------------------------------------- fact 2


def test_fact_2_weighted_optimum_has_w_times_the_odds_and_calibrated_logit_undoes_it() -> None:
    rng = np.random.default_rng(1)
    eta, w = tf.constant(rng.uniform(0.02, 0.98, 50)), tf.constant(rng.uniform(0.1, 8.0, 50))
    s = tf.Variable(tf.zeros(50, tf.float64))
    for _ in range(60):  # Newton on the loss itself, not on its solution
        p = tf.sigmoid(s)
        curvature = (eta * w + 1 - eta) * p * (1 - p)
        s.assign_sub(tf.clip_by_value(_gradient(lambda s: _expected_loss(s, eta, w), s) / curvature, -1.0, 1.0))
    odds = np.exp(s.numpy())
    np.testing.assert_allclose(odds, (w * eta / (1 - eta)).numpy(), rtol=1e-9)
    np.testing.assert_allclose(tf.sigmoid(equations.calibrated_logit(s, w)), eta, rtol=1e-9)


def test_fact_2_calibrated_logit_undoes_the_sampling_of_non_clicks() -> None:
    eta, w, kept = np.array([0.001, 0.02, 0.5]), np.array([0.3, 1.0, 4.0]), 0.1
    sampled = eta / (eta + kept * (1 - eta))  # the CTR of the training data
    s = _logit(_optimum(sampled, w))
    np.testing.assert_allclose(_sigmoid(equations.calibrated_logit(s, w, math.log(kept)).numpy()), eta, rtol=1e-9)


def test_mean_weight_is_the_ratio_of_its_sums_and_1_before_any() -> None:
    assert float(equations.mean_weight(tf.constant([8.0, 6.0]))) == 0.75
    assert float(equations.mean_weight(tf.zeros([2]))) == 1.0


# ---------------------------------------------------------------- fact 3


def _self_taught(eta: np.ndarray, rounds: int, blend: float, c: float | None) -> np.ndarray:
    """Train to the optimum, take the weights from it, again and again; c None: their mean over the clicks."""
    p = eta.copy()
    for _ in range(rounds):
        centre = float(np.sum(eta * p) / np.sum(eta)) if c is None else c
        a = equations.confidence(tf.constant(p), 0.0, tf.constant(centre, tf.float64), **UNBOUNDED)
        p = _optimum(eta, equations.positive_weight(a, centre, blend).numpy())
    return p


ETA = np.array([0.02, 0.2, 0.4, 0.5, 0.6, 0.75, 0.95])


def test_fact_3_raw_self_teacher_collapses_every_ctr_of_a_half_or_less() -> None:
    p = _self_taught(ETA, 4000, math.inf, c=1.0)
    np.testing.assert_allclose(p[ETA <= 0.5], 0.0, atol=3e-4)
    np.testing.assert_allclose(p[ETA > 0.5], 2 - 1 / ETA[ETA > 0.5], atol=1e-6)


def test_fact_3_fixed_point_of_the_raw_self_teacher_has_no_gradient() -> None:
    eta = tf.constant(ETA[ETA > 0.5])
    s = tf.constant(_logit(2 - 1 / ETA[ETA > 0.5]))

    def loss(s: Any) -> Any:
        a = equations.confidence(tf.sigmoid(s), 0.0, tf.ones([], tf.float64), **UNBOUNDED)
        return _expected_loss(s, eta, a)

    np.testing.assert_allclose(_gradient(loss, s), 0.0, atol=1e-12)


def test_fact_3_normalising_a_self_teacher_by_a_constant_moves_the_collapse_and_does_not_stop_it() -> None:
    c = 0.5
    p = _self_taught(ETA, 4000, math.inf, c=c)
    np.testing.assert_allclose(p, np.maximum(0.0, 1 - c / (ETA / (1 - ETA))), atol=1e-6)
    assert (p < 1e-6).sum() == 2  # 0.02 and 0.2, whose odds are below c


def test_fact_3_normalising_a_self_teacher_by_its_mean_does_not_stop_the_collapse() -> None:
    p = _self_taught(ETA, 4000, math.inf, c=None)
    c = np.sum(ETA * p) / np.sum(ETA)
    np.testing.assert_allclose(p, np.maximum(0.0, 1 - c / (ETA / (1 - ETA))), atol=1e-6)
    assert (p[ETA <= 0.2] < 1e-6).all() and p[-1] > 0.9


@pytest.mark.parametrize("c", [1.0, 0.5, None])
def test_fact_3_blend_stops_the_collapse(c: float | None) -> None:
    p = _self_taught(ETA, 4000, 1.0, c=c)
    least = 0.5 * ETA / (1 - ETA)  # the weight is never below 1 / (1 + blend)
    assert (p / (1 - p) >= least).all()


# ---------------------------------------------------------------- fact 4 and the normalisers


def _population(normalise: str, blend: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CTRs, weights of a fixed teacher normalised over the clicks, and the optimum of the weighted loss under them."""
    rng = np.random.default_rng(2)
    eta = rng.uniform(0.05, 0.6, 400)
    q = np.clip(eta * rng.uniform(0.6, 1.6, 400), 0.01, 0.99)
    p = eta
    for _ in range(200):  # gradient_mass depends on p, which depends on it
        moments = equations.moment_sums(tf.constant(q), tf.constant(p), tf.constant(eta), 1.0)
        c = equations.normaliser(moments, normalise)
        w = equations.positive_weight(equations.confidence(q, 0.0, c, **UNBOUNDED), c, blend).numpy()
        p = _optimum(eta, w)
    return eta, w, p


@pytest.mark.parametrize("blend", [1.0, math.inf])
def test_fact_4_mean_prediction_is_the_ctr_less_the_covariance_of_weight_and_prediction(blend: float) -> None:
    eta, w, p = _population("mean", blend)
    mean_w = np.average(w, weights=eta)
    covariance = np.average((w - mean_w) * p, weights=eta)
    np.testing.assert_allclose(mean_w, 1.0, rtol=1e-12)
    np.testing.assert_allclose(p.mean(), eta.mean() * (1 - covariance), rtol=1e-10)
    assert covariance > 0.01  # else the equation would say nothing


@pytest.mark.parametrize("blend", [0.5, 1.0, math.inf])
def test_fact_4_gradient_mass_keeps_the_mean_prediction(blend: float) -> None:
    eta, w, p = _population("gradient_mass", blend)
    np.testing.assert_allclose(p.mean(), eta.mean(), rtol=1e-10)
    assert w.std() > 0.1


def test_moment_sums_are_sums_over_the_positives() -> None:
    rng = np.random.default_rng(3)
    q, p, y = rng.random(40), rng.random(40), rng.integers(0, 2, 40).astype(float)
    sums = equations.moment_sums(tf.constant(q), tf.constant(p), tf.constant(y), 0.5)
    at = y == 1
    root = np.sqrt(q[at])
    np.testing.assert_allclose(sums, [at.sum(), root.sum(), (root * (1 - p[at])).sum(), (1 - p[at]).sum()], rtol=1e-12)


def test_moment_sums_without_positives_are_zero() -> None:
    assert not equations.moment_sums(tf.constant([0.2, 0.7]), tf.constant([0.1, 0.6]), tf.zeros([2]), 1.0).numpy().any()


@pytest.mark.parametrize(("kind", "c"), [("mean", 0.3), ("gradient_mass", 0.25), ("none", 1.0)])
def test_normaliser_is_the_ratio_that_its_kind_names(kind: str, c: float) -> None:
    assert float(equations.normaliser(tf.constant([10.0, 3.0, 2.0, 8.0]), kind)) == pytest.approx(c, rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "gradient_mass", "none"])
def test_normaliser_is_one_before_any_positive(kind: str) -> None:
    assert float(equations.normaliser(tf.zeros([4]), kind)) == 1.0


@pytest.mark.parametrize("kind", ["mean", "gradient_mass"])
def test_normaliser_of_vanished_confidence_stays_above_zero(kind: str) -> None:
    c = equations.normaliser(tf.constant([10.0, 0.0, 0.0, 10.0]), kind)
    w = equations.positive_weight(equations.confidence(tf.zeros([3]), 0.0, c), c, math.inf)
    assert float(c) > 0 and np.isfinite(w).all()


# ---------------------------------------------------------------- bounds, blend, gate


def test_confidence_is_clipped_in_units_of_c() -> None:
    q, g = tf.constant([0.0, 0.1, 0.9, 0.5]), tf.constant([-3.0, 0.0, 0.4, -0.3])
    a = equations.confidence(q, g, 0.2, eps=0.02, a_max=5.0)
    np.testing.assert_allclose(a, [0.02 * 0.2, 0.1, 5.0 * 0.2, 0.2], rtol=1e-6)


def test_gate_is_added_after_the_power() -> None:
    a = equations.confidence(tf.constant([0.25]), tf.constant([0.1]), 1.0, alpha=0.5)
    np.testing.assert_allclose(a, [0.6], rtol=1e-6)


def test_fact_6_confidence_passes_no_gradient_to_teacher_or_gate() -> None:
    q, g = tf.constant([0.3]), tf.constant([0.1])
    with tf.GradientTape() as tape:
        tape.watch([q, g])
        a = equations.confidence(q, g, 0.3)
    assert tape.gradient(a, [q, g]) == [None, None]


@pytest.mark.parametrize(
    ("blend", "expected"), [(0.0, [1, 1, 1]), (1.0, [0.75, 1, 2]), (3.0, [0.625, 1, 2.5]), (math.inf, [0.5, 1, 3])]
)
def test_blend_runs_from_one_to_the_confidence_alone(blend: float, expected: list[float]) -> None:
    w = equations.positive_weight(tf.constant([0.1, 0.2, 0.6]), 0.2, blend)
    np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_centre_gate_loss_counts_positives_against_the_mean_confidence() -> None:
    q, g, y = tf.constant([0.25, 0.36]), tf.constant([0.1, -0.2]), tf.constant([1.0, 0.0])
    losses, counted = equations.gate_losses(q, g, y, 0.4, kind="centre", alpha=0.5)
    np.testing.assert_allclose(losses, [(0.5 + 0.1 - 0.4) ** 2, (0.6 - 0.2 - 0.4) ** 2], atol=1e-7)
    np.testing.assert_array_equal(counted, y)


def test_calibration_gate_loss_counts_every_row_against_its_label() -> None:
    q, g, y = tf.constant([0.25, 0.36]), tf.constant([0.1, -0.2]), tf.constant([1.0, 0.0])
    losses, counted = equations.gate_losses(q, g, y, 0.4, kind="calibration", alpha=0.5)
    np.testing.assert_allclose(losses, [(0.35 - 1) ** 2, 0.16**2], atol=1e-7)
    np.testing.assert_array_equal(counted, [1.0, 1.0])


@pytest.mark.parametrize("kind", ["centre", "calibration"])
def test_fact_6_gate_loss_reaches_the_gate_alone(kind: str) -> None:
    q, g, centre = tf.constant([0.3, 0.6]), tf.constant([0.1, 0.1]), tf.constant(0.2)
    with tf.GradientTape() as tape:
        tape.watch([q, g, centre])
        losses, _ = equations.gate_losses(q, g, tf.ones([2]), centre, kind=kind, alpha=1.0)
    to_q, to_g, to_centre = tape.gradient(losses, [q, g, centre])
    assert to_q is None and to_centre is None and (to_g.numpy() != 0).all()
