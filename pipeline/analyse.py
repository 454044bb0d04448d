"""What is learnt from the training split, as Beam combiners over Arrow batches.

Each batch gives one small partial result a feature; a combiner a feature merges them, so that no worker holds more than one
feature's counts. Sums are added exactly, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.encode import raw_type, tokens_of
from features.schema import CategoricalFeature, NumericFeature, Schema
from features.transform import NumericState, Transform
from features.vocabulary import Vocabulary, count, merge
from pipeline.columns import GAP, KEY, LABEL, SPLIT, SPLITS

#: Rows from which quantiles are taken: those with the smallest random keys, a uniform sample without replacement.
QUANTILE_SAMPLE = 200_000


class Sample(NamedTuple):
    """A uniform sample without replacement: the values of the rows with the smallest random keys, at most ``most`` of them."""

    keys: Any
    values: Any
    most: int

    @classmethod
    def merged(cls, samples: list[Sample]) -> Sample:
        """One sample of all rows that the samples are of."""
        keys, values = (np.concatenate([getattr(sample, name) for sample in samples]) for name in ("keys", "values"))
        smallest = np.argsort(keys, kind="stable")[: samples[0].most]
        return cls(keys[smallest], values[smallest], samples[0].most)


def partials(schema: Schema, batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    """(kind:name, partial result) for each feature that learns, and for the rows of each split."""
    split = batch.column(SPLIT).to_numpy()
    label = batch.column(LABEL).to_numpy()
    yield (
        "splits",
        {
            name: (int((split == s).sum()), int(label[split == s].sum()))
            for s, name in [*enumerate(SPLITS), (GAP, "gap")]
            if (split == s).any()
        },
    )
    training = batch.filter(pa.array(split == 0))
    if training.num_rows == 0:
        return
    clicked = training.column(LABEL).to_numpy() == 1
    for feature in schema.vocabularies:
        if feature.source not in training.schema.names:
            continue
        column = training.column(feature.source).cast(raw_type(feature))
        tokens = tokens_of(feature, column)
        if isinstance(feature, CategoricalFeature):
            clicks = clicked
        else:
            lists = column if not feature.separator else pc.split_pattern(column, pattern=feature.separator)
            lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            clicks = np.repeat(clicked, lengths)
        yield f"vocabulary:{feature.name}", [count(tokens, clicks)]
    for number in [*schema.numeric, *schema.bucketed]:
        if number.source not in training.schema.names:
            continue
        x = np.asarray(training.column(number.source).to_numpy(zero_copy_only=False), dtype=np.float64)
        there = np.isfinite(x)
        if number.transform == "quantile":
            yield f"sample:{number.name}", [Sample(training.column(KEY).to_numpy()[there], x[there], QUANTILE_SAMPLE)]
        else:
            moved = np.log1p(np.maximum(x[there], 0)) if number.transform == "log1p" else x[there]
            mean = float(moved.mean()) if len(moved) else 0.0
            yield f"moments:{number.name}", [(len(moved), mean, float(((moved - mean) ** 2).sum()))]


class MergePartials(beam.CombineFn):  # type: ignore[misc]
    """Merges partial results of one key; which way is seen from what they are."""

    def create_accumulator(self) -> list[Any]:
        return []

    def add_input(self, accumulator: list[Any], partial: Any) -> list[Any]:
        accumulator.append(partial)
        return accumulator if len(accumulator) < 64 else [self._merge(accumulator)]

    def merge_accumulators(self, accumulators: Any) -> list[Any]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return [self._merge(parts)] if parts else []

    def extract_output(self, accumulator: list[Any]) -> Any:
        return self._merge(accumulator)

    @staticmethod
    def _merge(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return _add_counts(parts)
        items = [item for part in parts for item in part]
        if items and isinstance(items[0], pa.Table):
            return [merge(items)]
        return [Sample.merged(items)] if items and isinstance(items[0], Sample) else items


def _add_counts(parts: list[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    names = {name for part in parts for name in part}
    return {
        name: (sum(p.get(name, (0, 0))[0] for p in parts), sum(p.get(name, (0, 0))[1] for p in parts))
        for name in sorted(names)
    }


def fit(schema: Schema, merged: dict[str, Any], base: Transform | None = None) -> Transform:
    """The transform, from the merged partial results of the training split.

    Args:
        schema: what learns what.
        merged: by key, as :func:`partials` names them.
        base: of an earlier data set of the same schema: its ids and its numbers' scales stay as they are, and values that are
            new get ids after its own.
    """
    vocabularies = {}
    for feature in schema.vocabularies:
        counts = merge(merged.get(f"vocabulary:{feature.name}", []))
        limits = {"min_count": feature.min_count, "max_size": feature.max_size}
        known = base.vocabularies[feature.name] if base else None
        vocabularies[feature.name] = (
            known.extended(counts, **limits) if known is not None else Vocabulary.from_counts(counts, **limits)
        )
    if base:
        return Transform(schema, vocabularies, base.numerics)
    numerics = {}
    for number in schema.features:
        if isinstance(number, NumericFeature):
            numerics[number.name] = _fit_number(number, merged)
    return Transform(schema, vocabularies, numerics)


def _fit_number(number: NumericFeature, merged: dict[str, Any]) -> NumericState:
    if number.transform == "quantile":
        found = merged.get(f"sample:{number.name}")
        return NumericState.from_sample(Sample.merged(found).values if found else np.array([]), number.buckets)
    if number.transform == "none":
        return NumericState()
    return NumericState.from_moments(merged.get(f"moments:{number.name}", []))
