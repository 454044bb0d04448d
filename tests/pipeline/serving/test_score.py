"""Scoring logs with Beam: the scores of single rows, in the log's order, in all formats."""

from __future__ import annotations

import gzip
import json
import os
import shutil
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

from clsd.features.errors import UserError
from clsd.pipeline.cli import main
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.serving.predict import Predictor
from clsd.pipeline.serving.score import score
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.shared.json_files import read_json
from clsd.pipeline.shared.model_versions import exported_config
from clsd.pipeline.training.train import train

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


def _assert_scored(result: pa.Table, rows: list[dict[str, Any]], expected: dict[str, list[float]]) -> None:
    assert result["user_id"].to_pylist() == [row["user_id"] for row in rows]
    assert result["item_id"].to_pylist() == [row["item_id"] for row in rows]
    for name in OUTPUTS:
        np.testing.assert_allclose(result[name], expected[name], atol=1e-6)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_scores_are_the_online_ones_in_the_logs_order(
    small_export: Path,
    small_log: Path,
    rows: list[dict[str, Any]],
    expected: dict[str, list[float]],
    format: str,
    tmp_path: Path,
) -> None:
    summary = score(_of(small_export, small_log), small_export, tmp_path / "out", format=format)
    result = _read(tmp_path / "out")
    _assert_scored(result, rows, expected)
    assert {"click", "timestamp", "intensity", "accidental"} <= set(result.column_names)  # carried along
    assert result["click"].to_pylist() == [row["click"] for row in rows]
    assert summary["rows"] == {"read": 6000, "refused": 0, "scored": 6000}
    assert summary["mean"]["ctr"] == pytest.approx(np.mean(expected["ctr"]), abs=1e-6)
    assert read_json(tmp_path / "out" / "scores.json", "scores", "") == summary
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
    result = _read(tmp_path / "out")
    assert "click" not in result.column_names
    _assert_scored(result, rows, expected)


def test_lines_that_do_not_parse_are_dead_letters_and_the_others_keep_their_order(
    small_export: Path, small_log: Path, rows: list[dict[str, Any]], expected: dict[str, list[float]], tmp_path: Path
) -> None:
    lines = small_log.read_text().splitlines()[:100]
    lines[3], lines[50] = "{", lines[50].replace('"user_id":"', '"user_id":5,"x":"')
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    config = _of(small_export, tmp_path / "log.jsonl")
    lenient = config.preprocess.model_copy(update={"max_refused": 0.1})
    summary = score(config.model_copy(update={"preprocess": lenient}), small_export, tmp_path / "out")
    good = [at for at in range(100) if at not in (3, 50)]
    kept = {name: [values[at] for at in good] for name, values in expected.items()}
    _assert_scored(_read(tmp_path / "out"), [rows[at] for at in good], kept)
    assert summary["rows"] == {"read": 100, "refused": 2, "scored": 98}
    with gzip.open(tmp_path / "out" / "dead_letters.jsonl.gz", "rt") as file:
        assert [json.loads(line)["line"] for line in file] == [4, 51]


def test_what_cannot_be_scored_says_so_and_leaves_nothing(small_export: Path, small_log: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": "u1"}\n')
    with pytest.raises(UserError, match="has no column 'user_id'; did you mean 'user'"):
        score(_of(small_export, tmp_path / "log.jsonl"), small_export, tmp_path / "out")
    lines = small_log.read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join([*lines[:50], "{\n", "{\n"]))
    with pytest.raises(UserError, match=r"log.jsonl:51: 2 of 52 rows refused, more than preprocess.max_refused"):
        score(_of(small_export, tmp_path / "log.jsonl"), small_export, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "out.dead_letters.jsonl.gz"]


def test_columns_with_the_name_of_a_score_and_features_that_are_not_the_models_are_refused(
    small_export: Path, small_log: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = _of(small_export, small_log)
    named = config.row_schema.model_copy(update={"passthrough": ["ctr"]})
    with pytest.raises(UserError, match="a column has the name of a score, 'ctr'; rename it"):
        score(config.model_copy(update={"row_schema": named}), small_export, tmp_path / "out")
    settings["rows"]["features"] = [f for f in settings["rows"]["features"] if f["name"] != "price"]
    settings["export"] = {}
    with pytest.raises(
        UserError, match="the model's 'price' has kind 'numeric'; describe the log's features as the model's"
    ):
        score(parse_config(settings, "config"), small_export, tmp_path / "out")


def test_a_csv_has_as_text_what_the_model_has_as_a_list(
    small_export: Path,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_text = [{**row, "tags": "|".join(row["tags"])} for row in rows[:60]]
    pa.csv.write_csv(pa.Table.from_pylist(as_text).drop_columns(["accidental"]), tmp_path / "log.csv")
    next(f for f in settings["rows"]["features"] if f["name"] == "tags")["separator"] = "|"
    settings["logs"]["files"] = [str(tmp_path / "log.csv")]
    score(parse_config(settings, "config"), small_export, tmp_path / "out")
    answers = Predictor(small_export).predict(rows[:60])
    np.testing.assert_allclose(_read(tmp_path / "out")["ctr"], [answer["ctr"] for answer in answers], atol=1e-6)
    assert "the logs have no column accidental (rows.passthrough): not copied" in capsys.readouterr().err


def test_a_history_is_what_the_log_says_and_a_log_without_it_is_refused(
    settings: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Of a model whose training made the histories of the log's own clicks."""
    settings["rows"]["features"].append(
        {"name": "history", "kind": "sequence", "share": "item_id", "clicks_of": "item_id", "max_length": 5}
    )
    settings["train"]["epochs"] = 1
    config = parse_config(settings, "config")
    dataset = preprocess(config, tmp_path / "dataset")
    train(config, dataset, tmp_path / "run")
    model = export(dataset, tmp_path / "run", tmp_path / "models", version=1)
    requests = [
        {**row, "history": [other["item_id"] for other in rows[at : at + at % 7]]} for at, row in enumerate(rows[:60])
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    score(_of(model, tmp_path / "log.jsonl"), model, tmp_path / "out")
    answers = Predictor(model).predict(requests)
    _assert_scored(_read(tmp_path / "out"), requests, {name: [answer[name] for answer in answers] for name in OUTPUTS})
    pq.write_table(pa.Table.from_pylist(rows[:60]), tmp_path / "log.parquet")
    with pytest.raises(UserError, match="has no column 'history': preprocessing derived it from the clicks of the log"):
        score(_of(model, tmp_path / "log.parquet"), model, tmp_path / "other")


def test_the_command_scores_a_csv_and_carries_a_column_to_join_by(
    make_config: Callable[..., Config],
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    features = [f for f in settings["rows"]["features"] if f["kind"] != "bag"]
    config = make_config(rows={"features": features}, train={"epochs": 1}, export={"candidates": []})
    dataset = preprocess(config, tmp_path / "dataset")
    train(config, dataset, tmp_path / "run")
    model = export(dataset, tmp_path / "run", tmp_path / "models", version=1)
    table = pa.Table.from_pylist([{**row, "request": f"r{at}"} for at, row in enumerate(rows[:50])]).drop_columns(
        ["tags"]
    )
    for ending, opened in (("csv", open), ("csv.gz", gzip.open)):
        out = tmp_path / f"out-{ending}"
        with opened(tmp_path / f"log.{ending}", "wb") as file:
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(delimiter=";"))
        command = ["score", "--model", str(model.parent), "--logs", str(tmp_path / f"*.{ending}"), "--out", str(out)]
        command += ["--set", "logs.csv.delimiter=;", "--set", "rows.passthrough=[request]"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.strip() == str(out)
        assert "50 rows scored, mean score 0." in done.stderr
        result = _read(out)
        assert result["request"].to_pylist() == [f"r{at}" for at in range(50)]
        answers = Predictor(model).predict(rows[:50])
        np.testing.assert_allclose(result["ctr"], [answer["ctr"] for answer in answers], atol=1e-6)
        again = CliRunner().invoke(main, command)
        assert again.exit_code == 0 and again.stdout == done.stdout and "already done" in again.stderr


def test_finished_scores_are_reused_and_others_are_not_replaced(
    small_export: Path, small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Path(shutil.copy(small_log, tmp_path / "log.jsonl"))
    config = _of(small_export, log)
    summary = score(config, small_export, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert score(config, small_export, tmp_path / "out") == summary
    assert "already done with the same settings and data" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == written
    for changed in (lambda: os.utime(log, (1, 1)), lambda: None):
        changed()
        with pytest.raises(UserError, match="exists already; choose another path, or pass --overwrite"):
            score(config, small_export, tmp_path / "out", format="jsonl")
    assert score(config, small_export, tmp_path / "out", overwrite=True)["rows"] == summary["rows"]
