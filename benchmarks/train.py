"""Does the reader keep up? Steps on a data set's shards, compared with the same steps on one repeated batch.

The data set is synthetic, with 20 categorical and 10 numeric features. The models, DeepFM and DCN-v2, are trained as in
`clsd train`, on all cores of the machine, which the reader and the step share.

    python benchmarks/train.py [--quick] [--json FILE]
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Goal, arguments, finish, median_ratio, rates, show
from preprocess import make_config
from step_cost import BACKBONES, BATCH, make_run, make_side

from clsd.features.input_pipeline import read_batches
from clsd.features.tf_runtime import tf
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.strategy import make_reproducible, make_strategy
from clsd.pipeline.training.trained_model import build_model

STEPS = 40


def work(config: Config, dataset: Dataset, strategy: Any, constant: bool) -> Callable[[], int]:
    """Some steps; gives how many rows they trained on."""
    make_reproducible(1, deterministic=True)
    with strategy.scope():
        model = build_model(config, dataset)
    data = read_batches(
        dataset.schema, dataset.files("train"), BATCH, shuffle_seed=1, rows_per_block=dataset.rows_per_block
    )
    data = data.take(1).cache().repeat() if constant else data.repeat()
    iterator = iter(strategy.experimental_distribute_dataset(data))
    return make_side(make_run(strategy, model), iterator, STEPS)


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    rows, rounds = (100_000, 4) if options.quick else (1_000_000, 20)
    warnings.filterwarnings("ignore")
    tf.get_logger().setLevel("ERROR")
    strategy = make_strategy(1, BATCH)
    every, goals = {}, []
    with tempfile.TemporaryDirectory() as name:
        made = SyntheticSettings(rows=rows, extra_categorical=15, extra_numeric=9)
        config = make_config(write_dataset("synthetic", Path(name) / "log", format="parquet", synthetic=made))
        dataset = preprocess(config, Path(name) / "dataset")
        for backbone, backbone_options in BACKBONES.items():
            model = config.model.model_copy(update={"backbone": backbone, "options": backbone_options})
            chosen = config.model_copy(update={"model": model})
            sides = {side: work(chosen, dataset, strategy, side == "constant") for side in ("constant", "real")}
            # Steps that are not timed first: while one side ran, the other's batches were made ready, and would be free.
            result = rates(sides, rounds, before=lambda side, sides=sides: sides[side]())
            show(f"{backbone}, {BATCH:,} rows a step", "rows/s", result)
            every |= {f"{backbone}/{side}": values for side, values in result.items()}
            goals.append(Goal(f"train_input_{backbone}", median_ratio(result, "constant", "real"), 1.05, at_most=True))
            tf.keras.backend.clear_session()
    finish("rows/s", every, goals, options.json)


if __name__ == "__main__":
    main()
