"""`clsd train` on two replicas, interrupted and resumed, or compiled by XLA, gives the result of one replica: reader, teacher
cache, validation, checkpoints."""

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

from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.checkpoints import Checkpoints
from clsd.pipeline.training.trained_model import load_trained

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
def runs(small_config: Config, small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    root = tmp_path_factory.mktemp("training")
    (root / "c.yaml").write_text(dump_config(small_config))
    words = ["--config", str(root / "c.yaml"), "--dataset", str(small_dataset.directory)]
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    command = [sys.executable, "-m", "clsd.pipeline.cli", "train", *words]

    def start(n: int, xla: bool = False) -> subprocess.Popen[bytes]:
        often = ["--set", "train.checkpoint_minutes=0", "--set", "train.steps_per_call=4"]
        own = [
            "--set",
            f"train.replicas={n}",
            "--set",
            f"train.xla={xla}",
            "--out",
            str(root / ("xla" if xla else str(n))),
        ]
        return subprocess.Popen(
            [*command, *often, *own],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0" if xla else "3"},
        )

    def end(what: Any, process: subprocess.Popen[bytes], code: int) -> str:
        output = process.communicate()[1].decode()
        assert process.returncode == code, f"{what}:\n{output}"
        return output

    one, two = start(1), start(2)
    while two.poll() is None and Checkpoints(root / "2" / "checkpoints").newest() is None:
        time.sleep(0.05)
    two.send_signal(signal.SIGTERM)  # within an epoch, from which the second process goes on
    end(2, two, 75)
    end(2, start(2), 0)
    end(1, one, 0)
    assert "Compiled cluster using XLA" in end("xla", start(1, xla=True), 0)
    return {name: root / str(name) for name in (1, 2, "xla")}


def _run(directory: Path) -> Any:
    return json.loads((directory / "run.json").read_text())


def _kept(directory: Path) -> dict[str, Any]:
    """What a checkpoint of the kept weights holds."""
    reader = tf.train.load_checkpoint(str(directory / "best" / "weights"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.parametrize("other", [2, "xla"])
def test_the_weights_kept_are_those_of_one_replica(runs: dict[Any, Path], other: Any) -> None:
    one, result = _kept(runs[1]), _kept(runs[other])
    assert one.keys() == result.keys() and any("teacher" in name for name in one)
    for name, value in one.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("other", [2, "xla"])
def test_the_figures_reported_are_those_of_one_replica(runs: dict[Any, Path], other: Any) -> None:
    one, two = (_run(runs[name])["history"] for name in (1, other))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for part in ("train", "validation"):
            assert a[part] == pytest.approx(b[part], rel=1e-5, abs=1e-6)
    assert one[-1]["train"]["effective_clicks"] < 0.999  # the weights differ


def test_what_two_replicas_trained_is_read_on_one_device(runs: dict[Any, Path], small_dataset: Dataset) -> None:
    scores = [load_trained(directory, small_dataset)[1] for directory in (runs[1], runs[2])]
    rows = small_dataset.read("test").take(slice(0, 50))
    first, second = (model.score(tf.constant(rows.ids), tf.constant(rows.values)) for model in scores)
    for name in ("logit", "confidence", "ctr_logit"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-5)
