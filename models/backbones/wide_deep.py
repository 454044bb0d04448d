"""Wide & Deep: a linear model and a deep network, trained as one."""

from __future__ import annotations

from collections.abc import Sequence

from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import InputSpec
from clsd.models.layers import FieldEmbedding, Flat, NumberVectors, logit_layer, mlp
from clsd.models.model_inputs import add_parts, apply_mlp


class WideDeep(keras.Model):  # type: ignore[misc]
    """s = b + sum_i w_i + MLP([v_1, ..., v_E, x_1, ..., x_n]).

    w_i and v_i are the first-order weight and the vector of field i; both are in one row of the table, so a step looks
    each id up once. A number x contributes x w, with w learnt; the MLP reads x itself, scaled. A cross of two features
    is wide if the log has it as a feature.

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

    Source: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems".
    """

    def __init__(
        self, spec: InputSpec, embedding_dim: int, hidden_units: Sequence[int] = (256, 128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__(name="wide_deep", dtype="float32")
        self._spec, self._dim = spec, embedding_dim
        self.flat = Flat(name="flat")
        self.embedding = FieldEmbedding(spec.embedded, embedding_dim + 1, name="embedding")
        self.number_weights = NumberVectors(1, name="number_weights")
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(
        self, inputs: dict[str, Tensor], training: bool = False, request: dict[str, Tensor] | None = None
    ) -> Tensor:
        """See the class."""
        parts = [inputs] if request is None else [request, inputs]
        first_order, flat, columns = zip(*(self._read(part) for part in parts), strict=True)
        return (add_parts(first_order) + self.head(apply_mlp(self.deep, flat, columns, training)))[:, 0]

    def _read(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[int | None]]:
        """The sum of the given fields' first-order weights, their inputs of the MLP, and the columns of these."""
        rows, numbers = self.embedding(inputs), self._spec.numbers(inputs)
        vectors, weights = tf.split(rows, [self._dim, 1], axis=2)
        positions = self._spec.positions(inputs)[1]
        first_order = tf.reduce_sum(weights, axis=1) + self.number_weights(numbers, positions)[0]
        columns = self._spec.flat_columns(inputs, self._dim, self._dim)
        return first_order, self.flat((vectors, numbers), positions), columns
