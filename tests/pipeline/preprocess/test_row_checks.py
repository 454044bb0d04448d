from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from clsd.features.hashing import hash64
from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import LABEL, POSITION, TIME, USER
from clsd.pipeline.preprocess.row_checks import check, microseconds

SCHEMA = Schema(
    features=[
        {"name": "x", "kind": "numeric", "min": 0, "max": 10},
        {"name": "ids", "kind": "bag", "dtype": "int64", "separator": "|", "max_length": 3},
    ],
    user="user",
    timestamp="t",
)
GOOD = {"click": 1, "user": "u", "t": 5, "x": 1.0, "ids": "1|2"}


def _check(*rows: dict[str, Any]) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    batch = pa.RecordBatch.from_pylist([{**GOOD, **row, POSITION: i} for i, row in enumerate(rows)])
    return check(SCHEMA, batch)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"click": None}, "no click"),
        ({"click": 2}, "click is neither 0 nor 1"),
        ({"user": None}, "no user"),
        ({"user": ""}, "no user"),
        ({"t": None}, "no valid t"),
        ({"t": 1_780_000_000_000}, "t not within 1970-2199: is timestamp_unit right?"),
        ({"x": -0.5}, "x below 0"),
        ({"x": 11.0}, "x above 10"),
        ({"ids": "1|two"}, "ids holds something other than integers"),
        ({"ids": "1 2|3"}, "ids holds something other than integers"),
    ],
)
def test_a_row_that_breaks_the_schema_is_refused_with_its_reason(row: dict[str, Any], reason: str) -> None:
    batch, refused = _check({}, row, {"x": 2.0})
    assert refused == [(1, reason)]
    assert batch.column("x").to_pylist() == [1.0, 2.0]


def test_missing_features_are_no_reason_to_refuse() -> None:
    batch, refused = _check({"x": None, "ids": None}, {"x": float("nan"), "ids": ""}, {"ids": "1||-2"})
    assert refused == []
    assert batch.num_rows == 3


@pytest.mark.parametrize("labels", [[True, False], [1.0, 0.0], [1, 0]])
def test_labels_may_be_booleans_or_whole_numbers(labels: list[Any]) -> None:
    batch, _ = _check(*({"click": label} for label in labels))
    assert batch.column(LABEL).to_pylist() == [1, 0]
    assert batch.column(LABEL).type == pa.int64()


def test_checked_rows_carry_user_and_time() -> None:
    batch, _ = _check({"user": "a", "t": 3})
    assert batch.column(USER).to_pylist() == hash64(pa.array(["a"])).tolist()
    assert batch.column(TIME).to_pylist() == [3_000_000]
    assert POSITION not in batch.schema.names


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2, "s", 2_000_000),
        (2, "ms", 2_000),
        (2, "us", 2),
        (2_500, "ns", 2),
        (2.0, "s", 2_000_000),
        (2**62, "s", None),
        ("1970-01-02", "iso", 86_400_000_000),
        ("1970-01-01T00:00:01", "iso", 1_000_000),
        ("1970-01-01 00:00:01.5Z", "iso", 1_500_000),
        ("1970-01-01T01:00:00+01:00", "iso", 0),
        ("1970-13-01T00:00:00Z", "iso", None),
        ("yesterday", "iso", None),
        ("12", "s", None),
        ("1970-01-01T00:00:01", "s", 1_000_000),
    ],
)
def test_times_of_every_unit_become_microseconds(value: Any, unit: str, expected: int | None) -> None:
    other = "1970-01-01T00:00:00" if isinstance(value, str) else type(value)(0)
    result = microseconds(pa.array([value, None, other]), unit).to_pylist()
    assert result[:2] == [expected, None]


def test_an_unsigned_number_that_int64_cannot_hold_is_refused() -> None:
    beyond = pa.array([2**64 - 1, 2**63, 5], pa.uint64())
    assert [value if value is not None and value >= 0 else None for value in microseconds(beyond, "s").to_pylist()] == [
        None,
        None,
        5_000_000,
    ]
