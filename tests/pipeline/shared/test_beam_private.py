"""The private names of Beam that clsd uses have not changed their meaning."""

import gc
import importlib.util
import inspect
import threading
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam import pipeline as _pipeline
from apache_beam.runners.portability import job_server
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils import interactive_utils
from apache_beam.utils.counters import CounterFactory
from apache_beam.utils.shared import Shared

from clsd.pipeline.preprocess import graph
from clsd.pipeline.serving import score
from clsd.pipeline.shared import beam_private


def test_they_were_read_in_the_version_that_is_installed() -> None:
    assert version("apache-beam").startswith(f"{beam_private.WRITTEN_FOR}.")


def test_what_a_worker_imports_shortens_the_waits() -> None:
    assert graph.beam_private is score.beam_private is beam_private


def test_the_local_engine_names_its_workers_so() -> None:
    source = inspect.getsource(worker_handlers)
    assert f"name='{beam_private.WORKER_THREAD}'" in source
    assert importlib.util.find_spec(beam_private.WORKER_MODULE) is not None


def test_a_job_server_whose_files_vanish_is_stopped_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beam_private.stop_servers_quietly()
    stopped: list[bool] = []
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_type))

    class Process:
        def stop(self) -> None:
            stopped.append(True)

    server = job_server.SubprocessJobServer()
    server._local_temp_root, server._server = str(tmp_path / "gone"), Process()  # type: ignore[assignment]
    server.stop()
    assert stopped == [True]
    for error in (grpc.RpcError("closed"), ValueError("of ours")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    assert shown == [ValueError]


def test_a_bundle_waits_no_longer_for_its_sampler_than_the_period() -> None:
    beam_private.shorten_waits()
    assert StateSampler("bundle", CounterFactory()).sampling_period_ms == beam_private.SAMPLING_PERIOD


def test_every_worker_hears_of_the_end_before_the_first_is_waited_for() -> None:
    beam_private.shorten_waits()
    heard: list[Any] = []

    class Connection(worker_handlers.ControlConnection):
        def __init__(self) -> None:
            pass

        def push(self, request: Any) -> None:
            heard.append(request)

    class Handler:
        control_conn = Connection()

        def close(self) -> None:
            heard.append("closed")

    class Manager(worker_handlers.WorkerHandlerManager):
        def __init__(self) -> None:
            self._cached_handlers = {"a": [Handler()], "b": [Handler(), Handler()]}
            self._workers_by_id = {}
            self._grpc_server = None

    Manager().close_all()
    assert heard[:3] == [worker_handlers.BeamFnControlServicer._DONE_MARKER] * 3
    assert heard.count("closed") == 3


def test_the_local_engine_runs_a_job_and_unknown_options_are_known() -> None:
    with beam.Pipeline(beam_private.local_runner()) as pipeline:
        _ = pipeline | beam.Create([1, 2]) | beam.Map(lambda x: x + 1)
    assert beam_private.unknown_options(["--direct_num_workers=2", "--no_such=3"]) == ["--no_such=3"]


def test_released_models_are_collected() -> None:
    class Model:
        pass

    handle = Shared()
    model = weakref.ref(handle.acquire(Model))
    gc.collect()
    assert model() is not None  # Beam keeps it
    beam_private.release_models()
    gc.collect()
    assert model() is None


def test_stages_keep_their_labels_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive_utils, "is_in_ipython", lambda: True)
    plain = beam.Pipeline(beam_private.local_runner())
    with beam_private.without_notebook_labels():
        created = plain | "Numbers" >> beam.Create([1, 2])
    assert created.producer.full_label.startswith("Numbers")
    assert _pipeline.alter_label_if_ipython is interactive_utils.alter_label_if_ipython  # put back
