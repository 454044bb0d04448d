"""An embedding table whose lookup costs what the batch's rows cost, however long the table is."""

from __future__ import annotations

from typing import Any

from features.tf_runtime import keras, tf
from models.replicas import local


class Table(keras.layers.Embedding):  # type: ignore[misc]
    """Keras' layer, with a lookup that reads the batch's rows alone under MirroredStrategy, too.

    Keras' own reads a mirrored variable whole before it picks rows, and a variable that is updated sparsely is copied by such
    a read: time and memory of a step would grow with the table.

    Call arguments:
        ids: int32 or int64, any shape.

    Returns:
        float32, the shape of ids and the vectors' length.
    """

    def call(self, ids: Any) -> Any:
        """See the class."""
        return tf.gather(local(self.embeddings), ids)
