"""The command line: one command per stage, and `clsd run` for all of them.

Exit codes: 0 done; 1 a bug in clsd; 2 a user error, printed as one line; 3 a measurement out of its bounds (`validate`, `skew`,
`export --require` and `--against`); 75 training got SIGTERM and wrote a checkpoint, or lost a machine: run it again; 130 Ctrl-C;
141 the reader of standard output ended; 143 SIGTERM outside of training.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from typing import Any

import click

from clsd.features.errors import Terminated, UserError
from clsd.pipeline.commands import data, evaluation, serving, training
from clsd.pipeline.commands.options import beam_argument, config_option, load, overwrite_option, runs_option, set_option
from clsd.pipeline.commands.tables import show_outcome
from clsd.pipeline.shared.files import disk_full_error, object_store_error, out_of_memory_error
from clsd.pipeline.shared.progress import printable, say


class _Commands(click.Group):
    """The group of commands, listed in the order of the stages. It prints user errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        asked: list[int] = []

        def end(number: int, _: Any) -> None:
            asked.append(number)
            raise KeyboardInterrupt  # so that unfinished results are removed

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # training installs its own handler
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            say("interrupted; unfinished results are not used, run the same command again")
            sys.exit(143 if asked else 130)
        except BrokenPipeError:  # the reader of standard output has ended, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
            sys.exit(141)
        except Terminated:
            say("ended by SIGTERM after a checkpoint; run the same command again to continue")
            sys.exit(75)
        except Exception as error:
            known = object_store_error(error, "an address") or out_of_memory_error(error)
            if isinstance(error, OSError):
                known = known or disk_full_error(error, str(error.filename or "the disk"))
                if error.errno == errno.ENAMETOOLONG:
                    known = UserError(str(error.filename)[:80], "is too long a name for a file", "choose a shorter one")
            if known is None:
                raise
            _fail(str(known))


def _fail(message: str, code: int = 2) -> None:
    click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Show the log messages of libraries.")
@click.version_option(package_name="clsd")
def main(verbose: bool) -> None:
    """Click logs in, a served, confidence-weighted CTR model out.

    \b
    The stages, in order. Each reads and writes files, so each can run alone:
      clsd dataset      a public data set as a click log
      clsd preprocess   click logs -> TFRecords + dataset.json
      clsd train        data set -> checkpoints
      clsd evaluate     run -> metrics.json + report.html
      clsd compare      variants against controls, over seeds -> compare.json + report.html
      clsd export       run -> a versioned SavedModel for TF Serving
      clsd rollback     serve the version before
      clsd predict      score rows of JSON
      clsd score        score logs of any size
      clsd skew         compare served requests with training
    `clsd run` runs all stages and reuses finished results. `clsd inspect` and `clsd validate` look at data sets.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
    if not verbose:  # Beam logs a worker's exception before it raises it here
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


@click.command()
@config_option
@set_option
@runs_option
@overwrite_option
@beam_argument
def run(
    config_path: str, overrides: tuple[str, ...], runs: str, overwrite: bool, beam_options: tuple[str, ...]
) -> None:
    """Run all stages: fetch, preprocess, train, evaluate, export, predict. Finished results are reused."""
    from clsd.pipeline.run import run as job

    config, paths = load(config_path, overrides, runs)
    show_outcome(job(config, paths, overwrite=overwrite, beam_options=list(beam_options)))


for _command in (
    *(data.dataset, data.preprocess, data.inspect),
    training.train,
    *(evaluation.evaluate, evaluation.compare, evaluation.validate),
    *(serving.export, serving.rollback, serving.predict, serving.score, serving.skew),
    run,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
