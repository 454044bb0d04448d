"""Runs a Beam job on an engine, and turns the engine's failures into user errors."""

from __future__ import annotations

import io
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from clsd.features.errors import UserError
from clsd.features.paths import address
from clsd.pipeline.shared import beam_private, progress
from clsd.pipeline.shared.files import files_in
from clsd.pipeline.shared.threads import ONE, Threads, cores


def run(
    build: Callable[[beam.Pipeline, Threads], None],
    directory: Path,
    beam_options: list[str],
    *,
    input_splits: int,
    threads: int,
    stalled_minutes: float,
) -> None:
    """Run a job to its end.

    Args:
        build: adds the job's graph to a pipeline, for workers of so many threads.
        directory: the directory that the job writes into.
        beam_options: choose and configure the engine; by default it is this process.
        input_splits: number of input splits to read.
        threads: threads per worker; 0 for the cores that a worker has to itself.
        stalled_minutes: minutes without output after which a job on another engine is given up; 0 for never.

    Raises:
        UserError: from a worker, for wrong options, or for an engine that gave up the job.
    """
    try:
        # By default worker processes log every channel that they open. The user's options come later and override this.
        quiet = "--default_sdk_harness_log_level=ERROR"
        with redirect_stderr(
            io.StringIO()
        ) as usage:  # argparse prints a page of usage, with the error on its last line
            options = PipelineOptions([quiet, *beam_options], save_main_session=False)
            options.get_all_options()
        pipeline = beam.Pipeline(beam_private.local_runner() if _is_local(options) else None, options=options)
    except (SystemExit, ValueError) as error:
        reason = usage.getvalue().strip().rsplit("error: ", 1)[-1] or str(error)
        raise UserError(
            "-- " + " ".join(beam_options),
            f"Beam does not take these options ({reason})",
            "see the command's --help",
        ) from None
    for option in beam_private.unknown_options(beam_options):  # a job server may know it, so this is no error
        progress.warn(f"Beam itself does not know {option}")
    progress.add(progress.PLANNED, input_splits)
    before = threading.excepthook
    lost = threading.excepthook = _Hook(before)
    heard = signal.signal(_WAKE_SIGNAL, _interrupt) if threading.current_thread() is threading.main_thread() else None
    context = ExitStack()
    log = Path(context.enter_context(tempfile.TemporaryDirectory(prefix="clsd-workers-"))) / "stderr"
    try:
        if not logging.getLogger().isEnabledFor(logging.INFO):  # clsd --verbose shows everything
            context.enter_context(beam_private.workers_write_to(log))
        with beam_private.without_notebook_labels():
            build(pipeline, _threads(threads, options))
        beam_private.stop_servers_quietly()
        result = pipeline.run()
        if _is_local(options):
            result.wait_until_finish()
        else:
            _watch(result, directory, stalled_minutes)
    except UserError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if lost.worker:
            hint = "run the same again: nothing was written; if the machine was short of memory, with fewer workers"
            raise UserError("Beam's engine", f"lost a worker process ({lost.worker}{_last_words(log)})", hint) from None
        if "KeyboardInterrupt" in f"{type(error)} {error}":  # the engine wraps Ctrl-C into an error
            raise KeyboardInterrupt from None
        raise _inner_user_error(error) or _engine_failure(error) or error from None
    finally:
        lost.over.set()
        context.close()
        threading.excepthook = before
        if heard is not None:
            signal.signal(_WAKE_SIGNAL, signal.SIG_IGN if lost.worker else heard)  # another signal may be pending


def _last_words(log: Path) -> str:
    """The last line that the worker processes wrote, after a colon; "" if they wrote none."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line.strip() for line in lines if line.strip() and not line.startswith("INFO:")]
        return f": {kept[-1][:200]}" if kept else ""
    return ""


def _threads(asked: int, options: PipelineOptions) -> Threads:
    """Local workers share the cores of this machine; other engines assign cores themselves."""
    if asked:
        return Threads(asked)
    if not _is_local(options):
        return ONE
    return Threads(max(1, cores() // max(1, options.view_as(DirectOptions).direct_num_workers or cores())))


#: Wakes the main thread after a worker was lost. SIGINT would be ignored in processes that a script starts in the background.
_WAKE_SIGNAL = signal.SIGUSR1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class _Hook:
    """Handles exceptions in the threads that Beam keeps in this process; passes all others on.

    Args:
        before: the hook of the process.
    """

    def __init__(self, before: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._before = before
        #: How a worker process of the local engine ended; the engine would wait for it forever.
        self.worker = ""
        #: Set when the engine has ended.
        self.over = threading.Event()

    def _wake(self) -> None:
        """Interrupt the main thread repeatedly until the engine has ended; it may wait in several places."""
        while not self.over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE_SIGNAL)
            self.over.wait(3.0)

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        cancelled = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.CANCELLED
        if cancelled or type(error) is grpc.RpcError:
            return  # the other side closed the connection (the engine ended, or a worker died)
        if not args.thread or args.thread.name != beam_private.WORKER_THREAD:
            self._before(args)
            return
        if not self.worker and not str(error).endswith((" -2", " 130")):  # those got the user's Ctrl-C too
            self.worker = str(error)
            threading.Thread(target=self._wake, daemon=True).start()
            # Beam would wait for workers that have not connected yet.
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if beam_private.WORKER_MODULE in child.cmdline():
                        child.kill()


def _is_local(options: PipelineOptions) -> bool:
    runner = (options.view_as(StandardOptions).runner or "direct").lower().rsplit(".", 1)[-1]
    return runner in ("direct", "directrunner", "fnapirunner")


def _watch(result: PipelineResult, directory: Path, minutes: float) -> None:
    """Wait for a job on another engine; give it up after so many minutes without anything new in its directory.

    An engine may wait for a lost worker forever. Flink does if the worker was killed before it connected.
    """
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            result.wait_until_finish()
        except BaseException as error:
            raised.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    seen, since = _done(directory), time.monotonic()
    while waiting.is_alive():
        waiting.join(min(30.0, 15.0 * minutes) if minutes else None)  # at most a quarter of the time
        if (now := _done(directory)) != seen:
            seen, since = now, time.monotonic()
        elif minutes and waiting.is_alive() and time.monotonic() - since > 60 * minutes:
            with suppress(Exception):  # given up, whether or not the engine accepts the cancellation
                result.cancel()
            what = f"wrote nothing for {minutes:g} minutes: a worker may be lost, or may never have started"
            raise UserError(
                "Beam's engine", what, "see its log and run the same again; or raise preprocess.stalled_minutes"
            )
    if raised:
        raise raised[0]


def _done(directory: Path) -> tuple[list[str], dict[str, int]]:
    """A job's progress: the files that it wrote, and the counts that its workers reported."""
    return files_in(directory), progress.reported(address(directory))


def _engine_failure(error: BaseException) -> UserError | None:
    """The error for a job that its engine gave up, such as after a killed worker; None for an exception in clsd."""
    text = str(error)
    if " failed in state " not in text or "Traceback (most recent call last)" in text:
        return None
    reason = text.split(" failed in state ", 1)[1].split("\n", 1)[0].rsplit(": ", 1)[-1].strip()
    return UserError(
        "Beam's engine", f"gave the job up ({reason})", "see its log, and run the same again: nothing was written"
    )


def _inner_user_error(error: BaseException) -> UserError | None:
    """The worker's UserError inside the engine's exception, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        marker = "clsd.features.errors.UserError: "
        if marker in str(seen):  # a portable engine passes the worker's traceback as text
            line = str(seen).rsplit(marker, 1)[1].split("\n", 1)[0].split(" [while running", 1)[0]
            where, _, what = line.partition(": ")
            return UserError(where, what, "")
        seen = seen.__cause__ or seen.__context__
    return None
