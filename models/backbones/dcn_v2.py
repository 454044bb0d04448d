"""DCN-v2: explicit feature crosses beside a deep network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import tensorflow_recommenders as tfrs

from clsd.features.keras_private import all_layers, set_dtype_policy
from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, Flat, logit_layer, mlp


class DCNv2(keras.Model):  # type: ignore[misc]
    """Cross layers x_{l+1} = x_0 * (W_l x_l + b_l) + x_l and an MLP; x_0 is the embeddings and the numbers, side by side.

    Args:
        spec: the fields.
        embedding_dim: length D of each field's vector.
        cross_layers: number of cross layers.
        projection_dim: rank of W_l; None for a full matrix.
        hidden_units: widths of the MLP.
        dropout: share of hidden units dropped in training.
        structure: parallel (head over both outputs side by side) or stacked (MLP over the crosses).

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Source: Wang et al. 2021, "DCN V2: Improved Deep & Cross Network"; the cross layer is tensorflow-recommenders'.
    """

    def __init__(
        self,
        spec: InputSpec,
        embedding_dim: int,
        cross_layers: int = 3,
        projection_dim: int | None = None,
        hidden_units: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        structure: Literal["parallel", "stacked"] = "parallel",
    ) -> None:
        super().__init__(name="dcn_v2", dtype="float32")
        if structure not in ("parallel", "stacked"):
            raise ValueError(f"structure: '{structure}' is not parallel or stacked")
        self._parallel = structure == "parallel"
        self._spec = spec
        self.flat = Flat(name="flat")
        self.embedding = FieldEmbedding(spec.embedded, embedding_dim, name="embedding")
        self.crosses = [_Cross(projection_dim=projection_dim, name=f"cross_{layer}") for layer in range(cross_layers)]
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """See the class."""
        x0 = self.flat((self.embedding(inputs), self._spec.numbers(inputs)))
        crossed = x0
        for cross in self.crosses:
            crossed = cross(x0, crossed)
        if self._parallel:
            both = tf.concat([tf.cast(side, x0.dtype) for side in (crossed, self.deep(x0, training=training))], axis=1)
        else:
            both = self.deep(crossed, training=training)
        return self.head(both)[:, 0]


class _Cross(tfrs.layers.dcn.Cross):  # type: ignore[misc]
    """tensorflow-recommenders' layer, whose matrices compute in what the layer computes in and not in float32."""

    def build(self, input_shape: tf.TensorShape) -> None:
        super().build(input_shape)
        for dense in all_layers(self, include_self=False):
            set_dtype_policy(dense, self.dtype_policy)

    def call(self, x0: Tensor, x: Tensor) -> Tensor:
        return super().call(x0, tf.cast(x, x0.dtype))  # of the arguments Keras casts the first
