"""This project: `clsd train` on the data set that the arrays come from, its reader included; all clicks count alike."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from shared import CROSSES, HIDDEN, UNTIMED, Clock, run

from clsd.features.tf_runtime import tf
from clsd.models.settings import ModelSettings, TableOptimizerSettings
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.loop import TrainingLoop
from clsd.pipeline.training.scoring import Scorer
from clsd.pipeline.training.train import train
from clsd.pipeline.training.trained_model import load_trained


def side(backbone: str, data: Any, seed: int, clock: Clock) -> Any:
    """See the module."""
    directory = Path(str(data["directory"]))
    dataset, config = Dataset.load(directory / "dataset"), load_config(directory / "config.yaml")
    options: dict[str, Any] = {"hidden_units": list(HIDDEN)} | (
        {"cross_layers": CROSSES} if backbone == "dcn_v2" else {}
    )
    model = ModelSettings(backbone=backbone, options=options)
    assert config.train.steps_per_call >= UNTIMED
    settings: dict[str, Any] = {"precision": data["precision"]}
    rate = 0.05 if data["tables"] == "adagrad" else data["rate"]
    settings["embedding_optimizer"] = TableOptimizerSettings(name=data["tables"], learning_rate=rate)
    config = config.model_copy(update={"model": model, "seed": seed, "train": config.train.model_copy(update=settings)})
    looks = TrainingLoop._check

    def look(self: TrainingLoop, shown: Any, result: Any, steps: int, watched: bool) -> None:
        looks(self, shown, result, steps, watched)
        clock.tick(steps)

    TrainingLoop._check = look  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        train(config, dataset, Path(name) / "run")
        _, trained = load_trained(Path(name) / "run", dataset)
    scored = Scorer(trained, dataset, tf.distribute.get_strategy()).score("test")
    # By each row's random key to the rows' order in the file of arrays.
    result, wanted = np.argsort(scored["key"].view(np.uint64)), np.argsort(dataset.read("test").key)
    logits = np.empty(len(wanted), np.float32)
    logits[wanted] = scored["logit"][result]
    return logits


if __name__ == "__main__":
    run(side)
