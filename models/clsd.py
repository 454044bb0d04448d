"""The model that trains with click confidence: backbone, teacher and AdGate in one custom ``train_step``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from features.errors import UserError
from features.tf_runtime import keras, tf
from models import weights
from models.adgate import AdGate
from models.inputs import InputSpec
from models.optimizers import build_optimizer, split_variables
from models.registry import build_backbone
from models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings

#: What one step adds up over the global batch; ratios of these are the figures that a person watches.
SUMS = ("rows", "loss", "predicted", "clicks", "weight", "weight_squared", "gate_loss", "gate_rows")


class Scores(NamedTuple):
    """What the model says of each row, float32 ``[B]`` each.

    Args:
        logit: s of the backbone.
        confidence: a / c, the confidence in units of the mean positive's; 1 for a model without weighting, and for one
            whose training ended within the warm-up.
        weight: w that a click on the row would get.
    """

    logit: Any
    confidence: Any
    weight: Any


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

    A batch is a dictionary: ids int32 ``[B, width]``, values float32 ``[B, n]``, label float32 ``[B]``, valid float32
    ``[B]`` (0 for padding).
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
    ) -> None:
        super().__init__(name="clsd")
        self.spec, self.confidence_settings, self.l2 = spec, confidence, l2
        self.warmup_steps = warmup_steps
        self._prior_logit = math.log(prior_ctr / (1.0 - prior_ctr))
        self.backbone = build_backbone(model, spec)
        self.teacher: Any = build_backbone(model, spec) if confidence.teacher in ("frozen", "ema", "previous") else None
        self.gate: Any = None
        if confidence.weighted and confidence.gate != "off":
            sizes = [size for _, size in spec.groups]
            self.gate = AdGate(sizes, confidence.gate_embedding_dim, confidence.gate_units)
        replicated = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.step = tf.Variable(0, dtype=tf.int64, name="step", **replicated)
        self.moments = tf.Variable(tf.zeros([4]), name="moments", **replicated)
        self._build_weights()
        self._tables, self._dense = split_variables(self.backbone)
        self.table_optimizer = build_optimizer(embedding_optimizer)
        self.dense_optimizer = build_optimizer(dense_optimizer)
        self.gate_optimizer = build_optimizer(
            OptimizerSettings(name="adam", learning_rate=confidence.gate_learning_rate)
        )

    def _build_weights(self) -> None:
        """Create every variable on two rows of padding, so that teacher and student can be told apart and copied."""
        width = max((at.stop for at in self.spec.id_slices.values()), default=0)
        ids, values = tf.zeros([2, width], tf.int32), tf.zeros([2, len(self.spec.value_columns)])
        inputs = self.spec.unpack(ids, values)
        self._check_output(self.backbone(inputs, training=False))
        if self.teacher is not None:
            self.teacher(inputs, training=False)
            # Paired before the teacher is made untrainable, which changes the order of a nested layer's variables; kept in a
            # function, because Keras would take a list of variables for trainable ones of this model.
            pairs = list(zip(self.teacher.variables, self.backbone.variables, strict=True))
            self._teacher_pairs: Any = lambda: pairs
            self.teacher.trainable = False
            self._copy_teacher()
        if self.gate is not None:
            self.gate(self.spec.group_ids(ids))
        self.built = True

    # ---------------------------------------------------------------- scores

    def score(self, ids: Any, values: Any) -> Scores:
        """Scores of encoded rows as evaluation and serving see them (dropout off)."""
        inputs = self.spec.unpack(ids, values)
        logit = self._logit(self.backbone, inputs, training=False)
        if not self.confidence_settings.weighted:
            return Scores(logit, tf.ones_like(logit), tf.ones_like(logit))
        q = tf.sigmoid(logit if self.teacher is None else self._logit(self.teacher, inputs, training=False))
        c = weights.normaliser(self.moments, self.confidence_settings.normalise)
        a = self._confidence(q, self._correction(ids, q), c)
        # Before the first weighted step the teacher knows nothing and every click weighed 1.
        begun = self.moments[0] > 0
        weight = tf.where(begun, weights.positive_weight(a, c, self.confidence_settings.blend), 1.0)
        return Scores(logit, tf.where(begun, a / c, 1.0), weight)

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Logits float32 ``[B]`` of a batch, by the backbone alone."""
        return self._logit(self.backbone, self.spec.unpack(inputs["ids"], inputs["values"]), training=training)

    def _logit(self, backbone: Any, inputs: dict[str, Any], training: bool) -> Any:
        logit = backbone(inputs, training=training)
        return self._prior_logit + (logit[:, 0] if logit.shape.rank == 2 else logit)  # Dense(1) gives [B, 1]

    @staticmethod
    def _check_output(output: Any) -> None:
        shape = tuple(getattr(output, "shape", ()))
        if shape not in ((2,), (2, 1)) or output.dtype != tf.float32:
            what = f"gives {getattr(output, 'dtype', type(output))} {list(shape)} for 2 rows"
            raise UserError("model.backbone", what, "return float32 logits, [rows] or [rows, 1]")

    def _correction(self, ids: Any, q: Any) -> Any:
        return self.gate(self.spec.group_ids(ids)) if self.gate is not None else tf.zeros_like(q)

    def _confidence(self, q: Any, g: Any, c: Any) -> Any:
        settings = self.confidence_settings
        return weights.confidence(q, g, c, alpha=settings.alpha, eps=settings.eps, a_max=settings.a_max)

    # ---------------------------------------------------------------- training

    def train_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """One step, for ``compile`` and ``fit``; the figures are those of the global batch."""
        return self.figures(self.train_sums(data))

    def test_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """Mean loss and predicted / real CTR of a batch, unweighted."""
        s, valid = self(data), data["valid"]
        losses = weights.row_losses(s, data["label"], tf.ones_like(s))
        n = _over_replicas(
            tf.stack([tf.reduce_sum(x * valid) for x in (tf.ones_like(s), losses, tf.sigmoid(s), data["label"])])
        )
        return {"loss": n[1] / n[0], "predicted_ctr": n[2] / n[0], "ctr": n[3] / n[0]}

    def train_sums(self, data: dict[str, Any]) -> Any:
        """One step; returns :data:`SUMS` over the global batch, float32 ``[8]``, the same on every replica."""
        settings = self.confidence_settings
        ids, y, valid = data["ids"], data["label"], data["valid"]
        inputs = self.spec.unpack(ids, data["values"])
        weighted = tf.constant(False)
        if settings.weighted:
            weighted = self.step >= self.warmup_steps
            self._in_cross_replica(self._before_step)
        positive = y * valid
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync

        with tf.GradientTape() as tape:
            s = self._logit(self.backbone, inputs, training=True)
            w, gate_losses, gate_rows = tf.ones_like(s), tf.zeros_like(s), tf.zeros_like(s)
            p = tf.stop_gradient(tf.sigmoid(s))
            if settings.weighted:
                q = self._teacher_scores(inputs, p, positive, valid, weighted)
                moments = self._update_moments(q, p, positive, weighted)
                c = weights.normaliser(moments, settings.normalise)
                g = self._correction(ids, q)
                a = self._confidence(q, g, c)
                w = tf.where(weighted, weights.positive_weight(a, c, settings.blend), 1.0)
                if self.gate is not None:
                    centre = weights.mean_confidence(moments)
                    gate_losses, counted = weights.gate_losses(
                        q, g, y, centre, kind=settings.gate, alpha=settings.alpha
                    )
                    gate_rows = tf.where(weighted, counted * valid, 0.0)
            losses = weights.row_losses(s, y, tf.stop_gradient(w)) * valid
            gate_losses = gate_losses * gate_rows
            local = [valid, losses, p * valid, positive, w * positive, tf.square(w) * positive, gate_losses, gate_rows]
            local_sums = tf.stack([tf.reduce_sum(part) for part in local])
            sums = _over_replicas(tf.stop_gradient(local_sums))
            # Sums over this replica by the count of all: the optimizers add replicas' gradients up to the global mean.
            objective = local_sums[1] / tf.maximum(sums[0], 1.0) + local_sums[6] / tf.maximum(sums[7], 1.0)
            if self.l2 > 0:
                kernels = [tf.nn.l2_loss(v) for v in self._dense if "kernel" in v.name]
                objective += self.l2 * tf.add_n(kernels) / tf.cast(replicas, tf.float32)

        gate_variables = self.gate.trainable_variables if self.gate is not None else []
        n_tables, n_dense = len(self._tables), len(self._dense)
        gradients = tape.gradient(objective, [*self._tables, *self._dense, *gate_variables])
        if settings.teacher == "previous":
            self._in_cross_replica(self._after_forward)
        _apply(self.table_optimizer, gradients[:n_tables], self._tables)
        _apply(self.dense_optimizer, gradients[n_tables : n_tables + n_dense], self._dense)
        _apply(self.gate_optimizer, gradients[n_tables + n_dense :], gate_variables)
        if self.gate is not None:
            # Adam's correction for its first steps counts the gate's own; else they would be 3 to 6 times too long.
            self.gate_optimizer.iterations.assign(tf.maximum(self.step + 1 - self.warmup_steps, 0))
        if settings.teacher == "ema":
            self._in_cross_replica(self._after_update)
        self.step.assign_add(1)
        return sums

    @staticmethod
    def figures(sums: Any) -> dict[str, Any]:
        """Sums of one or more steps as figures: mean loss, predicted and real CTR, mean weight of positives, their share
        of effective sample size ``(sum w)**2 / (n * sum w**2)``, and the gate's mean squared error."""
        s = dict(zip(SUMS, tf.unstack(sums) if tf.is_tensor(sums) else list(sums), strict=True))
        n, clicks = s["rows"], s["clicks"]
        return {
            "loss": s["loss"] / n,
            "predicted_ctr": s["predicted"] / n,
            "ctr": clicks / n,
            "mean_weight": s["weight"] / tf.maximum(clicks, 1.0),
            "effective_clicks": tf.square(s["weight"]) / tf.maximum(clicks * s["weight_squared"], 1e-12),
            "gate_loss": s["gate_loss"] / tf.maximum(s["gate_rows"], 1.0),
        }

    def _teacher_scores(self, inputs: Any, p: Any, positive: Any, valid: Any, weighted: Any) -> Any:
        """q ``[B]``, without gradient: of every row where the gate's calibration asks for it, else of the positives."""
        if self.teacher is None:
            return p
        settings = self.confidence_settings
        every = self.gate is not None and settings.gate == "calibration"
        rows = tf.where((valid if every else positive) > 0)

        def teach() -> Any:
            picked = {name: tf.gather(x, rows[:, 0]) for name, x in inputs.items()}
            scores = tf.sigmoid(self._logit(self.teacher, picked, training=False))
            return tf.scatter_nd(rows, scores, tf.shape(p, out_type=tf.int64))

        return tf.stop_gradient(tf.cond(weighted, teach, lambda: tf.zeros_like(p)))

    def _update_moments(self, q: Any, p: Any, positive: Any, weighted: Any) -> Any:
        """The moving sums behind c, with this global batch in them; unchanged in warm-up and by a batch without clicks."""
        decay = self.confidence_settings.mean_decay
        batch = _over_replicas(weights.moment_sums(q, p, positive, self.confidence_settings.alpha))
        moved = decay * self.moments + (1.0 - decay) * batch
        moments = tf.where(tf.logical_and(weighted, batch[0] > 0), moved, tf.identity(self.moments))
        self.moments.assign(moments)
        return moments

    # ------------------------------------------------ the teacher's weights, in cross-replica context

    @staticmethod
    def _in_cross_replica(update: Any) -> None:
        # Variables of user's models have no aggregation, so copies are made where all replicas are one.
        tf.distribute.get_replica_context().merge_call(lambda strategy: update())

    def _copy_teacher(self) -> None:
        for mine, theirs in self._teacher_pairs():
            mine.assign(theirs)

    def _before_step(self) -> None:
        if self.teacher is None:
            return
        settings, since = self.confidence_settings, self.step - self.warmup_steps
        due = tf.equal(since, 0)
        if settings.teacher == "frozen" and settings.refresh_steps:
            due = tf.logical_and(since >= 0, tf.equal(since % settings.refresh_steps, 0))
        tf.cond(due, lambda: self._copied(self._copy_teacher), lambda: tf.constant(0))

    def _after_forward(self) -> None:
        tf.cond(self.step >= self.warmup_steps, lambda: self._copied(self._copy_teacher), lambda: tf.constant(0))

    def _after_update(self) -> None:
        decay = self.confidence_settings.ema_decay

        def move() -> None:
            for mine, theirs in self._teacher_pairs():
                if mine.dtype.is_floating:
                    mine.assign(decay * mine + (1.0 - decay) * theirs)
                else:
                    mine.assign(theirs)

        tf.cond(self.step >= self.warmup_steps, lambda: self._copied(move), lambda: tf.constant(0))

    @staticmethod
    def _copied(update: Any) -> Any:
        update()  # in a graph, automatic control dependencies run the assignments
        return tf.constant(0)


def _over_replicas(values: Any) -> Any:
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def _apply(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
    pairs = [
        (gradient, variable) for gradient, variable in zip(gradients, variables, strict=True) if gradient is not None
    ]
    if pairs:
        optimizer.apply_gradients(pairs)
