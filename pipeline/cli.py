"""The command line: one command a stage, and `clsd run` for all of them.

Exit codes: 0 done; 2 a mistake that the user can mend, told in one line; 3 what was measured is out of its bounds (`validate`,
`skew`, `export --require` and `--against`); 75 training was
asked to end (SIGTERM) and left a checkpoint, or lost a machine: run it again; 1 a bug of ours; 130 interrupted; 143 asked to
end elsewhere.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from typing import Any

import click

from clsd.features.errors import Terminated, UserError
from clsd.pipeline.commands import data, serving, training
from clsd.pipeline.commands.options import beam_argument, config_option, load, overwrite_option, runs_option, set_option
from clsd.pipeline.commands.tables import show_outcome
from clsd.pipeline.shared.files import no_room, no_store
from clsd.pipeline.shared.progress import say


class _Commands(click.Group):
    """Tells mistakes in one line, in the order in which the stages follow each other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        asked: list[int] = []

        def end(number: int, _: Any) -> None:
            asked.append(number)
            raise KeyboardInterrupt  # so that what is unfinished is removed

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)  # training has a handler of its own
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            say("interrupted; what is unfinished is not taken for whole, run the same command again")
            sys.exit(143 if asked else 130)
        except Terminated:
            say("ended by SIGTERM after a checkpoint; run the same command again, and it goes on from there")
            sys.exit(75)
        except Exception as error:
            known = no_store(error, "an address")
            if isinstance(error, OSError):
                known = known or no_room(error, str(error.filename or "the disk"))
            if known is None:
                raise
            _fail(str(known))


def _fail(message: str, code: int = 2) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
@click.version_option(package_name="clsd")
def main(verbose: bool) -> None:
    """Click logs in, a served, confidence-weighted CTR model out.

    \b
    The stages, in order; each reads and writes files, so each can run alone:
      clsd dataset      a public data set as a click log, to start with
      clsd preprocess   click logs -> TFRecords + dataset.json
      clsd train        -> checkpoints
      clsd evaluate     -> metrics.json + report.html
      clsd compare      variants against controls, over seeds -> compare.json + report.html
      clsd export       -> a versioned SavedModel for TF Serving
      clsd rollback     serve the version before
      clsd predict      ask the exported model
      clsd score        score logs with it, by Apache Beam
      clsd skew         whether a model in service scores as training would have
    `clsd run` does all of them and uses again what is there. `clsd inspect` and `clsd validate` look at data sets.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
    if not verbose:  # Beam logs a worker's exception before it hands it on to be told
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
    """Everything: fetch, preprocess, train, evaluate, export, one prediction. What is there already is used again."""
    from clsd.pipeline.run import run as job

    config, paths = load(config_path, overrides, runs)
    show_outcome(job(config, paths, overwrite=overwrite, beam_options=list(beam_options)))


for _command in (
    *(data.dataset, data.preprocess, data.inspect, data.validate),
    *(training.train, training.evaluate, training.compare),
    *(serving.export, serving.rollback, serving.predict, serving.score, serving.skew),
    run,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
