"""Encoded rows to shuffled shards of TFRecord blocks."""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from features.encode import encode
from features.hashing import hash64, seeded
from features.records import serialize_block, write_records
from features.rows import Rows
from features.schema import FIRST_OOV_ID, MISSING_ID, Schema
from features.transform import Transform
from pipeline.columns import KEY, LABEL, SPLIT, SPLITS, TIME, USER


def encode_rows(transform: Transform, batch: pa.RecordBatch) -> Rows:
    """A checked batch as encoded rows, in the batch's order."""
    schema = transform.schema
    ids, values = encode(transform, batch)
    intensity = np.full(batch.num_rows, np.nan, np.float32)
    if schema.intensity in batch.schema.names:
        column = batch.column(schema.intensity).cast(pa.float32())
        intensity = np.array(column.to_numpy(zero_copy_only=False), dtype=np.float32)
    return Rows(
        key=batch.column(KEY).to_numpy(),
        ids=ids,
        values=values,
        label=batch.column(LABEL).to_numpy().astype(np.uint8),
        user=hash64(batch.column(USER)) if schema.user else np.zeros(batch.num_rows, np.uint64),
        timestamp=batch.column(TIME).to_numpy(),
        intensity=intensity,
        passthrough=_passthrough(schema, batch),
    )


def _passthrough(schema: Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        batch.column(name).cast(pa.string()) if name in batch.schema.names else pa.nulls(batch.num_rows, pa.string())
        for name in schema.passthrough
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(schema.passthrough))


def shard_counts(rows: dict[str, tuple[int, int]], rows_per_shard: int) -> dict[str, int]:
    """Number of shards of each split that has rows: as many as keep a shard near ``rows_per_shard``."""
    return {split: max(1, round(n / rows_per_shard)) for split, (n, _) in rows.items() if n and split in SPLITS}


def partition(
    batch: pa.RecordBatch, rows: Rows, shards: dict[str, int], seed: int
) -> Iterator[tuple[tuple[str, int, int], Rows]]:
    """((split, shard, number of shards), rows) of a batch. The shard is random, from the row's key and the seed alone."""
    split = batch.column(SPLIT).to_numpy()
    where = seeded(rows.key, seed, 0x5A4D)
    for number, name in enumerate(SPLITS):
        if name not in shards:
            continue
        mine = np.flatnonzero(split == number)
        for at, places in grouped((where[mine] % np.uint64(shards[name])).astype(np.int64)):
            yield (name, at, shards[name]), rows.take(mine[places])


def grouped(codes: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each code and the places where it stands, in order: one sort, however many codes there are."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for start, stop in pairwise([*starts, len(order)]):  # nothing for no codes at all
        yield int(codes[order[start]]), order[start:stop]


def statistics(schema: Schema, batch: pa.RecordBatch, rows: Rows) -> dict[str, tuple[int, int]]:
    """Counts that add up over batches: ``split/feature`` -> (missing ids or values, out-of-vocabulary ids)."""
    split = batch.column(SPLIT).to_numpy()
    counts = {}
    for number, name in enumerate(SPLITS):
        ids = rows.ids[split == number]
        if not len(ids):
            continue
        for feature in schema.categorical:
            at = ids[:, schema.id_slices[feature.name]]
            oov = (at >= FIRST_OOV_ID) & (at < FIRST_OOV_ID + schema.owner(feature).oov_buckets)
            missing = (at == MISSING_ID) if at.shape[1] == 1 else (at == 0).all(axis=1)
            hashed = schema.owner(feature).encoding == "hash"
            counts[f"{name}/{feature.name}"] = (int(missing.sum()), 0 if hashed else int(oov.sum()))
    return counts


def write_shard(
    schema: Schema, rows_per_block: int, gzipped: bool, directory: str, element: tuple[Any, Iterable[Rows]]
) -> dict[str, Any]:
    """Write one shard in the order of the keys, aside and then in place, and describe it as ``dataset.json`` does."""
    (split, shard, shards), parts = element
    rows = Rows.concat(list(parts)).shuffled()
    name = f"{split}/part-{shard:05d}-of-{shards:05d}.tfrecord{'.gz' if gzipped else ''}"
    aside = posixpath.join(directory, split, f".{uuid.uuid4().hex}.partial")
    _ensure_directory(posixpath.join(directory, split))
    blocks = range(0, len(rows), rows_per_block)
    with FileSystems.create(aside, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        written = write_records(
            file,
            (serialize_block(schema, rows.take(slice(start, start + rows_per_block))) for start in blocks),
            gzipped=gzipped,
        )
    target = posixpath.join(directory, name)
    if FileSystems.exists(target):  # an earlier attempt at this same bundle; its bytes are the same
        FileSystems.delete([target])
    FileSystems.rename([aside], [target])
    return {
        "split": split,
        "file": name,
        "rows": len(rows),
        "clicks": int(rows.label.sum()),
        "blocks": written.records,
        "bytes": written.bytes,
        "crc32c": f"{written.crc32c:08x}",
    }


def _ensure_directory(path: str) -> None:
    with contextlib.suppress(OSError):  # another worker was first; object stores have no directories at all
        FileSystems.mkdirs(path)
