"""`clsd compare` on MovieLens-100K: all controls, two seeds, two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.pipeline.evaluation.compare_variants import CONTROLS

RECIPE = Path(__file__).parents[2] / "configs" / "movielens-100k.yaml"
#: A small network over one non-click a click, so that eighteen trainings take a minute.
SMALLER = (
    "preprocess.negatives.per_click=1",
    "model.embedding_dim=8",
    "model.options.hidden_units=[16]",
    "train.batch_size=4096",
    "train.epochs=3",
    "train.tensorboard=false",
    "train.early_stopping=null",
    "train.embedding_optimizer.learning_rate=0.3",
    "train.dense_optimizer.learning_rate=0.003",
    "train.monitor.window_steps=20",
    "compare.bootstrap_rounds=100",
)


def _clsd(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clsd.pipeline.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("movielens")


@pytest.fixture(scope="module")
def common(root: Path) -> list[Any]:
    overrides = [f"logs.files=[{root / 'data' / 'log.jsonl'}]", *SMALLER]
    return ["--config", RECIPE, "--runs", root / "runs", *(word for set_ in overrides for word in ("--set", set_))]


@pytest.fixture(scope="module")
def compared(root: Path, common: list[Any]) -> tuple[Path, subprocess.CompletedProcess[str]]:
    for words in (["dataset", "movielens-100k", "--out", root / "data"], ["preprocess", *common]):
        made = _clsd(*words)
        assert made.returncode == 0, made.stderr
    message = _clsd("compare", *common, "--variants", "configured", "--seeds", 2, "--jobs", 2)
    return root / "runs" / "movielens-100k" / "compare", message


@pytest.fixture(scope="module")
def result(compared: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    return dict(json.loads((compared[0] / "compare.json").read_text()))


def test_it_ends_well_and_says_where_the_page_is(compared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, message = compared
    assert message.returncode == 0, message.stderr
    assert message.stdout.strip() == str(out / "report.html")
    assert {"compare.json", "compare.md", "report.html", "log.txt"} <= {path.name for path in out.iterdir()}
    for reference in ("plain", "permuted", "popularity"):
        assert f"against {reference}, test split, 2 seeds" in message.stderr


def test_every_control_has_two_seeds(result: dict[str, Any]) -> None:
    assert list(result["variants"]) == [*CONTROLS, "configured"]
    assert result["left_out"] == {}
    assert len(result["seeds"]) == 2
    for name, variant in result["variants"].items():
        for metric in ("auc", "gauc", "ndcg", "intensity_auc", "log_loss", "ece", "predicted_over_real"):
            values = variant["metrics"][metric]["values"]
            assert len([v for v in values if v is not None]) == 2, (name, metric)
            assert len(set(values)) == 2, (name, metric)  # another seed is another training
        assert variant["collapsed"] == {}
    for by_metric in result["differences"].values():
        assert all(pair["n"] == 2 for by_name in by_metric.values() for pair in by_name.values())
    assert result["bootstrap"]["rounds"] == 100


def test_the_figures_are_those_of_models_that_learnt(result: dict[str, Any]) -> None:
    for name, variant in result["variants"].items():
        assert variant["metrics"]["auc"]["mean"] > 0.7, name


def test_the_oracle_knows_best_which_clicks_were_meant(result: dict[str, Any]) -> None:
    means = {name: variant["metrics"]["intensity_auc"]["mean"] for name, variant in result["variants"].items()}
    assert max(means, key=lambda name: means[name]) == "oracle", means
    gains = np.array(result["variants"]["oracle"]["metrics"]["intensity_auc"]["values"]) - np.array(
        result["variants"]["plain"]["metrics"]["intensity_auc"]["values"]
    )
    assert (gains > 0).all()  # in every seed


def test_the_same_command_again_finds_all_of_it(
    common: list[Any], compared: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, _ = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = _clsd("compare", *common, "--variants", "configured", "--seeds", 2, "--jobs", 2)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done") == len(before) == 18
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == before
