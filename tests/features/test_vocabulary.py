"""Vocabularies: order, limits, and a result that does not depend on how counting was split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsd.features.schema import Schema
from clsd.features.tokens import coded_as
from clsd.features.transform import NumericState, Transform
from clsd.features.vocabulary import COUNTS, Vocabulary, count, merge


def _counts(tokens: list[str | None], clicks: list[int] | None = None) -> pa.Table:
    return count(coded_as(pa.string(), pa.array(tokens, pa.string())), np.array(clicks or [0] * len(tokens), bool))


def _vocabulary(tokens: list[str | None], min_count: int = 1, max_size: int = 100) -> Vocabulary:
    return Vocabulary.from_counts(_counts(tokens), min_count=min_count, max_size=max_size)


def test_frequent_values_come_first_and_bytes_decide_between_equals():
    tokens = ["b", "b", "c", "c", "c", "a", "a", "é", "Z", "z", "😀", "\uffee", "a b"]
    assert _vocabulary(tokens).tokens.to_pylist() == ["c", "a", "b", "Z", "a b", "z", "é", "\uffee", "😀"]


def test_a_value_needs_min_count_rows():
    assert _vocabulary(["a", "b", "b", "c", "c", "c"], min_count=2).tokens.to_pylist() == ["c", "b"]


def test_max_size_keeps_the_most_frequent():
    vocabulary = _vocabulary(["a", "b", "b", "c", "c", "c", "d"], max_size=3)
    assert vocabulary.tokens.to_pylist() == ["c", "b", "a"]
    assert vocabulary.rows.tolist() == [3, 2, 1]
    assert len(vocabulary) == 3


def test_rows_and_clicks_are_counted():
    counts = _counts(["a", "b", "a", None, "a", "b"], [1, 0, 0, 1, 1, 0])
    vocabulary = Vocabulary.from_counts(counts, min_count=1, max_size=9)
    assert vocabulary.table().to_pydict() == {"token": ["a", "b"], "rows": [3, 2], "clicks": [2, 0]}
    assert counts.schema == COUNTS


@pytest.mark.parametrize("token", [None, "", "\n", "\r", "a\nb", "a\r", "\r\n"])
def test_no_id_is_given_to(token: str | None):
    assert _vocabulary([token, "a", token]).tokens.to_pylist() == ["a"]


def test_other_white_space_is_text_like_any_other():
    tokens = ["\x00", "\t", "\x0b", " ", "\x85", "\u2028"]
    assert _vocabulary(tokens[::-1]).tokens.to_pylist() == tokens


def test_any_split_and_order_of_the_counting_gives_the_same_vocabulary():
    rng = np.random.default_rng(7)
    tokens = [f"v{int(t)}" for t in rng.zipf(1.5, 3000) % 300]
    clicks = rng.random(3000) < 0.3
    whole = Vocabulary.from_counts(count(coded_as(pa.string(), pa.array(tokens)), clicks), min_count=2, max_size=80)
    for _ in range(5):
        order = rng.permutation(3000)
        parts = [
            count(coded_as(pa.string(), pa.array([tokens[i] for i in part], pa.string())), clicks[part])
            for part in np.split(order, np.sort(rng.integers(0, 3000, 6)))
        ]
        tree = merge([merge(parts[:2]), merge([]), merge([merge(parts[2:5]), *parts[5:]])])
        assert Vocabulary.from_counts(tree, min_count=2, max_size=80).table().equals(whole.table())


def test_unknown_and_missing_tokens_have_no_position():
    vocabulary = _vocabulary(["a", "a", "b"])
    assert vocabulary.index(pa.array(["b", "c", None, "a", ""])).tolist() == [1, -1, -1, 0, -1]


def test_an_empty_vocabulary_knows_nothing():
    vocabulary = Vocabulary.from_counts(merge([]), min_count=1, max_size=5)
    assert len(vocabulary) == 0
    assert vocabulary.index(pa.array(["a", None])).tolist() == [-1, -1]


@pytest.mark.parametrize("tokens", [[], ["日本", "b", "b", " a ", "\x00"]], ids=["empty", "filled"])
def test_a_vocabulary_is_loaded_as_it_was_saved(tmp_path: Path, tokens: list[str | None]):
    saved = _vocabulary(tokens)
    with (tmp_path / "v.parquet").open("wb") as file:
        saved.write(file)
    loaded = Vocabulary.from_table(pq.read_table(tmp_path / "v.parquet"))
    assert loaded.table().equals(saved.table())
    assert loaded.index(pa.array(["b", "x"])).tolist() == saved.index(pa.array(["b", "x"])).tolist()


def test_a_transform_is_loaded_as_it_was_saved(tmp_path: Path):
    schema = Schema(
        features=[
            {"name": "user", "kind": "categorical", "oov_buckets": 2},
            {"name": "age", "kind": "numeric", "transform": "quantile"},
            {"name": "slot", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 3},
        ]
    )
    numerics = {"age": NumericState(0.1, 1 / 3, (0.5, float(np.float32(0.1))))}
    saved = Transform(schema, {"user": _vocabulary(["b", "b", "a"])}, numerics)
    (tmp_path / "vocabularies").mkdir()
    with (tmp_path / "vocabularies" / "user.parquet").open("wb") as file:
        saved.vocabularies["user"].write(file)
    loaded = Transform.load(schema, saved.describe(), lambda name: pq.read_table(tmp_path / name))
    assert loaded.numerics == saved.numerics
    assert loaded.vocabularies["user"].table().equals(saved.vocabularies["user"].table())
    assert [loaded.table_size(name) for name in ("user", "age", "slot")] == [6, 6, 6]
    assert loaded.id_names("user") == ["(padding)", "(missing)", "(unknown)", "(unknown)", "b", "a"]
    assert loaded.id_names("slot") == ["(padding)", "(missing)", "(unknown)", "0", "1", "2"]


def test_an_extended_vocabulary_keeps_every_id_and_adds_the_new_ones_after_them() -> None:
    old = _vocabulary(["b", "b", "b", "a", "a", "c"])
    counts = _counts(["d", "e", "e", "a", "f", "f", "f", "g", "g"])
    new = old.extended(counts, min_count=2, max_size=5)
    assert new.tokens.to_pylist() == ["b", "a", "c", "f", "e"]  # then g, for which there is no room
    assert new.rows.tolist() == [0, 1, 0, 3, 2]
    assert old.extended(counts, min_count=1, max_size=2).tokens.to_pylist() == ["b", "a", "c"]
    assert old.extended(merge([]), min_count=1, max_size=9).rows.tolist() == [0, 0, 0]
    nothing = _vocabulary([])
    assert nothing.extended(counts, min_count=2, max_size=9).tokens.to_pylist() == ["f", "e", "g"]
