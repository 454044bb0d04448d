"""Where training ends: facts 2 to 5 of the method, by the real model over one logit an id, trained to its optimum.

Every id has its CTR exactly, by repetition, and each step sees all rows; so the optimum is known in closed form.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import keras, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import Scores, TrainingSetup
from clsd.models.input_spec import Field, InputSpec
from clsd.models.metrics import auc, gauc, sigmoid
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings
from clsd.models.step_metrics import METRIC_SUMS

ROWS = 20  # of each id
ETA = np.array([0.05, 0.2, 0.4, 0.5, 0.6, 0.75, 0.95])
ODDS = ETA / (1 - ETA)
STEPS = 3000
#: Clicks and non-clicks of an id pull against each other: in float32 their difference is lost below 1e-7, and where p is 0.003
#: that is 3e-4 of its odds, however long one trains.
FAINT = 5e-4
UNBOUNDED = {"eps": 1e-9, "a_max": 1e9, "gate": "off"}

TABLE = """
import tf_keras

class Table(tf_keras.Model):
    def __init__(self, spec, embedding_dim):
        super().__init__()
        self.table = tf_keras.layers.Embedding(spec.fields[0].size, 1, embeddings_initializer="zeros")

    def call(self, inputs, training=False):
        return self.table(inputs["x"])[:, 0]
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Dotted path of a user's own backbone: one logit an id."""
    folder = tmp_path_factory.mktemp("tabular")
    (folder / "tabular_backbone.py").write_text(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield "tabular_backbone:Table"


class Trained:
    """A model over one batch, and what it says of each of the ids 1 to n, or of each row."""

    def __init__(self, model: ClsdModel, batch: dict[str, np.ndarray]) -> None:
        self.model, self.batch = model, batch
        self._data = {name: tf.constant(x) for name, x in batch.items()}
        self._first = np.unique(batch["ids"][:, 0], return_index=True)[1]

        @tf.function
        def steps(count: Any) -> Any:
            sums = tf.zeros([len(METRIC_SUMS)])
            for _ in tf.range(count):
                sums = model.train_metric_sums(self._data)
            return sums

        self._steps = steps

    def train(self, steps: int = STEPS) -> Trained:
        self.sums = dict(zip(METRIC_SUMS, self._steps(tf.constant(steps)).numpy().astype(np.float64), strict=True))
        scores = self.model.score(self._data["ids"], self._data["values"])
        self.rows = Scores(*(np.array(x, np.float64) for x in scores))
        self.logit, self.confidence, self.weight, self.correction, self.ctr_logit = (x[self._first] for x in self.rows)
        return self

    @property
    def p(self) -> np.ndarray:
        return sigmoid(self.logit)

    @property
    def c(self) -> float:
        return float(self.model.moments[1] / self.model.moments[0])


def _rows(eta: np.ndarray, groups: list[int] | None = None, kept: float = 1.0) -> dict[str, np.ndarray]:
    """Rows of ids 1 to n with these CTRs exactly; of the non-clicks the share ``kept``."""
    clicks = np.rint(eta * ROWS).astype(int)
    others = np.rint((ROWS - clicks) * kept).astype(int)
    np.testing.assert_allclose(clicks / (clicks + others / kept), eta)
    x = np.repeat(np.arange(len(eta)), clicks + others)
    label = np.concatenate([[1.0] * a + [0.0] * b for a, b in zip(clicks, others, strict=True)])
    ids = np.stack([x + 1, np.ones_like(x) if groups is None else np.array(groups)[x]], axis=1)
    n = len(x)
    columns = {"ids": ids.astype(np.int32), "values": np.zeros((n, 0)), "label": label, "valid": np.ones(n)}
    return {name: column if name == "ids" else column.astype(np.float32) for name, column in columns.items()}


@pytest.fixture(scope="module")
def tabular(table: str) -> Callable[..., Trained]:
    """An untrained model of these CTRs; the step size is such that each id moves as if it were alone, 4 times its gradient."""

    def make(
        eta: np.ndarray = ETA,
        *,
        groups: list[int] | None = None,
        warmup_steps: int = 0,
        kept: float = 1.0,
        items: Any = None,
        **confidence: Any,
    ) -> Trained:
        keras.utils.set_random_seed(2)
        batch = _rows(eta, groups, kept)
        spec = InputSpec(
            fields=(Field("x", "id", "x", len(eta) + 1),),
            groups=(("band", 4),),
            id_slices={"x": slice(0, 1), "band": slice(1, 2)},
            value_columns={},
        )
        rate = OptimizerSettings(name="sgd", learning_rate=4.0 * len(eta))
        model = ClsdModel(
            spec,
            ModelSettings(backbone=table),
            ConfidenceSettings(**confidence),
            TrainingSetup(
                warmup_steps=warmup_steps,
                embedding_optimizer=rate,
                dense_optimizer=rate,
                kept_negatives=kept,
            ),
            items=None if items is None else ("x", np.array(items, np.float32)),
        )
        return Trained(model, batch)

    return make


Tabular = Callable[..., Trained]


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


# ---------------------------------------------------------------- fact 2

FIXED_WEIGHTS: dict[str, dict[str, Any]] = {
    "frozen, taught well": {"warmup_steps": 500, "blend": math.inf},
    "frozen, taught badly": {"warmup_steps": 2, "blend": math.inf},
    "frozen, blend": {"warmup_steps": 500},
    "frozen, power, raw": {"warmup_steps": 500, "alpha": 0.5, "normalise": "none", "blend": math.inf},
    "frozen, gradient mass": {"warmup_steps": 500, "normalise": "gradient_mass"},
    "frozen, odds": {"warmup_steps": 500, "scale": "odds"},
    "items": {"source": "item", "items": [0, 9, 2, 4, 1, 1, 7, 3]},
    "constant": {"warmup_steps": 500, "normalise": "none", "control": "constant", "blend": math.inf},
}


@pytest.mark.parametrize("settings", FIXED_WEIGHTS.values(), ids=FIXED_WEIGHTS)
def test_fact_2_fixed_weight_multiplies_the_odds_and_ctr_logit_undoes_it(
    tabular: Tabular, settings: dict[str, Any]
) -> None:
    result = tabular(**{**UNBOUNDED, **settings}).train()
    np.testing.assert_allclose(np.exp(result.logit), result.weight * ODDS, rtol=1e-4)
    np.testing.assert_allclose(sigmoid(result.ctr_logit), ETA, rtol=1e-4)
    assert np.abs(result.p - ETA).max() > 0.04  # the score itself is no CTR


def test_fact_2_weights_of_the_frozen_teacher_are_its_ctr_by_the_mean_clicks(tabular: Tabular) -> None:
    result = tabular(warmup_steps=500, blend=math.inf, **UNBOUNDED).train()
    np.testing.assert_allclose(result.weight, ETA / np.average(ETA, weights=ETA), rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_fact_2_rce_has_a_closed_form_too(tabular: Tabular, exponent: float) -> None:
    """odds(p) = (p / (1 - p))**b odds(eta), so s = logit(eta) / (1 - b)."""
    result = tabular(control="rce", rce_exponent=exponent, **UNBOUNDED).train()
    np.testing.assert_allclose(result.logit, _logit(ETA) / (1 - exponent), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sigmoid(result.ctr_logit), ETA, rtol=FAINT)


@pytest.mark.parametrize("settings", [{"preset": "plain"}, {"warmup_steps": 500, **UNBOUNDED}])
def test_fact_2_ctr_logit_undoes_the_sampling_of_non_clicks_too(tabular: Tabular, settings: dict[str, Any]) -> None:
    eta = np.array([0.1, 0.2, 0.4, 0.5, 0.6, 0.9])
    result = tabular(eta, kept=0.5, **settings).train()
    np.testing.assert_allclose(sigmoid(result.ctr_logit), eta, rtol=1e-4)
    assert (result.p - eta).max() > 0.05


@pytest.mark.parametrize("scale", ["odds", "probability"])
def test_weights_from_odds_do_not_depend_on_the_sampling_of_non_clicks(tabular: Tabular, scale: str) -> None:
    eta = np.array([0.1, 0.2, 0.4, 0.5, 0.6, 0.9])
    settings = {"scale": scale, "warmup_steps": 600, "blend": math.inf, **UNBOUNDED}
    runs = [tabular(eta, kept=kept, **settings).train(1000) for kept in (1.0, 0.5)]
    difference = np.abs(runs[0].weight / runs[1].weight - 1).max()
    assert difference < 1e-3 if scale == "odds" else difference > 0.1


@pytest.mark.parametrize("teacher", ["self", "previous", "ema"])
def test_softened_targets_leave_the_optimum_where_a_teacher_follows(tabular: Tabular, teacher: str) -> None:
    """p = beta t + (1 - beta) r with odds(r) = w odds(eta); where t comes to p that is p = r, as without softening."""
    settings = {"source": "item", "items": [0, 9, 2, 4, 1, 1, 7, 3], "ema_decay": 0.9, **UNBOUNDED}
    result = tabular(soften=0.3, teacher=teacher, **settings).train()
    np.testing.assert_allclose(np.exp(result.logit), result.weight * ODDS, rtol=FAINT)
    np.testing.assert_allclose(sigmoid(result.ctr_logit), ETA, rtol=FAINT)


def test_softened_targets_of_a_frozen_teacher_pull_towards_it(tabular: Tabular) -> None:
    settings = {"source": "item", "items": [0, 9, 2, 4, 1, 1, 7, 3], **UNBOUNDED}
    result = tabular(soften=0.3, warmup_steps=500, **settings).train()
    odds = result.weight * ODDS
    np.testing.assert_allclose(result.p, 0.3 * ETA + 0.7 * odds / (1 + odds), rtol=1e-4)


# ---------------------------------------------------------------- fact 3

FOLLOWERS = [{"teacher": "self"}, {"teacher": "previous"}, {"teacher": "ema", "ema_decay": 0.8}]


@pytest.mark.parametrize("teacher", FOLLOWERS, ids=lambda t: t["teacher"])
def test_fact_3_raw_self_teacher_collapses_every_ctr_of_a_half_or_less(
    tabular: Tabular, teacher: dict[str, Any]
) -> None:
    run = tabular(normalise="none", blend=math.inf, **teacher, **UNBOUNDED)
    half, whole = run.train(STEPS // 2).p, run.train(STEPS // 2).p
    np.testing.assert_allclose(whole[ETA > 0.5], 2 - 1 / ETA[ETA > 0.5], rtol=1e-4)
    # Below a half p falls as 1 / t; at the half itself as 1 / sqrt(t).
    np.testing.assert_allclose(whole[ETA < 0.5] / half[ETA < 0.5], 0.5, rtol=0.05)
    np.testing.assert_allclose(whole[ETA == 0.5] / half[ETA == 0.5], math.sqrt(0.5), rtol=0.05)
    assert whole[ETA < 0.5].max() < 1e-3 and whole[ETA == 0.5] < 1e-2


@pytest.mark.parametrize("teacher", FOLLOWERS, ids=lambda t: t["teacher"])
def test_fact_3_normalising_does_not_stop_the_collapse(tabular: Tabular, teacher: dict[str, Any]) -> None:
    result = tabular(blend=math.inf, **teacher, **UNBOUNDED).train()
    expected = np.maximum(0.0, 1 - result.c / ODDS)
    np.testing.assert_allclose(result.p, expected, atol=5e-4)
    np.testing.assert_allclose(result.c, np.average(expected, weights=ETA), rtol=1e-3)
    assert (expected == 0).sum() == 2 and (expected > 0.05).sum() == 5


@pytest.mark.parametrize("teacher", FOLLOWERS, ids=lambda t: t["teacher"])
@pytest.mark.parametrize("normalise", ["none", "mean"])
def test_fact_3_blend_stops_the_collapse(tabular: Tabular, teacher: dict[str, Any], normalise: str) -> None:
    """odds(p) = (1 + p / c) / 2 odds(eta), a quadratic equation whose positive root is never 0."""
    result = tabular(blend=1.0, normalise=normalise, **teacher, **UNBOUNDED).train()
    c = result.c if normalise == "mean" else 1.0
    a, b = ODDS / (2 * c), 1 + ODDS / 2 - ODDS / (2 * c)
    root = (-b + np.sqrt(b**2 + 2 * a * ODDS)) / (2 * a)
    np.testing.assert_allclose(result.p, root, rtol=1e-4)
    assert (result.p / (1 - result.p) > ODDS / 2).all()


def test_fact_3_a_teacher_that_is_not_the_student_stops_the_collapse(tabular: Tabular) -> None:
    result = tabular(warmup_steps=500, normalise="none", blend=math.inf, **UNBOUNDED).train()
    np.testing.assert_allclose(result.p, ETA * ODDS / (1 + ETA * ODDS), rtol=FAINT)


# ---------------------------------------------------------------- fact 4


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 500},
        {"warmup_steps": 500, "blend": math.inf},
        {"warmup_steps": 500, "alpha": 0.5, "blend": math.inf},
        {"warmup_steps": 2, "blend": math.inf},
        {"teacher": "self"},
    ],
)
def test_fact_4_mean_prediction_is_the_ctr_less_the_covariance_of_weight_and_prediction(
    tabular: Tabular, settings: dict[str, Any]
) -> None:
    result = tabular(**settings, **UNBOUNDED).train()
    covariance = np.average((result.weight - 1) * result.p, weights=ETA)
    sums = result.sums
    assert sums["weight"] / sums["clicks"] == pytest.approx(1.0, rel=1e-5)
    assert sums["predicted"] / sums["rows"] == pytest.approx(ETA.mean() * (1 - covariance), rel=1e-4)
    assert covariance > 0.01  # else the equation would say nothing


@pytest.mark.parametrize("blend", [1.0, math.inf])
def test_fact_4_gradient_mass_keeps_the_mean_prediction(tabular: Tabular, blend: float) -> None:
    result = tabular(warmup_steps=500, normalise="gradient_mass", blend=blend, **UNBOUNDED).train()
    assert result.p.mean() == pytest.approx(ETA.mean(), rel=1e-4)
    assert result.weight.std() > 0.1


# ---------------------------------------------------------------- fact 5


@pytest.mark.parametrize(
    "settings",
    [{"blend": math.inf}, {"blend": 1.0}, {"blend": math.inf, "alpha": 0.3}, {"teacher": "self"}],
)
def test_fact_5_weighting_at_the_optimum_is_a_monotone_map_and_leaves_auc(
    tabular: Tabular, settings: dict[str, Any]
) -> None:
    run = tabular(warmup_steps=500, **settings, **UNBOUNDED)
    label = run.batch["label"]
    before = run.train(500).rows.logit
    after = run.train().rows.logit
    assert auc(label, after) == auc(label, before)
    assert (np.diff(run.logit) > 0).all() and np.abs(after - before).max() > 0.1


def test_fact_5_a_weight_that_does_not_rise_with_the_ctr_can_change_auc(tabular: Tabular) -> None:
    result = tabular(source="item", items=[0, 100, 50, 20, 10, 5, 2, 1], blend=math.inf, **UNBOUNDED).train()
    label = result.batch["label"]
    best = auc(label, ETA[result.batch["ids"][:, 0] - 1])
    worse = auc(label, result.rows.logit)
    assert best is not None and worse is not None and worse < best - 0.01


def test_fact_5_a_gate_reorders_across_groups_and_never_within_one(tabular: Tabular) -> None:
    eta, groups = np.array([0.1, 0.2, 0.3, 0.25, 0.5, 0.7]), [1, 1, 1, 2, 2, 2]
    settings = {**UNBOUNDED, "warmup_steps": 500, "blend": math.inf}
    without = tabular(eta, groups=groups, **settings).train()
    gated = tabular(eta, groups=groups, **{**settings, "gate": "centre"}, gate_learning_rate=0.01).train()
    label, group = gated.batch["label"], gated.batch["ids"][:, 1]
    assert gauc(label, gated.rows.logit, group) == gauc(label, without.rows.logit, group)
    assert auc(label, gated.rows.logit) != auc(label, without.rows.logit)
    assert without.logit[3] > without.logit[1] and gated.logit[3] < gated.logit[1]  # 0.25 of one, 0.2 of the other

    means = [np.average(gated.confidence[at], weights=eta[at]) for at in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(means, 1.0, rtol=0.01)  # the gate's own closed form: g = m - E+[q] of its group
    centre = np.average(eta, weights=eta)
    expected = [centre - np.average(eta[at], weights=eta[at]) for at in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(gated.correction[[0, 3]], expected, rtol=0.02)
