"""Training with click confidence, around any Keras network: the custom ``train_step``."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from clsd.features.errors import UserError
from clsd.features.keras_private import create_slots
from clsd.features.tf_runtime import Network, Optimizer, Tensor, Tensors, Variable, keras, tf
from clsd.models import equations, step_metrics
from clsd.models.optimizers import build_optimizer, split_variables
from clsd.models.replicas import num_replicas, sum_over
from clsd.models.settings import ConfidenceSettings, OptimizerSettings
from clsd.models.teacher import TeacherUpdates
from clsd.models.weighting import TrainingBatch, make_weighting


class Scores(NamedTuple):
    """What the model computes for each row, float32 ``[B]`` each.

    Args:
        logit: s of the student.
        confidence: a / c, the confidence relative to the average click's; 1 for a model without weighting, for a control whose
            weights say nothing about the row, and for a model whose training ended within the warm-up.
        weight: w that a click on the row would get, relative to a non-click's weight.
        correction: g of the gate; 0 without one.
        ctr_logit: s - log w + log r, the calibrated log odds; r is the share of non-clicks that training kept.
    """

    logit: Tensor
    confidence: Tensor
    weight: Tensor
    correction: Tensor
    ctr_logit: Tensor


_TABLE_OPTIMIZER = OptimizerSettings(name="adagrad", learning_rate=0.05)
_DENSE_OPTIMIZER = OptimizerSettings(name="adam", learning_rate=1e-3)


@dataclass(frozen=True)
class TrainingSetup:
    """What a model is trained with, apart from the method.

    Args:
        warmup_steps: steps with w = 1, after which a separate teacher is first copied from the student.
        embedding_optimizer: for the weights of ``Embedding`` layers.
        dense_optimizer: for all other weights.
        l2: weight of half the squared norm of the dense kernels.
        prior_ctr: CTR of the training rows. Its log odds are added to the network's output, so training starts at the right
            mean instead of spending its first and largest steps on finding it.
        kept_negatives: r, the share of the non-clicks that are in the training data.
        precision: ``float32``, or ``mixed_bfloat16`` for dense layers that compute in bfloat16.
    """

    warmup_steps: int = 0
    embedding_optimizer: OptimizerSettings = _TABLE_OPTIMIZER
    dense_optimizer: OptimizerSettings = _DENSE_OPTIMIZER
    l2: float = 0.0
    prior_ctr: float = 0.5
    kept_negatives: float = 1.0
    precision: str = "float32"


@dataclass(frozen=True)
class TrainableGroups:
    """The trainable variables by optimizer.

    They are not list attributes of the model, because Keras would name a checkpoint's variables by their index in such a
    list, and splitting a growing embedding table in two would shift the names of all others.
    """

    tables: list[Variable]
    dense: list[Variable]


class ConfidenceModel(keras.Model):  # type: ignore[misc]
    """A network whose clicks are weighted by their confidence.

    One step computes, inside one ``tf.function``: the teacher's scores of the clicks, the gate's correction, the normaliser
    over the **global** batch, the weights, the losses as sums over all replicas divided by the global count, and three
    updates (embedding tables, dense weights, gate). The CTR loss has no path to the gate, and the gate's loss has none to the
    student.

    Subclasses say what a batch looks like by overriding the methods under "What a batch looks like"; see
    :class:`clsd.models.keras_model.KerasConfidenceModel` for a network of your own.

    Args:
        student: the network that is trained; its output is one logit per row.
        teacher: a second network by the same constructor, or None where the settings need none.
        gate: an :class:`clsd.models.adgate.AdGate`, or None.
        confidence: the method's settings.
        setup: what else training needs.

    Source: CLSD (arXiv 2309.16322); docs/method.md says which parts are the paper's.
    """

    def __init__(
        self, student: Network, teacher: Network, gate: Network, confidence: ConfidenceSettings, setup: TrainingSetup
    ) -> None:
        super().__init__(name="clsd")
        self.confidence_settings, self.setup = confidence, setup
        self.warmup_steps = setup.warmup_steps
        self._prior_logit = math.log(setup.prior_ctr / (1.0 - setup.prior_ctr))
        self._log_kept = math.log(setup.kept_negatives)
        self.backbone, self.teacher, self.gate = student, teacher, gate
        replicated = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.step = tf.Variable(0, dtype=tf.int64, name="step", **replicated)
        self.moments = tf.Variable(tf.zeros([4]), name="moments", **replicated)
        self.weight_moments = tf.Variable(tf.zeros([2]), name="weight_moments", **replicated)
        self.control_seed = random.randrange(2**31)  # Python's generator, which keras.utils.set_random_seed seeds
        self._weighting = make_weighting(confidence, self)

    def _create_variables(self, inputs: Tensors) -> None:
        """Create every variable on sample inputs of 2 rows, so that the teacher can be copied and optimizers can be made."""
        self._check_output(self._call(self.backbone, inputs))
        self._teacher_updates: TeacherUpdates | None = None
        if self.teacher is not None:
            self._call(self.teacher, inputs)
            self._teacher_updates = TeacherUpdates(
                self.confidence_settings, self.teacher, self.backbone, self.warmup_steps
            )
            self._teacher_updates.copy()
        if self.gate is not None:
            self.gate(self.group_ids(inputs))
        self.built = True
        self._groups = TrainableGroups(*split_variables(self.backbone))
        self.table_optimizer = build_optimizer(self.setup.embedding_optimizer)
        self.dense_optimizer = build_optimizer(self.setup.dense_optimizer)
        self.gate_optimizer = build_optimizer(
            OptimizerSettings(name="adam", learning_rate=self.confidence_settings.gate_learning_rate)
        )

    # ---------------------------------------------------------------- What a batch looks like

    def unpack(self, data: Tensors) -> tuple[Tensors, Tensor, Tensor, dict[str, Tensor]]:
        """A batch as (inputs, label ``[B]``, valid ``[B]``, extras)."""
        raise NotImplementedError

    def _call(self, network: Network, inputs: Tensors, training: bool = False) -> Tensor:
        """The network's own output for inputs, ``[B]`` or ``[B, 1]``."""
        return network(inputs, training=training)

    def group_ids(self, inputs: Tensors) -> Tensor:
        """AdGate's input, int32 ``[B, K]``."""
        raise NotImplementedError

    def item_score(self, inputs: Tensors) -> Tensor:
        """q of each row's item, float32 ``[B]``; for ``source: item`` and ``popularity``."""
        raise NotImplementedError

    # ---------------------------------------------------------------- Scores

    def logit_of(self, network: Network, inputs: Tensors, training: bool = False) -> Tensor:
        """Log odds of a click by the student or the teacher, float32 ``[B]``."""
        logit = self._call(network, inputs, training)
        return self._prior_logit + (logit[:, 0] if logit.shape.rank == 2 else logit)  # Dense(1) gives [B, 1]

    def correction(self, inputs: Tensors, q: Tensor) -> Tensor:
        """g of the gate, float32 ``[B]``; 0 without one."""
        return tf.zeros_like(q) if self.gate is None else self.gate(self.group_ids(inputs))

    def score_inputs(self, inputs: Tensors) -> Scores:
        """Scores of rows as evaluation and serving see them (dropout off)."""
        logit = self.logit_of(self.backbone, inputs)
        confidence, weight, correction = self._weighting.score(inputs, logit)
        # Before the first weighted step, the teacher has not learnt anything and every click weighs 1.
        has_weighted = self.moments[0] > 0
        weight, confidence = tf.where(has_weighted, weight, 1.0), tf.where(has_weighted, confidence, 1.0)
        return self._scores(logit, confidence, weight, correction)

    def _scores(self, logit: Tensor, confidence: Tensor, weight: Tensor, correction: Tensor) -> Scores:
        ctr_logit = equations.calibrated_logit(logit, weight, self._log_kept)
        return Scores(logit, confidence, weight, correction, ctr_logit)

    @property
    def scoring_needs_teacher(self) -> bool:
        """Whether scoring takes a second forward pass, by the teacher."""
        settings = self.confidence_settings
        return self.teacher is not None and settings.source == "teacher" and settings.control == "none"

    def call(self, inputs: Tensors, training: bool = False) -> Tensor:
        """Logits float32 ``[B]`` by the student alone."""
        return self.logit_of(self.backbone, inputs, training=training)

    # ---------------------------------------------------------------- Training

    def train_step(self, data: Tensors) -> dict[str, Tensor]:
        """One step, for ``compile`` and ``fit``; gives the metrics of the global batch."""
        return step_metrics.metrics_from(self.train_metric_sums(data))

    def test_step(self, data: Tensors) -> dict[str, Tensor]:
        """Mean loss, predicted and real CTR of a batch, unweighted."""
        return metrics_of_test_sums(self.test_sums(data))

    def test_sums(self, data: Tensors) -> Tensor:
        """Sums over a global batch, float32 ``[4]``: rows, losses, predicted clicks, clicks; all unweighted."""
        inputs, y, valid, _ = self.unpack(data)
        s = self.logit_of(self.backbone, inputs)
        losses = equations.row_losses(s, y, tf.ones_like(s))
        return sum_over(tf.stack([tf.reduce_sum(x * valid) for x in (tf.ones_like(s), losses, tf.sigmoid(s), y)]))

    def train_metric_sums(self, data: Tensors) -> Tensor:
        """One step; gives :data:`clsd.models.step_metrics.METRIC_SUMS` over the global batch, the same on every replica."""
        inputs, y, valid, extras = self.unpack(data)
        positive = y * valid
        if self._teacher_updates is not None:
            self._teacher_updates.before_step(self.step)

        with tf.GradientTape() as tape:
            s = self.logit_of(self.backbone, inputs, training=True)
            p = tf.stop_gradient(tf.sigmoid(s))
            batch = TrainingBatch(inputs, y, valid, positive, p, self.step >= self.warmup_steps, extras)
            weights = self._weighting.train(batch)
            w = weights.click
            click, non_click, target = (tf.stop_gradient(x) for x in (w, weights.non_click, weights.target))
            losses = equations.row_losses(s, y, click, non_click, target) * valid
            gate_losses = weights.gate_losses * weights.gate_rows
            columns = [valid, losses, p * valid, positive, w * positive, tf.square(w) * positive]
            local = [tf.reduce_sum(column) for column in (*columns, gate_losses, weights.gate_rows)]
            sums = step_metrics.over_replicas(tf.stop_gradient(step_metrics.local_metric_sums(local, w, positive)))
            # This replica's sums, divided by the global count. The optimizers add up the replicas' gradients, which gives the
            # gradient of the global mean.
            objective = local[1] / tf.maximum(sums[0], 1.0) + local[6] / tf.maximum(sums[7], 1.0)
            if self.setup.l2 > 0:
                kernels = [tf.nn.l2_loss(v) for v in self._groups.dense if "kernel" in v.name]
                objective += self.setup.l2 * sum(kernels, tf.zeros([])) / float(num_replicas())

        self._apply_gradients(tape, objective)
        if self.confidence_settings.uninformative:
            self.update_moments(self.weight_moments, sums[3:5], batch.weighted)
        self.step.assign_add(1)
        return sums

    def _apply_gradients(self, tape: tf.GradientTape, objective: Tensor) -> None:
        tables, dense = self._groups.tables, self._groups.dense
        gate = self.gate.trainable_variables if self.gate is not None else []
        gradients = tape.gradient(objective, [*tables, *dense, *gate])
        if self._teacher_updates is not None:
            self._teacher_updates.after_forward(self.step)
        _apply(self.table_optimizer, gradients[: len(tables)], tables)
        _apply(self.dense_optimizer, gradients[len(tables) : len(tables) + len(dense)], dense)
        _apply(self.gate_optimizer, gradients[len(tables) + len(dense) :], gate)
        if self.gate is not None:
            # Adam's bias correction must count the gate's own steps, or its first steps would be 3 to 6 times too long.
            self.gate_optimizer.iterations.assign(tf.maximum(self.step + 1 - self.warmup_steps, 0))
        if self._teacher_updates is not None:
            self._teacher_updates.after_update(self.step)

    def update_moments(self, moments: Variable, batch_sums: Tensor, weighted: Tensor) -> Tensor:
        """Update moving sums with those of the global batch, and return their new value.

        They do not change during warm-up, nor for a batch without clicks (``batch_sums[0]`` is 0).
        """
        decay = self.confidence_settings.mean_decay
        moved = decay * moments + (1.0 - decay) * batch_sums
        updated = tf.where(tf.logical_and(weighted, batch_sums[0] > 0), moved, tf.identity(moments))
        moments.assign(updated)
        return updated

    def create_slots(self) -> None:
        """Create the optimizers' variables now; the first step would create them otherwise."""
        gate = self.gate.trainable_variables if self.gate is not None else []
        for optimizer, variables in (
            (self.table_optimizer, self._groups.tables),
            (self.dense_optimizer, self._groups.dense),
            (self.gate_optimizer, gate),
        ):
            if variables:
                create_slots(optimizer, variables)

    def copy_teacher(self) -> None:
        """Copy the student to the separate teacher, as at the end of warm-up, but outside of a step."""
        assert self._teacher_updates is not None
        self._teacher_updates.copy()

    @staticmethod
    def _check_output(output: Tensor) -> None:
        shape = tuple(getattr(output, "shape", ()))
        if shape not in ((2,), (2, 1)) or output.dtype != tf.float32:
            what = f"gives {getattr(output, 'dtype', type(output))} {list(shape)} for 2 rows"
            raise UserError("model.backbone", what, "return float32 logits, [rows] or [rows, 1]")


def metrics_of_test_sums(sums: Tensor) -> dict[str, Tensor]:
    """Mean loss, predicted and real CTR from the sums of :meth:`ConfidenceModel.test_sums`."""
    return {"loss": sums[1] / sums[0], "predicted_ctr": sums[2] / sums[0], "ctr": sums[3] / sums[0]}


def _apply(optimizer: Optimizer, gradients: list[Tensor], variables: list[Variable]) -> None:
    pairs = [
        (gradient, variable) for gradient, variable in zip(gradients, variables, strict=True) if gradient is not None
    ]
    if pairs:
        optimizer.apply_gradients(pairs)
