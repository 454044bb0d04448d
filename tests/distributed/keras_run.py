"""A step of the same weighted loss with Keras' ``fit`` and with our model; imported by replica_run.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from clsd.features.tf_runtime import keras, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import Field, InputSpec
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings

ROWS, GLOBAL_BATCH = 10, 16  # the last batch of an epoch
SPEC = InputSpec(fields=(Field("x", "number"),), groups=(), id_slices={}, value_columns={"x": 0})


class Line(keras.Model):
    """s = k x, k = 0 at the start."""

    def __init__(self, spec: InputSpec, embedding_dim: int) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        return self.out(inputs["x"][:, None])


def rows() -> dict[str, np.ndarray]:
    """x, label and weight of the rows; a non-click weighs 1."""
    rng = np.random.default_rng(0)
    label = (np.arange(ROWS) % 3 == 0).astype(np.float32)
    weight = np.where(label == 1, rng.uniform(0.2, 4, ROWS), 1.0).astype(np.float32)
    return {"x": rng.normal(size=ROWS).astype(np.float32), "label": label, "weight": weight}


def by_keras(strategy: Any, padded: bool) -> Any:
    """k after a step of ``fit`` with sample weights, step size 1; padding rows weigh 0."""
    columns = rows()
    if padded:
        columns = {name: np.pad(x, (0, GLOBAL_BATCH - ROWS)) for name, x in columns.items()}
    with strategy.scope():
        model = Line(SPEC, 1)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.legacy.SGD(1.0), loss=loss)
    data = tf.data.Dataset.from_tensor_slices(({"x": columns["x"]}, columns["label"][:, None], columns["weight"]))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    model.fit(data.batch(GLOBAL_BATCH).with_options(options), verbose=0)
    return model.out.kernel.numpy()[0, 0]


def by_ours(strategy: Any) -> Any:
    """k after one step of our model, which takes these very weights as intensities; padding rows are not valid."""
    columns = {name: np.pad(x, (0, GLOBAL_BATCH - ROWS)) for name, x in rows().items()}
    batch = {
        "ids": np.zeros((GLOBAL_BATCH, 0), np.int32),
        "values": columns["x"][:, None],
        "label": columns["label"],
        "intensity": columns["weight"],
        "valid": (np.arange(GLOBAL_BATCH) < ROWS).astype(np.float32),
    }
    rate = OptimizerSettings(name="sgd", learning_rate=1.0)
    settings = {"source": "intensity", "normalise": "none", "blend": float("inf"), "gate": "off"}
    with strategy.scope():
        model = ClsdModel(
            SPEC,
            ModelSettings(backbone="keras_run:Line"),
            ConfidenceSettings(**settings),
            TrainingSetup(
                warmup_steps=0,
                embedding_optimizer=rate,
                dense_optimizer=rate,
            ),
        )
    n = strategy.num_replicas_in_sync
    parts = [{name: tf.constant(np.split(x, n)[i]) for name, x in batch.items()} for i in range(n)]
    data = strategy.experimental_distribute_values_from_function(lambda c: parts[c.replica_id_in_sync_group])
    tf.function(lambda batch: strategy.run(model.train_metric_sums, args=(batch,)))(data)
    return model.backbone.out.kernel.numpy()[0, 0]


def run(strategy: Any) -> dict[str, Any]:
    return {
        "keras/ragged": by_keras(strategy, padded=False),
        "keras/padded": by_keras(strategy, padded=True),
        "keras/ours": by_ours(strategy),
        **{f"keras/{name}": x for name, x in rows().items()},
    }
