"""The metrics of a run by step: ``metrics.jsonl`` for scripts, TensorBoard events for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import write_text
from clsd.pipeline.shared.progress import warn

METRICS_FILE = "metrics.jsonl"
#: Number of values of a group to log: the most frequent ones.
_SHOWN = 20


class MetricsLog:
    """The metrics log of one run.

    A line is ``{"step": 640, "part": "train", "loss": …}``. The file is written at each checkpoint, so a run that is killed and
    resumed logs each step once.

    Args:
        out: directory of the run.
        tensorboard: whether to write TensorBoard events as well.
    """

    def __init__(self, out: Path, tensorboard: bool) -> None:
        self._file, self._lines = out / METRICS_FILE, list[str]()
        self._writer = tf.summary.create_file_writer(str(out / "tensorboard")) if tensorboard else None

    def resume(self, step: int) -> None:
        """Read the log up to ``step`` and drop later lines."""
        if step and self._file.exists():
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
            steps = [_step_of(line) for line in lines]
            self._lines = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
            if damaged := [number for number, at in enumerate(steps, 1) if at is None]:
                warn(f"{self._file}:{damaged[0]} is damaged, and {len(damaged) - 1} other lines: left out")

    def log(self, part: str, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a part of the run, such as ``train`` or ``validation``."""
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        self._lines.append(json.dumps({"step": step, "part": part, **finite}))
        if self._writer is not None:
            with self._writer.as_default(step=step):
                for name, value in metrics.items():
                    tf.summary.scalar(f"{part}/{name}", value)

    def write(self) -> None:
        """Write the whole file atomically."""
        write_text(self._file, "".join(line + "\n" for line in self._lines))


def _step_of(line: str) -> int | None:
    """The step of a line; None if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def confidence_by_group(dataset: Dataset, rows: dict[str, Any]) -> dict[str, float]:
    """Mean confidence of the clicks of each group's most frequent values, by ``group=value``.

    Args:
        dataset: the rows' data set.
        rows: the result of :class:`clsd.pipeline.training.scoring.Scorer`.
    """
    result = {}
    clicked = rows["label"] > 0
    for group in dataset.schema.groups:
        ids = rows["ids"][clicked, dataset.schema.id_slices[group].start]
        clicks, total = np.bincount(ids), np.bincount(ids, weights=rows["confidence"][clicked])
        names = dataset.transform.id_names(group)
        for value in np.argsort(-clicks, kind="stable")[:_SHOWN]:
            if clicks[value]:
                result[f"{group}={names[value]}"] = float(total[value] / clicks[value])
    return result
