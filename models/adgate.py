"""AdGate: a small network over user groups that corrects the teacher's scores.

Its loss is :func:`clsd.models.equations.gate_losses`; the training step differentiates it in
:meth:`clsd.models.confidence_model.ConfidenceModel.train_metric_sums`."""

from __future__ import annotations

from collections.abc import Sequence

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.embedding_table import Table


class AdGate(keras.Model):  # type: ignore[misc]
    """g = MLP([e_1(G_1), ..., e_K(G_K)]): one number per row, zero for every group before training.

    Args:
        sizes: number of ids of each group feature.
        embedding_dim: length of each e_k.
        units: hidden widths.

    Call arguments:
        group_ids: int32 ``[B, K]``.

    Returns:
        float32 ``[B]``.

    Source: CLSD (arXiv 2309.16322); its shape is ours.

    >>> AdGate(sizes=[7, 3])(tf.zeros([4, 2], tf.int32)).shape
    TensorShape([4])
    """

    def __init__(self, sizes: Sequence[int], embedding_dim: int = 4, units: Sequence[int] = (16,)) -> None:
        super().__init__(name="adgate")
        self.embeddings = [
            Table(size, embedding_dim, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1))
            for size in sizes
        ]
        self.hidden = [keras.layers.Dense(width, activation="relu") for width in units]
        # Zeros: the gate starts without correction, so weights do not jump at the end of warm-up.
        self.out = keras.layers.Dense(1, kernel_initializer="zeros")

    def call(self, group_ids: Tensor) -> Tensor:
        """See the class."""
        x = tf.concat([embedding(group_ids[:, k]) for k, embedding in enumerate(self.embeddings)], axis=1)
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)[:, 0]
