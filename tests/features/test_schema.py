"""Schema: invalid schemas, and the position of each feature in a row."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from clsd.features.schema import Schema

USER = {"name": "user", "kind": "categorical"}
ITEM = {"name": "item", "kind": "categorical", "dtype": "int64"}
PRICE = {"name": "price", "kind": "numeric"}
GENRES = {"name": "genres", "kind": "bag", "max_length": 3}


def _schema(*features: dict[str, Any], **roles: Any) -> Schema:
    return Schema(features=list(features), **roles)


REFUSED = {
    "an unknown key of the schema": ([USER], {"labels": "click"}, r"labels\n.*Extra inputs"),
    "an unknown key of a feature": ([{**USER, "vocab": 3}], {}, r"vocab\n.*Extra inputs"),
    "a key of another kind": ([{**USER, "transform": "log1p"}], {}, r"transform\n.*Extra inputs"),
    "an unknown kind": ([{"name": "user", "kind": "category"}], {}, "'category' found"),
    "no feature": ([], {}, "at least 1 item"),
    "a name with a blank": ([{**USER, "name": "user id"}], {}, "String should match"),
    "an empty name": ([{**USER, "name": ""}], {}, "String should match"),
    "a name twice": ([USER, PRICE, {**GENRES, "name": "user"}], {}, "feature 'user' is listed twice"),
    "a group that is no feature": (
        [USER],
        {"groups": ["usr"]},
        "'usr' is not a categorical feature; did you mean 'user'",
    ),
    "a group that is numeric": ([USER, PRICE], {"groups": ["price"]}, "groups: 'price' is not a categorical feature"),
    "a group that is a bag": ([USER, GENRES], {"groups": ["genres"]}, "groups: 'genres' is not a categorical feature"),
    "a share with nobody": ([USER, {**GENRES, "share": "usr"}], {}, "'genres': share: 'usr' is not a feature"),
    "a share with itself": ([USER, {**GENRES, "share": "genres"}], {}, "'genres': share: 'genres' is not a feature"),
    "a share with a number": ([PRICE, {**GENRES, "share": "price"}], {}, "'genres': share: 'price' is not a feature"),
    "a share of a share": (
        [USER, {**GENRES, "share": "user"}, {**GENRES, "name": "tags", "share": "genres"}],
        {},
        "'tags': share: 'genres' is not a feature with a vocabulary of its own",
    ),
    "a share across types": ([ITEM, {**GENRES, "share": "item"}], {}, "dtype must be that of 'item', int64"),
    "the label as a feature": ([USER, {**PRICE, "name": "click"}], {}, "'click' reads 'click', .* a leak"),
    "the label through column": ([{**USER, "column": "y"}], {"label": "y"}, "'user' reads 'y', .* a leak"),
    "the intensity as a feature": ([{**PRICE, "column": "rating"}], {"intensity": "rating"}, "a leak"),
    "an identity of text": ([{**USER, "encoding": "identity", "size": 3}], {}, "needs dtype: int64"),
    "an identity without size": ([{**ITEM, "encoding": "identity"}], {}, "'identity' needs size"),
    "a hash without size": ([{**USER, "encoding": "hash"}], {}, "'hash' needs size"),
    "a bag without length": ([{"name": "genres", "kind": "bag"}], {}, r"max_length\n.*Field required"),
    "a sequence of no values": ([{**GENRES, "kind": "sequence", "max_length": 0}], {}, "greater than or equal to 1"),
    "a long categorical": ([{**USER, "max_length": 2}], {}, "Input should be 1"),
    "no bucket for the unknown": ([{**USER, "oov_buckets": 0}], {}, "greater than or equal to 1"),
    "a single quantile": ([{**PRICE, "transform": "quantile", "buckets": 1}], {}, "greater than or equal to 2"),
    "nothing for the backbone": ([{**USER, "input": False}], {}, "the backbone would read nothing"),
}


@pytest.mark.parametrize(("features", "roles", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_is(features: list[dict[str, Any]], roles: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        _schema(*features, **roles)


def test_a_schema_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        _schema(USER).label = "bought"


def test_two_features_may_read_one_column():
    schema = _schema(PRICE, {**PRICE, "name": "price_bucket", "column": "price", "transform": "quantile"})
    assert [f.source for f in schema.features] == ["price", "price"]
    assert schema.columns == ["price", "click"]


def test_a_group_may_be_hidden_from_the_backbone():
    assert _schema(ITEM, {**USER, "input": False}, groups=["user"]).groups == ["user"]


def test_one_column_features_stand_before_bags_and_sequences():
    schema = _schema(
        GENRES,
        {**PRICE, "transform": "quantile"},
        USER,
        {"name": "history", "kind": "sequence", "max_length": 4, "dtype": "int64", "share": "item"},
        {**PRICE, "name": "age", "transform": "log1p"},
        ITEM,
    )
    assert schema.id_slices == {
        "user": slice(0, 1),
        "item": slice(1, 2),
        "price": slice(2, 3),
        "genres": slice(3, 6),
        "history": slice(6, 10),
    }
    assert (schema.fixed_width, schema.width) == (3, 10)
    assert [f.name for f in schema.ragged] == ["genres", "history"]
    assert [f.name for f in schema.numeric] == ["age"]
    assert [f.name for f in schema.bucketed] == ["price"]


def test_a_bag_of_one_value_is_still_ragged():
    schema = _schema({**GENRES, "max_length": 1}, USER)
    assert schema.id_slices == {"user": slice(0, 1), "genres": slice(1, 2)}
    assert schema.fixed_width == 1


def test_numbers_alone_have_no_ids():
    schema = _schema(PRICE)
    assert (schema.id_slices, schema.width, schema.fixed_width) == ({}, 0, 0)


def test_every_column_is_listed_once_in_order():
    schema = _schema(
        USER,
        {**ITEM, "column": "movie"},
        label="bought",
        user="user",
        timestamp="time",
        intensity="stars",
        passthrough=["title", "movie"],
    )
    assert schema.columns == ["user", "movie", "bought", "time", "stars", "title"]


def test_a_shared_vocabulary_belongs_to_its_owner():
    schema = _schema({**GENRES, "share": "user"}, USER, {**ITEM, "encoding": "hash", "size": 5})
    assert [f.name for f in schema.vocabularies] == ["user"]
    assert schema.vocabulary_source(schema.feature("genres")).name == "user"
    assert schema.vocabulary_source(schema.feature("item")).name == "item"


def test_a_wrong_name_is_answered_with_the_closest():
    with pytest.raises(KeyError, match="no feature 'usr'; did you mean 'user'"):
        _schema(USER, PRICE).feature("usr")


def test_the_digest_does_not_see_how_the_same_is_written():
    written = _schema(USER, {**PRICE, "min": 0, "max": 5})
    spelled = Schema.model_validate_json(
        '{"label": "click", "groups": [], "features": [{"kind": "categorical", "name": "user", "column": "user",'
        ' "oov_buckets": 1}, {"max": 5.0, "min": 0.0, "kind": "numeric", "name": "price", "transform": "standardise"}]}'
    )
    assert spelled.digest == written.digest
    assert len(written.digest) == 16


@pytest.mark.parametrize(
    "other",
    [
        _schema(PRICE, USER),
        _schema(USER),
        _schema({**USER, "column": "uid"}, PRICE),
        _schema({**USER, "oov_buckets": 2}, PRICE),
        _schema(USER, {**PRICE, "min": 0.0}),
        _schema(USER, {**PRICE, "input": False}),
        _schema(USER, PRICE, label="bought"),
        _schema(USER, PRICE, groups=["user"]),
        _schema(USER, PRICE, passthrough=["title"]),
    ],
    ids=["order", "fewer", "column", "oov", "min", "input", "label", "groups", "passthrough"],
)
def test_the_digest_sees_a_difference_of(other: Schema):
    assert other.digest != _schema(USER, PRICE).digest
