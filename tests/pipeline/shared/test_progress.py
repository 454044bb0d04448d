"""The progress of a job in the terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.table import Table

from clsd.pipeline.cli import main
from clsd.pipeline.shared import progress
from clsd.pipeline.shared.progress import PLANNED, READ, stage_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, ""),
        ({PLANNED: 8}, "reading"),
        ({PLANNED: 8, READ: 4, "rows read": 500}, "reading, about 70 s left"),  # an eighth of the whole in 10 s
        ({PLANNED: 8, READ: 8, "rows read": 1000}, "counting, about 30 s left"),
        ({PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 1000}, "encoding, about 10 s left"),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 1000, "rows encoded": 1000, "rows written": 500},
            "writing, about 1 s left",
        ),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 5000, "rows encoded": 5000, "rows written": 5000},
            "finishing",
        ),  # negatives
        ({PLANNED: 8, READ: 8, "rows read": 0}, "counting, about 30 s left"),
    ],
)
def test_the_stage_and_what_is_left_of_it(counts: dict[str, int], message: str) -> None:
    assert stage_of(counts, 10.0).strip() == message


def _count_elsewhere(job: str) -> None:
    """What a worker does, in a process of its own."""
    work = "import sys; from clsd.pipeline.shared import progress; progress.add('rows read', 5, sys.argv[1])"
    subprocess.run([sys.executable, "-c", work, job], check=True, cwd=ROOT)


def test_the_counts_of_other_processes_are_shown_while_the_job_runs_and_its_own_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = str(tmp_path)
    reported: list[str] = []
    monkeypatch.setattr(progress.console, "status", lambda line: _Status(reported, line))
    with progress.watching("preprocess"):
        with progress.launching(job):
            for _ in range(2):
                _count_elsewhere(job)
            progress.add("rows read", 2, job)
            progress.add("rows read", 9, str(tmp_path / "another job"))
            deadline = time.monotonic() + 60
            while not any("rows read 12 " in line for line in reported):
                assert time.monotonic() < deadline, reported
                time.sleep(0.1)
        progress.settle({"rows read": 13, "rows refused": 0})
    (line,) = capsys.readouterr().err.splitlines()
    assert "rows read 13" in line and "refused" not in line


class _Status:
    def __init__(self, reported: list[str], line: str) -> None:
        self._told = reported
        self.update(line)

    def update(self, line: str) -> None:
        self._told.append(line + " ")

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_names_are_printed_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup, escape sequences and controls of direction are text; an unpaired bracket is no error."""
    name = "[red]x[/bold] :smile: \x1b[31m \u202e \x07"
    progress.say(name)
    progress.warn(name)
    table = Table("column")
    table.add_row(name)
    progress.console.print(table)
    printed = capsys.readouterr().err
    shown = "[red]x[/bold] :smile: \\x1b[31m \\u202e \\x07"
    assert printed.count(shown) == 3 and "\x1b" not in printed and "\u202e" not in printed


def test_an_error_of_the_command_line_is_printed_as_it_stands(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", f"{tmp_path}/\x1b[2J[red]"])
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {tmp_path}/\\x1b[2J[red]: no such data set")
