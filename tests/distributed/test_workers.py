"""`clsd train` on several local processes with MultiWorkerMirroredStrategy: the weights of one process, and lost processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.checkpoints import Checkpoints
from clsd.pipeline.training.strategy import workers

Clusters = Callable[[int], list[str]]

SETTINGS = {
    "train.epochs": 3,
    "train.steps_per_call": 4,
    "train.batch_size": 252,  # 4,800 rows: an uneven last batch
    "train.checkpoint_minutes": 0,
    "train.embedding_optimizer": "{name: adagrad, learning_rate: 0.2}",
    # Not by Adam, which divides what is next to nothing by its own size: rounding errors would grow with every step.
    "train.dense_optimizer": "{name: sgd, learning_rate: 0.2}",
    "confidence.gate": "off",
    "model.options": "{hidden_units: [16]}",  # without dropout, whose masks differ by replica
}


def _start(config: Config, dataset: Dataset, out: Path, cluster: list[str]) -> list[subprocess.Popen[str]]:
    """Train in as many processes as the cluster has workers, a single process gets no TF_CONFIG."""
    file = out.parent / f"{config.seed}.yaml"
    file.write_text(dump_config(config))
    words = ["--config", str(file), "--dataset", str(dataset.directory), "--out", str(out)]
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    started = []
    for tf_config in cluster:
        command = [sys.executable, "-m", "clsd.pipeline.cli", "train", *words]
        environment = {**os.environ, "TF_CONFIG": tf_config}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, preexec_fn=_hear, **pipes))  # type: ignore[call-overload]
    return started


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts in the background


def _end(processes: list[subprocess.Popen[str]]) -> list[str]:
    output = ["".join(process.communicate(timeout=240)) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(output)
    return output


def _signalled(processes: list[subprocess.Popen[str]], run: Path, number: int) -> list[str]:
    """What the processes say whose second one gets a signal after the first checkpoint; they end in bounded time."""
    while processes[0].poll() is None and Checkpoints(run / "checkpoints").newest() is None:
        time.sleep(0.02)
    processes[1].send_signal(number)
    return ["".join(process.communicate(timeout=120)) for process in processes]


def _kept(run: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(run / "best" / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


def _assert_same(mine: Path, theirs: Path) -> None:
    a, b = _kept(mine), _kept(theirs)
    assert a.keys() == b.keys() and any("teacher" in name for name in a)
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def one(small_config: Config, small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    _end(_start(small_config, small_dataset, out, [""]))
    return out


def test_three_processes_train_as_one(
    small_config: Config, small_dataset: Dataset, one: Path, clusters: Clusters, tmp_path: Path
) -> None:
    _end(_start(small_config, small_dataset, tmp_path / "run", clusters(3)))
    _assert_same(tmp_path / "run", one)
    mine, theirs = (json.loads((run / "run.json").read_text())["history"] for run in (tmp_path / "run", one))
    for a, b in zip(mine, theirs, strict=True):
        assert a["validation"] == pytest.approx(b["validation"], rel=1e-5)
        assert a["train"] == pytest.approx(b["train"], rel=1e-5, abs=1e-6)


def test_where_one_of_two_is_killed_the_other_ends_and_both_go_on(
    small_config: Config, small_dataset: Dataset, one: Path, clusters: Clusters, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = _start(small_config, small_dataset, run, clusters(2))
    output = _signalled(processes, run, signal.SIGKILL)[0]
    assert processes[0].returncode == 75, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "lost a machine of the job" in line and "Traceback" not in output
    assert not (run / "run.json").exists()
    assert all("continuing after epoch" in text for text in _end(_start(small_config, small_dataset, run, clusters(2))))
    _assert_same(run, one)


def test_sigterm_at_any_machine_ends_all_with_a_checkpoint(
    small_config: Config, small_dataset: Dataset, one: Path, clusters: Clusters, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = _start(small_config, small_dataset, run, clusters(2))
    output = _signalled(processes, run, signal.SIGTERM)
    assert [process.returncode for process in processes] == [75, 75], "\n".join(output)
    assert not any("error: " in text for text in output) and not (run / "run.json").exists()
    _end(_start(small_config, small_dataset, run, clusters(2)))
    _assert_same(run, one)


def test_a_machine_that_waits_for_others_is_ended_by_ctrl_c(
    small_config: Config, small_dataset: Dataset, clusters: Clusters, tmp_path: Path
) -> None:
    (alone,) = _start(small_config, small_dataset, tmp_path / "run", clusters(2)[:1])
    assert alone.stderr is not None
    while "waiting for all 2 machines" not in alone.stderr.readline():
        assert alone.poll() is None
    alone.send_signal(signal.SIGINT)
    alone.communicate(timeout=10)
    assert alone.returncode == -signal.SIGINT


def test_machines_that_do_not_begin_alike_are_refused(
    small_config: Config, small_dataset: Dataset, clusters: Clusters, tmp_path: Path
) -> None:
    tf_configs = clusters(2)
    chief = _start(small_config, small_dataset, tmp_path / "run", tf_configs[:1])
    other = _start(small_config.model_copy(update={"seed": 8}), small_dataset, tmp_path / "run", tf_configs[1:])
    for process in (*chief, *other):
        output = "".join(process.communicate(timeout=120))
        assert process.returncode == 2, output
        assert "the machines differ in where they start, or in their settings or data" in output


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("{", "TF_CONFIG: cannot be read"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG: cannot be read"),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "other tasks"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "task 1 is not one of 1 workers"),
        ('{"cluster": {"worker": ["a", "b:1"]}, "task": {"type": "worker", "index": 0}}', "a is not HOST:PORT"),
        ('{"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}', "a:99999 is not HOST:PORT"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "names a machine twice"),
    ],
)
def test_a_cluster_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, tf_config: str, message: str) -> None:
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(UserError, match=message):
        workers()
