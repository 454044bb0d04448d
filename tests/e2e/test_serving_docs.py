"""The requests of docs/serving.md, sent to the exported graph and to a server with TF Serving's protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.protobuf import text_format

from clsd.features.tf_runtime import tf
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.serving.serving_inputs import as_arrays
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.training.train import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
BODIES = [json.loads(body) for body in re.findall(r"curl .*? -d '(\{.*?\})'\n", PAGE, re.DOTALL)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of the documented config, over a log of its columns that is long enough to learn from."""
    root = tmp_path_factory.mktemp("documented")
    rng, lines = np.random.default_rng(0), []
    for at in range(3000):
        row = {
            "user_id": str(rng.integers(1, 50)),
            "item_id": str(rng.integers(1, 400)),
            "age_band": ["45-49", "18-24"][at % 2],
            "gender": "MF"[at % 2],
            "occupation": ["writer", "artist"][at % 3 == 0],
            "genres": [["Comedy"], ["Crime", "Drama"], []][at % 3],
            "year": int(rng.integers(1950, 1998)),
            "rating": float(rng.integers(1, 6)),
            "timestamp": 1_000_000_000 + 60 * at,
            "click": 1,
        }
        lines.append(json.dumps(row) + "\n")
    (root / "log.jsonl").write_text("".join(lines))
    sets = [f"logs.files=[{root}/log.jsonl]", "logs.dataset=''", "train.epochs=1", "confidence.warmup_steps=2"]
    config = load_config(ROOT / "configs" / "movielens-100k.yaml", sets)
    dataset = preprocess(config, root / "dataset")
    train(config, dataset, root / "run")
    return tf.saved_model.load(str(export(dataset, root / "run", root / "models", version=1)))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.get("signature_name", "serving_default"))
def test_the_bodies_for_rest_fit_their_signature(served: Any, body: dict[str, Any]) -> None:
    signature = served.signatures[body.get("signature_name", "serving_default")]
    specs = signature.structured_input_signature[1]
    assert body["inputs"].keys() == specs.keys()
    for name, values in body["inputs"].items():
        assert np.ndim(values) == specs[name].shape.rank, name
    arrays = as_arrays(body["inputs"], specs)
    answer = signature(**{name: tf.constant(array, specs[name].dtype) for name, array in arrays.items()})
    candidates = np.shape(body["inputs"]["item_id"])
    assert answer["ctr"].shape == candidates
    assert np.all((answer["ctr"] > 0) & (answer["ctr"] < 1))


@pytest.fixture
def server(served: Any) -> Iterator[int]:
    """TF Serving's Predict over gRPC, answered by the exported graph; gives the port."""
    from tensorflow_serving.apis.predict_pb2 import PredictResponse
    from tensorflow_serving.apis.prediction_service_pb2_grpc import (
        PredictionServiceServicer,
        add_PredictionServiceServicer_to_server,
    )

    class Servicer(PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802  (the protocol's name)
            assert request.model_spec.name == "clsd"
            signature = served.signatures[request.model_spec.signature_name or "serving_default"]
            specs, response = signature.structured_input_signature[1], PredictResponse()
            assert set(request.inputs) == set(specs)
            inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
            for name, values in signature(**inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(values.numpy()))
            return response

    server = grpc.server(ThreadPoolExecutor(1))
    add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield port
    server.stop(None)


def test_the_program_for_grpc_gets_an_answer(server: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert source is not None
    exec(source[1].replace("localhost:8500", f"localhost:{server}"), {})
    result = [float(number) for number in re.findall(r"0\.\d+", capsys.readouterr().out)]
    assert len(result) == 2 and result[0] != result[1]


def test_the_servers_configuration_is_what_it_reads() -> None:
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    directory = ROOT / "docker" / "serving"
    (config,) = text_format.Parse(
        (directory / "models.config").read_text(), ModelServerConfig()
    ).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("clsd", "/models/clsd", "tensorflow")
    (kinds, compose) = (
        [part["kind"] for part in yaml.safe_load_all((ROOT / "docker" / "kubernetes" / "serving.yaml").read_text())],
        yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["serving"],
    )
    assert kinds == ["Deployment", "Service"]
    text = (ROOT / "docker" / "kubernetes" / "serving.yaml").read_text()
    (deployment, _) = yaml.safe_load_all(text)
    for words in (compose["command"], deployment["spec"]["template"]["spec"]["containers"][0]["args"]):
        named = re.findall(r"/config/(\w+)\.config", " ".join(words))
        assert sorted(named) == ["models", "monitoring"]  # the server refuses batching.config without --enable_batching
        assert all((directory / f"{name}.config").exists() for name in [*named, "batching"])
