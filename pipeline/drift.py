"""How far a data set has moved from an older one: by feature, from what both keep of their training splits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.schema import NumericFeature
from pipeline.dataset import Dataset
from pipeline.profile import QUANTILES, TOP

#: Least share of a bin: without it, one value that is new would move a feature by infinity.
_LEAST = 1e-4


class Moved(NamedTuple):
    """One feature, from the older data set to the newer.

    Args:
        feature: its name.
        psi: population stability index of its training distribution; None where it is not known in both.
        missing: shares of training rows without a value, old and new.
        what: the bin or value whose share changed most, with both shares.
    """

    feature: str
    psi: float | None
    missing: tuple[float, float]
    what: str


def psi(old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> float:
    """sum (new - old) log(new / old) over shares of the same bins, each at least 1e-4.

    0 for equal shares; by custom, below 0.1 is called stable and above 0.25 a shift.
    """
    p, q = np.maximum(old, _LEAST), np.maximum(new, _LEAST)
    return float(np.sum((q - p) * np.log(q / p)))


def moved(old: Dataset, new: Dataset) -> list[Moved]:
    """Every feature that both data sets have, the one that moved most first."""
    before, after = old.statistics["features"], new.statistics["features"]
    found = []
    for feature in new.schema.features:
        name = feature.name
        if name not in before:
            continue
        shares = _numbers if isinstance(feature, NumericFeature) else _values
        bins = shares(name, old, new)
        value, what = None, ""
        if bins:
            labels, p, q = bins
            value, at = psi(p, q), int(np.argmax(np.abs(q - p)))
            what = f"{labels[at]}: {p[at]:.1%} to {q[at]:.1%}"
        found.append(Moved(name, value, (_missing(before[name]), _missing(after[name])), what))
    return sorted(found, key=lambda m: (-(m.psi if m.psi is not None else -1.0), m.feature))


def _missing(described: dict[str, Any]) -> float:
    counts = described["missing"].get("train", {"rows": 0, "of": 0})
    return float(counts["rows"] / counts["of"]) if counts["of"] else 0.0


_Bins = tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _numbers(name: str, old: Dataset, new: Dataset) -> _Bins | None:
    """Shares between the old data set's quantiles, by the new one's quantile curve."""
    curves = [data.statistics["features"][name].get("quantiles") for data in (old, new)]
    if None in curves:
        return None
    cuts = np.unique(np.asarray(curves[0][1:-1]))
    shares = []
    for curve in curves:
        below = np.interp(cuts, *_rising(np.asarray(curve)), left=0.0, right=1.0)
        shares.append(np.diff([0.0, *below, 1.0]))
    ends = [-math.inf, *cuts, math.inf]
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(ends)]
    return labels, shares[0], shares[1]


def _rising(curve: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values without repetition and the share of rows at or below each."""
    values, last = np.unique(curve[::-1], return_index=True)
    return values, np.asarray(QUANTILES)[::-1][last]


def _values(name: str, old: Dataset, new: Dataset) -> _Bins | None:
    """Shares of the old data set's most frequent values, and of all others together."""
    described = [data.statistics["features"][name] for data in (old, new)]
    if not all(found.get("values") for found in described):
        return None
    top = [value for value, _ in described[0]["top"][:TOP]]
    shares = []
    for found, data in zip(described, (old, new), strict=True):
        counts = dict(found["top"])
        if name in data.transform.vocabularies:  # which knows what the others' most frequent values are here, too
            vocabulary = data.transform.vocabularies[name]
            at = vocabulary.index(pa.array(top, pa.string()))
            counts |= {value: int(vocabulary.rows[i]) for value, i in zip(top, at, strict=True) if i >= 0}
        rows = np.array([counts.get(value, 0) for value in top], np.float64) / found["values"]
        shares.append(np.append(rows, max(1.0 - rows.sum(), 0.0)))
    return [*top, "all others"], shares[0], shares[1]
