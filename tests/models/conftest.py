"""Fixtures of the model tests: a small spec with every kind of field, batches, and models."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.schema import Schema
from clsd.features.tf_runtime import keras, tf
from clsd.models.backbones.registry import build_backbone
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings

# One column each: user, item, band, city; then three of genres and four of history.
WIDTH, N_VALUES = 11, 2
SIZES = {"user": 30, "item": 20, "band": 6, "city": 5, "genres": 8}


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    def hashed(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "kind": "categorical", "encoding": "hash", "size": SIZES[name], **more}

    features = [
        hashed("user"),
        hashed("item"),
        {"name": "price", "kind": "numeric"},
        hashed("band"),
        hashed("city", input=False),
        hashed("genres", max_length=3) | {"kind": "bag"},
        {"name": "history", "kind": "sequence", "share": "item", "max_length": 4},
        {"name": "age", "kind": "numeric"},
    ]
    return InputSpec.build(Schema.model_validate({"features": features, "groups": ["band", "city"]}), SIZES)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, Any]]:
    def make(rows: int = 32, seed: int = 0, ctr: float = 0.4) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        single = [rng.integers(1, SIZES[name], (rows, 1)) for name in ("user", "item", "band", "city")]
        genres = rng.integers(0, SIZES["genres"], (rows, 3))
        history = rng.integers(0, SIZES["item"], (rows, 4)) * (rng.random((rows, 1)) < 0.8)
        return {
            "ids": np.concatenate([*single, genres, history], axis=1).astype(np.int32),
            "values": rng.normal(size=(rows, N_VALUES)).astype(np.float32),
            "label": (rng.random(rows) < ctr).astype(np.float32),
            "valid": np.ones(rows, np.float32),
            "intensity": rng.exponential(size=rows).astype(np.float32),
        }

    return make


@pytest.fixture(scope="session")
def built() -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A backbone alone, with weights large enough to see, and its inputs."""

    def build(spec: InputSpec, batch: dict[str, Any], backbone: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        model = build_backbone(ModelSettings(backbone=backbone, embedding_dim=4, options=options), spec)
        inputs = spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
        model(inputs)
        rng = np.random.default_rng(5)
        for variable in model.trainable_variables:
            variable.assign(rng.normal(scale=0.5, size=variable.shape))
        return model, inputs

    return build


@pytest.fixture(scope="session")
def field_vectors() -> Callable[..., np.ndarray]:
    """What a FieldEmbedding gives, ``[B, F, D]``, row by row and value by value."""

    def vectors(embedding: FieldEmbedding, spec: InputSpec, batch: dict[str, Any]) -> np.ndarray:
        tables = {name: layer.embeddings.numpy().astype(np.float64) for name, layer in embedding.tables.items()}
        numbers = iter(embedding.number_vectors.numpy().astype(np.float64) if embedding._numbers else ())
        columns = []
        for field in embedding._fields:
            if field.kind == "number":
                columns.append(np.outer(batch["values"][:, spec.value_columns[field.name]], next(numbers)))
                continue
            rows = []
            for ids in batch["ids"][:, spec.id_slices[field.name]]:
                there = [i for i in ids if i != 0 or field.kind == "id"]
                result = [tables[field.table][i] for i in there]
                rows.append(np.mean(result, axis=0) if result else np.zeros(tables[field.table].shape[1]))
            columns.append(np.array(rows))
        dim = embedding._dim
        return np.stack(columns, axis=1) if columns else np.zeros((len(batch["ids"]), 0, dim))

    return vectors


@pytest.fixture(scope="session")
def make_model(spec: InputSpec) -> Callable[..., ClsdModel]:
    """A model whose backbone and gate start the same for every call, with logits far enough from 0 to tell rows apart."""

    def make(
        *,
        warmup_steps: int = 0,
        backbone: str = "deepfm",
        options: dict[str, Any] | None = None,
        optimizers: str = "sgd",
        learning_rate: float = 0.1,
        l2: float = 0.0,
        prior_ctr: float = 0.5,
        kept_negatives: float = 1.0,
        items: tuple[str, Any] | None = None,
        **confidence: Any,
    ) -> ClsdModel:
        keras.utils.set_random_seed(1)
        options = {"hidden_units": [8]} if options is None else options
        settings = OptimizerSettings(name=optimizers, learning_rate=learning_rate)
        model = ClsdModel(
            spec,
            ModelSettings(backbone=backbone, embedding_dim=4, options=options),
            ConfidenceSettings(**confidence),
            TrainingSetup(
                warmup_steps=warmup_steps,
                embedding_optimizer=settings,
                dense_optimizer=settings,
                l2=l2,
                prior_ctr=prior_ctr,
                kept_negatives=kept_negatives,
            ),
            items=items,
        )
        rng = np.random.default_rng(3)
        for variable in model.backbone.trainable_variables:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))
        if model.teacher is not None:
            model.copy_teacher()
        if model.gate is not None:
            for variable in model.gate.trainable_variables[:-2]:  # the output layer starts at zero
                variable.assign(rng.normal(scale=0.3, size=variable.shape))
        return model

    return make


@pytest.fixture(scope="session")
def step() -> Callable[..., np.ndarray]:
    """One eager step; the sums of the batch."""

    def run(model: ClsdModel, batch: dict[str, Any]) -> np.ndarray:
        return model.train_metric_sums({name: tf.constant(x) for name, x in batch.items()}).numpy()

    return run


@pytest.fixture(scope="session")
def values() -> Callable[[Any], np.ndarray]:
    """Copies of a model's variables, one after the other in a flat array."""
    return lambda model: np.concatenate([variable.numpy().ravel() for variable in model.variables])


@pytest.fixture
def own_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Dotted path of a user's own Keras model, batch norm in a layer of its own, in a package below the working directory."""
    package = tmp_path / "my_shop_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = """
        import tf_keras

        class Block(tf_keras.layers.Layer):
            def __init__(self, width):
                super().__init__()
                self.norms = [tf_keras.layers.BatchNormalization() for _ in range(2)]
                self.hidden = tf_keras.layers.Dense(width)

            def call(self, x, training=False):
                return self.hidden(self.norms[1](self.norms[0](x, training=training), training=training))

        class Net(tf_keras.Model):
            def __init__(self, spec, embedding_dim, width=3):
                super().__init__()
                self.table = tf_keras.layers.Embedding(spec.fields[0].size, embedding_dim)
                self.block = Block(width)
                self.out = tf_keras.layers.Dense(1)

            def call(self, inputs, training=False):
                return self.out(self.block(self.table(inputs["user"]), training=training))[:, 0]
    """
    (package / "net.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the registry appends the working directory
    for name in ("my_shop_models", "my_shop_models.net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "my_shop_models.net:Net"
