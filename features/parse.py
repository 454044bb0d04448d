"""Blocks of rows to batches, as a TensorFlow graph: what the training reader runs.

A batch is a dictionary of dense tensors with ``batch_size`` rows, always: the last, uneven one is padded with rows of
``valid`` 0, so that every replica sees the same shapes and no row is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from features.records import is_gzipped
from features.schema import Schema
from features.tf_runtime import reach, tf

#: What training reads; evaluation adds the rest.
TRAINING_COLUMNS = ("ids", "values", "label")
ALL_COLUMNS = (*TRAINING_COLUMNS, "key", "user", "timestamp", "intensity")

_DTYPES = {
    "label": tf.uint8,
    "key": tf.int64,  # bits of the uint64: tf.data and the CPU kernels know int64 better
    "user": tf.int64,
    "timestamp": tf.int64,
    "intensity": tf.float32,
}


def parse_blocks(schema: Schema, serialized: Any, columns: Sequence[str] = TRAINING_COLUMNS) -> dict[str, Any]:
    """Rows of several blocks, one after the other.

    Args:
        schema: the schema that the blocks were written with.
        serialized: string ``[blocks]``.
        columns: which of :data:`ALL_COLUMNS` to decode.

    Returns:
        ids int32 ``[n, width]``, values float32 ``[n, n_numeric]``, label float32 ``[n]``, and int64 or float32 ``[n]`` for
        the others; n is the sum of the blocks' rows.
    """
    names = sorted({*columns, "label"} - {"ids"})
    if "ids" in columns:
        names += ["ids"] + [f"{f.name}.{part}" for f in schema.ragged for part in ("lengths", "ids")]
    parsed = tf.io.parse_example(serialized, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
    joined = {name: tf.strings.reduce_join(buffers) for name, buffers in parsed.items()}

    out = {}
    n = tf.strings.length(joined["label"])  # one byte a row; -1 could not be inferred from no columns
    if "ids" in columns:
        parts = [tf.reshape(tf.io.decode_raw(joined["ids"], tf.int32), [n, schema.fixed_width])]
        for feature in schema.ragged:
            flat = tf.io.decode_raw(joined[f"{feature.name}.ids"], tf.int32)
            lengths = tf.io.decode_raw(joined[f"{feature.name}.lengths"], tf.int32)
            # The buffers come from a block that was written whole and is guarded by its record's CRC.
            ragged = tf.RaggedTensor.from_row_lengths(flat, lengths, validate=False)
            parts.append(ragged.to_tensor(shape=[None, feature.max_length]))
        out["ids"] = tf.concat(parts, axis=1) if schema.ragged else parts[0]
        out["ids"].set_shape([None, schema.width])
    if "values" in columns:
        out["values"] = tf.ensure_shape(
            tf.reshape(tf.io.decode_raw(joined["values"], tf.float32), [n, len(schema.numeric)]),
            [None, len(schema.numeric)],
        )
    for name in columns:
        if name in _DTYPES:
            out[name] = tf.io.decode_raw(joined[name], _DTYPES[name])
    if "label" in out:
        out["label"] = tf.cast(out["label"], tf.float32)
    return out


def batches(
    schema: Schema,
    files: Sequence[str],
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    columns: Sequence[str] = TRAINING_COLUMNS,
    rows_per_block: int = 512,
    shuffle_blocks: int = 512,
) -> Any:
    """A ``tf.data.Dataset`` of batches over TFRecord files of blocks.

    The rows on disk are in uniformly random order already; an epoch of training permutes the files, the blocks (in a
    buffer of ``shuffle_blocks``) and the rows that are parsed together, all from ``shuffle_seed``.

    Args:
        schema: the schema that the files were written with.
        files: paths, in order.
        batch_size: rows a batch, B.
        shuffle_seed: None for the order on disk.
        columns: see :func:`parse_blocks`.
        rows_per_block: rows a record, from ``dataset.json``; decides how many blocks are parsed at once.
        shuffle_blocks: size of the shuffle buffer.

    Returns:
        batches of the columns and ``valid`` float32 ``[B]``: 1 for a row, 0 for padding.
    """
    reach(files)
    source = tf.data.Dataset.from_tensor_slices(list(files))
    if shuffle_seed is not None:
        source = source.shuffle(len(files), seed=shuffle_seed)
    compression = "GZIP" if files and is_gzipped(files[0]) else ""
    # Blocks of a few files in turn, in an order that does not depend on timing.
    source = source.interleave(
        lambda file: tf.data.TFRecordDataset(file, compression, buffer_size=1 << 20),
        cycle_length=min(4, len(files)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if shuffle_seed is not None:
        source = source.shuffle(shuffle_blocks, seed=shuffle_seed)
    together = max(1, min(64, -(-batch_size // rows_per_block)))

    def parse(serialized: Any, index: Any) -> dict[str, Any]:
        rows = parse_blocks(schema, serialized, columns)
        if shuffle_seed is not None:
            order = _permutation(tf.shape(rows[columns[0]])[0], shuffle_seed, index)
            rows = {name: tf.gather(column, order) for name, column in rows.items()}
        return rows

    def number(index: Any, serialized: Any) -> tuple[Any, Any]:
        return serialized, index

    parsed = source.batch(together).enumerate().map(number)
    parsed = parsed.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    padded = parsed.rebatch(batch_size).map(lambda rows: _pad(rows, batch_size))
    return padded.prefetch(4)


def _permutation(n: Any, seed: int, index: Any) -> Any:
    """A random order of n rows that depends on the seed and the position in the epoch alone."""
    return tf.random.experimental.stateless_shuffle(tf.range(n), seed=tf.stack([tf.constant(seed, tf.int64), index]))


def _pad(rows: dict[str, Any], batch_size: int) -> dict[str, Any]:
    out = {}
    n = tf.shape(next(iter(rows.values())))[0]
    for name, column in rows.items():
        padding = [[0, batch_size - n]] + [[0, 0]] * (column.shape.rank - 1)
        padded = tf.pad(column, padding)
        padded.set_shape([batch_size, *column.shape[1:]])
        out[name] = padded
    out["valid"] = tf.cast(tf.range(batch_size) < n, tf.float32)
    return out
