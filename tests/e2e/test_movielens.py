"""MovieLens-100K, downloaded, through all stages to a SavedModel that gives the trainer's scores for all test rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.pipeline.preprocess.columns import KEY
from clsd.pipeline.run import Paths, run
from clsd.pipeline.serving.serving_inputs import as_arrays, serving_inputs
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.training.scoring import Scorer
from clsd.pipeline.training.trained_model import load_trained

RECIPE = Path(__file__).parents[2] / "configs" / "movielens-100k.yaml"


def test_raw_rows_score_as_encoded_rows_on_the_whole_test_split(tmp_path: Path) -> None:
    overrides = [f"logs.files=[{tmp_path / 'log.jsonl'}]", "train.epochs=3", "preprocess.golden_rows=1000000"]
    outcome = run(load_config(RECIPE, overrides), Paths(tmp_path / "run"))

    from clsd.pipeline.shared.dataset import Dataset

    dataset = Dataset.load(outcome.paths.dataset)
    assert dataset.manifest["rows"] == {"read": 100_000, "kept": 100_000, "refused": 0, "in_gap": 0}
    _, model = load_trained(outcome.paths.train, dataset)
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score("test")
    by_key = dict(zip(rows["key"].astype(np.uint64).tolist(), range(len(rows["key"])), strict=True))

    table = dataset.golden()
    assert table.num_rows == dataset.rows("test") == len(by_key) > 50_000
    order = [by_key[key] for key in table[KEY].to_pylist()]
    signature = tf.saved_model.load(str(outcome.model)).signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    arrays = as_arrays(serving_inputs(dataset.schema, table, list(specs)), specs)
    answer = signature(**{name: tf.constant(array, specs[name].dtype) for name, array in arrays.items()})

    logit, weight = rows["logit"][order].astype(np.float64), rows["weight"][order].astype(np.float64)
    np.testing.assert_allclose(answer["score"].numpy(), 1 / (1 + np.exp(-logit)), atol=1e-5)
    np.testing.assert_allclose(answer["ctr"].numpy(), 1 / (1 + np.exp(-(logit - np.log(weight)))), atol=1e-5)
    np.testing.assert_allclose(answer["confidence"].numpy(), rows["confidence"][order], atol=1e-5)

    # Learnt, and not by chance: 3 epochs order clicks well above popularity-free guessing.
    assert outcome.metrics["score"]["auc"] > 0.75
    assert outcome.metrics["intensity"]["clicks"] == pytest.approx(outcome.metrics["score"]["clicks"])
