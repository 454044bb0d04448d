"""The training input pipeline: TFRecord blocks to batches with ``tf.data``.

A batch is a dictionary of dense tensors with ``batch_size`` rows. The last batch is padded with rows of ``valid`` 0, so every
replica sees the same shapes and no row is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clsd.features.epoch_order import EpochOrder, Start
from clsd.features.records import is_gzipped, offset_of, open_records, read_records
from clsd.features.schema import Schema
from clsd.features.tf_runtime import Tensor, TfDataset, register_file_systems, tf

#: Columns that training reads.
TRAINING_COLUMNS = ("ids", "values", "label")
ALL_COLUMNS = (*TRAINING_COLUMNS, "key", "user", "timestamp", "intensity")

#: Bytes per read.
_BUFFER = 1 << 20
_DTYPES = {
    "label": tf.uint8,
    "key": tf.int64,  # bits of the uint64: tf.data and the CPU kernels know int64 better
    "user": tf.int64,
    "timestamp": tf.int64,
    "intensity": tf.float32,
}


def parse_blocks(schema: Schema, serialized: Tensor, columns: Sequence[str] = TRAINING_COLUMNS) -> dict[str, Tensor]:
    """Parse several blocks into their rows.

    Args:
        schema: schema of the blocks.
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
    n = tf.strings.length(joined["label"])  # one byte a row; without columns, a reshape could not infer -1
    if "ids" in columns:
        parts = [tf.reshape(tf.io.decode_raw(joined["ids"], tf.int32), [n, schema.fixed_width])]
        for feature in schema.ragged:
            flat = tf.io.decode_raw(joined[f"{feature.name}.ids"], tf.int32)
            lengths = tf.io.decode_raw(joined[f"{feature.name}.lengths"], tf.int32)
            # The record's CRC guards these buffers, so they need no validation.
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


def read_batches(
    schema: Schema,
    files: Sequence[str],
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    columns: Sequence[str] = TRAINING_COLUMNS,
    rows_per_block: int = 512,
    shuffle_blocks: int = 512,
    first_batch: int = 0,
    file_rows: Sequence[int] = (),
) -> TfDataset:
    """A ``tf.data.Dataset`` of batches over TFRecord files of blocks.

    Args:
        schema: the schema that the files were written with.
        files: paths, in order.
        batch_size: rows per batch, B.
        shuffle_seed: seed of the epoch, see :mod:`clsd.features.epoch_order`; None reads blocks of four files in turn.
        columns: see :func:`parse_blocks`.
        rows_per_block: rows per record, from ``dataset.json``; decides how many blocks are parsed at once.
        shuffle_blocks: largest window in which blocks are permuted; they are held in memory.
        first_batch: number of batches of a shuffled epoch to skip; reading starts with the window of the next row.
        file_rows: rows of each file, needed for ``first_batch``.

    Returns:
        batches of the columns and ``valid`` float32 ``[B]``: 1 for a row, 0 for padding.
    """
    register_file_systems(files)
    chunk_blocks = max(1, min(64, -(-batch_size // rows_per_block)))
    if shuffle_seed is None:
        chunks = _in_turn(files).batch(chunk_blocks)
        parsed = chunks.map(lambda c: parse_blocks(schema, c, columns), num_parallel_calls=tf.data.AUTOTUNE)
    else:
        order = EpochOrder(shuffle_seed, chunk_blocks, max(1, shuffle_blocks // chunk_blocks))
        start = order.find(first_batch * batch_size, file_rows, rows_per_block) if first_batch else Start()
        chunks = _shuffled([files[at] for at in order.files(len(files))], order, start).batch(chunk_blocks)
        first = start.window * order.window_chunks + start.chunk

        def parse(index: Tensor, chunk: Tensor) -> dict[str, Tensor]:
            rows = parse_blocks(schema, chunk, columns)
            # Any column's length is the number of rows; it may be 0.
            at = order.rows(index, tf.shape(rows[columns[0]])[0])
            at = at[tf.where(tf.equal(index, first), start.row, 0) :]
            return {name: tf.gather(column, at) for name, column in rows.items()}

        parsed = chunks.enumerate(first).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    padded = parsed.rebatch(batch_size).map(lambda rows: _pad(rows, batch_size))
    return padded.prefetch(4)


def _in_turn(files: Sequence[str]) -> TfDataset:
    """Blocks of a few files in turn, in a deterministic order."""
    return tf.data.Dataset.from_tensor_slices(list(files)).interleave(
        lambda file: _records(file, _compression(files)),
        cycle_length=min(4, len(files)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _shuffled(files: Sequence[str], order: EpochOrder, start: Start) -> TfDataset:
    """Blocks of an epoch, from the chunk of ``start`` on."""
    rest = _records(files[start.file + 1 :], _compression(files))
    blocks = _from_record(files[start.file], start.record).concatenate(rest)

    def permute(window: Tensor, blocks: Tensor) -> Tensor:
        at = order.blocks(window, tf.shape(blocks)[0])
        skipped = tf.where(tf.equal(window, start.window), start.chunk * order.chunk_blocks, 0)
        return tf.gather(blocks, at[skipped:])

    windows = blocks.batch(order.window_blocks).enumerate(start.window)
    return windows.map(permute).unbatch()


def _from_record(file: str, record: int) -> TfDataset:
    """The records of a file from an index on. Earlier ones are not read, except in a gzip stream, which has no positions."""
    if not record or is_gzipped(file):
        return _records(file, _compression([file])).skip(record)

    # TensorFlow's TFRecordDataset with byte offsets cannot be serialized, which iterating needs.
    def rest() -> Iterator[bytes]:
        with open_records(file) as records:
            records.seek(offset_of(file, record))
            yield from read_records(records, file)

    return tf.data.Dataset.from_generator(rest, output_signature=tf.TensorSpec([], tf.string))


def _records(files: Tensor, compression: str) -> TfDataset:
    return tf.data.TFRecordDataset(files, compression, buffer_size=_BUFFER)


def _compression(files: Sequence[str]) -> str:
    return "GZIP" if files and is_gzipped(files[0]) else ""


def _pad(rows: dict[str, Tensor], batch_size: int) -> dict[str, Tensor]:
    out = {}
    n = tf.shape(next(iter(rows.values())))[0]
    for name, column in rows.items():
        padding = [[0, batch_size - n]] + [[0, 0]] * (column.shape.rank - 1)
        padded = tf.pad(column, padding)
        padded.set_shape([batch_size, *column.shape[1:]])
        out[name] = padded
    out["valid"] = tf.cast(tf.range(batch_size) < n, tf.float32)
    return out
