"""`clsd train` on two replicas, stopped and gone on with, ends as on one: reader, teacher cache, validation and checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.tf_runtime import tf
from pipeline.checkpoints import Checkpoints
from pipeline.config import Config, dump_config
from pipeline.dataset import Dataset
from pipeline.train import load_trained

SETTINGS = {
    "train.epochs": 3,
    "train.batch_size": 250,  # 4,800 rows: an uneven last batch
    "train.embedding_optimizer": "{name: adagrad, learning_rate: 0.2}",
    # Not by Adam, which divides what is next to nothing by its own size: rounding errors would grow with every step.
    "train.dense_optimizer": "{name: sgd, learning_rate: 0.2}",
    "confidence.gate": "off",
    "model.options": "{hidden_units: [16]}",  # without dropout, whose masks differ by replica
    "train.deterministic": "true",
}


@pytest.fixture(scope="module")
def runs(small_config: Config, small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("training")
    (root / "c.yaml").write_text(dump_config(small_config))
    words = ["--config", str(root / "c.yaml"), "--dataset", str(small_dataset.directory)]
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    command = [sys.executable, "-m", "pipeline.cli", "train", *words]

    def start(n: int) -> subprocess.Popen[bytes]:
        often = ["--set", "train.checkpoint_minutes=0", "--set", "train.steps_per_call=4"]
        return subprocess.Popen(
            [*command, *often, "--set", f"train.replicas={n}", "--out", str(root / str(n))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def end(n: int, process: subprocess.Popen[bytes], code: int) -> None:
        said = process.communicate()[1].decode()
        assert process.returncode == code, f"{n} replicas:\n{said}"

    one, two = start(1), start(2)
    while two.poll() is None and Checkpoints(root / "2" / "checkpoints").newest() is None:
        time.sleep(0.05)
    two.send_signal(signal.SIGTERM)  # within an epoch, from which the second process goes on
    end(2, two, 75)
    end(2, start(2), 0)
    end(1, one, 0)
    return {n: root / str(n) for n in (1, 2)}


def _run(directory: Path) -> Any:
    return json.loads((directory / "run.json").read_text())


def test_two_replicas_keep_the_weights_of_one(runs: dict[int, Path]) -> None:
    kept = []
    for directory in runs.values():
        reader = tf.train.load_checkpoint(str(directory / "best" / "weights"))
        names = [n for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n]
        kept.append({name: reader.get_tensor(name) for name in names})
    assert kept[0].keys() == kept[1].keys() and any("teacher" in name for name in kept[0])
    for name, value in kept[0].items():
        np.testing.assert_allclose(value, kept[1][name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_two_replicas_report_the_figures_of_one(runs: dict[int, Path]) -> None:
    one, two = (_run(directory)["history"] for directory in runs.values())
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for part in ("train", "validation"):
            assert a[part] == pytest.approx(b[part], rel=1e-5, abs=1e-6)
    assert one[-1]["train"]["effective_clicks"] < 0.999  # the weights differ


def test_what_two_replicas_trained_is_read_on_one_device(runs: dict[int, Path], small_dataset: Dataset) -> None:
    scores = [load_trained(directory, small_dataset)[1] for directory in runs.values()]
    rows = small_dataset.read("test").take(slice(0, 50))
    first, second = (model.score(tf.constant(rows.ids), tf.constant(rows.values)) for model in scores)
    for name in ("logit", "confidence", "ctr_logit"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-5)
