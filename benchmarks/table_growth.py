"""The cost of a step as a table grows: a table of 10 M rows compared with one of 10,000, on one device and mirrored on two.

DeepFM has one feature with that many values and 19 others. It is trained as in `clsd train`, on batches in memory; the ids of the
feature are drawn evenly from the whole table. All optimizers for tables are measured, the default one also mirrored.

    python benchmarks/table_growth.py [--quick] [--json FILE]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from common import Goal, arguments, finish, median_ratio, rates, show
from step_cost import BATCH, SPEC, make_batches, make_iterator, make_run, make_side

from clsd.features.tf_runtime import tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings
from clsd.pipeline.training.strategy import make_reproducible, make_strategy

SMALL, LARGE = 10_000, 10_000_000
OPTIMIZERS = ("adagrad", "rowwise_adagrad", "lazy_adam")


def work(strategy: Any, optimizer: str, size: int) -> Callable[[], int]:
    """Some steps of a model whose largest table has so many rows; gives how many rows they trained on."""
    make_reproducible(1, deterministic=True)
    field = SPEC.fields[19]
    spec = replace(SPEC, fields=(*SPEC.fields[:19], replace(field, size=size), *SPEC.fields[20:]))
    with strategy.scope():
        model = ClsdModel(
            spec,
            ModelSettings(backbone="deepfm", embedding_dim=16, options={"hidden_units": [256, 128, 64]}),
            ConfidenceSettings(preset="plain"),
            TrainingSetup(
                warmup_steps=0,
                embedding_optimizer=OptimizerSettings(name=optimizer, learning_rate=0.05),
                dense_optimizer=OptimizerSettings(name="adam", learning_rate=1e-3),
                prior_ctr=0.05,
            ),
        )
    data = make_batches(200, 0.05)  # so many that the rows of the large table are no small set
    data["ids"][..., 19] = np.random.default_rng(3).integers(0, size, data["ids"].shape[:2])
    return make_side(make_run(strategy, model), make_iterator(strategy, data))


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    rounds = 4 if options.quick else 20
    warnings.filterwarnings("ignore")
    tf.get_logger().setLevel("ERROR")
    strategies = {"mirrored": make_strategy(2, BATCH), "one": make_strategy(1, BATCH)}
    every, goals = {}, []
    for device, optimizer in [*(("one", name) for name in OPTIMIZERS), ("mirrored", "adagrad")]:
        sides = {f"{size:,} rows": work(strategies[device], optimizer, size) for size in (SMALL, LARGE)}
        result = rates(sides, rounds)
        show(f"{optimizer}, {device} device, {BATCH:,} rows a step", "rows/s", result)
        few, many = sides
        name = f"table_growth_{device}_{optimizer}"
        every |= {f"{name}/{side}": values for side, values in result.items()}
        goals.append(Goal(name, median_ratio(result, few, many), 1.2, at_most=True))
        tf.keras.backend.clear_session()
    finish("rows/s", every, goals, options.json)


if __name__ == "__main__":
    main()
