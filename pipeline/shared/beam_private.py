"""Every use of private names of Apache Beam.

Written for apache-beam 2.77. tests/pipeline/shared/test_beam_private.py fails if the meaning of one of these names changes, so an
upgrade starts there.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam.pipeline
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability import job_server, local_job_service
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.worker import statesampler
from apache_beam.utils import shared

#: Version for which this file was written.
WRITTEN_FOR = "2.77"
#: Milliseconds that the state sampler sleeps at most; Beam sleeps up to 200.
SAMPLING_PERIOD = 10
#: The module that a worker process of the local engine runs, and the name of the thread that waits for such a process.
WORKER_MODULE, WORKER_THREAD = "apache_beam.runners.worker.sdk_worker_main", "run_worker"

_close_all = worker_handlers.WorkerHandlerManager.close_all
_stop_server = job_server.SubprocessJobServer.stop


def _close_together(self: Any) -> None:
    """Tell all workers that the job is over before waiting for the first of them."""
    for handlers in self._cached_handlers.values():
        for handler in handlers:
            if isinstance(handler.control_conn, worker_handlers.ControlConnection):
                handler.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)
    _close_all(self)


def shorten_waits() -> None:
    """Shorten two waits that take longer than the work of a small job. It may be called several times.

    - At the end of a bundle, a worker waits for the state sampler's thread, which sleeps up to 200 ms.
    - At the end of a job, the local engine ends its worker processes one after the other, and waits for each.

    Both the launching process and the workers call it.
    """
    statesampler.StateSampler.__init__.__defaults__ = (SAMPLING_PERIOD,)
    worker_handlers.WorkerHandlerManager.close_all = _close_together  # type: ignore[method-assign]


def _remove_files_and_stop(self: Any) -> Any:
    shown = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, grpc.RpcError):  # how a thread's connection to the server ended
            shown(args)

    threading.excepthook = hook  # it stays: the process is ending, and Beam's threads end after this function
    if self._local_temp_root:
        shutil.rmtree(self._local_temp_root, ignore_errors=True)
        self._local_temp_root = None
    return _stop_server(self)


def stop_servers_quietly() -> None:
    """At exit, stop a job server even if it removes its temporary files while Beam does. It may be called several times.

    Otherwise Beam prints a traceback, and the server goes on. Nor do Beam's threads print how their connections ended.
    """
    job_server.SubprocessJobServer.stop = _remove_files_and_stop  # type: ignore[method-assign]


@contextmanager
def workers_write_to(log: Path) -> Iterator[None]:
    """Append what the local engine's worker processes write to standard error to a file, while the block runs.

    They print the traceback of every error, which the launching process gets as well, and which it reports in one line.
    """
    before = local_job_service.SubprocessSdkWorker.__init__

    def init(self: Any, *args: Any, **named: Any) -> None:
        before(self, *args, **named)
        self._worker_command_line += f" 2>>{shlex.quote(str(log))}"  # it is run by a shell

    local_job_service.SubprocessSdkWorker.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        local_job_service.SubprocessSdkWorker.__init__ = before  # type: ignore[method-assign]


def local_runner() -> Any:
    """Beam's local engine. DirectRunner would first look for the binary of another engine (Prism), also on the network."""
    return FnApiRunner()


@contextmanager
def without_notebook_labels() -> Iterator[None]:
    """In a notebook, keep the labels of a job's stages. Beam would add the cell's number, for which it imports pandas."""
    module: Any = apache_beam.pipeline
    before = module.alter_label_if_ipython
    module.alter_label_if_ipython = lambda transform, pvalueish: None
    try:
        yield
    finally:
        module.alter_label_if_ipython = before


def release_models() -> None:
    """Release the models that RunInference keeps in this process.

    Otherwise they live until the interpreter exits, after TensorFlow's modules are gone, and each of their functions prints a
    traceback.
    """
    shared._shared_map = shared._SharedMap()


def unknown_options(beam_options: list[str]) -> list[str]:
    """Options that are unknown to Beam."""
    parser: Any = argparse.ArgumentParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return [option for option in parser.parse_known_args(beam_options)[1] if option.startswith("-")]
