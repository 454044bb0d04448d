"""The sample of the Open Bandit Dataset (Saito et al., 2020) as one click log.

Six tables of 10,000 impressions each: fashion items recommended by two policies (``random`` and ``bts``, Bernoulli
Thompson sampling) in three campaigns (``all``, ``men``, ``women``), 24 to 30 November 2019. The data set has no user
id, only four hashed user features; ``user_segment`` names the group of users who share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.pipeline.public_data.wheels import Wheel, check, read_table

OBP = Wheel("obp", "0.4.1", "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208")

POLICIES = ("random", "bts")
#: Number of items in each campaign.
CAMPAIGNS = {"all": 80, "men": 34, "women": 46}
ROWS_PER_TABLE = 10_000

_FOLDER = "obp/dataset/obd"
_USER_FEATURES = tuple(f"user_feature_{number}" for number in range(4))
_BATCH_ROWS = 20_000


def read_open_bandit(cache: Path | None = None) -> Iterator[pa.RecordBatch]:
    """The 60,000 impressions by time.

    Columns: timestamp (string, ISO 8601 with microseconds, UTC), policy, campaign, item_id (string,
    ``campaign-number``: campaigns count their items separately), position (int64, 1 ... 3 from the left), click
    (int64), propensity_score (float64, probability that the policy shows the item there), user_segment,
    user_feature_0 ... 3 (string), item_feature_0 (float64), item_feature_1 ... 3 (string), affinity (float64, the
    source's score of past contacts between such users and the item shown).

    Args:
        cache: folder of the fetched wheels; default :func:`~clsd.pipeline.public_data.wheels.default_cache`.

    Raises:
        UserError: the wheel cannot be fetched, or has unexpected content.
    """
    wheel = OBP.fetch(cache)
    tables = []
    for campaign, count in CAMPAIGNS.items():
        items = _items(wheel, campaign, count)
        tables += [_impressions(wheel, policy, campaign, items) for policy in POLICIES]
    table = pa.concat_tables(tables)
    _check(table, wheel.name)
    # The sort is stable, so impressions of one microsecond keep the order above.
    yield from table.take(pc.sort_indices(table["timestamp"])).combine_chunks().to_batches(_BATCH_ROWS)


def _items(wheel: Path, campaign: str, count: int) -> pa.Table:
    """The items' features, row ``i`` for item ``i``.

    The two policies' folders hold the same items with differently hashed features (one to one, and item_feature_0 is
    the same number); the hashes of one folder serve both, or every feature would have two names and betray the policy.
    """
    bts, random = (
        read_table(wheel, f"{_FOLDER}/{policy}/{campaign}/item_context.csv", count) for policy in ("bts", "random")
    )
    where = f"{wheel.name}: {campaign}/item_context.csv"
    check(bts["item_id"].to_pylist() == [str(i) for i in range(count)], where, "items are not numbered from 0")
    check(bts["item_feature_0"].equals(random["item_feature_0"]), where, "the policies' items differ")
    return bts


def _impressions(wheel: Path, policy: str, campaign: str, items: pa.Table) -> pa.Table:
    source = read_table(wheel, f"{_FOLDER}/{policy}/{campaign}/{campaign}.csv", ROWS_PER_TABLE)
    shown = source["item_id"].cast(pa.int64())
    affinities = np.stack([source[f"user-item_affinity_{i}"].cast(pa.float64()) for i in range(items.num_rows)], axis=1)
    users = [source[name] for name in _USER_FEATURES]
    times = pc.replace_substring(pc.replace_substring(source["timestamp"], "+00:00", "Z"), " ", "T")
    columns = {
        "timestamp": times,
        "policy": pa.repeat(policy, len(source)),
        "campaign": pa.repeat(campaign, len(source)),
        "item_id": pc.binary_join_element_wise(campaign, source["item_id"], "-"),
        "position": source["position"].cast(pa.int64()),
        "click": source["click"].cast(pa.int64()),
        "propensity_score": source["propensity_score"].cast(pa.float64()),
        "user_segment": _segments(pc.binary_join_element_wise(*users, "-")),
        **dict(zip(_USER_FEATURES, users, strict=True)),
        "item_feature_0": items["item_feature_0"].cast(pa.float64()).take(shown),
        **{f"item_feature_{n}": items[f"item_feature_{n}"].take(shown) for n in (1, 2, 3)},
        "affinity": pa.array(affinities[np.arange(len(source)), shown.to_numpy()]),
    }
    return pa.table(columns)


def _segments(joined: pa.ChunkedArray) -> pa.ChunkedArray:
    """Eight hex digits for each joined string; equal strings, and no others, get equal ones (60,000 rows hold few)."""
    encoded = joined.combine_chunks().dictionary_encode()
    names = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in encoded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string()).take(encoded.indices)])


def _check(table: pa.Table, where: str) -> None:
    rows = ROWS_PER_TABLE * len(POLICIES) * len(CAMPAIGNS)
    check(table.num_rows == rows, where, f"has {table.num_rows:,} impressions, not {rows:,}")
    rate = pc.mean(table["click"]).as_py()
    check(0.003 <= rate <= 0.008, where, f"has a click rate of {rate:.2%}, not 0.3 ... 0.8 %")
    iso = pc.match_substring_regex(table["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
    check(pc.all(iso).as_py(), where, "has timestamps that are not UTC with microseconds")
    check(set(table["position"].to_pylist()) == {1, 2, 3}, where, "has positions other than 1, 2 and 3")
    check(pc.min(table["propensity_score"]).as_py() > 0, where, "has propensities that are not positive")
    check(not any(column.null_count for column in table.columns), where, "has missing values")
