"""Optimizers: the rows that an update touches, and repeated ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.optimizers import build_optimizer
from clsd.models.settings import OptimizerSettings


@pytest.mark.parametrize("optimizers", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
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


def _steps(name: str, gradients: list[tuple[list[int], Any]]) -> np.ndarray:
    """A table of 5 rows of 2 after steps whose gradients are of some rows each."""
    table = tf.Variable(np.arange(10.0).reshape(5, 2), dtype=tf.float32)
    optimizer = build_optimizer(OptimizerSettings(name=name, learning_rate=0.1))  # type: ignore[arg-type]
    for rows, values in gradients:
        slices = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), [5, 2])
        optimizer.apply_gradients([(slices, table)])
    return np.asarray(table)


GRADIENTS = [
    ([1, 3, 1], [[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]]),
    ([3], [[-2.0, 2.0]]),
    ([0, 3], [[1.0, 1.0], [4.0, 0.1]]),
]


def _summed(rows: list[int], values: Any) -> dict[int, np.ndarray]:
    result: dict[int, np.ndarray] = {}
    for row, value in zip(rows, values, strict=True):
        result[row] = result.get(row, np.zeros(2)) + np.asarray(value)
    return result


def test_rowwise_adagrad_by_hand() -> None:
    table, accumulated = np.arange(10.0).reshape(5, 2), np.full(5, 0.1)
    for rows, values in GRADIENTS:
        for row, g in _summed(rows, values).items():
            accumulated[row] += np.mean(g**2)
            table[row] -= 0.1 * g / (math.sqrt(accumulated[row]) + 1e-7)
    np.testing.assert_allclose(_steps("rowwise_adagrad", GRADIENTS), table, rtol=1e-6)


def test_lazy_adam_by_hand() -> None:
    table, m, v = np.arange(10.0).reshape(5, 2), np.zeros((5, 2)), np.zeros((5, 2))
    for t, (rows, values) in enumerate(GRADIENTS, start=1):
        for row, g in _summed(rows, values).items():
            m[row], v[row] = 0.9 * m[row] + 0.1 * g, 0.999 * v[row] + 0.001 * g**2
            table[row] -= 0.1 * m[row] / (1 - 0.9**t) / (np.sqrt(v[row] / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(_steps("lazy_adam", GRADIENTS), table, rtol=1e-5)


def test_lazy_adam_of_all_rows_at_each_step_is_adam() -> None:
    every = [(list(range(5)), np.random.default_rng(i).normal(size=(5, 2))) for i in range(6)]
    np.testing.assert_allclose(_steps("lazy_adam", every), _steps("adam", every), rtol=1e-4)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "lazy_adam"])
def test_a_dense_gradient_is_one_of_all_rows(name: str) -> None:
    values = np.random.default_rng(1).normal(size=(5, 2))
    table = tf.Variable(np.arange(10.0).reshape(5, 2), dtype=tf.float32)
    optimizer = build_optimizer(OptimizerSettings(name=name, learning_rate=0.1))  # type: ignore[arg-type]
    optimizer.apply_gradients([(tf.constant(values, tf.float32), table)])
    np.testing.assert_allclose(table, _steps(name, [(list(range(5)), values)]), rtol=1e-6)
