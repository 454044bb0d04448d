"""The model that trains with click confidence: backbone, teacher and AdGate in one custom ``train_step``."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from clsd.features.errors import UserError
from clsd.features.tf_runtime import keras, tf
from clsd.models import controls, step_metrics, weights
from clsd.models.adgate import AdGate
from clsd.models.backbones.registry import build_backbone
from clsd.models.calibration import Calibrator
from clsd.models.inputs import InputSpec
from clsd.models.model_inputs import ModelInputs
from clsd.models.optimizers import build_optimizer, split_variables
from clsd.models.replicas import gather, local_slice, replicas, sum_over
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings
from clsd.models.teacher import TeacherUpdates


class Scores(NamedTuple):
    """What the model says of each row, float32 ``[B]`` each.

    Args:
        logit: s of the backbone.
        confidence: a / c, the confidence in units of the mean positive's; 1 for a model without weighting, for a control
            whose weights say nothing of the row, and for a model whose training ended within the warm-up.
        weight: w that a click on the row would get, in units of a non-click's.
        correction: g of the gate; 0 without one.
        ctr_logit: s - log w + log r, the calibrated log odds; r is the share of non-clicks that training kept.
    """

    logit: Any
    confidence: Any
    weight: Any
    correction: Any
    ctr_logit: Any


class BatchWeights(NamedTuple):
    """What the weighting makes of a batch, float32 ``[B]`` each: weights of clicks and of non-clicks, targets, the gate's
    losses and the rows they count for."""

    click: Any
    non_click: Any
    target: Any
    gate_losses: Any
    gate_rows: Any


@dataclass(frozen=True)
class TrainableGroups:
    """What the optimizers of the tables and of the dense part move.

    No lists of the model itself, by whose places Keras would name the variables of a checkpoint: a table that is composed when it
    has grown would take the others' names.
    """

    tables: list[Any]
    dense: list[Any]


class ClsdModel(keras.Model):  # type: ignore[misc]
    """A CTR model whose clicks weigh what they can be believed.

    A step computes, inside one ``tf.function``: the teacher's scores of the positives, the gate's correction, the
    normaliser over the **global** batch, the weights, the losses as sums over all replicas divided by the global count, and
    three updates (tables, dense part, gate). The CTR loss has no path to the gate and the gate's loss none to the backbone.

    Args:
        spec: fields and groups.
        model: the backbone's settings.
        confidence: the method's settings.
        warmup_steps: steps with w = 1, after which a separate teacher is first copied.
        embedding_optimizer, dense_optimizer: settings of the backbone's two optimizers.
        l2: weight of half the squared norm of the dense kernels.
        prior_ctr: CTR of the training split; its log odds are added to the backbone's output, so that training begins at
            the right mean instead of spending its first steps, the largest, on finding it.
        kept_negatives: r, the share of the non-clicks that are in the training data.
        items: name of the item's feature and a score for each of its ids, float32 ``[size]``; for ``source: item`` and
            ``popularity``.
        precision: float32, or mixed_bfloat16 for dense layers that compute in bfloat16.

    A batch is a dictionary: ids int32 ``[B, width]``, values float32 ``[B, n]``, label float32 ``[B]``, valid float32
    ``[B]`` (0 for padding); ``source: intensity`` reads intensity float32 ``[B]``; where a batch brings
    teacher float32 ``[B]``, those are the scores q of its positives and the teacher is not asked.
    """

    def __init__(
        self,
        spec: InputSpec,
        model: ModelSettings,
        confidence: ConfidenceSettings,
        *,
        warmup_steps: int,
        embedding_optimizer: OptimizerSettings,
        dense_optimizer: OptimizerSettings,
        l2: float = 0.0,
        prior_ctr: float = 0.5,
        kept_negatives: float = 1.0,
        items: tuple[str, Any] | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(name="clsd")
        self.spec, self.confidence_settings, self.l2 = spec, confidence, l2
        self.warmup_steps = warmup_steps
        self._prior_logit = math.log(prior_ctr / (1.0 - prior_ctr))
        self._log_kept = math.log(kept_negatives)
        self.backbone = build_backbone(model, spec, precision)
        self.teacher: Any = build_backbone(model, spec, precision) if confidence.separate_teacher else None
        self.gate: Any = None
        if confidence.weighted and confidence.gate != "off":
            sizes = [size for _, size in spec.groups]
            self.gate = AdGate(sizes, confidence.gate_embedding_dim, confidence.gate_units)
        replicated = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.step = tf.Variable(0, dtype=tf.int64, name="step", **replicated)
        self.moments = tf.Variable(tf.zeros([4]), name="moments", **replicated)
        self.weight_moments = tf.Variable(tf.zeros([2]), name="weight_moments", **replicated)
        self._seed = random.randrange(2**31)  # Python's generator, which keras.utils.set_random_seed seeds
        self._item, self._item_scores = "", None
        if confidence.counts_items:
            assert items is not None
            self._item = items[0]
            self._item_scores = tf.Variable(items[1], dtype=tf.float32, name="item_scores", trainable=False)
        self._build_weights()
        self._updated = TrainableGroups(*split_variables(self.backbone))
        self.table_optimizer = build_optimizer(embedding_optimizer)
        self.dense_optimizer = build_optimizer(dense_optimizer)
        self.gate_optimizer = build_optimizer(
            OptimizerSettings(name="adam", learning_rate=confidence.gate_learning_rate)
        )

    def _build_weights(self) -> None:
        """Create every variable on two rows of padding, so that teacher and student can be told apart and copied."""
        ids, values = tf.zeros([2, self.spec.width], tf.int32), tf.zeros([2, len(self.spec.value_columns)])
        rows = ModelInputs.of(self.spec, ids, values)
        self._check_output(rows.logit(self.backbone))
        self._updates: Any = None
        if self.teacher is not None:
            rows.logit(self.teacher)
            self._updates = TeacherUpdates(self.confidence_settings, self.teacher, self.backbone, self.warmup_steps)
            self._updates.copy()
        if self.gate is not None:
            self.gate(self.group_ids(rows))
        self.built = True

    # ---------------------------------------------------------------- scores

    def score(self, ids: Any, values: Any) -> Scores:
        """Scores of encoded rows as evaluation sees them (dropout off)."""
        return self.score_rows(ModelInputs.of(self.spec, ids, values))

    def score_rows(self, rows: ModelInputs) -> Scores:
        """As :meth:`score`, of rows that may come in parts, of which a graph keeps some weights (`model_inputs.through`)."""
        settings = self.confidence_settings
        logit = self._logit(self.backbone, rows)
        one = tf.ones_like(logit)
        confidence, weight, g = one, one, tf.zeros_like(logit)
        # Before the first weighted step the teacher knows nothing and every click weighed 1.
        begun = self.moments[0] > 0
        if settings.control == "rce":
            confidence, non_click = controls.reweighted(tf.sigmoid(logit), settings.rce_exponent)
            weight = confidence / non_click
        elif settings.blind:
            weight = one * weights.mean_weight(self.weight_moments)
        elif settings.weighted and settings.control == "none":
            if self._item_scores is not None:
                q = self._of_item(rows)
            else:
                q = weights.on_scale(
                    tf.sigmoid(self._logit(self.teacher, rows) if self.teacher is not None else logit), settings.scale
                )
            c = weights.normaliser(self.moments, settings.normalise)
            g = self._correction(rows, q)
            a = self._confidence(q, g, c)
            confidence, weight = a / c, weights.positive_weight(a, c, settings.blend)
        weight = tf.where(begun, weight, 1.0)
        ctr = weights.calibrated_logit(logit, weight, self._log_kept)
        return Scores(logit, tf.where(begun, confidence, 1.0), weight, g, ctr)

    def score_cheaply(self, rows: ModelInputs, calibrator: Calibrator) -> Scores:
        """As :meth:`score_rows`, without asking the teacher: weight and confidence are what the calibrator makes of s and g."""
        logit = self._logit(self.backbone, rows)
        g = self._correction(rows, logit)
        weight = tf.exp(calibrator.log_weight(logit, g))
        result = weights.confidence_of_weight(weight, self.confidence_settings.blend)
        return Scores(logit, result, weight, g, weights.calibrated_logit(logit, weight, self._log_kept))

    @property
    def asks_teacher(self) -> bool:
        """Whether scores take a second forward pass, of the teacher."""
        settings = self.confidence_settings
        return self.teacher is not None and settings.source == "teacher" and settings.control == "none"

    def group_ids(self, rows: ModelInputs) -> Any:
        """AdGate's input, int32 ``[B, K]``: the ids of the groups' features."""
        return tf.stack([rows.column(name) for name, _ in self.spec.groups], axis=1)

    def create_slots(self) -> None:
        """Make the optimizers' variables now, which the first step would make otherwise."""
        gate = self.gate.trainable_variables if self.gate is not None else []
        optimizers = (
            (self.table_optimizer, self._updated.tables),
            (self.dense_optimizer, self._updated.dense),
            (self.gate_optimizer, gate),
        )
        for optimizer, variables in optimizers:
            if variables:
                optimizer._create_all_weights(variables)

    def copy_teacher(self) -> None:
        """Make the separate teacher the student, as the end of warm-up does; outside of a step."""
        self._updates.copy()

    def teacher_logit(self, ids: Any, values: Any) -> Any:
        """Log odds of the separate teacher, float32 ``[B]``."""
        return self._logit(self.teacher, ModelInputs.of(self.spec, ids, values))

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Logits float32 ``[B]`` of a batch, by the backbone alone."""
        return self._logit(self.backbone, self._rows(inputs), training=training)

    def _rows(self, data: dict[str, Any]) -> ModelInputs:
        return ModelInputs.of(self.spec, data["ids"], data["values"])

    def _logit(self, backbone: Any, rows: ModelInputs, training: bool = False) -> Any:
        logit = rows.logit(backbone, training)
        return self._prior_logit + (logit[:, 0] if logit.shape.rank == 2 else logit)  # Dense(1) gives [B, 1]

    @staticmethod
    def _check_output(output: Any) -> None:
        shape = tuple(getattr(output, "shape", ()))
        if shape not in ((2,), (2, 1)) or output.dtype != tf.float32:
            what = f"gives {getattr(output, 'dtype', type(output))} {list(shape)} for 2 rows"
            raise UserError("model.backbone", what, "return float32 logits, [rows] or [rows, 1]")

    def _of_item(self, rows: ModelInputs) -> Any:
        return tf.gather(self._item_scores, rows.column(self._item))

    def _correction(self, rows: ModelInputs, q: Any) -> Any:
        if self.gate is None:
            return tf.zeros_like(q)
        if all(name in rows.request for name, _ in self.spec.groups):
            return rows.spread(self.gate(self.group_ids(ModelInputs(self.spec, rows.request))))
        return self.gate(self.group_ids(rows))

    def _confidence(self, q: Any, g: Any, c: Any) -> Any:
        settings = self.confidence_settings
        return weights.confidence(q, g, c, alpha=settings.alpha, eps=settings.eps, a_max=settings.a_max)

    # ---------------------------------------------------------------- training

    def train_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """One step, for ``compile`` and ``fit``; the figures are those of the global batch."""
        return step_metrics.metrics_from(self.train_metric_sums(data))

    def test_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """Mean loss and predicted / real CTR of a batch, unweighted."""
        s, valid = self(data), data["valid"]
        losses = weights.row_losses(s, data["label"], tf.ones_like(s))
        n = sum_over(
            tf.stack([tf.reduce_sum(x * valid) for x in (tf.ones_like(s), losses, tf.sigmoid(s), data["label"])])
        )
        return {"loss": n[1] / n[0], "predicted_ctr": n[2] / n[0], "ctr": n[3] / n[0]}

    def train_metric_sums(self, data: dict[str, Any]) -> Any:
        """One step; returns :data:`clsd.models.step_metrics.METRIC_SUMS` over the global batch, the same on every replica."""
        settings = self.confidence_settings
        y, valid = data["label"], data["valid"]
        positive = y * valid
        if self._updates is not None:
            self._updates.before_step(self.step)

        with tf.GradientTape() as tape:
            s = self._logit(self.backbone, self._rows(data), training=True)
            p = tf.stop_gradient(tf.sigmoid(s))
            if settings.weighted:
                result = self._weigh(data, p, positive)
            else:
                result = BatchWeights(tf.ones_like(s), tf.ones_like(s), y, tf.zeros_like(s), tf.zeros_like(s))
            w = result.click
            click, other, target = (tf.stop_gradient(x) for x in (w, result.non_click, result.target))
            losses = weights.row_losses(s, y, click, other, target) * valid
            gate_losses = result.gate_losses * result.gate_rows
            columns = [valid, losses, p * valid, positive, w * positive, tf.square(w) * positive]
            local = [tf.reduce_sum(column) for column in (*columns, gate_losses, result.gate_rows)]
            totals = step_metrics.over_replicas(tf.stop_gradient(step_metrics.local_metric_sums(local, w, positive)))
            # Sums over this replica by the count of all: the optimizers add replicas' gradients up to the global mean.
            objective = local[1] / tf.maximum(totals[0], 1.0) + local[6] / tf.maximum(totals[7], 1.0)
            if self.l2 > 0:
                kernels = [tf.nn.l2_loss(v) for v in self._updated.dense if "kernel" in v.name]
                objective += self.l2 * sum(kernels, tf.zeros([])) / float(replicas())

        gate_variables = self.gate.trainable_variables if self.gate is not None else []
        n_tables, n_dense = len(self._updated.tables), len(self._updated.dense)
        gradients = tape.gradient(objective, [*self._updated.tables, *self._updated.dense, *gate_variables])
        if self._updates is not None:
            self._updates.after_forward(self.step)
        _apply(self.table_optimizer, gradients[:n_tables], self._updated.tables)
        _apply(self.dense_optimizer, gradients[n_tables : n_tables + n_dense], self._updated.dense)
        _apply(self.gate_optimizer, gradients[n_tables + n_dense :], gate_variables)
        if self.gate is not None:
            # Adam's correction for its first steps counts the gate's own; else they would be 3 to 6 times too long.
            self.gate_optimizer.iterations.assign(tf.maximum(self.step + 1 - self.warmup_steps, 0))
        if self._updates is not None:
            self._updates.after_update(self.step)
        if settings.blind:
            self._move(self.weight_moments, totals[3:5], self._weighted())
        self.step.assign_add(1)
        return totals

    def _weighted(self) -> Any:
        return self.step >= self.warmup_steps

    def _weigh(self, data: dict[str, Any], p: Any, positive: Any) -> BatchWeights:
        """Weights of clicks and non-clicks and the gate's losses; all weights are 1 and the gate rests in warm-up."""
        settings, weighted = self.confidence_settings, self._weighted()
        valid, one = data["valid"], tf.ones_like(p)
        w, non_click, gate_losses, gate_rows = one, one, tf.zeros_like(p), tf.zeros_like(p)
        if settings.control in ("rce", "tce"):
            if settings.control == "rce":
                w, non_click = controls.reweighted(p, settings.rce_exponent)
            else:
                share = controls.drop_share(self.step - self.warmup_steps, settings.tce_share, settings.tce_ramp_steps)
                w = local_slice(controls.truncated(gather(p), gather(positive), share), p)
            # The moments say that weighting has begun.
            self._move(self.moments, sum_over(weights.moment_sums(p, p, positive, 1.0)), weighted)
            w, non_click = tf.where(weighted, w, 1.0), tf.where(weighted, non_click, 1.0)
            return BatchWeights(w, non_click, data["label"], gate_losses, gate_rows)
        t = self._probabilities(data, p, positive, weighted)
        target = data["label"]
        if settings.soften > 0:
            target = tf.where(weighted, target + settings.soften * (t - target), target)
        q = self._scores_of_clicks(data, t)
        known = positive * tf.cast(tf.math.is_finite(q), tf.float32)  # an intensity may be missing
        q = tf.where(tf.math.is_finite(q), q, 0.0)
        moments = self._move(self.moments, sum_over(weights.moment_sums(q, p, known, settings.alpha)), weighted)
        c = weights.normaliser(moments, settings.normalise)
        g = self._correction(self._rows(data), q)
        w = weights.positive_weight(self._confidence(q, g, c), c, settings.blend)
        if settings.source == "intensity":
            w = tf.where(known < positive, 1.0, w)
        if settings.control == "constant":
            w = local_slice(controls.constant(gather(w), gather(positive)), w)
        elif settings.control == "permuted":
            seed = tf.stack([tf.constant(self._seed, tf.int64), self.step])
            w = local_slice(controls.permuted(gather(w), gather(positive), seed), w)
        if self.gate is not None:
            centre = weights.mean_confidence(moments)
            gate_losses, counted = weights.gate_losses(
                q, g, data["label"], centre, kind=settings.gate, alpha=settings.alpha
            )
            counted = known if settings.gate == "centre" else counted * valid
            gate_rows = tf.where(weighted, counted, 0.0)
        return BatchWeights(tf.where(weighted, w, 1.0), non_click, target, gate_losses, gate_rows)

    def _scores_of_clicks(self, data: dict[str, Any], t: Any) -> Any:
        """q ``[B]`` on its scale, without gradient; NaN where an intensity is missing."""
        settings = self.confidence_settings
        if settings.source == "intensity":
            return tf.where(data["label"] > 0, tf.maximum(data["intensity"], 0.0), 0.0)
        if self._item_scores is not None:
            return self._of_item(self._rows(data))
        return weights.on_scale(t, settings.scale)

    def _probabilities(self, data: dict[str, Any], p: Any, positive: Any, weighted: Any) -> Any:
        settings = self.confidence_settings
        if self.teacher is None:
            return p
        if "teacher" in data:
            return data["teacher"]
        every = settings.soften > 0 or (self.gate is not None and settings.gate == "calibration")
        rows = tf.where((data["valid"] if every else positive) > 0)

        def teach() -> Any:
            ids, values = (tf.gather(data[name], rows[:, 0]) for name in ("ids", "values"))
            scores = tf.sigmoid(self.teacher_logit(ids, values))
            return tf.scatter_nd(rows, scores, tf.shape(p, out_type=tf.int64))

        return tf.stop_gradient(tf.cond(weighted, teach, lambda: tf.zeros_like(p)))

    def _move(self, moments: Any, batch: Any, weighted: Any) -> Any:
        """Moving sums with this global batch in them; unchanged in warm-up and by a batch without clicks (``batch[0]`` 0)."""
        decay = self.confidence_settings.mean_decay
        moved = decay * moments + (1.0 - decay) * batch
        now = tf.where(tf.logical_and(weighted, batch[0] > 0), moved, tf.identity(moments))
        moments.assign(now)
        return now


def _apply(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
    pairs = [
        (gradient, variable) for gradient, variable in zip(gradients, variables, strict=True) if gradient is not None
    ]
    if pairs:
        optimizer.apply_gradients(pairs)
