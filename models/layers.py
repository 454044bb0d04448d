"""Layers that backbones share: embeddings of fields, the input of dense layers, dropout, MLPs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from clsd.features.tf_runtime import Network, Tensor, keras, tf
from clsd.models.embedding_table import ComposedTable, Table
from clsd.models.input_spec import Field, num_rows


class FieldEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """Embeds every field as one vector.

    An id becomes its row of the table. A bag or sequence becomes the mean of its values' rows, or zero if it is empty. A
    number x becomes x times a learnt vector, as in a factorisation machine.

    Args:
        fields: the fields to embed.
        dim: length of a vector, D.

    Call arguments:
        inputs: one tensor per field, by name, as :meth:`InputSpec.columns` gives them; fields may be absent.

    Returns:
        float32 ``[B, F, D]``, where F is the number of fields in ``inputs``.
    """

    def __init__(self, fields: tuple[Field, ...], dim: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self._fields, self._dim = fields, dim
        sizes = {field.table: (field.size, field.rows) for field in fields if field.kind != "number"}
        self.tables = {table: _table(size, dim, rows, f"table_{table}") for table, (size, rows) in sizes.items()}
        self._numbers = [field.name for field in fields if field.kind == "number"]

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the vectors of the numeric fields."""
        if self._numbers:
            self.number_vectors = self.add_weight(
                name="number_vectors",
                shape=(len(self._numbers), self._dim),
                initializer=_small(),
            )
        super().build(input_shape)

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        """See the class."""
        vectors = []
        for field in self._fields:
            if field.name not in inputs:
                continue
            x = inputs[field.name]
            if field.kind == "number":
                vectors.append(x[:, None] * self.number_vectors[self._numbers.index(field.name)])
                continue
            result = self.tables[field.table](x)
            if field.kind != "id":
                there = tf.cast(x != 0, result.dtype)[:, :, None]
                result = tf.reduce_sum(result * there, axis=1) / tf.maximum(tf.reduce_sum(there, axis=1), 1.0)
            vectors.append(result)
        return tf.stack(vectors, axis=1) if vectors else tf.zeros([num_rows(inputs), 0, self._dim])


class NumberVectors(keras.layers.Layer):  # type: ignore[misc]
    """The numeric fields' part of a factorisation machine, computed without their vectors.

    A number x_i has the vector x_i v_i, where v_i is learnt. The machine needs only sums over i, which are matrix products.

    Args:
        dim: length of a vector, D.

    Call arguments:
        numbers: float32 ``[B, n]``.
        positions: indices of these numbers among the numeric fields; all of them by default.

    Returns:
        (sum_i x_i v_i, sum_i (x_i v_i)**2), float32 ``[B, D]`` each; 0 if n is 0.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self._dim = dim
        self._there = False

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the vectors."""
        self._there = input_shape[-1] > 0
        if self._there:
            self.vectors = self.add_weight(name="vectors", shape=(input_shape[-1], self._dim), initializer=_small())
        super().build(input_shape)

    def call(self, numbers: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """See the class."""
        if not self._there:
            nothing = tf.zeros([tf.shape(numbers)[0], self._dim])
            return nothing, nothing
        vectors = _at(self.vectors, positions)
        return numbers @ vectors, tf.square(numbers) @ tf.square(vectors)


class Flat(keras.layers.Layer):  # type: ignore[misc]
    """Concatenates vectors and numbers into the input of dense layers.

    A number x_i becomes a_i x_i, where a_i is learnt and starts at 0.01. So numbers start as small as the vectors'
    elements, whose standard deviation is 0.01. Unscaled, they would dominate the first steps: on one synthetic log that
    cost 0.004 of AUC for DCN-v2 and 0.009 for DeepFM. The vectors x_i v_i of :class:`FieldEmbedding` are not used here:
    a dense layer would combine them to one weight per number anyway.

    Call arguments:
        vectors: float32 ``[B, F, D]``.
        numbers: float32 ``[B, n]``.
        positions: indices of these numbers among the numeric fields; all of them by default.

    Returns:
        float32 ``[B, F * D + n]``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the numbers' scales."""
        start = keras.initializers.Constant(0.01)
        self.scales = self.add_weight(name="scales", shape=(input_shape[1][-1],), initializer=start)
        super().build(input_shape)

    def call(self, inputs: tuple[Tensor, Tensor], positions: Sequence[int] | None = None) -> Tensor:
        """See the class."""
        vectors, numbers = inputs
        rows = tf.shape(vectors)[0]  # -1 could not be inferred from no vectors
        wide = tf.reshape(vectors, [rows, vectors.shape[1] * vectors.shape[2]])
        return tf.concat([wide, numbers * _at(self.scales, positions)], axis=1)


def _at(weights: Tensor, positions: Sequence[int] | None) -> Tensor:
    return (
        weights
        if positions is None or len(positions) == weights.shape[0]
        else tf.gather(weights, tf.constant(positions, tf.int32))
    )


class Dropout(keras.layers.Layer):  # type: ignore[misc]
    """Dropout whose masks continue after a resumption.

    The mask is a function of a seed, drawn when the layer is created, of the number of calls, which is a variable, and
    of the replica. Keras' layer keeps this state outside of the checkpoint, so a resumed run would draw other masks.

    Args:
        rate: share of inputs dropped, in [0, 1); the others are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rate = rate
        self._seed = random.randrange(2**31)  # Python's generator, which keras.utils.set_random_seed seeds

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the count of calls."""
        self.calls = self.add_weight(
            name="calls",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """See the class."""
        if not training:
            return inputs
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), self.calls * 65_536 + replica])
        dropped = tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=seed)
        self.calls.assign_add(1)
        return dropped


def _table(size: int, dim: int, rows: int, name: str) -> Network:
    if 0 < rows < size:
        return ComposedTable(size, dim, rows, _small(), name)
    return Table(size, dim, embeddings_initializer=_small(), name=name)


def _small() -> Any:
    # One object per table: a shared one would give tables of equal shape equal values.
    return keras.initializers.RandomNormal(stddev=0.01)


def mlp(units: list[int], dropout: float, name: str) -> Network:
    """Dense layers with ReLU, each followed by dropout if it is above 0."""
    layers = []
    for width in units:
        layers.append(keras.layers.Dense(width, activation="relu", kernel_initializer="glorot_uniform"))
        if dropout > 0:
            layers.append(Dropout(dropout))
    return keras.Sequential(layers, name=name)


def logit_layer() -> Network:
    """The last layer, to one logit per row. It computes in float32 always: bfloat16 is too coarse for a CTR."""
    return keras.layers.Dense(1, name="head", dtype="float32")
