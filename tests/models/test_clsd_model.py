"""The train step: warm-up, a step compared with NumPy, scores of a row, Keras and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from clsd.features.tf_runtime import keras, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import sigmoid
from clsd.models.step_metrics import METRIC_SUMS, SUMS, empty_sums

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], np.ndarray]

TEACHERS = ["frozen", "ema", "previous", "self"]


# ---------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    "settings",
    [
        *({"teacher": teacher} for teacher in TEACHERS),
        *({"source": source} for source in ("item", "popularity", "intensity")),
        *({"control": control} for control in ("constant", "permuted", "rce", "tce")),
        {"soften": 0.3},
    ],
    ids=lambda settings: str(next(iter(settings.values()))),
)
def test_warm_up_is_plain_cross_entropy(
    make_model: MakeModel,
    make_batch: MakeBatch,
    step: Step,
    values: Values,
    settings: dict[str, Any],
) -> None:
    items = ("item", np.linspace(0, 1, 20))
    settings = {**settings, "tce_ramp_steps": 1, "tce_share": 0.5, "items": items}
    ours = make_model(warmup_steps=3, optimizers="adam", l2=1e-3, **settings)
    plain = make_model(preset="plain", optimizers="adam", l2=1e-3)
    for seed in range(3):
        np.testing.assert_array_equal(step(ours, make_batch(seed=seed)), step(plain, make_batch(seed=seed)))
    np.testing.assert_array_equal(values(ours.backbone), values(plain.backbone))
    batch = make_batch()
    scores = ours.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    assert (scores.weight.numpy() == 1).all() and (scores.confidence.numpy() == 1).all()
    for seed in (3, 4):  # from here on weights differ from 1; a constant one from the second step on, and T-CE's too
        for model in (ours, plain):
            step(model, make_batch(seed=seed))
    assert (values(ours.backbone) != values(plain.backbone)).any()


@pytest.mark.parametrize("gate", ["centre", "calibration"])
def test_gate_and_moments_rest_in_warm_up(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, gate: str
) -> None:
    model = make_model(warmup_steps=2, gate=gate)
    before = values(model.gate)
    for seed in range(2):
        sums = dict(zip(METRIC_SUMS, step(model, make_batch(seed=seed)), strict=True))
        assert sums["gate_rows"] == 0 and sums["weight"] == sums["clicks"]
    np.testing.assert_array_equal(values(model.gate), before)
    assert not model.moments.numpy().any()
    step(model, make_batch(seed=2))
    assert (values(model.gate) != before).any() and model.moments.numpy().all()


def test_gates_first_step_is_the_same_after_any_warm_up(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    at_once, later = make_model(gate="calibration"), make_model(warmup_steps=4, gate="calibration")
    start = [variable.numpy() for variable in later.backbone.variables]
    for seed in range(4):
        step(later, make_batch(seed=seed))
    for variable, value in zip(later.backbone.variables, start, strict=True):
        variable.assign(value)
    for _ in range(2):
        step(at_once, make_batch())
        step(later, make_batch())
    np.testing.assert_array_equal(values(later.gate), values(at_once.gate))


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
    "odds": {"scale": "odds", "prior_ctr": 0.2, "alpha": 0.7},
    "odds of self": {"scale": "odds", "teacher": "self", "normalise": "gradient_mass", "blend": math.inf},
    "softened": {"soften": 0.3, "gate": "off"},
    "softened, self, calibration": {"soften": 0.6, "teacher": "self", "gate": "calibration"},
    "softened, item scores": {"soften": 0.2, "source": "item", "items": ("item", np.full(20, 0.7)), "gate": "off"},
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
    inputs = model.spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    p = sigmoid(prior + model.backbone(inputs))
    positive, w, moments = y * valid, np.ones_like(p), model.moments.numpy().astype(np.float64)
    gate_losses, gate_rows, target = np.zeros_like(p), np.zeros_like(p), y
    if settings.weighted:
        t = p if model.teacher is None else sigmoid(prior + model.teacher(inputs))
        target = (1 - settings.soften) * y + settings.soften * t
        q = t / (1 - t) if settings.scale == "odds" else t
        q = np.full_like(p, 0.7) if settings.source == "item" else q
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
    row_weights = np.where(y == 1, w, 1) * valid
    losses = -row_weights * (target * np.log(p) + (1 - target) * np.log(1 - p))
    parts = [valid, losses, p * valid, positive, w * positive, w**2 * positive, gate_losses, gate_rows]
    to_logit = row_weights * (p - target) / valid.sum()
    extremes = [w[positive > 0].min(initial=np.inf), w[positive > 0].max(initial=-np.inf)]
    return ByHand(np.array([*(x.sum() for x in parts), *extremes]), moments, to_logit, w)


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
    gradient = np.mean(2 * (sigmoid(model(batch)) - batch["label"]))
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
    np.testing.assert_allclose(scores.ctr_logit, scores.logit - np.log(by_hand.weight), rtol=1e-5, atol=1e-5)
    g = 0.0 if model.gate is None else model.gate(tf.constant(batch["ids"][:, 2:4]))
    np.testing.assert_array_equal(scores.correction, np.broadcast_to(g, 32))
    assert model.gate is None or scores.correction.numpy().any()


@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "plain"}, {"teacher": "self", "gate": "off"}, {"control": "rce"}, {"control": "constant"}],
)
@pytest.mark.parametrize("kept", [1.0, 0.25, 0.01])
def test_kept_negatives_shift_the_ctr_by_log_r_and_nothing_else(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, settings: dict[str, Any], kept: float
) -> None:
    every, sampled = make_model(**settings), make_model(**settings, kept_negatives=kept)
    batch = make_batch()
    for seed in range(2):
        np.testing.assert_array_equal(step(every, make_batch(seed=seed)), step(sampled, make_batch(seed=seed)))
    before, after = (model.score(tf.constant(batch["ids"]), tf.constant(batch["values"])) for model in (every, sampled))
    for name in ("logit", "confidence", "weight", "correction"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_allclose(after.ctr_logit - before.ctr_logit, math.log(kept), rtol=1e-5, atol=1e-6)


def test_a_model_that_knows_nothing_predicts_the_prior(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(prior_ctr=0.03), make_batch()
    for variable in model.backbone.variables:
        variable.assign(tf.zeros_like(variable))
    np.testing.assert_allclose(sigmoid(model(batch)), 0.03, rtol=1e-6)
    np.testing.assert_array_equal(model.score(batch["ids"], batch["values"]).logit, model(batch))


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
    np.testing.assert_allclose(values(padded), values(bare), rtol=0, atol=1e-6)


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
    assert np.isfinite(sums[: len(SUMS)]).all() and np.isfinite(values(model)).all()


def test_batch_of_padding_alone_changes_nothing(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    model, batch = make_model(), make_batch()
    batch["valid"][:] = 0
    before = [values(model.backbone), values(model.gate), model.moments.numpy()]
    np.testing.assert_array_equal(step(model, batch), empty_sums())
    for now, then in zip([values(model.backbone), values(model.gate), model.moments.numpy()], before, strict=True):
        np.testing.assert_array_equal(now, then)


# ---------------------------------------------------------------- Keras and checkpoints


@pytest.mark.parametrize("backbone", ["deepfm", "dcn_v2"])
def test_compile_and_fit_on_256_records(make_model: MakeModel, make_batch: MakeBatch, backbone: str) -> None:
    model = make_model(backbone=backbone, warmup_steps=4, optimizers="adagrad")
    data = tf.data.Dataset.from_tensor_slices(make_batch(rows=256)).batch(64)
    model.compile()
    history = model.fit(data, epochs=12, verbose=0).history
    of_weights = {"mean_weight", "least_weight", "largest_weight", "effective_clicks", "gate_loss"}
    assert set(history) == {"loss", "predicted_ctr", "ctr", *of_weights}
    assert int(model.step) == 48
    assert history["mean_weight"][0] == 1.0 and history["effective_clicks"][0] == 1.0
    assert history["effective_clicks"][-1] < 1.0
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    measured = model.evaluate(data.take(1), verbose=0, return_dict=True)
    assert set(measured) == {"loss", "predicted_ctr", "ctr"}
    batch = next(iter(data))
    by_hand = keras.losses.binary_crossentropy(batch["label"], model(batch), from_logits=True)
    assert measured["loss"] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [*({"teacher": teacher} for teacher in TEACHERS), {"control": "constant"}, {"control": "permuted"}],
    ids=lambda settings: next(iter(settings.values())),
)
def test_a_restored_model_goes_on_the_same(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {**settings, "warmup_steps": 2, "optimizers": "adam", "refresh_steps": 3, "ema_decay": 0.9}
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
    np.testing.assert_array_equal(values(restored), values(whole))
    batch = make_batch()
    ids, numbers = tf.constant(batch["ids"]), tf.constant(batch["values"])
    for ours, theirs in zip(restored.score(ids, numbers), whole.score(ids, numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)
