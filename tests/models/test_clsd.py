"""The train step: when each teacher is copied, what reaches what, and one step against the same step in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError

from features.tf_runtime import keras, tf
from models.clsd import SUMS, ClsdModel
from models.inputs import InputSpec
from models.optimizers import build_optimizer
from models.settings import PRESETS, ConfidenceSettings, ModelSettings, OptimizerSettings

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], list[np.ndarray]]

TEACHERS = ["frozen", "ema", "previous", "self"]


def _assert_same(a: list[np.ndarray], b: list[np.ndarray], atol: float = 0.0) -> None:
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=atol)


def _differ(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return any(not np.array_equal(left, right) for left, right in zip(a, b, strict=True))


def _sigmoid(s: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(s, np.float64)))


def _trace(model: ClsdModel, batches: list[Batch], values: Values) -> tuple[list[Any], list[Any]]:
    """Backbone and teacher before the first and after every step, the steps in one tf.function as in training."""
    run = tf.function(model.train_sums)
    backbone, teacher = [values(model.backbone)], [values(model.teacher)]
    for batch in batches:
        run({name: tf.constant(x) for name, x in batch.items()})
        backbone.append(values(model.backbone))
        teacher.append(values(model.teacher))
    return backbone, teacher


# ---------------------------------------------------------------- presets


def test_stable_is_the_defaults() -> None:
    stable = ConfidenceSettings(preset="stable")
    assert stable == ConfidenceSettings()
    expected = ("frozen", 0, "mean", 1.0, 1.0, 0.02, 5.0, "centre")
    keys = ("teacher", "refresh_steps", "normalise", "blend", "alpha", "eps", "a_max", "gate")
    assert tuple(getattr(stable, key) for key in keys) == expected


def test_paper_is_the_literal_reading() -> None:
    paper = ConfidenceSettings(preset="paper")
    assert (paper.teacher, paper.normalise, paper.blend, paper.gate) == ("self", "none", math.inf, "centre")


def test_plain_weighs_nothing() -> None:
    assert not ConfidenceSettings(preset="plain").weighted
    assert ConfidenceSettings().weighted


@pytest.mark.parametrize(("preset", "key", "value"), [("paper", "blend", 2.0), ("paper", "teacher", "ema")])
def test_a_given_key_overrides_its_preset_and_no_other(preset: str, key: str, value: Any) -> None:
    settings = ConfidenceSettings.model_validate({"preset": preset, key: value})
    assert getattr(settings, key) == value
    for other in set(PRESETS[preset]) - {key}:
        assert getattr(settings, other) == PRESETS[preset][other]


@pytest.mark.parametrize(
    "wrong", [{"eps": 5.0}, {"blend": -1}, {"ema_decay": 1.0}, {"lambda": 1}, {"preset": "papper"}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConfidenceSettings.model_validate(wrong)


# ---------------------------------------------------------------- warm-up


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("optimizers", ["sgd", "adam"])
def test_warm_up_is_plain_cross_entropy(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str, optimizers: str
) -> None:
    ours = make_model(warmup_steps=3, teacher=teacher, optimizers=optimizers, l2=1e-3)
    plain = make_model(preset="plain", optimizers=optimizers, l2=1e-3)
    for seed in range(3):
        np.testing.assert_array_equal(step(ours, make_batch(seed=seed)), step(plain, make_batch(seed=seed)))
    _assert_same(values(ours.backbone), values(plain.backbone))
    for model in (ours, plain):
        step(model, make_batch(seed=3))
    assert _differ(values(ours.backbone), values(plain.backbone))  # from here on weights differ from 1


@pytest.mark.parametrize("gate", ["centre", "calibration"])
def test_gate_and_moments_rest_in_warm_up(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, gate: str
) -> None:
    model = make_model(warmup_steps=2, gate=gate)
    before = values(model.gate)
    for seed in range(2):
        sums = dict(zip(SUMS, step(model, make_batch(seed=seed)), strict=True))
        assert sums["gate_rows"] == 0 and sums["weight"] == sums["clicks"]
    _assert_same(values(model.gate), before)
    assert not model.moments.numpy().any()
    step(model, make_batch(seed=2))
    assert _differ(values(model.gate), before) and model.moments.numpy().all()


def test_gates_first_step_is_the_same_after_any_warm_up(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    at_once, later = make_model(gate="calibration"), make_model(warmup_steps=4, gate="calibration")
    start = values(later.backbone)
    for seed in range(4):
        step(later, make_batch(seed=seed))
    for variable, value in zip(later.backbone.variables, start, strict=True):
        variable.assign(value)
    for _ in range(2):
        step(at_once, make_batch())
        step(later, make_batch())
    _assert_same(values(later.gate), values(at_once.gate))


# ---------------------------------------------------------------- teachers


def test_frozen_teacher_is_the_model_at_the_end_of_warm_up_for_good(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(6)], values)
    for after in range(3):  # 0, 1 and 2 steps: not copied yet
        _assert_same(teacher[after], backbone[0])
    for after in range(3, 7):
        _assert_same(teacher[after], backbone[2])
    assert _differ(backbone[2], backbone[0]) and _differ(backbone[3], backbone[2])


def test_frozen_teacher_is_refreshed_every_so_many_steps(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2, refresh_steps=3)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(9)], values)
    for done, copied in zip(range(3, 10), [2, 2, 2, 5, 5, 5, 8], strict=True):
        _assert_same(teacher[done], backbone[copied])


def test_ema_teacher_follows_its_formula(make_model: MakeModel, make_batch: MakeBatch, values: Values) -> None:
    model = make_model(warmup_steps=2, teacher="ema", ema_decay=0.9)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(5)], values)
    expected = backbone[2]
    for done in range(3, 6):
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, backbone[done], strict=True)]
        _assert_same(teacher[done], expected, atol=1e-6)
    assert _differ(teacher[5], teacher[4])


def test_previous_teacher_scores_with_weights_one_step_old(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2, teacher="previous")
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(6)], values)
    for done in range(3, 7):  # what step `done` + 1 will score with, while the backbone is at `done`
        _assert_same(teacher[done], backbone[done - 1])


def test_self_teacher_is_the_very_pass_with_its_dropout(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    options = {"hidden_units": [16], "dropout": 0.5}
    model = make_model(preset="paper", gate="off", eps=1e-6, options=options)
    assert model.teacher is None
    sums = dict(zip(SUMS, step(model, make_batch(ctr=1.1)), strict=True))
    assert sums["weight"] == pytest.approx(sums["predicted"], rel=1e-6)  # every row is a positive with w = p


def test_separate_teacher_scores_without_dropout(make_model: MakeModel, make_batch: MakeBatch, step: Step) -> None:
    options = {"hidden_units": [16], "dropout": 0.5}
    model = make_model(normalise="none", blend=math.inf, gate="off", eps=1e-6, options=options)
    batch = make_batch(ctr=1.1)
    q = _sigmoid(model(batch))
    sums = dict(zip(SUMS, step(model, batch), strict=True))
    assert sums["weight"] == pytest.approx(q.sum(), rel=1e-6)
    assert sums["predicted"] != pytest.approx(q.sum(), rel=1e-3)


def test_batch_norm_moves_once_a_step_and_not_in_the_teacher(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, own_backbone: str
) -> None:
    model = make_model(backbone=own_backbone, options={})
    batch = make_batch()
    vectors = model.backbone.table(batch["ids"][:, 0]).numpy()
    step(model, batch)
    student, teacher = (part.block.norms[0].moving_mean for part in (model.backbone, model.teacher))
    np.testing.assert_allclose(student, 0.01 * vectors.mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(teacher, 0.0)


@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_copied_teacher_scores_as_the_model_did_whatever_its_layers(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, own_backbone: str, teacher: str
) -> None:
    model = make_model(backbone=own_backbone, options={}, teacher=teacher, ema_decay=1 - 1e-7, warmup_steps=3)
    for seed in range(3):
        step(model, make_batch(seed=seed))
    batch = make_batch(seed=3)
    before = model(batch).numpy()
    step(model, batch)
    inputs = model.spec.unpack(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    np.testing.assert_allclose(model.teacher(inputs), before, atol=1e-5)
    assert np.abs(model(batch).numpy() - before).max() > 1e-3


def test_runs_of_one_seed_start_from_the_same_backbone_whatever_the_method(spec: InputSpec, values: Values) -> None:
    starts = []
    for settings in ({"preset": "plain"}, {}, {"preset": "paper"}):
        keras.utils.set_random_seed(5)
        rate = OptimizerSettings(learning_rate=0.1)
        confidence = ConfidenceSettings(**settings)
        model = ClsdModel(
            spec, ModelSettings(), confidence, warmup_steps=0, embedding_optimizer=rate, dense_optimizer=rate
        )
        starts.append(values(model.backbone))
    _assert_same(starts[1], starts[0])
    _assert_same(starts[2], starts[0])


@pytest.mark.parametrize("teacher", ["frozen", "ema", "previous"])
def test_scoring_the_positives_alone_changes_nothing(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str
) -> None:
    positives = make_model(teacher=teacher, gate="off", warmup_steps=1)
    every = make_model(teacher=teacher, gate="calibration", gate_learning_rate=1e-30, warmup_steps=1)  # g stays 0
    for seed in range(4):
        a, b = step(positives, make_batch(seed=seed)), step(every, make_batch(seed=seed))
        np.testing.assert_allclose(a[:6], b[:6], rtol=1e-6)
    _assert_same(values(positives.backbone), values(every.backbone), atol=1e-7)


# ---------------------------------------------------------------- one step in NumPy

BY_HAND = {
    "defaults": {},
    "ema, gradient mass, calibration": {
        "teacher": "ema", "ema_decay": 0.8, "normalise": "gradient_mass", "gate": "calibration", "blend": 3.0,
    },
    "previous, powers, tight bounds": {"teacher": "previous", "alpha": 0.6, "eps": 0.9, "a_max": 1.1, "blend": 0.5},
    "self, gradient mass": {"teacher": "self", "normalise": "gradient_mass", "alpha": 0.7, "mean_decay": 0.5},
    "paper": {"preset": "paper"},
    "gradient mass, no gate": {"normalise": "gradient_mass", "gate": "off", "blend": math.inf},
    "a prior": {"prior_ctr": 0.2, "teacher": "ema", "ema_decay": 0.8},
    "plain": {"preset": "plain"},
}  # fmt: skip


class ByHand(NamedTuple):
    sums: np.ndarray
    moments: np.ndarray
    to_logit: np.ndarray  # dL/ds
    weight: np.ndarray


def _by_hand(model: ClsdModel, batch: Batch, decay: float | None = None, prior_ctr: float = 0.5) -> ByHand:
    """The coming step in float64; ``decay`` in place of the settings' mean_decay, 1 for the moments as they are."""
    prior = math.log(prior_ctr / (1 - prior_ctr))
    settings = model.confidence_settings
    decay = settings.mean_decay if decay is None else decay
    y, valid = batch["label"].astype(np.float64), batch["valid"].astype(np.float64)
    inputs = model.spec.unpack(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    p = _sigmoid(prior + model.backbone(inputs))
    positive, w, moments = y * valid, np.ones_like(p), model.moments.numpy().astype(np.float64)
    gate_losses, gate_rows = np.zeros_like(p), np.zeros_like(p)
    if settings.weighted:
        q = p if model.teacher is None else _sigmoid(prior + model.teacher(inputs))
        powered = q**settings.alpha
        of_batch = [np.sum(positive * x) for x in (np.ones_like(p), powered, powered * (1 - p), 1 - p)]
        moments = decay * moments + (1 - decay) * np.array(of_batch)
        centre = moments[1] / moments[0]
        c = {"mean": centre, "gradient_mass": moments[2] / moments[3], "none": 1.0}[settings.normalise]
        g = np.zeros_like(p)
        if model.gate is not None:
            g = model.gate(tf.constant(batch["ids"][:, 2:4])).numpy().astype(np.float64)
            centred = settings.gate == "centre"
            gate_rows = positive if centred else valid
            gate_losses = np.square(powered + g - centre if centred else q + g - y) * gate_rows
        a = np.clip(powered + g, settings.eps * c, settings.a_max * c)
        w = a / c if math.isinf(settings.blend) else (1 + settings.blend * a / c) / (1 + settings.blend)
    losses = -(y * w * np.log(p) + (1 - y) * np.log(1 - p)) * valid
    parts = [valid, losses, p * valid, positive, w * positive, w**2 * positive, gate_losses, gate_rows]
    to_logit = (-y * w * (1 - p) + (1 - y) * p) * valid / valid.sum()
    return ByHand(np.array([x.sum() for x in parts]), moments, to_logit, w)


@pytest.mark.parametrize("settings", BY_HAND.values(), ids=BY_HAND)
def test_a_weighted_step_is_the_same_step_in_numpy(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, settings: dict[str, Any]
) -> None:
    model = make_model(warmup_steps=1, gate_learning_rate=0.02, **settings)
    for seed in range(3):  # so that teacher, gate and moments are no longer those of the start
        step(model, make_batch(seed=seed))
    batch = make_batch(seed=3)
    batch["valid"][-5:] = 0
    by_hand = _by_hand(model, batch, prior_ctr=settings.get("prior_ctr", 0.5))
    bias = model.backbone.head.bias.numpy()
    np.testing.assert_allclose(step(model, batch), by_hand.sums, rtol=2e-6)
    np.testing.assert_allclose(model.moments, by_hand.moments, rtol=2e-6)
    np.testing.assert_allclose(model.backbone.head.bias, bias - 0.1 * by_hand.to_logit.sum(), atol=1e-7)


def test_first_step_of_a_calibrating_gate_is_adams_in_numpy(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    model, batch = make_model(gate="calibration", gate_learning_rate=0.01), make_batch()
    gradient = np.mean(2 * (_sigmoid(model(batch)) - batch["label"]))
    step(model, batch)
    np.testing.assert_allclose(model.gate.out.bias, [-0.01 * np.sign(gradient)], rtol=1e-4)


@pytest.mark.parametrize("settings", BY_HAND.values(), ids=BY_HAND)
def test_score_gives_the_weight_that_a_click_would_get(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, settings: dict[str, Any]
) -> None:
    model = make_model(gate_learning_rate=0.02, **settings)
    for seed in range(3):
        step(model, make_batch(seed=seed))
    batch = make_batch(seed=3)
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    blend = model.confidence_settings.blend
    blended = scores.confidence if math.isinf(blend) else (1 + blend * scores.confidence) / (1 + blend)
    np.testing.assert_array_equal(scores.logit, model(batch))
    by_hand = _by_hand(model, batch, decay=1.0, prior_ctr=settings.get("prior_ctr", 0.5))
    np.testing.assert_allclose(scores.weight, by_hand.weight, rtol=2e-6)
    np.testing.assert_allclose(scores.weight, blended, rtol=1e-6)


def test_a_model_that_knows_nothing_predicts_the_prior(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(prior_ctr=0.03), make_batch()
    for variable in model.backbone.variables:
        variable.assign(tf.zeros_like(variable))
    np.testing.assert_allclose(_sigmoid(model(batch)), 0.03, rtol=1e-6)
    np.testing.assert_array_equal(model.score(batch["ids"], batch["values"]).logit, model(batch))


def test_figures_are_ratios_of_the_sums() -> None:
    sums = {"rows": 10, "loss": 5, "predicted": 4, "clicks": 2, "weight": 3, "weight_squared": 5, "gate_loss": 1}
    figures = ClsdModel.figures(tf.constant([float({**sums, "gate_rows": 4}[name]) for name in SUMS]))
    expected = {
        "loss": 0.5,
        "predicted_ctr": 0.4,
        "ctr": 0.2,
        "mean_weight": 1.5,
        "effective_clicks": 0.9,
        "gate_loss": 0.25,
    }
    assert {name: float(x) for name, x in figures.items()} == pytest.approx(expected)


def test_l2_is_the_squared_norm_of_the_dense_kernels_alone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    without, with_l2 = make_model(), make_model(l2=0.5)
    before = {v.name: v.numpy() for v in without.backbone.trainable_variables}
    for model in (without, with_l2):
        step(model, make_batch())
    for a, b in zip(without.backbone.trainable_variables, with_l2.backbone.trainable_variables, strict=True):
        pull = 0.1 * 0.5 * before[a.name] if "kernel" in a.name else 0.0
        np.testing.assert_allclose(b, a.numpy() - pull, atol=1e-6, err_msg=a.name)


# ---------------------------------------------------------------- what reaches what


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("gate", ["centre", "calibration"])
def test_gate_loss_does_not_reach_the_backbone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str, gate: str
) -> None:
    models = [make_model(teacher=teacher, gate=gate), make_model(teacher=teacher, gate="off")]
    for model in models:  # g is 0 in the first step, so the weights are the same; the gate's loss is there in one alone
        step(model, make_batch())
    _assert_same(values(models[0].backbone), values(models[1].backbone), atol=1e-7)


def test_backbone_depends_on_the_gate_through_the_weights_alone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    slow, fast = make_model(gate_learning_rate=1e-3), make_model(gate_learning_rate=0.3)
    for model in (slow, fast):
        step(model, make_batch(seed=0))
    _assert_same(values(slow.backbone), values(fast.backbone))
    assert _differ(values(slow.gate), values(fast.gate))
    for model in (slow, fast):
        step(model, make_batch(seed=1))
    assert _differ(values(slow.backbone), values(fast.backbone))


@pytest.mark.parametrize("gate", ["centre", "calibration"])
def test_ctr_loss_does_not_reach_the_gate(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, gate: str
) -> None:
    # A frozen teacher does not see the backbone, so nothing but the CTR loss differs between these.
    models = [make_model(gate=gate, gate_learning_rate=0.05, blend=blend) for blend in (0.0, math.inf)]
    for seed in range(4):
        for model in models:
            step(model, make_batch(seed=seed))
    assert _differ(values(models[0].backbone), values(models[1].backbone))
    _assert_same(values(models[0].gate), values(models[1].gate))


def test_gate_does_not_run_away(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(gate_learning_rate=0.05)
    run = tf.function(model.train_sums)
    batches = [{name: tf.constant(x) for name, x in make_batch(rows=256, seed=k).items()} for k in range(4)]
    losses = [ClsdModel.figures(run(batches[k % 4]))["gate_loss"].numpy() for k in range(120)]
    g = model.gate(model.spec.group_ids(batches[0]["ids"])).numpy()
    assert np.abs(g).max() < 0.5
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


@pytest.mark.parametrize("teacher", TEACHERS)
def test_teacher_is_never_trained(make_model: MakeModel, teacher: str) -> None:
    model = make_model(teacher=teacher)
    trained = {id(v) for v in model.trainable_variables}
    own = {id(v) for v in [*model.backbone.trainable_variables, *model.gate.trainable_variables]}
    assert trained == own


# ---------------------------------------------------------------- odd batches


@pytest.mark.parametrize("settings", BY_HAND.values(), ids=BY_HAND)
def test_padding_rows_change_nothing(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, settings: dict[str, Any]
) -> None:
    bare, padded = (make_model(optimizers="adagrad", **settings) for _ in range(2))
    for seed in range(3):
        rows, rubbish = make_batch(seed=seed), make_batch(rows=7, seed=100 + seed, ctr=0.7)
        rubbish["valid"][:] = 0
        both = {name: np.concatenate([x, rubbish[name]]) for name, x in rows.items()}
        np.testing.assert_allclose(step(padded, both), step(bare, rows), rtol=1e-6, atol=1e-6)
    _assert_same(values(padded), values(bare), atol=1e-6)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_batch_without_positives_leaves_the_moments(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str
) -> None:
    model = make_model(teacher=teacher)
    step(model, make_batch(seed=0))
    moments = model.moments.numpy()
    sums = dict(zip(SUMS, step(model, make_batch(seed=1, ctr=0.0)), strict=True))
    np.testing.assert_array_equal(model.moments, moments)
    assert moments.all() and sums["clicks"] == sums["gate_rows"] == 0
    assert all(np.isfinite(v).all() for v in values(model))


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("ctr", [0.0, 1.1])
def test_first_weighted_batch_of_one_class_gives_finite_weights(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str, ctr: float
) -> None:
    model = make_model(teacher=teacher)
    expected = _by_hand(model, make_batch(ctr=ctr)).sums if ctr else None
    sums = step(model, make_batch(ctr=ctr))
    if expected is not None:
        np.testing.assert_allclose(sums, expected, rtol=2e-6)
    assert np.isfinite(sums).all() and all(np.isfinite(v).all() for v in values(model))


def test_batch_of_padding_alone_changes_nothing(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    model, batch = make_model(), make_batch()
    batch["valid"][:] = 0
    before = values(model.backbone), values(model.gate), model.moments.numpy()
    np.testing.assert_array_equal(step(model, batch), np.zeros(len(SUMS)))
    _assert_same(
        [*before[0], *before[1], before[2]], [*values(model.backbone), *values(model.gate), model.moments.numpy()]
    )


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize("optimizers", ["sgd", "adagrad"])
def test_a_step_touches_only_the_rows_of_the_batch(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, optimizers: str
) -> None:
    model, batch = make_model(optimizers=optimizers), make_batch(rows=6)
    table = model.backbone.embedding.tables["user"].embeddings
    before = table.numpy()
    step(model, batch)
    touched = np.flatnonzero((table.numpy() != before).any(axis=1))
    assert touched.tolist() == sorted(set(batch["ids"][:, 0].tolist()))


def test_adagrad_sums_the_gradients_of_an_id_that_occurs_twice() -> None:
    table = tf.Variable(tf.zeros([4, 1]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [2, 2, 3]) * tf.constant([[1.0], [2.0], [5.0]]))
    gradient = tape.gradient(loss, table)
    build_optimizer(OptimizerSettings(name="adagrad", learning_rate=0.5)).apply_gradients([(gradient, table)])
    expected = [0, 0, -0.5 * 3 / math.sqrt(0.1 + 9), -0.5 * 5 / math.sqrt(0.1 + 25)]
    np.testing.assert_allclose(table[:, 0], expected, rtol=1e-6)


# ---------------------------------------------------------------- Keras and checkpoints


@pytest.mark.parametrize("backbone", ["deepfm", "dcn_v2"])
def test_compile_and_fit_on_256_records(make_model: MakeModel, make_batch: MakeBatch, backbone: str) -> None:
    model = make_model(backbone=backbone, warmup_steps=4, optimizers="adagrad")
    data = tf.data.Dataset.from_tensor_slices(make_batch(rows=256)).batch(64)
    model.compile()
    history = model.fit(data, epochs=12, verbose=0).history
    assert set(history) == {"loss", "predicted_ctr", "ctr", "mean_weight", "effective_clicks", "gate_loss"}
    assert int(model.step) == 48
    assert history["mean_weight"][0] == 1.0 and history["effective_clicks"][0] == 1.0
    assert history["effective_clicks"][-1] < 1.0
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    measured = model.evaluate(data.take(1), verbose=0, return_dict=True)
    assert set(measured) == {"loss", "predicted_ctr", "ctr"}
    batch = next(iter(data))
    by_hand = keras.losses.binary_crossentropy(batch["label"], model(batch), from_logits=True)
    assert measured["loss"] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_restored_model_goes_on_the_same(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, tmp_path: Path, teacher: str
) -> None:
    settings = {"teacher": teacher, "warmup_steps": 2, "optimizers": "adam", "refresh_steps": 3, "ema_decay": 0.9}
    whole, restored = make_model(**settings), make_model(**settings)
    for seed in range(4):
        step(whole, make_batch(seed=seed))
    path = tf.train.Checkpoint(model=whole).write(str(tmp_path / "weights"))
    for variable in restored.variables:
        variable.assign(tf.ones_like(variable))
    status = tf.train.Checkpoint(model=restored).read(path)
    status.assert_existing_objects_matched()
    for seed in range(4, 8):
        np.testing.assert_array_equal(step(restored, make_batch(seed=seed)), step(whole, make_batch(seed=seed)))
    status.assert_consumed()
    _assert_same(values(restored), values(whole))
