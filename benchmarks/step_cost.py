"""The cost of a step of the method, in units of a plain cross-entropy step of the same backbone.

There are three sides per backbone and CTR. Each is trained as in `clsd train` (the strategy, the loop's function of several
steps, the iterator of batches), after the warm-up:

- plain: `preset: plain`;
- asked: `preset: stable`; the frozen teacher scores a batch's clicks in each step;
- cached: the same, but `teacher_cache.lookup` looks the scores up within the measured time, in a table that also holds the scores
  of a million other clicks. Each epoch after the first weighted one runs like this, so the goals without a suffix refer to it.

Batches lie in memory. Before all measurements, the benchmark checks that the sides compute what they should.

    python benchmarks/step_cost.py [--quick] [--json FILE]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Goal, arguments, finish, median_ratio, rates, show

from clsd.features.tf_runtime import tf
from clsd.models import step_metrics
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import Field, InputSpec
from clsd.models.settings import ConfidenceSettings, ModelSettings
from clsd.pipeline.shared.config import TrainSettings
from clsd.pipeline.training import teacher_cache
from clsd.pipeline.training.strategy import make_reproducible, make_strategy

CATEGORICAL, NUMERIC, BATCH, WARMUP, BLOCK = 20, 10, 4096, 8, 5
SIZES = np.geomspace(100, 500_000, CATEGORICAL).astype(int)
OTHER_CLICKS = 1_000_000
#: CTR to the largest cost that is good.
GOALS = {0.05: 1.03, 0.5: 1.15}
BACKBONES: dict[str, dict[str, Any]] = {
    "deepfm": {"hidden_units": [256, 128, 64]},
    "dcn_v2": {"hidden_units": [256, 128, 64], "cross_layers": 3},
}
SPEC = InputSpec(
    fields=(
        *(Field(f"c{i}", "id", f"c{i}", int(size)) for i, size in enumerate(SIZES)),
        *(Field(f"x{i}", "number") for i in range(NUMERIC)),
    ),
    groups=tuple((f"c{i}", int(SIZES[i])) for i in range(3)),
    id_slices={f"c{i}": slice(i, i + 1) for i in range(CATEGORICAL)},
    value_columns={f"x{i}": i for i in range(NUMERIC)},
)

Batches = dict[str, Any]
Run = Callable[[int], Any]


def make_batches(n: int, ctr: float) -> Batches:
    """Columns of n batches, ``[n, B, ...]``; ids fall off as 1 / rank does, and clicks follow one id and one number."""
    rng = np.random.default_rng(1)
    shape = (n, BATCH)
    ids = np.minimum(SIZES ** rng.random((*shape, CATEGORICAL)), SIZES - 1).astype(np.int32)
    values = rng.normal(size=(*shape, NUMERIC)).astype(np.float32)
    appeal = values[..., 0] + ids[..., 0] % 2 + rng.logistic(size=shape)
    return {
        "ids": ids,
        "values": values,
        "label": (appeal > np.quantile(appeal, 1 - ctr)).astype(np.float32),
        "key": rng.integers(-(2**63), 2**63, shape),
        "valid": np.ones(shape, np.float32),
    }


def make_model(strategy: Any, backbone: str, preset: str, ctr: float) -> ClsdModel:
    """A model at its start, the same for the same backbone."""
    make_reproducible(1, deterministic=True)
    train = TrainSettings()
    with strategy.scope():
        return ClsdModel(
            SPEC,
            ModelSettings(backbone=backbone, embedding_dim=16, options=BACKBONES[backbone]),
            ConfidenceSettings(preset=preset),
            TrainingSetup(
                warmup_steps=WARMUP,
                embedding_optimizer=train.embedding_optimizer,
                dense_optimizer=train.dense_optimizer,
                prior_ctr=ctr,
            ),
        )


def make_run(strategy: Any, model: ClsdModel) -> Callable[[Any, Any], Any]:
    """So many steps over an iterator, as `clsd.pipeline.training.loop` runs them; gives the sums of each, ``[steps, 10]``."""

    @tf.function
    def run_steps(iterator: Any, steps: Any) -> Any:
        sums, each = step_metrics.empty_sums(), tf.TensorArray(tf.float32, steps)
        for i in tf.range(steps):
            now = strategy.run(model.train_metric_sums, args=(next(iterator),))
            first = strategy.experimental_local_results(now)[0]
            sums = step_metrics.merged(tf.stack([sums, first]))
            each = each.write(i, first)
        return sums, each.stack()

    return run_steps  # type: ignore[no-any-return]


def make_side(run: Callable[[Any, Any], Any], iterator: Any, steps: int = BLOCK) -> Callable[[], int]:
    """A side of a benchmark: so many steps at a time; gives how many rows they trained on."""

    def side() -> int:
        run(iterator, tf.constant(steps))[0].numpy()
        return BATCH * steps

    return side


def make_iterator(strategy: Any, data: Batches, add: Any = None) -> Any:
    """Batches in turn without end, by the reader's last steps."""
    columns = data if add else {name: column for name, column in data.items() if name != "key"}
    dataset = tf.data.Dataset.from_tensor_slices(columns).repeat().prefetch(4)
    return iter(strategy.experimental_distribute_dataset(dataset.map(add) if add else dataset))


def make_lookup(model: ClsdModel, data: Batches) -> Any:
    """The reader's lookup of the teacher's scores, of these batches' clicks and of many others."""
    clicks = data["label"] > 0
    ids, values = data["ids"][clicks], data["values"][clicks]
    teach = tf.function(model.teacher_logit, reduce_retracing=True)
    parts = [slice(at, at + BATCH) for at in range(0, len(ids), BATCH)]
    scores = np.concatenate([tf.sigmoid(teach(ids[at], values[at])).numpy() for at in parts])
    rng = np.random.default_rng(2)
    keys = np.concatenate([data["key"][clicks], rng.integers(-(2**63), 2**63, OTHER_CLICKS)])
    return teacher_cache.lookup(keys, np.concatenate([scores, rng.random(OTHER_CLICKS)]))


def check(plain: Any, asked: Any, cached: Any) -> None:
    """Of the sums of each step after the warm-up, ``[steps, 10]``: the sides compute what they should."""
    at = {name: i for i, name in enumerate(step_metrics.METRIC_SUMS)}
    least, largest = at["least_weight"], at["largest_weight"]
    assert (plain[:, [least, largest]] == 1.0).all(), "the plain side weighs clicks"
    assert (asked[:, least] < 0.99).all() and (asked[:, largest] > 1.01).all(), "the weights of clicks are all near 1"
    np.testing.assert_array_equal(plain[0, at["predicted"]], asked[0, at["predicted"]], "the sides' backbones differ")
    np.testing.assert_array_equal(asked[:, at["gate_rows"]], asked[:, at["clicks"]], "the gate rests")
    # From one state the steps agree; then Adam's first steps of a gate near its optimum make something of rounding errors.
    np.testing.assert_allclose(cached[0], asked[0], rtol=1e-6, err_msg="cached and asked scores give other steps")
    np.testing.assert_allclose(cached, asked, rtol=1e-3, err_msg="cached and asked scores part")


def measure(strategy: Any, backbone: str, ctr: float, batches: int, rounds: int) -> dict[str, list[float]]:
    """Rows a second of the three sides, in each round."""
    data = make_batches(batches, ctr)
    presets = {"plain": "plain", "asked": "stable", "cached": "stable"}
    models = {side: make_model(strategy, backbone, preset, ctr) for side, preset in presets.items()}
    runs = {side: make_run(strategy, model) for side, model in models.items()}
    iterators = {side: make_iterator(strategy, data) for side in presets}
    for side in presets:
        runs[side](iterators[side], tf.constant(WARMUP))
    # From the first weighted step on, as the reader of an epoch does it.
    models["cached"].copy_teacher()
    rest = {name: np.roll(column, -WARMUP, axis=0) for name, column in data.items()}
    iterators["cached"] = make_iterator(strategy, rest, make_lookup(models["cached"], data))
    check(*(runs[side](iterators[side], tf.constant(4))[1].numpy() for side in presets))

    return rates({name: make_side(runs[name], iterators[name]) for name in presets}, rounds)


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    batches, rounds = (12, 6) if options.quick else (24, 60)
    warnings.filterwarnings("ignore")
    tf.get_logger().setLevel("ERROR")  # a step is traced anew for each side, and says so
    strategy = make_strategy(1, BATCH)
    every, goals = {}, []
    for backbone in BACKBONES:
        for ctr, goal in GOALS.items():
            result = measure(strategy, backbone, ctr, batches, rounds)
            show(f"{backbone}, CTR {ctr:.0%}, {BATCH:,} rows a step", "rows/s", result)
            name = f"step_cost_{backbone}_ctr{ctr * 100:.0f}"
            every.update({f"{name}/{side}": values for side, values in result.items()})
            for suffix, side in (("", "cached"), ("_asked", "asked")):
                goals.append(Goal(name + suffix, median_ratio(result, "plain", side), goal, at_most=True))
            tf.keras.backend.clear_session()
    finish("rows/s", every, goals, options.json)


if __name__ == "__main__":
    main()
