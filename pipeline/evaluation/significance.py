"""Whether two models differ by more than chance: paired t tests over seeds, Holm's correction, and a bootstrap over users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from clsd.models.ranking import gauc_by_user, ndcg_by_user

Array: TypeAlias = npt.NDArray[Any]

EQUAL = 1e-9  # differences that spread by less than this share of the largest are equal but for rounding


@dataclass(frozen=True)
class Paired:
    """What n paired differences say about their mean; what is undefined is None.

    ``sd`` has n - 1 in its denominator. ``low`` and ``high`` bound the t interval of the mean. ``p`` is of the two-sided paired
    t test that the mean is 0, ``p_corrected`` what :func:`holm` makes of it within a family.
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
    """A difference of two models on the same rows, its percentile interval and its two-sided p over resampled users."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


def paired(differences: Sequence[float] | Array, level: float = 0.95) -> Paired:
    """Mean of paired differences, its interval mean -+ t(n - 1, (1 + level) / 2) sd / sqrt(n), and the paired t test.

    Args:
        differences: ``[n]``, finite: one of a pair (a seed, a data set).
        level: confidence of the interval, within (0, 1).

    Returns:
        Without differences nothing is defined; of one, the mean alone. Where all differences are equal (but for rounding) sd is
        0, the interval is the mean itself and p is None: the test divides by sd, and a metric that seeds do not move tells
        nothing about chance.
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
    """Holm's step-down correction: of m p values by rising size, the j-th becomes max over i <= j of min(1, (m - i + 1) p_i).

    Rejecting where the answer is <= alpha keeps the chance of any false rejection at most alpha, however the tests depend on
    one another.

    Args:
        p_values: in [0, 1]; None (no test) stays None and does not count in m.

    Returns:
        The corrected p values, in the order given.

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
    """AUC whose rows weigh what their users weigh: sorted once, then O(n) for any weights.

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
        """The AUC under a weight >= 0 of each user, ``[users]``; NaN where one class weighs nothing."""
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
    """Differences b - a of two models on the same rows, with intervals over users drawn anew with replacement.

    A round draws as many users as there are, and takes all rows of a user as often as it was drawn: rows of one user go together,
    so that they are not counted as if each told something new. low and high are the (1 -+ level) / 2 quantiles of the rounds'
    differences, p is 2 min(share of rounds <= 0, share >= 0), at least 1 / (rounds + 1) and at most 1. The result depends neither
    on the order of the rows nor on what else is compared with the same seed: both models see the same users.

    Args:
        label: ``[n]`` of 0 and 1.
        score_a, score_b: ``[n]`` each, finite.
        user: ``[n]``; equal users are equal values.
        rounds, seed: how often to draw, and where the draws come from.
        gain: what NDCG@k gains by a row, ``[n]``, >= 0 or NaN; None for no NDCG.
        level: confidence of the intervals, within (0, 1).

    Returns:
        ``auc`` (over all rows), ``gauc`` and, with a gain, ``ndcg``, each by :class:`Interval`; a metric that is undefined on the
        rows is left out. Rounds in which a metric is undefined (none of its users was drawn) do not count for it. low, high and
        p are None where fewer than two users have part in a metric (for the AUC: have clicks, or have non-clicks), as one
        user tells nothing about others.

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
    """Mean of the users' values under how often each was drawn; NaN where none was."""

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
