"""Controls compared with NumPy: as functions, in the model's step, and in the scores of a row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.models import controls
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import sigmoid
from clsd.models.step_metrics import METRIC_SUMS

Batch = dict[str, Any]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., ClsdModel]
Step = Callable[[ClsdModel, Batch], np.ndarray]
Values = Callable[[Any], np.ndarray]

CONTROLS = ["constant", "permuted", "rce", "tce"]
#: A model that no step moves, whose clicks would weigh (1 + q) / 2 without a control, q being its own p.
STILL: dict[str, Any] = {"learning_rate": 1e-30, "normalise": "none", "gate": "off"}


def _column(*values: float) -> Any:
    return tf.constant(values, tf.float32)


def _drawn(rng: np.random.Generator, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0.1, 3, rows).astype(np.float32), (rng.random(rows) < 0.4).astype(np.float32)


def _named(totals: np.ndarray) -> dict[str, float]:
    return dict(zip(METRIC_SUMS, totals.tolist(), strict=True))


# ---------------------------------------------------------------- constant


def test_constant_keeps_the_mean_and_nothing_else() -> None:
    w, positive = _drawn(np.random.default_rng(0))
    held = controls.constant(tf.constant(w), tf.constant(positive)).numpy()[positive == 1]
    assert held.std() == 0 and held[0] == pytest.approx(w[positive == 1].mean(), rel=1e-6)


def test_constant_without_clicks_changes_nothing() -> None:
    w = _column(0.3, 2.0)
    np.testing.assert_array_equal(controls.constant(w, tf.zeros([2])), w)


# ---------------------------------------------------------------- permuted


def _deal(w: np.ndarray, positive: np.ndarray, *seed: int) -> np.ndarray:
    return controls.permuted(tf.constant(w), tf.constant(positive), tf.constant(seed, tf.int64)).numpy()


def test_permuted_keeps_the_clicks_weights_but_not_their_places() -> None:
    w, positive = _drawn(np.random.default_rng(1))
    dealt = _deal(w, positive, 5, 0)
    np.testing.assert_array_equal(np.sort(dealt[positive == 1]), np.sort(w[positive == 1]))
    np.testing.assert_array_equal(dealt[positive == 0], w[positive == 0])
    assert (dealt != w).sum() > positive.sum() / 2


def test_permuted_is_one_deal_a_seed() -> None:
    w, positive = _drawn(np.random.default_rng(2))
    np.testing.assert_array_equal(_deal(w, positive, 5, 7), _deal(w, positive, 5, 7))
    assert (_deal(w, positive, 5, 7) != _deal(w, positive, 5, 8)).any()
    assert (_deal(w, positive, 5, 7) != _deal(w, positive, 6, 7)).any()


def test_permuted_deals_every_order_alike() -> None:
    w, positive = np.array([1.0, 9.0, 2.0, 3.0], np.float32), np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    orders = [tuple(_deal(w, positive, 11, step)[[0, 2, 3]].astype(int)) for step in range(600)]
    counts = [orders.count(order) for order in itertools.permutations((1, 2, 3))]
    assert sum(counts) == 600 and min(counts) > 70  # 100 each; 70 is 3.3 standard deviations away


@pytest.mark.parametrize("positive", [[0, 0, 0], [0, 1, 0]])
def test_permuted_has_nothing_to_deal_below_two_clicks(positive: list[int]) -> None:
    w = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(_deal(w, np.array(positive, np.float32), 1, 1), w)


# ---------------------------------------------------------------- R-CE and T-CE


@pytest.mark.parametrize("exponent", [0.25, 1.0, 2.0])
def test_rce_weighs_each_row_by_the_power_of_its_likelihood(exponent: float) -> None:
    p = np.random.default_rng(3).uniform(0.01, 0.99, 50).astype(np.float32)
    click, non_click = controls.reweighted(tf.constant(p), exponent)
    np.testing.assert_allclose(click, p.astype(np.float64) ** exponent, rtol=1e-5)
    np.testing.assert_allclose(non_click, (1 - p.astype(np.float64)) ** exponent, rtol=1e-5)


def test_rce_has_a_logarithm_at_0_and_1_and_no_gradient() -> None:
    p = _column(0.0, 1.0)
    with tf.GradientTape() as tape:
        tape.watch(p)
        click, non_click = controls.reweighted(p, 0.25)
    assert tape.gradient([click, non_click], p) is None
    assert np.isfinite(np.log([click, non_click])).all()


def _naive_truncated(p: np.ndarray, positive: np.ndarray, share: float) -> np.ndarray:
    """Whole groups of equal p, the least likely first, for as long as no more than the share falls."""
    w = np.ones(len(p))
    room = math.floor(share * positive.sum())
    for value in np.unique(p[positive == 1]):
        group = (p == value) & (positive == 1)
        if group.sum() > room:
            break
        w[group] = 0
        room -= group.sum()
    return w


@pytest.mark.parametrize("levels", [3, 10, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.07, 0.25, 0.5, 0.95])
def test_tce_drops_the_least_likely_clicks_and_ties_together(levels: int, share: float) -> None:
    rng = np.random.default_rng(levels)
    p = (rng.integers(1, levels, 60) / levels).astype(np.float32)
    positive = (rng.random(60) < 0.5).astype(np.float32)
    w = controls.truncated(tf.constant(p), tf.constant(positive), tf.constant(share)).numpy()
    np.testing.assert_array_equal(w, _naive_truncated(p, positive, share))
    assert (w == 0).sum() <= share * positive.sum() and (w[positive == 0] == 1).all()
    if levels == 10_000:
        assert (w == 0).sum() == math.floor(share * positive.sum())


def test_tce_drops_nobody_where_all_clicks_are_alike() -> None:
    w = controls.truncated(tf.fill([8], 0.3), _column(1, 1, 1, 0, 1, 0, 1, 1), tf.constant(0.9))
    np.testing.assert_array_equal(w, np.ones(8))


@pytest.mark.parametrize("positive", [[0, 0, 0], [0, 0, 1]])
def test_tce_leaves_a_lone_click(positive: list[int]) -> None:
    w = controls.truncated(_column(0.1, 0.2, 0.3), _column(*positive), tf.constant(0.9))
    np.testing.assert_array_equal(w, np.ones(3))


@pytest.mark.parametrize(
    ("step", "ramp", "expected"),
    [(-5, 100, 0.0), (0, 100, 0.0), (25, 100, 0.05), (100, 100, 0.2), (999, 100, 0.2), (0, 0, 0.2), (1, 0, 0.2)],
)
def test_tce_share_grows_linearly_and_stays(step: int, ramp: int, expected: float) -> None:
    assert float(controls.drop_share(tf.constant(step, tf.int64), 0.2, ramp)) == pytest.approx(expected)


# ---------------------------------------------------------------- through the model's step


def _totals_of(batch: Batch, s: np.ndarray, w: np.ndarray, non_click: np.ndarray | float = 1.0) -> dict[str, float]:
    """A step's totals in float64 from logits and weights."""
    y, p, s = batch["label"].astype(np.float64), sigmoid(s), s.astype(np.float64)
    losses = y * w * np.logaddexp(0, -s) + (1 - y) * non_click * np.logaddexp(0, s)
    parts = [len(y), losses.sum(), p.sum(), y.sum(), (w * y).sum(), (w**2 * y).sum(), 0, 0]
    return dict(zip(METRIC_SUMS, [*parts, w[y == 1].min(), w[y == 1].max()], strict=True))


def test_constant_step_in_numpy(make_model: MakeModel, make_batch: MakeBatch, step: Step) -> None:
    model, batch = make_model(control="constant", **STILL), make_batch()
    s = model(batch).numpy()
    w = (1 + sigmoid(s)) / 2
    held = np.full(32, w[batch["label"] == 1].mean())
    totals = _named(step(model, batch))
    assert totals == pytest.approx(_totals_of(batch, s, held), rel=2e-6)
    assert totals["weight_squared"] < 0.999 * _totals_of(batch, s, w)["weight_squared"]


def test_permuted_step_is_one_of_the_deals_in_numpy(make_model: MakeModel, make_batch: MakeBatch, step: Step) -> None:
    model, batch = make_model(control="permuted", **STILL), make_batch()
    batch["label"][:] = 0
    clicks = [3, 11, 20]
    batch["label"][clicks] = 1
    s = model(batch).numpy()
    w = (1 + sigmoid(s)) / 2
    deals = []
    for order in itertools.permutations(clicks):
        dealt = w.copy()
        dealt[clicks] = w[list(order)]
        deals.append(_totals_of(batch, s, dealt))
    seen = set()
    for _ in range(30):
        totals = _named(step(model, batch))
        (which,) = [i for i, deal in enumerate(deals) if totals == pytest.approx(deal, rel=1e-6)]
        seen.add(which)
    assert seen == set(range(6))


def test_permuted_step_deals_anew_each_time_and_alike_for_one_seed(
    make_model: MakeModel, make_batch: MakeBatch, step: Step
) -> None:
    ours, twin, other = (make_model(control="permuted", **STILL) for _ in range(3))
    other.control_seed += 1
    batch = make_batch()
    losses = [[_named(step(model, batch))["loss"] for _ in range(5)] for model in (ours, twin, other)]
    assert losses[0] == losses[1] and losses[0] != losses[2]
    assert len(set(losses[0])) == 5


@pytest.mark.parametrize("exponent", [0.25, 1.0])
def test_rce_step_in_numpy(make_model: MakeModel, make_batch: MakeBatch, step: Step, exponent: float) -> None:
    model, batch = make_model(control="rce", rce_exponent=exponent, gate="off"), make_batch()
    s, bias = model(batch).numpy(), float(model.backbone.head.bias)
    p, y = sigmoid(s), batch["label"]
    totals = _named(step(model, batch))
    assert totals == pytest.approx(_totals_of(batch, s, p**exponent, (1 - p) ** exponent), rel=2e-6)
    to_logit = -y * p**exponent * (1 - p) + (1 - y) * (1 - p) ** exponent * p  # the weights are no path
    assert float(model.backbone.head.bias) == pytest.approx(bias - 0.1 * to_logit.mean(), abs=1e-7)


def test_tce_steps_in_numpy_along_the_ramp(make_model: MakeModel, make_batch: MakeBatch, step: Step) -> None:
    model, batch = make_model(control="tce", tce_share=0.5, tce_ramp_steps=4, warmup_steps=2, **STILL), make_batch()
    s, y = model(batch).numpy(), batch["label"]
    dropped = []
    for number in range(9):
        share = 0.5 * min(max(number - 2, 0) / 4, 1)
        w = _naive_truncated(s, y, share)
        assert _named(step(model, batch)) == pytest.approx(_totals_of(batch, s, w), rel=2e-6)
        dropped.append(int((w == 0).sum()))
    assert dropped == sorted(dropped) and dropped[2] == 0 and dropped[6] == dropped[8] == int(y.sum() // 2)


@pytest.mark.parametrize("control", CONTROLS)
def test_padding_changes_no_control(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, control: str
) -> None:
    settings = {"control": control, "tce_ramp_steps": 1, "tce_share": 0.4}
    bare, padded = make_model(**settings), make_model(**settings)
    for seed in range(3):
        rows, rubbish = make_batch(seed=seed), make_batch(rows=7, seed=100 + seed, ctr=0.7)
        rubbish["valid"][:] = 0
        both = {name: np.concatenate([x, rubbish[name]]) for name, x in rows.items()}
        np.testing.assert_allclose(step(padded, both), step(bare, rows), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values(padded.backbone), values(bare.backbone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_lone_click_keeps_its_weight(make_model: MakeModel, make_batch: MakeBatch, step: Step, control: str) -> None:
    model, batch = make_model(control=control, tce_share=0.9, tce_ramp_steps=1, **STILL), make_batch()
    batch["label"][:] = 0
    batch["label"][13] = 1
    s = model(batch).numpy()
    p = sigmoid(s)
    w = {"rce": p**0.25, "tce": np.ones(32)}.get(control, (1 + p) / 2)
    non_click = (1 - p) ** 0.25 if control == "rce" else 1.0
    for _ in range(3):
        assert _named(step(model, batch)) == pytest.approx(_totals_of(batch, s, w, non_click), rel=2e-6)


@pytest.mark.parametrize("control", CONTROLS)
def test_gate_learns_of_the_weights_before_the_control_or_rests(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, values: Values, control: str
) -> None:
    ours, weighted = make_model(control=control), make_model()
    before = values(ours.gate)
    for seed in range(3):
        for model in (ours, weighted):  # the frozen teacher does not see the backbone
            totals = _named(step(model, make_batch(seed=seed)))
    if control in ("rce", "tce"):
        assert _named(step(ours, make_batch()))["gate_rows"] == 0
        np.testing.assert_array_equal(values(ours.gate), before)
    else:
        np.testing.assert_array_equal(values(ours.gate), values(weighted.gate))
        assert (values(ours.gate) != before).any() and totals["gate_rows"] > 0


# ---------------------------------------------------------------- what a model says of a row


@pytest.mark.parametrize("exponent", [0.25, 0.8])
def test_score_of_rce_is_corrected_by_its_own_two_weights(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, exponent: float
) -> None:
    model, batch = make_model(control="rce", rce_exponent=exponent, kept_negatives=0.3), make_batch()
    step(model, batch)
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    s = scores.logit.numpy().astype(np.float64)
    p = sigmoid(s)
    np.testing.assert_allclose(scores.confidence, p**exponent, rtol=1e-5)
    np.testing.assert_allclose(scores.weight, p**exponent / (1 - p) ** exponent, rtol=1e-5)
    expected = s - np.log(p**exponent / (1 - p) ** exponent) + math.log(0.3)
    np.testing.assert_allclose(scores.ctr_logit, expected, rtol=1e-5, atol=1e-5)
    assert not scores.correction.numpy().any()


@pytest.mark.parametrize("settings", [{"control": "constant"}, {"control": "permuted"}, {"source": "intensity"}])
def test_score_of_blind_weights_is_corrected_by_their_moving_mean(
    make_model: MakeModel, make_batch: MakeBatch, step: Step, settings: dict[str, Any]
) -> None:
    # q**2: the mean intensity is about 1, that of its square is not.
    settings = {**settings, "normalise": "none", "alpha": 2.0, "blend": math.inf, "mean_decay": 0.8}
    model = make_model(**settings, warmup_steps=1, kept_negatives=0.3)
    sums = np.zeros(2)
    for seed in range(4):
        totals = _named(step(model, make_batch(seed=seed)))
        sums = sums if seed == 0 else 0.8 * sums + 0.2 * np.array([totals["clicks"], totals["weight"]])
    batch = make_batch(seed=9)
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    mean = sums[1] / sums[0]
    np.testing.assert_allclose(scores.weight, np.full(32, mean), rtol=1e-5)
    np.testing.assert_allclose(scores.ctr_logit, scores.logit - math.log(mean) + math.log(0.3), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.confidence, np.ones(32))
    assert abs(mean - 1) > 0.1


def test_score_of_tce_is_the_logit_itself(make_model: MakeModel, make_batch: MakeBatch, step: Step) -> None:
    model, batch = make_model(control="tce", tce_share=0.5, tce_ramp_steps=1), make_batch()
    for _ in range(3):
        totals = _named(step(model, batch))
    assert totals["least_weight"] == 0
    scores = model.score(tf.constant(batch["ids"]), tf.constant(batch["values"]))
    np.testing.assert_array_equal(scores.ctr_logit, scores.logit)
    assert (scores.weight.numpy() == 1).all() and (scores.confidence.numpy() == 1).all()
