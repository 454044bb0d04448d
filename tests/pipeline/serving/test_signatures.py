"""All signatures of an exported model give the trainer's scores for all inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.schema import MISSING_INT
from clsd.features.tf_runtime import tf
from clsd.features.tokens import arrow_type
from clsd.pipeline.serving.export import trainer_scores
from clsd.pipeline.serving.serving_inputs import as_arrays
from clsd.pipeline.serving.warmup_requests import examples
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.model_versions import MODEL_FILE
from clsd.pipeline.training.trained_model import load_trained

CANDIDATES = ["item_id", "category", "tags", "price"]
#: Rows that no log should have, and some that every log has.
ODD: list[dict[str, Any]] = [
    {},
    {"user_id": "", "item_id": "", "tags": [], "category": ""},
    {"user_id": "nobody", "item_id": "no such item", "age_band": "??", "gender": "\u65e5\u672c", "category": "x" * 500},
    {"position": -1, "hour": math.nan, "price": math.inf},
    {"position": 5, "hour": -1e30, "price": -3.0},  # one past the last bin
    {"position": 2**62, "hour": 1e30, "price": 1e38},
    {"position": MISSING_INT, "hour": 0.0, "price": 0.0},
    {"tags": ["", "t1", "", "t2", "t3", "t4", "t5"]},
    {"tags": [""], "user_id": "u1", "item_id": "i1"},
    {"tags": ["t1"] * 50, "user_id": " u1", "item_id": "i1\n"},
]


@pytest.fixture(scope="module")
def loaded(small_export: Path) -> Any:
    return tf.saved_model.load(str(small_export))


@pytest.fixture(scope="module")
def expected(small_dataset: Dataset, small_run: Path) -> Any:
    """(rows) to the scores that training's own path gives them."""
    _, model = load_trained(small_run, small_dataset)

    def scores(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        columns = {
            f.source: pa.array([row.get(f.name) for row in rows], arrow_type(f)) for f in small_dataset.schema.features
        }
        return trainer_scores(small_dataset, model.spec, model.score_inputs, pa.table(columns))

    return scores


def _lists(specs: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    absent = {"string": "", "int64": MISSING_INT, "float32": None}
    return {
        name: [row.get(name, [] if spec.shape.rank == 2 else absent[spec.dtype.name]) for row in rows]
        for name, spec in specs.items()
    }


def _specs(loaded: Any, signature: str) -> dict[str, Any]:
    return dict(loaded.signatures[signature].structured_input_signature[1])


def _tensors(specs: dict[str, Any], lists: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: tf.constant(array, specs[name].dtype) for name, array in as_arrays(lists, specs).items()}


def test_odd_values_are_scored_as_training_would_have_by_every_signature(loaded: Any, expected: Any) -> None:
    wanted = expected(ODD)
    assert len({round(x, 7) for x in wanted["score"]}) > 5
    specs = _specs(loaded, "serving_default")
    lists = _lists(specs, ODD)
    serialized = tf.constant([example.SerializeToString() for example in examples(lists, specs)])
    answers = [
        loaded.signatures["serving_default"](**_tensors(specs, lists)),
        loaded.signatures["serialized_examples"](examples=serialized),
    ]
    for answer in answers:
        for name, values in wanted.items():
            np.testing.assert_allclose(answer[name], values, atol=1e-6, err_msg=name)
    classes = loaded.signatures["classify"](inputs=serialized)
    np.testing.assert_allclose(classes["scores"][:, 1], wanted["ctr"], atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(classes["scores"], axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(loaded.signatures["regress"](inputs=serialized)["outputs"], wanted["ctr"], atol=1e-6)


def test_rank_is_a_row_for_each_candidate(loaded: Any, small_export: Path) -> None:
    """Two users over the same number of candidates each; the odd values are users' and candidates'."""
    users, per = ODD[2:4], len(ODD)
    rank, flat = _specs(loaded, "rank"), _specs(loaded, "serving_default")
    mine = {name: values for name, values in _lists(flat, users).items() if name not in CANDIDATES}
    shown = [ODD, ODD[::-1]]
    theirs = {name: [_lists(flat, rows)[name] for rows in shown] for name in CANDIDATES}
    answer = loaded.signatures["rank"](**_tensors(rank, mine | theirs))
    rows = [
        {**{k: v for k, v in user.items() if k not in CANDIDATES}, **{k: v for k, v in row.items() if k in CANDIDATES}}
        for user, candidates in zip(users, shown, strict=True)
        for row in candidates
    ]
    repeated = loaded.signatures["serving_default"](**_tensors(flat, _lists(flat, rows)))
    for name in ("score", "ctr", "confidence"):
        assert answer[name].shape == (2, per)
        np.testing.assert_allclose(tf.reshape(answer[name], [-1]), repeated[name], atol=1e-6)
    assert len({round(float(x), 7) for x in tf.reshape(answer["score"], [-1])}) > per


def test_one_row_of_an_input_stands_for_all(loaded: Any) -> None:
    specs = _specs(loaded, "serving_default")
    rows = [{**ODD[8], "price": float(price)} for price in range(4)]
    whole = _tensors(specs, _lists(specs, rows))
    once = {name: x if name == "price" else x[:1] for name, x in whole.items()}
    for name, values in loaded.signatures["serving_default"](**whole).items():
        np.testing.assert_allclose(loaded.signatures["serving_default"](**once)[name], values, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="ncompatible"):
        loaded.signatures["serving_default"](**{**whole, "price": tf.constant([1.0, 2.0])})


def test_candidates_that_all_requests_share_are_sent_once(loaded: Any) -> None:
    flat, rank = _specs(loaded, "serving_default"), _specs(loaded, "rank")
    mine = {name: values for name, values in _lists(flat, ODD[:3]).items() if name not in CANDIDATES}
    shared = {name: [_lists(flat, ODD)[name]] for name in CANDIDATES}
    once = loaded.signatures["rank"](**_tensors(rank, mine | shared))["score"]
    thrice = loaded.signatures["rank"](**_tensors(rank, mine | {name: 3 * values for name, values in shared.items()}))[
        "score"
    ]
    assert once.shape == (3, len(ODD))
    np.testing.assert_array_equal(once, thrice)


def test_the_server_is_told_methods_and_defaults(small_export: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((small_export / MODEL_FILE).read_bytes())
    signed = saved.meta_graphs[0].signature_def
    assert {name: signature.method_name.rpartition("/")[2] for name, signature in signed.items()} == {
        "serving_default": "predict",
        "serialized_examples": "predict",
        "rank": "predict",
        "classify": "classify",
        "regress": "regress",
        "__saved_model_init_op": "",
    }
    assert set(signed["classify"].inputs) == set(signed["regress"].inputs) == {"inputs"}
    assert set(signed["classify"].outputs) == {"classes", "scores"}
    assert set(signed["regress"].outputs) == {"outputs"}
    for name in ("serving_default", "rank"):
        assert set(signed[name].defaults) == set(signed[name].inputs)
    shapes = {name: len(info.tensor_shape.dim) for name, info in signed["rank"].inputs.items()}
    assert shapes == {"user_id": 1, "age_band": 1, "gender": 1, "position": 1, "hour": 1} | {
        "item_id": 2, "category": 2, "price": 2, "tags": 3,
    }  # fmt: skip
