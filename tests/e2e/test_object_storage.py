"""Logs, data sets, runs and models in an object store: a real S3-compatible server, and the results of a local run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.pipeline.shared import files, model_versions
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import atomic_file, copy_file
from clsd.pipeline.shared.model_versions import DONE_FILE, GOLDEN_FILE, MODEL_FILE
from clsd.pipeline.training.checkpoints import Checkpoints

BUCKET = "s3://clsd"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """A server of its own, and the environment by which it is reached."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            _wait_for(port, server)
            bucket: Any = as_path(BUCKET)
            bucket.fs.mkdir("clsd")
            yield {**os.environ, **environment}
        finally:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


def _clsd(store: dict[str, str], *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clsd.pipeline.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=store, timeout=600, check=False)
    assert done.returncode == code, f"{done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def _objects(prefix: str) -> list[str]:
    root: Any = as_path(prefix)
    return [name.removeprefix(root.path).lstrip("/") for name in root.fs.find(root.path)]


@pytest.fixture
def config_file(settings: dict[str, Any], store: dict[str, str], small_log: Path, tmp_path: Path) -> Path:
    """The small log, in two objects."""
    lines = small_log.read_bytes().splitlines(keepends=True)
    for number in range(2):
        (tmp_path / "part").write_bytes(b"".join(lines[number * 3000 : (number + 1) * 3000]))
        copy_file(tmp_path / "part", as_path(f"{BUCKET}/logs/log-{number}.jsonl"))
    settings["logs"]["files"] = [f"{BUCKET}/logs/log-*.jsonl"]
    path = tmp_path / "store.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_whole_way_in_a_store_gives_what_it_gives_on_this_machine(
    config_file: Path, store: dict[str, str], tmp_path: Path
) -> None:
    local = ("--config", config_file, "--runs", tmp_path / "runs")
    remote = ("--config", config_file, "--runs", f"{BUCKET}/runs")
    for where in (local, remote):
        _clsd(store, "run", *where)
    here, there = tmp_path / "runs" / "small", as_path(f"{BUCKET}/runs/small")

    assert Dataset.load(there / "dataset").verify() == Dataset.load(here / "dataset").verify()
    mine, other = (json.loads((root / "dataset" / "dataset.json").read_text()) for root in (here, there))
    assert mine == other  # the same shards with the same checksums
    mine, other = (json.loads((root / "train" / "run.json").read_text()) for root in (here, there))
    assert mine["history"] == other["history"]
    mine, other = (json.loads((root / "evaluation" / "metrics.json").read_text()) for root in (here, there))
    assert mine["score"] == other["score"]
    (mine_version,), (other_version,) = (model_versions.versions_in(root / "export") for root in (here, there))
    golden = [json.loads((version / GOLDEN_FILE).read_text()) for version in (mine_version, other_version)]
    assert golden[0] == golden[1]
    assert (other_version / DONE_FILE).exists()
    (tmp_path / "row.jsonl").write_text(json.dumps({"item_id": "i3", "price": 2.5, "position": 1}))
    assert json.loads(_clsd(store, "predict", "--model", other_version, tmp_path / "row.jsonl").stdout)["ctr"] > 0
    assert not [name for name in _objects(f"{BUCKET}/runs") if ".partial" in name or ".spill" in name]
    assert any(name.startswith("train/checkpoints/") for name in _objects(f"{BUCKET}/runs/small"))


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_in_the_store(
    config_file: Path, store: dict[str, str], tmp_path: Path
) -> None:
    words = ("--config", config_file, "--set", "train.epochs=6", "--dataset", f"{BUCKET}/resume/dataset")
    _clsd(store, "preprocess", "--config", config_file, "--out", f"{BUCKET}/resume/dataset")
    _clsd(store, "train", *words, "--out", tmp_path / "whole")
    out = as_path(f"{BUCKET}/resume/train")
    command = [sys.executable, "-m", "clsd.pipeline.cli", "train", *map(str, words), "--out", str(out)]
    process = subprocess.Popen(command, env=store, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not Checkpoints(out / "checkpoints").newest():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "run.json").exists(), "it ended before it could be killed"
    assert "continuing after epoch" in _clsd(store, "train", *words, "--out", out).stderr
    result, whole = (json.loads((root / "run.json").read_text()) for root in (out, tmp_path / "whole"))
    assert result["history"] == whole["history"]


def test_a_data_set_is_replaced_only_when_told_to_and_only_if_it_is_one(
    config_file: Path, store: dict[str, str], tmp_path: Path
) -> None:
    out = f"{BUCKET}/replaced/dataset"
    words = ("preprocess", "--config", config_file, "--out", out)
    _clsd(store, *words)
    (as_path(out) / "left_over").write_text("of before")
    assert "already done" in _clsd(store, *words).stderr
    assert "exists already" in _clsd(store, *words, "--set", "seed=8", code=2).stderr
    _clsd(store, *words, "--overwrite", "--set", "seed=8")
    assert "left_over" not in _objects(out)
    assert Dataset.load(out).verify()
    (as_path(f"{BUCKET}/mine") / "thesis.txt").write_text("not clsd's")
    message = _clsd(
        store, "preprocess", "--config", config_file, "--out", f"{BUCKET}/mine", "--overwrite", code=2
    ).stderr
    assert "did not make" in message
    assert _objects(f"{BUCKET}/mine") == ["thesis.txt"]


def test_a_job_that_fails_leaves_nothing_but_its_dead_letters(
    config_file: Path, store: dict[str, str], small_log: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in small_log.read_text().splitlines()[:200]]
    (tmp_path / "bad").write_text("".join(json.dumps({**row, "click": 7}) + "\n" for row in rows))
    copy_file(tmp_path / "bad", as_path(f"{BUCKET}/logs/log-9.jsonl"))
    try:
        done = _clsd(store, "preprocess", "--config", config_file, "--out", f"{BUCKET}/failed/dataset", code=2)
    finally:
        as_path(f"{BUCKET}/logs/log-9.jsonl").unlink()
    assert f"error: {BUCKET}/logs/log-9.jsonl:1: 200 of 6200 rows refused" in done.stderr
    assert _objects(f"{BUCKET}/failed") == ["dataset.dead_letters.jsonl.gz"]


def test_a_version_in_a_store_comes_last_by_its_model_and_goes_first_by_it(
    store: dict[str, str], small_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an export that stops among the copies leaves nothing that a server would load."""
    order: list[str] = []
    real = files._publish_object

    def publish(source: Any, target: Any) -> None:
        order.append(target.name)
        real(source, target)

    monkeypatch.setattr(files, "_publish_object", publish)
    models = as_path(f"{BUCKET}/versions")
    for number in (1, 2, 3):
        with files.atomic_directory(models / str(number), marker=MODEL_FILE, done=DONE_FILE) as temporary:
            shutil.copytree(small_export, temporary, dirs_exist_ok=True)
        assert order[-2:] == [MODEL_FILE, DONE_FILE]
    removed: list[str] = []
    monkeypatch.setattr(
        model_versions, "remove_file", lambda path: removed.append(path.name) or files.remove_file(path)
    )
    served, gone = model_versions.withdraw(models, 2)
    assert (served.name, [version.name for version in gone]) == ("2", ["withdrawn-3"])
    assert removed[:2] == [DONE_FILE, MODEL_FILE]
    assert model_versions.keep_newest(models, 1)[0].name == "1"
    assert [version.name for version in model_versions.versions_in(models)] == ["2"]
    assert f"withdrawn-3/{MODEL_FILE}" in _objects(f"{BUCKET}/versions")

    def full(source: Any, target: Any) -> None:
        if target.name == MODEL_FILE:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files, "_publish_object", full)
    with (
        pytest.raises(UserError, match="the disk is full"),
        files.atomic_directory(models / "9", marker=MODEL_FILE, done=DONE_FILE) as temporary,
    ):
        shutil.copytree(small_export, temporary, dirs_exist_ok=True)
    assert [version.name for version in model_versions.versions_in(models)] == ["2"]


def test_an_object_that_is_not_written_to_its_end_does_not_appear(store: dict[str, str]) -> None:
    target = as_path(f"{BUCKET}/half/object")
    with atomic_file(target) as file:
        file.write(b"whole")
    for size in (10, 6 << 20):  # less and more than one part of an upload
        with pytest.raises(RuntimeError), atomic_file(target) as file:
            file.write(bytes(size))
            raise RuntimeError
        assert target.read_bytes() == b"whole"


def test_stores_that_cannot_be_reached_are_named_in_one_line(config_file: Path, store: dict[str, str]) -> None:
    def message(*words: object, **environment: str) -> str:
        lines = _clsd({**store, **environment}, *words, code=2).stderr.splitlines()
        (error,) = [line for line in lines if line.startswith("error: ")]
        return error

    given = ("--config", config_file)
    assert "no such file" in message("preprocess", *given, "--set", f"logs.files=[{BUCKET}/none/*]", "--runs", "runs")
    missing = message("preprocess", *given, "--out", "s3://nowhere/dataset")
    assert "s3://nowhere/dataset: the object store refuses" in missing
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    silent = message("inspect", f"{BUCKET}/any", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1")
    assert "the object store refuses access or cannot be reached" in silent
    assert "no such data set" in message("inspect", f"{BUCKET}/any")
    assert "nosuch://x: cannot be reached" in message("inspect", "nosuch://x")
    assert "is not a local path" in message("compare", *given, "--runs", f"{BUCKET}/runs")
