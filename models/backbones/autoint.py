"""AutoInt: self-attention over the fields, beside a deep network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, logit_layer, mlp


class AutoInt(keras.Model):  # type: ignore[misc]
    """Attention layers over the fields' vectors, flattened, and an MLP of the same vectors; one head over both.

    A layer turns the vector e_m of every field m into relu([o_1, ..., o_H] + e_m W_r), where head h adds up
    o_h = sum_k a_mk e_k V_h over all fields k, with a_m = softmax over k of <e_m Q_h, e_k K_h>. An empty bag or sequence is
    the vector 0 and takes part as such.

    Args:
        spec: the fields.
        embedding_dim: length D of each field's vector.
        attention_layers: number of layers.
        heads: number H of heads of a layer.
        attention_dim: length of a head's vectors, so that a layer gives vectors of H * attention_dim.
        hidden_units: widths of the MLP; none for attention alone.
        dropout: share of the MLP's hidden units dropped in training.

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Source: Song et al. 2019, "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks".
    """

    def __init__(
        self,
        spec: InputSpec,
        embedding_dim: int,
        attention_layers: int = 3,
        heads: int = 2,
        attention_dim: int = 32,
        hidden_units: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name="autoint", dtype="float32")
        self.embedding = FieldEmbedding(spec.fields, embedding_dim, name="embedding")
        self.attention = [
            _FieldAttention(heads, attention_dim, name=f"attention_{layer}") for layer in range(attention_layers)
        ]
        self.deep = mlp(list(hidden_units), dropout, name="deep") if hidden_units else None
        self.head = logit_layer()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """See the class."""
        vectors = attended = self.embedding(inputs)
        for layer in self.attention:
            attended = layer(attended)
        parts = [tf.reshape(attended, [-1, attended.shape[1] * attended.shape[2]])]
        if self.deep is not None:
            flat = tf.reshape(vectors, [-1, vectors.shape[1] * vectors.shape[2]])
            parts.append(tf.cast(self.deep(flat, training=training), attended.dtype))
        return self.head(tf.concat(parts, axis=1))[:, 0]


class _FieldAttention(keras.layers.Layer):  # type: ignore[misc]
    """One layer of AutoInt: float32 ``[B, F, D]`` to ``[B, F, H * dim]``."""

    def __init__(self, heads: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._heads, self._dim = heads, dim
        self.query, self.key, self.value, self.residual = (
            keras.layers.Dense(heads * dim, use_bias=False, name=name) for name in ("query", "key", "value", "residual")
        )

    def call(self, vectors: Tensor) -> Tensor:
        fields, width = vectors.shape[1], self._heads * self._dim
        query, key, value = (  # [B, H, F, dim] each
            tf.transpose(tf.reshape(dense(vectors), [-1, fields, self._heads, self._dim]), [0, 2, 1, 3])
            for dense in (self.query, self.key, self.value)
        )
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        heads = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return tf.nn.relu(tf.reshape(heads, [-1, fields, width]) + self.residual(vectors))
