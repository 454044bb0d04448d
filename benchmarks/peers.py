"""Rows per second of training, and the AUC after it, compared with other libraries.

All sides train on the same rows: 1 M rows with 20 categorical features of 100 to 500,000 values and 10 numbers, in batches of
4,096, for one epoch, with DeepFM (16; 256-128-64) and DCN-v2 (3 cross layers), on the CPU. Each side is a program in
`benchmarks/sides/`, in its own usual style and with its own defaults. All sides but those with Adagrad use Adam, with the rate
that is best for the side on another log of this kind (`--choose-rates`, 45 minutes), so that no side has a rate that suits
another:

- clsd: `clsd train` from the shards on disk, without confidence, with `lazy_adam` for the tables (chosen on another log's
  validation split; with adagrad, the AUC after one epoch was lower by 0.02 to 0.04); also with Adagrad, as in the loop by hand;
  and with `train.precision: mixed_bfloat16`, which has no goal;
- by hand: a loop over arrays in memory with Adagrad, written for this one model: the limit;
- Keras: a model of Keras layers, `fit` on arrays, Adam;
- DeepCTR 0.9.4 (TensorFlow) and FuxiCTR 2.3.10 (PyTorch).

The first run creates an environment for the peers, 8 GB, with this project's versions as constraints. A side's clock starts
after its first 20 steps and stops after its last step.

    python benchmarks/peers.py [--quick] [--json FILE] [--environment DIR] [--choose-rates]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Goal, finish, median_ratio, show
from sklearn.metrics import roc_auc_score

from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config, parse_config

HERE = Path(__file__).resolve().parent
OURS, PEERS = ("clsd", "clsd, Adagrad", "clsd, bfloat16", "by hand", "Keras"), ("DeepCTR", "FuxiCTR")
PROGRAMS = {
    "clsd": ["clsd_fit.py"],
    "clsd, Adagrad": ["clsd_fit.py", "--tables=adagrad"],
    "clsd, bfloat16": ["clsd_fit.py", "--precision=mixed_bfloat16"],
    "by hand": ["by_hand.py"],
    "Keras": ["keras_fit.py"],
    "DeepCTR": ["deepctr_fit.py"],
    "FuxiCTR": ["fuxictr_fit.py"],
}
CATEGORICAL, NUMERIC = 20, 10
#: 2.4 M ids in all.
SIZES = (100 + 499_900 * (np.arange(CATEGORICAL) / (CATEGORICAL - 1)) ** 3.4).astype(int)
#: The best of `--choose-rates`, means of two seeds; this project's is that of the tables alone.
RATES = {
    "deepfm": {"clsd": 3e-3, "Keras": 3e-3, "DeepCTR": 3e-3, "FuxiCTR": 1e-2},
    "dcn_v2": {"clsd": 1e-2, "Keras": 3e-3, "DeepCTR": 1e-2, "FuxiCTR": 1e-2},
}
#: What `--choose-rates` tries.
TRIED = (1e-3, 3e-3, 1e-2)
#: Least ratio to the best of Keras, DeepCTR and FuxiCTR, by backbone.
GOALS = {"deepfm": 4.0, "dcn_v2": 2.5}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and one round; for a look, not for a claim")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument(
        "--choose-rates", action="store_true", help="print each side's AUC by rate of Adam on another log"
    )
    parser.add_argument(
        "--environment", metavar="DIR", type=Path, default=HERE.parent / ".venv-peers", help="of the peers"
    )
    return parser.parse_args()


def environment(directory: Path) -> Path:
    """The Python of the peers' environment, made if it is not there."""
    python = directory / "bin" / "python"
    if not (directory / ".done").exists():
        if directory.exists() and not (directory / "pyvenv.cfg").exists():
            sys.exit(f"error: {directory}: is no virtual environment, and would be emptied; name another --environment")
        print(f"making {directory}, some minutes")
        venv.create(directory, with_pip=True, clear=True)
        constraints = ["--constraint", str(HERE.parent / "constraints.txt")]
        peers = ["deepctr==0.9.4", "fuxictr==2.3.10", "tensorflow", "tf-keras", "torch", "pyarrow"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, *peers], check=True)
        (directory / ".done").touch()
    return python


def make_log(path: Path, rows: int, seed: int = 1) -> None:
    """A log whose clicks follow every id a little, two pairs of features and half of the numbers; ids fall off as 1 / rank."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(SIZES ** rng.random((rows, CATEGORICAL)), SIZES - 1).astype(np.int64)
    values = rng.normal(size=(rows, NUMERIC)).astype(np.float32)
    logit = values[:, : NUMERIC // 2] @ rng.normal(size=NUMERIC // 2) * 0.3
    for i, size in enumerate(SIZES):
        logit += 0.3 * rng.normal(size=size)[ids[:, i]]
    for first, second in ((0, 5), (3, 8)):
        vectors = [rng.normal(size=(SIZES[i], 4)) for i in (first, second)]
        logit += 0.3 * (vectors[0][ids[:, first]] * vectors[1][ids[:, second]]).sum(1)
    click = (rng.logistic(size=rows) < logit - 2.5).astype(np.int64)
    columns: dict[str, Any] = {f"c{i}": ids[:, i] for i in range(CATEGORICAL)}
    columns |= {f"x{i}": values[:, i] for i in range(NUMERIC)}
    pq.write_table(pa.table({**columns, "click": click, "row": np.arange(rows)}), path)


def make_config(log: Path) -> Config:
    """The run's settings, as a user would write them."""
    ids = [
        {"name": f"c{i}", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": int(size)}
        for i, size in enumerate(SIZES)
    ]
    numbers = [{"name": f"x{i}", "kind": "numeric", "transform": "none"} for i in range(NUMERIC)]
    raw = {
        "name": "peers",
        "logs": {"files": [str(log)]},
        "rows": {"label": "click", "features": [*ids, *numbers], "passthrough": ["row"]},
        "preprocess": {"split": {"by": "hash", "key": "row", "validation": 0, "test": 0.2}},
        "confidence": {"preset": "plain"},
        "train": {
            "epochs": 1,
            "early_stopping": None,
            "tensorboard": False,
            "embedding_optimizer": {"name": "lazy_adam", "learning_rate": 1e-3},
        },
    }
    return parse_config(raw, "benchmark")


def make_data(directory: Path, rows: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """The data set, and its rows as arrays; gives the labels of the test rows."""
    make_log(directory / "log.parquet", rows, seed)
    config = make_config(directory / "log.parquet")
    (directory / "config.yaml").write_text(dump_config(config))
    dataset = preprocess(config, directory / "dataset")
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        result = dataset.read(split)
        arrays |= {f"{split}_ids": result.ids, f"{split}_values": result.values}
        arrays[f"{split}_label"] = result.label.astype(np.float32)
    sizes = [dataset.transform.table_size(f"c{i}") for i in range(CATEGORICAL)]
    np.savez(directory / "data.npz", sizes=sizes, directory=str(directory), **arrays)
    return np.asarray(arrays["test_label"])


def train(side: str, python: Path, directory: Path, backbone: str, seed: int, adam_rate: float) -> tuple[float, Any]:
    """(rows a second, scores of the test rows) of one side."""
    out = directory / "out.json"
    name, *options = PROGRAMS[side]
    arguments = [str(directory / "data.npz"), str(out), backbone, str(seed), f"--rate={adam_rate}", *options]
    done = subprocess.run(
        [str(python), str(HERE / "sides" / name), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text())["rate"], np.load(out.with_suffix(".npy"))


def choose_rates(pythons: dict[str, Path], rows: int) -> None:
    """Print each side's AUC, the mean of two seeds, by the rate of Adam, on a log of other draws than what is measured."""
    with tempfile.TemporaryDirectory() as name:
        labels = make_data(Path(name), rows, seed=77)
        for backbone in GOALS:
            for side in RATES[backbone]:
                for rate in TRIED:
                    result = [train(side, pythons[side], Path(name), backbone, seed, rate)[1] for seed in (1, 2)]
                    auc = statistics.mean(float(roc_auc_score(labels, scores)) for scores in result)
                    print(f"{backbone} {side} of rate {rate:g}: AUC {auc:.4f}", flush=True)


def main() -> None:
    """See the module."""
    options = arguments()
    rows, rounds = (300_000, 1) if options.quick else (1_250_000, 3)  # a fifth of them is the test
    pythons = dict.fromkeys(OURS, Path(sys.executable)) | dict.fromkeys(PEERS, environment(options.environment))
    if options.choose_rates:
        choose_rates(pythons, rows)
        return
    every: dict[str, list[float]] = {}
    goals = []
    with tempfile.TemporaryDirectory() as name:
        labels = make_data(Path(name), rows)
        for backbone, goal in GOALS.items():
            result: dict[str, list[float]] = {side: [] for side in pythons}
            aucs: dict[str, list[float]] = {side: [] for side in pythons}
            for number in range(rounds):
                for side in list(pythons)[number:] + list(pythons)[:number]:
                    of_adam = RATES[backbone].get(side.partition(",")[0], 1e-3)
                    rate, scores = train(side, pythons[side], Path(name), backbone, number + 1, of_adam)
                    result[side].append(rate)
                    aucs[side].append(float(roc_auc_score(labels, scores)))
                    print(f"{backbone} {side}: {rate:,.0f} rows/s, AUC {aucs[side][-1]:.4f}", flush=True)
            others = ("Keras", *PEERS)
            result["best"] = [max(result[side][i] for side in others) for i in range(rounds)]
            best_auc = max(statistics.median(aucs[side]) for side in others)
            goals += [
                Goal(f"peers_{backbone}_best", median_ratio(result, "clsd", "best"), goal),
                Goal(f"peers_{backbone}_by_hand", median_ratio(result, "clsd, Adagrad", "by hand"), 0.95),
                Goal(f"peers_{backbone}_auc", statistics.median(aucs["clsd"]) / best_auc, 1.0),
            ]
            result.pop("best")
            show(f"{backbone}, one epoch of batches of 4,096", "rows/s", result)
            every |= {f"{backbone}/{side}": values for side, values in result.items()}
            every |= {f"{backbone}/{side}/auc": values for side, values in aucs.items()}
    finish("rows/s, and AUC where it says so", every, goals, options.json)


if __name__ == "__main__":
    main()
