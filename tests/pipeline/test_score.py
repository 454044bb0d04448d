"""Logs scored as a Beam job: the scores that the model gives one row at a time, in the log's order, whatever the form."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from features.errors import UserError
from pipeline.cli import main
from pipeline.config import Config
from pipeline.predict import Predictor, exported_config
from pipeline.score import score

OUTPUTS = ("score", "ctr", "confidence")


@pytest.fixture(scope="module")
def rows(small_log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in small_log.read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(small_export: Path, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    answers = Predictor(small_export).predict(rows)
    return {name: [answer[name] for answer in answers] for name in OUTPUTS}


def _of(model: Path, log: Path, **logs: Any) -> Config:
    config = exported_config(model)
    return config.model_copy(update={"logs": config.logs.model_copy(update={"files": [str(log)], **logs})})


def _read(out: Path) -> pa.Table:
    parts = sorted(out.glob("part-*"))
    return pa.concat_tables(
        [pq.read_table(part) if part.suffix == ".parquet" else pa.json.read_json(part) for part in parts]
    )


def _assert_scored(found: pa.Table, rows: list[dict[str, Any]], expected: dict[str, list[float]]) -> None:
    assert found["user_id"].to_pylist() == [row["user_id"] for row in rows]
    assert found["item_id"].to_pylist() == [row["item_id"] for row in rows]
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_scores_are_the_online_ones_in_the_logs_order(
    small_export: Path,
    small_log: Path,
    rows: list[dict[str, Any]],
    expected: dict[str, list[float]],
    form: str,
    tmp_path: Path,
) -> None:
    told = score(_of(small_export, small_log), small_export, tmp_path / "out", form=form)
    found = _read(tmp_path / "out")
    _assert_scored(found, rows, expected)
    assert {"click", "timestamp", "intensity", "accidental"} <= set(found.column_names)  # carried along
    assert found["click"].to_pylist() == [row["click"] for row in rows]
    assert told["rows"] == {"read": 6000, "refused": 0, "scored": 6000}
    assert told["mean"]["ctr"] == pytest.approx(np.mean(expected["ctr"]), abs=1e-6)
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == told
    assert not (tmp_path / "out" / "job.json").exists() and not (tmp_path / "out" / ".spill").exists()


def test_a_log_of_several_pieces_by_two_workers_is_scored_as_by_one(
    small_export: Path, rows: list[dict[str, Any]], expected: dict[str, list[float]], tmp_path: Path
) -> None:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.slice(0, 4000), tmp_path / "a.parquet", row_group_size=1500)
    pq.write_table(table.slice(4000), tmp_path / "b.parquet")
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    score(_of(small_export, tmp_path / "*.parquet"), small_export, tmp_path / "out", beam_options=options)
    assert len(list((tmp_path / "out").glob("part-*"))) == 4
    _assert_scored(_read(tmp_path / "out"), rows, expected)


def test_a_log_needs_no_label_and_no_column_that_is_no_input(
    small_export: Path, rows: list[dict[str, Any]], expected: dict[str, list[float]], tmp_path: Path
) -> None:
    bare = [
        {k: v for k, v in row.items() if k not in ("click", "timestamp", "intensity", "accidental")} for row in rows
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    score(_of(small_export, tmp_path / "log.jsonl"), small_export, tmp_path / "out")
    found = _read(tmp_path / "out")
    assert "click" not in found.column_names
    _assert_scored(found, rows, expected)


def test_lines_that_do_not_parse_are_dead_letters_and_the_others_keep_their_order(
    small_export: Path, small_log: Path, rows: list[dict[str, Any]], expected: dict[str, list[float]], tmp_path: Path
) -> None:
    lines = small_log.read_text().splitlines()[:100]
    lines[3], lines[50] = "{", lines[50].replace('"user_id":"', '"user_id":5,"x":"')
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    told = score(_of(small_export, tmp_path / "log.jsonl"), small_export, tmp_path / "out")
    good = [at for at in range(100) if at not in (3, 50)]
    kept = {name: [values[at] for at in good] for name, values in expected.items()}
    _assert_scored(_read(tmp_path / "out"), [rows[at] for at in good], kept)
    assert told["rows"] == {"read": 100, "refused": 2, "scored": 98}
    with gzip.open(tmp_path / "out" / "dead_letters.jsonl.gz", "rt") as file:
        assert [json.loads(line)["line"] for line in file] == [4, 51]


def test_what_cannot_be_scored_says_so_and_leaves_nothing(small_export: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": "u1"}\n')
    with pytest.raises(UserError, match="has no column 'user_id'; did you mean 'user'"):
        score(_of(small_export, tmp_path / "log.jsonl"), small_export, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_patterns_and_says_what_it_did(
    small_export: Path, small_log: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    table = pa.json.read_json(small_log).select(
        ["user_id", "item_id", "age_band", "gender", "category", "position", "hour", "price"]
    )
    pa.csv.write_csv(table.slice(0, 50), tmp_path / "log.csv", pa.csv.WriteOptions(delimiter=";"))
    command = [
        "score",
        "--model",
        str(small_export.parent),
        "--logs",
        str(tmp_path / "*.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and "error:" in done.stderr  # the delimiter is another
    done = CliRunner().invoke(main, [*command, "--set", "logs.csv.delimiter=;"])
    assert done.exit_code == 2 and "tags" in done.stderr  # a CSV has no lists, and the feature is not optional
