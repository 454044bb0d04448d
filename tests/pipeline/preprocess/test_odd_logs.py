"""Odd logs, as other tools write them: each is read right, or refused by the name of its file, row or column."""

from __future__ import annotations

import csv
import decimal
import gzip
import json
import math
import uuid
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsd.features.errors import UserError
from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import KEY, POSITION
from clsd.pipeline.preprocess.dead_letters import DeadLetter
from clsd.pipeline.preprocess.input_splits import plan
from clsd.pipeline.preprocess.row_checks import check, microseconds, refused_text
from clsd.pipeline.preprocess.sources import Reader
from clsd.pipeline.shared.config import LogSettings


def _schema(*features: dict[str, Any], **roles: Any) -> Schema:
    return Schema.model_validate({"features": list(features) or [ITEM], **roles})


ITEM = {"name": "item", "kind": "categorical"}
NUMBER = {"name": "item", "kind": "categorical", "dtype": "int64"}
BAG = {"name": "item", "kind": "bag", "max_length": 3, "dtype": "int64"}


def _read(schema: Schema, *files: Path | str, **logs: Any) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
    named = LogSettings(files=[str(file) for file in files], **logs)
    rows: list[dict[str, Any]] = []
    refused: list[DeadLetter] = []
    for split in plan(named, schema):
        for part in Reader(named, seed=1).read(split):
            if isinstance(part, DeadLetter):
                refused.append(part)
            else:
                rows += part.rows.drop_columns([KEY, POSITION]).to_pylist()
    return rows, refused


def _parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"click": pa.array([1] * len(next(iter(columns.values())))), **columns}), path)
    return path


# ---------------------------------------------------------------- names of files


def test_a_relative_pattern_and_a_name_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("part-0.csv", "part-1.csv", "day[1].csv", "day1.csv"):
        Path(name).write_text(f"item,click\n{name},1\n")
    assert [row["item"] for row in _read(_schema(), "part-*.csv")[0]] == ["part-0.csv", "part-1.csv"]
    assert [row["item"] for row in _read(_schema(), "day[1].csv")[0]] == ["day[1].csv"]
    assert [row["item"] for row in _read(_schema(), "day[12].csv")[0]] == ["day1.csv"]
    with pytest.raises(UserError, match=r"part-\[5\]\.csv: no such file"):
        _read(_schema(), "part-[5].csv")


# ---------------------------------------------------------------- a column twice


def test_a_column_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,click,item\nx,1,y\n")
    with pytest.raises(UserError, match=r"a\.csv:1: has column 'item' 2 times; rename the others"):
        _read(_schema(), tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"item": "x", "click": 1, "item": "y"}\n' * 3)
    with pytest.raises(UserError, match=r"a\.jsonl: has column 'item' twice in its first lines"):
        _read(_schema(), tmp_path / "a.jsonl")
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array([1]), pa.array(["y"])], names=["item", "click", "item"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: has column 'item' 2 times"):
        _read(_schema(), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"logs\.csv\.columns: has column 'item' 2 times"):
        _read(_schema(), tmp_path / "a.csv", csv={"columns": ["item", "click", "item"]})


def test_a_key_twice_in_one_json_line_refuses_that_line(tmp_path: Path) -> None:
    good = '{"item": "x", "click": 1}\n'
    (tmp_path / "a.jsonl").write_text(good * 3 + '{"item": "x", "click": 1, "item": "y"}\n' + good)
    rows, refused = _read(_schema(), tmp_path / "a.jsonl")
    assert len(rows) == 4 and [(r.line, r.reason) for r in refused] == [(4, "a column twice in 'item'")]


# ---------------------------------------------------------------- floats as ids


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.decimal128(20, 2)])
@pytest.mark.parametrize("feature", [ITEM, NUMBER])
def test_whole_floats_are_integers_and_nan_is_missing(tmp_path: Path, kind: pa.DataType, feature: Any) -> None:
    values: list[Any] = [12.0, None, -3.0, 0.0]
    if pa.types.is_floating(kind):
        values += [math.nan, -0.0]
    column = pa.array(
        [None if v is None else decimal.Decimal(v) if pa.types.is_decimal(kind) else v for v in values], kind
    )
    rows, refused = _read(_schema(feature, user="user"), _parquet(tmp_path / "a.parquet", item=column, user=column))
    wanted: list[Any] = [12, None, -3, 0, None, 0][: len(values)]
    text = [None if v is None else str(v) for v in wanted]
    assert refused == []
    assert [row["item"] for row in rows] == (text if feature is ITEM else wanted)
    assert [row["user"] for row in rows] == text


def test_a_large_id_keeps_its_digits(tmp_path: Path) -> None:
    table = _parquet(tmp_path / "a.parquet", item=pa.array([1234567890123.0, 2.0**53 - 1]))
    assert [row["item"] for row in _read(_schema(), table)[0]] == ["1234567890123", str(2**53 - 1)]


@pytest.mark.parametrize("value", [1.5, math.inf, 2.0**53])
def test_an_id_that_is_no_whole_number_is_refused_by_its_row(tmp_path: Path, value: float) -> None:
    table = _parquet(tmp_path / "a.parquet", item=pa.array([1.0, value, 2.0]))
    rows, refused = _read(_schema(), table)
    assert [row["item"] for row in rows] == ["1", "2"]
    assert [(r.line, r.reason) for r in refused] == [(2, "not a whole number in 'item'")]


def test_integers_that_a_tool_wrote_with_a_fraction(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,click\n12.0,1\n,0\n13.0,1\n7.5,1\n")
    (tmp_path / "b.jsonl").write_text(
        '{"item": 12.0, "click": 1}\n{"item": null, "click": 0}\n{"item": 7.5, "click": 1}\n'
    )
    for file, wanted in (("a.csv", [12, None, 13]), ("b.jsonl", [12, None])):
        rows, refused = _read(_schema(NUMBER), tmp_path / file)
        assert [row["item"] for row in rows] == wanted
        assert [r.reason for r in refused] == ["not a whole number in 'item'"]


def test_whole_floats_that_are_a_minority_are_integers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,click\n3,1\n4.0,1\n5,1\n")
    (tmp_path / "b.jsonl").write_text("".join(f'{{"item": {v}, "click": 1}}\n' for v in ("3", "4.0", "5", "1E1")))
    assert [row["item"] for row in _read(_schema(NUMBER), tmp_path / "a.csv")[0]] == [3, 4, 5]
    assert [row["item"] for row in _read(_schema(NUMBER), tmp_path / "b.jsonl")[0]] == [3, 4, 5, 10]


def test_a_user_may_be_a_float_or_unsigned(tmp_path: Path) -> None:
    schema = _schema(user="u")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"item": "x", "click": 1, "u": {v}}}\n' for v in ("5", "6.0", "null")))
    assert [row["u"] for row in _read(schema, tmp_path / "a.jsonl")[0]] == [5, 6, None]
    unsigned = pa.array([2**64 - 1, 5], pa.uint64())
    table = _parquet(tmp_path / "a.parquet", item=pa.array(["x", "y"]), u=unsigned)
    assert [row["u"] for row in _read(schema, table)[0]] == [str(2**64 - 1), "5"]


def test_a_column_that_is_read_as_ids_and_as_numbers(tmp_path: Path) -> None:
    both = ({**NUMBER, "column": "n"}, {"name": "n", "kind": "numeric"})
    table = _parquet(tmp_path / "a.parquet", n=pa.array([1234567890123.0, None, 7.0]))
    rows, refused = _read(_schema(*both), table)
    assert [row["n"] for row in rows] == [1234567890123, None, 7] and refused == []
    for other in ({**ITEM, "column": "n"}, {**BAG, "column": "n"}):
        with pytest.raises(
            ValueError, match=r"column 'n' is read as .* and as .*; give one of them a column of its own"
        ):
            _schema(other, both[1])
    with pytest.raises(ValueError, match="column 'n' is read as ids by the user and as numbers by 'n'"):
        _schema(both[1], user="n")


def test_one_fraction_among_integers_costs_only_its_row(tmp_path: Path) -> None:
    lines = [json.dumps({"item": 2**62 + n, "click": 1}) for n in range(5)] + ['{"item": 1.5, "click": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, refused = _read(_schema(NUMBER), tmp_path / "a.jsonl")
    assert [row["item"] for row in rows] == [2**62 + n for n in range(5)] and len(refused) == 1


def test_floats_in_lists_are_integers(tmp_path: Path) -> None:
    lists = pa.array([[1.0, math.nan], None, [], [3.0]])
    rows, _ = _read(_schema(BAG), _parquet(tmp_path / "a.parquet", item=lists))
    assert [row["item"] for row in rows] == [[1, None], None, [], [3]]


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("column", "unit", "wanted"),
    [
        (pa.array([1700000000.123456, 1700000000.5]), "s", [1700000000123456, 1700000000500000]),
        (pa.array([1700000000123.25]), "ms", [1700000000123250]),
        (pa.array([1.7e15]), "us", [1700000000000000]),
        (pa.array([decimal.Decimal("1700000000.123456")]), "s", [1700000000123456]),
        (pa.array([1700000000123456789]), "ns", [1700000000123456]),
        (pa.array(["2026-05-01T10:00:00+00", "2026-05-01T10:00:00Z"]), "iso", [1777629600000000] * 2),
        (pa.array(["2026-05-01T15:30+0530", "2026-05-01 15:30:00+05:30"]), "iso", [1777629600000000] * 2),
        (pa.array(["2026-05-01", "2026-05-01T00:00:00.000001-00"]), "iso", [1777593600000000, 1777593600000001]),
        (pa.array([math.nan, math.inf, 1e300, None]), "s", [None] * 4),
        (pa.array(["2026-05-01T10:00:00+5", "2026-02-30", "x"]), "iso", [None] * 3),
    ],
)
def test_microseconds_are_kept_in_every_unit(column: pa.Array, unit: str, wanted: list[int | None]) -> None:
    assert microseconds(column, unit).to_pylist() == wanted


@pytest.mark.parametrize(
    ("column", "unit", "what"),
    [
        (pa.array([1777629600]), "iso", "'t' holds int64, and rows.timestamp_unit is iso; set rows.timestamp_unit"),
        (pa.array([True]), "s", "'t' holds booleans"),
        (pa.array([1777629600.0], pa.float32()), "s", "'t' holds float, which does not hold every second"),
    ],
)
def test_a_time_that_its_unit_does_not_fit_is_named(tmp_path: Path, column: pa.Array, unit: str, what: str) -> None:
    table = _parquet(tmp_path / "a.parquet", item=pa.array(["x"]), t=column)
    with pytest.raises(UserError, match=what):
        _read(_schema(timestamp="t", timestamp_unit=unit), table)


def test_a_fraction_among_whole_times_of_a_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,click,t\na,1,1777629600\nb,1,1777629601.5\nc,1,1777629602\n")
    rows, _ = _read(_schema(timestamp="t"), tmp_path / "a.csv")
    assert [row["t"] for row in rows] == [1777629600, 1777629601.5, 1777629602]


# ---------------------------------------------------------------- Avro


def _avro(path: Path, kind: Any, values: list[Any]) -> Path:
    fields = [{"name": "click", "type": "int"}, {"name": "item", "type": kind}]
    if isinstance(kind, tuple):  # a type that an earlier column names
        fields = [fields[0], {"name": "first", "type": kind[0]}, {"name": "item", "type": kind[1]}]
    records = [{"click": 1, "first": value, "item": value} for value in values]
    with path.open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "row", "fields": fields}, records)
    return path


_UUID = uuid.UUID(int=7)
_COLOUR = {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ({"type": "string", "logicalType": "uuid"}, _UUID, str(_UUID)),
        ({"type": "string", "logicalType": "varchar", "maxLength": 9}, "x", "x"),
        ({"type": "long", "logicalType": "of-our-own"}, 5, "5"),
        ({"type": "long", "logicalType": "date"}, 5, "5"),
        ({"type": "string", "logicalType": "timestamp-millis"}, "x", "x"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}, decimal.Decimal("5.00"), "5"),
        ((_COLOUR, "Colour"), "blue", "blue"),
        ((_COLOUR, ["null", "Colour"]), "red", "red"),
        (["null", "int", "long"], 5, "5"),
        (["null", "long", "double"], 5.0, "5"),
        (["null", {"type": "string", "logicalType": "uuid"}], _UUID, str(_UUID)),
    ],
)
def test_avro_types_are_read_as_the_specification_says(tmp_path: Path, kind: Any, value: Any, wanted: str) -> None:
    rows, refused = _read(_schema(), _avro(tmp_path / "a.avro", kind, [value]))
    assert refused == [] and rows[0]["item"] == wanted


def test_avro_lists_of_uuids(tmp_path: Path) -> None:
    bag = {"name": "item", "kind": "bag", "max_length": 3}
    kind = {"type": "array", "items": {"type": "string", "logicalType": "uuid"}}
    rows, _ = _read(_schema(bag), _avro(tmp_path / "a.avro", kind, [[_UUID], []]))
    assert [row["item"] for row in rows] == [[str(_UUID)], []]


@pytest.mark.parametrize("unit", ["timestamp-nanos", "local-timestamp-nanos"])
def test_avro_nanoseconds(tmp_path: Path, unit: str) -> None:
    schema = _schema({"name": "click_", "column": "click", "kind": "numeric"}, timestamp="item", label="first")
    kind = {"type": "long", "logicalType": unit}
    path = _avro(tmp_path / "a.avro", (kind, kind), [1777629600123456789])
    named = LogSettings(files=[str(path)])
    (part,) = Reader(named, seed=1).read(*plan(named, schema))
    assert not isinstance(part, DeadLetter)
    assert microseconds(part.rows["item"], "s").to_pylist() == [1777629600123456]
    assert refused_text(part.rows, 0).startswith('{"click": 1.0, "first": "2026-05-01')


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        (["string", "int"], 5, r"values of several types \(string, int64\)"),
        ({"type": "map", "values": "string"}, {"a": "b"}, "objects"),
        ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}]}, {"x": 1}, "objects"),
        ({"type": "array", "items": {"type": "array", "items": "int"}}, [[1]], "lists"),
    ],
)
def test_avro_types_that_no_feature_can_have_are_named(tmp_path: Path, kind: Any, value: Any, what: str) -> None:
    with pytest.raises(UserError, match=rf"a\.avro: feature 'item' is read as one value, and the log has {what}"):
        _read(_schema(), _avro(tmp_path / "a.avro", kind, [value]))
    unused = _schema({"name": "c", "column": "click", "kind": "numeric"}, label="click2")
    with pytest.raises(UserError, match="has no column 'click2'"):  # the odd column does not disturb
        _read(unused, tmp_path / "a.avro")


# ---------------------------------------------------------------- lists


def test_bags_of_integers_of_19_digits(tmp_path: Path) -> None:
    bag = {**BAG, "separator": "|"}
    values = [str(2**63 - 1), f"{-(2**63)}|5", "0000000000000000000000007", str(2**63), "1|x", ""]
    (tmp_path / "a.csv").write_text("item,click\n" + "".join(f"{value},1\n" for value in values[:-1]))
    schema = _schema(bag)
    named = LogSettings(files=[str(tmp_path / "a.csv")])
    (split,) = plan(named, schema)
    (part,) = Reader(named, seed=1).read(split)
    assert not isinstance(part, DeadLetter)
    _, refused = check(schema, part.rows)
    assert refused == [(3, "item holds something other than integers"), (4, "item holds something other than integers")]


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([[[1]], [[2]]]), "lists of lists"),
        (pa.array([[{"x": 1}], [{"x": 2}]]), "lists of objects"),
        (pa.array([{"x": 1}, {"x": 2}]), "objects"),
    ],
)
def test_lists_of_lists_and_of_objects_are_named(tmp_path: Path, column: pa.Array, what: str) -> None:
    _parquet(tmp_path / "a.parquet", item=column)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"item": v, "click": 1}) + "\n" for v in column.to_pylist()))
    for file in ("a.parquet", "a.jsonl"):
        with pytest.raises(
            UserError, match=rf"feature 'item' is read as a list.*, and the log has {what}; log its parts"
        ):
            _read(_schema(BAG), tmp_path / file)


# ---------------------------------------------------------------- text


def test_empty_files_beside_full_ones_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part-0.csv.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "part-1.csv.gz").write_bytes(gzip.compress(b"item,click\nx,1\n"))
    (tmp_path / "part-2.csv.gz").write_bytes(gzip.compress(b"item,click\n"))
    rows, _ = _read(_schema(), tmp_path / "part-*.csv.gz")
    assert [row["item"] for row in rows] == ["x"]
    assert "1 of 3 files are empty, such as " in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(UserError, match="is empty; write the log again"):
        _read(_schema(), tmp_path / "part-0.csv.gz")


def test_a_quote_within_an_unquoted_field_is_text(tmp_path: Path) -> None:
    lines = ['12" vinyl,1', '"7"" single",1', 'a"b"c,1', '"open,1', '"a,b",1']
    (tmp_path / "a.csv").write_text("item,click\n" + "\n".join(lines) + "\n")
    rows, refused = _read(_schema(), tmp_path / "a.csv")
    assert [row["item"] for row in rows] == ['12" vinyl', '7" single', 'a"b"c', "a,b"]
    assert [(r.line, r.reason) for r in refused] == [(5, "a quote that is not closed in its line")]


def test_a_first_line_longer_than_a_megabyte(tmp_path: Path) -> None:
    long = "x" * (3 << 20)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"item": item, "click": 1}) + "\n" for item in (long, "y")))
    assert [len(row["item"]) for row in _read(_schema(), tmp_path / "a.jsonl")[0]] == [3 << 20, 1]


def test_deeply_nested_json_is_one_refused_line(tmp_path: Path) -> None:
    good = '{"item": "x", "click": 1}\n'
    (tmp_path / "a.jsonl").write_text(good * 3 + '{"item": ' + "[" * 100_000 + "]" * 100_000 + ', "click": 1}\n')
    rows, refused = _read(_schema(), tmp_path / "a.jsonl")
    assert len(rows) == 3 and len(refused) == 1


# ---------------------------------------------------------------- the readers agree

_FLOATS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
_TEXTS = st.one_of(
    st.none(), st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n\x00"), max_size=8)
)
_VALUES = st.fixed_dictionaries(
    {
        "text": _TEXTS,
        "whole": st.one_of(st.none(), st.integers(-(2**63) + 1, 2**63 - 1)),
        "number": _FLOATS,
        "day": st.one_of(st.none(), st.dates().map(str)),
    }
)


@given(rows=st.lists(_VALUES, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_json_parquet_and_avro_give_the_same_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    schema = _schema(
        {"name": "text", "kind": "categorical"},
        {"name": "whole", "kind": "categorical", "dtype": "int64"},
        {"name": "number", "kind": "numeric"},
        {"name": "day", "kind": "categorical"},
    )
    # One row has every value, so that each format knows the types.
    full = {"text": "a", "whole": 1, "number": 0.5, "day": "2026-05-01"}
    rows = [{"click": 1, **row} for row in (full, full, *rows)]
    for left in tmp_path.iterdir():
        left.unlink()
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kinds = {"click": pa.int64(), "text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "day": pa.string()}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), tmp_path / "a.parquet")
    avro = {"text": "string", "whole": "long", "number": "double", "day": "string"}
    fields = [{"name": "click", "type": "int"}, *({"name": n, "type": ["null", k]} for n, k in avro.items())]
    with (tmp_path / "a.avro").open("wb") as out:
        fastavro.writer(out, {"type": "record", "name": "row", "fields": fields}, rows)

    def told(file: str) -> list[dict[str, Any]]:
        result, refused = _read(schema, tmp_path / file)
        assert refused == []
        return [{**row, "text": row["text"] or None} for row in result]  # empty text is missing

    wanted = [{**row, "text": row["text"] or None} for row in rows]
    for file in ("a.csv", "a.jsonl", "a.parquet", "a.avro"):
        # The texts that mean null in a CSV are no texts there.
        nulls = LogSettings().csv.null_values if file == "a.csv" else []
        for row, right in zip(told(file), wanted, strict=True):
            text = None if right["text"] in nulls else right["text"]
            assert {name: row[name] for name in right} == {**right, "text": text}, file


def test_a_lone_surrogate_is_one_refused_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"item": "x", "click": 1}\n{"item": "\\ud800", "click": 1}\n')
    rows, refused = _read(_schema(), tmp_path / "a.jsonl")
    assert [row["item"] for row in rows] == ["x"] and [r.line for r in refused] == [2]


# ---------------------------------------------------------------- lines that are none


def test_json_that_is_no_object_is_a_refused_line(tmp_path: Path) -> None:
    """Arrow's parser would crash the process on null."""
    good = '{"item": "x", "click": 1}'
    odd = ["null", "[1]", "1", '"x"', "true", "null null", "{bad"]
    (tmp_path / "a.jsonl").write_text("\n".join([odd[0], good, *odd, good, ""]))
    rows, refused = _read(_schema(), tmp_path / "a.jsonl")
    assert len(rows) == 2
    assert [r.reason for r in refused] == ["not a JSON object"] * 7 + ["not JSON"]
    (tmp_path / "a.jsonl").write_text("null\n")
    with pytest.raises(UserError, match="none of its first lines is JSON"):
        _read(_schema(), tmp_path / "a.jsonl")


def test_a_carriage_return_within_a_line_joins_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'item,click\na,1\n\r",1\nccc""",1\nb,1\r\n')
    rows, refused = _read(_schema(), tmp_path / "a.csv")
    assert [row["item"] for row in rows] == ["a", 'ccc"""', "b"]
    assert [(r.line, r.reason) for r in refused] == [(3, "a carriage return within a line")]


def test_files_that_are_no_text_say_so(tmp_path: Path) -> None:
    table = "item,click\nx,1\n"
    for content, what in (
        (table.encode("utf-16"), "is no UTF-8 text, perhaps UTF-16; convert it to UTF-8"),
        (table.encode("utf-16-le"), "is no UTF-8 text, perhaps UTF-16"),
        (gzip.compress(table.encode()), "is compressed by gzip; let its name end in .gz"),
        (b"\n" + table.encode(), "the first line is empty"),
        (table.replace(",", ";").encode(), "is the delimiter ';'. set logs.csv.delimiter"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(UserError, match=what):
            _read(_schema(), tmp_path / "a.csv")


def test_a_file_that_two_patterns_name_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("item,click\nx,1\n")
    assert len(_read(_schema(), "*.csv", "./a.csv", tmp_path / "a.csv")[0]) == 1


def test_empty_files_of_every_format_are_skipped(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", item=pa.array(["x"]))
    for name in ("b.parquet", "c.avro", "d.csv.bz2", "e.jsonl"):
        (tmp_path / name).touch()
    assert len(_read(_schema(), tmp_path / "*.*")[0]) == 1


def test_ids_as_text_that_a_tool_wrote_as_floats_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("item,click\n12.0,1\n13.0,1\n")
    _read(_schema(), tmp_path / "a.csv")
    assert "feature 'item' is read as text, and the log has numbers such as 12.0" in capsys.readouterr().err


def test_long_integers_that_are_carried_keep_their_digits_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"item": "x", "click": 1, "s": 12345678901234567890}\n')
    with pytest.raises(UserError, match=r"passthrough 's' holds integers that .* cannot hold; log them as text"):
        _read(_schema(passthrough=["s"]), tmp_path / "a.jsonl")
