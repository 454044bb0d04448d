"""A schema with every kind of feature, a random raw log for it, and random encoded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.encoded_rows import EncodedRows
from clsd.features.schema import MISSING_INT, CategoricalFeature, NumericFeature, Schema
from clsd.features.tokens import arrow_type, coded, coded_as, coded_lists
from clsd.features.transform import NumericState, Transform
from clsd.features.vocabulary import Vocabulary, count

ROWS = 500
TEXTS = ["a", "b", "é", "日本", "😀", " a ", "a b", "\u2028", "x\x00y", "line\nbreak", "back\r", "rare", "rarer"]


@pytest.fixture(scope="session")
def schema() -> Schema:
    """Every kind, type and encoding, with ids of one column and of several in mixed order."""
    listed: list[dict[str, Any]] = [
        {"name": "genres", "kind": "bag", "max_length": 3, "separator": "|", "min_count": 20},
        {"name": "user", "kind": "categorical", "min_count": 15},
        {"name": "price", "kind": "numeric"},
        {"name": "age", "kind": "numeric", "transform": "quantile", "buckets": 6},
        {"name": "country", "kind": "categorical", "column": "geo", "oov_buckets": 4, "max_size": 5},
        {"name": "item", "kind": "categorical", "dtype": "int64", "oov_buckets": 3, "min_count": 10},
        {"name": "history", "kind": "sequence", "dtype": "int64", "max_length": 4, "share": "item"},
        {"name": "slot", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 5},
        {"name": "page", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 7, "oov_buckets": 3},
        {"name": "agent", "kind": "categorical", "encoding": "hash", "size": 11, "oov_buckets": 2},
        {"name": "code", "kind": "categorical", "dtype": "int64", "encoding": "hash", "size": 13},
        {"name": "friends", "kind": "sequence", "max_length": 3, "separator": ", ", "share": "user"},
        {"name": "tags", "kind": "bag", "max_length": 4, "encoding": "hash", "size": 9},
        {"name": "words", "kind": "sequence", "max_length": 2, "oov_buckets": 5, "min_count": 60},
        {
            "name": "slots",
            "kind": "bag",
            "dtype": "int64",
            "max_length": 3,
            "separator": ",",
            "encoding": "identity",
            "size": 6,
        },
        {"name": "numbers", "kind": "sequence", "dtype": "int64", "max_length": 3, "separator": ";", "share": "item"},
        {"name": "ticks", "kind": "bag", "dtype": "int64", "max_length": 2, "encoding": "identity", "size": 6},
        {"name": "dwell", "kind": "numeric", "transform": "log1p"},
        {"name": "score", "kind": "numeric", "transform": "none"},
        {"name": "never", "kind": "categorical", "optional": True},
        {"name": "never_many", "kind": "bag", "max_length": 2, "optional": True},
        {"name": "never_number", "kind": "numeric", "optional": True},
        {"name": "never_bucket", "kind": "numeric", "transform": "quantile", "optional": True},
    ]
    return Schema(features=listed)


@pytest.fixture(scope="session")
def raw_batch(schema: Schema) -> pa.RecordBatch:
    """Raw rows with nulls, empty texts, NaN, infinities, nulls in lists, over-long lists; the never* columns are absent."""
    rng = np.random.default_rng(20261122)

    def value(dtype: str) -> Any:
        if rng.random() < 0.12:
            return None
        if dtype == "string":
            return "" if rng.random() < 0.1 else TEXTS[min(int(rng.geometric(0.2)), len(TEXTS)) - 1]
        if rng.random() < 0.03:
            return int(rng.choice([MISSING_INT, 2**63 - 1, -(2**63) + 1]))
        return int(rng.integers(-2, 9)) if rng.random() < 0.8 else int(rng.geometric(0.05))

    def piece(dtype: str) -> str:
        result = value(dtype)
        if dtype == "string":
            return result or ""
        return str(rng.choice(["", "007", "-0", "-4"])) if result is None or abs(result) >= 10**18 else str(result)

    def number() -> float | None:
        if rng.random() < 0.2:
            return [None, np.nan, np.inf, -np.inf, 1e39, 0.0, -0.0][int(rng.integers(7))]
        return float(rng.normal(20, 15))

    def cell(feature: Any) -> Any:
        if isinstance(feature, NumericFeature):
            return number()
        if isinstance(feature, CategoricalFeature):
            return value(feature.dtype)
        if rng.random() < 0.1:
            return None
        length = int(rng.integers(0, 2 * feature.max_length + 2))
        if feature.separator:
            return feature.separator.join(piece(feature.dtype) for _ in range(length))
        return [value(feature.dtype) for _ in range(length)]

    present = [f for f in schema.features if not f.optional]
    return pa.record_batch(
        {f.source: pa.array([cell(f) for _ in range(ROWS)], arrow_type(f)) for f in present},
    )


@pytest.fixture(scope="session")
def transform(schema: Schema, raw_batch: pa.RecordBatch) -> Transform:
    """What the first half of the raw rows teaches, so that the second half has values that are unknown."""
    vocabularies = {}
    for feature in schema.vocabularies:
        if feature.optional:
            values = coded_as(pa.string(), pa.array([], pa.string()))
        else:
            column = raw_batch.slice(0, ROWS // 2).column(feature.source)
            single = isinstance(feature, CategoricalFeature)
            values = coded(feature, column) if single else coded_lists(feature, column)[0]
        counts = count(values, np.zeros(len(values.codes), bool))
        vocabularies[feature.name] = Vocabulary.from_counts(
            counts, min_count=feature.min_count, max_size=feature.max_size
        )
    numerics = {
        "price": NumericState(mean=18.25, sd=14.5),
        "dwell": NumericState(mean=2.75, sd=0.875),
        "score": NumericState(),
        "age": NumericState(boundaries=(-3.5, 0.0, 12.0, 20.5, 31.0)),
        "never_number": NumericState(mean=5.0, sd=2.0),
        "never_bucket": NumericState(),
    }
    return Transform(schema, vocabularies, numerics)


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., EncodedRows]:
    """``make_rows(schema, n, seed=0)``: random encoded rows, ragged features packed to the left, keys 1000 ... 999 + n."""

    def make(schema: Schema, n: int, seed: int = 0) -> EncodedRows:
        rng = np.random.default_rng([seed, n])
        ids = rng.integers(1, 1000, (n, schema.width), dtype=np.int32)
        for feature in schema.ragged:
            lengths = rng.integers(0, feature.max_length + 1, n)
            ids[:, schema.id_slices[feature.name]] *= np.arange(feature.max_length) < lengths[:, None]
        texts = {
            name: pa.array([None if i % 5 == 3 else f"{name} é {i}" for i in range(n)]) for name in schema.passthrough
        }
        return EncodedRows(
            key=np.arange(1000, 1000 + n, dtype=np.uint64),
            ids=ids,
            values=rng.normal(size=(n, len(schema.numeric))).astype(np.float32),
            label=rng.integers(0, 2, n).astype(np.uint8),
            user=rng.integers(2**63, 2**64, n, dtype=np.uint64),
            timestamp=rng.integers(-(2**62), 2**62, n),
            intensity=np.where(rng.random(n) < 0.3, np.nan, rng.random(n)).astype(np.float32),
            passthrough=pa.RecordBatch.from_arrays(
                [column.cast(pa.string()) for column in texts.values()], names=list(texts)
            ),
        )

    return make
