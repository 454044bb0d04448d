"""A backbone's inputs: whole rows, or the two parts of a ``rank`` request, the user's part once and the parts of N candidates.

A layer computes the user's share of a sum once per request and adds it to each candidate's share:
``[v_1, v_2] W = v_1 W_1 + v_2 W_2``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clsd.features.tf_runtime import Network, Tensor, tf
from clsd.models.input_spec import InputSpec


@dataclass(frozen=True)
class ModelInputs:
    """A batch.

    Args:
        spec: the model's.
        columns: of each feature, by name, what :meth:`clsd.models.input_spec.InputSpec.columns` gives: ``[B, ...]``.
        request: where B / R consecutive rows have features in common, these, which ``columns`` lacks: ``[R, ...]``.
    """

    spec: InputSpec
    columns: Mapping[str, Any]
    request: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: InputSpec, ids: Tensor, values: Tensor) -> ModelInputs:
        """Of ids int32 ``[B, width]`` and values float32 ``[B, n]``."""
        return cls(spec, spec.columns(ids, values))

    def column(self, name: str) -> Tensor:
        """Of a feature, for every row: ``[B, ...]``."""
        return self.columns[name] if name in self.columns else self.spread(self.request[name])

    def logit(self, backbone: Network, training: bool = False) -> Tensor:
        """What a backbone makes of the rows: in parts where it reads these, else put together."""
        names = [field.name for field in self.spec.fields]
        candidate, shared = (
            {name: part[name] for name in names if name in part} for part in (self.columns, self.request)
        )
        if candidate and shared and "request" in inspect.signature(backbone.call).parameters:
            return backbone(candidate, training=training, request=shared)
        return backbone({name: self.column(name) for name in names}, training=training)

    def spread(self, x: Tensor) -> Tensor:
        """What the rows of a request have in common, for each of them: ``[R, ...]`` to ``[B, ...]``."""
        requests, rows = tf.shape(x)[0], tf.shape(next(iter(self.columns.values())))[0]
        rest = x.shape[1:].as_list()
        wide = tf.broadcast_to(x[:, None], tf.stack([requests, rows // tf.maximum(requests, 1), *rest]))
        return tf.reshape(wide, tf.stack([rows, *rest]))


def add_parts(parts: Sequence[Tensor]) -> Tensor:
    """The sum of float32 ``[R, w]``, a row for each of R groups of consecutive rows, and ``[B, w]``; of one part, itself."""
    *shared, total = parts
    for x in shared:
        requests, rows, width = tf.shape(x)[0], tf.shape(total)[0], total.shape[1]
        each = tf.reshape(total, tf.stack([requests, rows // tf.maximum(requests, 1), width]))
        total = tf.reshape(each + x[:, None], tf.stack([rows, width]))
    return total


def apply_mlp(
    network: Network, parts: Sequence[Tensor], columns: Sequence[Sequence[int | None]], training: bool = False
) -> Tensor:
    """Outputs of `inputs.mlp` for inputs that come in parts: its first layer reads what a request's rows have in
    common once.

    In a graph the first layer's weights, cut by the parts, are constants: those of the time when the graph is made.

    Args:
        network: the layers.
        parts: the inputs' columns, ``[R, w]`` or ``[B, w]`` each.
        columns: which of the inputs each part's are; None where it is none of them.
        training: whether dropout is on, which parts do not have.
    """
    if len(parts) == 1:
        return network(parts[0], training=training)
    with tf.init_scope():  # to pick a matrix's rows in every request costs more than a request of few candidates
        inputs = sum(at is not None for some in columns for at in some)
        whole = network.layers[0].kernel if network.layers else tf.eye(inputs)
        padded, nothing = tf.pad(whole, [[0, 1], [0, 0]]), whole.shape[0]
        kernels = [tf.gather(padded, tf.constant([nothing if at is None else at for at in some])) for some in columns]
    products = [x @ kernel for x, kernel in zip(parts, kernels, strict=True)]
    if not network.layers:  # it gives its inputs
        return add_parts(products)
    first, *others = network.layers
    hidden = first.activation(add_parts([products[0] + first.bias, *products[1:]]))
    for layer in others:
        hidden = layer(hidden)
    return hidden
