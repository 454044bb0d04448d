"""Optimizers: one for tables, one for the dense part, one for AdGate."""

from __future__ import annotations

from typing import Any

from clsd.features.keras_private import all_layers
from clsd.features.tf_runtime import Optimizer, Tensor, keras, tf
from clsd.models.settings import OptimizerSettings

_Legacy: Any = keras.optimizers.legacy.Optimizer


def build_optimizer(settings: OptimizerSettings) -> Optimizer:
    """The optimizer that the settings name.

    The ``legacy`` ones, because their update of a table sums the gradients of an id that occurs twice before it applies them,
    and, but for Adam's, touches the rows of the batch alone.
    """
    legacy = keras.optimizers.legacy
    kinds = {
        "adam": legacy.Adam,
        "adagrad": legacy.Adagrad,
        "sgd": legacy.SGD,
        "lazy_adam": LazyAdam,
        "rowwise_adagrad": RowwiseAdagrad,
    }
    return kinds[settings.name](learning_rate=settings.learning_rate)


class _OfRows(_Legacy):  # type: ignore[misc]
    """An optimizer that updates the rows that have a gradient, and of a dense gradient all of them."""

    def __init__(self, learning_rate: float, name: str) -> None:
        super().__init__(name)
        self._set_hyper("learning_rate", learning_rate)

    def _resource_apply_sparse(self, grad: Tensor, var: Any, indices: Tensor, apply_state: Any = None) -> Tensor:
        """Update some rows, none of which occurs twice."""
        rate = self._get_hyper("learning_rate", tf.float32)
        return _add(var, indices, -rate * self._direction(grad, var, indices))

    def _resource_apply_dense(self, grad: Tensor, var: Any, apply_state: Any = None) -> Tensor:
        return self._resource_apply_sparse(grad, var, tf.range(tf.shape(grad)[0]))

    def _direction(self, grad: Tensor, var: Any, rows: Tensor) -> Tensor:
        raise NotImplementedError


class RowwiseAdagrad(_OfRows):
    """Adagrad with one accumulator a row: ``a += mean(g**2); row -= rate * g / (sqrt(a) + 1e-7)``, a from 0.1.

    A table's slot is as long as the table and one wide: with vectors of 16, a sixteenth of Adagrad's. After Naumov et al.,
    "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019), whose code brought it.
    """

    def __init__(self, learning_rate: float, name: str = "RowwiseAdagrad") -> None:
        super().__init__(learning_rate, name)

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            start = tf.constant_initializer(0.1)
            self.add_slot(var, "accumulator", start, shape=[*var.shape[:1], *[1] * (var.shape.rank - 1)])

    def _direction(self, grad: Tensor, var: Any, rows: Tensor) -> Tensor:
        accumulator = self.get_slot(var, "accumulator")
        squares = tf.reduce_mean(tf.square(grad), axis=list(range(1, grad.shape.rank)), keepdims=True)
        with tf.control_dependencies([_add(accumulator, rows, squares)]):
            return grad / (tf.sqrt(_rows(accumulator, rows)) + 1e-7)


class LazyAdam(_OfRows):
    """Adam whose moments move at the steps in which a row has a gradient, and at no other.

    With t the number of steps: ``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g**2;
    row -= rate * m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + 1e-7)``, b1 0.9 and b2 0.999. Kingma and Ba's Adam (2015) would move
    the moments and the values of all rows at each step, so that a step costs what the table costs.
    """

    def __init__(self, learning_rate: float, name: str = "LazyAdam") -> None:
        super().__init__(learning_rate, name)

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:  # both in one slot: a row of it is read and written once
            self.add_slot(var, "moments", shape=[var.shape[0], 2, *var.shape[1:]])

    def _direction(self, grad: Tensor, var: Any, rows: Tensor) -> Tensor:
        t, slot = tf.cast(self.iterations + 1, tf.float32), self.get_slot(var, "moments")
        decays = tf.reshape(tf.constant([0.9, 0.999]), [2, *[1] * (grad.shape.rank - 1)])
        now = decays * _rows(slot, rows) + (1.0 - decays) * tf.stack([grad, tf.square(grad)], axis=1)
        with tf.control_dependencies([_set(slot, rows, now)]):
            m, v = tf.unstack(now, axis=1)
        return m / (1.0 - tf.pow(0.9, t)) / (tf.sqrt(v / (1.0 - tf.pow(0.999, t))) + 1e-7)


def _rows(variable: Tensor, rows: Tensor) -> Tensor:
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=rows, dtype=variable.dtype)


def _add(variable: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return tf.raw_ops.ResourceScatterAdd(resource=variable.handle, indices=rows, updates=values)


def _set(variable: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=values)


def split_variables(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(tables, dense) trainable variables: a table is the weight of an ``Embedding`` layer, anywhere in the model."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Embedding)]
    tables = {id(variable) for layer in layers for variable in layer.trainable_variables}
    trainable = model.trainable_variables
    return [v for v in trainable if id(v) in tables], [v for v in trainable if id(v) not in tables]
