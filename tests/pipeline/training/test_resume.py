"""Killed and resumed runs: the same rows, the same weights bit for bit, and no damaged checkpoint is used."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.errors import UserError
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import directory_lock
from clsd.pipeline.training.checkpoints import Checkpoints
from clsd.pipeline.training.train import train

Make = Callable[..., Config]
Same = Callable[[Path, Path], bool]

#: 4 epochs of 19 steps, of which 25 warm up; the teacher is copied anew every 9 steps; a checkpoint every 3.
EVERY_THIRD = {"epochs": 4, "steps_per_call": 3, "checkpoint_minutes": 0}
CONFIDENCE = {"warmup_steps": 25, "refresh_steps": 9}

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["clsd.pipeline.training.train"])


@pytest.fixture(scope="module")
def config(make_tiny: Make) -> Config:
    return make_tiny(train=EVERY_THIRD, confidence=CONFIDENCE)


@pytest.fixture(scope="module")
def whole(config: Config, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config, tiny_dataset, out)
    return out


def _killed_at(config: Config, dataset: Path, out: Path, where: str, times: int) -> None:
    """Train in this process, which kills itself with SIGKILL when it comes to a place for so many times."""
    from clsd.pipeline.training import checkpoints, loop

    seen = 0

    def killing(real: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            nonlocal seen
            seen += 1
            result = real(*args, **words) if after or seen < times else None
            if seen >= times:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if where == "step":  # after a call of three steps, and before its checkpoint
        loop.TrainingLoop._check = killing(loop.TrainingLoop._check)
    elif where == "validation":
        loop.Scorer.score = killing(loop.Scorer.score, after=True)
    elif where == "weights":  # TensorFlow's files are written, and the state is not
        checkpoints.describe_file = killing(checkpoints.describe_file)
    elif where == "state":  # all is written aside, and not in place
        checkpoints.write_json = killing(checkpoints.write_json, after=True)
    elif where == "best":  # the best weights are written, and the checkpoint of the epoch is not
        loop.atomic_directory = killing(loop.atomic_directory)
    train(config, Dataset.load(dataset), out)


def _kill(config: Config, dataset: Dataset, out: Path, where: str, times: int) -> None:
    process = _SERVER.Process(target=_killed_at, args=(config, dataset.directory, out, where, times))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{where} {times}: exit code {process.exitcode}"


_RANDOM = random.Random(4)
#: Where a run is killed, one after the other until it is let through: in warm-up and after it, at the copies of the teacher
#: (steps 25, 34, 43, ...), at the ends of epochs, while checkpoints are written, in validation.
KILLS = {
    "warm-up": [("step", 4), ("weights", 3), ("state", 2), ("best", 1)],
    "refreshing": [("step", 9), ("step", 3), ("weights", 5), ("state", 1)],
    "validation": [("validation", 1), ("validation", 2), ("best", 2), ("weights", 9)],
    "random": [(_RANDOM.choice(["step", "weights", "state"]), _RANDOM.randint(1, 7)) for _ in range(3)],
}


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
def test_a_run_that_is_killed_ends_with_the_same_weights(
    kills: list[tuple[str, int]],
    config: Config,
    whole: Path,
    tiny_dataset: Dataset,
    same_weights: Same,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    for where, times in kills:
        _kill(config, tiny_dataset, tmp_path / "run", where, times)
    train(config, tiny_dataset, tmp_path / "run")
    assert same_weights(tmp_path / "run", whole)
    mine, other = state_of(tmp_path / "run"), state_of(whole)
    # Equal weights may give other bytes of TensorFlow's files.
    others = ("seconds", "timed_steps", "best_files")
    assert {k: v for k, v in mine.items() if k not in others} == {k: v for k, v in other.items() if k not in others}
    left = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert left == [".lock"], "what a killed process left is still there"


def test_a_killed_run_with_the_teachers_scores_in_memory_ends_with_the_same_weights(
    make_tiny: Make, tiny_dataset: Dataset, same_weights: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are asked for anew by each process that goes on, from the teacher that the checkpoint holds."""
    from clsd.pipeline.training import teacher_cache

    config = make_tiny(train=EVERY_THIRD, confidence={"warmup_steps": 19, "teacher": "frozen", "refresh_steps": 0})
    real, asked = teacher_cache.click_scores, []
    monkeypatch.setattr(teacher_cache, "click_scores", lambda *args: asked.append(1) or real(*args))
    train(config, tiny_dataset, tmp_path / "whole")
    assert asked == [1]
    for where, times in (("step", 9), ("weights", 3), ("validation", 2)):
        _kill(config, tiny_dataset, tmp_path / "run", where, times)
    train(config, tiny_dataset, tmp_path / "run")
    assert asked == [1, 1]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_what_goes_on_reads_the_rows_that_an_undisturbed_run_reads(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clsd.pipeline.training import epoch_reader, loop

    read: list[Any] = []
    real = epoch_reader.read_batches

    def noting(*args: Any, **words: Any) -> Any:
        data = real(*args, **{**words, "columns": (*words["columns"], "key")})

        def take(batch: dict[str, Any]) -> dict[str, Any]:
            import tensorflow as tf

            key = tf.py_function(lambda key: read.append(key.numpy()) or key, [batch["key"]], batch["key"].dtype)
            return {**batch, "key": tf.ensure_shape(key, batch["key"].shape)}

        return data.map(take)

    class EnoughError(Exception):
        pass

    config = make_tiny(train={**EVERY_THIRD, "epochs": 1}, confidence=CONFIDENCE)
    with monkeypatch.context() as patch:
        patch.setattr(epoch_reader, "read_batches", noting)
        train(config, tiny_dataset, tmp_path / "whole")
        undisturbed = np.concatenate(read[:19])
        read.clear()

        def stop(self: Any, *_: Any) -> None:
            if self.state.step >= 9:
                raise EnoughError

        with monkeypatch.context() as inner, pytest.raises(EnoughError):
            inner.setattr(loop.TrainingLoop, "_check", stop)
            train(config, tiny_dataset, tmp_path / "run")
        before = np.concatenate(read[:6])  # the last checkpoint is of 6 steps
        read.clear()
        train(config, tiny_dataset, tmp_path / "run")
        after = np.concatenate(read[:13])
    np.testing.assert_array_equal(np.concatenate([before, after]), undisturbed)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    config: Config,
    whole: Path,
    tiny_dataset: Dataset,
    same_weights: Same,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "run.json").unlink()
    newest, older, oldest = sorted((int(path.name) for path in (run / "checkpoints").iterdir()), reverse=True)
    data = next((run / "checkpoints" / str(newest)).glob("weights.data*"))
    torn = bytearray(data.read_bytes())
    torn[len(torn) // 2] ^= 1  # one bit
    data.write_bytes(torn)
    (run / "checkpoints" / str(older) / "weights.index").unlink()
    result = Checkpoints(run / "checkpoints").newest()
    assert result is not None
    assert result[0].parent.name == str(oldest)
    output = " ".join(capsys.readouterr().err.split())
    assert f"{newest} has an altered weights.data" in output
    assert f"{older} lacks weights.index: skipped" in output
    train(config, tiny_dataset, run)
    assert same_weights(run, whole)
    for path in (run / "checkpoints").glob("*/weights.index"):
        path.write_bytes(b"")
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints: has no intact checkpoint; pass --overwrite"):
        train(config, tiny_dataset, run)


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(
    config: Config, whole: Path, tiny_dataset: Dataset, same_weights: Same, tmp_path: Path
) -> None:
    code = (
        "import resource, sys; from clsd.pipeline.training import checkpoints; from clsd.pipeline.cli import main\n"
        "real = checkpoints.Checkpoints.save\n"
        "def save(self, step, *rest):\n"
        "    if step > 30:  # from here on no file may grow, as on a disk that is full\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    return real(self, step, *rest)\n"
        "checkpoints.Checkpoints.save = save\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "main(sys.argv[1:])\n"
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    run = tmp_path / "run"
    words = ["train", "--config", path, "--dataset", tiny_dataset.directory, "--out", run]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "disk is full" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    result = Checkpoints(run / "checkpoints").newest()
    assert result is not None
    assert result[0].parent.name == "28"
    train(config, tiny_dataset, run)
    assert same_weights(run, whole)


def test_sigterm_leaves_a_checkpoint_and_its_own_exit_code(
    make_tiny: Make, tiny_dataset: Dataset, same_weights: Same, tmp_path: Path
) -> None:
    config = make_tiny(train={"epochs": 5, "steps_per_call": 1}, confidence=CONFIDENCE)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    run = tmp_path / "run"
    words = ["train", "--config", path, "--dataset", tiny_dataset.directory, "--out", run]
    command = [sys.executable, "-m", "clsd.pipeline.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and Checkpoints(run / "checkpoints").newest() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "ended by SIGTERM after a checkpoint" in output
    assert not (run / "run.json").exists(), "it ended before it could be stopped"
    train(config, tiny_dataset, run)
    train(config, tiny_dataset, tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


def test_two_trainings_do_not_write_into_one_directory(config: Config, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    with directory_lock(run), pytest.raises(UserError, match="another process is writing there; wait for it"):
        train(config, tiny_dataset, run)
