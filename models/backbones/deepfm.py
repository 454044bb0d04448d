"""DeepFM: a factorisation machine and a deep network over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, Flat, NumberVectors, logit_layer, mlp
from clsd.models.model_inputs import add_parts, apply_mlp


class DeepFM(keras.Model):  # type: ignore[misc]
    """s = b + sum_i w_i + sum_{i<j} <v_i, v_j> + MLP([v_1, ..., v_E, x_1, ..., x_n]).

    w_i and v_i are the first-order weight and the vector of field i; both stand in one row of the table, so a step looks
    each id up once. A number x has x w and x v in the sums, w and v learnt; the MLP reads x itself, scaled. The pairwise sum is
    computed as ``(|sum v|**2 - sum |v|**2) / 2``.

    Args:
        spec: the fields.
        embedding_dim: length D of v_i.
        hidden_units: widths of the MLP.
        dropout: share of hidden units dropped in training.

    Call arguments:
        inputs: one tensor a field, by name.
        training: whether dropout is on.
        request: the fields that ``inputs`` leaves out, a row for each of R groups of consecutive rows that have them in common.

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
        """Of some fields or all: the sums of their rows and of the squares, and inputs of the MLP of these columns."""
        rows, numbers = self.embedding(inputs), self._spec.numbers(inputs)
        positions = self._spec.positions(inputs)[1]
        sums, squares = self.number_vectors(numbers, positions)
        # Not tf.add_n of the fields, if faster: it begins with whichever of its inputs nobody else holds any more, so the weights
        # would not be the same from run to run.
        sums += tf.reduce_sum(rows, axis=1)
        squares += tf.reduce_sum(tf.square(rows), axis=1)
        if whole:  # of parts the first-order weights stay, which to leave out would be a copy more
            rows = tf.split(rows, [self._dim, 1], axis=2)[0]
        columns = self._spec.flat_columns(inputs, self._dim, rows.shape[2])
        return sums, squares, self.flat((rows, numbers), positions), columns
