"""Messages of engines: which are suppressed, and which are shown."""

import socket
import threading
from pathlib import Path

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from clsd.pipeline.shared import engine, progress


def _in_a_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_thread_that_the_engine_hung_up_on_says_nothing_and_any_other_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", engine._Hook(threading.__excepthook__))

    def hung_up() -> None:
        with socket.create_server(
            ("localhost", 0)
        ) as mute:  # it neither answers nor refuses before the call is given up
            channel = grpc.insecure_channel(f"localhost:{mute.getsockname()[1]}")
            call = channel.unary_stream("/beam/Data")(b"")
            call.cancel()
            try:
                list(call)
            finally:
                channel.close()

    def refused() -> None:
        with grpc.insecure_channel("localhost:1") as channel:
            list(channel.unary_stream("/beam/Data")(b""))

    _in_a_thread(hung_up)
    assert capsys.readouterr().err == ""
    _in_a_thread(refused)
    assert "StatusCode.UNAVAILABLE" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "DirectRunner", "direct", "apache_beam.runners.DirectRunner", "FnApiRunner"])
def test_the_engine_of_this_process_is_known_by_every_name_that_beam_takes(name: str) -> None:
    assert engine._is_local(PipelineOptions([f"--runner={name}"] if name else []))
    assert not engine._is_local(PipelineOptions(["--runner=FlinkRunner"]))


def test_a_job_that_counts_is_no_job_that_stands_still(tmp_path: Path) -> None:
    """Between two files of a long stage there are only counts."""
    with progress.launching(str(tmp_path)):
        before = engine._done(tmp_path)
        report = progress._Report(str(tmp_path))
        report.add("rows counted", 5)
        during = engine._done(tmp_path)
        report._due = 0
        report.add("rows counted", 5)
        after = engine._done(tmp_path)
    assert before != during != after


def test_the_hook_of_the_process_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(threading, "excepthook", mine)
    engine.run(lambda pipeline, threads: None, tmp_path, [], input_splits=0, threads=1, stalled_minutes=0)
    assert threading.excepthook is mine
