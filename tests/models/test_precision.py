"""Mixed precision: what is computed in bfloat16, what is not, and how close the results are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.errors import UserError
from clsd.features.tf_runtime import keras, tf
from clsd.models.backbones.registry import BACKBONES, build_backbone
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import InputSpec
from clsd.models.optimizers import split_variables
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings

MakeBatch = Callable[..., dict[str, Any]]


def both(spec: InputSpec, batch: dict[str, Any], backbone: str, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The same backbone in float32 and in mixed precision, with the same weights, and its inputs."""
    inputs = spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    made = []
    for precision in ("float32", "mixed_bfloat16"):
        settings = ModelSettings(backbone=backbone, embedding_dim=4, options=options)
        model = build_backbone(settings, spec, precision)
        model(inputs)
        rng = np.random.default_rng(5)
        for variable in model.trainable_variables:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))
        made.append(model)
    return made[0], made[1], inputs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_float32_and_near_those_of_float32(spec: InputSpec, make_batch: MakeBatch, backbone: str) -> None:
    exact, mixed, inputs = both(spec, make_batch(rows=64), backbone, hidden_units=[16, 8])
    result, wanted = mixed(inputs), exact(inputs)
    assert result.dtype == tf.float32
    # bfloat16 has 8 bits: each layer errs by some 2**-8 of what it gives, and 7 backbones have up to 6 of them.
    np.testing.assert_allclose(result, wanted, atol=0.03 * max(1.0, np.abs(wanted).max()))
    assert not np.allclose(result, wanted, rtol=1e-5, atol=1e-6), "nothing computed in bfloat16"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_variables_and_gradients_stay_float32_and_those_of_tables_sparse(
    spec: InputSpec, make_batch: MakeBatch, backbone: str
) -> None:
    _, mixed, inputs = both(spec, make_batch(), backbone, hidden_units=[16])
    tables, dense = split_variables(mixed)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(mixed(inputs, training=True))
    of_tables, of_dense = tape.gradient(loss, [tables, dense])
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in of_tables)
    assert {x.dtype for x in [*mixed.variables, *of_tables, *of_dense]} == {tf.float32}


def test_the_policy_of_the_process_stays_as_it_was(spec: InputSpec) -> None:
    build_backbone(ModelSettings(), spec, "mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"
    with pytest.raises(UserError, match="cannot be created"):
        build_backbone(ModelSettings(options={"hidden_units": 3}), spec, "mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"


def test_a_weighted_run_ends_near_that_of_float32(spec: InputSpec, make_batch: MakeBatch) -> None:
    """Teacher, gate and weights included: 80 steps, loss within 1 % and mean CTR within 1 %."""
    sums = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(3)
        model = ClsdModel(
            spec,
            ModelSettings(embedding_dim=4, options={"hidden_units": [16]}),
            ConfidenceSettings(preset="stable"),
            TrainingSetup(
                warmup_steps=40,
                embedding_optimizer=OptimizerSettings(name="adagrad", learning_rate=0.3),
                dense_optimizer=OptimizerSettings(name="adam", learning_rate=0.01),
                prior_ctr=0.4,
                precision=precision,
            ),
        )
        step = tf.function(model.train_metric_sums)
        result = [step(_learnable(make_batch(256, seed), seed)).numpy() for seed in range(80)]
        losses = [np.sum(part, axis=0)[1] for part in (result[:40], result[40:])]
        assert losses[1] < 0.97 * losses[0], "nothing was learnt"
        sums[precision] = np.sum(result[40:], axis=0)[:6]
    # Rows, losses, predicted, clicks, and the weights' sum and sum of squares.
    np.testing.assert_allclose(sums["mixed_bfloat16"], sums["float32"], rtol=0.01)
    _, _, _, clicks, weight, squared = sums["mixed_bfloat16"]
    assert clicks * squared > 1.001 * weight**2, "all clicks weigh alike"


def _learnable(batch: dict[str, Any], seed: int) -> dict[str, Any]:
    """Clicks that follow a user's id and a number."""
    appeal = 3.0 * (batch["ids"][:, 0] % 2) - 2.0 + batch["values"][:, 0]
    label = np.random.default_rng(seed).logistic(size=len(appeal)) < appeal
    return {name: tf.constant(x) for name, x in {**batch, "label": label.astype(np.float32)}.items()}
