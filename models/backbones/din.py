"""DIN: attention over a history, with the shown item as the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clsd.features.errors import UserError
from clsd.features.tf_runtime import Tensor, keras, tf
from clsd.models.input_spec import Field, InputSpec
from clsd.models.layers import FieldEmbedding, Flat, logit_layer, mlp


class DIN(keras.Model):  # type: ignore[misc]
    """s = MLP([v_1, ..., v_E, x_1, ..., x_n, u_1, ..., u_S]), u = sum_l a_l k_l being a sequence weighed by its target t.

    k_l are the rows of the sequence's values, t is the vector of the id field of the same table, and
    a_l = MLP_a([k_l, t, k_l - t, k_l * t]), each sequence with an MLP_a of its own; a_l of padding is 0, so an empty sequence
    is the vector 0. Where several id fields have the table, the target is the feature that the table is named after, else
    the first. v_i are the vectors of all other fields, the targets among them; a sequence without a target is one of
    these, as the mean of its rows. x_i are the numbers.

    Args:
        spec: the fields, at least one of them a sequence with a target.
        embedding_dim: length D of every vector.
        attention_units: widths of MLP_a before its one output. ReLU stands for the paper's Dice, which needs the statistics
            of the batch.
        softmax: whether a_l is normalised by a softmax over the sequence. The sum of the weights, which the paper leaves
            free, says how strong the interest is.
        hidden_units: widths of the MLP.
        dropout: share of the MLP's hidden units dropped in training; none of MLP_a's.

    Call arguments:
        inputs: one tensor per field, by name.
        training: whether dropout is on.

    Returns:
        logits float32 ``[B]``.

    Raises:
        UserError: no sequence has a target.

    Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction".
    """

    def __init__(
        self,
        spec: InputSpec,
        embedding_dim: int,
        attention_units: Sequence[int] = (36,),
        softmax: bool = False,
        hidden_units: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name="din", dtype="float32")
        targets = {field.name: _target(field, spec.fields) for field in spec.fields if field.kind == "sequence"}
        attended = [field for field in spec.fields if targets.get(field.name)]
        if not attended:
            raise UserError(
                "model.backbone: din",
                "no sequence shares its table with a feature of one value that the backbone sees",
                "add a sequence feature with `share: <item feature>`",
            )
        others = tuple(field for field in spec.embedded if field not in attended)
        # (sequence, its table, position of its target among the others)
        self._histories = tuple((field.name, field.table, others.index(targets[field.name])) for field in attended)
        self._spec = spec
        self.flat = Flat(name="flat")
        self.embedding = FieldEmbedding(others, embedding_dim, name="embedding")
        self.interests = [
            _Interest(list(attention_units), softmax, name=f"interest_{field.name}") for field in attended
        ]
        self.deep = mlp(list(hidden_units), dropout, name="deep")
        self.head = logit_layer()

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """See the class."""
        vectors = self.embedding(inputs)
        parts = [self.flat((vectors, self._spec.numbers(inputs)))]
        for (name, table, target), interest in zip(self._histories, self.interests, strict=True):
            ids = inputs[name]
            # The target is an embedded field of this very table, so the table is there.
            interests = interest(self.embedding.tables[table](ids), vectors[:, target], ids != 0)
            parts.append(tf.cast(interests, vectors.dtype))
        return self.head(self.deep(tf.concat(parts, axis=1), training=training))[:, 0]


def _target(sequence: Field, fields: tuple[Field, ...]) -> Field | None:
    candidates = [field for field in fields if field.kind == "id" and field.table == sequence.table]
    same_name = [field for field in candidates if field.name == sequence.table]
    return next(iter([*same_name, *candidates]), None)


class _Interest(keras.layers.Layer):  # type: ignore[misc]
    """sum_l a_l k_l of rows k ``[B, L, D]``, target ``[B, D]`` and bool ``[B, L]``, false at padding: float32 ``[B, D]``."""

    def __init__(self, units: list[int], softmax: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._softmax = softmax
        self.hidden = mlp(units, dropout=0.0, name="hidden")
        self.out = keras.layers.Dense(1, name="out")

    def call(self, keys: Tensor, target: Tensor, is_value: Tensor) -> Tensor:
        t = tf.broadcast_to(tf.cast(target, keys.dtype)[:, None, :], tf.shape(keys))
        weights = self.out(self.hidden(tf.concat([keys, t, keys - t, keys * t], axis=2)))[:, :, 0]
        if self._softmax:
            # The least number, not -inf: a sequence of padding alone would give NaN.
            weights = tf.nn.softmax(tf.where(is_value, weights, weights.dtype.min))
        return tf.einsum("bl,bld->bd", tf.where(is_value, weights, tf.zeros_like(weights)), keys)
