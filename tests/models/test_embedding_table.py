"""A table composed of two short ones: its rows, their number, and the rows that a step touches."""

from __future__ import annotations

import numpy as np

from clsd.features.tf_runtime import keras, tf
from clsd.models.embedding_table import ComposedTable, Table
from clsd.models.input_spec import Field
from clsd.models.layers import FieldEmbedding
from clsd.models.optimizers import build_optimizer, split_variables
from clsd.models.settings import OptimizerSettings


def _composed(size: int, rows: int) -> ComposedTable:
    table = ComposedTable(size, 3, rows, keras.initializers.RandomNormal(stddev=1.0), "table_x")
    table(tf.constant([0]))
    rng = np.random.default_rng(1)
    for part in (table.remainder, table.quotient):
        part.embeddings.assign(rng.normal(size=part.embeddings.shape))
    return table


def test_a_row_is_the_product_of_its_remainder_and_its_quotient() -> None:
    table = _composed(25, 7)
    assert table.remainder.embeddings.shape == (7, 3) and table.quotient.embeddings.shape == (4, 3)
    ids = np.arange(25, dtype=np.int32).reshape(5, 5)
    expected = table.remainder.embeddings.numpy()[ids % 7] * table.quotient.embeddings.numpy()[ids // 7]
    np.testing.assert_array_equal(table(tf.constant(ids)), expected)
    assert len({tuple(row) for row in expected.reshape(25, 3).tolist()}) == 25


def test_an_id_keeps_its_vector_as_the_table_grows() -> None:
    short, long = _composed(25, 7), _composed(40, 7)
    long.remainder.embeddings.assign(short.remainder.embeddings)
    long.quotient.embeddings[:4].assign(short.quotient.embeddings)
    ids = tf.range(25)
    np.testing.assert_array_equal(long(ids), short(ids))


def test_only_tables_that_are_longer_are_composed_and_begin_as_a_short_one() -> None:
    fields = tuple(Field(name, "id", name, size, rows=10) for name, size in (("a", 10), ("b", 11), ("c", 1000)))
    layer = FieldEmbedding(fields, 4)
    out = layer({name: tf.constant([1, 9]) for name in "abc"})
    assert [type(layer.tables[name]) for name in "abc"] == [Table, ComposedTable, ComposedTable]
    assert out.shape == (2, 3, 4)
    np.testing.assert_array_equal(out[:, 2], tf.gather(layer.tables["c"].remainder.embeddings, [1, 9]))


def test_a_step_touches_the_rows_of_the_batch_alone() -> None:
    model = keras.Sequential([_composed(1000, 30)])
    model(tf.constant([0]))
    tables, dense = split_variables(model)
    assert len(tables) == 2 and not dense
    before = [table.numpy() for table in tables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.constant([31, 31, 64])) ** 2)
    gradients = tape.gradient(loss, tables)
    build_optimizer(OptimizerSettings(name="rowwise_adagrad", learning_rate=0.1)).apply_gradients(
        zip(gradients, tables, strict=True)
    )
    touched = [np.flatnonzero((t.numpy() != b).any(axis=1)).tolist() for t, b in zip(tables, before, strict=True)]
    assert sorted(touched) == [[1, 2], [1, 4]]
