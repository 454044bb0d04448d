"""Encodes rows, partitions them by shard, and writes shuffled shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from clsd.features.arrays import Int8s, Int64s
from clsd.features.encode import encode
from clsd.features.encoded_rows import EncodedRows
from clsd.features.hashing import seeded
from clsd.features.paths import as_path
from clsd.features.records import serialize_block, write_records
from clsd.features.schema import FIRST_OOV_ID, MISSING_ID, PADDING_ID, Schema
from clsd.features.tokens import plain
from clsd.features.transform import Transform
from clsd.pipeline.preprocess.columns import KEY, LABEL, SPLITS, TIME, USER
from clsd.pipeline.preprocess.spill import Spilled, load
from clsd.pipeline.shared.files import atomic_file
from clsd.pipeline.shared.threads import Threads


def encode_rows(transform: Transform, rows: pa.Table, threads: Threads) -> EncodedRows:
    """Encode checked rows, in their order."""
    schema = transform.schema
    ids, values = encode(transform, rows, threads.map)
    intensity = np.full(rows.num_rows, np.nan, np.float32)
    if schema.intensity in rows.schema.names:
        column = rows.column(schema.intensity).cast(pa.float32())
        intensity = np.array(column.to_numpy(zero_copy_only=False), dtype=np.float32)
    return EncodedRows(
        key=rows.column(KEY).to_numpy(),
        ids=ids,
        values=values,
        label=rows.column(LABEL).to_numpy().astype(np.uint8),
        user=rows.column(USER).to_numpy(),
        timestamp=rows.column(TIME).to_numpy(),
        intensity=intensity,
        passthrough=_passthrough(schema, rows),
    )


def _passthrough(schema: Schema, rows: pa.Table) -> pa.RecordBatch:
    def text(name: str) -> pa.Array:
        if name not in rows.schema.names:
            return pa.nulls(rows.num_rows, pa.string())
        return plain(rows.column(name)).cast(pa.string()).combine_chunks()

    return pa.RecordBatch.from_arrays([text(name) for name in schema.passthrough], names=list(schema.passthrough))


def shard_counts(rows: dict[str, tuple[int, int]], rows_per_shard: int) -> dict[str, int]:
    """Number of shards of each split with rows, for about ``rows_per_shard`` rows each."""
    return {split: max(1, round(n / rows_per_shard)) for split, (n, _) in rows.items() if n and split in SPLITS}


def partition(
    split: Int8s, rows: EncodedRows, shards: dict[str, int], seed: int
) -> Iterator[tuple[tuple[str, int, int], EncodedRows]]:
    """Partition rows: ((split, shard, number of shards), rows). The shard is a random function of the row's key and the seed.

    Args:
        split: int8 ``[rows]``, an index of :data:`clsd.pipeline.preprocess.columns.SPLITS` or GAP.
        rows: the rows.
        shards: number of shards by split.
        seed: seed of the draws.
    """
    counts = [shards.get(name, 0) for name in SPLITS]
    num_shards = np.array([*counts, 0])  # the last, 0, is for GAP, whose index is -1
    before = np.cumsum(num_shards) - num_shards
    where = seeded(rows.key, seed, 0x5A4D) % np.maximum(num_shards, 1).astype(np.uint64)[split]
    code = np.where(num_shards[split] > 0, before[split] + where.astype(np.int64), num_shards.sum())
    order, starts = sorted_codes(code)
    ordered = rows.take(order)  # copied once; the parts are views
    keys = [(name, at, n) for name, n in zip(SPLITS, counts, strict=True) for at in range(n)]
    for start, stop in pairwise([*starts, len(order)]):  # an empty batch has no parts
        if (at := int(code[order[start]])) < len(keys):
            yield keys[at], ordered.take(slice(start, stop))


def sorted_codes(codes: Int64s) -> tuple[Int64s, Int64s]:
    """The stable order of non-negative codes, and the start of each distinct code in it."""
    small = codes.astype(np.uint16) if len(codes) and codes.max() < 1 << 16 else codes  # NumPy sorts 16 bits by radix
    order = np.argsort(small, kind="stable")
    return order, np.flatnonzero(np.diff(codes[order], prepend=-1))


def statistics(schema: Schema, split: str, rows: EncodedRows) -> dict[str, tuple[int, int]]:
    """Additive counts by ``split/feature``: (rows without a value, out-of-vocabulary ids)."""
    counts = {}
    for feature in schema.categorical:
        at, vocabulary_source = rows.ids[:, schema.id_slices[feature.name]], schema.vocabulary_source(feature)
        missing = (at == MISSING_ID) if at.shape[1] == 1 else (at == PADDING_ID).all(axis=1)
        oov = (at >= FIRST_OOV_ID) & (at < FIRST_OOV_ID + vocabulary_source.oov_buckets)
        unknown = 0 if vocabulary_source.encoding == "hash" else np.count_nonzero(oov)
        counts[f"{split}/{feature.name}"] = int(np.count_nonzero(missing)), int(unknown)
    return counts


def write_shard(
    schema: Schema, rows_per_block: int, gzipped: bool, directory: str, element: tuple[Any, Iterable[Spilled]]
) -> dict[str, Any]:
    """Write one shard in the order of its keys, and describe it as in ``dataset.json``."""
    (split, shard, shards), parts = element
    rows = EncodedRows.concat([EncodedRows.from_batch(load(part)) for part in parts]).sorted_by_key()
    name = f"{split}/part-{shard:05d}-of-{shards:05d}.tfrecord{'.gz' if gzipped else ''}"
    target = as_path(directory) / name
    blocks = range(0, len(rows), rows_per_block)
    with atomic_file(target) as file:  # an earlier attempt may have written the same bytes
        written = write_records(
            file,
            (serialize_block(schema, rows.take(slice(start, start + rows_per_block))) for start in blocks),
            gzipped=gzipped,
        )
    return {
        "split": split,
        "file": name,
        "rows": len(rows),
        "clicks": int(rows.label.sum()),
        "blocks": written.records,
        "bytes": written.bytes,
        "crc32c": f"{written.crc32c:08x}",
        "first_crc32c": f"{written.first_crc32c:08x}",
    }
