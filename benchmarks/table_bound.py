"""The cost in AUC of a bounded table: composed of two short tables, or hashed into fewer bins, compared with one row per id.

The log is that of `benchmarks/peers.py`: 1.25 M rows whose clicks depend on each id a little. DeepFM trains for one epoch, with
tables of at most 25,000 rows instead of up to 500,000: a seventh of all rows. Both bounded sides use as many rows; the composed
one needs a few more for its quotients. The result is a median over seeds; the goal is that composing costs no more than hashing.

    python benchmarks/table_bound.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from pathlib import Path

from common import Goal, arguments, finish
from peers import SIZES, make_config, make_log
from rich.console import Console
from rich.table import Table as Shown
from sklearn.metrics import roc_auc_score

from clsd.features.tf_runtime import tf
from clsd.models.optimizers import split_variables
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.training.scoring import Scorer
from clsd.pipeline.training.train import train
from clsd.pipeline.training.trained_model import load_trained

ROWS = 25_000


def bounded(config: Config, by: str) -> Config:
    """The config with a table's rows bounded: whole (not), composed or hashed."""
    raw = config.model_dump(mode="json", by_alias=True)
    if by == "composed":
        raw["model"]["max_table_rows"] = ROWS
    if by == "hashed":
        for feature in raw["rows"]["features"]:
            if feature["kind"] == "categorical" and feature["size"] > ROWS:
                feature |= {"encoding": "hash", "size": ROWS}
    return parse_config(raw, "benchmark")


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    rows, seeds = (300_000, 1) if options.quick else (1_250_000, 3)
    warnings.filterwarnings("ignore")
    tf.get_logger().setLevel("ERROR")
    aucs: dict[str, list[float]] = {side: [] for side in ("whole", "composed", "hashed")}
    lengths = {}
    with tempfile.TemporaryDirectory() as name:
        make_log(Path(name) / "log.parquet", rows)
        for side, result in aucs.items():
            config = bounded(make_config(Path(name) / "log.parquet"), side)
            dataset = preprocess(config, Path(name) / side)
            for seed in range(1, seeds + 1):
                run = Path(name) / f"{side}-{seed}"
                train(config.model_copy(update={"seed": seed}), dataset, run)
                _, model = load_trained(run, dataset)
                scored = Scorer(model, dataset, tf.distribute.get_strategy()).score("test")
                result.append(float(roc_auc_score(scored["label"], scored["logit"])))
                lengths[side] = sum(table.shape[0] for table in split_variables(model.backbone)[0])
                tf.keras.backend.clear_session()
    shown = Shown(title=f"{len(SIZES)} features of {SIZES.sum():,} ids, one epoch of {rows * 4 // 5:,} rows", box=None)
    for column in ("side", "rows of all tables", "AUC, median", "lowest", "highest"):
        shown.add_column(column, justify="left" if column == "side" else "right")
    for side, result in aucs.items():
        metrics = (f"{value:.4f}" for value in (statistics.median(result), min(result), max(result)))
        shown.add_row(side, f"{lengths[side]:,}", *metrics)
    Console().print(shown)
    ratio = statistics.median(aucs["composed"]) / statistics.median(aucs["hashed"])
    finish("AUC", aucs, [Goal("table_bound_composed_hashed", ratio, 1.0)], options.json)


if __name__ == "__main__":
    main()
