"""Rows per second of block records, compared with one tf.train.Example per row, parsed by batch and row by row.

tf.data reads the same rows (20 categorical features, 10 numeric features and a label) from disk in three ways, each into batches
of dense tensors. Before all measurements, the benchmark checks that the three give the same numbers.

    python benchmarks/reader.py [--quick] [--json FILE]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import Goal, arguments, conclude, median_ratio, rates

from clsd.features.encoded_rows import EncodedRows
from clsd.features.input_pipeline import read_batches
from clsd.features.records import serialize_block, write_records
from clsd.features.schema import Schema
from clsd.features.tf_runtime import tf

CATEGORICAL, NUMERIC, BATCH, BLOCK = 20, 10, 4096, 512
SCHEMA = Schema(
    features=[
        *({"name": f"c{i}", "kind": "categorical", "encoding": "hash", "size": 10**6} for i in range(CATEGORICAL)),
        *({"name": f"x{i}", "kind": "numeric"} for i in range(NUMERIC)),
    ]
)


def _rows(n: int) -> EncodedRows:
    rng = np.random.default_rng(1)
    return EncodedRows(
        key=rng.integers(0, 2**63, n).astype(np.uint64),
        ids=rng.integers(3, 10**6, (n, CATEGORICAL)).astype(np.int32),
        values=rng.normal(size=(n, NUMERIC)).astype(np.float32),
        label=(rng.random(n) < 0.1).astype(np.uint8),
        user=np.zeros(n, np.uint64),
        timestamp=np.zeros(n, np.int64),
        intensity=np.full(n, np.nan, np.float32),
        passthrough=pa.RecordBatch.from_arrays([], names=[]),
    )


def _write_blocks(rows: EncodedRows, path: Path) -> None:
    with path.open("wb") as file:
        starts = range(0, len(rows), BLOCK)
        write_records(file, (serialize_block(SCHEMA, rows.take(slice(at, at + BLOCK))) for at in starts))


def _write_examples(rows: EncodedRows, path: Path) -> None:
    def feature(values: Any) -> Any:
        if isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for ids, values, label in zip(rows.ids.tolist(), rows.values.tolist(), rows.label.tolist(), strict=True):
            columns = {f"c{i}": feature([x]) for i, x in enumerate(ids)} | {
                f"x{i}": feature([x]) for i, x in enumerate(values)
            }
            columns["label"] = feature([label])
            writer.write(tf.train.Example(features=tf.train.Features(feature=columns)).SerializeToString())


_SPEC = {
    **{f"c{i}": tf.io.FixedLenFeature([], tf.int64) for i in range(CATEGORICAL)},
    **{f"x{i}": tf.io.FixedLenFeature([], tf.float32) for i in range(NUMERIC)},
    "label": tf.io.FixedLenFeature([], tf.int64),
}


def _dense(parsed: dict[str, Any], axis: int) -> dict[str, Any]:
    return {
        "ids": tf.cast(tf.stack([parsed[f"c{i}"] for i in range(CATEGORICAL)], axis=axis), tf.int32),
        "values": tf.stack([parsed[f"x{i}"] for i in range(NUMERIC)], axis=axis),
        "label": tf.cast(parsed["label"], tf.float32),
    }


def _readers(blocks: Path, examples: Path) -> dict[str, Callable[[int], Any]]:
    """Name to a function that makes a dataset which reads the file that many times, one after the other."""
    threads = tf.data.AUTOTUNE

    def by_batch(times: int) -> Any:
        source = tf.data.TFRecordDataset([str(examples)] * times, buffer_size=1 << 20).batch(BATCH)
        return source.map(lambda s: _dense(tf.io.parse_example(s, _SPEC), 1), num_parallel_calls=threads).prefetch(4)

    def by_row(times: int) -> Any:
        source = tf.data.TFRecordDataset([str(examples)] * times, buffer_size=1 << 20)
        parsed = source.map(lambda s: _dense(tf.io.parse_single_example(s, _SPEC), 0), num_parallel_calls=threads)
        return parsed.batch(BATCH).prefetch(4)

    return {
        "clsd blocks": lambda times: read_batches(SCHEMA, [str(blocks)] * times, BATCH, rows_per_block=BLOCK),
        "Examples, parsed by batch": by_batch,
        "Examples, parsed row by row": by_row,
    }


def _same(readers: dict[str, Callable[[int], Any]], n: int) -> None:
    """Every reader gives the same rows in the same order."""
    whole = {}
    for name, make in readers.items():
        parts = list(make(1).as_numpy_iterator())
        whole[name] = [np.concatenate([part[column] for part in parts])[:n] for column in ("ids", "values", "label")]
    first, *others = whole.values()
    assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True)), (
        "the readers disagree"
    )


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    n, rounds = (40_960, 3) if options.quick else (204_800, 7)
    with tempfile.TemporaryDirectory() as place:
        blocks, examples = Path(place) / "blocks.tfrecord", Path(place) / "examples.tfrecord"
        rows = _rows(n)
        _write_blocks(rows, blocks)
        _write_examples(rows, examples)
        readers = _readers(blocks, examples)
        _same(readers, n)

        def read(make: Callable[[int], Any], times: int) -> Callable[[], int]:
            def work() -> int:
                for _ in make(times):
                    pass
                return n * times

            return work

        # A fast reader reads the file more often, so that no side's time is that of starting tf.data.
        often = dict(zip(readers, (24, 4, 1), strict=True))
        result = rates({name: read(make, often[name]) for name, make in readers.items()}, rounds)
    ours, batched, single = readers
    # The design's figures are 3.6-6.0 M rows/s of blocks against 0.4-0.5 M by batch; row by row nobody should read.
    goals = [
        Goal("reader_vs_batched", median_ratio(result, ours, batched), 7),
        Goal("reader_vs_single", median_ratio(result, ours, single), 100),
    ]
    conclude(f"reading {n:,} rows of {CATEGORICAL} + {NUMERIC} features", "rows/s", result, goals, options.json)


if __name__ == "__main__":
    main()
