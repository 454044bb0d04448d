"""Metrics of a CTR model, exact, in NumPy. An undefined metric is absent and has a reason; it is never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from clsd.features.arrays import Array
from clsd.models.ranking import gauc_by_user

ONE_CLASS = "all labels are equal"
NO_ROWS = "no rows"


class Measured(NamedTuple):
    """Metrics by name, and the reasons of undefined ones."""

    values: dict[str, float]
    undefined: dict[str, str]


def auc(label: Array, score: Array) -> float | None:
    """Probability that a click scores above a non-click; ties count half. None if all labels are equal.

    By ranks (Mann & Whitney 1947): (sum of the clicks' mid-ranks - n1 (n1 + 1) / 2) / (n1 n0).

    Args:
        label: ``[n]`` of 0 and 1.
        score: ``[n]``.

    >>> auc(np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 0.5]))
    0.875
    """
    positive = np.asarray(label) > 0.5
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if n1 == 0 or n0 == 0:
        return None
    ranks = rankdata(np.asarray(score))
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def gauc(label: Array, score: Array, user: Array) -> tuple[float | None, int]:
    """Mean of the users' AUCs, weighted by the users' rows; users without both classes do not count.

    Args:
        label, score, user: ``[n]`` each; equal users are equal values.

    Returns:
        (GAUC, number of users that count); (None, 0) without any.

    Source: Zhu et al. 2017, "Optimized Cost per Click in Taobao Display Advertising".
    """
    _, aucs, rows = gauc_by_user(label, score, user)
    return (float(np.average(aucs, weights=rows)), len(aucs)) if len(aucs) else (None, 0)


def log_loss(label: Array, logit: Array) -> float:
    """Mean of -(y log p + (1 - y) log(1 - p)) from the logits, in float64; NaN without rows."""
    s, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    return float(np.mean(np.logaddexp(0.0, s) - y * s)) if len(s) else float("nan")


def expected_calibration_error(label: Array, probability: Array, bins: int = 15) -> float:
    """Mean of |real CTR - predicted CTR| over equally filled bins of the prediction, weighted by rows."""
    curve = calibration_curve(label, probability, bins)
    return float(np.average(np.abs(curve[:, 1] - curve[:, 0]), weights=curve[:, 2]))


def calibration_curve(label: Array, probability: Array, bins: int = 15) -> Array:
    """Rows of (mean prediction, share of clicks, rows) for equally filled bins by rising prediction.

    Equal predictions share a bin, so the curve does not depend on the order of rows. Empty bins are omitted.

    Returns:
        float64 ``[<= bins, 3]``.
    """
    n = len(label)
    y, p = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    where = np.minimum(((rankdata(p) - 0.5) * bins / max(n, 1)).astype(np.int64), bins - 1)
    rows = np.bincount(where, minlength=bins)
    sums = np.stack([np.bincount(where, weights=values, minlength=bins) for values in (p, y)], axis=1)
    filled = rows > 0
    return np.column_stack([sums[filled] / rows[filled, None], rows[filled]])


def measure(label: Array, logit: Array, user: Array | None = None) -> Measured:
    """All metrics of some rows.

    Args:
        label: ``[n]`` of 0 and 1.
        logit: ``[n]``; NaN and infinities make every metric undefined.
        user: ``[n]``, or None if the log names no users.

    Returns:
        rows, clicks, ctr, predicted_ctr, predicted_over_real, log_loss, ece, auc, gauc, gauc_users.
    """
    label = np.asarray(label, np.float64)
    n = len(label)
    values: dict[str, float] = {"rows": n, "clicks": int(np.sum(label))}
    undefined: dict[str, str] = {}
    names = ("ctr", "predicted_ctr", "predicted_over_real", "log_loss", "ece", "auc", "gauc")
    if n == 0:
        return Measured(values, dict.fromkeys(names, NO_ROWS))
    values["ctr"] = float(np.mean(label))
    if not np.isfinite(logit).all():
        return Measured(values, dict.fromkeys(names[1:], "some predictions are not finite"))
    p = sigmoid(logit)
    values["predicted_ctr"] = float(np.mean(p))
    if values["clicks"]:
        values["predicted_over_real"] = values["predicted_ctr"] / values["ctr"]
    else:
        undefined["predicted_over_real"] = "no clicks"
    values["log_loss"] = log_loss(label, logit)
    values["ece"] = expected_calibration_error(label, p)
    area = auc(label, logit)
    if area is None:
        undefined["auc"] = ONE_CLASS
    else:
        values["auc"] = area
    if user is None:
        undefined["gauc"] = "the log names no users"
        return Measured(values, undefined)
    grouped, users = gauc(label, logit, user)
    values["gauc_users"] = users
    if grouped is None:
        undefined["gauc"] = "no user has both clicks and non-clicks"
    else:
        values["gauc"] = grouped
    return Measured(values, undefined)


def measure_groups(
    groups: Array, names: Mapping[int, str], label: Array, logit: Array, user: Array | None
) -> dict[str, Measured]:
    """:func:`measure` of each group that has rows, by the group's name, in the order of the ids."""
    return {
        names.get(int(g), str(g)): measure(
            label[groups == g], logit[groups == g], None if user is None else user[groups == g]
        )
        for g in np.unique(groups)
    }


def sigmoid(logit: Array) -> Array:
    """1 / (1 + exp(-s)) in float64, without overflow."""
    s = np.asarray(logit, np.float64)
    return np.asarray(np.exp(-np.logaddexp(0.0, -s)))
