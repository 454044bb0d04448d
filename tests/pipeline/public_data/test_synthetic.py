"""The synthetic log: its rows have the promised truth, and the same settings give the same rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clsd.features.errors import UserError
from clsd.pipeline.public_data.movielens import AGE_BANDS
from clsd.pipeline.public_data.synthetic import (
    CHUNK_ROWS,
    EXTRA_CARDINALITIES,
    START_SECONDS,
    SyntheticLog,
    SyntheticSettings,
    generate,
)

ROWS = 500_000


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return pa.Table.from_batches(generate(SyntheticSettings(rows=ROWS)))


def _column(log: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.asarray(log[name].to_numpy())


def _clicks(log: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    click, accidental = _column(log, "click") == 1, _column(log, "accidental") == 1
    return click & ~accidental, accidental


@pytest.mark.parametrize(
    ("ctr", "accidental"), [(0.1, 0.25), (0.02, 0.5), (0.4, 0.1), (0.6, 0.5), (0.1, 0.0)], ids=lambda x: str(x)
)
def test_click_rate_and_share_of_accidental_clicks(ctr: float, accidental: float) -> None:
    made = pa.Table.from_batches(generate(SyntheticSettings(rows=ROWS, ctr=ctr, accidental=accidental, seed=3)))
    true, slipped = _clicks(made)
    assert (true.sum() + slipped.sum()) / ROWS == pytest.approx(ctr, rel=0.05)
    assert slipped.sum() / (true.sum() + slipped.sum()) == pytest.approx(accidental, rel=0.05)


def test_the_columns_of_truth_agree(log: pa.Table) -> None:
    true, slipped = _clicks(log)
    click, interest = _column(log, "click"), _column(log, "interest")
    assert set(click) == {0, 1} and not (slipped & (click == 0)).any()
    assert interest.min() > 0 and interest.max() < 1
    intensity, dwell = _column(log, "intensity"), _column(log, "dwell_time")
    assert (intensity[true] == interest[true]).all() and (intensity[slipped] == 0).all()
    for missing in ("intensity", "dwell_time"):
        np.testing.assert_array_equal(pc.is_null(log[missing]).to_numpy(), click == 0)
    assert (dwell[click == 1] > 0).all()


def test_true_clicks_are_proportional_to_interest_and_accidental_ones_independent(log: pa.Table) -> None:
    true, slipped = _clicks(log)
    interest = _column(log, "interest")
    fifths = np.digitize(interest, np.quantile(interest, [0.2, 0.4, 0.6, 0.8]))
    per_interest = [true[fifths == k].mean() / interest[fifths == k].mean() for k in range(5)]
    assert max(per_interest) < 1.15 * min(per_interest)
    by_accident = [slipped[fifths == k].mean() for k in range(5)]
    assert max(by_accident) < 1.15 * min(by_accident)
    rates = [slipped[_column(log, "position") == k].mean() for k in (1, 10)]
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.2)


def test_groups_have_base_rates_of_their_own(log: pa.Table) -> None:
    bands, click, interest = _column(log, "age_band"), _column(log, "click"), _column(log, "interest")
    names = AGE_BANDS[: SyntheticSettings().groups]
    assert set(bands) == set(names)
    for values in (click, interest):
        means = [values[bands == name].mean() for name in names]
        assert all(later > 1.05 * earlier for earlier, later in pairwise(means))
    users = pc.count_distinct(pc.binary_join_element_wise(log["user_id"], log["age_band"], " ")).as_py()
    assert users == pc.count_distinct(log["user_id"]).as_py()


def test_dwell_time_tells_of_interest(log: pa.Table) -> None:
    true, slipped = _clicks(log)
    dwell, interest = _column(log, "dwell_time"), _column(log, "interest")
    assert np.corrcoef(np.log(dwell[true]), interest[true])[0, 1] > 0.5
    assert np.median(dwell[true]) > 10 * np.median(dwell[slipped])


def test_a_user_and_an_item_have_one_interest(log: pa.Table) -> None:
    pairs = log.group_by(["user_id", "item_id"]).aggregate([("interest", "min"), ("interest", "max")])
    assert pairs["interest_min"].equals(pairs["interest_max"])
    assert pairs.num_rows < ROWS


def test_popularity_follows_zipf(log: pa.Table) -> None:
    counts = np.sort(log["item_id"].value_counts().field("counts").to_numpy())[::-1]
    ranks = np.arange(1, 501)
    slope = np.polyfit(np.log(ranks), np.log(counts[:500]), 1)[0]
    assert slope == pytest.approx(-1.05, abs=0.05)


def test_time_rises_over_the_days_and_across_chunks(log: pa.Table) -> None:
    seconds = _column(log, "timestamp")
    assert (np.diff(seconds) >= 0).all()
    span = SyntheticSettings().days * 86_400
    assert START_SECONDS <= seconds[0] < START_SECONDS + 60
    assert START_SECONDS + span - 60 < seconds[-1] < START_SECONDS + span
    per_day = np.bincount((seconds - START_SECONDS) // 86_400)
    assert per_day.min() > 0.9 * per_day.max()
    np.testing.assert_array_equal(_column(log, "hour"), seconds // 3600 % 24)


def test_tags_and_ids(log: pa.Table) -> None:
    lengths = pc.list_value_length(log["tags"])
    assert set(lengths.unique().to_pylist()) == {0, 1, 2, 3, 4}
    first = log.slice(0, 2000).to_pylist()
    assert all(len(set(row["tags"])) == len(row["tags"]) for row in first)
    assert pc.count_distinct(log["item_id"]).as_py() == 5_000
    assert 45_000 < pc.count_distinct(log["user_id"]).as_py() <= 50_000
    assert set(_column(log, "gender")) == {"F", "M"} and pc.count_distinct(log["category"]).as_py() == 20
    assert pc.min(log["price"]).as_py() > 0


def test_same_settings_same_rows_and_chunks_do_not_depend_on_each_other(log: pa.Table) -> None:
    settings = SyntheticSettings(rows=ROWS)
    assert SyntheticLog(settings).chunk(1).equals(log.slice(CHUNK_ROWS).combine_chunks().to_batches()[0])
    other = SyntheticLog(SyntheticSettings(rows=ROWS, seed=2)).chunk(1)
    assert not other["item_id"].equals(SyntheticLog(settings).chunk(1)["item_id"])


def test_the_last_chunk_has_the_rest() -> None:
    sizes = [batch.num_rows for batch in generate(SyntheticSettings(rows=CHUNK_ROWS + 1))]
    assert sizes == [CHUNK_ROWS, 1]
    assert [batch.num_rows for batch in generate(SyntheticSettings(rows=1, users=1, items=1, groups=1))] == [1]


def test_extra_columns_spread_their_cardinalities() -> None:
    batch = SyntheticLog(SyntheticSettings(rows=200_000, extra_categorical=3, extra_numeric=2)).chunk(0)
    distinct = [pc.count_distinct(batch[f"cat_{number}"]).as_py() for number in range(3)]
    assert distinct[0] == EXTRA_CARDINALITIES[0] and 100 < distinct[1] <= 7_071 < distinct[2]
    normal, lognormal = batch["num_0"].to_numpy(), batch["num_1"].to_numpy()
    assert abs(normal.mean()) < 0.02 and lognormal.min() >= 0 and lognormal.mean() > 1.5
    assert batch.schema.names[-5:] == ["cat_0", "cat_1", "cat_2", "num_0", "num_1"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rows": 0}, {"users": 0}, {"days": 0}, {"seed": -1}, {"extra_numeric": -1}, {"groups": 0}, {"groups": 8}),
        *({"ctr": 0.0}, {"ctr": 1.0}, {"ctr": float("nan")}, {"accidental": 1.0}),
    ],
    ids=str,
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"synthetic {next(iter(wrong))}"):
        SyntheticSettings(**wrong)
