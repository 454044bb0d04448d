"""Wide & Deep: a linear model and a deep network, trained as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from features.tf_runtime import keras, tf
from models.inputs import FieldEmbedding, InputSpec, logit_layer, mlp


class WideDeep(keras.Model):  # type: ignore[misc]
    """s = b + sum_i w_i + MLP([v_1, ..., v_F]).

    w_i and v_i are the first-order weight and the vector of field i; both stand in one row of the table, so a step looks
    each id up once. A cross of two features is wide where the log has it as a feature of its own.

    Args:
        spec: the fields.
        embedding_dim: length D of v_i.
        hidden_units: widths of the MLP.
        dropout: share of hidden units dropped in training.

    Call arguments:
        inputs: one tensor a field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Source: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems".
    """

    def __init__(
        self, spec: InputSpec, embedding_dim: int, hidden_units: Sequence[int] = (256, 128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__(name="wide_deep", dtype="float32")
        self.embedding = FieldEmbedding(spec.fields, embedding_dim + 1, name="embedding")
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """See the class."""
        rows = self.embedding(inputs)
        first_order = tf.reduce_sum(rows[:, :, -1], axis=1)
        vectors = rows[:, :, :-1]
        flat = tf.reshape(vectors, [-1, vectors.shape[1] * vectors.shape[2]])
        return first_order + self.head(self.deep(flat, training=training))[:, 0]
