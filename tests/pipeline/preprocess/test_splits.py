from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.errors import UserError
from clsd.features.hashing import hash64
from clsd.pipeline.preprocess.columns import GAP, KEY, SPLIT, TIME, USER
from clsd.pipeline.preprocess.shards import sorted_codes
from clsd.pipeline.preprocess.splits import TimeBoundaries, by_hash, by_time, by_user_time, given_boundaries
from clsd.pipeline.shared.config import SplitSettings


def _batch(users: list[str], times: list[int]) -> pa.RecordBatch:
    n = len(users)
    keys = np.random.default_rng(0).permutation(n).astype(np.uint64)
    return pa.RecordBatch.from_pydict({USER: users, TIME: pa.array(times, pa.int64()), KEY: keys, "session": users})


def _splits(batch: pa.RecordBatch) -> np.ndarray:
    return batch.column(SPLIT).to_numpy()


def test_each_users_newest_rows_test_and_those_before_validate() -> None:
    rng = np.random.default_rng(1)
    users = [f"u{i}" for i in rng.integers(0, 9, 400)]
    times = rng.integers(0, 50, 400).tolist()  # with ties
    settings = SplitSettings(by="user_time", validation=0.2, test=0.1)
    batch = by_user_time(settings, _batch(users, times))
    for user in set(users):
        mine = [i for i, u in enumerate(users) if u == user]
        ordered = sorted(mine, key=lambda i: (times[i], batch.column(KEY)[i].as_py()))
        n_test, n_validation = int(len(mine) * 0.1 + 0.5), int(len(mine) * 0.2 + 0.5)
        expected = [0] * (len(mine) - n_test - n_validation) + [1] * n_validation + [2] * n_test
        assert [int(_splits(batch)[i]) for i in ordered] == expected


def test_time_boundaries_are_exact_and_do_not_depend_on_the_order_of_merging() -> None:
    times = np.random.default_rng(2).integers(0, 1000, 5000)
    settings = SplitSettings(validation=0.1, test=0.2)
    batches = [_batch(["u"] * len(part), part.tolist()) for part in np.array_split(times, 77)]
    result = set()
    for order in (range(77), reversed(range(77))):
        combine = TimeBoundaries(settings)
        halves = [combine.create_accumulator(), combine.create_accumulator()]
        for number, at in enumerate(order):
            halves[number % 2] = combine.add_input(halves[number % 2], batches[at])
        result.add(combine.extract_output(combine.merge_accumulators(halves)))
    assert len(result) == 1
    first, second = result.pop()
    # The newest rows, as many as fit into the share without parting equal times.
    assert (times >= second).mean() <= 0.2 < (times >= second - 1).mean()
    assert (times >= first).mean() <= 0.3 < (times >= first - 1).mean()


@pytest.mark.parametrize("distinct", [1, 90, 5000])
def test_boundaries_of_many_times_are_near_and_do_not_depend_on_how_they_were_counted(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    times = rng.choice(rng.integers(0, 2**44, distinct), 20_000)
    result = set()
    for parts in (1, 3, 70):
        combine = TimeBoundaries(SplitSettings(validation=0.1, test=0.2), most=1000)
        made = []
        for part in np.array_split(rng.permutation(times), parts):
            accumulator = combine.create_accumulator()
            for some in np.array_split(part, 40 if parts == 1 else 1):
                accumulator = combine.add_input(accumulator, _batch(["u"] * len(some), some.tolist()))
            made.append(accumulator)
        result.add(combine.extract_output(combine.merge_accumulators(made)))
    ((first, second),) = result
    exact = TimeBoundaries(SplitSettings(validation=0.1, test=0.2), most=10**6)
    whole = exact.add_input(exact.create_accumulator(), _batch(["u"] * len(times), times.tolist()))
    nearest = exact.extract_output(whole)
    if distinct <= 1000:
        assert (first, second) == nearest
    for boundary, best in zip((first, second), nearest, strict=True):
        assert abs((times >= boundary).mean() - (times >= best).mean()) < 0.005  # a bin holds about a thousandth


def test_a_gap_leaves_out_the_end_of_training_and_of_validation() -> None:
    assert _splits(by_time((10, 20), 3, _batch(["u"] * 8, [0, 6, 7, 9, 10, 16, 17, 20]))).tolist() == [
        0,
        0,
        GAP,
        GAP,
        1,
        1,
        GAP,
        2,
    ]
    # Without a validation split the two boundaries are one.
    assert _splits(by_time((10, 10), 3, _batch(["u"] * 4, [6, 7, 9, 10]))).tolist() == [0, GAP, GAP, 2]
    with pytest.raises(ValueError, match="gap_hours needs by: time"):
        SplitSettings(by="user_time", gap_hours=1)


def test_a_split_by_time_never_trains_on_what_is_newer_than_the_test() -> None:
    split = _splits(by_time((10, 20), 0, _batch(["u"] * 5, [9, 10, 19, 20, 99])))
    assert split.tolist() == [0, 1, 1, 2, 2]


def test_equal_keys_stay_together_and_shares_hold() -> None:
    users = [f"s{i % 2000}" for i in range(10_000)]
    settings = SplitSettings(by="hash", key="session", validation=0.1, test=0.3)
    batch = by_hash(settings, "", 5, _batch(users, [0] * len(users)))
    split = _splits(batch)
    assert all(len(set(split[i::2000])) == 1 for i in range(2000))
    assert abs((split == 2).mean() - 0.3) < 0.04  # 4 standard deviations of 2000 keys
    assert abs((split == 1).mean() - 0.1) < 0.03
    other = _splits(by_hash(settings, "", 6, _batch(users, [0] * len(users))))
    assert (other != split).any()


def test_given_instants_are_read_as_utc_and_checked() -> None:
    settings = SplitSettings(validation_from="1970-01-01T00:00:01", test_from="1970-01-01T00:00:02Z")
    assert given_boundaries(settings) == (1_000_000, 2_000_000)
    with pytest.raises(UserError, match="'soon' is not a time"):
        given_boundaries(SplitSettings(validation_from="soon", test_from="2020-01-01"))
    with pytest.raises(UserError, match="later than test_from"):
        given_boundaries(SplitSettings(validation_from="2021-01-01", test_from="2020-01-01"))


def test_the_hash_of_the_user_is_the_one_that_checking_made() -> None:
    settings = SplitSettings(by="hash", key="session", validation=0.2, test=0.3)
    batch = _batch([f"s{i}" for i in range(500)], [0] * 500)
    hashed = batch.set_column(0, USER, pa.array(hash64(batch.column("session"))))
    assert (_splits(by_hash(settings, "session", 5, hashed)) == _splits(by_hash(settings, "", 5, batch))).all()


def test_codes_are_sorted_stably_small_large_or_none() -> None:
    for far in (0, 1 << 20):
        order, starts = sorted_codes(np.array([3, 1, 3, 0, 1]) + far)
        assert (order.tolist(), starts.tolist()) == ([3, 1, 4, 0, 2], [0, 1, 3])
    order, starts = sorted_codes(np.array([], np.int64))
    assert (len(order), len(starts)) == (0, 0)
