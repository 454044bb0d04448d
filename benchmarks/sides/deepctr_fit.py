"""DeepCTR's models with Adam, trained by Keras' `fit` on arrays, as its documentation does."""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

from typing import Any

import tensorflow as tf
from deepctr.feature_column import DenseFeat, SparseFeat
from deepctr.models import DCN, DeepFM
from shared import BATCH, CROSSES, DIM, HIDDEN, Clock, columns, run


def side(backbone: str, data: Any, seed: int, clock: Clock) -> Any:
    """See the module."""
    tf.keras.utils.set_random_seed(seed)
    sparse = [SparseFeat(f"c{i}", int(size), embedding_dim=DIM) for i, size in enumerate(data["sizes"])]
    both = [*sparse, *(DenseFeat(f"x{i}", 1) for i in range(data["train_values"].shape[1]))]
    if backbone == "deepfm":
        model = DeepFM(both, both, dnn_hidden_units=HIDDEN)
    else:
        model = DCN(both, both, cross_num=CROSSES, cross_parameterization="matrix", dnn_hidden_units=HIDDEN)
    ticks = tf.keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: clock.tick())
    model.compile(tf.keras.optimizers.Adam(data["rate"]), "binary_crossentropy")
    model.fit(columns(data, "train"), data["train_label"], BATCH, epochs=1, verbose=0, callbacks=[ticks])
    return model.predict(columns(data, "test"), BATCH)


if __name__ == "__main__":
    run(side)
