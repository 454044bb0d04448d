"""Optimizers: one for tables, one for the dense part, one for AdGate."""

from __future__ import annotations

from typing import Any

from features.tf_runtime import keras
from models.settings import OptimizerSettings


def build_optimizer(settings: OptimizerSettings) -> Any:
    """The optimizer that the settings name.

    The ``legacy`` ones, because their update of a table touches the rows of the batch alone and sums the gradients of an id
    that occurs twice before it applies them.
    """
    legacy = keras.optimizers.legacy
    kinds = {"adam": legacy.Adam, "adagrad": legacy.Adagrad, "sgd": legacy.SGD}
    return kinds[settings.name](learning_rate=settings.learning_rate)


def split_variables(model: Any) -> tuple[list[Any], list[Any]]:
    """(tables, dense) trainable variables: a table is the weight of an ``Embedding`` layer, anywhere in the model."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    tables = {id(variable) for layer in layers for variable in layer.trainable_variables}
    trainable = model.trainable_variables
    return [v for v in trainable if id(v) in tables], [v for v in trainable if id(v) not in tables]
