"""Optimizers: one for tables, one for the dense part, one for AdGate."""

from __future__ import annotations

from typing import Any

from clsd.features.keras_private import all_layers
from clsd.features.tf_runtime import Network, Optimizer, Tensor, Variable, keras, tf
from clsd.models.settings import OptimizerSettings

_Legacy: Any = keras.optimizers.legacy.Optimizer


def build_optimizer(settings: OptimizerSettings) -> Optimizer:
    """The optimizer that the settings name.

    Keras' ``legacy`` optimizers are used: they sum the gradients of an id that occurs twice before they apply them, and
    all but Adam update only the rows of the batch.
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
    """Base of optimizers that update only the rows with a gradient; a dense gradient updates all rows."""

    def __init__(self, learning_rate: float, name: str) -> None:
        super().__init__(name)
        self._set_hyper("learning_rate", learning_rate)

    def _resource_apply_sparse(self, grad: Tensor, var: Variable, indices: Tensor, apply_state: Any = None) -> Tensor:
        """Update some rows; ``indices`` has no duplicates."""
        rate = self._get_hyper("learning_rate", tf.float32)
        return _add(var, indices, -rate * self._direction(grad, var, indices))

    def _resource_apply_dense(self, grad: Tensor, var: Variable, apply_state: Any = None) -> Tensor:
        return self._resource_apply_sparse(grad, var, tf.range(tf.shape(grad)[0]))

    def _direction(self, grad: Tensor, var: Variable, rows: Tensor) -> Tensor:
        raise NotImplementedError


class RowwiseAdagrad(_OfRows):
    """Adagrad with one accumulator per row: ``a += mean(g**2); row -= rate * g / (sqrt(a) + 1e-7)``, a from 0.1.

    A table's slot has one number per row: with vectors of 16, a sixteenth of Adagrad's slot. Source: the code of Naumov
    et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems".
    """

    def __init__(self, learning_rate: float, name: str = "RowwiseAdagrad") -> None:
        super().__init__(learning_rate, name)

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            start = tf.constant_initializer(0.1)
            self.add_slot(var, "accumulator", start, shape=[*var.shape[:1], *[1] * (var.shape.rank - 1)])

    def _direction(self, grad: Tensor, var: Variable, rows: Tensor) -> Tensor:
        accumulator = self.get_slot(var, "accumulator")
        squares = tf.reduce_mean(tf.square(grad), axis=list(range(1, grad.shape.rank)), keepdims=True)
        with tf.control_dependencies([_add(accumulator, rows, squares)]):
            return grad / (tf.sqrt(_rows(accumulator, rows)) + 1e-7)


class LazyAdam(_OfRows):
    """Adam that updates a row's moments only in steps in which the row has a gradient.

    With t the number of steps: ``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g**2;
    row -= rate * m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + 1e-7)``, b1 0.9 and b2 0.999. The Adam of Kingma and
    Ba (2015) updates all rows in each step, so a step costs what the table costs.
    """

    def __init__(self, learning_rate: float, name: str = "LazyAdam") -> None:
        super().__init__(learning_rate, name)

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:  # both moments in one slot, so a row is read and written once
            self.add_slot(var, "moments", shape=[var.shape[0], 2, *var.shape[1:]])

    def _direction(self, grad: Tensor, var: Variable, rows: Tensor) -> Tensor:
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


def split_variables(model: Network) -> tuple[list[Variable], list[Variable]]:
    """Split trainable variables into (tables, dense); tables are weights of ``Embedding`` layers, anywhere in the model."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Embedding)]
    tables = {id(variable) for layer in layers for variable in layer.trainable_variables}
    trainable = model.trainable_variables
    return [v for v in trainable if id(v) in tables], [v for v in trainable if id(v) not in tables]
