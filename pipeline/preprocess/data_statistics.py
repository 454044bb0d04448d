"""The data statistics, ``statistics.json``: rows and CTR by day; missing values and distribution of each feature.

They are counted in the same pass as the transform (:mod:`clsd.pipeline.preprocess.counting`). Missing values are counted in
every split, distributions in the training split.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import SPLITS
from clsd.pipeline.shared.dataset import STATISTICS_TOP

#: Kinds of partial results; a feature with values has one of them.
_COUNTED = ("vocabulary", "tokens", "sampled")


def values(counts: pa.Table) -> dict[str, Any]:
    """Distribution of counted values: number of distinct values, number of values, and the most frequent ones."""
    if not counts.num_rows:
        return {}
    counts = counts.append_column("bytes", pc.cast(counts["token"], pa.binary()))
    order = pc.select_k_unstable(counts, STATISTICS_TOP, sort_keys=[("rows", "descending"), ("bytes", "ascending")])
    top = counts.take(order).select(["token", "rows"]).to_pylist()
    total = pc.sum(counts["rows"]).as_py()
    return {"distinct": counts.num_rows, "values": total, "top": [(row["token"], row["rows"]) for row in top]}


def sampled(tokens: npt.NDArray[np.object_]) -> dict[str, Any]:
    """Distribution of a sample of values: its size and the most frequent values."""
    result = Counter(tokens.tolist())
    top = sorted(result.items(), key=lambda item: (-item[1], item[0].encode()))[:STATISTICS_TOP]
    return {"values": len(tokens), "top": top, "sampled": True} if len(tokens) else {}


def describe(schema: Schema, learnt: dict[str, Any]) -> dict[str, Any]:
    """The content of ``statistics.json``.

    Args:
        schema: the schema.
        learnt: results of :func:`clsd.pipeline.preprocess.learning.learn` by key.

    Returns:
        days: by split, (day, rows, clicks) in order; features: by name, missing and rows by split, and of the training split
        distinct values and the most frequent ones, or least, largest and quantiles. Of a feature whose values are hashed only a
        sample is looked at: it may have more values than could be counted.
    """
    days: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for key, (rows, clicks) in learnt.get("days", {}).items():
        split, day = map(int, key.split())
        if split >= 0:
            days[SPLITS[split]].append((str(np.datetime64(day, "D")), rows, clicks))
    missing = learnt.get("missing", {})
    features = {}
    for feature in schema.features:
        name = feature.name
        lacks = {split: missing[key] for split in SPLITS if (key := f"{split} {name}") in missing}
        known = [learnt[key] for kind in _COUNTED if (key := f"{kind}:{name}") in learnt]
        spread = {key: value for result in known for key, value in result.items() if key != "entry"}
        if ends := learnt.get(f"range:{name}"):
            low, high = ends
            spread = {"min": low, "max": high, "quantiles": [low, *learnt[f"spread:{name}"][1:-1], high]}
        features[name] = {
            "kind": feature.kind,
            "missing": {split: {"rows": n, "of": of} for split, (n, of) in lacks.items()},
            **spread,
        }
    return {"days": {name: sorted(result) for name, result in days.items() if result}, "features": features}
