"""Embedding tables: ``Table``, whose lookup cost does not depend on its length, and one that is composed of two short tables."""

from __future__ import annotations

from typing import Any

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.replicas import local


class Table(keras.layers.Embedding):  # type: ignore[misc]
    """Keras' ``Embedding`` with a lookup that reads only the batch's rows, under MirroredStrategy too.

    Keras' layer reads a mirrored variable whole before it gathers rows. Such a read copies a variable with sparse
    updates, so time and memory of a step would grow with the table.

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

    No two ids have the same pair, so every id has a vector of its own, in ``rows + size / rows`` rows of memory.
    Quotients start at one, so ids with the same remainder start alike. An id keeps its pair as the table grows. Source:
    Shi et al. 2020, "Compositional Embeddings Using Complementary Partitions".

    Args:
        size: number of ids.
        dim: length of a vector.
        rows: rows of the table of remainders.
        initializer: initializer of the remainders.

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
