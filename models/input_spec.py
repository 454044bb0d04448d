"""What a backbone reads: its fields, and their columns in a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from clsd.features.schema import BagFeature, NumericFeature, Schema, SequenceFeature
from clsd.features.tf_runtime import Tensor, tf


@dataclass(frozen=True)
class Field:
    """One feature as the backbone reads it.

    Args:
        name: name of the feature.
        kind: id (int32 ``[B]``), bag or sequence (int32 ``[B, length]``, 0 is padding), number (float32 ``[B]``).
        table: name of the embedding table; features that share a vocabulary share it.
        size: number of ids of the table; 0 for a number.
        length: values per row.
        rows: most rows of the table; a table with more ids is composed of two. 0 for no limit.
    """

    name: str
    kind: Literal["id", "bag", "sequence", "number"]
    table: str = ""
    size: int = 0
    length: int = 1
    rows: int = 0


@dataclass(frozen=True)
class InputSpec:
    """The fields of a backbone, the group features of AdGate, and the columns of both in a batch.

    Args:
        fields: the backbone's fields, in order.
        groups: (name, number of ids) of each group feature.
        id_slices: columns of ``ids`` by feature name.
        value_columns: column of ``values`` by feature name.
    """

    fields: tuple[Field, ...]
    groups: tuple[tuple[str, int], ...]
    id_slices: Mapping[str, slice]
    value_columns: Mapping[str, int]

    @property
    def embedded(self) -> tuple[Field, ...]:
        """The fields that are not numbers."""
        return tuple(field for field in self.fields if field.kind != "number")

    @classmethod
    def build(cls, schema: Schema, table_sizes: Mapping[str, int], max_rows: int = 0) -> InputSpec:
        """Build the spec from the schema, the number of ids of each feature, and the most rows of a table."""
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

    def columns(self, ids: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Split a batch's ids ``[B, width]`` and values ``[B, n_numeric]`` into one tensor per feature, by name.

        A tensor is ``[B]``, or ``[B, length]`` for a bag or sequence.
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
        """Indices of the named fields among the embedded fields, and among the numeric fields."""
        numbers = [field for field in self.fields if field.kind == "number"]
        sides = ([i for i, field in enumerate(side) if field.name in inputs] for side in (self.embedded, numbers))
        return next(sides), next(sides)

    def flat_columns(self, inputs: Collection[str], dim: int, width: int) -> list[int | None]:
        """Columns of the named fields in the output of :class:`clsd.models.layers.Flat` over all fields, with vectors of ``dim``.

        Vectors are ``width`` long here; None stands for their elements after the first ``dim``.
        """
        vectors, numbers = self.positions(inputs)
        columns = [index * dim + i if i < dim else None for index in vectors for i in range(width)]
        return columns + [len(self.embedded) * dim + index for index in numbers]

    def numbers(self, inputs: dict[str, Tensor]) -> Tensor:
        """The numeric fields of what :meth:`columns` gave, in order, float32 ``[B, n]``; n may be 0."""
        columns = [inputs[field.name] for field in self.fields if field.kind == "number" and field.name in inputs]
        return tf.stack(columns, axis=1) if columns else tf.zeros([num_rows(inputs), 0])


def num_rows(inputs: Mapping[str, Tensor]) -> Tensor:
    """Number of rows of a batch's inputs, int32 scalar."""
    return tf.shape(next(iter(inputs.values())))[0]
