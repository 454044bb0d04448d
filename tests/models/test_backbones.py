"""Backbones against their formula in plain NumPy with the layers' own weights, and how a backbone is found by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import UserError
from features.tf_runtime import tf
from models.inputs import FieldEmbedding, InputSpec
from models.optimizers import split_variables
from models.registry import build_backbone
from models.settings import ModelSettings

DIM = 4
MakeBatch = Callable[..., dict[str, Any]]


def _built(spec: InputSpec, batch: dict[str, Any], backbone: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A backbone with weights large enough to see, and its inputs."""
    model = build_backbone(ModelSettings(backbone=backbone, embedding_dim=DIM, options=options), spec)
    inputs = spec.unpack(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    model(inputs)
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))
    return model, inputs


def _fields(embedding: FieldEmbedding, spec: InputSpec, batch: dict[str, Any]) -> np.ndarray:
    """Vectors ``[B, F, D]``, row by row and value by value."""
    tables = {name: layer.embeddings.numpy().astype(np.float64) for name, layer in embedding.tables.items()}
    numbers = iter(embedding.number_vectors.numpy().astype(np.float64))
    columns = []
    for field in spec.fields:
        if field.kind == "number":
            columns.append(np.outer(batch["values"][:, spec.value_columns[field.name]], next(numbers)))
            continue
        rows = []
        for ids in batch["ids"][:, spec.id_slices[field.name]]:
            there = [i for i in ids if i != 0 or field.kind == "id"]
            vectors = [tables[field.table][i] for i in there]
            rows.append(np.mean(vectors, axis=0) if vectors else np.zeros(tables[field.table].shape[1]))
        columns.append(np.array(rows))
    return np.stack(columns, axis=1)


def _dense(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ layer.kernel.numpy().astype(np.float64) + (layer.bias.numpy() if layer.use_bias else 0.0)


def _deep(model: Any, x: np.ndarray) -> np.ndarray:
    for layer in model.deep.layers:
        x = np.maximum(_dense(layer, x), 0.0)
    return x


# ---------------------------------------------------------------- fields


def test_fields_are_those_of_the_schema_with_input(spec: InputSpec) -> None:
    assert [(f.name, f.kind) for f in spec.fields] == [
        ("user", "id"), ("item", "id"), ("price", "number"), ("band", "id"),
        ("genres", "bag"), ("history", "sequence"), ("age", "number"),
    ]  # fmt: skip
    assert spec.groups == (("band", 6), ("city", 5))


def test_group_ids_are_the_groups_columns(spec: InputSpec, make_batch: MakeBatch) -> None:
    ids = make_batch()["ids"]
    np.testing.assert_array_equal(spec.group_ids(tf.constant(ids)), ids[:, [2, 3]])


def test_field_embedding_equals_a_loop_over_values(spec: InputSpec, make_batch: MakeBatch) -> None:
    batch = make_batch()
    model, inputs = _built(spec, batch, "dcn_v2", hidden_units=[3])
    np.testing.assert_allclose(model.embedding(inputs), _fields(model.embedding, spec, batch), atol=1e-6)


def test_bag_and_sequence_are_means_without_padding_and_zero_when_empty(spec: InputSpec, make_batch: MakeBatch) -> None:
    batch = make_batch(rows=2)
    batch["ids"][:, 4:7] = [[0, 3, 5], [0, 0, 0]]  # genres
    batch["ids"][:, 7:11] = [[2, 2, 9, 0], [0, 0, 0, 0]]  # history
    model, inputs = _built(spec, batch, "deepfm", hidden_units=[3])
    genres, items = (model.embedding.tables[name].embeddings.numpy() for name in ("genres", "item"))
    vectors = model.embedding(inputs).numpy()
    np.testing.assert_allclose(vectors[0, 4], (genres[3] + genres[5]) / 2, atol=1e-6)
    np.testing.assert_allclose(vectors[0, 5], (2 * items[2] + items[9]) / 3, atol=1e-6)
    np.testing.assert_array_equal(vectors[1, 4:6], 0.0)


def test_features_that_share_have_one_table(spec: InputSpec, make_batch: MakeBatch) -> None:
    batch = make_batch(rows=1)
    batch["ids"][:, 1] = 7
    batch["ids"][:, 7:11] = [0, 0, 0, 7]
    model, inputs = _built(spec, batch, "deepfm", hidden_units=[3])
    vectors = model.embedding(inputs).numpy()
    np.testing.assert_array_equal(vectors[0, 1], vectors[0, 5])
    assert set(model.embedding.tables) == {"user", "item", "band", "genres"}


def test_tables_of_equal_shape_start_differently(spec: InputSpec) -> None:
    fields = tuple(field for field in spec.fields if field.kind == "id")
    equal = tuple(type(f)(f.name, "id", f.name, 9) for f in fields)
    layer = FieldEmbedding(equal, DIM)
    layer({f.name: tf.constant([1]) for f in equal})
    starts = [table.embeddings.numpy() for table in layer.tables.values()]
    assert len(starts) == 3
    assert not any(np.array_equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


# ---------------------------------------------------------------- formulas


def test_deepfm_is_its_formula(spec: InputSpec, make_batch: MakeBatch) -> None:
    batch = make_batch()
    model, inputs = _built(spec, batch, "deepfm", hidden_units=[6, 5])
    rows = _fields(model.embedding, spec, batch)
    first, v = rows[:, :, -1].sum(axis=1), rows[:, :, :-1]
    n = v.shape[1]
    pairs = sum((v[:, i] * v[:, j]).sum(axis=1) for i in range(n) for j in range(i + 1, n))
    deep = _dense(model.head, _deep(model, v.reshape(len(v), -1)))[:, 0]
    np.testing.assert_allclose(model(inputs), first + pairs + deep, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("rank", [None, 3])
def test_dcn_v2_is_its_formula(spec: InputSpec, make_batch: MakeBatch, structure: str, rank: int | None) -> None:
    batch = make_batch()
    options = {"cross_layers": 2, "projection_dim": rank, "hidden_units": [6, 5], "structure": structure}
    model, inputs = _built(spec, batch, "dcn_v2", **options)
    x0 = _fields(model.embedding, spec, batch).reshape(len(batch["ids"]), -1)
    x = x0
    for cross in model.crosses:
        kernels = [v.numpy().astype(np.float64) for v in cross.trainable_variables if "kernel" in v.name]
        (bias,) = [v.numpy() for v in cross.trainable_variables if "bias" in v.name]
        assert [k.shape for k in kernels] == ([(28, 28)] if rank is None else [(28, rank), (rank, 28)])
        x = x0 * (x @ np.linalg.multi_dot([*kernels, np.eye(28)]) + bias) + x
    top = np.concatenate([x, _deep(model, x0)], axis=1) if structure == "parallel" else _deep(model, x)
    np.testing.assert_allclose(model(inputs), _dense(model.head, top)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["deepfm", "dcn_v2"])
def test_dropout_acts_in_training_alone(spec: InputSpec, make_batch: MakeBatch, backbone: str) -> None:
    model, inputs = _built(spec, make_batch(), backbone, hidden_units=[16], dropout=0.5)
    np.testing.assert_array_equal(model(inputs), model(inputs, training=False))
    assert not np.array_equal(model(inputs, training=True), model(inputs, training=True))


@pytest.mark.parametrize("backbone", ["deepfm", "dcn_v2"])
def test_gradients_of_tables_are_sparse_and_of_the_rest_dense(
    spec: InputSpec, make_batch: MakeBatch, backbone: str
) -> None:
    model, inputs = _built(spec, make_batch(), backbone, hidden_units=[3])
    tables, dense = split_variables(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs))
    of_tables, of_dense = tape.gradient(loss, [tables, dense])
    assert len(tables) == 4 and all(isinstance(g, tf.IndexedSlices) for g in of_tables)
    assert dense and all(isinstance(g, tf.Tensor) for g in of_dense)
    assert len(tables) + len(dense) == len(model.trainable_variables)


# ---------------------------------------------------------------- registry


def _refusal(spec: InputSpec, backbone: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(ModelSettings(backbone=backbone, embedding_dim=DIM, options=options), spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_backbone_names_the_nearest(spec: InputSpec) -> None:
    assert "did you mean 'deepfm'?" in _refusal(spec, "deep_fm")


def test_backbone_like_no_other_lists_all(spec: InputSpec) -> None:
    assert "deepfm, dcn_v2" in _refusal(spec, "xgboost")


def test_unknown_option_names_the_nearest(spec: InputSpec) -> None:
    message = _refusal(spec, "deepfm", hiden_units=[3])
    assert message.startswith("model.options.hiden_units") and "did you mean 'hidden_units'?" in message


def test_option_of_another_backbone_is_refused(spec: InputSpec) -> None:
    assert "deepfm has no such option" in _refusal(spec, "deepfm", cross_layers=2)


def test_wrong_value_of_an_option_is_refused(spec: InputSpec) -> None:
    assert "neither parallel nor stacked" in _refusal(spec, "dcn_v2", structure="sideways")


@pytest.mark.parametrize("separator", [":", "."])
def test_users_own_model_is_found_by_dotted_path(
    spec: InputSpec, make_batch: MakeBatch, own_backbone: str, separator: str
) -> None:
    path = own_backbone.replace(":", separator)
    model, inputs = _built(spec, make_batch(rows=9), path, width=5)
    assert type(model).__name__ == "Net" and model.block.hidden.units == 5
    assert model(inputs).shape == (9,)


def test_tables_of_users_own_model_are_found(spec: InputSpec, make_batch: MakeBatch, own_backbone: str) -> None:
    model, _ = _built(spec, make_batch(), own_backbone)
    tables, _ = split_variables(model)
    assert [id(v) for v in tables] == [id(model.table.embeddings)]


def test_unknown_option_of_users_own_model_is_refused(spec: InputSpec, own_backbone: str) -> None:
    assert "did you mean 'width'?" in _refusal(spec, own_backbone, widht=5)


def test_missing_module_is_one_line(spec: InputSpec) -> None:
    message = _refusal(spec, "no_such_package.net:Net")
    assert message.startswith("model.backbone: no_such_package.net:Net") and "No module named" in message


def test_missing_class_is_one_line(spec: InputSpec, own_backbone: str) -> None:
    assert "has no attribute 'Nett'" in _refusal(spec, own_backbone + "t")


@pytest.mark.parametrize("source", ["import no_such_library", "class Net(:", "raise RuntimeError('no\\nlicence')"])
def test_module_that_fails_to_import_is_one_line(
    spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "my_broken_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_broken_net", raising=False)
    assert "cannot be imported" in _refusal(spec, "my_broken_net:Net")
