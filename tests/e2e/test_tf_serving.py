"""A real TF Serving, if CLSD_TEST_SERVING=GRPC_ADDRESS,REST_ADDRESS names one; CLSD_TEST_SERVING_MODEL is the directory of
versions that it serves as `clsd`."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from clsd.features.records import read_records
from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.model_versions import GOLDEN_FILE, WARMUP_REQUESTS_FILE, newest_version

ADDRESSES = os.environ.get("CLSD_TEST_SERVING", "").split(",")
pytestmark = pytest.mark.skipif(len(ADDRESSES) != 2, reason="CLSD_TEST_SERVING names no server")


@pytest.fixture(scope="module")
def model() -> Path:
    return newest_version(Path(os.environ["CLSD_TEST_SERVING_MODEL"]))


@pytest.fixture(scope="module")
def golden(model: Path) -> dict[str, Any]:
    return dict(json.loads((model / GOLDEN_FILE).read_text()))


def _post(method: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://{ADDRESSES[1]}/v1/models/clsd:{method}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_rows_by_rest_get_the_trainers_scores(golden: dict[str, Any]) -> None:
    rows = [at for at in range(50) if all(values[at] is not None for values in golden["inputs"].values())]
    width = {n: max(len(v[at]) for at in rows) for n, v in golden["inputs"].items() if isinstance(v[0], list)}

    def cell(name: str, at: int) -> Any:
        value = golden["inputs"][name][at]
        return value + [""] * (width[name] - len(value)) if name in width else value

    result = _post("predict", {"inputs": {name: [cell(name, at) for at in rows] for name in golden["inputs"]}})[
        "outputs"
    ]
    for name, values in golden["expected"].items():
        np.testing.assert_allclose(result[name], np.array(values)[rows], atol=1e-5)


def test_the_warm_up_requests_by_grpc_get_the_scores_of_the_graph(model: Path) -> None:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

    loaded = tf.saved_model.load(str(model))
    with grpc.insecure_channel(ADDRESSES[0]) as channel, (model / WARMUP_REQUESTS_FILE).open("rb") as file:
        stub = PredictionServiceStub(channel)
        for record in read_records(file, "warm-up"):
            log = PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            request = getattr(log, kind).request
            request.model_spec.name = "clsd"
            asked = loaded.signatures[request.model_spec.signature_name]
            if kind == "predict_log":
                answer = stub.Predict(request, timeout=10)
                inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
                for name, values in asked(**inputs).items():
                    np.testing.assert_allclose(tf.make_ndarray(answer.outputs[name]), values, atol=1e-6)
                continue
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            wanted = asked(inputs=tf.constant(examples))
            if kind == "regress_log":
                values = [result.value for result in stub.Regress(request, timeout=10).result.regressions]
                np.testing.assert_allclose(values, wanted["outputs"], atol=1e-6)
            else:
                result = stub.Classify(request, timeout=10).result.classifications
                np.testing.assert_allclose(
                    [[c.score for c in row.classes] for row in result], wanted["scores"], atol=1e-6
                )
