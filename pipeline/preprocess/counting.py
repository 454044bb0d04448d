"""Counts over rows, as partial results that can be merged.

A worker merges those of its batches and passes one result per feature on. These are merged feature by feature
(:mod:`clsd.pipeline.preprocess.learning`). Sums are exact, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from clsd.features.arrays import Array, Bools, Column, Int8s, UInt64s
from clsd.features.hashing import mix64
from clsd.features.schema import Categorical, CategoricalFeature, Feature, NumericFeature, Schema
from clsd.features.tokens import Coded, arrow_type, as_float64, coded, coded_lists
from clsd.features.vocabulary import count, merge
from clsd.pipeline.preprocess.columns import GAP, KEY, LABEL, SPLIT, SPLITS, TIME
from clsd.pipeline.preprocess.spill import Spilled, load, spill
from clsd.pipeline.shared import progress
from clsd.pipeline.shared.threads import Threads

#: A partial result: counts by name, or a list of tables, samples, moments or ranges; its type decides how it is merged.
Partial: TypeAlias = Any
#: Size of the uniform sample of training rows for quantile boundaries, and for the statistics.
QUANTILE_SAMPLE, SPREAD_SAMPLE = 200_000, 20_000
_DAY = 86_400_000_000
#: Indices and names of the splits, left-out rows included.
_SPLITS = [*enumerate(SPLITS), (GAP, "gap")]
#: Number of partial results that are kept before they are merged.
_FEW, _FEW_LARGE = 32, 4


class Sample(NamedTuple):
    """A uniform sample without replacement: the values of the ``most`` rows with the smallest random keys."""

    keys: UInt64s
    values: Array
    most: int

    @classmethod
    def merged(cls, samples: list[Sample]) -> Sample:
        """Merge samples of several parts into one of all rows."""
        keys, values = (np.concatenate([getattr(sample, name) for sample in samples]) for name in ("keys", "values"))
        return cls.of(keys, values, samples[0].most)

    @classmethod
    def of(cls, keys: UInt64s, values: Array, most: int) -> Sample:
        """A sample of values."""
        if len(keys) > most:
            smallest = np.argpartition(keys, most)[:most]
            keys, values = keys[smallest], values[smallest]
        return cls(keys, values, most)


def partials(schema: Schema, batch: pa.RecordBatch, threads: Threads) -> Iterator[tuple[str, Partial]]:
    """(kind:name, partial result) of a batch: for the transform and for ``statistics.json``, in one pass.

    ``splits``, ``days`` and ``missing`` are counted over all rows. Of the training rows, by feature: ``vocabulary`` or ``tokens``
    (values and their rows and clicks) or ``sampled`` (some values); ``moments`` or ``sample`` (for the transform), ``range`` and
    ``spread``.
    """
    split, label, keys = (batch.column(name).to_numpy() for name in (SPLIT, LABEL, KEY))
    rows = _by_split(split)
    clicks = _by_split(split[label == 1])
    yield "splits", {name: (rows[s], clicks[s]) for s, name in _SPLITS if rows[s]}
    if schema.timestamp:
        day = batch.column(TIME).to_numpy() // _DAY
        codes = (day - day.min()) * 4 + split + 1  # of at most 84,000 days and 4 splits, GAP among them
        of, clicked = np.bincount(codes), np.bincount(codes[label == 1], minlength=codes.max() + 1)
        days = {f"{c % 4 - 1} {c // 4 + day.min()}": (int(of[c]), int(clicked[c])) for c in np.flatnonzero(of)}
        yield "days", days
    train = split == 0

    def measure(feature: Feature) -> tuple[dict[int, int], list[tuple[str, Partial]]]:
        there = feature.source in batch.schema.names
        column = batch.column(feature.source) if there else pa.nulls(batch.num_rows, arrow_type(feature))
        if isinstance(feature, NumericFeature):
            measured = _number(feature, column, keys, train)
        else:
            measured = _values(feature, column, keys, label == 1, train)
        lacks = _by_split(split[next(measured)])
        return lacks, list(measured) if there and rows[0] else []

    missing: dict[str, tuple[int, int]] = {}
    for feature, (lacks, result) in zip(schema.features, threads.map(measure, schema.features), strict=True):
        missing |= {f"{name} {feature.name}": (lacks[s], rows[s]) for s, name in enumerate(SPLITS) if rows[s]}
        yield from result
    yield "missing", missing


def _by_split(split: Int8s) -> dict[int, int]:
    counts = np.bincount(split + np.int8(1), minlength=len(_SPLITS))
    return {s: int(counts[s + 1]) for s, _ in _SPLITS}


def _values(feature: Categorical, column: Column, keys: UInt64s, clicked: Bools, train: Bools) -> Iterator[Any]:
    """First the rows without a value, then the partial results of the training rows."""
    if isinstance(feature, CategoricalFeature):
        values = coded(feature, column)
        yield values.codes < 0
    else:
        values, lengths = coded_lists(feature, column)
        row = np.repeat(np.arange(len(lengths)), lengths)
        yield np.bincount(row[values.codes >= 0], minlength=len(lengths)) == 0
        position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        clicked, train, keys = (
            clicked[row],
            train[row],
            mix64(keys[row] ^ mix64(position)),
        )  # a distinct key per value
    mine = Coded(values.tokens, values.codes[train])
    if feature.encoding == "hash":  # there may be too many distinct values to count
        drawn = Sample.of(keys[train & (values.codes >= 0)], mine.codes[mine.codes >= 0], SPREAD_SAMPLE)
        tokens = values.tokens.take(pa.array(drawn.values)).to_numpy(zero_copy_only=False)
        yield f"sampled:{feature.name}", [drawn._replace(values=tokens)]
    elif not feature.share:
        kind = "vocabulary" if feature.encoding == "vocabulary" else "tokens"
        yield f"{kind}:{feature.name}", [count(mine, clicked[train])]


def _number(feature: NumericFeature, column: Column, keys: UInt64s, train: Bools) -> Iterator[Any]:
    """First the rows without a value, then the partial results of the training rows."""
    x = np.asarray(as_float64(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(over="ignore"):
        there = np.isfinite(x.astype(np.float32))  # as the encoder sees it
    yield ~there
    x, keys = x[train & there], keys[train & there]
    if len(x):
        yield f"range:{feature.name}", [(float(x.min()), float(x.max()))]
        yield f"spread:{feature.name}", [Sample.of(keys, x, SPREAD_SAMPLE)]
    if feature.transform == "quantile":
        yield f"sample:{feature.name}", [Sample.of(keys, x, QUANTILE_SAMPLE)]
    elif feature.transform != "none":
        moved = np.log1p(np.maximum(x, 0)) if feature.transform == "log1p" else x
        mean = float(moved.mean()) if len(moved) else 0.0
        yield f"moments:{feature.name}", [(len(moved), mean, float(((moved - mean) ** 2).sum()))]


class Measure(beam.DoFn):  # type: ignore[misc]
    """Merges the partial results of a bundle's batches: (key, merged result).

    Counts of values, which may be millions, are spilled to disk; :func:`lifted` loads them.
    """

    def __init__(self, schema: Schema, directory: str, threads: Threads) -> None:
        self._schema, self._directory, self._threads = schema, directory, threads
        self._parts: dict[str, list[Partial]] = {}

    def start_bundle(self) -> None:
        self._parts = {}

    def process(self, spilled: Spilled) -> None:
        for key, partial in partials(self._schema, load(spilled), self._threads):
            self._parts[key] = add(self._parts.get(key, []), partial)
        progress.add("rows counted", spilled.rows, self._directory)

    def finish_bundle(self) -> Iterator[Any]:
        for key, result in zip(self._parts, self._threads.map(merged, self._parts.values()), strict=True):
            if isinstance(result, list) and result and isinstance(result[0], pa.Table):
                result = spill(self._directory, result[0].combine_chunks().to_batches())
            yield GlobalWindows.windowed_value((key, result))
        self._parts = {}


def lifted(result: Partial) -> Partial:
    """Load a partial result that :class:`Measure` spilled."""
    if isinstance(result, list) and result and isinstance(result[0], Spilled):
        return [pa.Table.from_batches([load(part) for part in result])]
    return result


class MergePartials(beam.CombineFn):  # type: ignore[misc]
    """Merges the partial results of one key."""

    def create_accumulator(self) -> list[Partial]:
        return []

    def add_input(self, accumulator: list[Partial], partial: Partial) -> list[Partial]:
        return add(accumulator, partial)

    def merge_accumulators(self, accumulators: Iterable[list[Partial]]) -> list[Partial]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return [merged(parts)] if parts else []

    def extract_output(self, accumulator: list[Partial]) -> Partial:
        return merged(accumulator)


def add(parts: list[Partial], partial: Partial) -> list[Partial]:
    """Add a partial result; they are merged when there are many."""
    parts = [*parts, partial]
    large = isinstance(partial, list) and partial and isinstance(partial[0], Sample)
    return parts if len(parts) < (_FEW_LARGE if large else _FEW) else [_merged(parts)]


def merged(parts: Iterable[Partial]) -> Partial:
    """Merge partial results into one; their type decides how."""
    few: list[Partial] = []
    for part in parts:  # a large job has many: never hold all of them
        few = add(few, part)
    one = few[0] if len(few) == 1 else None
    # The counts of a single batch may hold a token twice.
    return _merged(few) if one is None or (isinstance(one, list) and one and isinstance(one[0], pa.Table)) else one


def _merged(parts: list[Partial]) -> Partial:
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
