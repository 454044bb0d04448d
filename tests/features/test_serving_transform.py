"""The serving graph equals the encoder for all inputs: the same ids, and values to 1e-6."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsd.features.encode import encode
from clsd.features.encoded_rows import EncodedRows
from clsd.features.input_pipeline import parse_blocks
from clsd.features.records import parse_block, read_records, serialize_block, write_records
from clsd.features.schema import MISSING_INT, CategoricalFeature, NumericFeature, Schema
from clsd.features.serving_transform import ServingTransform, missing
from clsd.features.tf_runtime import tf
from clsd.features.tokens import arrow_type, coded_as
from clsd.features.transform import NumericState, Transform
from clsd.features.vocabulary import Vocabulary, count


@pytest.fixture(scope="module")
def serving(transform: Transform, tmp_path_factory: pytest.TempPathFactory) -> ServingTransform:
    return ServingTransform(transform, tmp_path_factory.mktemp("assets"))


def _cells(schema: Schema, batch: pa.RecordBatch, name: str) -> list[Any]:
    source = schema.feature(name).source
    return batch.column(source).to_pylist() if source in batch.schema.names else [None] * batch.num_rows


def _raw(serving: ServingTransform, schema: Schema, batch: pa.RecordBatch) -> dict[str, Any]:
    """The batch as the signature's tensors: missing is "", NaN or the int sentinel, lists are padded."""
    out = {}
    for name, spec in serving.signature().items():
        cells, missing = _cells(schema, batch, name), "" if spec.dtype == tf.string else MISSING_INT
        if spec.dtype == tf.float32:
            with np.errstate(over="ignore"):
                out[name] = tf.constant(np.array([np.nan if c is None else c for c in cells]).astype(np.float32))
            continue
        if spec.shape.rank == 1:
            plain: list[Any] = [missing if c is None else c for c in cells]
            out[name] = tf.constant(plain, spec.dtype, shape=[len(cells)])
            continue
        width = max((len(c) for c in cells if c), default=0)
        padded = [[missing if v is None else v for v in (c or [])] for c in cells]
        padded = [row + [missing] * (width - len(row)) for row in padded]
        out[name] = tf.constant(padded, spec.dtype, shape=[len(cells), width])
    return out


def _examples(
    serving: ServingTransform, schema: Schema, batch: pa.RecordBatch, rng: np.random.Generator
) -> list[bytes]:
    """The batch as serialized Examples; what is missing is left out, empty, or marked as missing, in turn."""
    out = []
    for row in batch.to_pylist():
        example = tf.train.Example()
        for name, spec in serving.signature().items():
            cell, feature = row.get(schema.feature(name).source), example.features.feature
            if cell is None and rng.random() < 0.7:
                if rng.random() < 0.3:
                    feature[name].SetInParent()
                continue
            if spec.dtype == tf.float32:
                with np.errstate(over="ignore"):
                    feature[name].float_list.value.append(float(np.float32(np.nan if cell is None else cell)))
                continue
            if spec.shape.rank == 2 and cell is None:
                cell = []
            values = cell if spec.shape.rank == 2 else [cell]
            if spec.dtype == tf.string:
                feature[name].bytes_list.value.extend(b"" if v is None else v.encode() for v in values)
            else:
                feature[name].int64_list.value.extend(MISSING_INT if v is None else v for v in values)
        out.append(example.SerializeToString())
    return out


def _assert_same(got: dict[str, Any], transform: Transform, batch: pa.RecordBatch) -> None:
    ids, values = encode(transform, batch)
    schema = transform.schema
    assert got.keys() == {f.name for f in schema.features}
    for name, at in schema.id_slices.items():
        assert got[name].dtype == tf.int32
        several = name in {feature.name for feature in schema.ragged}
        np.testing.assert_array_equal(got[name].numpy(), ids[:, at] if several else ids[:, at.start], strict=True)
    for place, feature in enumerate(schema.numeric):
        assert got[feature.name].dtype == tf.float32
        np.testing.assert_allclose(got[feature.name], values[:, place], rtol=1e-6, atol=1e-6)


def test_raw_tensors_get_the_encoders_ids_and_values(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    _assert_same(serving(_raw(serving, transform.schema, raw_batch)), transform, raw_batch)


def test_a_single_row_gets_what_it_gets_in_a_batch(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    for row in range(3):
        one = raw_batch.slice(row, 1)
        _assert_same(serving(_raw(serving, transform.schema, one)), transform, one)


def test_examples_get_the_encoders_ids_and_values(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    serialized = _examples(serving, transform.schema, raw_batch, np.random.default_rng(3))
    _assert_same(serving(serving.parse_examples(tf.constant(serialized))), transform, raw_batch)


def test_an_empty_example_is_a_row_of_missing_values(serving: ServingTransform, transform: Transform):
    nothing = {f.source: pa.nulls(2, arrow_type(f)) for f in transform.schema.features}
    serialized = tf.constant([b"", tf.train.Example().SerializeToString()])
    _assert_same(serving(serving.parse_examples(serialized)), transform, pa.record_batch(nothing))


def test_padding_may_stand_anywhere_and_be_any_wide(transform: Transform, serving: ServingTransform):
    rows = {"tags": [["", "a", "", "b"], ["b"]], "ticks": [[MISSING_INT, 3, 5], []], "words": [[], ["", ""]]}
    batch = pa.record_batch(
        {
            "tags": pa.array([["a", "b"], ["b"]], pa.list_(pa.string())),
            "ticks": pa.array([[3, 5], None], pa.list_(pa.int64())),
            "words": pa.array([None, []], pa.list_(pa.string())),
        }
    )
    raw = _raw(serving, transform.schema, batch)
    for name, width in [("tags", 9), ("ticks", 4), ("words", 0)]:
        filler = MISSING_INT if name == "ticks" else ""
        padded = [(row + [filler] * width)[:width] for row in rows[name]]
        raw[name] = tf.constant(padded, raw[name].dtype, shape=[2, width])
    _assert_same(serving(raw), transform, batch)


def test_an_input_that_is_left_out_is_missing(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    schema = transform.schema
    left_out = ["user", "tags", "friends", "slots", "age", "price", "item"]
    raw = {n: v for n, v in _raw(serving, schema, raw_batch).items() if n not in left_out}
    _assert_same(serving(raw), transform, raw_batch.drop_columns(left_out))


def test_candidates_of_requests_get_what_rows_of_their_own_get(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    """Every second feature is the candidate's, of every kind; requests and candidates, one or many."""
    signature = serving.signature()
    candidates = [*signature][::2]
    assert {len(signature[name].shape) for name in candidates} == {1, 2}
    raw, n = _raw(serving, transform.schema, raw_batch), raw_batch.num_rows
    for requests, many in ((1, n), (n, 1), (2, n // 2), (1, 1), (0, 3), (3, 0)):
        users, shown = np.arange(requests), np.arange(requests * many).reshape(requests, many) % n
        asked = {name: tf.gather(x, shown if name in candidates else users) for name, x in raw.items()}
        shared, own, shape = serving.rank(asked, candidates)
        assert shape.numpy().tolist() == [requests, many]
        rows = {
            name: tf.gather(x, shown.ravel() if name in candidates else np.repeat(users, many))
            for name, x in raw.items()
        }
        got = own | {name: tf.repeat(x, many, axis=0) for name, x in shared.items()}
        wanted = serving(rows)
        assert got.keys() == wanted.keys() and not own.keys() & shared.keys()
        for name, x in wanted.items():
            np.testing.assert_allclose(got[name], x, rtol=1e-6, atol=1e-6)  # ids are whole
    specs = serving.rank_signature(candidates)
    assert all(specs[name].shape.rank == signature[name].shape.rank + (name in candidates) for name in signature)


def test_what_a_request_leaves_out_is_one_missing_value(
    serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch
):
    raw = _raw(serving, transform.schema, raw_batch)
    kept = [*raw][:3]
    ones = {
        name: tf.constant(missing(spec.dtype, spec.shape.rank), spec.dtype)
        for name, spec in serving.signature().items()
    }
    absent = [transform.schema.feature(name).source for name in raw if name not in kept]
    left = raw_batch.drop_columns([name for name in dict.fromkeys(absent) if name in raw_batch.schema.names])
    _assert_same(serving({**ones, **{name: raw[name] for name in kept}}), transform, left)


def test_no_rows_give_no_rows(serving: ServingTransform, transform: Transform, raw_batch: pa.RecordBatch):
    none = raw_batch.slice(0, 0)
    _assert_same(serving(_raw(serving, transform.schema, none)), transform, none)
    parsed = serving.parse_examples(tf.constant([], tf.string))
    _assert_same(serving(parsed), transform, none)


def test_every_token_of_a_vocabulary_finds_its_own_id(tmp_path: Path):
    tokens = [
        "\x00",
        "\t",
        " ",
        " a",
        "a ",
        "a",
        "é",
        "e\u0301",
        "\u2028",
        "\x85",
        "\x0b",
        "\x1c",
        "日本",
        "😀",
        "\ufeff",
        "#",
    ]
    counts = count(coded_as(pa.string(), pa.array(tokens)), np.zeros(len(tokens), bool))
    vocabulary = Vocabulary.from_counts(counts, min_count=1, max_size=99)
    transform = Transform(Schema(features=[{"name": "f", "kind": "categorical"}]), {"f": vocabulary})
    serving = ServingTransform(transform, tmp_path / "made" / "here")
    ids = serving({"f": tf.constant([t.encode() for t in vocabulary.tokens.to_pylist()])})["f"]
    assert ids.numpy().tolist() == list(range(3, 3 + len(tokens)))


def test_integers_in_a_text_are_those_of_the_log_however_long(tmp_path: Path):
    bag = {
        "name": "b",
        "kind": "bag",
        "max_length": 9,
        "separator": "|",
        "dtype": "int64",
        "encoding": "hash",
        "size": 997,
    }
    transform = Transform(Schema(features=[bag]))
    text = ["7|007|1234567890123456789|-0|0|-12|-0012|9223372036854775807", ""]
    got = ServingTransform(transform, tmp_path)({"b": tf.constant(text)})
    _assert_same(got, transform, pa.record_batch({"b": text}))
    ids = got["b"]
    assert ids[0, 0] == ids[0, 1] and ids[0, 3] == ids[0, 4] and ids[0, 5] == ids[0, 6] and ids[0, 7] > 0


def test_numbers_alone_have_no_ids(tmp_path: Path):
    transform = Transform(
        Schema(features=[{"name": "x", "kind": "numeric"}]), numerics={"x": NumericState(mean=1.0, sd=2.0)}
    )
    columns = ServingTransform(transform, tmp_path)({"x": tf.constant([5.0, float("nan")])})
    assert {name: x.numpy().tolist() for name, x in columns.items()} == {"x": [2.0, 0.0]}


def test_ids_alone_have_no_numbers(tmp_path: Path):
    features = [{"name": "f", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 3}]
    columns = ServingTransform(Transform(Schema(features=features)), tmp_path)({"f": tf.constant([2], tf.int64)})
    assert {name: x.numpy().tolist() for name, x in columns.items()} == {"f": [5]}


def test_the_signature_leaves_out_what_neither_backbone_nor_adgate_reads(tmp_path: Path):
    hash_of_9 = {"encoding": "hash", "size": 9}
    schema = Schema(
        features=[
            {"name": "seen", "kind": "bag", "max_length": 2, "dtype": "int64", **hash_of_9},
            {"name": "grouped", "kind": "categorical", "input": False, **hash_of_9},
            {"name": "hidden", "kind": "categorical", "input": False, **hash_of_9},
            {"name": "split", "kind": "bag", "max_length": 2, "separator": "|", "dtype": "int64", **hash_of_9},
        ],
        groups=["grouped"],
    )
    signature = ServingTransform(Transform(schema), tmp_path).signature()
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in signature.items()} == {
        "seen": ([None, None], tf.int64),
        "grouped": ([None], tf.string),
        "split": ([None], tf.string),
    }


class _Server(tf.Module):
    """What an export saves, without a model."""

    def __init__(self, transform: ServingTransform) -> None:
        super().__init__()
        self.transform = transform
        specs = transform.signature()
        self.raw = tf.function(lambda **raw: transform(raw))
        self.raw = self.raw.get_concrete_function(**specs)
        self.examples = tf.function(
            lambda examples: transform(transform.parse_examples(examples)),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )


def test_a_saved_graph_gives_the_same_after_its_assets_are_gone(
    transform: Transform, raw_batch: pa.RecordBatch, tmp_path: Path
):
    assets = tmp_path / "assets"
    serving = ServingTransform(transform, assets)
    server = _Server(serving)
    tf.saved_model.save(server, str(tmp_path / "saved"), signatures={"raw": server.raw, "examples": server.examples})
    for file in assets.iterdir():
        file.unlink()
    (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = tf.saved_model.load(str(tmp_path / "moved"))
    schema = transform.schema
    for batch in (raw_batch, raw_batch.slice(0, 0)):
        out = loaded.signatures["raw"](**_raw(serving, schema, batch))
        _assert_same(out, transform, batch)
        serialized = _examples(serving, schema, batch, np.random.default_rng(4))
        out = loaded.signatures["examples"](examples=tf.constant(serialized, tf.string))
        _assert_same(out, transform, batch)


def _cell(feature: Any) -> st.SearchStrategy[Any]:
    """Any value that a log may hold for a feature: all of Unicode, int64 and float64, and what is known to the transform."""
    texts = st.one_of(st.none(), st.sampled_from(["a", "b", "", "rare"]), st.text(max_size=6))
    whole = st.one_of(st.none(), st.integers(-2, 9), st.integers(-(2**63), 2**63 - 1))
    if isinstance(feature, NumericFeature):
        floats = st.one_of(st.floats(), st.sampled_from([1e38, -1e38, 3.4e38, 1e-45, 1e39, 1.7e9, 1.7e9 + 1]))
        return st.one_of(st.none(), floats)
    one = texts if feature.dtype == "string" else whole
    if isinstance(feature, CategoricalFeature):
        return one
    lists = st.lists(one, max_size=2 * feature.max_length)
    if not feature.separator:
        return st.one_of(st.none(), lists)
    # A separator within a value would split it, and the preprocessing job refuses what is no int64.
    part = one.map(lambda v: "" if v is None or v == MISSING_INT else str(v).replace(feature.separator, ""))
    return st.one_of(st.none(), st.lists(part, max_size=6).map(feature.separator.join))


@st.composite
def _batches(draw: st.DrawFn, schema: Schema) -> pa.RecordBatch:
    rows = draw(st.integers(1, 4))
    present = [f for f in schema.features if not f.optional]
    cells = {f.source: [draw(_cell(f)) for _ in range(rows)] for f in present}
    return pa.record_batch({f.source: pa.array(cells[f.source], arrow_type(f)) for f in present})


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_whatever_a_log_holds_training_and_serving_read_the_same(
    data: st.DataObject, serving: ServingTransform, transform: Transform
) -> None:
    """The encoder's rows go through a shard and the training reader unchanged, and the serving graph gives the same."""
    schema = transform.schema
    batch = data.draw(_batches(schema))
    ids, values = encode(transform, batch)
    assert np.isfinite(values).all()
    n = batch.num_rows
    none: Any = np.zeros(n, np.uint64)
    rows = EncodedRows(none, ids, values, none.astype(np.uint8), none, none.astype(np.int64), values[:, 0], _nothing(n))
    file = io.BytesIO()
    write_records(file, iter([serialize_block(schema, rows)]))
    file.seek(0)
    (record,) = read_records(file, "shard")
    read = parse_block(schema, record)
    np.testing.assert_array_equal(read.ids, ids)
    np.testing.assert_array_equal(read.values, values)
    parsed = parse_blocks(schema, tf.constant([record]))
    np.testing.assert_array_equal(parsed["ids"], ids)
    np.testing.assert_array_equal(parsed["values"], values)
    _assert_same(serving(_raw(serving, schema, batch)), transform, batch)


def _nothing(rows: int) -> pa.RecordBatch:
    return pa.table({"x": pa.nulls(rows)}).select([]).to_batches()[0]
