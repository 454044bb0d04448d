"""What an engine says that is no fault of the job, and what stays heard."""

import threading

import grpc
import pytest

from pipeline import engine


def _in_a_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_thread_that_the_engine_hung_up_on_says_nothing_and_any_other_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", engine._unless_hung_up)

    def hung_up() -> None:
        with grpc.insecure_channel("localhost:1") as channel:
            call = channel.unary_stream("/beam/Data")(b"")
            call.cancel()
            list(call)

    def refused() -> None:
        with grpc.insecure_channel("localhost:1") as channel:
            list(channel.unary_stream("/beam/Data")(b""))

    _in_a_thread(hung_up)
    assert capsys.readouterr().err == ""
    _in_a_thread(refused)
    assert "StatusCode.UNAVAILABLE" in capsys.readouterr().err
