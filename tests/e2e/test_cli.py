"""The command line: one-line errors with place and hint, exit codes, no half-written results."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from clsd.pipeline.cli import main
from clsd.pipeline.commands import data
from clsd.pipeline.shared.dataset import Dataset

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    return lambda *args, **kwargs: CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False, **kwargs)


@pytest.fixture
def config_file(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _refused(result: Result, *message: str) -> None:
    """Exit code 2 and one line on standard error."""
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    for words in message:
        assert words in errors[0]


def test_help_teaches_the_stages_in_order(cli: Cli) -> None:
    text = cli("--help").output
    stages = ["dataset", "preprocess", "train", "evaluate", "compare", "export", "predict"]
    assert [text.index(f"clsd {stage} ") for stage in stages] == sorted(
        text.index(f"clsd {stage} ") for stage in stages
    )
    for command in main.list_commands(None):  # type: ignore[arg-type]
        assert len(cli(command, "--help").output) > 200


def test_the_stages_one_by_one(cli: Cli, config_file: Path, tmp_path: Path) -> None:
    common = ("--config", config_file, "--runs", tmp_path / "runs", "--set", "train.epochs=2")
    root = tmp_path / "runs" / "small"
    assert cli("preprocess", *common).stdout.strip() == str(root / "dataset")
    assert "files verified" in cli("inspect", root / "dataset").stderr
    assert cli("train", *common).stdout.strip() == str(root / "train")
    assert cli("evaluate", *common).stdout.strip() == str(root / "evaluation" / "report.html")
    assert cli("export", *common, "--version", 7).stdout.strip() == str(root / "export" / "7")
    rows = '{"user_id": "u1", "tags": ["a"]}\n{}\n'
    answers = cli("predict", "--model", root / "export", input=rows).stdout.splitlines()
    assert [sorted(json.loads(line)) for line in answers] == [["confidence", "ctr", "score"]] * 2
    # `run` finds all of it and makes nothing again.
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    result = cli("run", *common)
    assert result.exit_code == 0
    assert result.stderr.count("already done") == 4
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before
    # Another setting is refused unless asked for.
    _refused(cli("run", *common, "--set", "seed=9"), "exists already", "--overwrite")


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.epoch", 3, "did you mean 'epochs'?"),
        ("logs.files", ["none.jsonl"], "none.jsonl: no such file"),
        ("rows.label", "clicked", "has no column 'clicked'; did you mean 'click'?"),
        ("model.options", {"hiden_units": [3]}, "did you mean 'hidden_units'?"),
        ("model.backbone", "depfm", "did you mean 'deepfm'?"),
    ],
)
def test_wrong_settings(
    cli: Cli, settings: dict[str, Any], small_dataset: Dataset, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    _set(settings, path, value)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = ("train", "--dataset", small_dataset.directory) if path.startswith("model") else ("preprocess",)
    _refused(cli(*command, "--config", config, "--runs", tmp_path / "runs"), message)
    assert not list((tmp_path / "runs").rglob("*.json"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda log: log.write_bytes(b"\n".join(log.read_bytes().split(b"\n")[:99] + [b""] * 200)), "x empty line"),
        (lambda log: log.write_bytes(log.read_bytes().replace(b':"u', b':"\xff', 300)), "x broken UTF-8"),
        (lambda log: log.write_bytes(log.read_bytes().replace(b'"click":0', b'"click":"no"', 400)), "400 x wrong type"),
        (lambda log: log.write_bytes(b""), "is empty"),
    ],
)
def test_broken_logs(
    cli: Cli, settings: dict[str, Any], small_log: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    log = Path(shutil.copy(small_log, tmp_path / "log.jsonl"))
    damage(log)
    settings["logs"]["files"] = [str(log)]
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    _refused(cli("preprocess", "--config", config, "--runs", tmp_path / "runs"), str(log), message)
    assert not (tmp_path / "runs" / "small" / "dataset").exists()


def test_a_data_set_that_is_none(cli: Cli, config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    _refused(cli("train", "--config", config_file, "--dataset", tmp_path / "d"), "has no dataset.json", "preprocess")
    _refused(cli("inspect", tmp_path / "none"), "no such data set")
    _refused(cli("predict", "--model", tmp_path, input="{}"), "holds no exported model", "clsd export")
    _refused(cli("evaluate", "--config", config_file, "--runs", tmp_path / "r"), "no such data set")


def test_a_data_set_by_a_wrong_name(cli: Cli, tmp_path: Path) -> None:
    _refused(cli("dataset", "movielens-100", "--out", tmp_path), "did you mean 'movielens-100k'?")
    _refused(cli("dataset", "movielens-100k", "--out", tmp_path, "--rows", 5), "is only for synthetic")
    _refused(cli("dataset", "synthetic", "--out", tmp_path, "--rows", 0), "synthetic")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB; where one cannot be mounted, a limit on the size of files, which fails the same calls."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        yield place
        subprocess.run(["umount", str(place)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    yield place
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_nothing_that_could_be_taken_for_whole(
    cli: Cli, config_file: Path, small_dataset: Dataset, small_run: Path, full_disk: Path
) -> None:
    common = ("--config", config_file)
    _refused(cli("preprocess", *common, "--out", full_disk / "d"), "the disk is full", "free space")
    assert list(full_disk.iterdir()) == []
    given = (*common, "--dataset", small_dataset.directory)
    _refused(cli("train", *given, "--out", full_disk / "t", "--set", "model.embedding_dim=64"), "the disk is full")
    assert not (full_disk / "t" / "run.json").exists()
    shutil.rmtree(full_disk / "t")
    _refused(cli("export", *given, "--run", small_run, "--out", full_disk / "e"), "the disk is full")
    assert not (full_disk / "e").exists()
    filler = full_disk / "filler"
    room = shutil.disk_usage(full_disk).free
    if room < 1_000_000:
        filler.write_bytes(bytes(room - 8192))
    result = cli("evaluate", *given, "--run", small_run, "--out", full_disk / "v")
    _refused(result, "the disk is full")
    assert not (full_disk / "v").exists()


def test_a_full_disk_with_two_workers_is_one_line(config_file: Path, full_disk: Path) -> None:
    """Their tracebacks do not reach the terminal, and nothing is left."""
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    command = [sys.executable, "-m", "clsd.pipeline.cli", "preprocess", "--config", str(config_file)]
    done = subprocess.run(
        [*command, "--out", str(full_disk / "d"), "--", *workers], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("preprocess ")] == [
        f"error: {full_disk / 'd'}: the disk is full; free space, then run the same command again"
    ]
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_too_little_address_space_is_one_line(
    command: str, config_file: Path, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    """There, the libraries of TensorFlow would wait for memory for ever, and hear no signal."""
    given = ["--config", config_file, "--dataset", small_dataset.directory]
    given += ["--out", tmp_path / "t"] if command == "train" else ["--run", small_run, "--out", tmp_path / "t"]
    words = " ".join(shlex.quote(str(word)) for word in [sys.executable, "-m", "clsd.pipeline.cli", command, *given])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 1500000; exec {words}"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: the address space of this process: is limited to 1\.4 GiB, .*; raise it with ulimit -v", line
    )


@pytest.mark.parametrize("bound", ["nan", "inf", "-1", "x"])
def test_a_bound_that_bounds_nothing_is_refused(bound: str, cli: Cli, small_dataset: Dataset) -> None:
    done = cli("validate", small_dataset.directory, "--against", small_dataset.directory, "--max-psi", bound)
    assert done.exit_code == 2 and "is not a finite number from 0 on" in done.stderr


def test_names_that_no_file_can_have_are_one_line(cli: Cli, config_file: Path) -> None:
    _refused(cli("inspect", "x" * 5000), "is too long a name for a file")
    _refused(cli("preprocess", "--config", config_file, "--runs", "x" * 300), "name")
    _refused(cli("inspect", "a\0b"), "it holds a NUL")


def test_a_reader_that_has_ended_is_no_bug(small_export: Path, small_log: Path) -> None:
    words = [sys.executable, "-m", "clsd.pipeline.cli", "predict", "--model", str(small_export), str(small_log)]
    command = f"{shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141) and "Traceback" not in done.stderr and done.stdout.count("\n") == 1


def test_a_lack_of_memory_is_one_line(cli: Cli, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 7.1 TiB for an array")

    monkeypatch.setattr(data, "load", lack)
    _refused(cli("preprocess", "--config", config_file), "memory: there is not enough (Unable to allocate 7.1 TiB")


def test_a_backbone_of_the_users_own(
    cli: Cli, settings: dict[str, Any], small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models.py").write_text(
        "from clsd.features.tf_runtime import keras\n"
        "class Linear(keras.Model):\n"
        "    def __init__(self, spec, embedding_dim, scale=1.0):\n"
        "        super().__init__()\n"
        "        self.scale = scale\n"
        "        size = next(f.size for f in spec.fields if f.name == 'item_id')\n"
        "        self.table = keras.layers.Embedding(size, 1)\n"
        "    def call(self, inputs, training=False):\n"
        "        return self.scale * self.table(inputs['item_id'])[:, 0]\n"
    )
    settings["model"] = {"backbone": "my_models:Linear", "options": {"scale": 2.0}}
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    given = ("--config", config, "--dataset", small_dataset.directory, "--runs", tmp_path / "runs")
    assert cli("train", *given, "--set", "train.epochs=2").exit_code == 0
    assert cli("export", *given, "--version", 1).exit_code == 0


def test_the_installed_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = shutil.which("clsd", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [command, "train", "--config", "none.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: none.yaml: cannot be read (No such file or directory); give the path of a YAML file with --config\n"
    )
    assert done.stdout == ""


def test_a_changed_log_is_not_taken_for_the_same(
    cli: Cli, settings: dict[str, Any], small_log: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl.gz"
    log.write_bytes(gzip.compress(small_log.read_bytes()))
    settings["logs"]["files"] = [str(log)]
    settings["train"]["epochs"] = 1
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    common = ("--config", config, "--runs", tmp_path / "runs")
    assert cli("preprocess", *common).exit_code == 0
    text = small_log.read_bytes()
    log.write_bytes(gzip.compress(text[: text.index(b"\n", len(text) // 2) + 1]))
    for command in ("preprocess", "run"):
        _refused(cli(command, *common), "dataset: exists already", "--overwrite")
    assert cli("preprocess", *common, "--overwrite").exit_code == 0
    assert Dataset.load(tmp_path / "runs" / "small" / "dataset").manifest["rows"]["read"] < 4000


def test_an_interrupted_job_says_so_and_leaves_no_data_set(
    settings: dict[str, Any], small_log: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(small_log.read_bytes() * 60)
    settings["logs"]["files"] = [str(log)]
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [
        sys.executable,
        "-m",
        "clsd.pipeline.cli",
        "preprocess",
        "--config",
        str(config),
        "--runs",
        str(tmp_path / "runs"),
    ]
    # A test run in the background ignores SIGINT, and its children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    root = tmp_path / "runs" / "small"
    while process.poll() is None and not list(root.glob(".dataset.*.partial")):
        pass  # until the job has begun
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130, message
    assert "interrupted" in message
    assert "Traceback" not in message
    assert not (root / "dataset").exists()


def test_outputs_that_cannot_be(cli: Cli, config_file: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _refused(cli("preprocess", "--config", config_file, "--out", tmp_path / "file" / "x"), "cannot be created")
    _refused(cli("preprocess", "--config", config_file, "--out", "/proc/none/x"), "cannot be created")
    given = ("--config", config_file, "--dataset", small_dataset.directory)
    _refused(cli("train", *given, "--out", "/proc/none/x"), "cannot be created")


@pytest.mark.parametrize(("returned", "fine"), [("[:, :1]", True), ("[:, 0]", True), ("", False)])
def test_logits_may_be_a_column_and_nothing_wider(
    cli: Cli,
    settings: dict[str, Any],
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    returned: str,
    fine: bool,
) -> None:
    name = f"shape_{len(returned)}"
    (tmp_path / f"{name}.py").write_text(
        "from clsd.features.tf_runtime import keras\n"
        "class Two(keras.Model):\n"
        "    def __init__(self, spec, embedding_dim):\n"
        "        super().__init__()\n"
        "        self.table = keras.layers.Embedding(next(f.size for f in spec.fields if f.name == 'item_id'), 2)\n"
        "    def call(self, inputs, training=False):\n"
        f"        return self.table(inputs['item_id']){returned}\n"
    )
    settings["model"] = {"backbone": f"{name}:Two"}
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    result = cli("train", "--config", config, "--dataset", small_dataset.directory, "--set", "train.epochs=2")
    if fine:
        assert result.exit_code == 0
    else:
        _refused(result, "[2, 2] for 2 rows", "return float32 logits, [rows] or [rows, 1]")


def test_a_killed_worker_process_ends_the_job_in_one_line(config_file: Path, tmp_path: Path) -> None:
    """The local engine would wait for it for ever."""
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    command = [sys.executable, "-m", "clsd.pipeline.cli", "preprocess", "--config", str(config_file), "--out", "out"]
    job = subprocess.Popen([*command, "--", *workers], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    killed = False
    while job.poll() is None and not killed:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes()  # of the worker, and not of the shell that started it
                if (
                    b"sdk_worker_main" in words
                    and not words.startswith(b"/bin/sh")
                    and _is_child(int(path.parts[2]), job.pid)
                ):
                    os.kill(int(path.parts[2]), signal.SIGKILL)
                    killed = True
                    break
        time.sleep(0.05)
    _, message = job.communicate(timeout=120)
    assert killed and job.returncode == 2, message
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    assert "lost a worker process" in line and "Traceback" not in message
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def _is_child(pid: int, of: int) -> bool:
    while pid > 1 and pid != of:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return pid == of


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [(), ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")])
def test_preprocessing_that_is_asked_to_end_leaves_nothing(
    config_file: Path, small_log: Path, tmp_path: Path, number: signal.Signals, code: int, workers: tuple[str, ...]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(small_log.read_bytes() * 30)  # long enough not to end before it is stopped
    command = [sys.executable, "-m", "clsd.pipeline.cli", "preprocess", "--config", str(config_file), "--out", "out"]
    command += ["--set", f"logs.files=[{log}]"]
    job = subprocess.Popen(
        [*command, *workers],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    while job.poll() is None and not list(tmp_path.glob(".out.*/.spill/*")):
        time.sleep(0.01)
    os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
    _, message = job.communicate(timeout=120)
    assert job.returncode == code, message
    assert [line for line in message.splitlines() if line.startswith(("interrupted", "error"))] == [
        "interrupted; unfinished results are not used, run the same command again"
    ]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_options_that_beam_does_not_take_are_one_line(cli: Cli, config_file: Path, tmp_path: Path) -> None:
    words = ("preprocess", "--config", config_file, "--out", tmp_path / "out", "--")
    result = cli(*words, "--direct_running_mode=foo")
    _refused(result, "invalid choice: 'foo'")
    assert len(result.stderr.splitlines()) < 4
    _refused(cli(*words, "--direct_num_workers=two"), "invalid int value: 'two'")
