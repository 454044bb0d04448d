"""Non-clicks: sampled for logs of clicks alone, and down-sampled for logs with too many.

A sampled non-click copies a click's user, time and split, with another item: an item of the training split that the user
clicked in no split. Draws depend on the click's key, not on the workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.hashing import mix64, seeded, unit_interval
from clsd.features.schema import Schema
from clsd.features.tokens import with_dictionaries
from clsd.pipeline.preprocess.columns import KEY, LABEL, SPLIT, USER
from clsd.pipeline.shared.config import NegativeSettings

_ATTEMPTS = 64


class Catalogue(beam.CombineFn):  # type: ignore[misc]
    """The items of the training split: one row per item with its columns and its clicks, ordered by item.

    If an item's columns differ between rows, those of the row with the smallest key are used.
    """

    def __init__(self, settings: NegativeSettings) -> None:
        self._item, self._columns = settings.item, [settings.item, *settings.item_columns]

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], batch: pa.RecordBatch) -> list[pa.Table]:
        training = pc.and_(pc.equal(batch.column(SPLIT), 0), pc.is_valid(batch.column(self._item)))
        batch = batch.filter(training)
        rows = pa.Table.from_batches([batch]).select([*dict.fromkeys(self._columns), KEY])
        items = pa.Table.from_batches([with_dictionaries((), rows)]).append_column("_clicks", batch.column(LABEL))
        accumulator.append(self._reduce(items))
        return accumulator if len(accumulator) < 16 else [self._merge(accumulator)]

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        parts = [part for accumulator in accumulators for part in accumulator]
        return [self._merge(parts)] if parts else []

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table | None:
        return self._merge(accumulator).drop_columns([KEY]) if accumulator else None

    def _merge(self, parts: list[pa.Table]) -> pa.Table:
        return self._reduce(pa.concat_tables(parts))

    def _reduce(self, rows: pa.Table) -> pa.Table:
        rows = rows.sort_by([(self._item, "ascending"), (KEY, "ascending")]).combine_chunks()
        codes = (
            pc.dictionary_encode(rows[self._item]).combine_chunks().indices.to_numpy()
            if rows.num_rows
            else np.array([], int)
        )
        first = np.flatnonzero(np.diff(codes, prepend=-1))
        clicks = np.add.reduceat(rows["_clicks"].to_numpy(), first) if len(first) else np.array([], np.int64)
        return rows.take(pa.array(first)).drop_columns(["_clicks"]).append_column("_clicks", pa.array(clicks))


def add_negatives(
    settings: NegativeSettings, schema: Schema, seed: int, batch: pa.RecordBatch, catalogue: pa.Table | None
) -> pa.RecordBatch:
    """Add sampled non-clicks to a batch.

    Args:
        settings: settings of the sampling.
        schema: the schema.
        seed: seed of the draws.
        batch: **all** rows of its users, with their splits.
        catalogue: what :class:`Catalogue` made.

    Returns:
        the batch's rows, then at most ``per_click`` non-clicks a click: fewer only for a user who clicked nearly every
        item, for whom :data:`_ATTEMPTS` draws found none.
    """
    if catalogue is None or catalogue.num_rows == 0 or batch.num_rows == 0:
        return batch
    items = catalogue[settings.item].combine_chunks()
    users = pc.dictionary_encode(batch.column(USER)).indices.to_numpy().astype(np.int64)
    item_codes = pc.fill_null(pc.index_in(batch.column(settings.item), value_set=items), -1).to_numpy().astype(np.int64)
    label = batch.column(LABEL).to_numpy()
    clicks = np.flatnonzero(label == 1)
    clicked_pairs = np.unique((users * len(items) + item_codes)[(label == 1) & (item_codes >= 0)])

    row = np.repeat(clicks, settings.per_click)
    draw = np.tile(np.arange(settings.per_click, dtype=np.uint64), len(clicks))
    keys = mix64(seeded(batch.column(KEY).to_numpy()[row], seed, 0x4E47) ^ mix64(draw))
    drawn = np.full(len(row), -1, np.int64)
    pending = np.arange(len(row))
    weights = catalogue["_clicks"].to_numpy().astype(np.float64)
    popular = settings.source == "popularity" and weights.sum() > 0
    cumulative = np.cumsum(weights) / weights.sum() if popular else None
    for attempt in range(_ATTEMPTS):
        u = unit_interval(seeded(keys[pending], attempt))
        if cumulative is None:
            choice = (u * len(items)).astype(np.int64)
        else:
            choice = np.minimum(np.searchsorted(cumulative, u, side="right"), len(items) - 1)
        clicked = np.isin(users[row[pending]] * len(items) + choice, clicked_pairs)
        drawn[pending[~clicked]] = choice[~clicked]
        pending = pending[clicked]
        if len(pending) == 0:
            break
    result = drawn >= 0
    row, drawn, keys = row[result], pa.array(drawn[result]), keys[result]
    non_clicks = batch.take(pa.array(row))
    replaced = {name: catalogue[name].take(drawn).combine_chunks() for name in [settings.item, *settings.item_columns]}
    replaced |= {KEY: pa.array(keys), LABEL: pa.array(np.zeros(len(row), np.int64))}
    if schema.label in batch.schema.names:
        kind = batch.schema.field(schema.label).type
        replaced[schema.label] = pa.array(np.zeros(len(row), np.int64)).cast(kind)
    if schema.intensity in batch.schema.names:
        replaced[schema.intensity] = pa.nulls(len(row), batch.schema.field(schema.intensity).type)
    columns = [replaced.get(name, non_clicks.column(name)) for name in batch.schema.names]
    sampled = pa.RecordBatch.from_arrays(
        [c.cast(f.type) for c, f in zip(columns, batch.schema, strict=True)], schema=batch.schema
    )
    return pa.Table.from_batches([batch, sampled]).combine_chunks().to_batches()[0]


def keep_share(share: float, seed: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Drop a random ``1 - share`` of the training split's non-clicks.

    The draw depends on the row's key and the seed alone. Validation and test rows stay, so the measured CTR is the one that a
    served model meets; :func:`clsd.models.equations.calibrated_logit` corrects for the sampling.

    Args:
        share: share of non-clicks to keep, in (0, 1).
        seed: seed of the draws.
        batch: rows with their splits.
    """
    drawn = unit_interval(seeded(batch.column(KEY).to_numpy(), seed, 0x4B45))
    kept = (batch.column(LABEL).to_numpy() == 1) | (batch.column(SPLIT).to_numpy() != 0) | (drawn < share)
    return batch.filter(pa.array(kept))
