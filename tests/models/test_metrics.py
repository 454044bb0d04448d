"""Metrics compared with scikit-learn and naive loops. An undefined metric is absent, with a reason, never 0."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from clsd.models.metrics import (
    NO_ROWS,
    ONE_CLASS,
    auc,
    calibration_curve,
    expected_calibration_error,
    gauc,
    log_loss,
    measure,
    measure_groups,
    sigmoid,
)

SEEDS = range(5)


def _rows(seed: int, n: int = 600, levels: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits of few levels (so most are tied), and users of 1 to about 40 rows, some with one class."""
    rng = np.random.default_rng(seed)
    logit = rng.integers(-levels, levels, n) / 3
    label = (rng.random(n) < sigmoid(logit - 0.7)).astype(np.float32)
    user = np.floor(60 * rng.random(n) ** 2).astype(np.int64)
    return label, logit.astype(np.float32), user


def _naive_auc(label: np.ndarray, score: np.ndarray) -> float | None:
    pairs = [
        1.0 if one > zero else 0.5 if one == zero else 0.0 for one in score[label == 1] for zero in score[label == 0]
    ]
    return sum(pairs) / len(pairs) if pairs else None


def _naive_gauc(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> tuple[float, int]:
    total, rows, users = 0.0, 0, 0
    for u in set(user.tolist()):
        area = _naive_auc(label[user == u], score[user == u])
        if area is not None:
            n = int((user == u).sum())
            total, rows, users = total + n * area, rows + n, users + 1
    return total / rows, users


@pytest.mark.parametrize("seed", SEEDS)
def test_auc_equals_scikit_learn_and_counting_pairs(seed: int) -> None:
    label, logit, _ = _rows(seed)
    assert auc(label, logit) == pytest.approx(roc_auc_score(label, logit), abs=1e-12)
    assert auc(label, logit) == pytest.approx(_naive_auc(label, logit), abs=1e-12)


def test_auc_of_constant_scores_is_a_half() -> None:
    assert auc(np.array([0, 1, 1, 0, 1]), np.full(5, 0.3)) == 0.5


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], []])
def test_auc_of_one_class_is_undefined(label: list[int]) -> None:
    assert auc(np.array(label), np.arange(len(label))) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_gauc_equals_a_loop_over_users(seed: int) -> None:
    label, logit, user = _rows(seed)
    by_hand, users = _naive_gauc(label, logit, user)
    assert users < len(np.unique(user)), "the data must hold users with one class"
    assert gauc(label, logit, user) == (pytest.approx(by_hand, abs=1e-12), users)


def test_gauc_does_not_depend_on_the_order_or_the_names_of_users() -> None:
    label, logit, user = _rows(0)
    order = np.random.default_rng(1).permutation(len(label))
    names = np.array([f"user-{u}" for u in user])[order]
    expected, users = gauc(label, logit, user)
    assert gauc(label[order], logit[order], names) == (pytest.approx(expected, abs=1e-12), users)


def test_gauc_of_one_user_is_the_auc() -> None:
    label, logit, _ = _rows(1)
    assert gauc(label, logit, np.zeros(len(label), np.int64)) == (pytest.approx(auc(label, logit), abs=1e-12), 1)


def test_gauc_ignores_a_shift_between_users() -> None:
    label, logit, user = _rows(2)
    assert gauc(label, logit + 100.0 * user, user)[0] == pytest.approx(gauc(label, logit, user)[0], abs=1e-12)


def test_gauc_without_a_user_of_both_classes_is_undefined() -> None:
    assert gauc(np.array([1, 1, 0, 0]), np.arange(4.0), np.array(["a", "a", "b", "c"])) == (None, 0)
    assert gauc(np.array([]), np.array([]), np.array([])) == (None, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_log_loss_equals_scikit_learn(seed: int) -> None:
    label, logit, _ = _rows(seed)
    p = sigmoid(logit)
    assert log_loss(label, logit) == pytest.approx(sk_log_loss(label, np.column_stack([1 - p, p])), abs=1e-12)


def test_log_loss_of_extreme_logits_is_exact() -> None:
    assert log_loss(np.array([1, 0, 1]), np.array([-800.0, 0.0, 800.0])) == pytest.approx((800 + np.log(2)) / 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [4, 15, 601])
def test_calibration_curve_equals_a_loop_over_equally_filled_bins(seed: int, n: int) -> None:
    label, _, _ = _rows(seed, n)
    p = np.random.default_rng(seed).permutation(n) / n
    bins: dict[int, list[tuple[float, float]]] = {}
    for rank, row in enumerate(sorted(zip(p.tolist(), label.tolist(), strict=True))):
        bins.setdefault(int((rank + 0.5) * 15 / n), []).append(row)
    sizes = [len(part) for part in bins.values()]
    assert max(sizes) - min(sizes) <= 1
    expected = [
        [sum(q for q, _ in part) / len(part), sum(y for _, y in part) / len(part), len(part)] for part in bins.values()
    ]
    curve = calibration_curve(label, p)
    np.testing.assert_allclose(curve, expected, atol=1e-12)
    by_hand = sum(size * abs(q - y) for q, y, size in expected) / n
    assert expected_calibration_error(label, p) == pytest.approx(by_hand, abs=1e-12)


def test_equal_predictions_share_a_bin_so_the_order_of_rows_does_not_matter() -> None:
    label = np.array([0, 1] * 50)
    assert expected_calibration_error(np.sort(label), np.full(100, 0.5)) == 0.0  # a right constant, clicks last
    p = np.repeat([0.1, 0.4, 0.9], [50, 30, 20])
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(calibration_curve(label, p), calibration_curve(label[order], p[order]), atol=1e-12)
    assert calibration_curve(label, p)[:, 2].tolist() == [50, 30, 20]


def test_ece_of_wholly_wrong_predictions_is_one_and_of_right_ones_zero() -> None:
    label = np.array([0, 1] * 50)
    assert expected_calibration_error(label, 1.0 - label, bins=10) == 1.0
    assert expected_calibration_error(label, label.astype(float), bins=10) == 0.0


def test_sigmoid_neither_overflows_nor_warns() -> None:
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])


def test_measure_gives_every_metric_of_ordinary_rows() -> None:
    label, logit, user = _rows(3)
    measured = measure(label, logit, user)
    p = sigmoid(logit)
    expected = {
        "rows": len(label),
        "clicks": label.sum(),
        "ctr": label.mean(),
        "predicted_ctr": p.mean(),
        "predicted_over_real": p.mean() / label.mean(),
        "log_loss": sk_log_loss(label, np.column_stack([1 - p, p])),
        "ece": expected_calibration_error(label, p),
        "auc": roc_auc_score(label, logit),
        "gauc": _naive_gauc(label, logit, user)[0],
        "gauc_users": _naive_gauc(label, logit, user)[1],
    }
    assert measured.values == pytest.approx(expected, abs=1e-7)
    assert measured.undefined == {}


def test_measure_of_no_rows_has_counts_alone() -> None:
    measured = measure(np.array([]), np.array([]), np.array([]))
    assert measured.values == {"rows": 0, "clicks": 0}
    assert set(measured.undefined.values()) == {NO_ROWS}
    assert set(measured.undefined) == {"ctr", "predicted_ctr", "predicted_over_real", "log_loss", "ece", "auc", "gauc"}


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_measure_of_predictions_that_are_not_finite_has_no_prediction_metric(broken: float) -> None:
    label, logit, user = _rows(4)
    logit[7] = broken
    measured = measure(label, logit, user)
    assert set(measured.values) == {"rows", "clicks", "ctr"}
    assert set(measured.undefined) == {"predicted_ctr", "predicted_over_real", "log_loss", "ece", "auc", "gauc"}
    assert set(measured.undefined.values()) == {"some predictions are not finite"}


def test_measure_without_clicks_lacks_what_clicks_define() -> None:
    _, logit, user = _rows(0)
    measured = measure(np.zeros(len(logit)), logit, user)
    assert measured.undefined == {
        "predicted_over_real": "no clicks",
        "auc": ONE_CLASS,
        "gauc": "no user has both clicks and non-clicks",
    }
    assert not {"predicted_over_real", "auc", "gauc"} & set(measured.values)
    assert measured.values["ctr"] == 0 and measured.values["gauc_users"] == 0


def test_measure_of_clicks_alone_lacks_the_areas() -> None:
    _, logit, user = _rows(0)
    measured = measure(np.ones(len(logit)), logit, user)
    assert set(measured.undefined) == {"auc", "gauc"}
    assert measured.values["predicted_over_real"] == pytest.approx(sigmoid(logit).mean())


def test_measure_without_users_says_so() -> None:
    label, logit, _ = _rows(0)
    measured = measure(label, logit)
    assert measured.undefined == {"gauc": "the log names no users"}
    assert "gauc" not in measured.values and "gauc_users" not in measured.values


def test_no_metric_is_both_defined_and_undefined() -> None:
    label, logit, user = _rows(1)
    for y in (label, np.zeros_like(label), np.ones_like(label)):
        measured = measure(y, logit, user)
        assert not set(measured.values) & set(measured.undefined)
        assert np.isfinite(list(measured.values.values())).all()


def test_measure_groups_measures_each_group_alone_and_names_it() -> None:
    label, logit, user = _rows(2)
    group = np.random.default_rng(0).choice([2, 5, 9], len(label))
    measured = measure_groups(group, {2: "young", 5: "old"}, label, logit, user)
    assert list(measured) == ["young", "old", "9"]
    for g, name in ((2, "young"), (5, "old"), (9, "9")):
        at = group == g
        assert measured[name].values["auc"] == pytest.approx(roc_auc_score(label[at], logit[at]), abs=1e-12)
        expected = _naive_gauc(label[at], logit[at], user[at])
        assert (measured[name].values["gauc"], measured[name].values["gauc_users"]) == pytest.approx(expected)


def test_measure_groups_of_a_group_with_one_class_keeps_the_reason() -> None:
    label, group = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])
    measured = measure_groups(group, {}, label, np.arange(4.0), None)
    assert measured["0"].values["auc"] == 0.0  # really reversed, not undefined
    assert measured["1"].undefined["auc"] == ONE_CLASS
