"""The exported model in TensorFlow's C API, called as by a model server, without clsd and without TensorFlow's Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.records import read_records, write_records
from clsd.features.tf_runtime import tf
from clsd.pipeline.serving.predict import Predictor
from clsd.pipeline.shared.model_versions import GOLDEN_FILE, WARMUP_REQUESTS_FILE

SCRIPT = Path(__file__).with_name("c_session.py")
LIBRARY = Path(tf.__file__).parent / "libtensorflow_cc.so.2"
Ask = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(small_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The answers to a file of requests, in a process without TensorFlow's Python."""
    described = tmp_path_factory.mktemp("messages") / "descriptors"
    subprocess.run([sys.executable, SCRIPT, "--describe", described], check=True, capture_output=True)

    def answers(requests: Path) -> list[dict[str, Any]]:
        command = [sys.executable, "-I", SCRIPT, small_export, requests, LIBRARY, described]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.sep)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return answers


def _predict_log(signature: str, inputs: dict[str, Any]) -> Any:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, values in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return log


def _write(path: Path, logs: list[Any]) -> Path:
    with path.open("wb") as file:
        write_records(file, (log.SerializeToString() for log in logs))
    return path


def test_the_warm_up_file_gets_the_trainers_scores(small_export: Path, ask: Ask) -> None:
    golden = json.loads((small_export / GOLDEN_FILE).read_text())
    expected, ranked = golden["expected"], golden["rank"]["expected"]
    result = ask(small_export / WARMUP_REQUESTS_FILE)
    assert [answer["signature"] for answer in result] == 3 * [
        "serving_default", "serialized_examples", "classify", "regress", "rank",
    ]  # fmt: skip
    for at, answer in enumerate(result):
        outputs, size = answer["outputs"], (1, 16, 128)[at // 5]
        rows = np.arange(size) % 100
        if answer["signature"] == "classify":
            assert outputs["classes"] == size * [["no click", "click"]]
            ctr = np.array(expected["ctr"])[rows]
            np.testing.assert_allclose(outputs["scores"], np.stack([1 - ctr, ctr], axis=1), atol=1e-5)
        elif answer["signature"] == "regress":
            np.testing.assert_allclose(outputs["outputs"], np.array(expected["ctr"])[rows], atol=1e-5)
        elif answer["signature"] == "rank":
            few = min(size, 16)  # as many candidates as the golden request has
            for name, values in ranked.items():
                assert np.shape(outputs[name]) == (1, size)
                np.testing.assert_allclose(outputs[name][0][:few], values[0][:few], atol=1e-5)
        else:
            for name, values in expected.items():
                np.testing.assert_allclose(outputs[name], np.array(values)[rows], atol=1e-5)


def test_the_warm_up_file_is_what_the_server_reads(small_export: Path) -> None:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    with (small_export / WARMUP_REQUESTS_FILE).open("rb") as file:
        logs = [PredictionLog.FromString(record) for record in read_records(file, "warm-up")]
    kinds = [log.WhichOneof("log_type") for log in logs]
    assert {kind: kinds.count(kind) for kind in kinds} == {"predict_log": 9, "classify_log": 3, "regress_log": 3}
    assert len(logs) <= 1000  # the server refuses more


def test_an_input_that_a_request_leaves_out_is_missing(small_export: Path, ask: Ask, tmp_path: Path) -> None:
    """The graph's own defaults stand in; of ``rank``, for users and for candidates."""
    asked = {"user_id": ["u1", "u2"], "tags": [["a"], ["b"]]}
    some = _predict_log("serving_default", asked)
    one = _predict_log("serving_default", {"price": np.float32([3.0])})
    nothing = _predict_log("rank", {"item_id": [["i1", "i2", "i3"]]})
    by_two, by_price, ranked = ask(_write(tmp_path / "requests", [some, one, nothing]))
    predictor = Predictor(small_export)
    expected = predictor.predict([{"user_id": "u1", "tags": ["a"]}, {"user_id": "u2", "tags": ["b"]}, {"price": 3.0}])
    np.testing.assert_allclose(by_two["outputs"]["ctr"], [row["ctr"] for row in expected[:2]], atol=1e-6)
    np.testing.assert_allclose(by_price["outputs"]["ctr"], [expected[2]["ctr"]], atol=1e-6)
    of_items = predictor.predict([{"item_id": item} for item in ("i1", "i2", "i3")])
    np.testing.assert_allclose(ranked["outputs"]["score"], [[row["score"] for row in of_items]], atol=1e-6)


def test_no_rows_get_no_answers(ask: Ask, tmp_path: Path) -> None:
    none = np.array([], object)
    logs = [_predict_log("serving_default", {"user_id": none}), _predict_log("serialized_examples", {"examples": none})]
    logs.append(_predict_log("rank", {"user_id": ["u1"], "item_id": np.empty([1, 0], object)}))
    raw, examples, ranked = ask(_write(tmp_path / "requests", logs))
    assert raw["outputs"]["ctr"] == examples["outputs"]["ctr"] == []
    assert ranked["outputs"]["ctr"] == [[]]
