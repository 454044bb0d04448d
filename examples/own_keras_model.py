"""Click confidence for a Keras model of your own, trained on a tf.data of your own.

python examples/own_keras_model.py
"""

import numpy as np

import clsd
from clsd import keras, tf


def make_network() -> keras.Model:
    """Any Keras network that gives one logit a row."""
    item, age = (keras.Input([], dtype="int32", name=name) for name in ("item", "age"))
    vectors = keras.layers.concatenate([keras.layers.Embedding(100, 8)(item), keras.layers.Embedding(7, 2)(age)])
    return keras.Model({"item": item, "age": age}, keras.layers.Dense(1)(keras.layers.Dense(16, "relu")(vectors)))


rng = np.random.default_rng(0)
columns = {"item": rng.integers(100, size=20_000), "age": rng.integers(7, size=20_000)}
clicks = rng.random(20_000) < 0.1 + 0.3 * (columns["item"] < 20)
data = tf.data.Dataset.from_tensor_slices((columns, clicks)).batch(500)

confidence = clsd.ConfidenceSettings(warmup_steps=40)  # the first epoch is trained on the plain loss
model = clsd.KerasConfidenceModel(make_network, next(iter(data))[0], confidence, groups={"age": 7})
model.compile()
history = model.fit(data, epochs=3, verbose=0).history
scores = model.score_inputs({name: tf.constant(column[:5]) for name, column in columns.items()})
least, largest = history["least_weight"][-1], history["largest_weight"][-1]
print(f"loss {history['loss'][-1]:.3f}, clicks weigh {least:.2f} to {largest:.2f}")
print("score", tf.sigmoid(scores.logit).numpy(), "ctr", tf.sigmoid(scores.ctr_logit).numpy())
