"""Drift between two data sets: by feature, from the statistics of their training splits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clsd.features.arrays import Float64s
from clsd.features.schema import NumericFeature
from clsd.pipeline.shared.dataset import STATISTICS_QUANTILES, STATISTICS_TOP, Dataset

#: Least share of a bin: without it, a single new value would give an infinite PSI.
_MIN_SHARE = 1e-4


class FeatureDrift(NamedTuple):
    """The drift of one feature, from the older data set to the newer.

    Args:
        feature: name of the feature.
        psi: population stability index of its training distribution, with missing values as a bin; None if it is unknown.
        missing: shares of training rows without a value, old and new.
        what: the bin or value whose share changed most, with both shares.
    """

    feature: str
    psi: float | None
    missing: tuple[float, float]
    what: str


def psi(old: Float64s, new: Float64s) -> float:
    """Population stability index: sum (new - old) log(new / old) over the shares of the bins, each at least 1e-4.

    It is 0 for equal shares. By convention, a value below 0.1 is stable and one above 0.25 is a shift.
    """
    p, q = np.maximum(old, _MIN_SHARE), np.maximum(new, _MIN_SHARE)
    return float(np.sum((q - p) * np.log(q / p)))


def drift(old: Dataset, new: Dataset) -> list[FeatureDrift]:
    """The drift of each feature of either data set, largest first."""
    before, after = old.statistics["features"], new.statistics["features"]
    features = {feature.name: feature for data in (old, new) for feature in data.schema.features}
    result = []
    for name, feature in features.items():
        if name not in before or name not in after:
            which = "newer" if name in after else "older"
            missing = tuple(_missing(data[name]) if name in data else 1.0 for data in (before, after))
            # A removed feature drifts as far as possible; a new feature has no drift.
            drifted = psi(np.array([1.0, 0.0]), np.array([0.0, 1.0])) if which == "older" else None
            result.append(FeatureDrift(name, drifted, (missing[0], missing[1]), f"only the {which} data set has it"))
            continue
        missing = _missing(before[name]), _missing(after[name])
        shares = _numbers if isinstance(feature, NumericFeature) else _values
        labels, p, q = _with_missing(*(shares(name, old, new) or (["any value"], *_ONE)), missing)
        if len(labels) == 2 and missing[0] == missing[1]:  # no statistics but the share of missing values
            result.append(FeatureDrift(name, None, missing, ""))
            continue
        largest = int(np.argmax(np.abs(q - p)))
        result.append(
            FeatureDrift(name, psi(p, q), missing, f"{labels[largest]}: {p[largest]:.1%} to {q[largest]:.1%}")
        )
    return sorted(result, key=lambda m: (-(m.psi if m.psi is not None else -1.0), m.feature))


#: Shares of a single bin.
_ONE = np.ones(1), np.ones(1)


def _with_missing(
    labels: list[str],
    p: Float64s,
    q: Float64s,
    missing: tuple[float, float],
) -> _Bins:
    """Add a bin for missing values: from shares of rows with a value to shares of all rows."""
    p, q = (np.append(shares * (1.0 - lost), lost) for shares, lost in zip((p, q), missing, strict=True))
    return [*labels, "missing"], p, q


def _missing(described: dict[str, Any]) -> float:
    counts = described["missing"].get("train", {"rows": 0, "of": 0})
    return float(counts["rows"] / counts["of"]) if counts["of"] else 0.0


_Bins = tuple[list[str], Float64s, Float64s]


def _numbers(name: str, old: Dataset, new: Dataset) -> _Bins | None:
    """Shares of the rows between the old data set's quantiles, interpolated on each data set's quantile curve."""
    curves = [data.statistics["features"][name].get("quantiles") for data in (old, new)]
    if None in curves:
        return None
    edges = edges_of(np.asarray(curves[0]))
    shares = [np.diff([0.0, *(_share_below(np.asarray(curve), edge) for edge in edges), 1.0]) for curve in curves]
    return bin_labels(edges), shares[0], shares[1]


class Edge(NamedTuple):
    """An edge between two bins of numbers: the lower bin holds the values below ``value``, and ``value`` itself if ``closed``."""

    value: float
    closed: bool


def edges_of(curve: Float64s) -> list[Edge]:
    """Edges at the quantiles of a distribution, without its least and its largest value.

    A value that several quantiles have in common is frequent. It gets a bin of its own, so that a move to its left or right is
    seen: a constant 5 that becomes a constant 3 changes its bin.
    """
    values, times = np.unique(curve, return_counts=True)
    frequent = dict(zip(values.tolist(), (times > 1).tolist(), strict=True))
    result = []
    for value in np.unique(curve[1:-1]).tolist():
        result += [Edge(value, False)] if frequent[value] else []
        result.append(Edge(value, True))
    return result


def bin_labels(edges: list[Edge], digits: int = 4) -> list[str]:
    """A label for each bin between edges."""
    ends = [Edge(-math.inf, True), *edges, Edge(math.inf, False)]
    return [
        f"{low.value:.{digits}g}" if low.value == high.value else f"{low.value:.{digits}g} to {high.value:.{digits}g}"
        for low, high in pairwise(ends)
    ]


def _share_below(curve: Float64s, edge: Edge) -> float:
    """Share of a distribution below an edge, interpolated on its quantile curve."""
    levels = np.asarray(STATISTICS_QUANTILES)
    same = np.flatnonzero(curve == edge.value)
    if len(same):
        return float(levels[same[-1] if edge.closed else same[0]])
    return float(np.interp(edge.value, curve, levels, left=0.0, right=1.0))


def _values(name: str, old: Dataset, new: Dataset) -> _Bins | None:
    """Shares of the old data set's most frequent values, and of all other values.

    If only a list of the most frequent values is kept, a value that is no longer on the list gets the count of the last one:
    a difference of one row may have pushed it off.
    """
    described = [data.statistics["features"][name] for data in (old, new)]
    if not all(result.get("values") for result in described):
        return None
    top = [value for value, _ in described[0]["top"][:STATISTICS_TOP]]
    shares = []
    for result, data in zip(described, (old, new), strict=True):
        counts = dict(result["top"])
        least = result["top"][-1][1] if len(counts) == STATISTICS_TOP else 0
        if name in data.transform.vocabularies:  # a vocabulary counts all values
            vocabulary = data.transform.vocabularies[name]
            at = vocabulary.index(pa.array(top, pa.string()))
            counts |= {value: int(vocabulary.rows[i]) for value, i in zip(top, at, strict=True) if i >= 0}
            least = 0
        rows = np.array([counts.get(value, least) for value in top], np.float64) / result["values"]
        rows /= max(rows.sum(), 1.0)
        shares.append(np.append(rows, 1.0 - rows.sum()))
    return [*top, "all others"], shares[0], shares[1]
