"""Blocks and TFRecord files: TensorFlow and clsd read each other's files, and damage gives a clear error."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from clsd.features.encoded_rows import EncodedRows
from clsd.features.errors import UserError
from clsd.features.input_pipeline import ALL_COLUMNS, parse_blocks
from clsd.features.records import Example, parse_block, read_records, serialize_block, write_records
from clsd.features.schema import Schema
from clsd.features.tf_runtime import tf

MakeRows = Callable[..., EncodedRows]

USER = {"name": "user", "kind": "categorical"}
PRICE = {"name": "price", "kind": "numeric"}
AGE = {"name": "age", "kind": "numeric", "transform": "quantile"}
TAGS = {"name": "tags", "kind": "bag", "max_length": 3}
PAST = {"name": "past", "kind": "sequence", "max_length": 5}

SCHEMAS = {
    "all": Schema(features=[TAGS, PRICE, USER, PAST, AGE], passthrough=["title", "note"]),
    "no numbers": Schema(features=[USER, TAGS]),
    "no ragged": Schema(features=[USER, AGE, PRICE], passthrough=["title"]),
    "ragged alone": Schema(features=[TAGS, PAST]),
    "numbers alone": Schema(features=[PRICE, {**PRICE, "name": "cost"}]),
}
RECORDS = [b"first record", b"", b"the third record"]


def _assert_equal(got: EncodedRows, expected: EncodedRows) -> None:
    for field in fields(EncodedRows):
        if field.name != "passthrough":
            ours, theirs = getattr(got, field.name), getattr(expected, field.name)
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    assert got.passthrough.to_pydict() == expected.passthrough.to_pydict()


def _framed(records: list[bytes]) -> bytes:
    file = io.BytesIO()
    write_records(file, iter(records))
    return file.getvalue()


@pytest.fixture(params=SCHEMAS.values(), ids=SCHEMAS.keys())
def some_schema(request: pytest.FixtureRequest) -> Schema:
    return request.param


def test_tensorflow_reads_our_block_as_an_example(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    rows = make_rows(schema, 20)
    feature = tf.train.Example.FromString(serialize_block(schema, rows)).features.feature
    buffers = {name: f.bytes_list.value[0] for name, f in feature.items() if name != "rows"}
    assert feature["rows"].int64_list.value == [20]
    tags, past = rows.ids[:, 2:5], rows.ids[:, 5:10]
    with pa.ipc.open_stream(buffers.pop("passthrough")) as stream:
        assert stream.read_next_batch().equals(rows.passthrough)
    assert buffers == {
        "ids": rows.ids[:, :2].tobytes(),
        "tags.lengths": np.count_nonzero(tags, axis=1).astype("<i4").tobytes(),
        "tags.ids": tags[tags > 0].tobytes(),
        "past.lengths": np.count_nonzero(past, axis=1).astype("<i4").tobytes(),
        "past.ids": past[past > 0].tobytes(),
        "values": rows.values.tobytes(),
        "label": rows.label.tobytes(),
        "key": rows.key.tobytes(),
        "user": rows.user.tobytes(),
        "timestamp": rows.timestamp.tobytes(),
        "intensity": rows.intensity.tobytes(),
    }


def test_our_message_reads_and_writes_every_kind_of_tensorflows_example():
    theirs = tf.train.Example()
    theirs.features.feature["text"].bytes_list.value.extend([b"a", b"", "é".encode()])
    theirs.features.feature["number"].float_list.value.extend([1.5, -0.0, float("inf")])
    theirs.features.feature["integer"].int64_list.value.extend([2**63 - 1, -1, 0])
    theirs.features.feature["none"].SetInParent()
    ours = Example.FromString(theirs.SerializeToString())
    assert list(ours.features.feature["integer"].int64_list.value) == [2**63 - 1, -1, 0]
    assert ours.features.feature["none"].WhichOneof("kind") is None
    assert tf.train.Example.FromString(ours.SerializeToString()) == theirs
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("n", [0, 1, 33])
def test_a_block_is_read_as_it_was_written(make_rows: MakeRows, some_schema: Schema, n: int):
    rows = make_rows(some_schema, n)
    _assert_equal(parse_block(some_schema, serialize_block(some_schema, rows)), rows)


def test_rows_without_any_ragged_value_come_back(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    rows = make_rows(schema, 4)
    rows.ids[:, schema.fixed_width :] = 0
    block = serialize_block(schema, rows)
    _assert_equal(parse_block(schema, block), rows)
    np.testing.assert_array_equal(parse_blocks(schema, tf.constant([block]))["ids"], rows.ids)


def test_full_ragged_values_come_back(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    rows = make_rows(schema, 4)
    rows.ids[:, schema.fixed_width :] = 7
    _assert_equal(parse_block(schema, serialize_block(schema, rows)), rows)


@pytest.mark.parametrize("sizes", [[5], [3, 0, 4, 1], [0]], ids=str)
def test_tensorflow_parses_blocks_into_the_rows_of_parse_block(
    make_rows: MakeRows, some_schema: Schema, sizes: list[int]
):
    blocks = [serialize_block(some_schema, make_rows(some_schema, n, seed)) for seed, n in enumerate(sizes)]
    expected = EncodedRows.concat([parse_block(some_schema, block) for block in blocks])
    got = {name: tensor.numpy() for name, tensor in parse_blocks(some_schema, tf.constant(blocks), ALL_COLUMNS).items()}
    assert got.keys() == set(ALL_COLUMNS)
    assert got["ids"].dtype == np.int32
    assert got["label"].dtype == np.float32
    for name in ("ids", "values", "label", "timestamp", "intensity"):
        np.testing.assert_array_equal(got[name], getattr(expected, name), err_msg=name)
    for name in ("key", "user"):
        np.testing.assert_array_equal(got[name].view(np.uint64), getattr(expected, name), err_msg=name)


def test_only_the_columns_asked_for_are_decoded(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    block = serialize_block(schema, make_rows(schema, 3))
    assert parse_blocks(schema, tf.constant([block]), ["values"]).keys() == {"values"}
    assert parse_blocks(schema, tf.constant([block]), ["key", "ids"]).keys() == {"key", "ids"}


def test_equal_rows_give_equal_bytes_however_they_lie_in_memory(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    rows = make_rows(schema, 40)
    part = rows.take(slice(13, 30))
    built = replace(
        rows.take(np.arange(40) % 40 > 12).take(np.arange(17)),
        ids=np.asfortranarray(part.ids),
        values=part.values.astype(">f4"),
        passthrough=pa.RecordBatch.from_pydict(part.passthrough.to_pydict(), schema=part.passthrough.schema),
    )
    assert serialize_block(schema, part) == serialize_block(schema, built)


def test_the_entries_of_a_block_are_in_one_order(make_rows: MakeRows):
    block = serialize_block(SCHEMAS["all"], make_rows(SCHEMAS["all"], 3))
    assert block == tf.train.Example.FromString(block).SerializeToString(deterministic=True)


def test_a_block_holds_nothing_of_its_neighbours(make_rows: MakeRows):
    schema = SCHEMAS["no ragged"]
    rows = make_rows(schema, 40)
    block = serialize_block(schema, rows.take(slice(10, 12)))
    assert "title é 10".encode() in block
    assert "title é 12".encode() not in block
    assert "title é 9".encode() not in block


def test_one_changed_value_changes_the_bytes(make_rows: MakeRows):
    schema = SCHEMAS["all"]
    rows = make_rows(schema, 5)
    changed = rows.intensity.copy()
    changed[4] = 9.0
    assert serialize_block(schema, rows) != serialize_block(schema, replace(rows, intensity=changed))


def test_rows_are_taken_by_position_mask_and_slice(make_rows: MakeRows):
    rows = make_rows(SCHEMAS["all"], 9)
    mask = np.arange(9) % 2 == 0
    _assert_equal(rows.take(mask), rows.take(np.array([0, 2, 4, 6, 8])))
    _assert_equal(rows.take(slice(2, 5)), rows.take(np.array([2, 3, 4])))
    assert rows.take(np.array([8, 0])).key.tolist() == [1008, 1000]
    assert rows.take(np.array([8, 0])).passthrough["note"].to_pylist() == [None, "note é 0"]


def test_concatenated_parts_are_the_whole(make_rows: MakeRows):
    rows = make_rows(SCHEMAS["all"], 9)
    _assert_equal(EncodedRows.concat([rows.take(slice(0, 4)), rows.take(slice(4, 4)), rows.take(slice(4, 9))]), rows)
    assert len(EncodedRows.concat([rows.take(slice(3, 3))])) == 0


def test_the_shuffle_does_not_depend_on_the_order_of_arrival(make_rows: MakeRows):
    rows = make_rows(SCHEMAS["all"], 50)
    mixed = rows.take(np.random.default_rng(1).permutation(50))
    assert (mixed.key != rows.key).any()
    _assert_equal(mixed.sorted_by_key(), rows)


def test_tensorflow_reads_our_file(tmp_path: Path):
    (tmp_path / "ours").write_bytes(_framed(RECORDS))
    assert list(tf.data.TFRecordDataset(str(tmp_path / "ours")).as_numpy_iterator()) == RECORDS


def test_we_read_tensorflows_file_and_write_the_same_bytes(tmp_path: Path):
    path = tmp_path / "theirs"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in RECORDS:
            writer.write(record)
    with path.open("rb") as file:
        assert list(read_records(file, str(path))) == RECORDS
    assert path.read_bytes() == _framed(RECORDS)


def test_what_was_written_is_counted_and_summed():
    file = io.BytesIO()
    written = write_records(file, iter(RECORDS))
    first = google_crc32c.value(RECORDS[0])
    assert written == (3, len(file.getvalue()), google_crc32c.value(file.getvalue()), first)
    assert write_records(io.BytesIO(), iter([])) == (0, 0, 0, 0)


def test_an_empty_file_has_no_records():
    assert list(read_records(io.BytesIO(), "empty")) == []


def _read_until_damage(data: bytes) -> tuple[list[bytes], UserError | None]:
    got: list[bytes] = []
    try:
        for record in read_records(io.BytesIO(data), "shard-7"):
            got.append(record)
    except UserError as error:
        return got, error
    return got, None


def _ends() -> list[int]:
    return np.cumsum([len(record) + 16 for record in RECORDS]).tolist()


def _assert_damage_named(got: list[bytes], error: Any, record: int) -> None:
    assert got == RECORDS[:record]  # the whole ones before it are handed out
    assert error is not None
    assert error.where == "shard-7"
    assert f"record {record} is damaged" in error.what
    assert error.hint


def test_a_file_cut_anywhere_inside_a_record_is_refused():
    whole, ends = _framed(RECORDS), _ends()
    for cut in set(range(1, len(whole))) - set(ends):
        got, error = _read_until_damage(whole[:cut])
        _assert_damage_named(got, error, sum(cut > end for end in ends))


def test_any_flipped_bit_is_found():
    whole, ends = _framed(RECORDS), _ends()
    for bit in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        got, error = _read_until_damage(bytes(altered))
        _assert_damage_named(got, error, sum(bit // 8 >= end for end in ends))


def test_the_message_says_which_part_is_damaged():
    whole = _framed(RECORDS)
    header, data = bytearray(whole), bytearray(whole)
    header[3] ^= 1
    data[14] ^= 1
    messages = [str(_read_until_damage(bytes(d))[1]) for d in (header, data, whole[:5], whole[:20])]
    assert ["header" in m for m in messages] == [True, False, True, False]
    assert ["checksum" in m for m in messages] == [False, True, False, False]
    assert ["ends inside" in m for m in messages] == [False, False, False, True]


@pytest.mark.parametrize("n", [0, 1, 37])
def test_rows_are_the_same_after_a_way_through_arrow(
    schema: Schema, make_rows: Callable[..., EncodedRows], tmp_path: Path, n: int
) -> None:
    rows = make_rows(schema, n)
    with pa.ipc.new_file(tmp_path / "rows.arrow", rows.to_batch().schema) as writer:
        writer.write_batch(make_rows(schema, 5).to_batch())
        writer.write_batch(rows.to_batch())
    result = EncodedRows.from_batch(pa.ipc.open_file(tmp_path / "rows.arrow").get_batch(1))
    for name in ("key", "ids", "values", "label", "user", "timestamp", "intensity"):
        np.testing.assert_array_equal(getattr(result, name), getattr(rows, name))
        assert getattr(result, name).dtype == getattr(rows, name).dtype
    assert result.passthrough.equals(rows.passthrough)


def test_rows_without_numbers_go_through_arrow_too(make_rows: Callable[..., EncodedRows]) -> None:
    rows = make_rows(Schema(features=[{"name": "f", "kind": "categorical"}]), 4)
    assert EncodedRows.from_batch(rows.to_batch()).values.shape == (4, 0)
