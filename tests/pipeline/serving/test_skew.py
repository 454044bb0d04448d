"""Skew: no finding if serving agrees with training, and otherwise the feature or score that differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clsd.features.errors import UserError
from clsd.features.records import write_records
from clsd.features.schema import MISSING_INT
from clsd.features.tf_runtime import tf
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation.drift import psi
from clsd.pipeline.serving.export import export
from clsd.pipeline.serving.predict import Predictor, checked_value
from clsd.pipeline.serving.skew import _numbers, skew
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.model_versions import PROVENANCE_FILE, WARMUP_REQUESTS_FILE, read_metadata

BOUNDS: dict[str, Any] = {"max_difference": 1e-4, "max_psi": 0.25}


@pytest.fixture(scope="module")
def served(small_export: Path, small_log: Path) -> list[dict[str, Any]]:
    """What was asked and answered, of the newest rows of the log."""
    rows = [json.loads(line) for line in small_log.read_text().splitlines()]
    inputs = {*Predictor(small_export).inputs}
    asked = [{name: value for name, value in row.items() if name in inputs} for row in rows[::3]]
    return [{**row, **answer} for row, answer in zip(asked, Predictor(small_export).predict(asked), strict=True)]


def _log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_that_serves_what_was_trained_shows_no_skew(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    result = skew(_log(tmp_path / "log.jsonl", served), small_dataset, small_run, **BOUNDS)
    assert result["differ"] == result["moved"] == []
    assert result["rows"] == result["scores"]["score"]["compared"] == 2000
    assert {name: score["differ"] for name, score in result["scores"].items()} == {
        "score": 0,
        "ctr": 0,
        "confidence": 0,
    }
    psi = {feature["feature"]: feature["psi"] for feature in result["features"]}
    assert {"user_id", "item_id", "age_band", "gender", "category", "position", "tags", "hour", "price"} == set(psi)
    assert 0 < psi["age_band"] < 0.05


def test_scores_that_training_would_not_have_given_are_counted_and_the_worst_named(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    rows = json.loads(json.dumps(served))
    for at in (7, 11, 13):
        rows[at]["ctr"] += 0.01 * at
        del rows[at]["confidence"]
    result = skew(_log(tmp_path / "log.jsonl", rows), small_dataset, small_run, **BOUNDS)
    assert result["differ"] == ["ctr"]
    ctr = result["scores"]["ctr"]
    assert (ctr["differ"], ctr["row"], result["scores"]["confidence"]["compared"]) == (3, 14, 1997)
    assert ctr["largest"] == pytest.approx(0.13, abs=1e-5)
    assert ctr["served"] == pytest.approx(ctr["trained"] + 0.13, abs=1e-5)


def test_features_that_are_asked_otherwise_are_named(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    """Another scale, another spelling, a value that no longer comes: each with scores that are right for what was asked."""
    rows = json.loads(json.dumps(served))
    for row in rows:
        row["price"] *= 100
        row["user_id"] = row["user_id"].upper()
        row.pop("age_band")
        for name in ("score", "ctr", "confidence"):
            del row[name]
    result = skew(_log(tmp_path / "log.jsonl", rows), small_dataset, small_run, **BOUNDS)
    assert set(result["moved"]) == {"price", "user_id", "age_band"}
    assert result["scores"] == {}
    by_name = {feature["feature"]: feature for feature in result["features"]}
    assert by_name["user_id"]["unknown"][1] == 1.0
    assert by_name["age_band"]["missing"] == (0.0, 1.0)
    assert result["features"][0]["psi"] >= result["features"][1]["psi"]


def test_logs_of_the_model_server_itself_are_read(
    small_export: Path, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    """Every kind of request of the warm-up file, with the answers that the server would log beside them."""
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    from clsd.features.records import read_records

    loaded, logs = tf.saved_model.load(str(small_export)), []
    with (small_export / WARMUP_REQUESTS_FILE).open("rb") as file:
        for record in read_records(file, "warm-up"):
            log = PredictionLog.FromString(record)
            entry = getattr(log, log.WhichOneof("log_type"))
            asked = loaded.signatures[entry.request.model_spec.signature_name]
            if log.WhichOneof("log_type") == "predict_log":
                inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in entry.request.inputs.items()}
                for name, answer in asked(**inputs).items():
                    entry.response.outputs[name].CopyFrom(tf.make_tensor_proto(answer.numpy()))
            else:
                examples = [example.SerializeToString() for example in entry.request.input.example_list.examples]
                answers = asked(inputs=tf.constant(examples))
                for at in range(len(examples)):
                    if "outputs" in answers:
                        entry.response.result.regressions.add(value=float(answers["outputs"][at]))
                    else:
                        result = entry.response.result.classifications.add()
                        for name, value in zip(("no click", "click"), answers["scores"][at].numpy(), strict=True):
                            result.classes.add(label=name, score=float(value))
            logs.append(log.SerializeToString())
    with (tmp_path / "served.tfrecord").open("wb") as file:
        write_records(file, iter(logs))
    result = skew(tmp_path / "served.tfrecord", small_dataset, small_run, max_difference=1e-4, max_psi=1e9)
    assert result["rows"] == 5 * (1 + 16 + 128)
    assert result["scores"]["ctr"]["compared"] == result["rows"]
    assert result["scores"]["score"]["compared"] == 3 * (1 + 16 + 128)
    assert result["differ"] == []
    assert np.isfinite(result["scores"]["ctr"]["largest"])


def test_an_answer_that_is_no_number_differs(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    rows = [*served[:50], {**served[50], "ctr": float("nan")}]
    result = skew(_log(tmp_path / "log.jsonl", rows), small_dataset, small_run, **BOUNDS)
    assert result["differ"] == ["ctr"]
    assert result["scores"]["ctr"]["row"] == 51 and result["scores"]["ctr"]["served"] is None
    json.loads(json.dumps(result, allow_nan=False))


def test_few_requests_raise_no_alarm_by_chance(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    rows = [
        {name: value for name, value in row.items() if name not in ("score", "ctr", "confidence")} for row in served
    ]
    rng = np.random.default_rng(1)
    for few in (30, 100, 300):
        drawn = [rows[at] for at in rng.choice(len(rows), few, replace=False)]
        assert skew(_log(tmp_path / "log.jsonl", drawn), small_dataset, small_run, **BOUNDS)["moved"] == []


def test_how_the_version_in_service_was_exported_is_what_it_is_held_to(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    settings = small_config.export.model_copy(update={"calibration": "cheap"})
    cheap = export(small_dataset, small_run, tmp_path / "models", version=1, settings=settings)
    asked = [
        {name: value for name, value in row.items() if name not in ("score", "ctr", "confidence")} for row in served
    ]
    answers = Predictor(cheap).predict(asked)
    log = _log(tmp_path / "log.jsonl", [{**row, **answer} for row, answer in zip(asked, answers, strict=True)])
    assert "ctr" in skew(log, small_dataset, small_run, **BOUNDS)["differ"]
    assert skew(log, small_dataset, small_run, model=cheap, **BOUNDS)["differ"] == []
    write_json(cheap / PROVENANCE_FILE, {**read_metadata(cheap, ""), "fingerprint": "another"})
    with pytest.raises(UserError, match=r"is not from the run in .*; give the run that it was exported from"):
        skew(log, small_dataset, small_run, model=cheap, **BOUNDS)


@pytest.mark.parametrize("length", [9, 10, 13, 32, 123])
def test_records_are_told_from_json_whatever_the_length_of_the_first(
    length: int, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as file:
        write_records(file, iter([bytes(length)]))
    with pytest.raises(UserError, match="record 0: is not a PredictionLog of TF Serving"):
        skew(tmp_path / "log", small_dataset, small_run, **BOUNDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no request"),
        ('{"user_id": "u1"}\n{', "log:2: is not JSON"),
        ('{"name": "x"}\n', "names none of the model's inputs"),
        ('{"user_id": "u1", "price": "dear"}\n', "log:1: 'price' is \"dear\", the model takes float32"),
        ('{"user_id": "u1", "ctr": "high"}\n', "log:1: 'ctr' is \"high\", which is not a number"),
        ("not json\n", "log:1: is not JSON"),
        ('{"position": 9223372036854775808}\n', "log:1: 'position' is 9223372036854775808, the model takes int64"),
        ('{"user_id": "\\ud800"}\n', "log:1: 'user_id' is"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(
    content: str, message: str, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text(content)
    with pytest.raises(UserError) as error:
        skew(tmp_path / "log", small_dataset, small_run, **BOUNDS)
    assert message in str(error.value)


def test_the_command_leaves_with_3_where_something_moved(
    served: list[dict[str, Any]], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    command = ["skew", "--dataset", str(small_dataset.directory), "--run", str(small_run), "--served"]
    good = CliRunner().invoke(main, [*command, str(_log(tmp_path / "good.jsonl", served))])
    assert good.exit_code == 0, good.stderr
    assert json.loads(good.stdout)["moved"] == []
    moved = [{**row, "price": 1e6} for row in served]
    bad = CliRunner().invoke(main, [*command, str(_log(tmp_path / "bad.jsonl", moved))])
    assert bad.exit_code == 3
    assert {"price"} == set(json.loads(bad.stdout)["moved"]) and "ctr" in json.loads(bad.stdout)["differ"]
    assert "out of bounds: differ score, ctr" in bad.stderr and "; moved price" in bad.stderr
    asked = [{k: v for k, v in row.items() if k not in ("score", "ctr", "confidence")} for row in moved]
    log = str(_log(tmp_path / "asked.jsonl", asked))
    ignored = CliRunner().invoke(main, [*command, log, "--ignore", "price"])
    assert ignored.exit_code == 0 and "only the features are compared" in ignored.stderr
    wrong = CliRunner().invoke(main, [*command, log, "--ignore", "prise"])
    assert wrong.exit_code == 2 and "did you mean 'price'?" in wrong.stderr


def test_a_constant_that_becomes_another_has_moved() -> None:
    nothing: Any = None
    for served in (3.0, 7.0):
        _, before, after = _numbers(nothing, nothing, np.full(100, 5.0), np.full(50, served))
        assert psi(before, after) > 1
    _, before, after = _numbers(nothing, nothing, np.full(100, 5.0), np.full(50, 5.0))
    assert psi(before, after) == 0


@pytest.mark.parametrize(
    ("value", "dtype", "is_list", "wanted"),
    [
        (12.0, "int64", False, 12),
        ([None, 1, 2.0], "int64", True, [MISSING_INT, 1, 2]),
        ([None, "a"], "string", True, ["", "a"]),
        (2**60, "float32", False, 2**60),
        (None, "float32", False, None),
    ],
)
def test_a_value_of_a_request_is_taken_as_in_a_log(value: Any, dtype: str, is_list: bool, wanted: Any) -> None:
    assert checked_value(value, dtype, is_list, "rows:1", "x") == wanted


@pytest.mark.parametrize(
    ("value", "dtype", "is_list"),
    [
        (3.5, "int64", False),
        ("abc", "string", True),
        (True, "float32", False),
        (2.0**60, "int64", False),
        ([[1]], "int64", True),
    ],
)
def test_a_value_that_the_model_does_not_take_is_refused(value: Any, dtype: str, is_list: bool) -> None:
    with pytest.raises(UserError, match=r"rows:1: 'x' is .*, the model takes .*; correct the row"):
        checked_value(value, dtype, is_list, "rows:1", "x")
