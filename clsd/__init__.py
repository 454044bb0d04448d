"""clsd: click logs in, a served, confidence-weighted CTR model out.

What ``__all__`` names is the public interface; it changes with a new major version only. Everything is loaded when it is first
used, so ``import clsd`` is fast and does not load TensorFlow.

The pipeline, one function a stage::

    import clsd

    config = clsd.load_config("news.yaml")
    dataset = clsd.preprocess(config, "runs/news/dataset")
    clsd.train(config, dataset, "runs/news/train")
    metrics = clsd.evaluate(dataset, "runs/news/train", "runs/news/evaluation")
    version = clsd.export(dataset, "runs/news/train", "runs/news/export")
    clsd.Predictor(version).predict([{"user": "u2", "article": "a17"}])
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

# Keras 2 must be chosen before TensorFlow is loaded, which a script may do before its first use of clsd.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

if TYPE_CHECKING:
    from clsd.features.errors import UserError
    from clsd.features.schema import Schema
    from clsd.features.tf_runtime import keras, tf
    from clsd.models import equations
    from clsd.models.confidence_model import Scores, TrainingSetup
    from clsd.models.keras_model import KerasConfidenceModel
    from clsd.models.settings import ConfidenceSettings, OptimizerSettings
    from clsd.pipeline.evaluation.compare_runs import compare
    from clsd.pipeline.evaluation.evaluate import evaluate
    from clsd.pipeline.preprocess.job import preprocess
    from clsd.pipeline.run import Paths, fetch_logs, run
    from clsd.pipeline.serving.export import PublishingRequirements, export
    from clsd.pipeline.serving.predict import Predictor
    from clsd.pipeline.serving.score import score
    from clsd.pipeline.shared.config import Config
    from clsd.pipeline.shared.config_file import dump_config, load_config, parse_config
    from clsd.pipeline.shared.dataset import Dataset
    from clsd.pipeline.training.train import train
    from clsd.pipeline.training.trained_model import load_trained

__version__ = _version("clsd")

#: Where each public name is.
_HOMES = {
    "clsd.features.errors": ["UserError"],
    "clsd.features.schema": ["Schema"],
    "clsd.features.tf_runtime": ["keras", "tf"],
    "clsd.models": ["equations"],
    "clsd.models.confidence_model": ["Scores", "TrainingSetup"],
    "clsd.models.keras_model": ["KerasConfidenceModel"],
    "clsd.models.settings": ["ConfidenceSettings", "OptimizerSettings"],
    "clsd.pipeline.evaluation.compare_runs": ["compare"],
    "clsd.pipeline.evaluation.evaluate": ["evaluate"],
    "clsd.pipeline.preprocess.job": ["preprocess"],
    "clsd.pipeline.run": ["Paths", "fetch_logs", "run"],
    "clsd.pipeline.serving.export": ["PublishingRequirements", "export"],
    "clsd.pipeline.serving.predict": ["Predictor"],
    "clsd.pipeline.serving.score": ["score"],
    "clsd.pipeline.shared.config": ["Config"],
    "clsd.pipeline.shared.config_file": ["dump_config", "load_config", "parse_config"],
    "clsd.pipeline.shared.dataset": ["Dataset"],
    "clsd.pipeline.training.train": ["train"],
    "clsd.pipeline.training.trained_model": ["load_trained"],
}

__all__ = [
    "ConfidenceSettings",
    "Config",
    "Dataset",
    "KerasConfidenceModel",
    "OptimizerSettings",
    "Paths",
    "Predictor",
    "PublishingRequirements",
    "Schema",
    "Scores",
    "TrainingSetup",
    "UserError",
    "compare",
    "dump_config",
    "equations",
    "evaluate",
    "export",
    "fetch_logs",
    "keras",
    "load_config",
    "load_trained",
    "parse_config",
    "preprocess",
    "run",
    "score",
    "tf",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            module = import_module(home)
            return getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")
    raise AttributeError(f"module 'clsd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
