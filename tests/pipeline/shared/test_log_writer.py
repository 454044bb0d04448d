"""Log files are read back unchanged, and a failure leaves no file."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from clsd.features.errors import UserError
from clsd.pipeline.shared import log_writer
from clsd.pipeline.shared.log_writer import LOG_FORMATS, json_lines, write_log

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    'a "quoted" one',
    "two\nlines\r\n",
    "back\\slash",
    "tab\t",
    "nul\x00\x1f",
    "é 漢字 😀",
    "\u2028\u2029\x85\x7f",
    "",
    None,
]


def _rows() -> pa.RecordBatch:
    count = len(TEXTS)
    return pa.record_batch(
        {
            "text": pa.array(TEXTS),
            "plain": pa.array(["x", None, "é"] * 3),
            'odd "name"': pa.array(range(count), pa.int64()),
            "whole": pa.array([-(2**63), 2**63 - 1, None, 0, 1, 2, 3, 4, 5], pa.int64()),
            "float": pa.array([0.1, 5.0, -0.0, 1e300, 5e-324, None, math.pi, 12345678901.0, 1e10]),
            "single": pa.array([0.1, 5.0, 1e-7, None, 3.4e38, 2.0, 1.5, 0.0, -1.0], pa.float32()),
            "flag": pa.array([True, False, None] * 3),
            "list": pa.array([["a", 'b"'], [], None, ["c"], ["d", "e", "f"], ["x\ny"], [None, "g"], ["é"], [""]]),
            "numbers": pa.array([[1, 2], [], None] * 3, pa.list_(pa.int64())),
            "kind": pa.array(['p"', "q", None] * 3).dictionary_encode(),
            "nothing": pa.nulls(count),
        }
    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_json_lines_round_trip(tmp_path: Path) -> None:
    batch = _rows()
    assert write_log([batch, batch.slice(3, 4)], tmp_path / "log", "jsonl") == len(TEXTS) + 4
    want = batch.to_pylist() + batch.slice(3, 4).to_pylist()
    got = _read_jsonl(tmp_path / "log")
    for row, read in zip(want, got, strict=True):
        single = row.pop("single")
        read_single = read.pop("single")
        assert read == row
        assert (read_single is None) == (single is None)
        assert single is None or np.float32(read_single) == np.float32(single)


def test_json_keeps_floats_floats_and_one_line_per_row() -> None:
    lines = json_lines(_rows()).to_pylist()
    assert [type(json.loads(line)["float"]) for line in lines].count(float) == len(TEXTS) - 1
    assert all(len(line.splitlines()) == 1 for line in lines)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_and_csv_have_no_nan(value: float, tmp_path: Path) -> None:
    batch = pa.record_batch({"x": pa.array([value, 1.5])})
    write_log([batch], tmp_path / "log", "jsonl")
    assert (tmp_path / "log").read_text() == '{"x":null}\n{"x":1.5}\n'
    write_log([batch], tmp_path / "log", "csv")
    assert (tmp_path / "log").read_text() == '"x"\n\n1.5\n'


def test_random_floats_round_trip() -> None:
    rng = np.random.default_rng(7)
    values = np.frombuffer(rng.bytes(8 * 20_000), np.float64)
    values = np.concatenate([values[np.isfinite(values)], rng.normal(size=20_000).round(3), np.arange(-500.0, 500.0)])
    batch = pa.record_batch({"x": values})
    read = [json.loads(line)["x"] for line in json_lines(batch).to_pylist()]
    assert all(type(x) is float for x in read)
    np.testing.assert_array_equal(np.array(read), values)


def test_slices_of_batches_are_written_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_TEXT_ROWS", 7)
    tags = [[f"t{j}" for j in range(i % 4)] for i in range(50)]
    batch = pa.record_batch({"n": list(range(50)), "tags": pa.array(tags, pa.list_(pa.string()))}).slice(5, 40)
    write_log([batch], tmp_path / "log", "jsonl")
    assert _read_jsonl(tmp_path / "log") == batch.to_pylist()


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    batch = _rows().select(["text", "plain", "whole", "float", "flag", "list"]).slice(0, 6)
    write_log([batch], tmp_path / "log.csv", "csv")
    write_log([batch], tmp_path / "log.parquet", "parquet")
    parquet = pq.read_table(tmp_path / "log.parquet")
    assert parquet.equals(pa.Table.from_batches([batch]))
    types = {field.name: field.type for field in batch.schema if field.name != "list"} | {"list": pa.string()}
    options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    csv = pa_csv.read_csv(tmp_path / "log.csv", convert_options=options, parse_options=parse).to_pylist()
    for row, read in zip(batch.to_pylist(), csv, strict=True):
        joined = row["list"] if row["list"] is None else "|".join(row["list"])
        assert read == {**row, "list": joined}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_gzip_holds_the_same_bytes(kind: str, tmp_path: Path) -> None:
    batch = _rows().select(["text", "float", "list"])
    write_log([batch], tmp_path / "plain", kind)
    for name in ("once", "again"):
        write_log([batch], tmp_path / name, f"{kind}.gz")
    packed = (tmp_path / "once").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain").read_bytes()
    assert packed == (tmp_path / "again").read_bytes()


def test_parquet_has_a_row_group_per_batch_and_progress_counts_rows(tmp_path: Path) -> None:
    seen: list[int] = []
    batch = pa.record_batch({"x": list(range(100))})
    assert write_log([batch, batch.slice(0, 30)], tmp_path / "log", "parquet", seen.append) == 130
    assert seen == [100, 30]
    assert pq.ParquetFile(tmp_path / "log").metadata.num_row_groups == 2


@pytest.mark.parametrize("format", LOG_FORMATS)
def test_a_failing_source_leaves_the_old_file(format: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old")

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"x": [1]})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_log(batches(), log, format)
    assert [file.name for file in tmp_path.iterdir()] == ["log"] and log.read_text() == "old"


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    batch = pa.record_batch({"x": [1]})
    with pytest.raises(UserError, match="did you mean 'jsonl'"):
        write_log([batch], tmp_path / "log", "json")
    with pytest.raises(UserError, match="no rows"):
        write_log([], tmp_path / "log", "csv")
    with pytest.raises(UserError, match=r"cannot be written \(No such file"):
        write_log([batch], tmp_path / "missing" / "log", "csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_log([batch], tmp_path / "folder", "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_an_unknown_type_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="struct"):
        write_log([pa.record_batch({"x": pa.array([{"a": 1}])})], tmp_path / "log", "jsonl")
    assert not list(tmp_path.iterdir())


_FULL_DISK = """
import resource, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from clsd.features.errors import UserError
from clsd.pipeline.shared.log_writer import write_log
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
batch = pa.record_batch({"x": np.random.default_rng(1).normal(size=200_000)})
try:
    write_log([batch, batch], Path(sys.argv[1]), sys.argv[2])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("format", LOG_FORMATS)
def test_a_full_disk_leaves_nothing_behind(format: str, tmp_path: Path) -> None:
    # A limit on the file's size fails the same system call as a full disk, with EFBIG for ENOSPC.
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "log"), format]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "cannot be written (File too large)" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1 and not done.stderr
    assert not list(tmp_path.iterdir())
