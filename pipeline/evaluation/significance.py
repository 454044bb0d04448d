"""Do two models differ beyond chance? Paired t tests over seeds, Holm's correction, and a bootstrap over users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from clsd.features.arrays import Array
from clsd.models.ranking import gauc_by_user, ndcg_by_user

#: Differences are equal up to rounding if they spread by less than this share of the largest one.
EQUAL = 1e-9


@dataclass(frozen=True)
class Paired:
    """The mean of n paired differences, its interval and its test; an undefined value is None.

    ``sd`` has n - 1 in its denominator. ``low`` and ``high`` bound the t interval of the mean. ``p`` is that of the two-sided
    paired t test for mean 0; ``p_corrected`` is corrected by :func:`holm` within a family of tests.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None = None


@dataclass(frozen=True)
class Interval:
    """The difference of two models on the same rows, with percentile interval and two-sided p over resampled users."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


def paired(differences: Sequence[float] | Array, level: float = 0.95) -> Paired:
    """Mean of paired differences, its interval mean -+ t(n - 1, (1 + level) / 2) sd / sqrt(n), and the paired t test.

    Args:
        differences: ``[n]``, finite: one per pair, such as a seed.
        level: confidence of the interval, within (0, 1).

    Returns:
        Without differences nothing is defined; with one, only the mean is. If all differences are equal up to rounding, sd is 0,
        the interval is the mean itself, and p is None: the test divides by sd.
    """
    d = np.asarray(differences, np.float64)
    n = len(d)
    mean = float(d.mean()) if n else None
    if mean is None or n < 2:
        return Paired(n, mean, None, None, None, None)
    if np.ptp(d) <= EQUAL * np.abs(d).max():
        return Paired(n, mean, 0.0, mean, mean, None)
    sd = float(d.std(ddof=1))
    error = sd / np.sqrt(n)
    half = float(student.ppf((1 + level) / 2, n - 1) * error)
    return Paired(n, mean, sd, mean - half, mean + half, float(2 * student.sf(abs(mean) / error, n - 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction. Of m ascending p values, the j-th becomes max over i <= j of min(1, (m - i + 1) p_i).

    Rejecting at corrected p <= alpha bounds the probability of any false rejection by alpha, however the tests depend on each
    other.

    Args:
        p_values: in [0, 1]; None (no test) stays None and does not count in m.

    Returns:
        the corrected p values, in the given order.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    out: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for step, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - step) * p))
        out[i] = largest
    return out


class SortedAuc:
    """AUC with a weight per user: rows are sorted once, then each call takes O(n).

    (sum over clicks i of w_i (W(below i) + W(not above i)) / 2) / (sum of w over clicks * sum of w over non-clicks), W the summed
    weight of the non-clicks that score below, or not above, click i: ties count half. Whole weights are summed as whole numbers,
    so models that order alike have equal AUCs to the bit.

    Args:
        label: ``[n]`` of 0 and 1.
        score: ``[n]``, finite.
        code: the user of each row, ``[n]`` of 0..users - 1.
    """

    def __init__(self, label: Array, score: Array, code: Array) -> None:
        positive, score = np.asarray(label) > 0.5, np.asarray(score)
        clicks, others = np.flatnonzero(positive), np.flatnonzero(~positive)
        clicks, others = clicks[np.argsort(score[clicks])], others[np.argsort(score[others])]
        self._click, self._other = code[clicks], code[others]
        self._below = np.searchsorted(score[others], score[clicks], "left")
        self._not_above = np.searchsorted(score[others], score[clicks], "right")

    def __call__(self, weight: Array) -> float:
        """The AUC for weights >= 0 of the users, ``[users]``; NaN if the total weight of a class is 0."""
        up_to = np.empty(len(self._other) + 1, weight.dtype)
        up_to[0] = 0
        np.cumsum(weight[self._other], out=up_to[1:])
        clicks = weight[self._click]
        area = 2 * clicks.sum() * up_to[-1]
        return float(clicks @ (up_to[self._below] + up_to[self._not_above]) / area) if area > 0 else float("nan")


def bootstrap_users(
    label: Array,
    score_a: Array,
    score_b: Array,
    user: Array,
    *,
    rounds: int,
    seed: int,
    gain: Array | None = None,
    k: int = 10,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Differences b - a of two models on the same rows, with intervals by a bootstrap over users.

    Each round draws as many users as there are, with replacement, and uses all rows of a user as often as the user was drawn.
    So rows of one user, which are not independent, stay together. low and high are the (1 -+ level) / 2 quantiles of the
    rounds' differences; p is 2 min(share of rounds <= 0, share >= 0), at least 1 / (rounds + 1) and at most 1. Both models see
    the same users. The result does not depend on the order of the rows.

    Args:
        label: ``[n]`` of 0 and 1.
        score_a, score_b: ``[n]`` each, finite.
        user: ``[n]``; equal users are equal values.
        rounds, seed: number of rounds, and seed of the draws.
        gain: each row's gain in NDCG@k, ``[n]``, >= 0 or NaN; None for no NDCG.
        level: confidence of the intervals, within (0, 1).

    Returns:
        an :class:`Interval` for ``auc`` (over all rows), ``gauc`` and, with a gain, ``ndcg``. A metric that is undefined on the
        rows is left out. A round in which a metric is undefined (none of its users was drawn) is ignored for it. low, high and p
        are None if fewer than two users contribute to a metric (for AUC: users with clicks, and users with non-clicks).

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap"; whole users: Field & Welsh 2007, "Bootstrapping Clustered
    Data".
    """
    names, code = np.unique(user, return_inverse=True)
    users = len(names)
    positive = np.asarray(label) > 0.5
    auc_a, auc_b = SortedAuc(label, score_a, code), SortedAuc(label, score_b, code)
    have_part = {"auc": min(len(np.unique(code[positive])), len(np.unique(code[~positive])))}
    differences: dict[str, Callable[[Array], float]] = {"auc": lambda drawn: auc_b(drawn) - auc_a(drawn)}
    who, of_a, rows = gauc_by_user(label, score_a, code)
    differences["gauc"] = _mean_over_users(who, gauc_by_user(label, score_b, code)[1] - of_a, rows)
    have_part["gauc"] = len(who)
    if gain is not None:
        who, of_a = ndcg_by_user(code, score_a, gain, k)
        differences["ndcg"] = _mean_over_users(who, ndcg_by_user(code, score_b, gain, k)[1] - of_a, np.ones(len(who)))
        have_part["ndcg"] = len(who)
    once = np.ones(users, np.int64)
    observed = {name: value for name, of in differences.items() if not np.isnan(value := of(once))}
    result = {name: np.full(rounds, np.nan) for name in observed}
    rng = np.random.default_rng(seed)
    for i in range(rounds if observed else 0):
        drawn = np.bincount(rng.integers(users, size=users), minlength=users)
        for name, values in result.items():
            values[i] = differences[name](drawn)
    return {
        name: _interval(value, result[name], level) if have_part[name] >= 2 else Interval(value, None, None, None)
        for name, value in observed.items()
    }


def _mean_over_users(who: Array, value: Array, weight: Array) -> Callable[[Array], float]:
    """Mean of the users' values, weighted by how often each was drawn; NaN if none was."""

    def of(drawn: Array) -> float:
        w = drawn[who] * weight
        total = w.sum()
        return float(w @ value / total) if total > 0 else float("nan")

    return of


def _interval(difference: float, result: Array, level: float) -> Interval:
    result = result[~np.isnan(result)]
    if len(result) == 0:
        return Interval(difference, None, None, None)
    low, high = np.quantile(result, [(1 - level) / 2, (1 + level) / 2])
    p = 2 * min(np.mean(result <= 0), np.mean(result >= 0))
    return Interval(difference, float(low), float(high), float(np.clip(p, 1 / (len(result) + 1), 1.0)))
