from __future__ import annotations

import bz2
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsd.features.errors import UserError
from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import KEY, POSITION
from clsd.pipeline.preprocess.dead_letters import DeadLetter
from clsd.pipeline.preprocess.input_splits import InputSplit, plan
from clsd.pipeline.preprocess.sources import ReadBatch, Reader
from clsd.pipeline.shared.config import LogSettings

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}

SCHEMA = Schema(
    features=[
        {"name": "user", "kind": "categorical"},
        {"name": "n", "kind": "numeric"},
        {"name": "count", "kind": "categorical", "dtype": "int64", "optional": True},
    ],
    timestamp="t",
)
ROWS = [{"user": f"u{i % 7} é", "n": i / 2, "click": i % 2, "t": 1000 + i, "count": i} for i in range(200)]


def _jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def _csv(path: Path, header: bool = True) -> Path:
    lines = [",".join(map(str, row.values())) for row in ROWS]
    path.write_text("\n".join(([",".join(ROWS[0])] if header else []) + lines) + "\n")
    return path


def _parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=64)
    return path


def _avro(path: Path, rows: list[dict[str, Any]] = ROWS, codec: str = "deflate") -> Path:
    fields = [
        ("user", "string"),
        ("n", ["null", "double"]),
        ("click", "int"),
        ("t", "long"),
        ("count", ["long", "null"]),
    ]
    schema = {"type": "record", "name": "row", "fields": [{"name": name, "type": kind} for name, kind in fields]}
    with path.open("wb") as file:
        fastavro.writer(file, schema, rows, codec=codec, sync_interval=300)
    return path


def _read(logs: LogSettings, input_splits: list[InputSplit]) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
    reader, rows, refused = Reader(logs, seed=1), [], []
    for input_split in input_splits:
        for part in reader.read(input_split):
            if isinstance(part, DeadLetter):
                refused.append(part)
            else:
                rows += part.rows.to_pylist()
    return rows, refused


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ROWS[0]} for row in rows]


@pytest.mark.parametrize(
    "name", ["log.jsonl", "log.jsonl.gz", "log.jsonl.bz2", "log.jsonl.zst", "log.csv", "log.parquet", "log.avro"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "avro": _avro}[name.split(".")[1]](path)
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, SCHEMA))
    assert refused == []
    assert _plain(rows) == ROWS
    assert len({row[KEY] for row in rows}) == len(ROWS)


@pytest.mark.parametrize("cut", [1, 17, 64, 1000, 5000])
def test_pieces_hold_every_line_once_wherever_they_are_cut(tmp_path: Path, cut: int) -> None:
    for path in (_jsonl(tmp_path / "log.jsonl"), _csv(tmp_path / "log.csv"), _avro(tmp_path / "log.avro")):
        logs = LogSettings(files=[str(path)])
        (whole,) = plan(logs, SCHEMA)
        step = max(cut, whole.end // 200)
        input_splits = [
            replace(whole, index=i, start=start, end=min(start + step, whole.end))
            for i, start in enumerate(range(0, whole.end, step))
        ]
        rows, refused = _read(logs, input_splits)
        assert refused == []
        assert _plain(rows) == ROWS


def test_a_file_without_a_last_newline_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    for path in (_jsonl(tmp_path / "log.jsonl"), _csv(tmp_path / "log.csv")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
        logs = LogSettings(files=[str(path)])
        assert _plain(_read(logs, plan(logs, SCHEMA))[0]) == ROWS


def test_a_csv_without_a_header_takes_its_names_from_the_settings(tmp_path: Path) -> None:
    path = _csv(tmp_path / "log.csv", header=False)
    logs = LogSettings(files=[str(path)], csv={"columns": list(ROWS[0])})
    assert _plain(_read(logs, plan(logs, SCHEMA))[0]) == ROWS


def test_columns_may_differ_in_order_and_optional_ones_may_lack(tmp_path: Path) -> None:
    short = [{"t": row["t"], "click": row["click"], "n": row["n"], "user": row["user"]} for row in ROWS]
    _jsonl(tmp_path / "a.jsonl")
    _jsonl(tmp_path / "b.jsonl", short)
    logs = LogSettings(files=[str(tmp_path / "*.jsonl")])
    rows, _ = _read(logs, plan(logs, SCHEMA))
    assert [row["user"] for row in rows] == [row["user"] for row in ROWS] * 2
    assert rows[-1]["count"] is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty line"),
        (b'{"user": "x", "n": 1, "click"', "not JSON"),
        (b'{"user": 5, "n": 1, "click": 1, "t": 1}', "wrong type in 'user'"),
        (b'{"user": "x", "n": "much", "click": 1, "t": 1}', "wrong type in 'n'"),
        (b'{"user": "x", "n": 1, "click": 1, "t": 1, "count": 1.5}', "not a whole number in 'count'"),
        (
            b'{"user": "x", "n": 1, "click": 1, "t": 1, "count": 1180591620717411303424}',
            "not a whole number in 'count'",
        ),
        (b'{"user": "\xff\xfe", "n": 1, "click": 1, "t": 1}', "broken UTF-8"),
    ],
)
def test_a_bad_json_line_is_set_aside_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = _jsonl(tmp_path / "log.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines.insert(120, line)
    path.write_bytes(b"\n".join(lines))
    logs = LogSettings(files=[str(path)])
    (whole,) = plan(logs, SCHEMA)
    half = whole.end // 2
    rows, refused = _read(logs, [replace(whole, end=half), replace(whole, index=1, start=half)])
    assert _plain(rows) == ROWS
    assert [(r.line, r.reason) for r in refused] == [(121, reason)]
    assert refused[0].path == str(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x,1,1", "wrong number of fields"),
        (b"x,much,1,5,1", "wrong type in 'n'"),
        (b'x,1,1,5,"1', "a quote that is not closed in its line"),
        (b"\xff\xfe,1,1,5,1", "broken UTF-8"),
    ],
)
def test_a_bad_csv_line_is_set_aside_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = _csv(tmp_path / "log.csv")
    lines = path.read_bytes().split(b"\n")
    lines.insert(150, line)
    path.write_bytes(b"\n".join(lines))
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, SCHEMA))
    assert _plain(rows) == ROWS
    assert [(r.line, r.reason) for r in refused] == [(151, reason)]


def test_a_key_depends_on_the_place_alone(tmp_path: Path) -> None:
    logs = LogSettings(files=[str(_jsonl(tmp_path / "log.jsonl"))])
    rows, _ = _read(logs, plan(logs, SCHEMA))
    changed = [{**row, "n": 0.0} for row in ROWS]
    changed[50] = {"broken": True}
    logs = LogSettings(files=[str(_jsonl(tmp_path / "log.jsonl", changed))])
    again = {row[POSITION]: row[KEY] for row in _read(logs, plan(logs, SCHEMA))[0]}
    assert all(again[row[POSITION]] == row[KEY] for row in rows if row[POSITION] in again)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"garbage\nmore\n"), "none of its first lines is JSON"),
        (lambda p: _jsonl(p, [{"user": "a", "click": 1, "t": 1}]), "has no column 'n'"),
        (lambda p: _jsonl(p, [{"usr": "a", "n": 1, "click": 1, "t": 1}]), "no column 'user'; did you mean 'usr'?"),
        (lambda p: _jsonl(p, [{"user": "a", "n": 1, "t": 1}]), "has no column 'click'"),
        (lambda p: _jsonl(p, [{"user": 3, "n": 1, "click": 1, "t": 1}]), "set the feature's dtype: int64"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_before_the_job(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    with pytest.raises(UserError) as error:
        plan(LogSettings(files=[str(path)]), SCHEMA)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_an_ending_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"set logs\.format"):
        plan(LogSettings(files=[str(path)]), SCHEMA)
    assert len(plan(LogSettings(files=[str(path)], format="jsonl"), SCHEMA)) == 1


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_a_truncated_file_is_an_error_and_not_a_short_log(tmp_path: Path, ending: str) -> None:
    path = _jsonl(tmp_path / f"log.jsonl{ending}", ROWS * 200)  # longer than one block of bzip2
    path.write_bytes(path.read_bytes()[:-20])
    logs = LogSettings(files=[str(path)])
    with pytest.raises(UserError, match=rf"log.jsonl{ending}: the {ending} file is truncated or damaged"):
        _read(logs, plan(logs, SCHEMA))


def test_a_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "log.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"log.parquet: is not a complete Parquet file"):
        plan(LogSettings(files=[str(path)]), SCHEMA)


def test_a_parquet_value_that_does_not_fit_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rows = [{**row, "count": str(row["count"])} for row in ROWS]
    rows[99]["count"] = "ninety-nine"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    logs = LogSettings(files=[str(path)])
    good, refused = _read(logs, plan(logs, SCHEMA))
    assert len(good) == len(ROWS) - 1
    assert [(r.line, r.reason) for r in refused] == [(100, "wrong type in 'count'")]


def test_one_broken_text_in_a_parquet_file_is_one_dead_letter(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pa.Table.from_pylist(ROWS)
    users = [row["user"].encode() for row in ROWS]
    users[42] = b"u\xff"
    broken = pa.Array.from_buffers(pa.string(), len(users), pa.array(users, pa.binary()).buffers())
    pq.write_table(table.set_column(0, "user", broken), path)
    logs = LogSettings(files=[str(path)])
    good, refused = _read(logs, plan(logs, SCHEMA))
    assert [row["user"] for row in good] == [row["user"] for place, row in enumerate(ROWS) if place != 42]
    assert [(r.line, r.reason) for r in refused] == [(43, "broken UTF-8")]
    assert json.loads(refused[0].text)["user"] == "u\\xff"


def test_a_timestamp_that_a_feature_reads_must_be_a_number(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pa.Table.from_pylist(ROWS)
    stamps = pa.array([row["t"] for row in ROWS], pa.int64()).cast(pa.timestamp("s"))
    pq.write_table(table.set_column(table.schema.get_field_index("t"), "t", stamps), path)
    schema = Schema(features=[*SCHEMA.features, {"name": "hour", "column": "t", "kind": "numeric"}], timestamp="t")
    with pytest.raises(UserError, match="feature 'hour' is read as double, and the log has timestamp"):
        plan(LogSettings(files=[str(path)]), schema)


def test_a_key_that_comes_late_is_no_missing_column(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "n"} for row in ROWS] * 15 + ROWS  # 3,000 lines without it
    path = _jsonl(tmp_path / "log.jsonl", rows)
    logs = LogSettings(files=[str(path)])
    result, refused = _read(logs, plan(logs, SCHEMA))
    assert refused == []
    assert [row["n"] for row in result] == [None] * 3000 + [row["n"] for row in ROWS]


def test_a_role_that_the_log_lacks_is_no_silent_absence(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "log.jsonl")
    for role in ({"intensity": "m"}, {"passthrough": ["m"]}, {"user": "m"}):
        schema = Schema.model_validate({**SCHEMA.model_dump(), **role})
        with pytest.raises(UserError, match="has no column 'm'"):
            plan(LogSettings(files=[str(path)]), schema)


def test_encoded_and_large_text_of_parquet_is_text(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    user = table.schema.get_field_index("user")
    time = table.schema.get_field_index("t")
    stamps = pa.array([f"2026-05-01T00:00:{i % 60:02}Z" for i in range(len(ROWS))], pa.large_string())
    table = table.set_column(user, "user", table["user"].dictionary_encode()).set_column(time, "t", stamps)
    pq.write_table(table, tmp_path / "log.parquet")
    schema = Schema.model_validate({**SCHEMA.model_dump(), "timestamp_unit": "iso", "user": "user"})
    logs = LogSettings(files=[str(tmp_path / "log.parquet")])
    rows, _ = _read(logs, plan(logs, schema))
    assert rows[0]["t"] == "2026-05-01T00:00:00Z"
    assert [row["user"] for row in rows] == [row["user"] for row in ROWS]


def test_many_bad_lines_leave_one_batch_a_block(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "log.jsonl", ROWS * 10)
    lines = path.read_bytes().split(b"\n")
    for at in range(0, 2000, 20):
        lines[at] = b'{"user": "x", "n": "much", "click": 1, "t": 1}'
    path.write_bytes(b"\n".join(lines))
    logs = LogSettings(files=[str(path)])
    (input_split,) = plan(logs, SCHEMA)
    parts = list(Reader(logs, seed=1).read(input_split))
    batches = [part for part in parts if not isinstance(part, DeadLetter)]
    assert [batch.rows.num_rows for batch in batches] == [1900]
    assert [part.line for part in parts if isinstance(part, DeadLetter)] == list(range(1, 2001, 20))


def test_a_truncated_or_foreign_avro_file_is_named(tmp_path: Path) -> None:
    path = _avro(tmp_path / "log.avro")
    logs = LogSettings(files=[str(path)])
    input_splits = plan(logs, SCHEMA)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"log\.avro: is damaged or truncated"):
        _read(logs, input_splits)
    path.write_bytes(b"no Avro at all")
    with pytest.raises(UserError, match=r"log\.avro: is not an Avro file"):
        plan(logs, SCHEMA)


def test_avros_own_types_are_read_as_the_schema_asks(tmp_path: Path) -> None:
    """A time as a timestamp, an id as a string in place of a number; what does not fit is set aside with its place."""
    fields = [("user", "string"), ("n", "double"), ("count", "string"), ("click", "boolean")]
    moment = {"type": "long", "logicalType": "timestamp-millis"}
    schema = {"type": "record", "name": "row", "fields": [{"name": k, "type": t} for k, t in [*fields, ("t", moment)]]}
    rows = [
        {"user": "a", "n": 0.5, "count": "7", "click": True, "t": 1_700_000_000_123},
        {"user": "b", "n": 0.5, "count": "many", "click": False, "t": 1_700_000_000_123},
    ]
    with (tmp_path / "log.avro").open("wb") as file:
        fastavro.writer(file, schema, rows)
    logs = LogSettings(files=[str(tmp_path / "log.avro")])
    read, refused = _read(logs, plan(logs, SCHEMA))
    assert [(row["count"], row["click"], row["t"].timestamp()) for row in read] == [(7, True, 1_700_000_000.123)]
    assert [(r.line, r.reason) for r in refused] == [(2, "wrong type in 'count'")]


def test_an_odd_value_at_the_head_of_a_csv_decides_nothing(tmp_path: Path) -> None:
    path = _csv(tmp_path / "log.csv")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(",0,1002,", ",N/A,1002,")
    lines[5] = lines[5].replace(",1004,", ",-,")
    path.write_text("\n".join(lines) + "\n")
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, SCHEMA))
    assert len(rows) == len(ROWS) - 2
    assert [(r.line, r.reason) for r in refused] == [(4, "wrong type in 'click'"), (6, "wrong type in 't'")]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["1", "0"], "int64"), (["1.0", "0"], "double"), (["true", "False"], "bool"), (["yes", "no"], "string")],
)
def test_a_csv_label_is_what_most_of_its_values_are(tmp_path: Path, labels: list[str], kind: str) -> None:
    path = tmp_path / "log.csv"
    lines = [f"u,1,{labels[0] if i % 3 else labels[i % 2]},{i}" for i in range(50)]
    path.write_text("\n".join(["user,n,click,t", *lines]) + "\n")
    (input_split,) = plan(LogSettings(files=[str(path)]), SCHEMA)
    assert str(input_split.types["click"]) == kind and str(input_split.types["t"]) == "int64"


def test_a_csv_of_another_dialect(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("'user;name'|n|click|t\n'a|b'|1|0|1\n'it\\'s'|2|1|2\n'open|3|1|3\nc|4|NULL|4\n", encoding="utf-8")
    schema = Schema.model_validate(
        {**SCHEMA.model_dump(), "features": [{"name": "user", "column": "user;name", "kind": "categorical"}]}
    )
    logs = LogSettings(files=[str(path)], csv={"delimiter": "|", "quote": "'", "escape": "\\"})
    rows, refused = _read(logs, plan(logs, schema))
    assert [row["user;name"] for row in rows] == ["a|b", "it's", "c"]
    assert [(r.line, r.reason, r.text) for r in refused] == [
        (4, "a quote that is not closed in its line", "'open|3|1|3")
    ]
    plain = LogSettings(files=[str(path)], csv={"delimiter": "|", "quote": ""})
    with pytest.raises(UserError, match="has no column 'user;name'"):
        plan(plain, schema)


def test_a_time_that_json_only_carries_along_stays_as_it_is_written(tmp_path: Path) -> None:
    days = ["2026-05-01", "2026-05-01T08:00:00Z", "none", "2026-05-01T08:00:00.25Z"]
    path = _jsonl(tmp_path / "log.jsonl", [{**row, "day": days[0 if i < 190 else i % 4]} for i, row in enumerate(ROWS)])
    schema = Schema.model_validate({**SCHEMA.model_dump(), "passthrough": ["day"]})
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, schema))
    assert refused == []
    assert {row["day"] for row in rows} == {*days}


def test_a_line_nested_deeper_than_python_goes_is_a_dead_letter(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "log.jsonl")
    path.write_bytes(path.read_bytes() + b'{"user": ' + b"[" * 100_000 + b"\n")
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, SCHEMA))
    assert len(rows) == len(ROWS)
    assert [r.line for r in refused] == [len(ROWS) + 1]


@pytest.mark.parametrize(
    ("column", "values", "changes", "message"),
    [
        ("user", [["a"]], {}, "feature 'user' is read as one value, and the log has lists"),
        ("user", [{"a": 1}], {}, "feature 'user' is read as one value, and the log has objects"),
        ("t", [[1]], {}, "'t' holds list"),
        ("click", [{"a": 1}], {}, "'click' holds struct"),
        ("tags", ["a"], {"tags": {"kind": "bag", "max_length": 2}}, "'tags' is read as a list, and the log has none"),
        ("tags", [["a"]], {"passthrough": ["tags"]}, "passthrough 'tags' holds lists"),
        ("_user", ["a"], {"_user": {"kind": "categorical"}}, "column '_user' has a reserved name"),
        ("_key", ["a"], {"passthrough": ["_key"]}, "column '_key' has a reserved name"),
    ],
)
def test_a_column_of_another_shape_is_refused_before_the_job(
    tmp_path: Path, column: str, values: list[Any], changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, column: values[0]} for row in ROWS]), path)
    raw = SCHEMA.model_dump()
    for name, change in changes.items():
        if name == "passthrough":
            raw["passthrough"] = change
        else:
            raw["features"].append({"name": name, **change})
    with pytest.raises(UserError) as error:
        plan(LogSettings(files=[str(path)]), Schema.model_validate(raw))
    assert message in str(error.value)


def test_a_batch_with_faults_and_one_without_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clsd.pipeline.preprocess import sources

    path = tmp_path / "log.parquet"
    table = pa.Table.from_pylist([{**row, "count": "odd" if i in (3, 60) else str(i)} for i, row in enumerate(ROWS)])
    pq.write_table(table, path)
    monkeypatch.setattr(sources, "BATCH_ROWS", 50)
    logs = LogSettings(files=[str(path)])
    rows, refused = _read(logs, plan(logs, SCHEMA))
    assert [row["count"] for row in rows] == [i for i in range(len(ROWS)) if i not in (3, 60)]
    assert [r.line for r in refused] == [4, 61]


def test_a_batch_knows_its_lines_as_they_stand(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "log.jsonl", ROWS * 200)
    logs = LogSettings(files=[str(path)], chunk_mebibytes=1)
    input_splits = plan(logs, SCHEMA)
    assert len(input_splits) > 1
    reader, lines = Reader(logs, seed=1), path.read_text().splitlines()
    for input_split in (input_splits[1], input_splits[0]):
        (batch,) = reader.read(input_split)
        assert isinstance(batch, ReadBatch)
        for position in (0, 7, 3000, batch.rows.num_rows - 1):
            assert batch.text(position) == lines[reader.line(input_split, position) - 1]
        assert batch.text(batch.rows.num_rows) is None
