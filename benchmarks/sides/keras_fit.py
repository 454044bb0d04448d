"""A model of Keras' own layers, compiled with Adam and trained by `fit` on arrays, as its tutorials do."""

from __future__ import annotations

from typing import Any

from shared import BATCH, CROSSES, DIM, HIDDEN, Clock, columns, run

from clsd.features.tf_runtime import keras, tf


def side(backbone: str, data: Any, seed: int, clock: Clock) -> Any:
    """See the module."""
    keras.utils.set_random_seed(seed)
    layers, sizes = keras.layers, data["sizes"]
    ids = [keras.Input((), name=f"c{i}", dtype="int32") for i in range(len(sizes))]
    numbers = [keras.Input((1,), name=f"x{i}") for i in range(data["train_values"].shape[1])]
    vectors = [layers.Embedding(int(size), DIM)(x) for size, x in zip(sizes, ids, strict=True)]
    flat = layers.Concatenate()([*vectors, *numbers])
    deep = flat
    for units in HIDDEN:
        deep = layers.Dense(units, "relu")(deep)
    if backbone == "deepfm":
        stacked = tf.stack(vectors, axis=1)
        pairs = 0.5 * tf.reduce_sum(tf.reduce_sum(stacked, 1) ** 2 - tf.reduce_sum(stacked**2, 1), 1, keepdims=True)
        first = [layers.Embedding(int(size), 1)(x) for size, x in zip(sizes, ids, strict=True)]
        logit = layers.Dense(1)(deep) + pairs + layers.Add()(first) + layers.Dense(1)(layers.Concatenate()(numbers))
    else:
        crossed = flat
        for _ in range(CROSSES):
            crossed = flat * layers.Dense(flat.shape[1])(crossed) + crossed
        logit = layers.Dense(1)(layers.Concatenate()([crossed, deep]))
    model = keras.Model([*ids, *numbers], layers.Activation("sigmoid")(logit))
    ticks = keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: clock.tick())
    model.compile(keras.optimizers.Adam(data["rate"]), "binary_crossentropy")
    model.fit(columns(data, "train"), data["train_label"], BATCH, epochs=1, verbose=0, callbacks=[ticks])
    return model.predict(columns(data, "test"), BATCH, verbose=0)


if __name__ == "__main__":
    run(side)
