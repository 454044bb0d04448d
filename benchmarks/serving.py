"""Latency of an exported model: one user and many candidates with `rank`, with repeated rows, and the model on encoded ids.

The model is DeepFM with the preset `stable`, whose scores need the teacher, over 20 categorical and 10 numeric features, of which
7 and 3 are the candidate's. It is called as in a model server: with TensorFlow's C API, in a process without Python's TensorFlow
(`tests/e2e/c_session.py`), one request at a time. Sides, for 1, 100 and 1,000 candidates:

- rank: the user's values once, and the candidates' values;
- repeated: `serving_default`, with the user's values in each row;
- encoded: as rank, with a user and candidates that are already encoded: the time without the raw-feature transform;
- backbone: one forward pass on encoded rows, without teacher and AdGate.

The weights are those of a new model; latency does not depend on them.

    python benchmarks/serving.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Goal, arguments, finish
from rich.console import Console
from rich.table import Table

from clsd.features.encode import encode
from clsd.features.records import write_records
from clsd.features.serving_transform import ServingTransform
from clsd.features.tf_runtime import tf
from clsd.models.model_inputs import ModelInputs
from clsd.pipeline.preprocess.columns import KEY
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.serving.export import scoring_function
from clsd.pipeline.serving.serving_inputs import as_arrays, serving_inputs
from clsd.pipeline.serving.signatures import ServingModel
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.trained_model import build_model

SESSION = Path(__file__).resolve().parents[1] / "tests" / "e2e" / "c_session.py"
LIBRARY = Path(tf.__file__).parent / "libtensorflow_cc.so.2"
OF_USER = ["user_id", "age_band", "gender", *(f"cat_{i}" for i in range(10))]
OF_CANDIDATE = ["item_id", "category", *(f"cat_{i}" for i in range(10, 15))]
NUMERIC = ["hour", *(f"num_{i}" for i in range(9))]
SIZES = (1, 100, 1000)


def make_config(log: Path) -> Config:
    features = [{"name": name, "kind": "categorical"} for name in [*OF_USER, *OF_CANDIDATE]]
    features += [{"name": name, "kind": "numeric"} for name in NUMERIC]
    raw = {
        "name": "serving",
        "logs": {"files": [str(log)]},
        "rows": {
            "label": "click",
            "user": "user_id",
            "timestamp": "timestamp",
            "groups": ["age_band"],
            "features": features,
        },
        "preprocess": {"golden_rows": max(SIZES), "split": {"by": "hash", "key": "user_id", "test": 0.2}},
        "export": {"candidates": [*OF_CANDIDATE, *NUMERIC[7:]]},
    }
    return parse_config(raw, "benchmark")


def make_model(config: Config, dataset: Dataset, directory: Path) -> dict[str, dict[str, Any]]:
    """The SavedModel, with signatures for encoded rows beside its own; gives the inputs of all."""
    model = build_model(config, dataset)
    score = scoring_function(config, dataset, model)
    serving = ServingModel(
        ServingTransform(dataset.transform, directory / "assets"), model.spec, score, config.export.candidates
    )
    names = {"encoded": config.export.candidates, "backbone": [f.name for f in dataset.schema.features]}
    names["request"] = [name for name in names["backbone"] if name not in names["encoded"]]

    def encoded(ids: Any, values: Any, request_ids: Any, request_values: Any) -> dict[str, Any]:
        own, shared = columns(names["encoded"], ids, values), columns(names["request"], request_ids, request_values)
        result = score(ModelInputs(model.spec, own, shared))
        return {"score": tf.sigmoid(result.logit), "ctr": tf.sigmoid(result.ctr_logit), "confidence": result.confidence}

    def backbone(ids: Any, values: Any) -> dict[str, Any]:
        return {"score": tf.sigmoid(model({"ids": ids, "values": values}))}

    inputs = dict(serving.inputs)
    inputs |= {"encoded": matrices(names["encoded"]) | matrices(names["request"], "request_")}
    inputs |= {"backbone": matrices(names["backbone"])}
    for function in (encoded, backbone):
        name = function.__name__
        serving.answers[name] = tf.function(function).get_concrete_function(**inputs[name])
    serving.save(directory / "model")
    return inputs


def halves(names: list[str]) -> tuple[list[str], list[str]]:
    """Names of categorical and of numeric features, in the order of a record."""
    return [name for name in [*OF_USER, *OF_CANDIDATE] if name in names], [name for name in NUMERIC if name in names]


def matrices(names: list[str], prefix: str = "") -> dict[str, Any]:
    """Inputs of a signature for features that are encoded already."""
    widths = [len(half) for half in halves(names)]
    ids = tf.TensorSpec([None, widths[0]], tf.int32, name=f"{prefix}ids")
    return {ids.name: ids, f"{prefix}values": tf.TensorSpec([None, widths[1]], name=f"{prefix}values")}


def columns(names: list[str], ids: Any, values: Any) -> dict[str, Any]:
    """Of the matrices, one tensor a feature."""
    of_ids, of_values = halves(names)
    out = dict(zip(of_ids, tf.unstack(ids, axis=1), strict=True))
    return out | dict(zip(of_values, tf.unstack(values, axis=1), strict=True))


def cut(names: list[str], ids: Any, values: Any, prefix: str = "") -> dict[str, Any]:
    """Of rows of all features, the matrices of some."""
    of_ids, of_values = halves(names)
    return {
        f"{prefix}ids": ids[:, [[*OF_USER, *OF_CANDIDATE].index(name) for name in of_ids]],
        f"{prefix}values": values[:, [NUMERIC.index(name) for name in of_values]],
    }


def requests(config: Config, dataset: Dataset, inputs: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """A request of each side and size, as TF Serving's messages."""
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    table, out = dataset.golden().drop_columns([KEY]), {}
    raw = serving_inputs(dataset.schema, table, list(inputs["serving_default"]))
    for size in SIZES:
        of_user = {name: values[:1] for name, values in raw.items() if name not in config.export.candidates}
        of_candidates = {name: values[:size] for name, values in raw.items() if name in config.export.candidates}
        mixed = table.slice(0, size)
        for name in of_user:
            place = mixed.schema.get_field_index(name)
            mixed = mixed.set_column(place, name, table.column(name).take([0] * size))
        ids, values = encode(dataset.transform, mixed.combine_chunks().to_batches()[0])
        asked = {
            "rank": of_user | {name: [values] for name, values in of_candidates.items()},
            "serving_default": {name: values * size for name, values in of_user.items()} | of_candidates,
        }
        arrays: dict[str, Any] = {name: as_arrays(lists, inputs[name]) for name, lists in asked.items()}
        shared = [name for name in [*OF_USER, *NUMERIC] if name not in config.export.candidates]
        arrays["encoded"] = cut(config.export.candidates, ids, values) | cut(shared, ids[:1], values[:1], "request_")
        arrays["backbone"] = {"ids": ids, "values": values}
        for name, result in arrays.items():
            log = PredictionLog()
            log.predict_log.request.model_spec.signature_name = name
            for key, array in result.items():
                log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
            out[f"{name.replace('serving_default', 'repeated')} {size:,}"] = log.SerializeToString()
    return out


def answers(model: Path, asked: list[bytes], directory: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Outputs and seconds of each request, from one process."""
    with (directory / "requests").open("wb") as file:
        write_records(file, iter(asked))
    command = [
        sys.executable,
        "-I",
        SESSION,
        model,
        directory / "requests",
        LIBRARY,
        directory / "messages",
        str(rounds),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    yield from map(json.loads, done.stdout.splitlines())


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    passes, rounds = (3, 50) if options.quick else (11, 200)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = SyntheticSettings(rows=60_000, users=5_000, extra_categorical=15, extra_numeric=9)
        log = write_dataset("synthetic", directory / "log", format="parquet", synthetic=made)
        config = make_config(log)
        dataset = preprocess(config, directory / "dataset")
        asked = requests(config, dataset, make_model(config, dataset, directory))
        subprocess.run([sys.executable, SESSION, "--describe", directory / "messages"], check=True, capture_output=True)
        result: dict[str, list[float]] = {side: [] for side in asked}
        every: dict[str, list[float]] = {side: [] for side in asked}
        for number in range(passes + 1):
            order = list(asked)[number % len(asked) :] + list(asked)[: number % len(asked)]
            told = answers(directory / "model", [asked[side] for side in order], directory, rounds)
            scores = {}
            for side, answer in zip(order, told, strict=True):
                scores[side] = np.ravel(answer["outputs"]["score"])
                if number:  # the first pass warms the machine up
                    result[side].append(statistics.median(answer["seconds"]))
                    every[side] += answer["seconds"]
            for size in SIZES:
                for side in ("repeated", "encoded", "backbone"):
                    np.testing.assert_allclose(scores[f"{side} {size:,}"], scores[f"rank {size:,}"], atol=1e-6)
    table = Table(
        "candidates", *(f"{side}, {p}" for side in ("rank", "repeated", "encoded", "backbone") for p in ("p50", "p99"))
    )
    for size in SIZES:
        cells = []
        for side in ("rank", "repeated", "encoded", "backbone"):
            cells += [f"{1e3 * float(np.quantile(every[f'{side} {size:,}'], p)):.3f} ms" for p in (0.5, 0.99)]
        table.add_row(f"{size:,}", *cells)
    Console(width=140).print(table)
    shares = [1 - a / b for a, b in zip(result["encoded 100"], result["rank 100"], strict=True)]
    ratios = [a / b for a, b in zip(result["rank 1,000"], result["repeated 1,000"], strict=True)]
    goals = [
        Goal("serving_rank_repeated", statistics.median(ratios), 0.6, at_most=True),
        Goal("serving_transform", statistics.median(shares), 0.25, at_most=True),
    ]
    finish("seconds", every, goals, options.json)


if __name__ == "__main__":
    main()
