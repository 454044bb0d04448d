"""Ranking metrics compared with scikit-learn, all orders of ties and naive loops. An undefined metric is None, never 0."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from clsd.models.metrics import auc, gauc
from clsd.models.ranking import gauc_by_user, group_spread, intensity_auc, ndcg, ndcg_by_user

SEEDS = range(5)


def _rows(seed: int, n: int = 500, levels: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users of 1 to about 40 rows, scores of few levels (so many are tied), gains that are mostly 0 and now and then NaN."""
    rng = np.random.default_rng(seed)
    user = np.floor(60 * rng.random(n) ** 2).astype(np.int64)
    score = rng.integers(-levels, levels, n).astype(np.float32) / 3
    gain = np.where(rng.random(n) < 0.15, rng.integers(1, 5, n) / 2, 0.0)
    return user, score, np.where(rng.random(n) < 0.05, np.nan, gain)


def _dcg(gains: list[float], k: int) -> float:
    return sum(g / np.log2(2 + place) for place, g in enumerate(gains[:k]))


def _naive_ndcg(score: np.ndarray, gain: np.ndarray, k: int) -> float | None:
    """The mean over every order of the rows that has the scores falling."""
    ideal = _dcg(sorted(gain.tolist(), reverse=True), k)
    if ideal == 0:
        return None
    orders = [o for o in permutations(range(len(score))) if all(score[i] >= score[j] for i, j in pairwise(o))]
    return sum(_dcg([gain[i] for i in o], k) for o in orders) / len(orders) / ideal


def _naive_intensity_auc(score: np.ndarray, intensity: np.ndarray) -> float | None:
    n = range(len(score))
    pairs = [(score[i], score[j]) for i in n for j in n if intensity[i] > intensity[j]]
    return (
        sum(1.0 if more > less else 0.5 if more == less else 0.0 for more, less in pairs) / len(pairs)
        if pairs
        else None
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_ndcg_of_each_user_equals_scikit_learn(seed: int, k: int) -> None:
    user, score, gain = _rows(seed)
    known = np.nan_to_num(gain)
    # scikit-learn takes no list of one row; there NDCG is 1 by definition.
    expected = {
        u: ndcg_score([known[user == u]], [score[user == u]], k=k) if (user == u).sum() > 1 else 1.0
        for u in np.unique(user).tolist()
        if known[user == u].any()
    }
    assert len(expected) < len(np.unique(user)), "the data must hold users without a gain"
    users, values = ndcg_by_user(user, score, gain, k)
    assert users.tolist() == list(expected)
    np.testing.assert_allclose(values, list(expected.values()), atol=1e-12)
    assert ndcg(user, score, gain, k) == (pytest.approx(np.mean(list(expected.values()))), len(expected))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_ndcg_with_ties_is_the_mean_over_every_order_of_the_tied_rows(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    score, gain = rng.integers(0, 3, 6).astype(float), rng.integers(0, 4, 6).astype(float)
    expected = _naive_ndcg(score, gain, k)
    value, users = ndcg(np.zeros(6, np.int64), score, gain, k)
    assert (value, users) == ((None, 0) if expected is None else (pytest.approx(expected, abs=1e-12), 1))


def test_ndcg_by_hand() -> None:
    user, score = np.array(["a", "a", "a", "b", "b"]), np.array([3.0, 2.0, 1.0, 0.0, 0.0])
    gain = np.array([0.0, 2.0, 1.0, 0.0, 1.0])
    users, values = ndcg_by_user(user, score, gain)
    third = 1 / np.log2(3)
    assert users.tolist() == ["a", "b"]
    np.testing.assert_allclose(values, [(2 * third + 0.5) / (2 + third), (1 + third) / 2], rtol=1e-15)


def test_ndcg_beyond_k_counts_nothing_and_ties_across_k_share_what_is_left() -> None:
    user, gain = np.zeros(4, np.int64), np.array([0.0, 0.0, 1.0, 0.0])
    assert ndcg(user, np.array([4.0, 3.0, 2.0, 1.0]), gain, k=2) == (0.0, 1)  # really missed, not undefined
    assert ndcg(user, np.array([4.0, 2.0, 2.0, 2.0]), gain, k=2)[0] == pytest.approx(1 / np.log2(3) / 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_ndcg_depends_neither_on_the_order_of_rows_nor_on_the_names_of_users(seed: int) -> None:
    user, score, gain = _rows(seed)
    order = np.random.default_rng(seed + 100).permutation(len(user))
    names = np.array([f"{u:03}" for u in user])
    users, values = ndcg_by_user(names[order], score[order], gain[order])
    assert users.astype(int).tolist() == ndcg_by_user(user, score, gain)[0].tolist()
    np.testing.assert_array_equal(values, ndcg_by_user(user, score, gain)[1])


def test_ndcg_of_a_right_order_is_exactly_one_and_unknown_gains_count_as_none() -> None:
    user, _, gain = _rows(0)
    _, values = ndcg_by_user(user, np.nan_to_num(gain) + 1e-9 * np.random.default_rng(0).random(len(gain)), gain)
    np.testing.assert_array_equal(values, 1.0)
    assert ndcg(np.zeros(2), np.array([1.0, 2.0]), np.array([1.0, np.nan]))[0] == pytest.approx(1 / np.log2(3))


def test_ndcg_without_a_gain_is_undefined() -> None:
    user = np.array(["a", "a", "b"])
    for gain in (np.zeros(3), np.full(3, np.nan)):
        assert ndcg(user, np.arange(3.0), gain) == (None, 0)
        assert [len(part) for part in ndcg_by_user(user, np.arange(3.0), gain)] == [0, 0]
    assert ndcg(np.array([]), np.array([]), np.array([])) == (None, 0)
    assert ndcg(np.array(["a"]), np.array([0.3]), np.array([0.0])) == (None, 0)


def test_ndcg_of_one_row_is_one() -> None:
    assert ndcg(np.array(["a"]), np.array([0.3]), np.array([2.0])) == (1.0, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_auc_of_each_user_with_both_classes_equals_scikit_learn(seed: int) -> None:
    user, score, gain = _rows(seed)
    label = (gain > 0).astype(np.float32)
    both = [u for u in np.unique(user).tolist() if len(np.unique(label[user == u])) == 2]
    assert len(both) < len(np.unique(user))
    users, aucs, rows = gauc_by_user(label, score, user)
    assert users.tolist() == both
    assert rows.tolist() == [(user == u).sum() for u in both]
    np.testing.assert_allclose(aucs, [roc_auc_score(label[user == u], score[user == u]) for u in both], atol=1e-12)
    assert gauc(label, score, user) == (pytest.approx(np.average(aucs, weights=rows)), len(both))


def test_users_with_an_auc_depend_on_the_labels_alone_and_keep_their_names() -> None:
    label, user = np.array([1, 0, 1, 1, 0, 0, 1]), np.array(["c", "c", "b", "b", "a", "a", "a"])
    for score in (np.arange(7.0), np.zeros(7)):
        users, aucs, rows = gauc_by_user(label, score, user)
        assert (users.tolist(), rows.tolist()) == (["a", "c"], [3, 2])
        assert aucs.tolist() == ([1.0, 0.0] if score.any() else [0.5, 0.5])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_no_user_has_an_auc_without_both_classes(rows: int) -> None:
    label, user = np.array([1, 0, 0])[:rows], np.array(["a", "b", "b"])[:rows]
    assert [len(part) for part in gauc_by_user(label, np.arange(3.0)[:rows], user)] == [0, 0, 0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("levels", [(2, 2), (5, 3), (3, 9), (1000, 1000)])
def test_intensity_auc_equals_counting_pairs(seed: int, levels: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    intensity = rng.integers(0, levels[1], 60) / 7
    score = (rng.integers(0, levels[0], 60) + 2.0 * intensity).round(1)
    assert intensity_auc(score, intensity) == pytest.approx(_naive_intensity_auc(score, intensity), abs=1e-14)
    order = rng.permutation(60)
    assert intensity_auc(score[order], intensity[order]) == intensity_auc(score, intensity)
    assert intensity_auc(-score, intensity) == pytest.approx(1 - intensity_auc(score, intensity), abs=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_intensity_auc_of_two_intensities_is_the_auc(seed: int) -> None:
    _, score, gain = _rows(seed)
    label = (gain > 0).astype(np.float32)
    assert intensity_auc(score, 3 + 2 * label) == pytest.approx(auc(label, score), abs=1e-14)


def test_intensity_auc_of_a_right_and_of_a_reversed_order_is_exact() -> None:
    intensity = np.random.default_rng(0).permutation(1001) // 3
    assert intensity_auc(np.exp(intensity / 100), intensity) == 1.0
    assert intensity_auc(-intensity, intensity) == 0.0
    assert intensity_auc(np.full(1001, 0.2), intensity) == 0.5


@pytest.mark.parametrize("intensity", [[], [2.0], [2.0, 2.0], [0.0] * 9])
def test_intensity_auc_of_one_intensity_is_undefined(intensity: list[float]) -> None:
    assert intensity_auc(np.arange(float(len(intensity))), np.array(intensity)) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_group_spread_equals_a_loop_over_groups(seed: int) -> None:
    group, value, _ = _rows(seed)
    value = value + 5
    means = [value[group == g].mean(dtype=np.float64) for g in set(group.tolist())]
    assert group_spread(value, group) == pytest.approx(max(means) / min(means), rel=1e-12)
    names = np.array([f"group {g}" for g in group])
    order = np.random.default_rng(seed).permutation(len(group))
    assert group_spread(value[order], names[order]) == pytest.approx(group_spread(value, group), rel=1e-12)


def test_group_spread_of_equal_means_is_one() -> None:
    assert group_spread(np.array([1.0, 3.0, 2.0]), np.array(["a", "a", "b"])) == 1.0


@pytest.mark.parametrize(
    ("value", "group"),
    [
        ([], []),
        ([1.0], ["a"]),
        ([1.0, 2.0], ["a", "a"]),
        ([1.0, 0.0], ["a", "b"]),
        ([1.0, -2.0], ["a", "b"]),
        ([1.0, np.nan], ["a", "b"]),
    ],
)
def test_group_spread_is_undefined_without_two_groups_of_positive_mean(value: list[float], group: list[str]) -> None:
    assert group_spread(np.array(value), np.array(group)) is None
