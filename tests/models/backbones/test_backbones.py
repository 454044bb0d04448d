"""The inputs of backbones, what all of them must do, and the registry. Formulas are in test_backbone_formulas.py."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.models.backbones.registry import BACKBONES, build_backbone
from clsd.models.clsd_model import ClsdModel
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding
from clsd.models.optimizers import split_variables
from clsd.models.settings import ModelSettings

DIM = 4
MakeBatch = Callable[..., dict[str, Any]]
Built = Callable[..., tuple[Any, dict[str, Any]]]
FieldVectors = Callable[..., np.ndarray]


# ---------------------------------------------------------------- fields


def test_fields_are_those_of_the_schema_with_input(spec: InputSpec) -> None:
    assert [(f.name, f.kind) for f in spec.fields] == [
        ("user", "id"), ("item", "id"), ("price", "number"), ("band", "id"),
        ("genres", "bag"), ("history", "sequence"), ("age", "number"),
    ]  # fmt: skip
    assert spec.groups == (("band", 6), ("city", 5))


def test_field_embedding_equals_a_loop_over_values(
    spec: InputSpec, make_batch: MakeBatch, built: Built, field_vectors: FieldVectors
) -> None:
    batch = make_batch()
    model, inputs = built(spec, batch, "autoint", hidden_units=[3])
    np.testing.assert_allclose(model.embedding(inputs), field_vectors(model.embedding, spec, batch), atol=1e-6)


def test_bag_and_sequence_are_means_without_padding_and_zero_when_empty(
    spec: InputSpec, make_batch: MakeBatch, built: Built
) -> None:
    batch = make_batch(rows=2)
    batch["ids"][:, 4:7] = [[0, 3, 5], [0, 0, 0]]  # genres
    batch["ids"][:, 7:11] = [[2, 2, 9, 0], [0, 0, 0, 0]]  # history
    model, inputs = built(spec, batch, "autoint", hidden_units=[3])
    genres, items = (model.embedding.tables[name].embeddings.numpy() for name in ("genres", "item"))
    vectors = model.embedding(inputs).numpy()
    np.testing.assert_allclose(vectors[0, 4], (genres[3] + genres[5]) / 2, atol=1e-6)
    np.testing.assert_allclose(vectors[0, 5], (2 * items[2] + items[9]) / 3, atol=1e-6)
    np.testing.assert_array_equal(vectors[1, 4:6], 0.0)


def test_features_that_share_have_one_table(spec: InputSpec, make_batch: MakeBatch, built: Built) -> None:
    batch = make_batch(rows=1)
    batch["ids"][:, 1] = 7
    batch["ids"][:, 7:11] = [0, 0, 0, 7]
    model, inputs = built(spec, batch, "autoint", hidden_units=[3])
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


# ---------------------------------------------------------------- what every backbone does


@pytest.mark.parametrize("backbone", BACKBONES)
def test_dropout_acts_in_training_alone(spec: InputSpec, make_batch: MakeBatch, built: Built, backbone: str) -> None:
    model, inputs = built(spec, make_batch(), backbone, hidden_units=[16], dropout=0.5)
    np.testing.assert_array_equal(model(inputs), model(inputs, training=False))
    assert not np.array_equal(model(inputs, training=True), model(inputs, training=True))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_of_tables_are_sparse_and_of_the_rest_dense(
    spec: InputSpec, make_batch: MakeBatch, built: Built, backbone: str
) -> None:
    model, inputs = built(spec, make_batch(), backbone, hidden_units=[3])
    tables, dense = split_variables(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs))
    of_tables, of_dense = tape.gradient(loss, [tables, dense])
    assert len(tables) == 4 and all(isinstance(g, tf.IndexedSlices) for g in of_tables)
    assert dense and all(isinstance(g, tf.Tensor) for g in of_dense)
    assert len(tables) + len(dense) == len(model.trainable_variables)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_teacher_pairs_up_with_its_student(
    spec: InputSpec, make_batch: MakeBatch, built: Built, backbone: str
) -> None:
    student, inputs = built(spec, make_batch(), backbone, hidden_units=[5], dropout=0.5)
    teacher = build_backbone(
        ModelSettings(backbone=backbone, embedding_dim=DIM, options={"hidden_units": [5], "dropout": 0.5}), spec
    )
    teacher({name: x[:2] for name, x in inputs.items()})
    pairs = list(zip(teacher.variables, student.variables, strict=True))
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    assert not np.allclose(teacher(inputs), student(inputs), atol=1e-3)
    for mine, theirs in pairs:
        mine.assign(theirs)
    np.testing.assert_array_equal(teacher(inputs), student(inputs))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_row_is_scored_for_itself(spec: InputSpec, make_batch: MakeBatch, built: Built, backbone: str) -> None:
    """Beside rows of padding, as in an epoch's last batch, and in a graph that takes any number of rows, also none."""
    model, inputs = built(spec, make_batch(rows=9), backbone, hidden_units=[6])
    signature = {name: tf.TensorSpec([None, *x.shape[1:]], x.dtype) for name, x in inputs.items()}
    score = tf.function(model, input_signature=[signature])
    logits = model(inputs).numpy()
    assert logits.shape == (9,) and logits.dtype == np.float32 and len(np.unique(logits)) == 9
    padded = {name: tf.concat([x, tf.zeros_like(x[:5])], axis=0) for name, x in inputs.items()}
    np.testing.assert_allclose(score(padded)[:9], logits, rtol=1e-5, atol=1e-5)
    assert np.isfinite(score(padded)).all()
    np.testing.assert_allclose(score({name: x[3:4] for name, x in inputs.items()}), logits[3:4], rtol=1e-5, atol=1e-5)
    assert score({name: x[:0] for name, x in inputs.items()}).shape == (0,)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_fits_restores_and_exports(
    make_model: Callable[..., ClsdModel], make_batch: MakeBatch, tmp_path: Path, backbone: str
) -> None:
    model = make_model(backbone=backbone, warmup_steps=4, optimizers="adagrad")
    batch = make_batch(rows=256)
    model.compile()
    history = model.fit(tf.data.Dataset.from_tensor_slices(batch).batch(64), epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.95 * history["loss"][0] and np.isfinite(history["loss"]).all()
    ids, values = tf.constant(batch["ids"]), tf.constant(batch["values"])
    expected = model.score(ids, values)

    restored = make_model(backbone=backbone, warmup_steps=4, optimizers="adagrad")
    assert not np.allclose(restored.score(ids, values).logit, expected.logit, atol=1e-3)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "weights"))
    tf.train.Checkpoint(model=restored).read(path).assert_existing_objects_matched().expect_partial()
    for result, wanted in zip(restored.score(ids, values), expected, strict=True):
        np.testing.assert_array_equal(result, wanted)

    served = tf.Module()
    served.weights = model.variables
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in (ids, values)]
    served.score = tf.function(lambda ids, values: tuple(model.score(ids, values)), input_signature=signature)
    tf.saved_model.save(served, str(tmp_path / "served"))
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    for result, wanted in zip(loaded.score(ids[:7], values[:7]), expected, strict=True):
        np.testing.assert_allclose(result, wanted[:7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_alone_is_saved_and_loaded(
    spec: InputSpec, make_batch: MakeBatch, built: Built, tmp_path: Path, backbone: str
) -> None:
    model, inputs = built(spec, make_batch(rows=6), backbone, hidden_units=[3])
    signature = {name: tf.TensorSpec([None, *x.shape[1:]], x.dtype, name=name) for name, x in inputs.items()}
    serve = tf.function(lambda inputs: {"logit": model(inputs)}, input_signature=[signature])
    tf.saved_model.save(model, str(tmp_path / "saved"), signatures=serve)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    answer = loaded.signatures["serving_default"](**inputs)
    np.testing.assert_allclose(answer["logit"], model(inputs), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- registry


def _only(spec: InputSpec, names: set[str]) -> InputSpec:
    return dataclasses.replace(spec, fields=tuple(field for field in spec.fields if field.name in names))


def _refusal(spec: InputSpec, backbone: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(ModelSettings(backbone=backbone, embedding_dim=DIM, options=options), spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_backbones_by_name(spec: InputSpec) -> None:
    made = {name: type(build_backbone(ModelSettings(backbone=name), spec)).__name__ for name in BACKBONES}
    assert made == {
        "deepfm": "DeepFM", "dcn_v2": "DCNv2", "wide_deep": "WideDeep", "fibinet": "FiBiNET", "autoint": "AutoInt",
        "dlrm": "DLRM", "din": "DIN",
    }  # fmt: skip
    described = ModelSettings.model_fields["backbone"].description
    assert described is not None and described.startswith(", ".join(BACKBONES) + ", or ")


def test_unknown_backbone_names_the_nearest(spec: InputSpec) -> None:
    assert "did you mean 'deepfm'?" in _refusal(spec, "deep_fm")


def test_backbone_like_no_other_lists_all(spec: InputSpec) -> None:
    assert ", ".join(BACKBONES) in _refusal(spec, "xgboost")


def test_unknown_option_names_the_nearest(spec: InputSpec) -> None:
    message = _refusal(spec, "deepfm", hiden_units=[3])
    assert message.startswith("model.options.hiden_units") and "did you mean 'hidden_units'?" in message


def test_option_of_another_backbone_is_refused(spec: InputSpec) -> None:
    assert "deepfm has no such option" in _refusal(spec, "deepfm", cross_layers=2)


def test_wrong_value_of_an_option_is_refused(spec: InputSpec) -> None:
    assert "is not parallel or stacked" in _refusal(spec, "dcn_v2", structure="sideways")
    assert "is not field_all, field_each or field_interaction" in _refusal(spec, "fibinet", bilinear="all")


@pytest.mark.parametrize("without", ["history", "item"])
def test_din_without_a_history_of_a_feature_is_refused(spec: InputSpec, without: str) -> None:
    message = _refusal(_only(spec, {field.name for field in spec.fields} - {without}), "din")
    assert message.startswith("model.backbone: din: ")
    assert message.endswith("add a sequence feature with `share: <item feature>`")


def test_pairs_of_too_few_vectors_are_refused(spec: InputSpec) -> None:
    assert "no pairs" in _refusal(_only(spec, {"user"}), "fibinet")
    for names in ({"user"}, {"price", "age"}):
        assert "needs two vectors" in _refusal(_only(spec, names), "dlrm")


@pytest.mark.parametrize("separator", [":", "."])
def test_users_own_model_is_found_by_dotted_path(
    spec: InputSpec, make_batch: MakeBatch, built: Built, own_backbone: str, separator: str
) -> None:
    path = own_backbone.replace(":", separator)
    model, inputs = built(spec, make_batch(rows=9), path, width=5)
    assert type(model).__name__ == "Net" and model.block.hidden.units == 5
    assert model(inputs).shape == (9,)


def test_tables_of_users_own_model_are_found(
    spec: InputSpec, make_batch: MakeBatch, built: Built, own_backbone: str
) -> None:
    model, _ = built(spec, make_batch(), own_backbone)
    tables, _ = split_variables(model)
    assert [id(v) for v in tables] == [id(model.table.embeddings)]


def test_unknown_option_of_users_own_model_is_refused(spec: InputSpec, own_backbone: str) -> None:
    assert "did you mean 'width'?" in _refusal(spec, own_backbone, widht=5)


def test_missing_module_is_one_line(spec: InputSpec) -> None:
    message = _refusal(spec, "no_such_package.net:Net")
    assert message.startswith("model.backbone: no_such_package.net:Net") and "No module named" in message


def test_missing_class_is_one_line(spec: InputSpec, own_backbone: str) -> None:
    assert "has no Nett; did you mean 'Net'?" in _refusal(spec, own_backbone + "t")


@pytest.mark.parametrize("source", ["import no_such_library", "class Net(:", "raise RuntimeError('no\\nlicence')"])
def test_module_that_fails_to_import_is_one_line(
    spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "my_broken_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_broken_net", raising=False)
    assert "cannot be imported" in _refusal(spec, "my_broken_net:Net")
