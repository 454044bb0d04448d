"""Checkpoints of a run. Each is written whole or not at all, and verified before it is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError
from clsd.pipeline.shared.artefacts import RunSummary
from clsd.pipeline.shared.checksums import describe_file
from clsd.pipeline.shared.files import atomic_directory, files_in, make_directory, remove_tree, remove_unfinished
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.shared.progress import warn

#: In a run's directory: its summary, written last; the checkpoints; the weights of the best epoch.
RUN_FILE, CHECKPOINTS, BEST = "run.json", "checkpoints", "best/weights"
#: The last file that a checkpoint writes: the run's position, and the checksums of the other files.
STATE_FILE = "state.json"
#: Prefix of TensorFlow's checkpoint files.
WEIGHTS = "weights"


class Checkpoints:
    """The checkpoints of one run: one directory each, named by the number of steps.

    Args:
        directory: directory of the checkpoints.
        keep: number of checkpoints to keep; older ones are removed.
    """

    def __init__(self, directory: Path, keep: int = 0) -> None:
        self._directory, self._keep = directory, keep

    def save(self, step: int, write: Callable[[str], object], state: dict[str, Any]) -> None:
        """Write a checkpoint and remove the ones that are too old.

        Args:
            step: number of finished steps; a checkpoint of the same step is replaced.
            write: writes TensorFlow's files under the prefix that it is given.
            state: the run's position, of JSON types.

        Raises:
            UserError: the disk is full, or writing is not permitted. Earlier checkpoints stay as they were.
        """
        make_directory(self._directory)
        remove_tree(self._directory / str(step))
        with atomic_directory(self._directory / str(step), marker=STATE_FILE, overwrite=True) as temporary:
            write(str(temporary / WEIGHTS))
            files = [describe_file(temporary, name) for name in sorted(files_in(temporary))]
            write_json(temporary / STATE_FILE, {"state": state, "files": files})
        for old in self._steps()[self._keep :]:
            remove_tree(self._directory / str(old))

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint: (prefix of its files, its state). None if the run has no checkpoint.

        A damaged checkpoint is named in a warning, and the one before it is used.

        Raises:
            UserError: there are checkpoints, but none is intact.
        """
        steps = self._steps()
        for step in steps:
            path = self._directory / str(step)
            problem, state = _verify(path)
            if not problem:
                return path / WEIGHTS, state
            warn(f"checkpoint {path} {problem}: skipped")
        if steps:
            raise UserError(str(self._directory), "has no intact checkpoint", "pass --overwrite to start anew")
        return None

    def tidy(self, step: int) -> None:
        """Remove what a killed process left unfinished, and damaged checkpoints newer than ``step``, the one to resume from."""
        remove_unfinished(self._directory)
        for name in _entries(self._directory):
            if name.isdigit() and int(name) > step:
                remove_tree(self._directory / name)

    def _steps(self) -> list[int]:
        """Steps of the finished checkpoints, newest first. An interrupted copy to an object store has no state file."""
        numbers = sorted((int(name) for name in _entries(self._directory) if name.isdigit()), reverse=True)
        return [number for number in numbers if (self._directory / str(number) / STATE_FILE).exists()]


def read_run(directory: Path, hint: str) -> dict[str, Any]:
    """The content of a finished run's ``run.json``.

    Raises:
        UserError: the run is not finished, or the file is damaged.
    """
    return read_json(directory / RUN_FILE, "finished training run", hint, RunSummary)


def _entries(directory: Path) -> Iterator[str]:
    if directory.exists():
        yield from [entry.name for entry in directory.iterdir()]


def _verify(path: Path) -> tuple[str, dict[str, Any]]:
    """The first fault of a checkpoint ("" if it is intact) and its state."""
    try:
        saved = read_json(path / STATE_FILE, "checkpoint", "")
        for file in saved["files"]:
            if describe_file(path, file["file"]) != file:
                return f"has an altered {file['file']}", {}
        return "", dict(saved["state"])
    except UserError as error:
        return f"has a {STATE_FILE} that {error.what}", {}
    except OSError as error:
        return f"lacks {Path(str(error.filename)).name}", {}
    except (KeyError, TypeError):
        return f"has an incomplete {STATE_FILE}", {}
