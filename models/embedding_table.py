"""Embedding tables: one whose lookup costs what the batch's rows cost, however long it is, and one that is bounded in length."""

from __future__ import annotations

from typing import Any

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.replicas import local


class Table(keras.layers.Embedding):  # type: ignore[misc]
    """Keras' layer, with a lookup that reads the batch's rows alone under MirroredStrategy, too.

    Keras' own reads a mirrored variable whole before it picks rows, and a variable that is updated sparsely is copied by such
    a read: time and memory of a step would grow with the table.

    Call arguments:
        ids: int32 or int64, any shape.

    Returns:
        float32, the shape of ids and the vectors' length.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, dtype="float32", **kwargs)

    def call(self, ids: Tensor) -> Tensor:
        """See the class."""
        return tf.gather(local(self.embeddings), ids)


class ComposedTable(keras.layers.Layer):  # type: ignore[misc]
    """Two short tables in place of a long one: ``row(i) = remainder[i % rows] * quotient[i // rows]``, element by element.

    No two ids have the same pair, so each still has a vector of its own, in ``rows + size / rows`` rows of memory. The quotients
    begin at one: ids with the same remainder begin alike. An id keeps its pair as the table grows. After Shi et al.,
    "Compositional Embeddings Using Complementary Partitions" (2020).

    Args:
        size: number of ids.
        dim: length of a vector.
        rows: of the table of remainders.
        initializer: of the remainders.

    Call arguments:
        ids: int32 or int64, any shape.

    Returns:
        float32, the shape of ids and the vectors' length.
    """

    def __init__(self, size: int, dim: int, rows: int, initializer: Any, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._rows = rows
        self.remainder = Table(rows, dim, embeddings_initializer=initializer, name=f"{name}_remainder")
        self.quotient = Table(-(-size // rows), dim, embeddings_initializer="ones", name=f"{name}_quotient")

    def call(self, ids: Tensor) -> Tensor:
        """See the class."""
        return self.remainder(ids % self._rows) * self.quotient(ids // self._rows)
