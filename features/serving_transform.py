"""The transform as a TensorFlow graph, which is part of the exported model.

It is the twin of :mod:`clsd.features.encode`. The canary compares the two on real rows before a version is published.

An input of one row stands for every row of a request, so clients send only once what all rows share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsd.features.arrays import Array
from clsd.features.encode import LARGEST_FLOAT32
from clsd.features.schema import (
    FIRST_OOV_ID,
    MISSING_ID,
    MISSING_INT,
    PADDING_ID,
    BagFeature,
    Categorical,
    CategoricalFeature,
    NumericFeature,
    SequenceFeature,
)
from clsd.features.tf_runtime import Tensor, tf
from clsd.features.transform import Transform, first_value_id

#: The value that means missing, by dtype.
_MISSING = {tf.string: "", tf.int64: MISSING_INT, tf.float32: float("nan")}


class ServingTransform(tf.Module):  # type: ignore[misc]
    """The transform as a graph; lookup tables are assets of the SavedModel.

    Args:
        transform: the schema and what was learnt.
        assets: directory for the vocabularies' text files, one value per line.
    """

    def __init__(self, transform: Transform, assets: Path) -> None:
        super().__init__(name="transform")
        self._transform = transform
        self.tables = {
            name: tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    _write_lines(assets / f"{name}.txt", vocabulary.tokens.to_pylist()),
                    key_dtype=tf.string,
                    key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
                    value_dtype=tf.int64,
                    value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                default_value=-1,
            )
            for name, vocabulary in transform.vocabularies.items()
            if len(vocabulary)
        }

    def signature(self) -> dict[str, Any]:
        """Names, dtypes and shapes of the raw inputs.

        A single value is ``[rows]``; a bag or sequence ``[rows, any]`` padded with "" (or the int sentinel), or text
        ``[rows]`` where the schema has a separator. Missing is "", NaN, or -2**63 for integers.
        """
        specs = {}
        for feature in self._transform.schema.inputs:
            if isinstance(feature, NumericFeature):
                dtype, shape = tf.float32, [None]
            elif isinstance(feature, CategoricalFeature):
                dtype, shape = (tf.string if feature.dtype == "string" else tf.int64), [None]
            elif feature.separator:
                dtype, shape = tf.string, [None]
            else:
                dtype, shape = (tf.string if feature.dtype == "string" else tf.int64), [None, None]
            specs[feature.name] = tf.TensorSpec(shape, dtype, name=feature.name)
        return specs

    def rank_signature(self, candidates: Sequence[str]) -> dict[str, Tensor]:
        """As :meth:`signature`, for requests with N candidates: the candidates' inputs have a second dimension, N."""
        specs = self.signature()
        for name in candidates:
            spec = specs[name]
            specs[name] = tf.TensorSpec([None, None, *spec.shape[1:]], spec.dtype, name=name)
        return specs

    def example_spec(self) -> dict[str, Tensor]:
        """Parsing spec of a ``tf.train.Example`` with the same raw inputs; an absent feature gets missing values."""
        return {
            name: tf.io.FixedLenFeature([], spec.dtype, default_value=_MISSING[spec.dtype])
            if spec.shape.rank == 1
            else tf.io.RaggedFeature(spec.dtype)
            for name, spec in self.signature().items()
        }

    def parse_examples(self, serialized: Tensor) -> dict[str, Tensor]:
        """Serialized ``tf.train.Example``, string ``[rows]``, to raw inputs."""
        parsed = tf.io.parse_example(serialized, self.example_spec())
        return {
            name: value.to_tensor(default_value=tf.constant(_MISSING[value.dtype], value.dtype))
            if isinstance(value, tf.RaggedTensor)
            else value
            for name, value in parsed.items()
        }

    def __call__(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw inputs to one tensor per feature, by name: ids int32 ``[rows]``, or ``[rows, max_length]`` for a bag or sequence;
        values float32 ``[rows]``."""
        return self._columns(raw, _common(_shapes(list(raw.values()), 1)), self._transform.schema.features)

    def rank(
        self, raw: dict[str, Tensor], candidates: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Raw inputs of :meth:`rank_signature` to features; the user's inputs are transformed once per request.

        Returns:
            the user's features ``[R, ...]``, the candidates' features ``[R * N, ...]``, each as :meth:`__call__` gives
            them; and the shape ``[R, N]``, int32 ``[2]``.
        """
        features = self._transform.schema.features
        user_inputs = {name: x for name, x in raw.items() if name not in candidates}
        candidate_inputs = {name: x for name, x in raw.items() if name in candidates}
        user_shapes = tf.pad(_shapes(list(user_inputs.values()), 1), [[0, 0], [0, 1]], constant_values=1)
        shape = _common(tf.concat([_shapes(list(candidate_inputs.values()), 2), user_shapes], axis=0))
        user_features = self._columns(user_inputs, shape[:1], [f for f in features if f.name not in candidates])
        candidate_features = self._columns(candidate_inputs, shape, [f for f in features if f.name in candidates])
        return user_features, candidate_features, shape

    def _columns(self, raw: dict[str, Tensor], shape: Tensor, features: Sequence[Any]) -> dict[str, Tensor]:
        """Transform some features. Their inputs have the given shape (``[rows]`` or ``[R, N]``), or 1 in place of a
        dimension.

        Features are transformed together where possible: in a request, starting an operation costs more than computing its rows.
        """
        rows = tf.reduce_prod(shape)
        out: dict[str, Any] = {}
        single_valued = [f for f in features if isinstance(f, CategoricalFeature | NumericFeature)]
        broadcast_inputs = {f.name: tf.broadcast_to(raw[f.name], shape) for f in single_valued if f.name in raw}
        for kind in ("string", "int64", "quantile", "number"):
            same_kind = [f for f in single_valued if f.name in broadcast_inputs and _kind(f) == kind]
            if same_kind:
                transform_kind: Any = {"quantile": self._buckets, "number": self._scaled}.get(kind, self._single)
                transformed = tf.reshape(
                    transform_kind(same_kind, [broadcast_inputs[f.name] for f in same_kind]),
                    tf.stack([len(same_kind), rows]),
                )
                out |= zip([f.name for f in same_kind], tf.unstack(transformed, num=len(same_kind)), strict=True)
        for feature in features:
            if feature not in single_valued and feature.name in raw:
                out[feature.name] = tf.cast(self._ragged(feature, _with_rows(raw[feature.name], shape)), tf.int32)
            elif feature not in single_valued:
                out[feature.name] = tf.fill([rows, feature.max_length], PADDING_ID)
            elif feature.name not in raw:
                out[feature.name] = tf.fill([rows], 0.0 if _kind(feature) == "number" else MISSING_ID)
        return out

    def _single(self, features: list[CategoricalFeature], raw: list[Tensor]) -> Tensor:
        """Ids int32 of features of one dtype, ``[features, ...]``."""
        stacked = tf.stack(raw)
        # The tokens are unstacked from the stack, not taken from `raw`: there, lookups that are ready at the same time would go
        # to as many threads, which costs a request of 100 candidates a tenth of its time.
        tokens = tf.unstack(_as_text(stacked), num=len(features))
        value_indices = tf.cast(
            tf.stack([self._value_indices(f, x) for f, x in zip(features, tokens, strict=True)]), tf.int32
        )
        first = _per_feature(
            [first_value_id(self._transform.schema.vocabulary_source(f)) for f in features], np.int32, stacked
        )
        return tf.where(stacked == _MISSING[stacked.dtype], MISSING_ID, first + value_indices)

    def _buckets(self, features: list[NumericFeature], raw: list[Tensor]) -> Tensor:
        """Ids int32 of quantile buckets, ``[features, ...]``."""
        stacked = tf.stack(raw)
        buckets = [
            tf.searchsorted(
                tf.constant(self._transform.numerics[f.name].boundaries, tf.float32), tf.reshape(x, [-1]), side="right"
            )
            for f, x in zip(features, raw, strict=True)
        ]
        ids = FIRST_OOV_ID + 1 + tf.reshape(tf.stack(buckets), tf.shape(stacked))
        return tf.where(tf.math.is_finite(stacked), ids, MISSING_ID)

    def _value_indices(self, feature: Categorical, tokens: Tensor) -> Tensor:
        """Ids minus the first value's id, int64, in the shape of the tokens; negative for unknown values."""
        vocabulary_source = self._transform.schema.vocabulary_source(feature)
        if vocabulary_source.encoding == "hash":
            return tf.strings.to_hash_bucket_fast(tokens, vocabulary_source.size)
        if vocabulary_source.encoding == "identity":
            small = (tokens != "") & (tf.strings.length(tokens) < 19)
            numbers = tf.strings.to_number(tf.where(small, tokens, "-1"), tf.int64)
            result = tf.where((numbers >= 0) & (numbers < vocabulary_source.size), numbers, tf.constant(-1, tf.int64))
        elif vocabulary_source.name in self.tables:
            result = self.tables[vocabulary_source.name].lookup(tokens)
        else:
            result = tf.fill(tf.shape(tokens), tf.constant(-1, tf.int64))
        if vocabulary_source.oov_buckets == 1:  # index -1 is the only OOV id, just before the first value
            return result
        unknown = tf.strings.to_hash_bucket_fast(tokens, vocabulary_source.oov_buckets) + (
            FIRST_OOV_ID - first_value_id(vocabulary_source)
        )
        return tf.where(result >= 0, result, unknown)

    def _ragged(self, feature: BagFeature | SequenceFeature, raw: Tensor) -> Tensor:
        """int64 ``[rows, max_length]``: empty values left out, packed to the left, padded with 0."""
        separator = feature.separator
        tokens = tf.strings.split(raw, separator) if separator else tf.RaggedTensor.from_tensor(_as_text(raw))
        tokens = tf.ragged.boolean_mask(tokens, tokens != "")
        if separator and feature.dtype == "int64":  # 007 is 7, as in the log; a log with non-integers is refused
            short = tf.strings.regex_replace(tokens.flat_values, r"^(-?)0+(\d)", r"\1\2")
            tokens = tokens.with_flat_values(tf.where(short == "-0", "0", short))
            tokens = tf.ragged.boolean_mask(tokens, tf.strings.regex_full_match(tokens, r"-?\d{1,19}"))
        kept = (
            tokens[:, -feature.max_length :]
            if isinstance(feature, SequenceFeature)
            else tokens[:, : feature.max_length]
        )
        first = first_value_id(self._transform.schema.vocabulary_source(feature))
        ids = kept.with_flat_values(first + self._value_indices(feature, kept.flat_values))
        return ids.to_tensor(default_value=0, shape=[None, feature.max_length])

    def _scaled(self, features: list[NumericFeature], raw: list[Tensor]) -> Tensor:
        """float32 ``[features, ...]``: (t(x) - mean) / sd, in float64 as in training; 0, the mean, for missing values."""
        x = tf.stack(raw)
        states = [self._transform.numerics.get(f.name) if f.transform != "none" else None for f in features]
        mean = _per_feature([state.mean if state else 0.0 for state in states], np.float64, x)
        sd = _per_feature([state.sd if state else 1.0 for state in states], np.float64, x)
        logs = [f.transform == "log1p" and state is not None for f, state in zip(features, states, strict=True)]
        wide = tf.cast(x, tf.float64)
        transformed = (
            tf.where(_per_feature(logs, bool, x), tf.math.log1p(tf.maximum(wide, 0.0)), wide) if any(logs) else wide
        )
        scaled = tf.clip_by_value((transformed - mean) / sd, -LARGEST_FLOAT32, LARGEST_FLOAT32)
        # x is checked, not the result: tf.maximum may drop a NaN.
        return tf.where(tf.math.is_finite(x), tf.cast(scaled, tf.float32), 0.0)


def missing(dtype: tf.DType, rank: int) -> Array:
    """The default of an input: one missing value, as a NumPy array of that rank."""
    return np.full([1] * rank, _MISSING[dtype], dtype.as_numpy_dtype)


def _shapes(inputs: list[Tensor], rank: int) -> Tensor:
    """The first ``rank`` dimensions of each input, int32 ``[inputs, rank]``, in any order."""
    by_dtype_and_rank: dict[Any, list[Any]] = {}
    for x in inputs:  # one operation for all inputs of one dtype and rank
        by_dtype_and_rank.setdefault((x.dtype, x.shape.rank), []).append(x)
    shapes = [tf.stack(tf.shape_n(same_kind)) for same_kind in by_dtype_and_rank.values()]
    kept = [shape if shape.shape[1] == rank else shape[:, :rank] for shape in shapes]
    return tf.concat(kept, axis=0) if kept else tf.zeros([0, rank], tf.int32)


def _common(shapes: Tensor) -> Tensor:
    """The shape, int32 ``[rank]``, that inputs of these shapes, ``[inputs, rank]``, broadcast to; a 0 wins over a 1."""
    return tf.where(tf.reduce_any(shapes == 0, axis=0), 0, tf.reduce_max(shapes, axis=0))


def _with_rows(x: Tensor, shape: Tensor) -> Tensor:
    """An input of a bag or sequence, broadcast to all rows: ``[rows]`` of text, or ``[rows, any]``."""
    inner = tf.shape(x)[tf.size(shape) :]
    broadcast = tf.broadcast_to(x, tf.concat([shape, inner], axis=0))
    return tf.reshape(broadcast, tf.concat([tf.reduce_prod(shape)[None], inner], axis=0))


def _kind(feature: CategoricalFeature | NumericFeature) -> str:
    """How a single-valued feature is transformed: as string, int64, number or quantile."""
    if isinstance(feature, CategoricalFeature):
        return feature.dtype
    return "quantile" if feature.transform == "quantile" else "number"


def _per_feature(values: Sequence[float], dtype: type, x: Tensor) -> Array:
    """A constant per feature, shaped to broadcast with ``[features, ...]``."""
    return np.array(values, dtype).reshape([-1] + [1] * (x.shape.rank - 1))


def _as_text(raw: Tensor) -> Tensor:
    if raw.dtype == tf.string:
        return raw
    return tf.where(raw == MISSING_INT, "", tf.strings.as_string(raw))


def _write_lines(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return str(path)
