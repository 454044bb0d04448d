"""Teachers: when each is copied, dropout and batch normalisation in it, and other sources of scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import keras, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import InputSpec
from clsd.models.metrics import sigmoid
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings
from clsd.models.step_metrics import METRIC_SUMS

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], np.ndarray]

SEPARATE = ["frozen", "ema", "previous"]
#: The weight is q itself.
BARE = {"normalise": "none", "blend": math.inf, "gate": "off", "eps": 1e-6}


def _named(sums: np.ndarray) -> dict[str, float]:
    return dict(zip(METRIC_SUMS, sums.tolist(), strict=True))


def _trace(model: ClsdModel, batches: list[Batch], values: Values) -> tuple[list[Any], list[Any]]:
    """Backbone and teacher before the first and after every step, the steps in one tf.function as in training."""
    run = tf.function(model.train_metric_sums)
    backbone, teacher = [values(model.backbone)], [values(model.teacher)]
    for batch in batches:
        run({name: tf.constant(x) for name, x in batch.items()})
        backbone.append(values(model.backbone))
        teacher.append(values(model.teacher))
    return backbone, teacher


# ---------------------------------------------------------------- when it is copied


def test_frozen_teacher_is_the_model_at_the_end_of_warm_up_for_good(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(6)], values)
    for after in range(3):  # 0, 1 and 2 steps: not copied yet
        np.testing.assert_array_equal(teacher[after], backbone[0])
    for after in range(3, 7):
        np.testing.assert_array_equal(teacher[after], backbone[2])
    assert (backbone[2] != backbone[0]).any() and (backbone[3] != backbone[2]).any()


def test_frozen_teacher_is_refreshed_every_so_many_steps(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2, refresh_steps=3)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(9)], values)
    for done, copied in zip(range(3, 10), [2, 2, 2, 5, 5, 5, 8], strict=True):
        np.testing.assert_array_equal(teacher[done], backbone[copied])


def test_ema_teacher_follows_its_formula(make_model: MakeModel, make_batch: MakeBatch, values: Values) -> None:
    model = make_model(warmup_steps=2, teacher="ema", ema_decay=0.9)
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(5)], values)
    expected = backbone[2]
    for done in range(3, 6):
        expected = 0.9 * expected + 0.1 * backbone[done]
        np.testing.assert_allclose(teacher[done], expected, rtol=0, atol=1e-6)
    assert (teacher[5] != teacher[4]).any()


def test_previous_teacher_scores_with_weights_one_step_old(
    make_model: MakeModel, make_batch: MakeBatch, values: Values
) -> None:
    model = make_model(warmup_steps=2, teacher="previous")
    backbone, teacher = _trace(model, [make_batch(seed=k) for k in range(6)], values)
    for done in range(3, 7):  # what step `done` + 1 will score with, while the backbone is at `done`
        np.testing.assert_array_equal(teacher[done], backbone[done - 1])


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
    inputs = model.spec.columns(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    np.testing.assert_allclose(model.teacher(inputs), before, atol=1e-5)
    np.testing.assert_array_equal(model.teacher_logit(batch["ids"], batch["values"]), model.teacher(inputs))
    assert np.abs(model(batch).numpy() - before).max() > 1e-3


def test_runs_of_one_seed_start_from_the_same_backbone_whatever_the_method(spec: InputSpec, values: Values) -> None:
    starts = []
    for settings in ({"preset": "plain"}, {}, {"preset": "paper"}, {"control": "permuted"}, {"source": "intensity"}):
        keras.utils.set_random_seed(5)
        rate = OptimizerSettings(learning_rate=0.1)
        confidence = ConfidenceSettings(**settings)
        model = ClsdModel(
            spec,
            ModelSettings(),
            confidence,
            TrainingSetup(
                warmup_steps=0,
                embedding_optimizer=rate,
                dense_optimizer=rate,
            ),
        )
        starts.append(values(model.backbone))
    for start in starts[1:]:
        np.testing.assert_array_equal(start, starts[0])


# ---------------------------------------------------------------- what it is asked


@pytest.mark.parametrize("teacher", SEPARATE)
def test_scoring_the_positives_alone_changes_nothing(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, teacher: str
) -> None:
    positives = make_model(teacher=teacher, gate="off", warmup_steps=1)
    every = make_model(teacher=teacher, gate="calibration", gate_learning_rate=1e-30, warmup_steps=1)  # g stays 0
    for seed in range(4):
        a, b = step(positives, make_batch(seed=seed)), step(every, make_batch(seed=seed))
        np.testing.assert_allclose(a[:6], b[:6], rtol=1e-6)
    np.testing.assert_allclose(values(positives.backbone), values(every.backbone), rtol=0, atol=1e-7)


def test_scores_that_a_batch_brings_stand_for_the_teachers(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    asked, given, misled = (make_model() for _ in range(3))
    batch = make_batch()
    q = sigmoid(asked.teacher_logit(batch["ids"], batch["values"])).astype(np.float32) * batch["label"]
    sums = step(asked, batch)
    np.testing.assert_allclose(step(given, {**batch, "teacher": q}), sums, rtol=1e-6)
    np.testing.assert_allclose(values(given.backbone), values(asked.backbone), rtol=0, atol=1e-7)
    other = _named(step(misled, {**batch, "teacher": np.square(q)}))
    assert abs(other["weight_squared"] - _named(sums)["weight_squared"]) > 0.1


@pytest.mark.parametrize("teacher", [*SEPARATE, "self"])
def test_teacher_is_never_trained(make_model: MakeModel, teacher: str) -> None:
    model = make_model(teacher=teacher)
    trained = {id(v) for v in model.trainable_variables}
    own = {id(v) for v in [*model.backbone.trainable_variables, *model.gate.trainable_variables]}
    assert trained == own


# ---------------------------------------------------------------- fact 8: dropout and batch norm

DROPOUT = {"hidden_units": [16], "dropout": 0.5}


def test_fact_8_self_teacher_is_the_very_pass_with_its_dropout(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    model, batch = make_model(teacher="self", **BARE, options=DROPOUT), make_batch(ctr=1.1)
    assert model.teacher is None
    without = sigmoid(model(batch)).sum()
    sums = _named(step(model, batch))
    assert sums["weight"] == pytest.approx(sums["predicted"], rel=1e-6)  # every row is a positive with w = p
    assert sums["weight"] != pytest.approx(without, rel=1e-3)  # the pass had a mask


@pytest.mark.parametrize("teacher", SEPARATE)
def test_fact_8_separate_teacher_scores_without_dropout(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, teacher: str
) -> None:
    model, batch = make_model(teacher=teacher, **BARE, options=DROPOUT), make_batch(ctr=1.1)
    q = sigmoid(model(batch))
    sums = _named(step(model, batch))
    assert sums["weight"] == pytest.approx(q.sum(), rel=1e-6)
    assert sums["predicted"] != pytest.approx(q.sum(), rel=1e-3)


@pytest.mark.parametrize("teacher", [*SEPARATE, "self"])
def test_fact_8_batch_norm_moves_once_a_step_and_never_by_the_teacher(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, own_backbone: str, teacher: str
) -> None:
    model = make_model(backbone=own_backbone, options={}, teacher=teacher, ema_decay=1 - 1e-7)
    batch = make_batch()
    vectors = model.backbone.table(batch["ids"][:, 0]).numpy()
    step(model, batch)
    student = model.backbone.block.norms[0].moving_mean.numpy()
    np.testing.assert_allclose(student, 0.01 * vectors.mean(axis=0), atol=1e-7)
    if model.teacher is not None:  # `previous` is copied when the pass has moved the student's
        own = student if teacher == "previous" else 0.0
        np.testing.assert_allclose(model.teacher.block.norms[0].moving_mean, own, atol=1e-8)


# ---------------------------------------------------------------- sources that are no teacher

ITEMS = np.array([0, 0, 0, *range(17, 0, -1)], np.float32) / 17  # of 20 items, the first three ids reserved


@pytest.mark.parametrize("source", ["item", "popularity"])
def test_score_of_an_item_is_looked_up_by_its_id(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, source: str
) -> None:
    model = make_model(source=source, items=("item", ITEMS), mean_decay=0.0, **BARE)
    batch = make_batch(rows=64)
    q = ITEMS[batch["ids"][:, 1]]
    p, y = sigmoid(model(batch)), batch["label"]
    sums = _named(step(model, batch))
    expected = [np.sum(y * x) for x in (np.ones(64), q, q * (1 - p), 1 - p)]
    np.testing.assert_allclose(model.moments, expected, rtol=1e-5)
    assert sums["weight"] == pytest.approx(np.sum(y * np.maximum(q, 1e-6)), rel=1e-5)
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    np.testing.assert_allclose(scores.weight, np.maximum(q, 1e-6), rtol=1e-6)
    assert len(set(q.tolist())) > 10 and (q == 0).any() and model.teacher is None


def test_score_of_an_item_does_not_follow_the_backbone(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    model = make_model(source="item", items=("item", ITEMS), mean_decay=0.0, **BARE)
    batch = make_batch()
    before = _named(step(model, batch))
    for variable in model.backbone.trainable_variables:
        variable.assign(-variable)
    after = _named(step(model, batch))
    assert after["weight"] == before["weight"] and after["predicted"] != pytest.approx(before["predicted"], rel=1e-2)


def _with_intensity(batch: Batch) -> Batch:
    """Clicks of intensity 0.5, 1, 2, -1 and unknown in turn; non-clicks of an intensity that must not count."""
    batch["intensity"] = np.resize(np.array([0.5, 1.0, 2.0, -1.0, np.nan, np.inf], np.float32), len(batch["label"]))
    batch["label"] = np.ones_like(batch["label"])
    batch["label"][20:] = 0
    batch["intensity"][20:26] = [np.nan, np.inf, 7.0, -7.0, 0.0, 1e9]
    return batch


@pytest.mark.parametrize("blend", [1.0, math.inf])
def test_unknown_intensity_weighs_1_and_does_not_enter_c(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, blend: float
) -> None:
    model = make_model(source="intensity", gate="off", blend=blend, mean_decay=0.0)
    batch = _with_intensity(make_batch())
    x = batch["intensity"][:20].astype(np.float64)
    known = np.isfinite(x)
    q = np.maximum(x[known], 0)
    c = q.mean()
    a = np.clip(q, 0.02 * c, 5 * c)
    w = np.ones(20)
    w[known] = a / c if math.isinf(blend) else (1 + a / c) / 2
    s, y = model(batch).numpy().astype(np.float64), batch["label"]
    losses = np.logaddexp(0, -s[:20]) @ w + np.logaddexp(0, s[20:]).sum()
    sums = _named(step(model, batch))
    np.testing.assert_allclose(model.moments[:2], [known.sum(), q.sum()], rtol=1e-6)
    assert sums["weight"] == pytest.approx(w.sum(), rel=1e-6)
    assert sums["weight_squared"] == pytest.approx(np.square(w).sum(), rel=1e-6)
    assert sums["loss"] == pytest.approx(losses, rel=1e-6)
    assert y.sum() == sums["clicks"] == 20 and known.sum() == 14


def test_batch_whose_intensities_are_all_unknown_is_plain_cross_entropy(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values
) -> None:
    ours, plain = make_model(source="intensity"), make_model(preset="plain")
    batch = make_batch()
    unknown = {**batch, "intensity": np.full(32, np.nan, np.float32)}
    np.testing.assert_array_equal(step(ours, unknown), step(plain, batch))
    np.testing.assert_array_equal(values(ours.backbone), values(plain.backbone))
    assert not ours.moments.numpy().any()


@pytest.mark.parametrize("source", ["intensity", "item"])
def test_gate_centres_what_is_no_model_too(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, source: str
) -> None:
    model = make_model(source=source, items=("item", ITEMS), mean_decay=0.0)
    batch, before = _with_intensity(make_batch()), values(model.gate)
    q = np.maximum(batch["intensity"], 0) if source == "intensity" else ITEMS[batch["ids"][:, 1]]
    q = q[(batch["label"] == 1) & np.isfinite(q)].astype(np.float64)
    sums = _named(step(model, batch))
    assert sums["gate_rows"] == len(q)
    assert sums["gate_loss"] == pytest.approx(np.square(q - q.mean()).sum(), rel=1e-5)  # g is 0 in the first step
    assert (values(model.gate) != before).any()
