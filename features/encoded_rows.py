"""Encoded rows in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clsd.features.arrays import Array, Float32s, Int32s, Int64s, UInt8s, UInt64s

_FLAT = ("key", "label", "user", "timestamp", "intensity")
_WIDE = {"ids": np.int32, "values": np.float32}
#: Prefix of passthrough columns, whose names are free.
_CARRIED = "passthrough."


@dataclass(frozen=True)
class EncodedRows:
    """n encoded rows; every array's first axis is the row.

    Args:
        key: uint64 ``[n]``, the row's random key: its identity, and its position in the shuffle.
        ids: int32 ``[n, width]``, see :mod:`clsd.features.schema`.
        values: float32 ``[n, n_numeric]``.
        label: uint8 ``[n]``, 0 or 1.
        user: uint64 ``[n]``, hash of the user; 0 if the schema names no user.
        timestamp: int64 ``[n]``, microseconds since 1970 UTC; 0 if the schema names no timestamp.
        intensity: float32 ``[n]``; NaN where unknown.
        passthrough: strings, one column per passthrough name.
    """

    key: UInt64s
    ids: Int32s
    values: Float32s
    label: UInt8s
    user: UInt64s
    timestamp: Int64s
    intensity: Float32s
    passthrough: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.key)

    def take(self, order: Array | slice) -> EncodedRows:
        """The rows at ``order``: indices, a mask or a slice."""
        if isinstance(order, slice) or order.dtype == np.bool_:
            arrays = {name: getattr(self, name)[order] for name in (*_FLAT, *_WIDE)}
        else:  # np.take copies whole rows faster
            arrays = {name: np.take(getattr(self, name), order, axis=0) for name in (*_FLAT, *_WIDE)}
        if self.passthrough.num_columns == 0:
            return EncodedRows(**arrays, passthrough=self.passthrough)
        if isinstance(order, slice):
            start, stop, _ = order.indices(len(self))
            return EncodedRows(**arrays, passthrough=self.passthrough.slice(start, stop - start))
        positions = np.flatnonzero(order) if order.dtype == np.bool_ else order
        return EncodedRows(**arrays, passthrough=self.passthrough.take(pa.array(positions)))

    @staticmethod
    def concat(parts: list[EncodedRows]) -> EncodedRows:
        """Concatenate at least one part."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_FLAT, *_WIDE)}
        passthrough = parts[0].passthrough
        if passthrough.num_columns:
            table = pa.Table.from_batches([part.passthrough for part in parts]).combine_chunks()
            passthrough = table.to_batches()[0] if table.num_rows else passthrough
        return EncodedRows(**arrays, passthrough=passthrough)

    def to_batch(self) -> pa.RecordBatch:
        """The rows as Arrow columns, to be spilled to disk; ids and values are fixed-size lists."""
        columns = {name: pa.array(getattr(self, name)) for name in _FLAT}
        for name in _WIDE:
            wide = getattr(self, name)
            width = wide.shape[1]
            flat = pa.array(np.ascontiguousarray(wide).reshape(-1))
            # Arrow has no lists of length 0, so a schema without such features has no such column.
            columns |= {name: pa.FixedSizeListArray.from_arrays(flat, width)} if width else {}
        columns |= {
            _CARRIED + name: column
            for name, column in zip(self.passthrough.schema.names, self.passthrough, strict=True)
        }
        return pa.RecordBatch.from_pydict(columns)

    @staticmethod
    def from_batch(batch: pa.RecordBatch) -> EncodedRows:
        """Read what :meth:`to_batch` made; the arrays are views of the batch."""
        arrays = {name: batch.column(name).to_numpy() for name in _FLAT}
        for name, kind in _WIDE.items():
            if name in batch.schema.names:
                column = batch.column(name)
                arrays[name] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
            else:
                arrays[name] = np.empty((batch.num_rows, 0), kind)
        carried = [name for name in batch.schema.names if name.startswith(_CARRIED)]
        passthrough = pa.RecordBatch.from_arrays(
            [batch.column(name) for name in carried], names=[name.removeprefix(_CARRIED) for name in carried]
        )
        return EncodedRows(**arrays, passthrough=passthrough)

    def sorted_by_key(self) -> EncodedRows:
        """The rows sorted by their random key: the same order, however the parts arrived."""
        return self.take(np.argsort(self.key, kind="stable"))
