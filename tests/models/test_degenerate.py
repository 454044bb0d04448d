"""Empty batches and groups, and logits that are not finite: steps do not raise, and undefined metrics are absent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import ONE_CLASS, auc, measure, measure_groups
from clsd.models.step_metrics import METRIC_SUMS, SUMS, metrics_from

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], np.ndarray]

#: Every way that a click can come to its weight.
WEIGHTINGS: dict[str, dict[str, Any]] = {
    **{teacher: {"teacher": teacher} for teacher in ("frozen", "ema", "previous", "self")},
    "odds": {"scale": "odds"},
    "softened": {"soften": 0.3},
    "item": {"source": "item", "items": ("item", np.linspace(0, 2, 20))},
    "intensity": {"source": "intensity"},
    "paper": {"preset": "paper"},
    "calibration": {"gate": "calibration", "normalise": "gradient_mass"},
    **{control: {"control": control} for control in ("constant", "permuted", "rce")},
    "tce": {"control": "tce", "tce_ramp_steps": 1, "tce_share": 0.5},
    "plain": {"preset": "plain"},
}


def _tensors(batch: Batch) -> Batch:
    return {name: tf.constant(x) for name, x in batch.items()}


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("settings", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_batch_without_positives_leaves_the_moments_and_trains_the_rest(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, settings: dict[str, Any]
) -> None:
    model = make_model(**settings)
    for seed in range(2):
        step(model, make_batch(seed=seed))
    moments, weight_moments, before = model.moments.numpy(), model.weight_moments.numpy(), values(model.backbone)
    sums = dict(zip(METRIC_SUMS, step(model, make_batch(seed=2, ctr=0.0)), strict=True))
    np.testing.assert_array_equal(model.moments, moments)
    np.testing.assert_array_equal(model.weight_moments, weight_moments)
    assert (
        moments.all() == model.confidence_settings.weighted
        and weight_moments.all() == model.confidence_settings.uninformative
    )
    assert sums["clicks"] == sums["weight"] == 0
    assert sums["gate_rows"] == (32 if model.confidence_settings.gate == "calibration" else 0)
    assert np.isfinite(values(model)).all() and (values(model.backbone) != before).any()
    shown = metrics_from(tf.constant(list(sums.values())))
    assert all(np.isfinite(float(x)) for x in shown.values()) and float(shown["largest_weight"]) == 0


@pytest.mark.parametrize("settings", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_only_batches_without_positives_give_a_model_that_scores_as_a_plain_one(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, settings: dict[str, Any]
) -> None:
    model, plain, batch = make_model(**settings), make_model(preset="plain"), make_batch()
    for seed in range(2):
        for each in (model, plain):
            none = make_batch(seed=seed, ctr=0.0)
            step(each, none)
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    if settings.get("control") == "rce" or "soften" in settings:
        assert (scores.logit.numpy() != plain(batch).numpy()).any()  # these touch non-clicks as well
    else:
        np.testing.assert_allclose(scores.logit, plain(batch), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(scores.weight, np.ones(32))
    np.testing.assert_array_equal(scores.ctr_logit, scores.logit)


@pytest.mark.parametrize("settings", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_one_click_a_batch_is_enough(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, settings: dict[str, Any]
) -> None:
    model = make_model(**settings, optimizers="adam")
    for seed in range(4):
        batch = make_batch(seed=seed)
        batch["label"][:] = 0
        batch["label"][5 * seed] = 1
        sums = step(model, batch)
        assert np.isfinite(sums).all() and dict(zip(METRIC_SUMS, sums, strict=True))["least_weight"] > 0
    assert np.isfinite(values(model)).all()


# ---------------------------------------------------------------- logits that are no numbers


@pytest.mark.parametrize("settings", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_logits_that_are_no_numbers_show_in_the_loss_and_raise_nothing(
    make_model: MakeModel, make_batch: MakeBatch, settings: dict[str, Any]
) -> None:
    model, batch = make_model(**settings), _tensors(make_batch())
    run = tf.function(model.train_metric_sums)
    healthy = [variable.numpy() for variable in model.variables]
    for logit in (0.1, math.nan, math.inf, -math.inf):
        for variable, value in zip(model.variables, healthy, strict=True):
            variable.assign(value)
        model.backbone.head.bias.assign([logit])
        for _ in range(2):
            sums = run(batch)
            assert np.isfinite(float(metrics_from(sums)["loss"])) == (logit == 0.1)
            assert float(sums[0]) == 32 and sums.shape == len(METRIC_SUMS)
        scores = model.score(batch["ids"], batch["values"])
        measured = measure(batch["label"].numpy(), scores.logit.numpy())
        if logit != 0.1:
            assert measured.values.keys() == {"rows", "clicks", "ctr"}
            assert set(measured.undefined.values()) == {"some predictions are not finite"}


@pytest.mark.parametrize("settings", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize("logit", [80.0, -80.0])
def test_logits_far_out_stay_numbers(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, settings: dict[str, Any], logit: float
) -> None:
    """p is 1 or about 1e-35 in float32: no weight and no loss may become infinite by it."""
    model, batch = make_model(**settings), make_batch()
    model.backbone.head.bias.assign([logit])
    if model.teacher is not None:
        model.copy_teacher()
    for _ in range(2):
        assert np.isfinite(step(model, batch)[: len(SUMS)]).all()
    assert np.isfinite(values(model)).all()
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    assert all(np.isfinite(x).all() for x in scores)


# ---------------------------------------------------------------- groups


def _grouped() -> dict[str, np.ndarray]:
    """Group 1: no clicks; 2: clicks alone; 3: one user; 4: one row; 5: two users, one of them with both classes."""
    rows = [
        *[(1, user, 0) for user in (1, 1, 2, 2)],
        *[(2, user, 1) for user in (1, 2, 3)],
        *[(3, 7, label) for label in (1, 0, 0, 1, 0)],
        (4, 8, 1),
        *[(5, 9, label) for label in (0, 1, 0)],
        *[(5, 10, 1)],
    ]
    group, user, label = (np.array(column) for column in zip(*rows, strict=True))
    logit = np.random.default_rng(0).normal(size=len(rows)).astype(np.float32)
    return {"group": group, "user": user, "label": label.astype(np.float32), "logit": logit}


NAMES = {1: "no clicks", 2: "clicks alone", 3: "one user", 4: "one row", 5: "two users"}


def _measured(rows: dict[str, np.ndarray], users: bool = True) -> dict[str, Any]:
    user = rows["user"] if users else None
    return measure_groups(rows["group"], NAMES, rows["label"], rows["logit"], user)


def test_group_without_positives_has_no_auc_and_no_ratio() -> None:
    values, undefined = _measured(_grouped())["no clicks"]
    assert (values["rows"], values["clicks"], values["ctr"], values["gauc_users"]) == (4, 0, 0.0, 0)
    assert undefined == {
        "auc": ONE_CLASS,
        "gauc": "no user has both clicks and non-clicks",
        "predicted_over_real": "no clicks",
    }
    assert values["log_loss"] > 0 and values["predicted_ctr"] > 0 and not undefined.keys() & values.keys()


@pytest.mark.parametrize("group", ["clicks alone", "one row"])
def test_group_of_clicks_alone_has_no_auc(group: str) -> None:
    values, undefined = _measured(_grouped())[group]
    assert undefined == {"auc": ONE_CLASS, "gauc": "no user has both clicks and non-clicks"}
    assert values["ctr"] == 1.0 and values["predicted_over_real"] == pytest.approx(values["predicted_ctr"])


def test_group_of_one_user_has_the_auc_of_that_user_as_gauc() -> None:
    rows = _grouped()
    values, undefined = _measured(rows)["one user"]
    at = rows["group"] == 3
    assert values["gauc"] == values["auc"] == auc(rows["label"][at], rows["logit"][at])
    assert values["gauc_users"] == 1 and not undefined


def test_group_whose_other_user_has_one_class_counts_the_first_alone() -> None:
    rows = _grouped()
    values, _ = _measured(rows)["two users"]
    at = rows["user"] == 9
    assert values["gauc"] == auc(rows["label"][at], rows["logit"][at]) and values["gauc_users"] == 1


def test_groups_without_users_say_so() -> None:
    for values, undefined in _measured(_grouped(), users=False).values():
        assert undefined["gauc"] == "the log names no users" and "gauc" not in values


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_spoils_its_own_group_alone(wrong: float) -> None:
    rows = _grouped()
    before = _measured(rows)
    rows["logit"][8] = wrong  # of the group with one user
    after = _measured(rows)
    spoilt = after.pop("one user")
    assert spoilt.values == {"rows": 5, "clicks": 2, "ctr": 0.4}
    assert set(spoilt.undefined.values()) == {"some predictions are not finite"}
    assert spoilt.undefined.keys() == {"predicted_ctr", "predicted_over_real", "log_loss", "ece", "auc", "gauc"}
    assert after == {name: result for name, result in before.items() if name != "one user"}
