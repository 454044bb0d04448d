"""What the rows of a data set look like: rows and CTR by day, and of each feature what is missing, how it is spread.

Counted in the Beam job over the same batches that the transform is learnt from; written as ``statistics.json``. Shares of
missing values are known for every split, distributions for the training split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.encode import is_missing, raw_type, tokens_of
from features.schema import Categorical, NumericFeature, Schema
from features.vocabulary import count, merge
from pipeline.analyse import Sample
from pipeline.columns import KEY, LABEL, SPLIT, SPLITS, TIME

#: Training rows that a number's quantiles come from, a uniform sample.
_SAMPLE = 20_000
#: Values that are named; those beyond are counted together.
TOP = 100
QUANTILES = (0.0, 0.01, *(i / 20 for i in range(1, 20)), 0.99, 1.0)
_DAY = 86_400_000_000


def partials(schema: Schema, batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    """(kind:name, partial result), to be merged by :class:`pipeline.analyse.MergePartials`."""
    split, label = batch.column(SPLIT).to_numpy(), batch.column(LABEL).to_numpy()
    if schema.timestamp:
        day = batch.column(TIME).to_numpy() // _DAY
        codes, places = np.unique(np.stack([split, day]), axis=1, return_inverse=True)
        rows = np.bincount(places.ravel())
        clicks = np.bincount(places.ravel(), weights=label).astype(np.int64)
        yield (
            "days",
            {f"{s} {d}": (int(n), int(k)) for (s, d), n, k in zip(codes.T, rows, clicks, strict=True)},
        )
    missing = {}
    for feature in schema.features:
        there = feature.source in batch.schema.names
        lacks = is_missing(feature, batch.column(feature.source)) if there else np.ones(batch.num_rows, bool)
        for number, name in enumerate(SPLITS):
            mine = split == number
            if mine.any():
                missing[f"{name} {feature.name}"] = (int(lacks[mine].sum()), int(mine.sum()))
    yield "missing", missing
    training = batch.filter(pa.array(split == 0))
    if training.num_rows == 0:
        return
    keys = training.column(KEY).to_numpy()
    for feature in schema.features:
        if feature.source not in training.schema.names:
            continue
        if isinstance(feature, NumericFeature):
            x = np.asarray(training.column(feature.source).to_numpy(zero_copy_only=False), dtype=np.float64)
            real = np.isfinite(x)
            if real.any():
                yield f"range:{feature.name}", [(float(x[real].min()), float(x[real].max()))]
                yield f"spread:{feature.name}", [Sample(keys[real], x[real], _SAMPLE)]
        elif feature.encoding == "identity" and not feature.share:
            tokens = tokens_of(feature, training.column(feature.source).cast(raw_type(feature)))
            yield f"tokens:{feature.name}", [count(tokens, np.zeros(len(tokens), bool))]


def describe(schema: Schema, merged: dict[str, Any]) -> dict[str, Any]:
    """The content of ``statistics.json``.

    Returns:
        days: by split, (day, rows, clicks) in order; features: by name, missing and rows by split, and of the training split
        distinct values and the most frequent ones, or least, largest and quantiles. A feature whose values are hashed has no
        distribution: its values are not counted.
    """
    days: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for key, (rows, clicks) in merged.get("days", {}).items():
        split, day = map(int, key.split())
        if split >= 0:
            days[SPLITS[split]].append((str(np.datetime64(day, "D")), rows, clicks))
    missing = merged.get("missing", {})
    features = {}
    for feature in schema.features:
        lacks = {name: missing[key] for name in SPLITS if (key := f"{name} {feature.name}") in missing}
        features[feature.name] = {
            "kind": feature.kind,
            "missing": {name: {"rows": n, "of": of} for name, (n, of) in lacks.items()},
            **(_numbers(feature, merged) if isinstance(feature, NumericFeature) else _values(feature, merged)),
        }
    return {"days": {name: sorted(found) for name, found in days.items() if found}, "features": features}


def _numbers(feature: NumericFeature, merged: dict[str, Any]) -> dict[str, Any]:
    ranges = merged.get(f"range:{feature.name}")
    if not ranges:
        return {}
    sample = Sample.merged(merged[f"spread:{feature.name}"])
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    cuts = np.quantile(sample.values, QUANTILES)
    return {"min": low, "max": high, "quantiles": [low, *(float(c) for c in cuts[1:-1]), high]}


def _values(feature: Categorical, merged: dict[str, Any]) -> dict[str, Any]:
    found = merged.get(f"vocabulary:{feature.name}") or merged.get(f"tokens:{feature.name}")
    if not found:
        return {}
    counts = merge(found)
    counts = counts.append_column("bytes", pc.cast(counts["token"], pa.binary()))
    order = pc.sort_indices(counts, sort_keys=[("rows", "descending"), ("bytes", "ascending")])
    top = counts.take(order[:TOP]).select(["token", "rows"]).to_pylist()
    total = pc.sum(counts["rows"]).as_py() or 0
    return {"distinct": counts.num_rows, "values": total, "top": [(row["token"], row["rows"]) for row in top]}
