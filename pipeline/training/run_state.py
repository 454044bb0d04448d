"""The state of a training run: everything that a checkpoint holds besides the model, such as the position in the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from clsd.features.tf_runtime import Tensor, tf
from clsd.models import step_metrics
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset

#: Keys of ``state.json`` that differ from the fields' names.
_JSON_KEYS = {"epoch_sums": "totals", "window_sums": "window"}


@dataclass
class RunState:
    """The state of a run.

    ``epoch`` and ``step`` are the position in the data: the seed and the epoch's number give the epoch's order
    (:mod:`clsd.features.epoch_order`), and each step reads one batch of it.

    Args:
        fingerprint: fingerprint of the settings and the data.
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch.
        epoch_sums: metric sums of those steps.
        window_sums, window_steps: the collapse monitor's open window.
        best_epoch, best_value: the best epoch and its validation metric.
        stopped: why the run ended before its last epoch.
        collapsed: the monitor's finding, if it only warns.
        weighted_steps: number of weighted steps.
        seconds, timed_steps: total time and number of weighted steps, without the calls that traced a function.
        history: metrics of each epoch.
        best_files: the files of the best epoch's weights, with their checksums.
    """

    fingerprint: str
    epoch: int = 0
    step: int = 0
    epoch_sums: list[float | None] = field(default_factory=list)
    window_sums: list[float | None] = field(default_factory=list)
    window_steps: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    stopped: str = ""
    collapsed: str = ""
    weighted_steps: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_files: list[dict[str, Any]] = field(default_factory=list)

    def steps_done(self, steps_per_epoch: int) -> int:
        """Total number of finished steps."""
        return self.epoch * steps_per_epoch + self.step

    def to_json(self) -> dict[str, Any]:
        """The content of ``state.json``."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> RunState:
        """Read what :meth:`to_json` wrote."""
        names = {key: name for name, key in _JSON_KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in saved.items()})


def steps_per_epoch(config: Config, dataset: Dataset) -> int:
    """Number of batches of the training split; the last one is padded."""
    return -(-dataset.rows("train") // config.train.batch_size)


def warmup_steps(config: Config, dataset: Dataset) -> int:
    """Number of steps with plain loss before the first weighted step."""
    if config.confidence.warmup_steps is not None:
        return config.confidence.warmup_steps
    return round(config.confidence.warmup_epochs * steps_per_epoch(config, dataset))


def as_sums(values: list[float | None]) -> Tensor:
    """The inverse of :func:`as_list`. An empty list gives the sums of no batch."""
    empty = step_metrics.empty_sums()
    if not values:
        return empty
    return tf.constant(
        [empty_value if value is None else value for empty_value, value in zip(empty.numpy(), values, strict=True)]
    )


def as_list(sums: Tensor) -> list[float | None]:
    """Metric sums as a list for JSON. Minimum and maximum of a batch without clicks are infinite; they become None."""
    return [None if np.isinf(value) else float(value) for value in sums.numpy()]
