"""The Beam job on Apache Flink: the same bytes as on one process, clear failures, and nothing half-written by a killed worker."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

ROOT = Path(__file__).parents[2]
JAR = ROOT / "docker" / "flink" / "target" / "flink-job-server.jar"
FLINK = ["--runner=FlinkRunner", f"--flink_job_server_jar={JAR}", "--parallelism=2"]

if not JAR.exists():
    if os.environ.get("CLSD_TEST_FLINK"):
        raise RuntimeError(f"CLSD_TEST_FLINK is set, and there is no {JAR}: run `make flink`")
    pytest.skip("no job server: `make flink` builds it", allow_module_level=True)


@pytest.fixture
def config_file(settings: dict[str, Any], small_log: Path, tmp_path: Path) -> Path:
    """The small log in three files, and a user's negatives, which need all rows of a user in one place."""
    lines = small_log.read_bytes().splitlines(keepends=True)
    for number in range(3):
        (tmp_path / f"log-{number}.jsonl").write_bytes(b"".join(lines[number * 2000 : (number + 1) * 2000]))
    settings["logs"] = {"files": [str(tmp_path / "log-*.jsonl")], "chunk_mebibytes": 1}
    settings["preprocess"] |= {"rows_per_shard": 1500, "split": {"by": "user_time"}}
    path = tmp_path / "flink.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _command(config_file: Path, out: Path, *beam: str, words: Sequence[str] = ()) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "clsd.pipeline.cli",
        "preprocess",
        "--config",
        str(config_file),
        "--out",
        str(out),
        *words,
    ]
    return [*command, "--", *beam] if beam else command


def _preprocess(
    config_file: Path, out: Path, *beam: str, words: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    command = _command(config_file, out, *beam, words=words)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_flink_writes_the_bytes_of_one_process(config_file: Path, tmp_path: Path) -> None:
    alone, flink = (
        _preprocess(config_file, tmp_path / name, *beam) for name, beam in (("alone", ()), ("flink", FLINK))
    )
    assert alone.returncode == 0, alone.stderr
    assert flink.returncode == 0, flink.stderr
    assert "6,000 rows read, 0 refused" in flink.stderr
    files = _files(tmp_path / "alone")
    assert sum(name.endswith(".tfrecord") for name in files) >= 4
    assert _files(tmp_path / "flink") == files


def test_flink_scores_a_log_as_one_process_does(config_file: Path, small_export: Path, tmp_path: Path) -> None:
    result = []
    for name, beam in (("alone", []), ("flink", ["--", *FLINK])):
        out = tmp_path / name
        command = [
            sys.executable,
            "-m",
            "clsd.pipeline.cli",
            "score",
            "--model",
            str(small_export),
            "--format",
            "jsonl",
        ]
        command += ["--logs", str(tmp_path / "log-*.jsonl"), "--out", str(out), *beam]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        result.append(
            [json.loads(line) for part in sorted(out.glob("part-*")) for line in part.read_text().splitlines()]
        )
    assert len(result[0]) == len(result[1]) == 6000
    for mine, other in zip(*result, strict=True):
        assert mine.pop("ctr") == pytest.approx(other.pop("ctr"), abs=1e-6)
        for name in ("score", "confidence"):
            assert mine.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert mine == other


def test_a_users_mistake_on_flink_is_one_line(config_file: Path, tmp_path: Path) -> None:
    with open(tmp_path / "log-1.jsonl", "ab") as file:
        file.write(b'{"click": 2}\n' * 400)
    message = _preprocess(config_file, tmp_path / "out", *FLINK)
    assert message.returncode == 2
    (line,) = [line for line in message.stderr.splitlines() if line.startswith("error: ")]
    assert "400 of 6400 rows refused" in line and "Traceback" not in message.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def worker_pool(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Beam's pool of worker processes, as a cluster's machines run it: its address and its process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    # It starts its workers as `python`, from the path.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with open(tmp_path / "pool.log", "wb") as log:
        pool = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True)
    yield f"localhost:{port}", pool.pid
    os.killpg(pool.pid, signal.SIGKILL)
    pool.wait()


def _children(pid: int) -> list[int]:
    result = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in result.stdout.split()]


def test_a_killed_worker_leaves_a_whole_data_set_or_none(
    config_file: Path, tmp_path: Path, worker_pool: tuple[str, int]
) -> None:
    """Killed when the first of some hundred shards is there, so in the middle of writing."""
    address, pool = worker_pool
    flink = [*FLINK, "--environment_type=EXTERNAL", f"--environment_config={address}"]
    small = ("--set", "preprocess.rows_per_shard=50")
    whole = _preprocess(config_file, tmp_path / "whole", *flink, words=small)
    assert whole.returncode == 0, whole.stderr
    with open(tmp_path / "message.txt", "wb") as message:
        command = _command(config_file, tmp_path / "out", *flink, words=small)
        job = subprocess.Popen(command, stdout=message, stderr=message, cwd=ROOT)
    killed: list[int] = []
    while job.poll() is None:
        if not killed and next(tmp_path.glob(".out.*.partial/*/part-*"), None):
            for worker in _children(pool):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
        time.sleep(0.002)
    text = (tmp_path / "message.txt").read_text()
    assert killed and "Traceback" not in text, text
    if job.returncode == 0:
        assert _files(tmp_path / "out") == _files(tmp_path / "whole")
    else:
        assert job.returncode == 2 and re.search("^error: ", text, re.MULTILINE), text
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))


class _Silent(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """A pool that takes every order for a worker, and whose workers die before they have connected."""

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
        return beam_fn_api_pb2.StopWorkerResponse()


def test_a_worker_that_never_comes_ends_the_job(config_file: Path, tmp_path: Path) -> None:
    pool = grpc.server(ThreadPoolExecutor(4))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(_Silent(), pool)
    port = pool.add_insecure_port("localhost:0")
    pool.start()
    try:
        flink = [*FLINK, "--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"]
        words = ("--set", "preprocess.stalled_minutes=0.1")
        message = _preprocess(config_file, tmp_path / "out", *flink, words=words)
    finally:
        pool.stop(0)
    assert message.returncode == 2, message.stderr
    assert "error: Beam's engine: wrote nothing for 0.1 minutes" in message.stderr and "Traceback" not in message.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))
