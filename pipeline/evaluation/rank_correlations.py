"""Rank correlations of the clicks' confidence with their held-out intensity."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from clsd.features.arrays import Array


def spearman(x: Array, y: Array) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None for fewer than 3 rows or a constant input."""
    return _pearson(rankdata(x), rankdata(y)) if len(x) >= 3 else None


def within_user_spearman(x: Array, y: Array, user: Array) -> tuple[float | None, int]:
    """Mean over users of Spearman's correlation within the user's rows, weighted by the number of rows.

    Users with fewer than 3 rows, or with a constant x or y, are left out.

    Returns:
        (the mean, number of users in it); (None, 0) if there is no such user.
    """
    order = np.argsort(user, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(user[order])) + 1) if len(order) else []
    result = [(value, len(part)) for part in parts if (value := spearman(x[part], y[part])) is not None]
    if not result:
        return None, 0
    values, rows = np.array(result).T
    return float(np.average(values, weights=rows)), len(result)


def partial_spearman(x: Array, y: Array, given: Array) -> float | None:
    """Partial Spearman correlation of x and y, controlled for the ranks of ``given``.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz**2) (1 - r_yz**2)); None if a correlation or the root is undefined.
    """
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    if xy is None or xz is None or yz is None:
        return None
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(left)) if left > 1e-12 else None


def rank_correlations(
    confidence: Array, intensity: Array, user: Array | None, popularity: Array | None
) -> dict[str, Any]:
    """The three correlations over the clicks with a known intensity.

    Args:
        confidence, intensity: ``[clicks]``.
        user: ``[clicks]`` or None.
        popularity: training clicks of each row's item, ``[clicks]``, or None.

    Returns:
        clicks, spearman, within_user, users, given_popularity; an undefined value is listed in ``undefined`` with the reason.
    """
    out: dict[str, Any] = {"clicks": len(confidence)}
    undefined: dict[str, str] = {}

    def put(name: str, value: float | None, reason: str) -> None:
        if value is None:
            undefined[name] = reason
        else:
            out[name] = value

    put("spearman", spearman(confidence, intensity), "fewer than 3 clicks, or a constant confidence or intensity")
    if user is None:
        undefined["within_user"] = "the log names no users"
    else:
        value, users = within_user_spearman(confidence, intensity, user)
        put("within_user", value, "no user has 3 clicks with differing confidence and intensity")
        out["users"] = users
    if popularity is None:
        undefined["given_popularity"] = "no item column is known (preprocess.negatives.item or evaluate.item)"
    else:
        put("given_popularity", partial_spearman(confidence, intensity, popularity), "a correlation is undefined")
    return {**out, "undefined": undefined}


def _pearson(x: Array, y: Array) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y / scale) if scale > 0 else None
