"""Running a job on an engine that Beam knows, and telling what an engine says when it fails."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

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
        build: puts the job's graph on a pipeline, for workers of so many threads.
        directory: what the job writes into.
        beam_options: choose the engine and its settings; none of them: this process.
        input_splits: how many there are to read.
        threads: of each worker; 0: as many as it has cores to itself.
        stalled_minutes: after so long without anything new the job is given up, on an engine that is not in this process.

    Raises:
        UserError: of a worker, of the options, or of an engine that gave the job up.
    """
    try:
        # Worker processes log every channel they open unless told otherwise; what the user gives comes later and wins.
        quiet = "--default_sdk_harness_log_level=ERROR"
        with redirect_stderr(io.StringIO()) as said:  # a page of usage, and the error on its last line
            options = PipelineOptions([quiet, *beam_options], save_main_session=False)
            options.get_all_options()
        pipeline = beam.Pipeline(beam_private.local_runner() if _is_local(options) else None, options=options)
    except (SystemExit, ValueError) as error:
        reason = said.getvalue().strip().rsplit("error: ", 1)[-1] or str(error)
        raise UserError(
            "-- " + " ".join(beam_options),
            f"Beam does not take these options ({reason})",
            "see the command's --help",
        ) from None
    for option in beam_private.unknown_options(beam_options):  # a job server may know it, so this is no error
        progress.warn(f"Beam itself does not know {option}")
    before = threading.excepthook
    lost = threading.excepthook = _Hook(before)
    heard = signal.signal(_LOST, _interrupt) if threading.current_thread() is threading.main_thread() else None
    progress.add(progress.PLANNED, input_splits)
    try:
        build(pipeline, _threads(threads, options))
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
            raise UserError("Beam's engine", f"lost a worker process ({lost.worker})", hint) from None
        if "KeyboardInterrupt" in f"{type(error)} {error}":  # the engine makes an error of its own of Ctrl-C
            raise KeyboardInterrupt from None
        raise _inner_user_error(error) or _engine_failure(error) or error from None
    finally:
        lost.over.set()
        threading.excepthook = before
        if heard is not None:
            signal.signal(_LOST, signal.SIG_IGN if lost.worker else heard)  # one may be on its way


def _threads(asked: int, options: PipelineOptions) -> Threads:
    """Beam's own workers share the cores of this machine; any other engine shares out cores itself."""
    if asked:
        return Threads(asked)
    if not _is_local(options):
        return ONE
    return Threads(max(1, cores() // max(1, options.view_as(DirectOptions).direct_num_workers or cores())))


#: Wakes the main thread where a worker was lost. Not SIGINT, which is ignored in what a script starts in the background.
_LOST = signal.SIGUSR1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class _Hook:
    """Handles exceptions in the threads that Beam keeps in this process; passes all others on.

    Args:
        before: the hook of the process.
    """

    def __init__(self, before: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self._before = before
        #: How a worker process of the local engine ended, which then waits for it for ever.
        self.worker = ""
        #: Whether the engine has ended.
        self.over = threading.Event()

    def _wake(self) -> None:
        """Interrupt the main thread, again where it went on to wait for something else, until the engine has ended."""
        while not self.over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, _LOST)
            self.over.wait(3.0)

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        cancelled = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.CANCELLED
        if cancelled or type(error) is grpc.RpcError:
            return  # the other side hung up, an engine that ended or a worker that died: nothing that a user could mend
        if not args.thread or args.thread.name != "run_worker":
            self._before(args)
            return
        if not self.worker and not str(error).endswith((" -2", " 130")):  # those heard the user's Ctrl-C, too
            self.worker = str(error)
            threading.Thread(target=self._wake, daemon=True).start()
            # One that had not connected yet, Beam would wait for.
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "apache_beam.runners.worker.sdk_worker_main" in child.cmdline():
                        child.kill()


def _is_local(options: PipelineOptions) -> bool:
    runner = (options.view_as(StandardOptions).runner or "direct").lower().rsplit(".", 1)[-1]
    return runner in ("direct", "directrunner", "fnapirunner")


def _watch(result: Any, directory: Path, minutes: float) -> None:
    """Wait for a job on another engine; give it up where nothing new has come into its directory for so long.

    An engine may wait for a lost worker for ever: Flink does for one that was killed before it had connected.
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
        waiting.join(min(30.0, 15.0 * minutes) if minutes else None)  # a quarter of the time, or less
        if (now := _done(directory)) != seen:
            seen, since = now, time.monotonic()
        elif minutes and waiting.is_alive() and time.monotonic() - since > 60 * minutes:
            with suppress(Exception):  # it is given up whether or not the engine hears of it
                result.cancel()
            what = f"wrote nothing for {minutes:g} minutes: a worker may be lost, or may never have started"
            raise UserError(
                "Beam's engine", what, "see its log and run the same again; or raise preprocess.stalled_minutes"
            )
    if raised:
        raise raised[0]


def _done(directory: Path) -> Any:
    """What a job has done so far: the files that it made and the counts that its workers told."""
    return files_in(directory), progress.reported(address(directory))


def _engine_failure(error: BaseException) -> UserError | None:
    """A job that its engine gave up, a killed worker for one; an exception of our own code within it is a bug, and stays one."""
    text = str(error)
    if " failed in state " not in text or "Traceback (most recent call last)" in text:
        return None
    reason = text.split(" failed in state ", 1)[1].split("\n", 1)[0].rsplit(": ", 1)[-1].strip()
    return UserError(
        "Beam's engine", f"gave the job up ({reason})", "see its log, and run the same again: nothing was written"
    )


def _inner_user_error(error: BaseException) -> UserError | None:
    """A worker's UserError inside the exception that the engine made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        marker = "clsd.features.errors.UserError: "
        if marker in str(seen):  # a portable engine hands over the worker's traceback as text
            line = str(seen).rsplit(marker, 1)[1].split("\n", 1)[0].split(" [while running", 1)[0]
            where, _, what = line.partition(": ")
            return UserError(where, what, "")
        seen = seen.__cause__ or seen.__context__
    return None
