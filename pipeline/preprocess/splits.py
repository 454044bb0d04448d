"""Assigns rows to the train, validation and test splits."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Array, Float64s, Int8s, Int64s
from clsd.features.errors import UserError
from clsd.features.hashing import hash64, seeded, unit_interval
from clsd.pipeline.preprocess.columns import GAP, KEY, SPLIT, TIME, USER
from clsd.pipeline.shared.config import SplitSettings


def with_split(batch: pa.RecordBatch, split: Array) -> pa.RecordBatch:
    """Add a ``_split`` int8 column, an index of :data:`clsd.pipeline.preprocess.columns.SPLITS`."""
    return batch.append_column(SPLIT, pa.array(split.astype(np.int8)))


def by_hash(settings: SplitSettings, user: str, seed: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Split by a seeded hash of a key: rows with equal keys stay together, and each split gets a share of the keys."""
    keys = batch.column(USER).to_numpy() if settings.key == user else hash64(batch.column(settings.key))
    return with_split(batch, _by_share(unit_interval(seeded(keys, seed, 0x5711)), settings))


def by_time(boundaries: tuple[int, int], gap: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Split by time: train before the first boundary, test from the second on; the last ``gap`` microseconds are left out."""
    times = batch.column(TIME).to_numpy()
    split = (times >= boundaries[0]).astype(np.int8) + (times >= boundaries[1])
    following = np.asarray([*boundaries, np.iinfo(np.int64).max])[split]  # the start of the split after the row's own
    return with_split(batch, np.where(times >= following - gap, GAP, split))


def by_user_time(settings: SplitSettings, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Split each user's rows by time: the newest are test, those before validation. Equal times are ordered by key.

    The batch must hold **all** rows of its users. A user with n rows gives round-half-up(n * share) to a split.
    """
    users = pc.dictionary_encode(batch.column(USER)).indices.to_numpy()
    order = np.lexsort((batch.column(KEY).to_numpy(), batch.column(TIME).to_numpy(), users))
    n = np.bincount(users)
    start = np.cumsum(n) - n
    from_end = np.empty(len(users), np.int64)
    from_end[order] = n[users[order]] - 1 - (np.arange(len(users)) - start[users[order]])
    test = np.floor(n * settings.test + 0.5)[users]
    validation = np.floor(n * settings.validation + 0.5)[users]
    return with_split(batch, np.where(from_end < test, 2, np.where(from_end < test + validation, 1, 0)))


def _by_share(u: Float64s, settings: SplitSettings) -> Int8s:
    return np.where(u < settings.test, 2, np.where(u < settings.test + settings.validation, 1, 0)).astype(np.int8)


def given_boundaries(settings: SplitSettings) -> tuple[int, int] | None:
    """The configured instants in microseconds, or None if boundaries follow from shares."""
    if not settings.test_from:
        return None

    def instant(name: str, text: str) -> int:
        try:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            raise UserError(
                f"preprocess.split.{name}", f"'{text}' is not a time", "write it as 2026-11-22T10:00:00Z"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return round(moment.timestamp() * 1_000_000)

    first, second = instant("validation_from", settings.validation_from), instant("test_from", settings.test_from)
    if first > second:
        raise UserError("preprocess.split.validation_from", "is later than test_from", "swap the two")
    return first, second


class TimeBoundaries(beam.CombineFn):  # type: ignore[misc]
    """The boundaries that leave the configured shares of rows after them, from merged counts of times.

    More than ``most`` distinct times are counted in bins, of the shortest power of two of microseconds that leaves at most
    ``most``; a boundary is then the start of a bin. The bins of a part of the rows are never longer than those of all rows,
    so the division among workers does not matter.

    Args:
        settings: the shares.
        most: largest number of bins; a boundary is wrong by at most the rows of one bin.
    """

    def __init__(self, settings: SplitSettings, most: int = 1 << 20) -> None:
        self._settings, self._most = settings, most

    def create_accumulator(self) -> list[_Times]:
        return []

    def add_input(self, accumulator: list[_Times], batch: pa.RecordBatch) -> list[_Times]:
        times, counts = np.unique(batch.column(TIME).to_numpy(), return_counts=True)
        accumulator.append(_Times(0, times, counts))
        return self._merged(accumulator) if len(accumulator) >= 32 else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[_Times]]) -> list[_Times]:
        return self._merged([part for accumulator in accumulators for part in accumulator])

    def extract_output(self, accumulator: list[_Times]) -> tuple[int, int]:
        merged = self._merged(accumulator)
        if not merged:
            return (0, 0)
        bits, bins, counts = merged[0]
        before = np.cumsum(counts)
        total = before[-1]

        def boundary(share: float) -> int:
            # The first instant from which at most `share` of the rows remain; equal times stay together.
            at = int(np.searchsorted(before, total * (1 - share) - 1e-9, side="left")) + 1
            return (int(bins[at]) if at < len(bins) else int(bins[-1]) + 1) << bits

        return boundary(self._settings.validation + self._settings.test), boundary(self._settings.test)

    def _merged(self, parts: list[_Times]) -> list[_Times]:
        if not parts:
            return []
        bits = max(part.bits for part in parts)
        bins = np.concatenate([part.bins >> (bits - part.bits) for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        while True:
            distinct, where = np.unique(bins, return_inverse=True)
            if len(distinct) <= self._most:
                return [_Times(bits, distinct, np.bincount(where, weights=counts).astype(np.int64))]
            bins, bits = bins >> 1, bits + 1


class _Times(NamedTuple):
    """Rows by time: rising ``bins`` int64 in units of 2^bits microseconds, and their number of rows."""

    bits: int
    bins: Int64s
    counts: Int64s
