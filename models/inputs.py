"""What a backbone sees: its fields, and the layer that makes vectors of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsd.features.schema import BagFeature, NumericFeature, Schema, SequenceFeature
from clsd.features.tf_runtime import keras, tf
from clsd.models.embedding_table import ComposedTable, Table


@dataclass(frozen=True)
class Field:
    """One feature as the backbone sees it.

    Args:
        name: of the feature.
        kind: id (int32 ``[B]``), bag or sequence (int32 ``[B, length]``, 0 is padding), number (float32 ``[B]``).
        table: name of the embedding table; features that share a vocabulary share it.
        size: number of ids of the table; 0 for a number.
        length: values a row.
        rows: most rows of the table; one of more ids is composed of two. 0 for any number.
    """

    name: str
    kind: Literal["id", "bag", "sequence", "number"]
    table: str = ""
    size: int = 0
    length: int = 1
    rows: int = 0


@dataclass(frozen=True)
class InputSpec:
    """The fields of a backbone, the group features of AdGate, and where both stand in a batch.

    Args:
        fields: what the backbone sees, in order.
        groups: (name, number of ids) of AdGate's features.
        id_slices: columns of ``ids`` by feature name.
        value_columns: column of ``values`` by feature name.
    """

    fields: tuple[Field, ...]
    groups: tuple[tuple[str, int], ...]
    id_slices: Mapping[str, slice]
    value_columns: Mapping[str, int]

    @property
    def embedded(self) -> tuple[Field, ...]:
        """The fields that are no numbers."""
        return tuple(field for field in self.fields if field.kind != "number")

    @classmethod
    def build(cls, schema: Schema, table_sizes: Mapping[str, int], max_rows: int = 0) -> InputSpec:
        """From the schema, the number of ids of every categorical or bucketed feature, and the most rows of a table."""
        fields = []
        for feature in schema.features:
            if not feature.input:
                continue
            if isinstance(feature, NumericFeature):
                bucketed = feature.transform == "quantile"
                fields.append(
                    Field(feature.name, "id", feature.name, table_sizes[feature.name], rows=max_rows)
                    if bucketed
                    else Field(feature.name, "number")
                )
                continue
            kind: Literal["id", "bag", "sequence"] = "id"
            if isinstance(feature, BagFeature):
                kind = "bag"
            elif isinstance(feature, SequenceFeature):
                kind = "sequence"
            table = schema.vocabulary_source(feature).name
            fields.append(Field(feature.name, kind, table, table_sizes[table], feature.max_length, max_rows))
        return cls(
            fields=tuple(fields),
            groups=tuple((name, table_sizes[name]) for name in schema.groups),
            id_slices=schema.id_slices,
            value_columns={f.name: position for position, f in enumerate(schema.numeric)},
        )

    def columns(self, ids: Any, values: Any) -> dict[str, Any]:
        """A batch's ids ``[B, width]`` and values ``[B, n_numeric]`` as one tensor a feature, by name.

        That is ``[B]``, or ``[B, length]`` of a field that is a bag or sequence.
        """
        several = {field.name for field in self.fields if field.kind in ("bag", "sequence")}
        out = {name: ids[:, at] for name, at in self.id_slices.items() if name in several or at.stop - at.start > 1}
        single = {name: at.start for name, at in self.id_slices.items() if name not in out}
        leading = max(single.values(), default=-1) + 1
        columns = tf.unstack(ids if leading == self.width else ids[:, :leading], num=leading, axis=1)
        numbers = tf.unstack(values, num=len(self.value_columns), axis=1)
        out |= {name: columns[index] for name, index in single.items()}
        return out | {name: numbers[index] for name, index in self.value_columns.items()}

    @property
    def width(self) -> int:
        """Number of columns of the ids."""
        return max((at.stop for at in self.id_slices.values()), default=0)

    def positions(self, inputs: Collection[str]) -> tuple[list[int], list[int]]:
        """Which of the embedded and which of the numeric fields are among these names: their places in either, in order."""
        numbers = [field for field in self.fields if field.kind == "number"]
        sides = ([i for i, field in enumerate(side) if field.name in inputs] for side in (self.embedded, numbers))
        return next(sides), next(sides)

    def flat_columns(self, inputs: Collection[str], dim: int, width: int) -> list[int | None]:
        """The columns that the fields of these names have in what :class:`Flat` gives for all, vectors being ``dim`` long.

        None stands for what comes after the first ``dim`` elements of a vector that is ``width`` long here.
        """
        vectors, numbers = self.positions(inputs)
        columns = [index * dim + i if i < dim else None for index in vectors for i in range(width)]
        return columns + [len(self.embedded) * dim + index for index in numbers]

    def numbers(self, inputs: dict[str, Any]) -> Any:
        """The numeric fields of what :meth:`columns` gave, in order: float32 ``[B, n]``, n may be 0."""
        columns = [inputs[field.name] for field in self.fields if field.kind == "number" and field.name in inputs]
        return tf.stack(columns, axis=1) if columns else tf.zeros([_rows(inputs), 0])


class FieldEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """Every field as one vector.

    An id is its row of the table; a bag or sequence the mean of its values' rows (zero where it is empty); a number x is
    x times a learnt vector, the embedding that factorisation machines give a real-valued field.

    Args:
        fields: what to embed.
        dim: length of a vector, D.

    Call arguments:
        inputs: one tensor a field, by name, as :meth:`InputSpec.columns` gives them; of all fields or of some.

    Returns:
        float32 ``[B, F, D]``, F being the number of fields in ``inputs``.
    """

    def __init__(self, fields: tuple[Field, ...], dim: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self._fields, self._dim = fields, dim
        sizes = {field.table: (field.size, field.rows) for field in fields if field.kind != "number"}
        self.tables = {table: _table(size, dim, rows, f"table_{table}") for table, (size, rows) in sizes.items()}
        self._numbers = [field.name for field in fields if field.kind == "number"]

    def build(self, input_shape: Any) -> None:
        """Create the vectors of the numeric fields."""
        if self._numbers:
            self.number_vectors = self.add_weight(
                name="number_vectors",
                shape=(len(self._numbers), self._dim),
                initializer=_small(),
            )
        super().build(input_shape)

    def call(self, inputs: dict[str, Any]) -> Any:
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
        return tf.stack(vectors, axis=1) if vectors else tf.zeros([_rows(inputs), 0, self._dim])


class NumberVectors(keras.layers.Layer):  # type: ignore[misc]
    """The numeric fields' part of a factorisation machine, without making their vectors.

    A number x_i has the vector x_i v_i, v_i learnt; what the machine asks of them are sums over i, products of matrices.

    Args:
        dim: length of a vector, D.

    Call arguments:
        numbers: float32 ``[B, n]``.
        positions: which of the numeric fields these are; all, where it is not said.

    Returns:
        (sum_i x_i v_i, sum_i (x_i v_i)**2), float32 ``[B, D]`` each; 0 where n is 0.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self._dim = dim
        self._there = False

    def build(self, input_shape: Any) -> None:
        """Create the vectors."""
        self._there = input_shape[-1] > 0
        if self._there:
            self.vectors = self.add_weight(name="vectors", shape=(input_shape[-1], self._dim), initializer=_small())
        super().build(input_shape)

    def call(self, numbers: Any, positions: Sequence[int] | None = None) -> Any:
        """See the class."""
        if not self._there:
            nothing = tf.zeros([tf.shape(numbers)[0], self._dim])
            return nothing, nothing
        vectors = _at(self.vectors, positions)
        return numbers @ vectors, tf.square(numbers) @ tf.square(vectors)


class Flat(keras.layers.Layer):  # type: ignore[misc]
    """Vectors and numbers side by side: what dense layers read.

    A number x_i comes as a_i x_i, a_i learnt and 0.01 at first. So it begins as faint as the vectors, whose elements begin with
    that standard deviation: as they stand, numbers would be all that the first steps see (on one synthetic log an epoch ended
    with an AUC lower by 0.004 for DCN-v2 and by 0.009 for DeepFM). Not the vectors x_i v_i of :class:`FieldEmbedding`: a dense
    layer's weights times v_i are weights for x_i alone, of which it has one row a number then and not D.

    Call arguments:
        vectors: float32 ``[B, F, D]``.
        numbers: float32 ``[B, n]``.
        positions: which of the numeric fields these are; all, where it is not said.

    Returns:
        float32 ``[B, F * D + n]``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the numbers' scales."""
        start = keras.initializers.Constant(0.01)
        self.scales = self.add_weight(name="scales", shape=(input_shape[1][-1],), initializer=start)
        super().build(input_shape)

    def call(self, inputs: tuple[Any, Any], positions: Sequence[int] | None = None) -> Any:
        """See the class."""
        vectors, numbers = inputs
        rows = tf.shape(vectors)[0]  # -1 could not be inferred from no vectors
        wide = tf.reshape(vectors, [rows, vectors.shape[1] * vectors.shape[2]])
        return tf.concat([wide, numbers * _at(self.scales, positions)], axis=1)


def _at(weights: Any, positions: Sequence[int] | None) -> Any:
    return (
        weights
        if positions is None or len(positions) == weights.shape[0]
        else tf.gather(weights, tf.constant(positions, tf.int32))
    )


def _rows(inputs: dict[str, Any]) -> Any:
    return tf.shape(next(iter(inputs.values())))[0]


class Dropout(keras.layers.Layer):  # type: ignore[misc]
    """Drops a share of its inputs in training, by masks that a checkpoint carries on.

    The mask is a function of a seed, drawn when the layer is made, of the number of calls, which is a variable, and of the
    replica. Keras' own layer keeps that state outside the checkpoint, so a run that was resumed would draw other masks.

    Args:
        rate: share dropped, in [0, 1); what stays is scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rate = rate
        self._seed = random.randrange(2**31)  # Python's generator, which keras.utils.set_random_seed seeds

    def build(self, input_shape: Any) -> None:
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

    def call(self, inputs: Any, training: bool = False) -> Any:
        """See the class."""
        if not training:
            return inputs
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), self.calls * 65_536 + replica])
        dropped = tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=seed)
        self.calls.assign_add(1)
        return dropped


def _table(size: int, dim: int, rows: int, name: str) -> Any:
    if 0 < rows < size:
        return ComposedTable(size, dim, rows, _small(), name)
    return Table(size, dim, embeddings_initializer=_small(), name=name)


def _small() -> Any:
    # An object a table: one that is shared would give equal values to tables of equal shape.
    return keras.initializers.RandomNormal(stddev=0.01)


def mlp(units: list[int], dropout: float, name: str) -> Any:
    """Dense layers with ReLU, each followed by dropout where that is above 0."""
    layers = []
    for width in units:
        layers.append(keras.layers.Dense(width, activation="relu", kernel_initializer="glorot_uniform"))
        if dropout > 0:
            layers.append(Dropout(dropout))
    return keras.Sequential(layers, name=name)


def logit_layer() -> Any:
    """The last layer, to one number a row: in float32 whatever the others compute in, for a logit of 8 bits is no CTR."""
    return keras.layers.Dense(1, name="head", dtype="float32")
