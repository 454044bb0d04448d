"""DeepFM: a factorisation machine and a deep network over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, Flat, NumberVectors, logit_layer, mlp
from clsd.models.model_inputs import add_parts, apply_mlp


class DeepFM(keras.Model):  # type: ignore[misc]
    """s = b + sum_i w_i + sum_{i<j} <v_i, v_j> + MLP([v_1, ..., v_E, x_1, ..., x_n]).

    w_i and v_i are the first-order weight and the vector of field i. Both are in one row of the table, so a step looks each id up
    once. A number x contributes x w and x v to the sums, with w and v learnt; the MLP reads x itself, scaled. The pairwise sum is
    computed as ``(|sum v|**2 - sum |v|**2) / 2``.

    Args:
        spec: the fields.
        embedding_dim: length D of v_i.
        hidden_units: widths of the MLP.
        dropout: share of hidden units dropped in training.

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.
        request: the fields that ``inputs`` lacks, one row for each of R groups of consecutive rows that share them.

    Returns:
        logits float32 ``[B]``.

    Source: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction".
    """

    def __init__(
        self, spec: InputSpec, embedding_dim: int, hidden_units: Sequence[int] = (256, 128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__(name="deepfm", dtype="float32")
        self._spec, self._dim = spec, embedding_dim
        self.flat = Flat(name="flat")
        self.embedding = FieldEmbedding(spec.embedded, embedding_dim + 1, name="embedding")
        self.number_vectors = NumberVectors(embedding_dim + 1, name="number_vectors")
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(
        self, inputs: dict[str, Tensor], training: bool = False, request: dict[str, Tensor] | None = None
    ) -> Tensor:
        """See the class."""
        parts = [inputs] if request is None else [request, inputs]
        sums, squares, flat, columns = zip(*(self._read(part, len(parts) == 1) for part in parts), strict=True)
        sums, squares = add_parts(sums), add_parts(squares)
        pairs = 0.5 * tf.reduce_sum((tf.square(sums) - squares)[:, :-1], axis=1)
        return sums[:, -1] + pairs + self.head(apply_mlp(self.deep, flat, columns, training))[:, 0]

    def _read(self, inputs: dict[str, Tensor], whole: bool) -> tuple[Tensor, Tensor, Tensor, list[int | None]]:
        """Sums of the given fields' rows and of their squares, their inputs of the MLP, and the columns of these."""
        rows, numbers = self.embedding(inputs), self._spec.numbers(inputs)
        positions = self._spec.positions(inputs)[1]
        sums, squares = self.number_vectors(numbers, positions)
        # Not tf.add_n, which is faster: it starts with whichever input's buffer is free, so weights would differ from run to run.
        sums += tf.reduce_sum(rows, axis=1)
        squares += tf.reduce_sum(tf.square(rows), axis=1)
        if whole:  # parts keep the first-order weights: removing them would be one more copy
            rows = tf.split(rows, [self._dim, 1], axis=2)[0]
        columns = self._spec.flat_columns(inputs, self._dim, rows.shape[2])
        return sums, squares, self.flat((rows, numbers), positions), columns
