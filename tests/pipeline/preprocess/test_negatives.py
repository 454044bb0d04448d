from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import KEY, LABEL, SPLIT, USER
from clsd.pipeline.preprocess.negatives import Catalogue, add_negatives
from clsd.pipeline.shared.config import NegativeSettings

SCHEMA = Schema(features=[{"name": "item", "kind": "categorical"}], label="click", user="user", intensity="stars")


def _clicks(n: int, items: int, users: int, seed: int = 0) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    item = [f"i{int(i)}" for i in rng.zipf(1.5, n) % items]
    return pa.RecordBatch.from_pydict(
        {
            "item": item,
            "colour": [f"c{i}" for i in item],
            USER: [f"u{i}" for i in rng.integers(0, users, n)],
            "click": np.ones(n, np.int64),
            "stars": rng.random(n),
            KEY: rng.permutation(n).astype(np.uint64),
            LABEL: np.ones(n, np.int64),
            SPLIT: rng.choice(np.array([0, 0, 0, 1, 2], np.int8), n),
        }
    )


def _settings(**changes: object) -> NegativeSettings:
    return NegativeSettings(**{"per_click": 3, "item": "item", "item_columns": ["colour"], **changes})


def _catalogue(settings: NegativeSettings, *batches: pa.RecordBatch) -> pa.Table:
    combine = Catalogue(settings)
    accumulators = [combine.add_input(combine.create_accumulator(), batch) for batch in batches]
    return combine.extract_output(combine.merge_accumulators(accumulators))


def test_the_catalogue_is_the_training_splits_items_with_their_clicks() -> None:
    batch = _clicks(500, 40, 20)
    table = _catalogue(_settings(), *(batch.slice(at, 50) for at in range(0, 500, 50)))
    counts: dict[str, int] = {}
    for row in batch.to_pylist():
        if row[SPLIT] == 0:
            counts[row["item"]] = counts.get(row["item"], 0) + 1
    assert dict(zip(table["item"].to_pylist(), table["_clicks"].to_pylist(), strict=True)) == counts
    assert table["item"].to_pylist() == sorted(counts)
    assert table["colour"].to_pylist() == [f"c{item}" for item in sorted(counts)]


@pytest.mark.parametrize("source", ["uniform", "popularity"])
def test_a_non_click_is_an_item_that_its_user_clicked_in_no_split(source: str) -> None:
    settings, batch = _settings(**{"from": source}), _clicks(500, 40, 20)
    out = add_negatives(settings, SCHEMA, 1, batch, _catalogue(settings, batch))
    clicked = {(row[USER], row["item"]) for row in batch.to_pylist()}
    sampled = out.slice(500).to_pylist()
    assert len(sampled) == 1500
    assert all((row[USER], row["item"]) not in clicked for row in sampled)
    assert all(row["colour"] == f"c{row['item']}" for row in sampled)
    assert {(row["click"], row[LABEL], row["stars"]) for row in sampled} == {(0, 0, None)}
    assert out.slice(0, 500).equals(batch)
    assert len(set(out.column(KEY).to_pylist())) == 2000


def test_each_click_has_its_non_clicks_in_its_own_split_and_user() -> None:
    settings, batch = _settings(), _clicks(200, 60, 10)
    out = add_negatives(settings, SCHEMA, 1, batch, _catalogue(settings, batch))
    mine = [(row[USER], row[SPLIT]) for row in batch.to_pylist() for _ in range(3)]
    assert [(row[USER], row[SPLIT]) for row in out.slice(200).to_pylist()] == mine


def test_draws_depend_on_seed_and_key_and_not_on_the_batch() -> None:
    settings, batch = _settings(), _clicks(300, 60, 10)
    catalogue = _catalogue(settings, batch)
    whole = add_negatives(settings, SCHEMA, 1, batch, catalogue)
    users = [f"u{i}" for i in range(10)]
    parts = []
    for user in reversed(users):
        mine = batch.filter(pa.array([u == user for u in batch.column(USER).to_pylist()]))
        parts += add_negatives(settings, SCHEMA, 1, mine, catalogue).to_pylist()
    by_key = {row[KEY]: row for row in parts}
    assert all(by_key[row[KEY]] == row for row in whole.to_pylist())
    other = add_negatives(settings, SCHEMA, 2, batch, catalogue)
    assert other.column("item").to_pylist() != whole.column("item").to_pylist()


def test_popularity_draws_in_proportion_to_clicks() -> None:
    items = pa.table({"item": ["a", "b", "c"], "colour": ["", "", ""], "_clicks": [80, 15, 5]})
    n = 4000
    batch = pa.RecordBatch.from_pydict(
        {
            "item": ["z"] * n,
            "colour": [""] * n,
            USER: [f"u{i}" for i in range(n)],
            "click": np.ones(n, np.int64),
            "stars": np.ones(n),
            KEY: np.arange(n, dtype=np.uint64),
            LABEL: np.ones(n, np.int64),
            SPLIT: np.zeros(n, np.int8),
        }
    )
    for source, shares in (("popularity", [0.8, 0.15, 0.05]), ("uniform", [1 / 3] * 3)):
        drawn = (
            add_negatives(_settings(**{"from": source}), SCHEMA, 1, batch, items).slice(n).column("item").to_pylist()
        )
        result = [drawn.count(item) / len(drawn) for item in "abc"]
        assert np.allclose(result, shares, atol=0.02)  # more than 4 standard deviations of 12,000 draws


def test_a_user_who_clicked_everything_has_no_non_clicks() -> None:
    settings = _settings()
    batch = _clicks(300, 3, 1)
    out = add_negatives(settings, SCHEMA, 1, batch, _catalogue(settings, batch))
    assert out.num_rows == 300
