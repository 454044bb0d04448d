"""Backbones compared with their formulas in NumPy, with the layers' weights, row by row and pair by pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.models.backbones.fibinet import FiBiNET
from clsd.models.input_spec import Field, InputSpec

MakeBatch = Callable[..., dict[str, Any]]
Built = Callable[..., tuple[Any, dict[str, Any]]]
FieldVectors = Callable[..., np.ndarray]

DIM = 4


def _kernel(layer: Any) -> np.ndarray:
    return layer.kernel.numpy().astype(np.float64)


def _dense(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ _kernel(layer) + (layer.bias.numpy() if layer.use_bias else 0.0)


def _mlp(layers: Any, x: np.ndarray) -> np.ndarray:
    for layer in layers.layers:
        x = np.maximum(_dense(layer, x), 0.0)
    return x


def _head(model: Any, x: np.ndarray) -> float:
    return float(_dense(model.head, _mlp(model.deep, x))[0])


def _numbers(spec: InputSpec, batch: dict[str, Any]) -> np.ndarray:
    at = [spec.value_columns[field.name] for field in spec.fields if field.kind == "number"]
    return batch["values"][:, at].astype(np.float64)


def _without(spec: InputSpec, *kinds: str) -> InputSpec:
    return dataclasses.replace(spec, fields=tuple(field for field in spec.fields if field.kind not in kinds))


def _assert_logits(model: Any, inputs: Any, expected: Any) -> None:
    expected = np.asarray(expected)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- factorisation, crosses


def test_deepfm_is_its_formula(
    spec: InputSpec, make_batch: MakeBatch, built: Built, field_vectors: FieldVectors
) -> None:
    batch = make_batch()
    model, inputs = built(spec, batch, "deepfm", hidden_units=[6, 5])
    ids, x = field_vectors(model.embedding, spec, batch), _numbers(spec, batch)
    of_numbers = x[:, :, None] * model.number_vectors.vectors.numpy()
    assert ids.shape[1:] == (5, DIM + 1) and of_numbers.shape[1:] == (2, DIM + 1)
    rows = np.concatenate([ids, of_numbers], axis=1)
    first, v = rows[:, :, -1].sum(axis=1), rows[:, :, :-1]
    n = v.shape[1]
    pairs = sum((v[:, i] * v[:, j]).sum(axis=1) for i in range(n) for j in range(i + 1, n))
    read = np.concatenate([ids[:, :, :-1].reshape(len(ids), -1), x * model.flat.scales.numpy()], axis=1)
    deep = _dense(model.head, _mlp(model.deep, read))[:, 0]
    np.testing.assert_allclose(model(inputs), first + pairs + deep, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("rank", [None, 3])
def test_dcn_v2_is_its_formula(
    spec: InputSpec, make_batch: MakeBatch, built: Built, field_vectors: FieldVectors, structure: str, rank: int | None
) -> None:
    batch = make_batch()
    options = {"cross_layers": 2, "projection_dim": rank, "hidden_units": [6, 5], "structure": structure}
    model, inputs = built(spec, batch, "dcn_v2", **options)
    flat = field_vectors(model.embedding, spec, batch).reshape(len(batch["ids"]), -1)
    x0 = np.concatenate([flat, _numbers(spec, batch) * model.flat.scales.numpy()], axis=1)
    x = x0
    for cross in model.crosses:
        kernels = [v.numpy().astype(np.float64) for v in cross.trainable_variables if "kernel" in v.name]
        (bias,) = [v.numpy() for v in cross.trainable_variables if "bias" in v.name]
        assert [k.shape for k in kernels] == ([(22, 22)] if rank is None else [(22, rank), (rank, 22)])
        x = x0 * (x @ np.linalg.multi_dot([*kernels, np.eye(22)]) + bias) + x
    top = np.concatenate([x, _mlp(model.deep, x0)], axis=1) if structure == "parallel" else _mlp(model.deep, x)
    np.testing.assert_allclose(model(inputs), _dense(model.head, top)[:, 0], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- Wide & Deep


@pytest.mark.parametrize("without", [(), ("number",), ("id", "bag", "sequence")])
def test_wide_deep_is_its_formula(
    spec: InputSpec, make_batch: MakeBatch, built: Built, field_vectors: FieldVectors, without: tuple[str, ...]
) -> None:
    batch, spec = make_batch(), _without(spec, *without)
    model, inputs = built(spec, batch, "wide_deep", hidden_units=[6, 5])
    expected = []
    for row, x in zip(field_vectors(model.embedding, spec, batch), _numbers(spec, batch), strict=True):
        wide = sum(field[-1] for field in row)
        if len(x):
            wide += x @ model.number_weights.vectors.numpy()[:, 0]
        expected.append(
            wide + _head(model, np.concatenate([*(field[:-1] for field in row), x * model.flat.scales.numpy()]))
        )
    _assert_logits(model, inputs, expected)


# ---------------------------------------------------------------- FiBiNET


@pytest.mark.parametrize("kind", ["field_all", "field_each", "field_interaction"])
@pytest.mark.parametrize(("ratio", "squeezed"), [(3, 2), (100, 1)])
def test_fibinet_is_its_formula(
    spec: InputSpec,
    make_batch: MakeBatch,
    built: Built,
    field_vectors: FieldVectors,
    kind: str,
    ratio: int,
    squeezed: int,
) -> None:
    batch = make_batch()
    model, inputs = built(spec, batch, "fibinet", bilinear=kind, reduction_ratio=ratio, hidden_units=[6, 5])
    assert model.squeeze.kernel.shape == (7, squeezed) and model.excite.kernel.shape == (squeezed, 7)
    shape = {"field_all": (DIM, DIM), "field_each": (6, DIM, DIM), "field_interaction": (21, DIM, DIM)}[kind]
    assert model.interact.kernel.shape == model.interact_weighted.kernel.shape == shape

    def interactions(layer: Any, vectors: list[np.ndarray]) -> list[np.ndarray]:
        out = []
        for i in range(7):
            for j in range(i + 1, 7):
                matrix = {
                    "field_all": lambda: _kernel(layer),
                    "field_each": lambda i=i: _kernel(layer)[i],
                    "field_interaction": lambda: _kernel(layer)[len(out)],
                }[kind]()
                mapped = [sum(vectors[i][d] * matrix[d, e] for d in range(DIM)) for e in range(DIM)]
                out.append(np.array(mapped) * vectors[j])
        return out

    expected, weighted = [], 0
    for row in field_vectors(model.embedding, spec, batch):
        vectors = [field[:-1] for field in row]
        z = np.array([vector.mean() for vector in vectors])
        importance = np.maximum(np.maximum(z @ _kernel(model.squeeze), 0) @ _kernel(model.excite), 0)
        weighted += importance.any()
        p = interactions(model.interact, vectors)
        q = interactions(model.interact_weighted, [a * v for a, v in zip(importance, vectors, strict=True)])
        expected.append(sum(field[-1] for field in row) + _head(model, np.concatenate([*p, *q])))
    assert weighted > len(expected) / 4  # a dead SENET would test half of the formula
    _assert_logits(model, inputs, expected)


def test_fibinets_bilinear_weights_start_at_one_scale_whatever_their_number(
    spec: InputSpec, make_batch: MakeBatch, built: Built
) -> None:
    for kind in ("field_all", "field_each", "field_interaction"):
        model = FiBiNET(spec, 16, bilinear=kind)
        model(built(spec, make_batch(), "wide_deep")[1])
        for layer in (model.interact, model.interact_weighted):
            assert np.abs(_kernel(layer)).max() == pytest.approx(math.sqrt(6 / (16 + 16)), rel=0.05)
        assert not np.array_equal(_kernel(model.interact), _kernel(model.interact_weighted))


# ---------------------------------------------------------------- AutoInt


@pytest.mark.parametrize(("layers", "heads", "dim"), [(1, 1, 3), (2, 2, 3)])
@pytest.mark.parametrize("hidden", [[6, 5], []])
def test_autoint_is_its_formula(
    spec: InputSpec,
    make_batch: MakeBatch,
    built: Built,
    field_vectors: FieldVectors,
    layers: int,
    heads: int,
    dim: int,
    hidden: list[int],
) -> None:
    batch = make_batch(rows=12)
    options = {"attention_layers": layers, "heads": heads, "attention_dim": dim, "hidden_units": hidden}
    model, inputs = built(spec, batch, "autoint", **options)
    assert len(model.attention) == layers and (model.deep is None) == (not hidden)

    def attend(layer: Any, fields: np.ndarray) -> np.ndarray:
        out = []
        for m in range(len(fields)):
            result = []
            for head in range(heads):
                own = slice(head * dim, (head + 1) * dim)
                query = fields[m] @ _kernel(layer.query)[:, own]
                alike = [math.exp(query @ (e @ _kernel(layer.key)[:, own])) for e in fields]
                values = [e @ _kernel(layer.value)[:, own] for e in fields]
                result.append(sum(a * v for a, v in zip(alike, values, strict=True)) / sum(alike))
            out.append(np.maximum(np.concatenate(result) + fields[m] @ _kernel(layer.residual), 0))
        return np.array(out)

    expected = []
    for row in field_vectors(model.embedding, spec, batch):
        attended = row
        for layer in model.attention:
            attended = attend(layer, attended)
        parts = [attended.ravel()] + ([_mlp(model.deep, row.ravel())] if hidden else [])
        expected.append(_dense(model.head, np.concatenate(parts))[0])
    _assert_logits(model, inputs, expected)


# ---------------------------------------------------------------- DLRM


@pytest.mark.parametrize("bottom", [[7], []])
@pytest.mark.parametrize("without", [(), ("number",)])
def test_dlrm_is_its_formula(
    spec: InputSpec,
    make_batch: MakeBatch,
    built: Built,
    field_vectors: FieldVectors,
    bottom: list[int],
    without: tuple[str, ...],
) -> None:
    batch, spec = make_batch(), _without(spec, *without)
    batch["values"][:3] = 0.0  # missing
    model, inputs = built(spec, batch, "dlrm", bottom_units=bottom, hidden_units=[16, 8])
    assert len(spec.embedded) == 5 and not model.embedding._numbers
    expected = []
    for row, numbers in zip(field_vectors(model.embedding, spec, batch), batch["values"], strict=True):
        vectors = list(row)
        if not without:
            vectors.insert(0, np.maximum(_dense(model.bottom_out, _mlp(model.bottom, numbers)), 0))
        dots = [sum(vectors[i] * vectors[j]) for i in range(len(vectors)) for j in range(i)]
        expected.append(_head(model, np.concatenate([vectors[0], dots] if not without else [dots])))
    _assert_logits(model, inputs, expected)


# ---------------------------------------------------------------- DIN


def _interest(layer: Any, table: np.ndarray, history: np.ndarray, target: np.ndarray, softmax: bool) -> np.ndarray:
    keys = [table[i] for i in history if i != 0]
    weights = []
    for k in keys:
        hidden = _mlp(layer.hidden, np.concatenate([k, target, k - target, k * target]))
        weights.append(float(_dense(layer.out, hidden)[0]))
    if softmax and keys:
        weights = [math.exp(w) / sum(math.exp(other) for other in weights) for w in weights]
    return sum((w * k for w, k in zip(weights, keys, strict=True)), np.zeros(DIM))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("units", [[5, 3], []])
@pytest.mark.parametrize("without", [(), ("number",)])
def test_din_is_its_formula(
    spec: InputSpec,
    make_batch: MakeBatch,
    built: Built,
    field_vectors: FieldVectors,
    softmax: bool,
    units: list[int],
    without: tuple[str, ...],
) -> None:
    batch, spec = make_batch(), _without(spec, *without)
    batch["ids"][0, 7:11] = 0  # an empty history
    batch["ids"][1, 7:11] = [5, 0, 0, 0]
    model, inputs = built(spec, batch, "din", attention_units=units, softmax=softmax, hidden_units=[6, 5])
    items = model.embedding.tables["item"].embeddings.numpy().astype(np.float64)
    (layer,) = model.interests
    expected = []
    rows = zip(field_vectors(model.embedding, spec, batch), _numbers(spec, batch), batch["ids"], strict=True)
    for row, numbers, ids in rows:
        interest = _interest(layer, items, ids[7:11], items[ids[1]], softmax)
        expected.append(_head(model, np.concatenate([row.ravel(), numbers * model.flat.scales.numpy(), interest])))
    _assert_logits(model, inputs, expected)


def test_din_gives_each_sequence_its_own_target_or_the_mean(
    spec: InputSpec, make_batch: MakeBatch, built: Built, field_vectors: FieldVectors
) -> None:
    """Two histories of items, one of users, and one of genres, which no field has one of."""
    fields = (
        Field("last_item", "id", "item", 20),  # shares the table, but the table is named after `item`
        Field("item", "id", "item", 20),
        Field("history", "sequence", "item", 20, 4),
        Field("genres", "sequence", "genres", 8, 3),
        Field("follower", "id", "user", 30),  # the table's own feature is none of the fields
        Field("friend", "id", "user", 30),
        Field("friends", "sequence", "user", 30, 2),
        Field("seen", "sequence", "item", 20, 3),
    )
    places = [("item", 0, 1), ("last_item", 1, 2), ("follower", 2, 3), ("friend", 3, 4), ("history", 4, 8),
              ("genres", 8, 11), ("friends", 11, 13), ("seen", 13, 16)]  # fmt: skip
    slices = {name: slice(start, stop) for name, start, stop in places}
    wide = InputSpec(fields=fields, groups=(), id_slices=slices, value_columns={})
    ids = np.random.default_rng(2).integers(0, 8, (24, 16)).astype(np.int32)
    batch = {"ids": ids, "values": np.zeros((24, 0), np.float32)}
    model, inputs = built(wide, batch, "din", attention_units=[5], hidden_units=[6, 5])
    assert [layer.name for layer in model.interests] == ["interest_history", "interest_friends", "interest_seen"]
    expected = []
    for row, of in zip(field_vectors(model.embedding, wide, batch), ids, strict=True):
        parts = [row.ravel()]
        for layer, name, target in zip(
            model.interests, ("history", "friends", "seen"), ("item", "follower", "item"), strict=True
        ):
            table = model.embedding.tables["user" if name == "friends" else "item"].embeddings.numpy()
            vector = table[of[slices[target].start]].astype(np.float64)
            parts.append(_interest(layer, table.astype(np.float64), of[slices[name]], vector, softmax=False))
        expected.append(_head(model, np.concatenate(parts)))
    _assert_logits(model, inputs, expected)


def test_an_empty_history_is_the_vector_zero(spec: InputSpec, make_batch: MakeBatch, built: Built) -> None:
    batch = make_batch(rows=2)
    batch["ids"][:, 7:11] = 0
    for softmax in (False, True):
        model, inputs = built(spec, batch, "din", softmax=softmax, hidden_units=[3])
        (layer,) = model.interests
        ids = inputs["history"]
        target = model.embedding(inputs)[:, 1]
        result = layer(model.embedding.tables["item"](ids), target, ids != 0)
        np.testing.assert_array_equal(result, np.zeros((2, DIM)))
