"""The gradients of a step and the variables that they reach: facts 1 and 6 of the method, with the model's own step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models import equations
from clsd.models.adgate import AdGate
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import auc, sigmoid
from clsd.models.model_inputs import ModelInputs
from clsd.models.step_metrics import metrics_from
from clsd.models.weighting import TrainingBatch

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], np.ndarray]

TEACHERS = ["frozen", "ema", "previous", "self"]
GATES = ["centre", "calibration"]


def _as_training_batch(model: ClsdModel, batch: Batch, p: Any) -> TrainingBatch:
    inputs, label, valid, extras = model.unpack(batch)
    return TrainingBatch(inputs, label, valid, label * valid, p, model.step >= model.warmup_steps, extras)


class Recorder:
    """Stands where an optimizer stands: keeps the gradients of a step and moves nothing."""

    def __init__(self) -> None:
        self.iterations = tf.Variable(0, dtype=tf.int64)
        self.gradients: dict[str, np.ndarray] = {}

    def apply_gradients(self, pairs: list[tuple[Any, Any]]) -> None:
        for gradient, variable in pairs:
            self.gradients[variable.name] = tf.convert_to_tensor(gradient).numpy()


def _own_gradients(model: ClsdModel, batch: Batch, step: Step) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients by which the step would move backbone and gate; but for the moments the model stays as it is."""
    backbone, gate = Recorder(), Recorder()
    model.table_optimizer = model.dense_optimizer = backbone
    model.gate_optimizer = gate
    step(model, batch)
    return backbone.gradients, gate.gradients


def _gradients(loss: Callable[[], Any], variables: list[Any]) -> dict[str, np.ndarray]:
    with tf.GradientTape() as tape:
        value = loss()
    result = tape.gradient(value, variables)
    return {v.name: tf.convert_to_tensor(g).numpy() for v, g in zip(variables, result, strict=True)}


def _assert_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys() and ours
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-4, atol=2e-7, err_msg=name)


# ---------------------------------------------------------------- fact 1


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.3])
def test_fact_1_paper_step_has_the_gradient_of_generalised_cross_entropy_on_clicks(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, alpha: float
) -> None:
    """(1 - p**alpha) / alpha, which is mean absolute error for alpha 1; plain cross-entropy on the others."""
    model, batch = make_model(preset="paper", alpha=alpha), make_batch()
    y = batch["label"]
    variables = model.backbone.trainable_variables

    def loss(of_click: Callable[[Any], Any]) -> Callable[[], Any]:
        def value() -> Any:
            p = tf.sigmoid(model(batch))
            return tf.reduce_mean(y * of_click(p) - (1 - y) * tf.math.log(1 - p))

        return value

    generalised = _gradients(loss(lambda p: (1 - p**alpha) / alpha), variables)
    plain = _gradients(loss(lambda p: -tf.math.log(p)), variables)
    ours, _ = _own_gradients(model, batch, step)
    _assert_equal(ours, generalised)
    assert max(np.abs(ours[name] - plain[name]).max() for name in plain) > 1e-3


def test_fact_1_sgd_moves_the_backbone_by_that_gradient(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    model, batch = make_model(preset="paper"), make_batch()
    p, y = sigmoid(model(batch)), batch["label"]
    before = float(model.backbone.head.bias)
    step(model, batch)
    to_logit = np.where(y == 1, -p * (1 - p), p)  # d(1 - p)/ds and d(-log(1 - p))/ds
    assert float(model.backbone.head.bias) == pytest.approx(before - 0.1 * to_logit.mean(), abs=1e-7)


# ---------------------------------------------------------------- fact 6: the wall


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("gate", GATES)
def test_fact_6_each_side_of_the_wall_has_the_gradient_of_its_own_loss_alone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, teacher: str, gate: str
) -> None:
    model = make_model(teacher=teacher, gate=gate, gate_learning_rate=0.02, alpha=0.8)
    for seed in range(3):
        step(model, make_batch(seed=seed))
    batch = make_batch(seed=3)
    y, ids, numbers = batch["label"], tf.constant(batch["ids"]), tf.constant(batch["values"])
    taught = [] if model.teacher is None else [variable.numpy() for variable in model.teacher.variables]
    backbone, gates = _own_gradients(model, batch, step)
    for variable, value in zip([] if model.teacher is None else model.teacher.variables, taught, strict=True):
        variable.assign(value)  # two teachers follow within the step
    scores = model.score(ids, numbers)  # nothing else but the moments moved, so these are the step's weights
    q = tf.sigmoid(model(batch) if model.teacher is None else model.teacher_logit(ids, numbers)).numpy()
    centre = float(model.moments[1] / model.moments[0])

    def ctr_loss() -> Any:
        return tf.reduce_mean(equations.row_losses(model(batch), y, scores.weight.numpy()))

    def gate_loss() -> Any:
        g = model.gate(model.group_ids(ModelInputs.of(model.spec, ids, numbers)))
        if gate == "calibration":
            return tf.reduce_mean((q + g - y) ** 2)
        return tf.reduce_sum(y * (q**0.8 + g - centre) ** 2) / y.sum()

    _assert_equal(backbone, _gradients(ctr_loss, model.backbone.trainable_variables))
    _assert_equal(gates, _gradients(gate_loss, model.gate.trainable_variables))
    assert np.abs(scores.correction).max() > 1e-2 and np.std(scores.weight) > 1e-2


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("gate", GATES)
def test_fact_6_nothing_has_a_gradient_across_the_wall(
    make_model: MakeModel, make_batch: MakeBatch, teacher: str, gate: str
) -> None:
    model = make_model(teacher=teacher, gate=gate)
    batch = {name: tf.constant(x) for name, x in make_batch().items()}
    with tf.GradientTape(persistent=True) as tape:
        s = model(batch)
        result = model._weighting.train(_as_training_batch(model, batch, tf.sigmoid(s)))  # p keeps its gradient here
        ctr_loss = tf.reduce_sum(equations.row_losses(s, batch["label"], result.click))
        gate_loss = tf.reduce_sum(result.gate_losses * result.gate_rows)
    backbone, gates = model.backbone.trainable_variables, model.gate.trainable_variables
    assert [g for g in tape.gradient(ctr_loss, gates) if g is not None] == []
    assert [g for g in tape.gradient(gate_loss, backbone) if g is not None] == []
    assert [g for g in tape.gradient(result.click, backbone) if g is not None] == []
    assert None not in tape.gradient(ctr_loss, backbone) and None not in tape.gradient(gate_loss, gates)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("gate", GATES)
def test_fact_6_gate_loss_does_not_reach_the_backbone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str, gate: str
) -> None:
    models = [make_model(teacher=teacher, gate=gate), make_model(teacher=teacher, gate="off")]
    for model in models:  # g is 0 in the first step, so the weights are the same; the gate's loss is there in one alone
        step(model, make_batch())
    np.testing.assert_allclose(values(models[0].backbone), values(models[1].backbone), rtol=0, atol=1e-7)


@pytest.mark.parametrize("gate", GATES)
def test_fact_6_ctr_loss_does_not_reach_the_gate(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, gate: str
) -> None:
    # A frozen teacher does not see the backbone, so nothing but the CTR loss differs between these.
    models = [make_model(gate=gate, gate_learning_rate=0.05, blend=blend) for blend in (0.0, math.inf)]
    for seed in range(4):
        for model in models:
            step(model, make_batch(seed=seed))
    assert (values(models[0].backbone) != values(models[1].backbone)).any()
    np.testing.assert_array_equal(values(models[0].gate), values(models[1].gate))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("optimizers", ["sgd", "adam", "adagrad"])
def test_fact_6_each_side_is_moved_by_its_own_optimizer_alone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, gate: str, optimizers: str
) -> None:
    """A learning rate of 1e-30 moves no float32: only the other side changes."""
    no_gate = make_model(gate=gate, optimizers=optimizers, gate_learning_rate=1e-30)
    no_backbone = make_model(gate=gate, optimizers=optimizers, learning_rate=1e-30, gate_learning_rate=0.05)
    before = [(values(model.backbone), values(model.gate)) for model in (no_gate, no_backbone)]
    for seed in range(3):
        for model in (no_gate, no_backbone):
            step(model, make_batch(seed=seed))
    after = [(values(model.backbone), values(model.gate)) for model in (no_gate, no_backbone)]
    # Its last layer starts at 0, so a step of 1e-30 is seen there and nowhere else.
    np.testing.assert_allclose(after[0][1], before[0][1], rtol=0, atol=1e-28)
    assert np.abs(after[0][0] - before[0][0]).max() > 1e-3
    np.testing.assert_array_equal(after[1][0], before[1][0])
    assert np.abs(after[1][1] - before[1][1]).max() > 1e-2


def test_backbone_depends_on_the_gate_through_the_weights_alone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    slow, fast = make_model(gate_learning_rate=1e-3), make_model(gate_learning_rate=0.3)
    for model in (slow, fast):
        step(model, make_batch(seed=0))
    np.testing.assert_array_equal(values(slow.backbone), values(fast.backbone))
    assert (values(slow.gate) != values(fast.gate)).any()
    for model in (slow, fast):
        step(model, make_batch(seed=1))
    assert (values(slow.backbone) != values(fast.backbone)).any()


# ---------------------------------------------------------------- fact 6: why the wall stands


@pytest.mark.parametrize("bound", [None, 0.25])
def test_fact_6_a_gate_that_the_ctr_loss_reaches_runs_away(bound: float | None) -> None:
    """The gate as one would write it first; it is an option nowhere. A tanh bound only gives it a floor to lie on."""
    tf.random.set_seed(0)
    rng = np.random.default_rng(0)
    rows, centre = 2000, 0.3
    x, group = rng.integers(0, 20, rows), rng.integers(1, 4, (rows, 1)).astype(np.int32)
    eta = np.linspace(0.05, 0.6, 20)
    y = (rng.random(rows) < eta[x]).astype(np.float32)
    s = tf.Variable(np.log(eta / (1 - eta)), dtype=tf.float32)  # a warm-up that went well
    q = tf.sigmoid(tf.gather(s, x))
    gate = AdGate([4])
    gate(group)
    started = auc(y, tf.gather(s, x).numpy())

    @tf.function
    def naive_step() -> Any:
        with tf.GradientTape(persistent=True) as tape:
            g = gate(group)
            g = g if bound is None else bound * tf.tanh(g)
            w = (q + g) / centre  # no stop_gradient
            logit = tf.gather(s, x)
            loss = tf.reduce_mean(equations.row_losses(logit, y, w))
        for variable, gradient in zip(
            [s, *gate.trainable_variables], tape.gradient(loss, [s, *gate.trainable_variables]), strict=True
        ):
            variable.assign_sub(0.5 * tf.convert_to_tensor(gradient))
        return g, w, tape.gradient(loss, g)

    mean_g: list[float] = []
    while len(mean_g) < 400 and (not mean_g or mean_g[-1] > -1000):
        g, w, to_g = (part.numpy() for part in naive_step())
        assert (to_g[y == 1] > 0).all() and not to_g[y == 0].any()  # down, always
        mean_g.append(g.mean())
    assert np.diff(mean_g).max() < 0
    assert started is not None and started > 0.7
    if bound is None:
        assert mean_g[-1] < -1000 and w[y == 1].mean() < -1000 and auc(y, tf.gather(s, x).numpy()) < 0.5
    else:
        np.testing.assert_allclose(g, -bound, rtol=0.01)  # one floor for every group: it adapts to none


def test_fact_6_the_models_own_gate_does_not_run_away(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(gate_learning_rate=0.05)
    run = tf.function(model.train_metric_sums)
    batches = [{name: tf.constant(x) for name, x in make_batch(rows=256, seed=k).items()} for k in range(4)]
    losses = [metrics_from(run(batches[k % 4]))["gate_loss"].numpy() for k in range(120)]
    g = model.gate(model.group_ids(ModelInputs.of(model.spec, batches[0]["ids"], batches[0]["values"]))).numpy()
    assert np.abs(g).max() < 0.5
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
