"""Learns a feature's transform from its merged counts.

Each feature is learnt where its counts were merged. Its vocabulary goes straight to its file, where workers read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from clsd.features.paths import as_path
from clsd.features.schema import NumericFeature, Schema
from clsd.features.transform import NumericState, numeric_entry, vocabulary_entry, vocabulary_file
from clsd.features.vocabulary import COUNTS, Vocabulary
from clsd.pipeline.preprocess import data_statistics
from clsd.pipeline.preprocess.counting import Sample, lifted, merged
from clsd.pipeline.shared.dataset import STATISTICS_QUANTILES, Dataset
from clsd.pipeline.shared.files import atomic_file


def learn(schema: Schema, directory: str, base: str, element: tuple[str, Iterable[Any]]) -> tuple[str, Any]:
    """Learn from the partial results of one key; a vocabulary is written under ``directory``.

    Args:
        schema: the schema.
        directory: the data set's directory.
        base: directory of an earlier data set whose ids are kept, with new values after them; "" for none.
        element: a key of :func:`clsd.pipeline.preprocess.counting.partials`, and the partial results of all workers.

    Returns:
        the key, and a JSON value.
    """
    key, result = element[0], merged(map(lifted, element[1]))
    kind, _, name = key.partition(":")
    if kind == "vocabulary":
        counts = _counts(result)
        vocabulary = _vocabulary(schema, name, counts, base)
        with atomic_file(as_path(directory) / vocabulary_file(name)) as file:
            vocabulary.write(file)
        return key, {"entry": vocabulary_entry(name, len(vocabulary)), **data_statistics.values(counts)}
    if kind == "tokens":
        return key, data_statistics.values(_counts(result))
    if kind == "sampled":
        return key, data_statistics.sampled(Sample.merged(result).values)
    if kind == "moments":
        return key, numeric_entry(NumericState.from_moments(result))
    if kind == "sample":
        number = schema.feature(name)
        assert isinstance(number, NumericFeature)
        return key, numeric_entry(NumericState.from_sample(Sample.merged(result).values, number.buckets))
    if kind == "range":
        return key, [min(low for low, _ in result), max(high for _, high in result)]
    if kind == "spread":
        return key, [float(cut) for cut in np.quantile(Sample.merged(result).values, STATISTICS_QUANTILES)]
    return key, result


def described_transform(schema: Schema, directory: str, base: str, learnt: dict[str, Any]) -> dict[str, Any]:
    """The transform's part of ``dataset.json``, see :meth:`clsd.features.transform.Transform.describe`.

    Features without training values get the defaults. With a base, its scales are kept.
    """
    vocabularies = {}
    for feature in sorted(schema.vocabularies, key=lambda feature: feature.name):
        if (result := learnt.get(f"vocabulary:{feature.name}")) is None:
            _, result = learn(schema, directory, base, (f"vocabulary:{feature.name}", [[]]))
        vocabularies[feature.name] = result["entry"]
    if base:
        return {"vocabularies": vocabularies, "numerics": Dataset.load(base).manifest["numerics"]}
    numerics = {}
    for number in sorted((f for f in schema.features if isinstance(f, NumericFeature)), key=lambda f: f.name):
        kind = "sample" if number.transform == "quantile" else "moments"
        nothing = numeric_entry(NumericState())
        numerics[number.name] = nothing if number.transform == "none" else learnt.get(f"{kind}:{number.name}", nothing)
    return {"vocabularies": vocabularies, "numerics": numerics}


def _counts(result: list[pa.Table]) -> pa.Table:
    """The table of merged counts; empty if no training row has a value."""
    return result[0] if result else COUNTS.empty_table()


def _vocabulary(schema: Schema, name: str, counts: pa.Table, base: str) -> Vocabulary:
    feature = next(feature for feature in schema.vocabularies if feature.name == name)
    limits = {"min_count": feature.min_count, "max_size": feature.max_size}
    if base:
        return Dataset.load(base).vocabulary(name).extended(counts, **limits)
    return Vocabulary.from_counts(counts, **limits)
