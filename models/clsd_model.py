"""The model of the pipeline: a backbone over encoded rows, trained with click confidence."""

from __future__ import annotations

from typing import NamedTuple

from clsd.features.arrays import Array
from clsd.features.tf_runtime import Batch, Network, Tensor, Tensors, tf
from clsd.models import equations
from clsd.models.adgate import AdGate
from clsd.models.backbones.registry import build_backbone
from clsd.models.calibration import Calibrator
from clsd.models.confidence_model import ConfidenceModel, Scores, TrainingSetup
from clsd.models.input_spec import InputSpec
from clsd.models.model_inputs import ModelInputs
from clsd.models.settings import ConfidenceSettings, ModelSettings


class ItemScores(NamedTuple):
    """q by item, for ``source: item`` and ``popularity``: the item's feature, and float32 ``[size]`` by its ids."""

    feature: str
    scores: Array


class ClsdModel(ConfidenceModel):
    """A CTR model over encoded rows whose clicks are weighted by their confidence.

    A batch is a dictionary: ids int32 ``[B, width]``, values float32 ``[B, n]``, label float32 ``[B]``, valid float32
    ``[B]`` (0 for padding). ``source: intensity`` reads intensity float32 ``[B]``. Where a batch brings teacher
    float32 ``[B]``, those are the scores q of its clicks, and the teacher is not asked.

    Args:
        spec: fields and groups.
        model: the backbone's settings.
        confidence: the method's settings.
        setup: what else training needs.
        items: scores by item, where the settings count items.
    """

    def __init__(
        self,
        spec: InputSpec,
        model: ModelSettings,
        confidence: ConfidenceSettings,
        setup: TrainingSetup,
        items: ItemScores | None = None,
    ) -> None:
        student = build_backbone(model, spec, setup.precision)
        teacher = build_backbone(model, spec, setup.precision) if confidence.separate_teacher else None
        gate = None
        if confidence.weighted and confidence.gate != "off":
            sizes = [size for _, size in spec.groups]
            gate = AdGate(sizes, confidence.gate_embedding_dim, confidence.gate_units)
        super().__init__(student, teacher, gate, confidence, setup)
        self.spec = spec
        self._item, self._item_scores = "", None
        if confidence.counts_items:
            assert items is not None
            self._item, scores = items
            self._item_scores = tf.Variable(scores, dtype=tf.float32, name="item_scores", trainable=False)
        self._create_variables(
            {"ids": tf.zeros([2, spec.width], tf.int32), "values": tf.zeros([2, len(spec.value_columns)])}
        )

    def score(self, ids: Tensor, values: Tensor) -> Scores:
        """Scores of encoded rows, ids int32 ``[B, width]`` and values float32 ``[B, n]``."""
        return self.score_inputs(ModelInputs.of(self.spec, ids, values))

    def score_cheaply(self, inputs: ModelInputs, calibrator: Calibrator) -> Scores:
        """As :meth:`score_inputs`, without asking the teacher: the calibrator estimates the weight from s and g."""
        logit = self.logit_of(self.backbone, inputs)
        g = self.correction(inputs, logit)
        weight = tf.exp(calibrator.log_weight(logit, g))
        return self._scores(logit, equations.confidence_of_weight(weight, self.confidence_settings.blend), weight, g)

    def teacher_logit(self, ids: Tensor, values: Tensor) -> Tensor:
        """Log odds by the separate teacher, float32 ``[B]``."""
        return self.logit_of(self.teacher, ModelInputs.of(self.spec, ids, values))

    def unpack(self, data: Batch) -> tuple[Tensors, Tensor, Tensor, dict[str, Tensor]]:
        """See the class for the keys of a batch."""
        inputs = {name: data[name] for name in ("ids", "values")}
        extras: dict[str, Tensor] = {name: data[name] for name in ("intensity", "teacher") if name in data}
        return inputs, data["label"], data["valid"], extras

    def group_ids(self, inputs: Tensors) -> Tensor:
        """AdGate's input, int32 ``[B, K]``: the ids of the group features."""
        rows = self._rows(inputs)
        return tf.stack([rows.column(name) for name, _ in self.spec.groups], axis=1)

    def item_score(self, inputs: Tensors) -> Tensor:
        """q of each row's item, float32 ``[B]``."""
        return tf.gather(self._item_scores, self._rows(inputs).column(self._item))

    def correction(self, inputs: Tensors, q: Tensor) -> Tensor:
        """g of the gate, float32 ``[B]``; read once a request where the groups are the user's."""
        rows = self._rows(inputs)
        if self.gate is not None and all(name in rows.request for name, _ in self.spec.groups):
            return rows.spread(self.gate(self.group_ids(ModelInputs(self.spec, rows.request))))
        return super().correction(rows, q)

    def _call(self, network: Network, inputs: Tensors, training: bool = False) -> Tensor:
        return self._rows(inputs).logit(network, training)

    def _rows(self, inputs: Tensors) -> ModelInputs:
        """Inputs by feature, from those or from the matrices of a batch."""
        if isinstance(inputs, ModelInputs):
            return inputs
        return ModelInputs.of(self.spec, inputs["ids"], inputs["values"])
