"""Fixtures of the training tests: a data set with few features, the files of a run, and an interrupted run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.training.checkpoints import Checkpoints

_FEATURES = ("user_id", "item_id", "age_band")


@pytest.fixture(scope="session")
def make_tiny(small_config: Config) -> Callable[..., Config]:
    """Configs over three features of the small log, for tests of many trainings; keywords as for ``make_config``."""
    base = small_config.model_dump(mode="python", by_alias=True)
    base["rows"] |= {
        "features": [f for f in base["rows"]["features"] if f["name"] in _FEATURES],
        "groups": ["age_band"],
    }
    base["export"]["candidates"] = ["item_id"]
    del base["confidence"]  # what a preset leaves open is the preset's

    def make(**changes: Any) -> Config:
        raw = copy.deepcopy(base)
        for group, values in changes.items():
            raw[group] = {**raw.get(group, {}), **values} if isinstance(values, dict) else values
        return parse_config(raw, "test config")

    return make


@pytest.fixture(scope="session")
def tiny_dataset(make_tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small log's three features, preprocessed: 4,800 rows to train on, 19 steps an epoch."""
    from clsd.pipeline.preprocess.job import preprocess

    return preprocess(make_tiny(), tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.fixture(scope="session")
def kept_weights() -> Callable[[Path], dict[str, Any]]:
    """Every variable of a run's best checkpoint by its name, the optimizers' with them."""

    def read(run: Path) -> dict[str, Any]:
        reader = tf.train.load_checkpoint(str(run / "best" / "weights"))
        names = [n for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n and "save_counter" not in n]
        return {name: reader.get_tensor(name) for name in names}

    return read


@pytest.fixture(scope="session")
def same_weights(kept_weights: Callable[[Path], dict[str, Any]]) -> Callable[[Path, Path], bool]:
    """Whether two runs kept the same weights, bit for bit."""

    def same(a: Path, b: Path) -> bool:
        mine, theirs = kept_weights(a), kept_weights(b)
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)

    return same


@pytest.fixture(scope="session")
def state_of() -> Callable[[Path], dict[str, Any]]:
    """How far a run is by its newest checkpoint."""

    def read(run: Path) -> dict[str, Any]:
        result = Checkpoints(run / "checkpoints").newest()
        assert result is not None
        return result[1]

    return read


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Runs a training that the user stops when its epoch of that number begins."""
    from clsd.pipeline.training.loop import TrainingLoop

    real = TrainingLoop._fit_epoch

    def stop(number: int, job: Callable[[], Any]) -> None:
        def epoch(self: Any, last: int) -> Any:
            if self.state.epoch + 1 == number:
                raise KeyboardInterrupt
            return real(self, last)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TrainingLoop, "_fit_epoch", epoch)
            job()

    return stop
