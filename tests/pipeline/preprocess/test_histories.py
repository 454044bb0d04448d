"""Histories compared with a plain loop over the log: the user's newest clicks strictly before the row, on any engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.errors import UserError
from clsd.features.schema import Schema
from clsd.pipeline.preprocess.columns import KEY, LABEL, TIME, USER
from clsd.pipeline.preprocess.histories import add_histories
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset

Make = Callable[..., Config]
ITEM = {"name": "item", "kind": "categorical"}
LAST_3 = {"name": "last", "kind": "sequence", "max_length": 3, "share": "item", "clicks_of": "item"}
ROLES = {"user": "user", "timestamp": "t"}


def _batch(rows: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    items = [None if rng.random() < 0.1 else f"i{i}" for i in rng.integers(0, 9, rows)]
    columns = {
        "item": pa.array(items, pa.string()),
        USER: pa.array([f"u{i}" for i in rng.integers(0, 5, rows)]),
        TIME: pa.array(rng.integers(0, rows // 3 + 1, rows)),
        LABEL: pa.array((rng.random(rows) < 0.4).astype(np.int64)),
        KEY: pa.array(np.arange(rows).astype(np.uint64)),
    }
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("rows", [1, 2, 40, 500])
def test_a_history_is_the_users_last_clicks_strictly_before(rows: int) -> None:
    batch = _batch(rows, seed=rows)
    made = add_histories(Schema(features=[ITEM, LAST_3], **ROLES), batch).column("last").to_pylist()
    log = batch.to_pylist()
    for row, result in zip(log, made, strict=True):
        clicks = [r for r in log if r[LABEL] == 1 and r[USER] == row[USER] and r[TIME] < row[TIME] and r["item"]]
        clicks.sort(key=lambda r: (r[TIME], r[KEY]))
        assert result == [r["item"] for r in clicks][-3:]


def test_an_empty_batch_has_empty_histories() -> None:
    schema = Schema(features=[ITEM, LAST_3], **ROLES)
    assert add_histories(schema, _batch(5, 1).slice(0, 0)).column("last").to_pylist() == []


@pytest.mark.parametrize(
    ("changes", "roles", "message"),
    [
        (
            {"clicks_of": "itm"},
            ROLES,
            "'itm' is not a column of type string that a feature reads; did you mean 'item'?",
        ),
        ({}, {"user": "user"}, "needs user and timestamp"),
        ({"separator": ","}, ROLES, "leave out separator and optional"),
        ({"dtype": "int64", "share": ""}, ROLES, "'item' is not a column of type int64"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict[str, Any], roles: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Schema(features=[ITEM, {**LAST_3, **changes}], **roles)


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    history = {**LAST_3, "name": "history", "share": "item_id", "clicks_of": "item_id", "max_length": 4}
    rows = small_config.row_schema.model_dump(mode="python")
    features = [*rows["features"], history]
    return small_config.model_copy(update={"row_schema": Schema.model_validate({**rows, "features": features})})


@pytest.fixture(scope="module")
def dataset(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return preprocess(config, tmp_path_factory.mktemp("histories") / "dataset")


def test_the_job_encodes_the_histories_of_the_log(config: Config, dataset: Dataset) -> None:
    log = [json.loads(line) for line in Path(config.logs.files[0]).read_text().splitlines()]
    names = dataset.transform.id_names("item_id")
    clicks: dict[str, list[tuple[int, str]]] = {}
    for row in log:
        if row["click"]:
            clicks.setdefault(row["user_id"], []).append((row["timestamp"], row["item_id"]))
    seen = 0
    for split in dataset.splits:
        rows = dataset.read(split)
        users = dataset.transform.id_names("user_id")
        for i in range(len(rows)):
            user = users[rows.ids[i, dataset.schema.id_slices["user_id"].start]]
            now = rows.timestamp[i] // 1_000_000
            before = sorted(c for c in clicks.get(user, []) if c[0] < now)
            if len({t for t, _ in before[-5:]}) < len(before[-5:]):
                continue  # clicks of one instant stand in the order of their keys
            expected = [item if item in names else "(unknown)" for _, item in before[-4:]]
            result = rows.ids[i, dataset.schema.id_slices["history"]]
            assert [names[k] for k in result if k] == expected
            seen += bool(expected)
    assert seen > 1000


def test_workers_do_not_change_the_histories(config: Config, dataset: Dataset, tmp_path: Path) -> None:
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    again = preprocess(config, tmp_path / "dataset", beam_options=options)
    for split in dataset.splits:
        mine, theirs = dataset.read(split), again.read(split)
        np.testing.assert_array_equal(mine.key, theirs.key)
        np.testing.assert_array_equal(mine.ids, theirs.ids)


def test_the_golden_rows_have_them_too(dataset: Dataset) -> None:
    assert pa.types.is_list(dataset.golden().schema.field("history").type)


def test_a_column_of_that_name_in_the_log_is_a_mistake(config: Config, tmp_path: Path) -> None:
    """The log's own lists would be hidden by those that are made."""
    lines = [json.loads(line) | {"history": ["x"]} for line in Path(config.logs.files[0]).read_text().splitlines()]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    logs = config.logs.model_copy(update={"files": [str(tmp_path / "log.jsonl")]})
    with pytest.raises(UserError, match="has a column 'history' already"):
        preprocess(config.model_copy(update={"logs": logs}), tmp_path / "dataset")
