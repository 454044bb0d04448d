"""A small real log, the data set made of it and a model trained on it: made once a session, read by many tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config

#: Every kind of feature over the columns of the synthetic log.
SETTINGS: dict[str, Any] = {
    "name": "small",
    "seed": 7,
    "logs": {"files": []},
    "rows": {
        "label": "click",
        "user": "user_id",
        "timestamp": "timestamp",
        "intensity": "intensity",
        "groups": ["age_band", "gender"],
        "passthrough": ["accidental"],
        "features": [
            {"name": "user_id", "kind": "categorical"},
            {"name": "item_id", "kind": "categorical", "min_count": 2},
            {"name": "age_band", "kind": "categorical"},
            {"name": "gender", "kind": "categorical", "input": False},
            {"name": "category", "kind": "categorical", "encoding": "hash", "size": 50},
            {"name": "position", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 5},
            {"name": "tags", "kind": "bag", "max_length": 3},
            {"name": "hour", "kind": "numeric", "transform": "quantile", "buckets": 6},
            {"name": "price", "kind": "numeric", "transform": "log1p"},
        ],
    },
    "preprocess": {"rows_per_block": 64, "rows_per_shard": 2000, "golden_rows": 100},
    "model": {"backbone": "deepfm", "embedding_dim": 4, "options": {"hidden_units": [16], "dropout": 0.1}},
    "train": {"batch_size": 256, "epochs": 3, "early_stopping": None, "tensorboard": False},
    "evaluate": {"item": "item_id"},
    "export": {"candidates": ["item_id", "category", "tags", "price"]},
}


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 synthetic impressions as JSON lines."""
    from clsd.pipeline.public_data import SyntheticSettings, write_dataset

    settings = SyntheticSettings(rows=6000, users=200, items=300, ctr=0.2, seed=3)
    return write_dataset("synthetic", tmp_path_factory.mktemp("logs"), synthetic=settings)


@pytest.fixture
def settings(small_log: Path) -> dict[str, Any]:
    """The raw settings over the small log, free to change."""
    raw = copy.deepcopy(SETTINGS)
    raw["logs"]["files"] = [str(small_log)]
    return raw


@pytest.fixture
def make_config(settings: dict[str, Any]) -> Callable[..., Config]:
    """A config over the small log; keywords such as ``train={"epochs": 1}`` are merged in."""

    def make(**changes: Any) -> Config:
        raw = copy.deepcopy(settings)
        for group, values in changes.items():
            raw[group] = {**raw.get(group, {}), **values} if isinstance(values, dict) else values
        return parse_config(raw, "test config")

    return make


@pytest.fixture(scope="session")
def small_config(small_log: Path) -> Config:
    """The config of ``small_dataset`` and ``small_run``."""
    raw = copy.deepcopy(SETTINGS)
    raw["logs"]["files"] = [str(small_log)]
    return parse_config(raw, "test config")


@pytest.fixture(scope="session")
def small_dataset(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small log, preprocessed."""
    from clsd.pipeline.preprocess.job import preprocess

    return preprocess(small_config, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="session")
def small_run(small_config: Config, small_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on the small data set, an epoch of it in warm-up."""
    from clsd.pipeline.training.train import train

    out = tmp_path_factory.mktemp("run") / "train"
    train(small_config, small_dataset, out)
    return out


@pytest.fixture(scope="session")
def small_export(small_dataset: Any, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 3 of the small model, as a model server would load it."""
    from clsd.pipeline.serving.export import export

    return export(small_dataset, small_run, tmp_path_factory.mktemp("models"), version=3)


#: Files that take long, although they need neither a log nor, most of them, a process: they build and train a model in each test.
_NOT_UNIT = {
    "test_backbone_formulas.py",
    "test_backbones.py",
    "test_clsd_model.py",
    "test_controls.py",
    "test_degenerate.py",
    "test_fixed_points.py",
    "test_gradients.py",
    "test_input_pipeline.py",
    "test_model_inputs.py",
    "test_precision.py",
    "test_public_data.py",
    "test_teacher.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` the tests of single modules that need neither the small log nor another process."""
    for item in items:
        package = item.path.relative_to(Path(__file__).parent).parts[0]
        needs_log = "small_log" in getattr(item, "fixturenames", ())
        if package in ("features", "models", "pipeline") and not needs_log and item.path.name not in _NOT_UNIT:
            item.add_marker(pytest.mark.unit)
