"""Raw rows to ids and values as a TensorFlow graph: the transform that rides inside the exported model.

The twin of :mod:`features.encode`; the export's canary holds the two against each other on real rows.

An input of one row stands for every row of a request, so what all rows have in common is sent once.
"""

from __future__ import annotations

from collections.abc import Sequence
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

#: What stands for a missing value.
_MISSING = {tf.string: "", tf.int64: MISSING_INT, tf.float32: float("nan")}


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

    def rank_signature(self, candidates: Sequence[str]) -> dict[str, Any]:
        """As :meth:`signature`, for requests of N candidates each: the inputs of a candidate have a second dimension, N."""
        specs = self.signature()
        for name in candidates:
            spec = specs[name]
            specs[name] = tf.TensorSpec([None, None, *spec.shape[1:]], spec.dtype, name=name)
        return specs

    def example_spec(self) -> dict[str, Any]:
        """How a ``tf.train.Example`` holds the same raw inputs; what an Example leaves out is missing."""
        return {
            name: tf.io.FixedLenFeature([], spec.dtype, default_value=_MISSING[spec.dtype])
            if spec.shape.rank == 1
            else tf.io.RaggedFeature(spec.dtype)
            for name, spec in self.signature().items()
        }

    def parse_examples(self, serialized: Any) -> dict[str, Any]:
        """Serialized ``tf.train.Example``, string ``[rows]``, to raw inputs."""
        parsed = tf.io.parse_example(serialized, self.example_spec())
        return {
            name: value.to_tensor(default_value=tf.constant(_MISSING[value.dtype], value.dtype))
            if isinstance(value, tf.RaggedTensor)
            else value
            for name, value in parsed.items()
        }

    def __call__(self, raw: dict[str, Any]) -> tuple[Any, Any]:
        """Raw inputs to ids int32 ``[rows, width]`` and values float32 ``[rows, n_numeric]``."""
        names, ids, values = self._columns(
            raw, _common([_rows(x) for x in raw.values()]), self._transform.schema.features
        )
        return self._in_order(names, ids, values)

    def rank(self, raw: dict[str, Any], candidates: Sequence[str]) -> tuple[Any, Any, Any]:
        """Raw inputs of :meth:`rank_signature`; what is no candidate's is transformed once a request.

        Returns:
            ids int32 ``[rows * N, width]``, values float32 ``[rows * N, n_numeric]``, and ``[rows, N]`` itself, int32 ``[2]``.
        """
        features = self._transform.schema.features
        once = {name: x for name, x in raw.items() if name not in candidates}
        shapes = [tf.shape(raw[name])[:2] for name in candidates]
        whole = _common([*shapes, *(tf.stack([_rows(x), 1]) for x in once.values())])
        rows, n = tf.unstack(whole)
        each = {}
        for name in candidates:
            x = raw[name]
            if x.shape.rank == 2:
                each[name] = tf.reshape(tf.broadcast_to(x, whole), [-1])
            else:
                width = tf.shape(x)[2]
                wide = tf.broadcast_to(x, tf.stack([rows, n, width]))
                each[name] = tf.reshape(wide, tf.stack([rows * n, width]))
        names, ids, values = self._columns(each, rows * n, [f for f in features if f.name in candidates])
        mine = self._columns(once, rows, [f for f in features if f.name not in candidates])
        request = tf.range(rows * n) // tf.maximum(n, 1)
        ids, values = (
            tf.concat([tf.gather(of_request, request), of_candidate], axis=1)
            for of_request, of_candidate in ((mine[1], ids), (mine[2], values))
        )
        return *self._in_order([*mine[0], *names], ids, values), whole

    def _in_order(self, names: list[str], ids: Any, values: Any) -> tuple[Any, Any]:
        """Columns of the features of these names, brought into the schema's order."""
        schema, starts, at = self._transform.schema, {}, 0
        slices = schema.id_slices
        for name in names:
            if name in slices:
                starts[name] = at
                at += slices[name].stop - slices[name].start
        ids_order = [starts[name] + i for name, of in slices.items() for i in range(of.stop - of.start)]
        numeric = [f.name for f in schema.numeric]
        found = [name for name in names if name in numeric]
        return _gathered(ids, ids_order), _gathered(values, [found.index(name) for name in numeric])

    def _columns(self, raw: dict[str, Any], rows: Any, features: Sequence[Any]) -> tuple[list[str], Any, Any]:
        """Some features' ids int32 ``[rows, ...]`` and values float32 ``[rows, ...]``, and the names of the features whose
        columns these are, in order. Inputs have so many rows, or one.

        What can be done for many features at a time is: a request waits for each operation longer than for its rows.
        """
        raw = {name: _with_rows(x, rows) for name, x in raw.items()}
        names: list[str] = []
        ids: list[Any] = []
        single = [f for f in features if isinstance(f, CategoricalFeature)]
        for dtype in ("string", "int64"):
            mine = [f for f in single if f.dtype == dtype and f.name in raw]
            if mine:
                ids.append(self._single(mine, [raw[f.name] for f in mine]))
                names += [f.name for f in mine]
        numbers = [f for f in features if isinstance(f, NumericFeature)]
        for number in (f for f in numbers if f.transform == "quantile" and f.name in raw):
            cuts = tf.constant(np.asarray(self._transform.numerics[number.name].boundaries, np.float32))
            x = raw[number.name]
            bucket = FIRST_OOV_ID + 1 + tf.searchsorted(cuts, x, side="right", out_type=tf.int64)
            ids.append(tf.where(tf.math.is_finite(x), bucket, tf.constant(MISSING_ID, tf.int64))[:, None])
            names.append(number.name)
        ragged = [f for f in features if not isinstance(f, CategoricalFeature | NumericFeature)]
        for several in (f for f in ragged if f.name in raw):
            ids.append(self._ragged(several, raw[several.name]))
            names.append(several.name)
        absent = [f for f in [*single, *numbers, *ragged] if f.name not in raw]
        for feature in (f for f in absent if f.name in self._transform.schema.id_slices):
            value = PADDING_ID if feature in ragged else MISSING_ID
            ids.append(tf.fill([rows, getattr(feature, "max_length", 1)], tf.constant(value, tf.int64)))
            names.append(feature.name)
        numeric = [f for f in numbers if f.transform != "quantile"]
        there = [f for f in numeric if f.name in raw]
        values = self._scaled(there, [raw[f.name] for f in there]) if there else tf.zeros([rows, 0], tf.float32)
        lacking = [f.name for f in numeric if f.name not in raw]
        if lacking:
            values = tf.concat([values, tf.zeros([rows, len(lacking)], tf.float32)], axis=1)
        joined = tf.cast(tf.concat(ids, axis=1), tf.int32) if ids else tf.zeros([rows, 0], tf.int32)
        return [*names, *(f.name for f in there), *lacking], joined, values

    def _single(self, features: list[CategoricalFeature], raw: list[Any]) -> Any:
        """int64 ``[rows, features]`` of features of one dtype."""
        together = tf.stack(raw, axis=1)
        absent = together == _MISSING[together.dtype]
        ids = tf.stack([self._value_ids(f, _as_text(x)) for f, x in zip(features, raw, strict=True)], axis=1)
        return tf.where(absent, tf.constant(MISSING_ID, tf.int64), ids)

    def _value_ids(self, feature: Categorical, tokens: Any) -> Any:
        owner = self._transform.schema.owner(feature)
        first = first_value_id(owner)
        if owner.encoding == "hash":
            return first + tf.strings.to_hash_bucket_fast(tokens, owner.size)
        if owner.encoding == "identity":
            small = (tokens != "") & (tf.strings.length(tokens) < 19)
            numbers = tf.strings.to_number(tf.where(small, tokens, "-1"), tf.int64)
            found = tf.where((numbers >= 0) & (numbers < owner.size), numbers, tf.constant(-1, tf.int64))
        elif owner.name in self.tables:
            found = self.tables[owner.name].lookup(tokens)
        else:
            found = tf.fill(tf.shape(tokens), tf.constant(-1, tf.int64))
        if owner.oov_buckets == 1:  # -1 is the bin before the first value
            return first + found
        unknown = FIRST_OOV_ID + tf.strings.to_hash_bucket_fast(tokens, owner.oov_buckets)
        return tf.where(found >= 0, first + found, unknown)

    def _ragged(self, feature: Any, raw: Any) -> Any:
        """int64 ``[rows, max_length]``: empty values left out, packed to the left, padded with 0."""
        split = feature.separator
        tokens = tf.strings.split(raw, split) if split else tf.RaggedTensor.from_tensor(_as_text(raw))
        tokens = tf.ragged.boolean_mask(tokens, tokens != "")
        if split and feature.dtype == "int64":  # 007 is 7, as in the log, where what is no integer is refused
            tokens = tf.ragged.boolean_mask(tokens, tf.strings.regex_full_match(tokens, r"-?\d{1,19}"))
            short = tf.strings.regex_replace(tokens.flat_values, r"^(-?)0+(\d)", r"\1\2")
            tokens = tokens.with_flat_values(tf.where(short == "-0", "0", short))
        kept = (
            tokens[:, -feature.max_length :]
            if isinstance(feature, SequenceFeature)
            else tokens[:, : feature.max_length]
        )
        ids = kept.with_flat_values(self._value_ids(feature, kept.flat_values))
        return ids.to_tensor(default_value=0, shape=[None, feature.max_length])

    def _scaled(self, features: list[NumericFeature], raw: list[Any]) -> Any:
        """float32 ``[rows, features]``: (t(x) - mean) / sd; 0, the mean, where there is no number."""
        states = [self._transform.numerics.get(f.name) if f.transform != "none" else None for f in features]
        mean = np.array([state.mean if state else 0.0 for state in states], np.float32)
        inverse = np.array([1.0 / state.sd if state else 1.0 for state in states], np.float32)
        logs = np.array(
            [f.transform == "log1p" and state is not None for f, state in zip(features, states, strict=True)]
        )
        x = tf.stack(raw, axis=1)
        moved = tf.where(logs, tf.math.log1p(tf.maximum(x, 0.0)), x) if logs.any() else x
        return tf.where(tf.math.is_finite(x), (moved - mean) * inverse, 0.0)  # asked of x: tf.maximum may swallow a NaN


def missing(dtype: Any, rank: int) -> Any:
    """What stands for an input that a request leaves out: one missing value, a NumPy array of that rank."""
    return np.full([1] * rank, _MISSING[dtype], dtype.as_numpy_dtype)


def _rows(x: Any) -> Any:
    return tf.size(x) if x.shape.rank == 1 else tf.shape(x)[0]


def _common(shapes: list[Any]) -> Any:
    """The shape that all of some shapes, or numbers of rows, are brought to: 1 gives way, to 0 as well."""
    together = tf.stack(shapes)
    return tf.where(tf.reduce_any(together == 0, axis=0), 0, tf.reduce_max(together, axis=0))


def _with_rows(x: Any, rows: Any) -> Any:
    """An input of so many rows: itself, or its one row over and over."""
    shape = rows[None] if x.shape.rank == 1 else tf.stack([rows, tf.shape(x)[1]])
    return tf.broadcast_to(x, shape)


def _gathered(columns: Any, order: list[int]) -> Any:
    return columns if order == list(range(len(order))) else tf.gather(columns, order, axis=1)


def _as_text(raw: Any) -> Any:
    if raw.dtype == tf.string:
        return raw
    return tf.where(raw == MISSING_INT, "", tf.strings.as_string(raw))


def _write_lines(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return str(path)
