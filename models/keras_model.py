"""Click confidence for a Keras network of your own, trained on a ``tf.data`` of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clsd.features.errors import UserError, did_you_mean
from clsd.features.tf_runtime import Network, Tensor, Tensors, tf
from clsd.models import step_metrics
from clsd.models.adgate import AdGate
from clsd.models.confidence_model import ConfidenceModel, TrainingSetup, metrics_of_test_sums
from clsd.models.settings import ConfidenceSettings


class KerasConfidenceModel(ConfidenceModel):
    """Any Keras 2 network with one logit per row (no sigmoid), trained with click confidence by ``compile()`` and ``fit()``.

    A batch is ``(inputs, label)`` or ``(inputs, label, valid)``: inputs as the network takes them, label ``[B]`` or ``[B, 1]``
    of 0 and 1, valid ``[B]`` of 0 for padding and 1 for rows. Embedding layers train with the setup's
    ``embedding_optimizer``, all other weights with its ``dense_optimizer``; arguments of ``compile`` are ignored.

    ``fit`` and ``evaluate`` report metrics over all batches of an epoch. ``predict`` gives logits; ``score_inputs`` gives logits,
    confidence and weights. The trained network is ``backbone``; save it with ``model.backbone.save(path)``.

    Args:
        make_network: makes the network. It is called once, and once more if the settings need a separate teacher.
        sample: inputs of a batch of at least 2 rows (tensors or arrays), to create the variables with.
        confidence: the method's settings; without ``groups`` its gate must be off.
        setup: warm-up, optimizers, and the training rows' CTR.
        groups: AdGate's groups: name of an integer input ``[B]``, and number of its ids. The inputs must be a dictionary.

    Raises:
        UserError: the settings need what only clsd's own data sets have (items' counts, intensity), or do not fit the
            groups; or the network's output is no float32 logit.

    >>> from clsd.features.tf_runtime import keras, tf
    >>> def make_network():
    ...     return keras.Sequential([keras.layers.Embedding(10, 4), keras.layers.Dense(1)])
    >>> ids, clicks = tf.constant([1, 2, 3, 4]), tf.constant([1, 0, 1, 0])
    >>> settings = ConfidenceSettings(gate="off", warmup_steps=1)
    >>> model = KerasConfidenceModel(make_network, ids, settings)
    >>> model.compile()
    >>> _ = model.fit(tf.data.Dataset.from_tensors((ids, clicks)).repeat(3), verbose=0)
    >>> model.score_inputs(ids).weight.shape
    TensorShape([4])
    """

    def __init__(
        self,
        make_network: Callable[[], Network],
        sample: Tensors,
        confidence: ConfidenceSettings,
        setup: TrainingSetup | None = None,
        groups: Mapping[str, int] | None = None,
    ) -> None:
        self._require_fit(confidence, sample, groups or {})
        student = make_network()
        teacher = make_network() if confidence.separate_teacher else None
        gate = None
        if confidence.weighted and confidence.gate != "off":
            gate = AdGate(list((groups or {}).values()), confidence.gate_embedding_dim, confidence.gate_units)
        setup = setup or TrainingSetup(warmup_steps=confidence.warmup_steps or 0)
        super().__init__(student, teacher, gate, confidence, setup)
        self._group_names = tuple(groups or {})
        # Metrics are those of all batches of an epoch. The sums are equal on all replicas.
        replicated = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._epoch_sums = tf.Variable(step_metrics.empty_sums(), **replicated)
        self._test_sums = tf.Variable(tf.zeros([4]), **replicated)
        self._create_variables(tf.nest.map_structure(lambda x: tf.convert_to_tensor(x)[:2], sample))

    def reset_metrics(self) -> None:
        """Start the metrics of an epoch or of an evaluation; Keras calls it."""
        super().reset_metrics()
        self._epoch_sums.assign(step_metrics.empty_sums())
        self._test_sums.assign(tf.zeros_like(self._test_sums))

    def train_step(self, data: Tensors) -> dict[str, Tensor]:
        """One step; gives the metrics of the epoch so far."""
        sums = self.train_metric_sums(data)
        return step_metrics.metrics_from(
            self._epoch_sums.assign(step_metrics.merged(tf.stack([self._epoch_sums, sums])))
        )

    def test_step(self, data: Tensors) -> dict[str, Tensor]:
        """Mean loss, predicted and real CTR of all batches so far, unweighted."""
        return metrics_of_test_sums(self._test_sums.assign_add(self.test_sums(data)))

    def unpack(self, data: Tensors) -> tuple[Tensors, Tensor, Tensor, dict[str, Tensor]]:
        """See the class for what a batch is."""
        inputs, label, *rest = data
        label = tf.reshape(tf.cast(label, tf.float32), [-1])
        valid = tf.reshape(tf.cast(rest[0], tf.float32), [-1]) if rest else tf.ones_like(label)
        return inputs, label, valid, {}

    def group_ids(self, inputs: Tensors) -> Tensor:
        """AdGate's input, int32 ``[B, K]``."""
        return tf.stack([tf.cast(tf.reshape(inputs[name], [-1]), tf.int32) for name in self._group_names], axis=1)

    @staticmethod
    def _require_fit(confidence: ConfidenceSettings, sample: Tensors, groups: Mapping[str, int]) -> None:
        if confidence.weighted and confidence.source != "teacher":
            what = "needs what clsd's own data sets count"
            raise UserError(f"confidence.source: {confidence.source}", what, "set source: teacher")
        if confidence.weighted and confidence.gate != "off" and not groups:
            raise UserError("groups", "are missing, and AdGate corrects by them", "name some, or set gate='off'")
        if any(len(x) < 2 for x in tf.nest.flatten(sample)):
            raise UserError("sample", "has fewer than 2 rows", "give inputs of a batch")
        names = list(sample) if isinstance(sample, Mapping) else []
        for group in groups:
            if group not in names:
                raise UserError(f"groups: {group}", "is not an input", did_you_mean(group, names))
