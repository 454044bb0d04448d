"""A loop by hand, the limit: arrays in memory, one function of many steps, Adagrad applied to the rows of a batch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from shared import BATCH, CROSSES, DIM, HIDDEN, Clock, run

from clsd.features.tf_runtime import keras, tf

STEPS = 32


def side(backbone: str, data: Any, seed: int, clock: Clock) -> Any:
    """See the module."""
    keras.utils.set_random_seed(seed)
    rng, fm = np.random.default_rng(seed), backbone == "deepfm"
    width, n_ids, n_numbers = DIM + fm, len(data["sizes"]), data["train_values"].shape[1]
    start = tf.random_normal_initializer(0.0, 0.01, seed=seed)
    tables = [tf.Variable(tf.random.normal([int(size), width], 0.0, 0.01)) for size in data["sizes"]]
    squares = [tf.Variable(tf.fill(table.shape, 0.1)) for table in tables]
    numbers = tf.Variable(start([n_numbers, width]))
    deep = keras.Sequential([keras.layers.Dense(units, "relu") for units in HIDDEN])
    crosses = [] if fm else [keras.layers.Dense(n_ids * DIM + n_numbers) for _ in range(CROSSES)]
    head = keras.layers.Dense(1)
    adam = keras.optimizers.legacy.Adam(1e-3)
    share = float(data["train_label"].mean())
    prior = float(np.log(share / (1 - share)))

    def logit(rows: Any, values: Any) -> Any:
        vectors = tf.stack(rows, axis=1)
        flat = tf.concat([tf.reshape(vectors[:, :, :DIM], [-1, n_ids * DIM]), values], axis=1)
        if fm:
            sums = tf.reduce_sum(vectors, 1) + values @ numbers
            squares = tf.reduce_sum(vectors**2, 1) + values**2 @ numbers**2
            pairs = 0.5 * tf.reduce_sum((sums**2 - squares)[:, :DIM], 1)
            return prior + head(deep(flat))[:, 0] + pairs + sums[:, DIM]
        crossed = flat
        for cross in crosses:
            crossed = flat * cross(crossed) + crossed
        return prior + head(tf.concat([crossed, deep(flat)], 1))[:, 0]

    def look_up(ids: Any) -> list[Any]:
        return [tf.gather(table, ids[:, i]) for i, table in enumerate(tables)]

    @tf.function
    def steps(iterator: Any, many: Any) -> Any:
        loss = 0.0
        for _ in tf.range(many):
            ids, values, label = next(iterator)
            rows = look_up(ids)
            with tf.GradientTape() as tape:
                tape.watch(rows)
                result = logit(rows, values)
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, result))
            dense = [*([numbers] if fm else []), *deep.trainable_variables, *head.trainable_variables]
            dense += [variable for cross in crosses for variable in cross.trainable_variables]
            gradients = tape.gradient(loss, [*rows, *dense])
            for i, (table, square) in enumerate(zip(tables, squares, strict=True)):
                once, where = tf.unique(ids[:, i])
                grad = tf.math.unsorted_segment_sum(gradients[i], where, tf.size(once))
                tf.raw_ops.ResourceSparseApplyAdagradV2(
                    var=table.handle, accum=square.handle, lr=0.05, epsilon=1e-7, grad=grad, indices=once
                )
            adam.apply_gradients(zip(gradients[len(rows) :], dense, strict=True))
        return loss

    score = tf.function(lambda ids, values: logit(look_up(ids), values), reduce_retracing=True)
    score(data["test_ids"][:2], data["test_values"][:2])  # makes the layers' variables
    order = rng.permutation(len(data["train_label"]))
    left = len(order) // BATCH
    arrays = [data[f"train_{name}"][order[: left * BATCH]] for name in ("ids", "values", "label")]
    stacked = tuple(array.reshape(left, BATCH, *array.shape[1:]) for array in arrays)
    iterator = iter(tf.data.Dataset.from_tensor_slices(stacked).prefetch(4))
    while left:
        now = min(STEPS, left)
        steps(iterator, tf.constant(now)).numpy()
        clock.tick(now)
        left -= now
    parts = [slice(at, at + BATCH) for at in range(0, len(data["test_label"]), BATCH)]
    return np.concatenate([score(data["test_ids"][at], data["test_values"][at]) for at in parts])


if __name__ == "__main__":
    run(side)
