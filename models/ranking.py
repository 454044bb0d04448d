"""Ranking metrics, exact, in NumPy and SciPy: within users, by the clicks' intensity, and between groups."""

from __future__ import annotations

import numpy as np
from scipy.stats import kendalltau

from clsd.features.arrays import Array


def gauc_by_user(label: Array, score: Array, user: Array) -> tuple[Array, Array, Array]:
    """AUC of each user with both classes; ties count half. :func:`clsd.models.metrics.gauc` averages them.

    The users depend on the labels alone, so results of two models on the same rows can be compared.

    Args:
        label, score, user: ``[n]`` each, label of 0 and 1; equal users are equal values.

    Returns:
        (users, rising; AUCs, float64; rows, int64), ``[users with both classes]`` each.

    Source: Zhu et al. 2017, "Optimized Cost per Click in Taobao Display Advertising".
    """
    users, code = np.unique(user, return_inverse=True)
    order = np.lexsort((score, code))
    code, positive = code[order], np.asarray(label)[order] > 0.5
    n = np.bincount(code)
    n1 = np.bincount(code, weights=positive)
    n0 = n - n1
    # Mid-ranks within the user: rows of one user with equal scores share the mean of their ranks.
    run, length = _runs(code, np.asarray(score)[order])
    rank = (np.cumsum(length) - length + (length + 1) / 2)[run] - (np.cumsum(n) - n)[code]
    rank_sum = np.bincount(code, weights=rank * positive)
    both = (n1 > 0) & (n0 > 0)
    aucs = (rank_sum[both] - n1[both] * (n1[both] + 1) / 2) / (n1[both] * n0[both])
    return users[both], aucs, n[both]


def ndcg_by_user(user: Array, score: Array, gain: Array, k: int = 10) -> tuple[Array, Array]:
    """NDCG@k of each user that has a gain: DCG@k of the rows by falling score / DCG@k of the rows by falling gain.

    DCG@k = sum over ranks r = 1..k of gain / log2(1 + r). Rows with equal scores each get the mean discount of the ranks
    they share, so the order of rows does not matter. Users whose gains are all 0 have no NDCG; who they are depends on
    the gains alone.

    Args:
        user: ``[n]``; equal users are equal values.
        score: ``[n]``, finite.
        gain: ``[n]``, >= 0; NaN (unknown) counts as 0.
        k: number of ranks that count, >= 1.

    Returns:
        (users, rising; NDCGs, float64 in [0, 1]), ``[users with a gain]`` each.

    Source: Järvelin & Kekäläinen 2002, "Cumulated Gain-Based Evaluation of IR Techniques"; ties: McSherry & Najork 2008,
    "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores".
    """
    users, code = np.unique(user, return_inverse=True)
    fall = -np.asarray(score, np.float64)
    g = np.asarray(gain, np.float64)
    g = np.where(np.isnan(g), 0.0, g)
    rows = np.bincount(code)
    position = np.arange(len(code)) - np.repeat(np.cumsum(rows) - rows, rows)
    discount = np.where(position < k, 1 / np.log2(position + 2.0), 0.0)
    # Both orders go user by user, so one array of discounts serves both. Ordering ties by gain makes sums equal to the bit.
    order = np.lexsort((-g, fall, code))
    run, length = _runs(code[order], fall[order])
    shared = (np.bincount(run, weights=discount) / length)[run]
    by_user = code[order]
    dcg = np.bincount(by_user, weights=g[order] * shared)
    ideal = np.bincount(by_user, weights=g[np.lexsort((-g, code))] * discount)
    some = ideal > 0
    return users[some], dcg[some] / ideal[some]


def ndcg(user: Array, score: Array, gain: Array, k: int = 10) -> tuple[float | None, int]:
    """Mean over users of :func:`ndcg_by_user`; every user with a gain counts equally.

    Returns:
        (mean, number of users that count); (None, 0) if no user has a gain.
    """
    _, values = ndcg_by_user(user, score, gain, k)
    return (float(values.mean()), len(values)) if len(values) else (None, 0)


def intensity_auc(score: Array, intensity: Array) -> float | None:
    """Probability that of two rows with different intensity the more intense one scores higher; ties count half.

    (1 + (concordant - discordant) / pairs of different intensity) / 2, that is (1 + Somers' d) / 2. Concordant - discordant
    comes from Kendall's tau-b in O(n log n): tau-b = (concordant - discordant) / sqrt(pairs of different score * pairs of
    different intensity). With two distinct intensities it is the AUC.

    Args:
        score: ``[clicks]``, finite.
        intensity: ``[clicks]``, known for all.

    Returns:
        None for fewer than 2 rows or equal intensities; 0.5 for equal scores.

    Source: Somers 1962, "A New Asymmetric Measure of Association for Ordinal Variables".
    """
    differ = _pairs_that_differ(intensity)
    apart = _pairs_that_differ(score)
    if differ == 0:
        return None
    if apart == 0:
        return 0.5
    tau = kendalltau(score, intensity, method="asymptotic").statistic
    surplus = round(float(tau * np.sqrt(float(apart)) * np.sqrt(float(differ))))  # a count of pairs, whole again
    return float((1 + surplus / differ) / 2)


def group_spread(value: Array, group: Array) -> float | None:
    """Largest group mean / smallest group mean; 1 if groups do not differ.

    Args:
        value: ``[n]``.
        group: ``[n]``; equal groups are equal values.

    Returns:
        None for fewer than 2 groups, or if a mean is not above 0.
    """
    groups, code = np.unique(group, return_inverse=True)
    if len(groups) < 2:
        return None
    mean = np.bincount(code, weights=np.asarray(value, np.float64)) / np.bincount(code)
    return float(mean.max() / mean.min()) if (mean > 0).all() else None


def _runs(code: Array, value: Array) -> tuple[Array, Array]:
    """Runs of rows equal in both: (run of each row, ``[n]``; length of each run, ``[runs]``)."""
    new = np.ones(len(code), bool)
    new[1:] = (code[1:] != code[:-1]) | (value[1:] != value[:-1])
    return np.cumsum(new) - 1, np.diff(np.append(np.flatnonzero(new), len(code)))


def _pairs_that_differ(x: Array) -> int:
    _, count = np.unique(x, return_counts=True)
    n = len(x)
    return int(n * (n - 1) // 2 - (count * (count - 1) // 2).sum())
