"""Optimizers: what an update of a table touches, and ids that occur twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from features.tf_runtime import tf
from models.clsd import ClsdModel
from models.optimizers import build_optimizer
from models.settings import OptimizerSettings


@pytest.mark.parametrize("optimizers", ["sgd", "adagrad"])
def test_a_step_touches_only_the_rows_of_the_batch(
    make_model: Callable[..., ClsdModel],
    make_batch: Callable[..., dict[str, Any]],
    step: Callable[..., np.ndarray],
    optimizers: str,
) -> None:
    model, batch = make_model(optimizers=optimizers), make_batch(rows=6)
    table = model.backbone.embedding.tables["user"].embeddings
    before = table.numpy()
    step(model, batch)
    touched = np.flatnonzero((table.numpy() != before).any(axis=1))
    assert touched.tolist() == sorted(set(batch["ids"][:, 0].tolist()))


def test_adagrad_sums_the_gradients_of_an_id_that_occurs_twice() -> None:
    table = tf.Variable(tf.zeros([4, 1]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [2, 2, 3]) * tf.constant([[1.0], [2.0], [5.0]]))
    gradient = tape.gradient(loss, table)
    build_optimizer(OptimizerSettings(name="adagrad", learning_rate=0.5)).apply_gradients([(gradient, table)])
    expected = [0, 0, -0.5 * 3 / math.sqrt(0.1 + 9), -0.5 * 5 / math.sqrt(0.1 + 25)]
    np.testing.assert_allclose(table[:, 0], expected, rtol=1e-6)
