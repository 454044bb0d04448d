"""Raw rows to ids and values as a TensorFlow graph: the transform that rides inside the exported model.

The twin of :mod:`features.encode`; the export's canary holds the two against each other on real rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from features.schema import (
    FIRST_OOV_ID,
    MISSING_ID,
    MISSING_INT,
    PADDING_ID,
    Categorical,
    CategoricalFeature,
    NumericFeature,
    SequenceFeature,
)
from features.tf_runtime import tf
from features.transform import Transform, first_value_id


class ServingTransform(tf.Module):  # type: ignore[misc]
    """The transform as a graph; lookup tables are assets of the SavedModel.

    Args:
        transform: the schema and what was learnt.
        assets: a directory in which the text files of the vocabularies are written, one value a line.
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
        ``[rows]`` where the log has a separator. Missing is "", NaN, or -2**63 for integers.
        """
        specs = {}
        for feature in self._transform.schema.features:
            if not feature.input and feature.name not in self._transform.schema.groups:
                continue
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

    def example_spec(self) -> dict[str, Any]:
        """How a ``tf.train.Example`` holds the same raw inputs; what an Example leaves out is missing."""
        defaults = {tf.string: "", tf.int64: MISSING_INT, tf.float32: float("nan")}
        return {
            name: tf.io.FixedLenFeature([], spec.dtype, default_value=defaults[spec.dtype])
            if spec.shape.rank == 1
            else tf.io.RaggedFeature(spec.dtype)
            for name, spec in self.signature().items()
        }

    def parse_examples(self, serialized: Any) -> dict[str, Any]:
        """Serialized ``tf.train.Example``, string ``[rows]``, to raw inputs."""
        parsed = tf.io.parse_example(serialized, self.example_spec())
        padding = {tf.string: "", tf.int64: tf.constant(MISSING_INT, tf.int64)}
        return {
            name: value.to_tensor(default_value=padding[value.dtype]) if isinstance(value, tf.RaggedTensor) else value
            for name, value in parsed.items()
        }

    def __call__(self, raw: dict[str, Any]) -> tuple[Any, Any]:
        """Raw inputs to ids int32 ``[rows, width]`` and values float32 ``[rows, n_numeric]``."""
        schema = self._transform.schema
        rows = tf.shape(next(iter(raw.values())))[0]
        columns: dict[str, Any] = {}
        for feature in schema.categorical:
            if feature.name not in raw:
                absent = MISSING_ID if isinstance(feature, CategoricalFeature) else PADDING_ID
                columns[feature.name] = tf.fill([rows, feature.max_length], tf.constant(absent, tf.int64))
            elif isinstance(feature, CategoricalFeature):
                columns[feature.name] = self._single(feature, raw[feature.name])[:, None]
            else:
                columns[feature.name] = self._ragged(feature, raw[feature.name])
        numbers = {f.name: _finite(raw.get(f.name), rows) for f in [*schema.bucketed, *schema.numeric]}
        for number in schema.bucketed:
            cuts = np.asarray(self._transform.numerics[number.name].boundaries, np.float32)
            x = numbers[number.name]
            bucket = FIRST_OOV_ID + 1 + tf.searchsorted(tf.constant(cuts), x, side="right", out_type=tf.int64)
            columns[number.name] = tf.where(tf.math.is_nan(x), tf.constant(MISSING_ID, tf.int64), bucket)[:, None]
        ids = [columns[name] for name in schema.id_slices]
        values = [self._scale(number, numbers[number.name]) for number in schema.numeric]
        return (
            tf.cast(tf.concat(ids, axis=1), tf.int32) if ids else tf.zeros([rows, 0], tf.int32),
            tf.stack(values, axis=1) if values else tf.zeros([rows, 0], tf.float32),
        )

    def _single(self, feature: Categorical, raw: Any) -> Any:
        tokens = _as_text(raw)
        return tf.where(tokens == "", tf.constant(MISSING_ID, tf.int64), self._value_ids(feature, tokens))

    def _value_ids(self, feature: Categorical, tokens: Any) -> Any:
        owner = self._transform.schema.owner(feature)
        first = first_value_id(owner)
        if owner.encoding == "hash":
            return first + tf.strings.to_hash_bucket_fast(tokens, owner.size)
        if owner.encoding == "identity":
            numbers = tf.strings.to_number(tf.where(tokens == "", "-1", tokens), tf.int64)
            found = tf.where((numbers >= 0) & (numbers < owner.size), numbers, tf.constant(-1, tf.int64))
        elif owner.name in self.tables:
            found = self.tables[owner.name].lookup(tokens)
        else:
            found = tf.fill(tf.shape(tokens), tf.constant(-1, tf.int64))
        unknown = FIRST_OOV_ID + tf.strings.to_hash_bucket_fast(tokens, owner.oov_buckets)
        return tf.where(found >= 0, first + found, unknown)

    def _ragged(self, feature: Any, raw: Any) -> Any:
        """int64 ``[rows, max_length]``: empty values left out, packed to the left, padded with 0."""
        split = feature.separator
        tokens = tf.strings.split(raw, split) if split else tf.RaggedTensor.from_tensor(_as_text(raw))
        tokens = tf.ragged.boolean_mask(tokens, tokens != "")
        if split and feature.dtype == "int64":  # 007 is 7, as in the log, where what is no integer is refused
            tokens = tf.ragged.boolean_mask(tokens, tf.strings.regex_full_match(tokens, r"-?\d{1,18}"))
            numbers = tf.strings.to_number(tokens.flat_values, tf.int64)
            tokens = tokens.with_flat_values(tf.strings.as_string(numbers))
        kept = (
            tokens[:, -feature.max_length :]
            if isinstance(feature, SequenceFeature)
            else tokens[:, : feature.max_length]
        )
        ids = kept.with_flat_values(self._value_ids(feature, kept.flat_values))
        return ids.to_tensor(default_value=0, shape=[None, feature.max_length])

    def _scale(self, feature: NumericFeature, x: Any) -> Any:
        state = self._transform.numerics.get(feature.name)
        if feature.transform == "none" or state is None:
            scaled = x
        else:
            moved = tf.math.log1p(tf.maximum(x, 0.0)) if feature.transform == "log1p" else x
            scaled = (moved - np.float32(state.mean)) * np.float32(1.0 / state.sd)
        return tf.where(tf.math.is_nan(x), tf.zeros_like(x), scaled)  # asked of x: tf.maximum may swallow a NaN


def _finite(raw: Any, rows: Any) -> Any:
    missing = tf.constant(float("nan"), tf.float32)
    if raw is None:
        return tf.fill([rows], missing)
    return tf.where(tf.math.is_finite(raw), raw, missing)


def _as_text(raw: Any) -> Any:
    if raw.dtype == tf.string:
        return raw
    return tf.where(raw == MISSING_INT, "", tf.strings.as_string(raw))


def _write_lines(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return str(path)
