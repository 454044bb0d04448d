"""Checkpoints of a run: each appears whole or not at all, and is looked at before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError
from clsd.pipeline.shared.dataset import describe_file
from clsd.pipeline.shared.files import (
    files_in,
    make_directory,
    read_json,
    remove_tree,
    remove_unfinished,
    whole_directory,
    write_json,
)
from clsd.pipeline.shared.progress import warn

#: In a run's directory: what it came to, written last; checkpoints to go on from; the kept epoch's weights.
RUN_FILE, CHECKPOINTS, BEST = "run.json", "checkpoints", "best/weights"
#: Name of the file, written last, that says how far the run is and what the other files are.
STATE_FILE = "state.json"
#: Start of the names of TensorFlow's files.
WEIGHTS = "weights"


class Checkpoints:
    """Those of one run, a directory each, named by the steps that were done.

    Args:
        directory: where they are.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 0) -> None:
        self._directory, self._keep = directory, keep

    def save(self, step: int, write: Callable[[str], object], state: dict[str, Any]) -> None:
        """Write one, and remove those that are too old.

        Args:
            step: steps done; one of as many that is there is replaced.
            write: writes TensorFlow's files, given how their names begin.
            state: how far the run is, of JSON's types.

        Raises:
            UserError: the disk is full, or writing is not permitted; those before are as they were.
        """
        make_directory(self._directory)
        remove_tree(self._directory / str(step))
        with whole_directory(self._directory / str(step), marker=STATE_FILE, overwrite=True) as aside:
            write(str(aside / WEIGHTS))
            files = [describe_file(aside, name) for name in sorted(files_in(aside))]
            write_json(aside / STATE_FILE, {"state": state, "files": files})
        for old in self._steps()[self._keep :]:
            remove_tree(self._directory / str(old))

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole one, as how its files' names begin and its state; None where none was begun.

        One that is damaged is named in a warning, and the one before it is taken.

        Raises:
            UserError: there are some, and none of them is whole.
        """
        steps = self._steps()
        for step in steps:
            path = self._directory / str(step)
            problem, state = _look(path)
            if not problem:
                return path / WEIGHTS, state
            warn(f"checkpoint {path} {problem}: skipped")
        if steps:
            raise UserError(str(self._directory), "has no checkpoint that is whole", "pass --overwrite to start anew")
        return None

    def tidy(self, step: int) -> None:
        """Remove what a killed process left unfinished, and damaged ones that are newer than the one that a run goes on from."""
        remove_unfinished(self._directory)
        for name in _entries(self._directory):
            if name.isdigit() and int(name) > step:
                remove_tree(self._directory / name)

    def _steps(self) -> list[int]:
        """Of those that were finished; a copy to an object store that was cut short has no state yet."""
        numbers = sorted((int(name) for name in _entries(self._directory) if name.isdigit()), reverse=True)
        return [number for number in numbers if (self._directory / str(number) / STATE_FILE).exists()]


def _entries(directory: Path) -> Iterator[str]:
    if directory.exists():
        yield from [entry.name for entry in directory.iterdir()]


def _look(path: Path) -> tuple[str, dict[str, Any]]:
    """What is wrong with a checkpoint, "" if nothing, and its state."""
    try:
        saved = read_json(path / STATE_FILE, "checkpoint", "")
        for file in saved["files"]:
            if describe_file(path, file["file"]) != file:
                return f"has an altered {file['file']}", {}
        return "", dict(saved["state"])
    except UserError as error:
        return error.what, {}
    except OSError as error:
        return f"lacks {Path(str(error.filename)).name}", {}
    except (KeyError, TypeError):
        return f"has no whole {STATE_FILE}", {}
