"""The weights of a training batch's clicks, and the weight and confidence of a scored row: one class per way of weighting.

A weighting has two methods. ``train`` gives the weights of a training batch; ``score`` gives the weight and the confidence
that a click on a scored row would have. :func:`make_weighting` picks the class from the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clsd.features.tf_runtime import Tensor, Tensors, tf
from clsd.models import controls, equations
from clsd.models.replicas import gather, local_slice, sum_over
from clsd.models.settings import ConfidenceSettings

if TYPE_CHECKING:
    from clsd.models.confidence_model import ConfidenceModel


class TrainingBatch(NamedTuple):
    """What a weighting sees of a training batch.

    Args:
        inputs: what the networks read.
        label: y, float32 ``[B]`` of 0 and 1.
        valid: float32 ``[B]``, 0 for padding.
        positive: ``label * valid``, float32 ``[B]``.
        p: the student's prediction, without gradient, float32 ``[B]``.
        weighted: whether the warm-up is over, scalar bool.
        extras: optional columns, float32 ``[B]`` each: ``intensity``, and ``teacher`` if the teacher's
            scores were computed beforehand.
    """

    inputs: Tensors
    label: Tensor
    valid: Tensor
    positive: Tensor
    p: Tensor
    weighted: Tensor
    extras: dict[str, Tensor]


class BatchWeights(NamedTuple):
    """The weights of a batch, float32 ``[B]`` each.

    Args:
        click: u of a click, the factor that multiplies its loss (:func:`clsd.models.equations.row_losses`).
        non_click: u of a non-click.
        target: what the loss compares the prediction with: the label, or a softened label.
        gate_losses: AdGate's squared errors.
        gate_rows: 1 for the rows whose gate loss counts.
    """

    click: Tensor
    non_click: Tensor
    target: Tensor
    gate_losses: Tensor
    gate_rows: Tensor


class RowConfidence(NamedTuple):
    """What a click on a scored row would weigh, float32 ``[B]`` each: confidence a / c, weight w, gate correction g."""

    confidence: Tensor
    weight: Tensor
    correction: Tensor


class PlainWeighting:
    """No weighting: every row weighs 1.

    Args:
        model: a :class:`clsd.models.confidence_model.ConfidenceModel`, which holds the variables and the networks.
    """

    def __init__(self, model: ConfidenceModel) -> None:
        self.model = model

    @property
    def settings(self) -> ConfidenceSettings:
        """The method's settings."""
        return self.model.confidence_settings

    def train(self, batch: TrainingBatch) -> BatchWeights:
        """The weights of a training batch; 1 during warm-up."""
        one, zero = tf.ones_like(batch.p), tf.zeros_like(batch.p)
        return BatchWeights(one, one, batch.label, zero, zero)

    def score(self, inputs: Tensors, logit: Tensor) -> RowConfidence:
        """The weight and confidence of a click on each row. Valid after the first weighted step; before it, all weights are 1."""
        one = tf.ones_like(logit)
        return RowConfidence(one, one, tf.zeros_like(logit))


class ReweightedLoss(PlainWeighting):
    """The control R-CE: a click weighs p**b, a non-click (1 - p)**b."""

    def train(self, batch: TrainingBatch) -> BatchWeights:
        """See the class."""
        click, non_click = controls.reweighted(batch.p, self.settings.rce_exponent)
        return self._after_warmup(batch, click, non_click)

    def score(self, inputs: Tensors, logit: Tensor) -> RowConfidence:
        """See the class; the weight is relative to a non-click's."""
        confidence, non_click = controls.reweighted(tf.sigmoid(logit), self.settings.rce_exponent)
        return RowConfidence(confidence, confidence / non_click, tf.zeros_like(logit))

    def _after_warmup(self, batch: TrainingBatch, click: Tensor, non_click: Tensor) -> BatchWeights:
        # These moments only record that weighting has begun.
        sums = sum_over(equations.moment_sums(batch.p, batch.p, batch.positive, 1.0))
        self.model.update_moments(self.model.moments, sums, batch.weighted)
        zero = tf.zeros_like(batch.p)
        return BatchWeights(
            tf.where(batch.weighted, click, 1.0), tf.where(batch.weighted, non_click, 1.0), batch.label, zero, zero
        )


class TruncatedLoss(ReweightedLoss):
    """The control T-CE: the clicks with the largest loss are dropped."""

    def train(self, batch: TrainingBatch) -> BatchWeights:
        """See the class."""
        settings, steps = self.settings, self.model.step - self.model.warmup_steps
        share = controls.drop_share(steps, settings.tce_share, settings.tce_ramp_steps)
        kept = local_slice(controls.truncated(gather(batch.p), gather(batch.positive), share), batch.p)
        return self._after_warmup(batch, kept, tf.ones_like(batch.p))

    def score(self, inputs: Tensors, logit: Tensor) -> RowConfidence:
        """Every row weighs 1: which clicks are dropped is known in training alone."""
        return PlainWeighting.score(self, inputs, logit)


class ConfidenceWeighting(PlainWeighting):
    """The method: clicks are weighted by their confidence.

    ``a = clip(q**alpha + g, eps c, a_max c)`` and ``w = (1 + blend a / c) / (1 + blend)``, see :mod:`clsd.models.equations`. The
    moving sums behind c cover the global batch.
    """

    def train(self, batch: TrainingBatch) -> BatchWeights:
        """See the class."""
        settings, model = self.settings, self.model
        teacher_probability = self._teacher_probabilities(batch)
        target = batch.label
        if settings.soften > 0:
            target = tf.where(batch.weighted, target + settings.soften * (teacher_probability - target), target)
        q = self._confidence_scores(batch, teacher_probability)
        known = batch.positive * tf.cast(tf.math.is_finite(q), tf.float32)  # an intensity may be missing
        q = tf.where(tf.math.is_finite(q), q, 0.0)
        sums = sum_over(equations.moment_sums(q, batch.p, known, settings.alpha))
        moments = model.update_moments(model.moments, sums, batch.weighted)
        c = equations.normaliser(moments, settings.normalise)
        g = model.correction(batch.inputs, q)
        w = equations.positive_weight(self._confidence(q, g, c), c, settings.blend)
        if settings.source == "intensity":
            w = tf.where(known < batch.positive, 1.0, w)
        w = self._redistribute(w, batch)
        gate_losses, gate_rows = tf.zeros_like(w), tf.zeros_like(w)
        if model.gate is not None:
            gate_losses, counted = equations.gate_losses(
                q, g, batch.label, equations.mean_confidence(moments), kind=settings.gate, alpha=settings.alpha
            )
            counted = known if settings.gate == "centre" else counted * batch.valid
            gate_rows = tf.where(batch.weighted, counted, 0.0)
        one = tf.ones_like(w)
        return BatchWeights(tf.where(batch.weighted, w, 1.0), one, target, gate_losses, gate_rows)

    def score(self, inputs: Tensors, logit: Tensor) -> RowConfidence:
        """See the class; q comes from the teacher, or from the item."""
        settings, model = self.settings, self.model
        if settings.counts_items:
            q = model.item_score(inputs)
        else:
            teacher = model.logit_of(model.teacher, inputs) if model.teacher is not None else logit
            q = equations.on_scale(tf.sigmoid(teacher), settings.scale)
        c = equations.normaliser(model.moments, settings.normalise)
        g = model.correction(inputs, q)
        a = self._confidence(q, g, c)
        return RowConfidence(a / c, equations.positive_weight(a, c, settings.blend), g)

    def _confidence(self, q: Tensor, g: Tensor, c: Tensor) -> Tensor:
        settings = self.settings
        return equations.confidence(q, g, c, alpha=settings.alpha, eps=settings.eps, a_max=settings.a_max)

    def _redistribute(self, w: Tensor, batch: TrainingBatch) -> Tensor:
        """Hook for controls that redistribute the weights."""
        return w

    def _confidence_scores(self, batch: TrainingBatch, teacher_probability: Tensor) -> Tensor:
        """q ``[B]`` on its scale, without gradient; NaN where an intensity is missing."""
        if self.settings.source == "intensity":
            return tf.where(batch.label > 0, tf.maximum(batch.extras["intensity"], 0.0), 0.0)
        if self.settings.counts_items:
            return self.model.item_score(batch.inputs)
        return equations.on_scale(teacher_probability, self.settings.scale)

    def _teacher_probabilities(self, batch: TrainingBatch) -> Tensor:
        """The teacher's probability of a click, float32 ``[B]``: the student's p if there is no separate teacher; 0 during the
        warm-up, and for rows whose score is not needed."""
        model, settings = self.model, self.settings
        if model.teacher is None:
            return batch.p
        if "teacher" in batch.extras:
            return batch.extras["teacher"]
        every_row = settings.soften > 0 or (model.gate is not None and settings.gate == "calibration")
        rows = tf.where((batch.valid if every_row else batch.positive) > 0)

        def score_rows() -> Tensor:
            inputs = tf.nest.map_structure(lambda x: tf.gather(x, rows[:, 0]), batch.inputs)
            scores = tf.sigmoid(model.logit_of(model.teacher, inputs))
            return tf.scatter_nd(rows, scores, tf.shape(batch.p, out_type=tf.int64))

        return tf.stop_gradient(tf.cond(batch.weighted, score_rows, lambda: tf.zeros_like(batch.p)))


class UninformativeWeighting(ConfidenceWeighting):
    """Controls whose training weights say nothing about a scored row: ``constant``, ``permuted``, and the intensity oracle.

    The best guess for a scored row is then the mean weight of the training clicks.
    """

    def score(self, inputs: Tensors, logit: Tensor) -> RowConfidence:
        """See the class."""
        one = tf.ones_like(logit)
        return RowConfidence(one, one * equations.mean_weight(self.model.weight_moments), tf.zeros_like(logit))

    def _redistribute(self, w: Tensor, batch: TrainingBatch) -> Tensor:
        if self.settings.control == "constant":
            return local_slice(controls.constant(gather(w), gather(batch.positive)), w)
        if self.settings.control == "permuted":
            seed = tf.stack([tf.constant(self.model.control_seed, tf.int64), self.model.step])
            return local_slice(controls.permuted(gather(w), gather(batch.positive), seed), w)
        return w


def make_weighting(settings: ConfidenceSettings, model: ConfidenceModel) -> PlainWeighting:
    """The weighting that the settings describe, over a model's variables and networks."""
    if not settings.weighted:
        return PlainWeighting(model)
    if settings.control == "rce":
        return ReweightedLoss(model)
    if settings.control == "tce":
        return TruncatedLoss(model)
    return UninformativeWeighting(model) if settings.uninformative else ConfidenceWeighting(model)
