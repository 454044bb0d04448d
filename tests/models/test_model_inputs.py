"""Rows in two parts, as in `rank`, get the same scores as whole rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import keras, tf
from clsd.models.backbones.registry import BACKBONES
from clsd.models.calibration import Calibrator
from clsd.models.clsd_model import ClsdModel
from clsd.models.input_spec import InputSpec
from clsd.models.model_inputs import ModelInputs

MakeBatch = Callable[..., dict[str, Any]]
MakeModel = Callable[..., ClsdModel]
#: What is each row's own: ids and a number, a bag and a sequence, one field, numbers alone, all ids, the groups alone.
OWN = [
    {"item", "price"},
    {"item", "genres", "history"},
    {"band"},
    {"price", "age"},
    {"user", "item", "band", "city", "genres", "history"},
    {"city"},
]


def in_parts(spec: InputSpec, batch: dict[str, Any], own: set[str], requests: int) -> tuple[ModelInputs, ModelInputs]:
    """A batch whose consecutive rows have all but ``own`` in common: in parts, and whole."""
    columns = spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    each = len(batch["ids"]) // max(requests, 1)
    request = {name: x[::each] for name, x in columns.items() if name not in own}
    mine = {name: x for name, x in columns.items() if name in own}
    whole = mine | {name: tf.repeat(x, each, axis=0) for name, x in request.items()}
    return ModelInputs(spec, mine, request), ModelInputs(spec, whole)


@pytest.fixture
def moved(make_model: MakeModel, make_batch: MakeBatch) -> Callable[..., ClsdModel]:
    """A model whose weights are far from where they begin, so that every part of it shows in the logits."""

    def make(**settings: Any) -> ClsdModel:
        model = make_model(**settings)
        model.train_metric_sums({name: tf.constant(x) for name, x in make_batch().items()})
        generator = tf.random.Generator.from_seed(3)
        teacher = model.teacher.trainable_variables if model.teacher is not None else []
        for variable in model.backbone.trainable_variables + teacher:
            variable.assign(generator.normal(variable.shape, stddev=0.4))
        for variable in model.gate.trainable_variables:
            variable.assign(generator.normal(variable.shape, stddev=0.2))
        return model

    return make


@pytest.mark.parametrize(
    ("backbone", "own"),
    # Only the first two backbones take parts apart; the others get whole rows.
    [
        *((backbone, own) for backbone in ("deepfm", "wide_deep") for own in OWN),
        *((backbone, OWN[0]) for backbone in sorted(BACKBONES) if backbone not in ("deepfm", "wide_deep")),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(sorted(value)),
)
def test_scores_are_those_of_whole_rows(
    moved: Callable[..., ClsdModel], make_batch: MakeBatch, backbone: str, own: set[str]
) -> None:
    model = moved(backbone=backbone)
    for requests in (1, 4, 12):
        parts, whole = in_parts(model.spec, make_batch(rows=12), own, requests)
        result, wanted = model.score_inputs(parts), model.score_inputs(whole)
        assert np.std(wanted.correction if own == {"city"} else wanted.logit) > 0.01  # the groups alone are no input
        for name, ours, theirs in zip(result._fields, result, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("backbone", ["deepfm", "wide_deep"])
@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"hidden_units": []}},
        {"options": {"hidden_units": [7, 5], "dropout": 0.3}},
        {"source": "item", "items": ("item", np.linspace(0.05, 0.6, 20, dtype=np.float32))},
    ],
    ids=["no MLP", "dropout", "scores of items"],
)
def test_a_graph_of_parts_gives_what_whole_rows_get(
    moved: Callable[..., ClsdModel], make_batch: MakeBatch, backbone: str, settings: dict[str, Any]
) -> None:
    model = moved(backbone=backbone, **settings)
    for own in ({"item", "price"}, {"user", "age"}):
        parts, whole = in_parts(model.spec, make_batch(rows=12), own, 3)
        score = tf.function(lambda own, shared: model.score_inputs(ModelInputs(model.spec, own, shared)))
        result = score(dict(parts.columns), dict(parts.request))
        for name, ours, theirs in zip(result._fields, result, model.score_inputs(whole), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name)


def test_cheap_scores_of_parts_are_those_of_whole_rows(moved: Callable[..., ClsdModel], make_batch: MakeBatch) -> None:
    model = moved()
    parts, whole = in_parts(model.spec, make_batch(rows=12), {"item", "band"}, 3)
    rng = np.random.default_rng(1)
    calibrator = Calibrator.fit(*rng.normal(size=(2, 400)), rng.uniform(0.5, 2.0, 400))
    result, wanted = (model.score_cheaply(rows, calibrator) for rows in (parts, whole))
    for ours, theirs in zip(result, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backbone", ["deepfm", "wide_deep", "autoint"])
def test_no_rows_have_no_scores(moved: Callable[..., ClsdModel], make_batch: MakeBatch, backbone: str) -> None:
    model = moved(backbone=backbone)
    batch = {name: x[:0] for name, x in make_batch(rows=1).items()}
    columns = model.spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    mine, request = {"item": columns.pop("item")}, columns
    assert model.score_inputs(ModelInputs(model.spec, mine, request)).logit.shape == (0,)
    full = model.spec.columns(*(tf.constant(make_batch(rows=2)[name]) for name in ("ids", "values")))
    full.pop("item")
    assert model.score_inputs(ModelInputs(model.spec, mine, full)).logit.shape == (0,)  # users without a candidate


def test_a_graph_reads_what_a_request_has_in_common_once(
    moved: Callable[..., ClsdModel], make_batch: MakeBatch
) -> None:
    """The first layer's products, of student and teacher: one of all rows, and one that has a row a request."""
    model = moved(backbone="deepfm", options={"hidden_units": [13]})
    parts, _ = in_parts(model.spec, make_batch(rows=12), {"item"}, 1)
    rows_of = {"own": 0, "shared": 0}

    @tf.function
    def logit(own: dict[str, Any], shared: dict[str, Any]) -> Any:
        return model.score_inputs(ModelInputs(model.spec, own, shared)).logit

    graph = logit.get_concrete_function(dict(parts.columns), dict(parts.request)).graph
    first = model.backbone.deep.layers[0]
    for op in graph.get_operations():
        if op.type == "MatMul" and op.outputs[0].shape[-1] == first.units and op.inputs[0].shape[0] is not None:
            rows_of["shared" if op.inputs[0].shape[0] == 1 else "own"] += 1
    assert rows_of == {"own": 2, "shared": 2}


def test_the_columns_of_a_batch_are_its_features(spec: InputSpec, make_batch: MakeBatch) -> None:
    batch = make_batch()
    rows = ModelInputs.of(spec, tf.constant(batch["ids"]), tf.constant(batch["values"]))
    assert rows.columns.keys() == {"user", "item", "price", "band", "city", "genres", "history", "age"}
    np.testing.assert_array_equal(rows.column("city"), batch["ids"][:, 3])
    np.testing.assert_array_equal(rows.column("history"), batch["ids"][:, 7:])
    np.testing.assert_array_equal(rows.column("age"), batch["values"][:, 1])


def test_a_bag_of_one_value_keeps_its_dimension() -> None:
    from clsd.features.schema import Schema

    bag = {"name": "b", "kind": "bag", "max_length": 1, "encoding": "hash", "size": 9}
    spec = InputSpec.build(Schema.model_validate({"features": [bag]}), {"b": 9})
    assert spec.columns(tf.constant([[3], [0]]), tf.zeros([2, 0]))["b"].shape == (2, 1)


class Plain(keras.Model):  # type: ignore[misc]
    """A user's backbone, which knows nothing of requests."""

    def __init__(self, spec: InputSpec, embedding_dim: int) -> None:
        super().__init__()
        self.names = [field.name for field in spec.fields if field.kind == "id"]
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        assert {"user", "item"} <= inputs.keys()
        return self.scale * sum(tf.cast(inputs[name], tf.float32) for name in self.names)


def test_a_backbone_that_takes_no_request_gets_whole_rows(spec: InputSpec, make_batch: MakeBatch) -> None:
    parts, whole = in_parts(spec, make_batch(rows=6), {"item"}, 2)
    backbone = Plain(spec, 4)
    np.testing.assert_array_equal(parts.logit(backbone), whole.logit(backbone))
