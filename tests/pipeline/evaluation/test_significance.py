"""Tests and intervals compared with SciPy, scikit-learn, loops, results by hand and simulation. Undefined values are None."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score, roc_auc_score

from clsd.models.metrics import auc, gauc
from clsd.models.ranking import ndcg
from clsd.pipeline.evaluation.significance import Interval, Paired, SortedAuc, bootstrap_users, holm, paired

SEEDS = range(5)


def _two_models(
    seed: int, users: int = 60, rows: int = 15, better: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, two models' scores and users; both models see the click as well as each other, but for ``better`` of b."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    label = (rng.random(users * rows) < 0.3).astype(np.float32)
    a, b = (label * (1 + more) + rng.normal(size=len(label)) for more in (0.0, better))
    return label, a.round(1), b.round(1), user


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_paired_equals_scipy(seed: int, n: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.71, 0.01, n), rng.normal(0.70, 0.01, n)
    result, d = paired(a - b, level), a - b
    low, high = stats.t.interval(level, n - 1, loc=d.mean(), scale=stats.sem(d))
    expected = Paired(n, d.mean(), d.std(ddof=1), low, high, stats.ttest_rel(a, b).pvalue)
    assert result.p_corrected is None
    given = {name: value for name, value in asdict(expected).items() if value is not None}
    assert {name: asdict(result)[name] for name in given} == pytest.approx(given, rel=1e-9)
    assert paired(d.tolist(), level) == result


def test_paired_excludes_zero_from_the_interval_exactly_where_p_is_small() -> None:
    for seed in range(40):
        result = paired(np.random.default_rng(seed).normal(0.8, 1, 5))
        assert result.low is not None and result.high is not None and result.p is not None
        assert (result.low > 0 or result.high < 0) == (result.p < 0.05)


def test_paired_of_fewer_than_two_has_no_spread() -> None:
    assert paired([]) == Paired(0, None, None, None, None, None)
    assert paired([0.25]) == Paired(1, 0.25, None, None, None, None)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.3 - 0.2, 0.1, 0.8 - 0.7]])
def test_paired_of_equal_differences_has_no_p(differences: list[float]) -> None:
    mean = float(np.mean(differences))
    assert paired(differences) == Paired(3, mean, 0.0, mean, mean, None)


def test_holm_by_hand() -> None:
    # Rising: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 -> 0.02, 0.03, 0.06, and 0.04 may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_of_the_family_what_has_no_p() -> None:
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_holm_keeps_the_order_of_p_values_raises_them_and_stays_within_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = (rng.random(12) ** 3).round(2)
    corrected = np.array(holm(p.tolist()), float)
    assert (corrected >= p).all() and (corrected <= np.minimum(1, 12 * p)).all()
    order = np.argsort(p)
    assert (np.diff(corrected[order]) >= 0).all()
    shuffled = rng.permutation(12)
    assert holm(p[shuffled].tolist()) == corrected[shuffled].tolist()
    assert holm([p[0]]) == [p[0]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_holm_rejects_as_stepping_down_does(seed: int, alpha: float) -> None:
    p = np.random.default_rng(seed).random(6) ** 4
    rejected: set[int] = set()
    for step, i in enumerate(np.argsort(p).tolist()):
        if p[i] > alpha / (6 - step):
            break
        rejected.add(i)
    assert {i for i, value in enumerate(holm(p.tolist())) if value is not None and value <= alpha} == rejected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("whole", [True, False])
def test_weighted_auc_equals_scikit_learn(seed: int, whole: bool) -> None:
    label, score, _, user = _two_models(seed)
    assert len(np.unique(score)) < len(score) / 4, "the scores must be tied"
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 4, 60) if whole else rng.random(60)
    expected = roc_auc_score(label, score, sample_weight=weight[user])
    assert SortedAuc(label, score, user)(weight) == pytest.approx(expected, abs=1e-12)
    once = SortedAuc(label, score, user)(np.ones(60, np.int64))
    assert once == pytest.approx(auc(label, score), abs=1e-14)


def test_weighted_auc_without_both_classes_is_not_defined() -> None:
    of = SortedAuc(np.array([1, 0, 0]), np.arange(3.0), np.array([0, 1, 1]))
    assert of(np.array([1, 1])) == 0.0  # really reversed
    assert np.isnan(of(np.array([0, 2]))) and np.isnan(of(np.array([2, 0])))
    nothing = np.array([], np.int64)
    assert np.isnan(SortedAuc(nothing, nothing, nothing)(nothing))


@pytest.mark.parametrize("seed", SEEDS)
def test_bootstrap_equals_taking_the_drawn_users_rows_in_a_loop(seed: int) -> None:
    label, a, b, user = _two_models(seed, users=12, rows=8, better=0.3)
    gain = label * np.random.default_rng(seed).integers(1, 4, len(label))
    result = bootstrap_users(label, a, b, user, rounds=40, seed=seed, gain=gain, k=3, level=0.9)
    rng = np.random.default_rng(seed)
    rounds: dict[str, list[float]] = {"auc": [], "gauc": [], "ndcg": []}
    for _ in range(40):
        drawn = rng.integers(12, size=12)
        at = np.concatenate([np.flatnonzero(user == u) for u in drawn])
        copy = np.repeat(np.arange(12), 8)  # a user drawn twice is two users
        rounds["auc"].append(roc_auc_score(label[at], b[at]) - roc_auc_score(label[at], a[at]))
        rounds["gauc"].append(gauc(label[at], b[at], copy)[0] - gauc(label[at], a[at], copy)[0])
        lists = [at[copy == c] for c in range(12) if gain[at][copy == c].any()]
        of_a, of_b = (np.mean([ndcg_score([gain[i]], [score[i]], k=3) for i in lists]) for score in (a, b))
        rounds["ndcg"].append(of_b - of_a)
    observed = {
        "auc": auc(label, b) - auc(label, a),
        "gauc": gauc(label, b, user)[0] - gauc(label, a, user)[0],
        "ndcg": ndcg(user, b, gain, 3)[0] - ndcg(user, a, gain, 3)[0],
    }
    assert list(result) == list(rounds)
    for name, values in rounds.items():
        low, high = np.quantile(values, [0.05, 0.95])
        p = 2 * min(np.mean(np.array(values) <= 0), np.mean(np.array(values) >= 0))
        expected = Interval(observed[name], low, high, min(max(p, 1 / 41), 1.0))
        assert asdict(result[name]) == pytest.approx(asdict(expected), abs=1e-12)


def test_models_that_order_alike_do_not_differ() -> None:
    label, a, _, user = _two_models(0)
    result = bootstrap_users(label, a, 3 * a - 1, user, rounds=50, seed=0, gain=label)
    assert result == dict.fromkeys(("auc", "gauc", "ndcg"), Interval(0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clearly_better_model_has_its_interval_above_zero(seed: int) -> None:
    label, a, b, user = _two_models(seed, better=2.0)
    there = bootstrap_users(label, a, b, user, rounds=200, seed=seed, gain=label)
    back = bootstrap_users(label, b, a, user, rounds=200, seed=seed, gain=label)
    for name, result in there.items():
        assert result.low is not None and result.high is not None
        assert 0 < result.low < result.difference < result.high
        assert result.p == 1 / 201
        mirrored = Interval(-back[name].difference, -back[name].high, -back[name].low, back[name].p)
        assert asdict(result) == pytest.approx(asdict(mirrored), abs=1e-12)


def test_intervals_of_equal_models_hold_zero_about_as_often_as_they_say() -> None:
    held = np.zeros(3)
    for seed in range(120):
        label, a, b, user = _two_models(seed, users=50, rows=10)
        result = bootstrap_users(label, a, b, user, rounds=200, seed=seed, gain=label, k=3, level=0.8)
        held += [i.low <= 0 <= i.high for i in result.values()]
    # 0.8 -+ 3 standard deviations of 120 draws, and somewhat less for the percentile interval of 50 users.
    assert (held / 120 > 0.67).all() and (held / 120 < 0.91).all()


def test_users_and_not_rows_are_drawn() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(20), 200)
    label = (rng.random(len(user)) < 0.5).astype(np.float32)
    a = rng.normal(size=len(user))
    b = a + 4 * label * rng.normal(size=20)[user]  # b helps some users and harms others, all rows of a user alike
    by_user = bootstrap_users(label, a, b, user, rounds=200, seed=0)["auc"]
    by_row = bootstrap_users(label, a, b, np.arange(len(user)), rounds=200, seed=0)["auc"]
    assert by_user.difference == by_row.difference
    assert by_user.high - by_user.low > 4 * (by_row.high - by_row.low)


def test_the_seed_alone_decides_not_the_order_or_the_kind_of_rows() -> None:
    label, a, b, user = _two_models(3, better=0.1)
    first = bootstrap_users(label, a, b, user, rounds=60, seed=7, gain=label)
    assert bootstrap_users(label, a, b, user, rounds=60, seed=7, gain=label) == first
    assert bootstrap_users(label, a, b, user, rounds=60, seed=8, gain=label) != first
    order = np.random.default_rng(0).permutation(len(label))
    names = np.array([f"{u:03}" for u in user])[order]
    moved = bootstrap_users(label[order], a[order], b[order], names, rounds=60, seed=7, gain=label[order])
    for name, result in first.items():
        assert asdict(moved[name]) == pytest.approx(asdict(result), abs=1e-12)
    without = bootstrap_users(label, a, b, user, rounds=60, seed=7)
    assert without == {name: first[name] for name in ("auc", "gauc")}


def test_one_user_has_a_difference_but_no_interval() -> None:
    label, a, b, user = _two_models(1, users=1, rows=30, better=1.0)
    result = bootstrap_users(label, a, b, user, rounds=20, seed=0, gain=label)
    expected = pytest.approx(auc(label, b) - auc(label, a))
    assert result["auc"] == Interval(expected, None, None, None) and result["gauc"] == result["auc"]
    assert (result["ndcg"].low, result["ndcg"].high, result["ndcg"].p) == (None, None, None)


def test_users_without_both_classes_count_for_the_auc_alone() -> None:
    label, a, b, user = _two_models(2, users=40, better=0.5)
    label[user >= 20] = 0.0
    result = bootstrap_users(label, a, b, user, rounds=100, seed=0)
    some = user < 20
    assert result["gauc"].difference == pytest.approx(
        gauc(label[some], b[some], user[some])[0] - gauc(label, a, user)[0]
    )
    assert result["auc"].difference == pytest.approx(auc(label, b) - auc(label, a))
    assert all(value is not None for value in asdict(result["gauc"]).values())


def test_rounds_in_which_no_user_that_counts_was_drawn_are_left_out() -> None:
    label, a, b, user = _two_models(4, users=30, better=0.5)
    label[user >= 2] = 0.0  # 2 of 30 users have clicks: about every eighth round has none
    assert {len(np.unique(label[user == u])) for u in (0, 1)} == {2}
    result = bootstrap_users(label, a, b, user, rounds=200, seed=0, gain=label)
    for interval in result.values():
        assert np.isfinite(list(asdict(interval).values())).all()
        assert interval.low <= interval.difference <= interval.high


def test_where_one_user_alone_counts_there_is_no_interval() -> None:
    label, a, b, user = _two_models(4, users=30)
    label[user >= 1] = 0.0
    result = bootstrap_users(label, a, b, user, rounds=20, seed=0, gain=label)
    assert [(i.low, i.high, i.p) for i in result.values()] == [(None, None, None)] * 3


def test_metrics_that_are_undefined_on_the_rows_are_absent() -> None:
    label, a, b, user = _two_models(0)
    nothing = np.zeros_like(label)
    assert bootstrap_users(nothing, a, b, user, rounds=5, seed=0, gain=nothing) == {}
    assert list(bootstrap_users(nothing, a, b, user, rounds=5, seed=0, gain=a - a.min())) == ["ndcg"]
    assert list(bootstrap_users(user % 2, a, b, user, rounds=5, seed=0, gain=nothing)) == ["auc"]
    none = np.array([])
    assert bootstrap_users(none, none, none, none, rounds=5, seed=0, gain=none) == {}
