from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.pipeline.cli import main
from clsd.pipeline.commands import serving
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.serving.predict import Predictor, read_rows
from clsd.pipeline.serving.verify import run_canary
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.model_versions import GOLDEN_FILE, newest_version
from clsd.pipeline.training.train import train


@pytest.fixture(scope="module")
def model(small_export: Path) -> Path:
    return small_export


@pytest.fixture(scope="module")
def golden(model: Path) -> dict[str, Any]:
    return json.loads((model / "assets.extra" / "golden.json").read_text())


def test_a_version_holds_what_a_model_server_needs(model: Path) -> None:
    assert model.name == "3"
    assert sorted(p.name for p in model.parent.iterdir()) == [".lock", "3"]
    assert {"saved_model.pb", "variables", "assets", "assets.extra"} <= {p.name for p in model.iterdir()}
    loaded = tf.saved_model.load(str(model))
    assert set(loaded.signatures) == {"serving_default", "serialized_examples", "rank", "classify", "regress"}
    assert set(loaded.signatures["serving_default"].structured_outputs) == {"score", "ctr", "confidence"}
    assert {p.name for p in (model / "assets").iterdir()} == {
        "user_id.txt",
        "item_id.txt",
        "age_band.txt",
        "gender.txt",
        "tags.txt",
    }


def test_golden_rows_are_real_test_rows_and_scores_differ(golden: dict[str, Any], small_dataset: Dataset) -> None:
    assert len(golden["expected"]["score"]) == 100
    assert len(set(golden["expected"]["score"])) > 90
    assert len(set(golden["expected"]["confidence"])) > 90


def test_the_canary_refuses_a_model_that_scores_otherwise(model: Path, golden: dict[str, Any], tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(golden))
    wrong["expected"]["ctr"][50] += 2e-5
    copy = Path(shutil.copytree(model, tmp_path / "3"))
    (copy / GOLDEN_FILE).write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"the canary's scores differ from the trainer's by (1\.9|2\.0)"):
        run_canary(copy, 1e-5, "")
    assert run_canary(model, 1e-5, "") < 1e-6


def test_the_canary_fails_on_a_model_that_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "3"))
    (broken / "assets" / "item_id.txt").unlink()
    with pytest.raises(UserError, match="the canary failed"):
        run_canary(broken, 1e-5, "")


def test_a_version_is_never_replaced(model: Path, small_dataset: Dataset, small_run: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(small_dataset, small_run, model.parent, version=3)


def test_the_newest_version_is_the_largest_number(tmp_path: Path) -> None:
    for version in ("9", "10", "notes"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    (tmp_path / "11").mkdir()  # not whole
    assert newest_version(tmp_path).name == "10"
    with pytest.raises(UserError, match="holds no exported model"):
        newest_version(tmp_path / "notes" / "none")


def test_predictions_are_the_golden_scores(model: Path, golden: dict[str, Any]) -> None:
    rows = [{name: values[i] for name, values in golden["inputs"].items()} for i in range(100)]
    answers = Predictor(model.parent).predict(rows)
    for name, expected in golden["expected"].items():
        np.testing.assert_allclose([a[name] for a in answers], expected, atol=1e-5)


def test_missing_and_unknown_values_are_scored(model: Path) -> None:
    predictor = Predictor(model)
    bare, unknown = predictor.predict([{}, {"user_id": "nobody", "tags": [], "price": float("nan"), "other": 1}])
    assert 0 < bare["ctr"] < 1
    assert unknown["score"] != bare["score"]
    with pytest.raises(UserError, match="rows:1: names none of the model's inputs; did you mean 'user_id'"):
        predictor.predict([{"userid": "u1"}])
    assert predictor.predict([]) == []
    assert predictor.unknown([{"user_id": "u1", "itemid": "i1", "click": 1, "accidental": 0}, {"itemid": "i2"}]) == {
        "itemid": "did you mean 'item_id'?"
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"price": "cheap"}, "rows:2: 'price' is \"cheap\", the model takes float32"),
        ({"user_id": 5}, "'user_id' is 5, the model takes string"),
        ({"tags": "a"}, "'tags' is \"a\", the model takes a list of string"),
        ({"position": 1.5}, "'position' is 1.5, the model takes int64"),
        ({"position": True}, "'position' is true"),
        ({"position": 2**63}, "'position' is 9223372036854775808, the model takes int64"),
        ({"price": 10**400}, "'price' is too large a number, the model takes float32"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_row(model: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Predictor(model).predict([{}, row])
    assert message in str(error.value)


def test_lines_that_are_no_rows_are_named() -> None:
    assert list(read_rows(['{"a": 1}', "", "{}"], "f")) == [{"a": 1}, {}]
    with pytest.raises(UserError, match="f:2: is not JSON"):
        list(read_rows(["{}", "{"], "f"))
    with pytest.raises(UserError, match="f:1: is not a JSON object"):
        list(read_rows(["[]"], "f"))


def test_a_log_with_nan_exports_and_rows_may_use_the_logs_names(
    make_config: Callable[..., Config], settings: dict[str, Any], small_log: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in small_log.read_text().splitlines()]
    for at, row in enumerate(rows):
        row["price"] = float("nan") if at % 3 == 0 else float("inf") if at % 3 == 1 else row["price"]
        row["sku"] = row.pop("item_id")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    features = [{**f, "column": "sku"} if f["name"] == "item_id" else f for f in settings["rows"]["features"]]
    config = make_config(
        logs={"files": [str(tmp_path / "log.parquet")]}, rows={"features": features}, train={"epochs": 2}
    )
    dataset = preprocess(config, tmp_path / "dataset")
    train(config, dataset, tmp_path / "run")
    predictor = Predictor(export(dataset, tmp_path / "run", tmp_path / "models"))
    known = dataset.transform.vocabularies["item_id"].tokens[0].as_py()
    by_column, by_name, without = predictor.predict([{"sku": known}, {"item_id": known}, {}])
    assert by_column == by_name != without
    with pytest.raises(UserError, match=r"rows:1: 'item_id' is .* not Unicode text"):
        predictor.predict([{"sku": "\ud800"}])


def test_the_command_reads_and_answers_rows_in_pieces(
    model: Path, small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows before a faulty one are answered, an unknown name is told once, and no more than a piece is held."""
    lines = [json.dumps({**json.loads(line), "shoe": 1}) for line in small_log.read_text().splitlines()[:100]]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{"]))
    monkeypatch.setattr(serving, "_ROWS_AT_ONCE", 32)
    sizes: list[int] = []
    whole = Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, rows, *args: sizes.append(len(rows)) or whole(self, rows, *args)
    )
    done = CliRunner().invoke(main, ["predict", "--model", str(model), str(tmp_path / "rows.jsonl")])
    assert done.exit_code == 2 and "rows.jsonl:101: is not JSON" in done.stderr
    assert done.stderr.count("does not know 'shoe'") == 1
    assert sizes == [32, 32, 32]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 96
    expected = Predictor(model).predict([json.loads(line) for line in lines])
    for answer, right in zip(answers, expected, strict=False):
        assert answer == pytest.approx(right, abs=1e-6)
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:40], '{"price": "x"}']))
    done = CliRunner().invoke(main, ["predict", "--model", str(model), str(tmp_path / "rows.jsonl")])
    assert done.exit_code == 2 and "rows.jsonl:41: 'price' is" in done.stderr


def test_json_that_is_nested_too_deeply_is_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"user_id": ' + "[" * 100_000 + "]" * 100_000 + "}")
    done = CliRunner().invoke(main, ["predict", "--model", str(model), str(tmp_path / "rows.jsonl")])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "rows.jsonl:1: is not JSON" in done.stderr
