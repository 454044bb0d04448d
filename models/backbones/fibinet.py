"""FiBiNET: fields weighed by their importance, and bilinear interactions of their pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from clsd.features.errors import UserError
from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, logit_layer, mlp


class FiBiNET(keras.Model):  # type: ignore[misc]
    """s = b + sum_i w_i + MLP([p, q]), p the interactions of the vectors v_i and q those of the re-weighted a_i v_i.

    The interaction of fields i < j is the vector (v_i W) * v_j; p and q have a W each. The importances are
    a = relu(relu(z W_1) W_2), where z_i is the mean of the entries of v_i. The first-order weight w_i stands in one row of
    the table with v_i.

    Args:
        spec: the fields, two at least.
        embedding_dim: length D of v_i.
        reduction_ratio: W_1 is ``[F, max(1, F // reduction_ratio)]`` and W_2 leads back to F.
        bilinear: whose W is: of all pairs (field_all, D**2 weights), of field i (field_each, (F - 1) D**2), or of the pair
            (field_interaction, F (F - 1) / 2 D**2).
        hidden_units: widths of the MLP, whose input is F (F - 1) D wide.
        dropout: share of hidden units dropped in training.

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Source: Huang et al. 2019, "FiBiNET: Combining Feature Importance and Bilinear feature Interaction for Click-Through
    Rate Prediction".
    """

    def __init__(
        self,
        spec: InputSpec,
        embedding_dim: int,
        reduction_ratio: int = 3,
        bilinear: Literal["field_all", "field_each", "field_interaction"] = "field_all",
        hidden_units: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name="fibinet", dtype="float32")
        if bilinear not in ("field_all", "field_each", "field_interaction"):
            raise ValueError(f"bilinear: '{bilinear}' is not field_all, field_each or field_interaction")
        fields = len(spec.fields)
        if fields < 2:
            raise UserError("model.backbone: fibinet", "one feature forms no pairs", "add a feature, or use wide_deep")
        self.embedding = FieldEmbedding(spec.fields, embedding_dim + 1, name="embedding")
        self.squeeze = keras.layers.Dense(
            max(1, fields // reduction_ratio), activation="relu", use_bias=False, name="squeeze"
        )
        self.excite = keras.layers.Dense(fields, activation="relu", use_bias=False, name="excite")
        self.interact = _Bilinear(bilinear, name="interact")
        self.interact_weighted = _Bilinear(bilinear, name="interact_weighted")
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """See the class."""
        rows = self.embedding(inputs)
        first_order = tf.reduce_sum(rows[:, :, -1], axis=1)
        vectors = rows[:, :, :-1]
        importance = tf.cast(self.excite(self.squeeze(tf.reduce_mean(vectors, axis=2))), vectors.dtype)
        pairs = [self.interact(vectors), self.interact_weighted(vectors * importance[:, :, None])]
        return first_order + self.head(self.deep(tf.concat(pairs, axis=1), training=training))[:, 0]


class _Bilinear(keras.layers.Layer):  # type: ignore[misc]
    """(v_i W) * v_j for every i < j, side by side: float32 ``[B, F, D]`` to ``[B, F (F - 1) / 2 * D]``."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kind = kind

    def build(self, input_shape: tf.TensorShape) -> None:
        _, fields, dim = input_shape
        pairs = list(itertools.combinations(range(fields), 2))
        self._left, self._right = (tuple(side) for side in zip(*pairs, strict=True))
        stacked = {"field_all": (), "field_each": (fields - 1,), "field_interaction": (len(pairs),)}[self._kind]
        # Glorot's bound for one matrix: Keras would take a stack of them for one convolution, and start far smaller.
        bound = math.sqrt(3.0 / dim)
        self.kernel = self.add_weight(
            name="kernel", shape=(*stacked, dim, dim), initializer=keras.initializers.RandomUniform(-bound, bound)
        )
        super().build(input_shape)

    def call(self, vectors: Tensor) -> Tensor:
        if self._kind == "field_interaction":
            mapped = tf.einsum("bpd,pde->bpe", tf.gather(vectors, self._left, axis=1), self.kernel)
        else:
            # Each field is mapped once, however many pairs it is in; the last field is the first of none.
            indices = "bfd,de->bfe" if self._kind == "field_all" else "bfd,fde->bfe"
            mapped = tf.gather(tf.einsum(indices, vectors[:, :-1], self.kernel), self._left, axis=1)
        pairs = mapped * tf.gather(vectors, self._right, axis=1)
        return tf.reshape(pairs, [-1, pairs.shape[1] * pairs.shape[2]])
