"""Encoding, compared with results by hand on small rows and with a row-by-row reference on random rows."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.encode import encode
from clsd.features.schema import MISSING_INT, Schema
from clsd.features.tf_runtime import tf
from clsd.features.tokens import arrow_type, coded_as, coded_lists
from clsd.features.transform import NumericState, Transform
from clsd.features.vocabulary import Vocabulary, count

PADDING, MISSING, UNKNOWN, A, B = 0, 1, 2, 3, 4  # ids where the vocabulary is a, b and oov_buckets is 1


def _transform(*features: dict[str, Any], numerics: dict[str, NumericState] | None = None) -> Transform:
    """Vocabularies of text hold a and b, those of integers 10 and -3."""
    schema = Schema(features=list(features))
    known = {"string": ["a", "a", "b"], "int64": ["10", "10", "-3"]}
    vocabularies = {
        f.name: Vocabulary.from_counts(
            count(coded_as(pa.string(), pa.array(known[f.dtype])), np.zeros(3, bool)), min_count=1, max_size=f.max_size
        )
        for f in schema.vocabularies
    }
    return Transform(schema, vocabularies, numerics or {})


def _encode_one(feature: dict[str, Any], column: list[Any], **state: Any) -> list[Any]:
    """Ids, or values if there are no ids, of a schema with one feature."""
    feature = {"name": "f", **feature}
    transform = _transform(feature, numerics={"f": NumericState(**state)})
    kind = arrow_type(transform.schema.features[0])
    ids, values = encode(transform, pa.record_batch({"f": pa.array(column, kind)}))
    return ids.tolist() if ids.shape[1] else values.tolist()


@cache
def _bin(token: str, bins: int) -> int:
    return int(tf.strings.to_hash_bucket_fast(token.encode(), bins))


def test_text_is_known_unknown_or_missing():
    ids = _encode_one({"kind": "categorical"}, ["a", "b", "c", None, "", "A", " a"])
    assert ids == [[A], [B], [UNKNOWN], [MISSING], [MISSING], [UNKNOWN], [UNKNOWN]]


def test_integers_are_known_unknown_or_missing():
    ids = _encode_one({"kind": "categorical", "dtype": "int64"}, [10, -3, 0, None, MISSING_INT])
    assert ids == [[A], [B], [UNKNOWN], [MISSING], [MISSING]]


def test_unknown_values_are_spread_over_the_oov_buckets():
    words = [f"w{i}" for i in range(40)]
    ids = _encode_one({"kind": "categorical", "oov_buckets": 3}, [*words, "a", None])
    assert ids == [[UNKNOWN + _bin(word, 3)] for word in words] + [[5], [MISSING]]
    assert {i for (i,) in ids[:40]} == {2, 3, 4}


def test_an_identity_out_of_range_is_unknown():
    feature = {"kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 3}
    assert _encode_one(feature, [0, 2, 3, -1, 2**62, None]) == [[3], [5], [UNKNOWN], [UNKNOWN], [UNKNOWN], [MISSING]]


def test_a_hash_is_tensorflows_bin_after_the_reserved_ids():
    ids = _encode_one({"kind": "categorical", "encoding": "hash", "size": 7}, ["a", "日本", "", None])
    assert ids == [[3 + _bin("a", 7)], [3 + _bin("日本", 7)], [MISSING], [MISSING]]


def test_a_bag_keeps_its_first_values():
    assert _encode_one({"kind": "bag", "max_length": 2}, [["a", "b", "c", "d"]]) == [[A, B]]


def test_a_sequence_keeps_its_last_values():
    ids = _encode_one({"kind": "sequence", "max_length": 2}, [["c", "d", "a", "b"], ["b"], ["b", "a"]])
    assert ids == [[A, B], [B, PADDING], [B, A]]


def test_a_list_leaves_out_what_is_missing_before_it_is_cut():
    column = [[None, "a", "", "b", "c"], [], None, [None, ""], ["b", None]]
    bag = _encode_one({"kind": "bag", "max_length": 2}, column)
    sequence = _encode_one({"kind": "sequence", "max_length": 2}, [[*row[::-1]] if row else row for row in column])
    assert bag == [[A, B], [0, 0], [0, 0], [0, 0], [B, 0]]
    assert sequence == [[B, A], [0, 0], [0, 0], [0, 0], [B, 0]]


def test_text_is_split_at_the_whole_separator():
    ids = _encode_one({"kind": "bag", "max_length": 3, "separator": "||"}, ["a||b", "a|b", "||b||||a||", "", None])
    assert ids == [[A, B, 0], [UNKNOWN, 0, 0], [B, A, 0], [0, 0, 0], [0, 0, 0]]


def test_text_of_integers_is_split_and_read_as_integers():
    feature = {"kind": "bag", "max_length": 3, "separator": " ", "dtype": "int64"}
    assert _encode_one(feature, ["10 -3 7", "010", "", None, " 10  -3"]) == [
        [A, B, UNKNOWN],
        [A, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [A, B, 0],
    ]


def test_a_shared_vocabulary_gives_the_same_ids_to_both():
    transform = _transform(
        {"name": "last", "kind": "sequence", "max_length": 2, "share": "user"}, {"name": "user", "kind": "categorical"}
    )
    batch = pa.record_batch({"user": ["b", "x"], "last": [["b", "x"], ["a"]]})
    assert encode(transform, batch)[0].tolist() == [[B, B, UNKNOWN], [UNKNOWN, A, 0]]
    assert transform.table_size("last") == transform.table_size("user") == 5


def test_a_bucket_holds_its_lower_boundary():
    column = [0.5, 1.0, 1.5, 2.0, 3.0, None, math.nan, math.inf, -math.inf]
    ids = _encode_one({"kind": "numeric", "transform": "quantile"}, column, boundaries=(1.0, 2.0))
    assert ids == [[3], [4], [4], [5], [5], [MISSING], [MISSING], [MISSING], [MISSING]]


def test_a_missing_number_becomes_the_mean():
    values = _encode_one({"kind": "numeric"}, [5.0, 3.0, None, math.nan, math.inf, 1e39], mean=3.0, sd=4.0)
    assert values == [[0.5], [0.0], [0.0], [0.0], [0.0], [0.0]]


def test_log1p_takes_negative_numbers_for_0():
    values = _encode_one({"kind": "numeric", "transform": "log1p"}, [math.e - 1, 0.0, -7.0, None], mean=0.5, sd=0.5)
    assert np.asarray(values)[:, 0] == pytest.approx([1.0, -1.0, -1.0, 0.0], abs=1e-6)


def test_a_number_without_transform_stays_itself():
    assert _encode_one({"kind": "numeric", "transform": "none"}, [5.5, -2.0, None], mean=9.0) == [[5.5], [-2.0], [0.0]]


def test_a_column_that_is_not_there_is_all_missing():
    transform = _transform(
        {"name": "user", "kind": "categorical"},
        {"name": "tags", "kind": "bag", "max_length": 2},
        {"name": "words", "kind": "bag", "max_length": 1, "separator": " ", "dtype": "int64"},
        {"name": "price", "kind": "numeric"},
        {"name": "age", "kind": "numeric", "transform": "quantile"},
        numerics={"price": NumericState(3.0, 2.0), "age": NumericState(boundaries=(1.0,))},
    )
    ids, values = encode(transform, pa.record_batch({"other": [1, 2]}))
    assert ids.tolist() == [[MISSING, MISSING, 0, 0, 0]] * 2
    assert values.tolist() == [[0.0]] * 2


def test_a_column_is_read_as_the_type_of_the_schema():
    transform = _transform(
        {"name": "user", "kind": "categorical"}, {"name": "n", "kind": "categorical", "dtype": "int64"}
    )
    batch = pa.record_batch({"user": pa.array(["a", None]).dictionary_encode(), "n": pa.array([10, None], pa.int8())})
    assert encode(transform, batch)[0].tolist() == [[A, A], [MISSING, MISSING]]


def test_no_rows_give_no_rows(transform: Transform, raw_batch: pa.RecordBatch):
    ids, values = encode(transform, raw_batch.slice(0, 0))
    assert ids.shape == (0, transform.schema.width)
    assert values.shape == (0, len(transform.schema.numeric))


def test_a_slice_is_encoded_like_the_whole(transform: Transform, raw_batch: pa.RecordBatch):
    ids, values = encode(transform, raw_batch)
    for start, length in [(1, 7), (131, 200), (499, 1)]:
        part_ids, part_values = encode(transform, raw_batch.slice(start, length))
        assert (part_ids == ids[start : start + length]).all()
        assert (part_values == values[start : start + length]).all()


def test_the_chunks_of_a_table_are_encoded_like_one(transform: Transform, raw_batch: pa.RecordBatch):
    ids, values = encode(transform, raw_batch)
    parts = [raw_batch.slice(start, length) for start, length in [(0, 130), (130, 0), (130, len(raw_batch) - 130)]]
    found_ids, found_values = encode(transform, pa.Table.from_batches(parts))
    assert (found_ids == ids).all()
    assert (found_values == values).all()


def test_tokens_of_a_list_are_one_a_value():
    schema = Schema(features=[{"name": "f", "kind": "bag", "max_length": 1, "separator": ",", "dtype": "int64"}])
    values, lengths = coded_lists(schema.categorical[0], pa.array(["1,02", "", None, "3,1"]))
    assert [values.tokens[c].as_py() if c >= 0 else None for c in values.codes] == ["1", "2", None, "3", "1"]
    assert lengths.tolist() == [2, 1, 0, 2]


def test_a_constant_column_has_deviation_1():
    assert NumericState.from_moments([(400, 0.1, 0.0), (600, 0.1, 0.0)]) == NumericState(mean=0.1, sd=1.0)
    assert NumericState.from_moments([(0, 0.0, 0.0)]) == NumericState(mean=0.0, sd=1.0)


def test_moments_give_the_population_deviation():
    assert NumericState.from_moments([(4, 5.0, 20.0)]) == NumericState(mean=5.0, sd=math.sqrt(5.0))


def test_boundaries_are_values_of_the_sample_each_once():
    sample = np.array([5.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 9.0])
    assert NumericState.from_sample(sample, 4).boundaries == (float(np.float32(0.1)),)
    assert NumericState.from_sample(np.arange(9.0), 4).boundaries == (2.0, 4.0, 6.0)
    assert NumericState.from_sample(np.array([]), 4).boundaries == ()


# The reference: one row, one value at a time.


def _naive_id(transform: Transform, feature: Any, value: Any) -> int:
    vocabulary_source = transform.schema.vocabulary_source(feature)
    token, first = str(value), 2 + vocabulary_source.oov_buckets
    if vocabulary_source.encoding == "hash":
        return first + _bin(token, vocabulary_source.size)
    if vocabulary_source.encoding == "identity":
        known = {str(i): i for i in range(vocabulary_source.size)}
    else:
        known = {t: i for i, t in enumerate(transform.vocabularies[vocabulary_source.name].tokens.to_pylist())}
    return first + known[token] if token in known else 2 + _bin(token, vocabulary_source.oov_buckets)


def _naive_many(transform: Transform, feature: Any, cell: Any) -> list[int]:
    pieces = cell or []
    if feature.separator:
        pieces = [int(p) if feature.dtype == "int64" else p for p in (cell or "").split(feature.separator) if p]
    ids = [_naive_id(transform, feature, p) for p in pieces if p not in (None, "", MISSING_INT)]
    kept = ids[-feature.max_length :] if feature.kind == "sequence" else ids[: feature.max_length]
    return kept + [PADDING] * (feature.max_length - len(kept))


def _naive_number(transform: Transform, feature: Any, cell: float | None) -> float | int:
    state = transform.numerics[feature.name]
    with np.errstate(over="ignore"):
        x = float(np.float32(math.nan if cell is None else cell))
    if feature.transform == "quantile":
        return 3 + sum(x >= cut for cut in state.boundaries) if math.isfinite(x) else MISSING
    if not math.isfinite(x):
        return 0.0
    if feature.transform == "none":
        return x
    return ((math.log1p(max(x, 0.0)) if feature.transform == "log1p" else x) - state.mean) / state.sd


def _naive(transform: Transform, row: dict[str, Any]) -> tuple[list[int], list[float]]:
    single, bucketed, many, values = [], [], [], []
    for feature in transform.schema.features:
        cell = row.get(feature.source)
        if feature.kind == "categorical":
            single.append(MISSING if cell in (None, "", MISSING_INT) else _naive_id(transform, feature, cell))
        elif feature.kind == "numeric":
            (bucketed if feature.transform == "quantile" else values).append(_naive_number(transform, feature, cell))
        else:
            many += _naive_many(transform, feature, cell)
    return single + bucketed + many, values


def test_random_rows_are_encoded_as_the_reference_does(transform: Transform, raw_batch: pa.RecordBatch):
    ids, values = encode(transform, raw_batch)
    expected = [_naive(transform, row) for row in raw_batch.to_pylist()]
    assert ids.dtype == np.int32
    assert values.dtype == np.float32
    np.testing.assert_array_equal(ids, [row for row, _ in expected])
    np.testing.assert_allclose(values, [row for _, row in expected], rtol=1e-6, atol=1e-6)


def test_the_random_rows_hold_every_sort_of_id(transform: Transform, raw_batch: pa.RecordBatch):
    ids, _ = encode(transform, raw_batch)
    for feature in transform.schema.categorical:
        if feature.optional:
            continue
        result = set(ids[:, transform.schema.id_slices[feature.name]].ravel().tolist())
        vocabulary_source = transform.schema.vocabulary_source(feature)
        reserved = {MISSING if feature.kind == "categorical" else PADDING}
        if vocabulary_source.encoding != "hash":
            reserved |= set(range(2, 2 + vocabulary_source.oov_buckets))
        assert result >= reserved, feature.name
        assert max(result) >= 2 + vocabulary_source.oov_buckets, feature.name
        assert max(result) < transform.table_size(feature.name), feature.name
