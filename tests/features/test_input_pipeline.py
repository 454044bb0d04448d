"""The training reader: each row once per epoch, in batches of one shape, in an order that depends on the seed only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.encoded_rows import EncodedRows
from clsd.features.epoch_order import EpochOrder
from clsd.features.input_pipeline import ALL_COLUMNS, read_batches
from clsd.features.records import serialize_block, write_records
from clsd.features.schema import Schema
from clsd.features.tf_runtime import tf

MakeRows = Callable[..., EncodedRows]

USER = {"name": "user", "kind": "categorical"}
PRICE = {"name": "price", "kind": "numeric"}
TAGS = {"name": "tags", "kind": "bag", "max_length": 3}
PAST = {"name": "past", "kind": "sequence", "max_length": 5}
SCHEMA = Schema(features=[TAGS, PRICE, USER, PAST])
BLOCK = 8


def _write(directory: Path, schema: Schema, rows: EncodedRows, cuts: Sequence[int] = ()) -> list[str]:
    """Files of rows[: cuts[0]], rows[cuts[0] : cuts[1]] ..., in blocks of 8 rows."""
    files = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        blocks = [rows.take(slice(at, min(at + BLOCK, stop))) for at in range(start, stop, BLOCK)]
        path = directory / f"rows-{len(files)}.tfrecord"
        with path.open("wb") as file:
            write_records(file, (serialize_block(schema, block) for block in blocks))
        files.append(str(path))
    return files


def _read(schema: Schema, files: list[str], batch_size: int, **options: Any) -> list[dict[str, Any]]:
    options = {"columns": ALL_COLUMNS, "rows_per_block": BLOCK, **options}
    return list(read_batches(schema, files, batch_size, **options).as_numpy_iterator())


def _keys(read: list[dict[str, Any]]) -> list[int]:
    """Keys of the rows that are valid, in the order read; make_rows numbers them from 1000."""
    return [int(k) - 1000 for batch in read for k in batch["key"][batch["valid"] > 0]]


@pytest.fixture(scope="module")
def rows(make_rows: MakeRows) -> EncodedRows:
    return make_rows(SCHEMA, 101)


@pytest.fixture(scope="module")
def one_file(rows: EncodedRows, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return _write(tmp_path_factory.mktemp("one"), SCHEMA, rows)


@pytest.fixture(scope="module")
def six_files(rows: EncodedRows, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of 30, 1, 19, 0, 31 and 20 rows."""
    return _write(tmp_path_factory.mktemp("six"), SCHEMA, rows, [30, 31, 50, 50, 81])


def test_one_file_is_read_in_the_order_on_disk(one_file: list[str]):
    assert _keys(_read(SCHEMA, one_file, 10)) == list(range(101))


@pytest.mark.parametrize("batch_size", [1, 7, 8, 20, 101])
def test_every_row_comes_once_whatever_the_batch_size(one_file: list[str], batch_size: int):
    read = _read(SCHEMA, one_file, batch_size)
    assert len(read) == -(-101 // batch_size)
    assert _keys(read) == list(range(101))


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_every_row_of_several_files_comes_once(six_files: list[str], seed: int | None):
    assert sorted(_keys(_read(SCHEMA, six_files, 16, shuffle_seed=seed))) == list(range(101))


def test_files_are_read_a_block_in_turn(rows: EncodedRows, tmp_path: Path):
    files = _write(tmp_path, SCHEMA, rows.take(slice(0, 56)), [24, 32])
    blocks = [0, 24, 32, 8, 40, 16, 48]
    assert _keys(_read(SCHEMA, files, 5)) == [key for at in blocks for key in range(at, at + 8)]


def test_only_the_last_batch_is_padded_and_with_zeros(one_file: list[str]):
    *full, last = _read(SCHEMA, one_file, 16)
    assert all((batch["valid"] == 1).all() for batch in full)
    assert last["valid"].tolist() == [1.0] * 5 + [0.0] * 11
    for name in ALL_COLUMNS:
        assert (last[name][5:] == 0).all(), name


def test_a_batch_larger_than_the_data_holds_it_all(one_file: list[str], rows: EncodedRows):
    (batch,) = _read(SCHEMA, one_file, 1000)
    assert batch["valid"].sum() == 101
    assert batch["ids"].shape == (1000, SCHEMA.width)
    np.testing.assert_array_equal(batch["ids"][:101], rows.ids)


@pytest.mark.parametrize("seed", [None, 3])
def test_every_column_stays_with_its_row(six_files: list[str], rows: EncodedRows, seed: int | None):
    read = _read(SCHEMA, six_files, 16, shuffle_seed=seed)
    got = {name: np.concatenate([b[name][b["valid"] > 0] for b in read]) for name in ALL_COLUMNS}
    order = got["key"] - 1000
    for name in ("ids", "values", "label", "timestamp", "intensity"):
        np.testing.assert_array_equal(got[name], getattr(rows, name)[order], err_msg=name)
    np.testing.assert_array_equal(got["user"].view(np.uint64), rows.user[order])


def test_bags_and_sequences_are_padded_on_the_right(one_file: list[str], rows: EncodedRows):
    ids = np.concatenate([b["ids"] for b in _read(SCHEMA, one_file, 16)])[:101]
    for name in ("tags", "past"):
        there = ids[:, SCHEMA.id_slices[name]] > 0
        assert (there[:, 1:] <= there[:, :-1]).all()
        assert 0 < there.mean() < 1
    np.testing.assert_array_equal(ids, rows.ids)


def test_a_seed_gives_the_same_order_twice(six_files: list[str]):
    first, second = (_keys(_read(SCHEMA, six_files, 16, shuffle_seed=11)) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_order(six_files: list[str]):
    orders = [_keys(_read(SCHEMA, six_files, 16, shuffle_seed=seed)) for seed in (None, 0, 1, 2**40)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_seed_mixes_the_blocks_and_the_rows_in_them(one_file: list[str]):
    keys = np.array(_keys(_read(SCHEMA, one_file, BLOCK, shuffle_seed=2)))  # one block is parsed at a time
    blocks = list(dict.fromkeys((keys // BLOCK).tolist()))
    assert sorted(blocks) == list(range(13))
    assert blocks != sorted(blocks)
    first_block = keys[keys // BLOCK == 0]
    assert sorted(first_block) == list(range(BLOCK))
    assert first_block.tolist() != sorted(first_block)


def test_a_seed_mixes_the_files(six_files: list[str]):
    firsts = {
        _keys(_read(SCHEMA, six_files, BLOCK, shuffle_seed=seed, shuffle_blocks=1))[0] // BLOCK for seed in range(6)
    }
    assert len(firsts) > 1


def test_a_shuffled_row_order_does_not_depend_on_the_first_column(one_file: list[str]):
    asked = _read(SCHEMA, one_file, 16, shuffle_seed=4, columns=["label", "key"])
    assert _keys(asked) == _keys(_read(SCHEMA, one_file, 16, shuffle_seed=4))


FILE_ROWS = [30, 1, 19, 0, 31, 20]


@pytest.mark.parametrize("batch_size", [3, 8, 16, 50])
@pytest.mark.parametrize("shuffle_blocks", [1, 4, 512])
def test_an_epoch_that_is_begun_in_the_middle_is_the_rest_of_the_whole(
    six_files: list[str], batch_size: int, shuffle_blocks: int
):
    options: dict[str, Any] = {"shuffle_seed": 9, "shuffle_blocks": shuffle_blocks, "file_rows": FILE_ROWS}
    whole = _read(SCHEMA, six_files, batch_size, **options)
    for first in range(1, len(whole), max(1, len(whole) // 6)):
        rest = _read(SCHEMA, six_files, batch_size, first_batch=first, **options)
        assert len(rest) == len(whole) - first
        for mine, theirs in zip(rest, whole[first:], strict=True):
            for name, column in theirs.items():
                np.testing.assert_array_equal(mine[name], column, err_msg=f"{name} of a batch after {first}")


def test_an_epoch_that_is_begun_in_the_middle_reads_nothing_of_what_came_before_its_window(
    rows: EncodedRows, tmp_path: Path
):
    files = _write(tmp_path, SCHEMA, rows, [40])
    options: dict[str, Any] = {"shuffle_seed": 4, "shuffle_blocks": 2, "file_rows": [40, 61]}
    whole = _keys(_read(SCHEMA, files, BLOCK, **options))
    first, second = EpochOrder(4, 1, 2).files(2)
    Path(files[first]).unlink()  # whoever opens it fails
    start = EpochOrder(4, 1, 2).find(80, [40, 61], BLOCK)
    assert (start.file, start.record > 0) == (1, True)
    with Path(files[second]).open("r+b") as file:
        file.seek(12)
        file.write(bytes(50))  # whoever reads the first record finds it damaged
    Path(files[first]).touch()
    assert _keys(_read(SCHEMA, files, BLOCK, first_batch=10, **options)) == whole[80:]


def test_a_compressed_epoch_that_is_begun_in_the_middle_is_the_rest_of_the_whole(rows: EncodedRows, tmp_path: Path):
    path = tmp_path / "rows.tfrecord.gz"
    blocks = (serialize_block(SCHEMA, rows.take(slice(at, at + BLOCK))) for at in range(0, 101, BLOCK))
    with path.open("wb") as file:
        write_records(file, blocks, gzipped=True)
    options: dict[str, Any] = {"shuffle_seed": 4, "shuffle_blocks": 2, "file_rows": [101]}
    whole = _keys(_read(SCHEMA, [str(path)], BLOCK, **options))
    assert _keys(_read(SCHEMA, [str(path)], BLOCK, first_batch=9, **options)) == whole[72:]


def test_every_batch_has_the_same_static_shape(one_file: list[str]):
    spec = read_batches(SCHEMA, one_file, 16).element_spec
    assert {name: (tensor.shape.as_list(), tensor.dtype) for name, tensor in spec.items()} == {
        "ids": ([16, 9], tf.int32),
        "values": ([16, 1], tf.float32),
        "label": ([16], tf.float32),
        "valid": ([16], tf.float32),
    }


@pytest.mark.parametrize(
    "schema",
    [
        Schema(features=[USER, TAGS]),
        Schema(features=[USER]),
        Schema(features=[TAGS, PAST, PRICE]),
        Schema(features=[TAGS]),
        Schema(features=[PRICE]),
    ],
    ids=["no numbers", "one id", "no fixed ids", "one bag", "no ids"],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_schema_may_lack_a_sort_of_column(make_rows: MakeRows, tmp_path: Path, schema: Schema, seed: int | None):
    rows = make_rows(schema, 21)
    read = _read(schema, _write(tmp_path, schema, rows), 16, shuffle_seed=seed)
    assert [b["ids"].shape for b in read] == [(16, schema.width)] * 2
    assert [b["values"].shape for b in read] == [(16, len(schema.numeric))] * 2
    order = _keys(read)
    assert sorted(order) == list(range(21))
    np.testing.assert_array_equal(np.concatenate([b["ids"] for b in read])[:21], rows.ids[order])
    np.testing.assert_array_equal(np.concatenate([b["values"] for b in read])[:21], rows.values[order])


def test_files_without_records_give_no_batches(make_rows: MakeRows, tmp_path: Path):
    assert _read(SCHEMA, _write(tmp_path, SCHEMA, make_rows(SCHEMA, 0)), 4) == []
