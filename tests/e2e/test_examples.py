"""All examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pipeline_from_python(tmp_path: Path) -> None:
    message = _run("pipeline.py", tmp_path)
    assert float(re.search(r"AUC (0\.\d+)", message)[1]) > 0.5  # type: ignore[index]
    assert "'confidence'" in message
    assert (tmp_path / "runs" / "example" / "evaluation" / "report.html").exists()


def test_a_keras_model_of_ones_own_learns_and_weighs_clicks(tmp_path: Path) -> None:
    message = _run("own_keras_model.py", tmp_path)
    least, largest = map(float, re.search(r"clicks weigh ([\d.]+) to ([\d.]+)", message).groups())  # type: ignore[union-attr]
    assert least < 1 < largest


def test_a_training_loop_of_ones_own_learns(tmp_path: Path) -> None:
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", _run("own_training_loop.py", tmp_path))]
    assert len(losses) == 3 and losses[2] < losses[0]


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_and_is_committed_without_outputs(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in cells.cells)
    NotebookClient(cells, timeout=300, kernel_name="python3").execute()
    answer = cells.cells[-1]["outputs"][0]["data"]["text/plain"]
    assert {"score", "ctr", "confidence"} <= set(re.findall(r"'(\w+)'", answer))
