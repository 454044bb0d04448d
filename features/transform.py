"""The transform: the schema with what was learnt from the training split (vocabularies, scales, bucket boundaries)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from clsd.features.schema import FIRST_OOV_ID, Categorical, NumericFeature, Schema
from clsd.features.tokens import flushed
from clsd.features.vocabulary import Vocabulary


@dataclass(frozen=True)
class NumericState:
    """What a numeric feature learnt; for ``log1p``, mean and sd are those of log(1 + max(x, 0)).

    Args:
        mean: mean of the present values; 0.0 if there are none.
        sd: population standard deviation; 1.0 if it would be 0.
        boundaries: rising float32 values; bucket k holds boundaries[k-1] <= x < boundaries[k].
    """

    mean: float = 0.0
    sd: float = 1.0
    boundaries: tuple[float, ...] = ()

    @classmethod
    def from_moments(cls, parts: Iterable[tuple[int, float, float]]) -> NumericState:
        """From (count, mean, sum of squared differences from that mean) of each part of the values.

        Sums are exact (``math.fsum``), so the order of the parts does not matter. Differences are from the parts' own means, so a
        large mean does not swallow a small deviation (Chan, Golub & LeVeque 1983).
        """
        parts = [part for part in parts if part[0]]
        rows = sum(n for n, _, _ in parts)
        if rows == 0:
            return cls()
        mean = math.fsum(n * m for n, m, _ in parts) / rows
        sd = math.sqrt(math.fsum(m2 + n * (m - mean) ** 2 for n, m, m2 in parts) / rows)
        return cls(mean=mean, sd=sd if sd > 1e-12 * max(1.0, abs(mean)) else 1.0)

    @classmethod
    def from_sample(cls, sample: np.ndarray[Any, Any], buckets: int) -> NumericState:
        """Boundaries at the quantiles 1/buckets, 2/buckets, ... of a sample, without duplicates."""
        if sample.size == 0:
            return cls()
        at = np.arange(1, buckets) / buckets
        cuts = np.unique(np.quantile(flushed(sample.astype(np.float32)), at, method="lower").astype(np.float32))
        return cls(boundaries=tuple(float(c) for c in cuts))


@dataclass(frozen=True)
class Transform:
    """Everything that encodes a raw row.

    Args:
        schema: the schema.
        vocabularies: by name of their vocabulary source.
        numerics: by name of the numeric feature.
    """

    schema: Schema
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    numerics: dict[str, NumericState] = field(default_factory=dict)

    def table_size(self, name: str) -> int:
        """Number of ids of a categorical or bucketed feature, reserved ids included."""
        feature = self.schema.feature(name)
        if isinstance(feature, NumericFeature):
            return FIRST_OOV_ID + 1 + len(self.numerics[name].boundaries) + 1
        vocabulary_source = self.schema.vocabulary_source(feature)
        num_values = (
            len(self.vocabularies[vocabulary_source.name])
            if vocabulary_source.encoding == "vocabulary"
            else vocabulary_source.size
        )
        return first_value_id(vocabulary_source) + num_values

    def id_names(self, name: str) -> list[str]:
        """Names of a feature's ids, for reports: reserved ids first, then the values."""
        vocabulary_source = self.schema.vocabulary_source(self.schema.feature(name))  # type: ignore[arg-type]
        reserved = ["(padding)", "(missing)"] + ["(unknown)"] * vocabulary_source.oov_buckets
        if vocabulary_source.encoding == "vocabulary":
            return reserved + [str(token) for token in self.vocabularies[vocabulary_source.name].tokens.to_pylist()]
        return reserved + [str(value) for value in range(vocabulary_source.size)]

    def describe(self) -> dict[str, Any]:
        """The transform's part of ``dataset.json``; the vocabularies' values are in the Parquet files that it names."""
        return {
            "vocabularies": {name: vocabulary_entry(name, len(v)) for name, v in sorted(self.vocabularies.items())},
            "numerics": {name: numeric_entry(number) for name, number in sorted(self.numerics.items())},
        }

    @classmethod
    def load(cls, schema: Schema, described: dict[str, Any], read: Callable[[str], pa.Table]) -> Transform:
        """Load the transform from what :meth:`describe` gave; ``read`` reads the file of a vocabulary by its name."""
        return cls(
            schema=schema,
            vocabularies={
                name: Vocabulary.from_table(read(entry["file"])) for name, entry in described["vocabularies"].items()
            },
            numerics={
                name: NumericState(entry["mean"], entry["sd"], tuple(entry["boundaries"]))
                for name, entry in described["numerics"].items()
            },
        )


def vocabulary_file(name: str) -> str:
    """Path of a vocabulary's file, relative to the data set."""
    return f"vocabularies/{name}.parquet"


def vocabulary_entry(name: str, size: int) -> dict[str, Any]:
    """The entry of a vocabulary in ``dataset.json``."""
    return {"file": vocabulary_file(name), "size": size}


def numeric_entry(number: NumericState) -> dict[str, Any]:
    """The entry of a numeric feature in ``dataset.json``."""
    return {"mean": number.mean, "sd": number.sd, "boundaries": list(number.boundaries)}


def first_value_id(vocabulary_source: Categorical) -> int:
    """The id of the first value, after the reserved ids."""
    return FIRST_OOV_ID + vocabulary_source.oov_buckets
