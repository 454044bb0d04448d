"""DLRM: the numbers as one vector among the embeddings, and the dot products of all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_recommenders as tfrs

from clsd.features.errors import UserError
from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, logit_layer, mlp


class DLRM(keras.Model):  # type: ignore[misc]
    """s = MLP_top([x, <v_i, v_j> for all j < i]), x = MLP_bottom(numbers) being one of the vectors.

    The other vectors are those of the id, bag and sequence fields. Without numeric fields there is no x.

    Args:
        spec: the fields, giving two vectors at least.
        embedding_dim: length D of v_i and of x.
        bottom_units: widths of the bottom MLP before its last layer, which has D units and ReLU.
        hidden_units: widths of the top MLP.
        dropout: share of hidden units of both MLPs dropped in training; none of x itself.

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems"; the
    products are tensorflow-recommenders'.
    """

    def __init__(
        self,
        spec: InputSpec,
        embedding_dim: int,
        bottom_units: Sequence[int] = (128, 64),
        hidden_units: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name="dlrm", dtype="float32")
        self._spec, has_numbers = spec, len(spec.embedded) < len(spec.fields)
        if len(spec.embedded) + has_numbers < 2:
            what = "needs two vectors (all numeric features are one vector, any other feature is one)"
            raise UserError("model.backbone: dlrm", what, "add a categorical feature, or use wide_deep")
        self.embedding = FieldEmbedding(spec.embedded, embedding_dim, name="embedding")
        self.bottom = None
        if has_numbers:
            self.bottom = mlp(list(bottom_units), dropout, name="bottom")
            self.bottom_out = keras.layers.Dense(embedding_dim, activation="relu", name="bottom_out")
        self.dots = tfrs.layers.feature_interaction.DotInteraction(name="dots")
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """See the class."""
        vectors = tf.unstack(self.embedding(inputs), axis=1)
        dense = []
        if self.bottom is not None:
            dense = [self.bottom_out(self.bottom(self._spec.numbers(inputs), training=training))]
        both = tf.concat([*dense, self.dots([*dense, *vectors])], axis=1)
        return self.head(self.deep(both, training=training))[:, 0]
