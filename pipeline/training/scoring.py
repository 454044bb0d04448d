"""Score all rows of a split with a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from clsd.features.arrays import Array
from clsd.features.errors import UserError
from clsd.features.input_pipeline import ALL_COLUMNS, read_batches
from clsd.features.tf_runtime import Batch, Strategy, TfDataset, tf
from clsd.models.calibration import Calibrator
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import Scores
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import sizes
from clsd.pipeline.training.strategy import distribute_locally

#: Batch size of scoring; scores do not depend on it.
_BATCH = 16_384


class Scorer:
    """Scores whole splits. It is compiled once and used after each epoch.

    Args:
        model: a :class:`clsd.models.clsd_model.ClsdModel`.
        dataset: the data set to score.
        strategy: the strategy under which the model was built.
    """

    def __init__(self, model: ClsdModel, dataset: Dataset, strategy: Strategy) -> None:
        self._dataset, self._strategy = dataset, strategy
        replicas = strategy.num_replicas_in_sync
        self._batch = -(-_BATCH // replicas) * replicas

        @tf.function
        def run(batch: Batch) -> Scores:
            scores: Scores = strategy.run(lambda b: model.score(b["ids"], b["values"]), args=(batch,))
            return scores

        self._run = run
        self._batches: dict[str, TfDataset] = {}

    def score(self, split: str) -> dict[str, Array]:
        """Score each row of a split. The order depends on the files alone: blocks of a few files in turn.

        Returns:
            logit, confidence, weight, correction, ctr_logit, label, intensity float32 ``[n]``; user, key, timestamp int64
            ``[n]``; ids int32 ``[n, width]``.
        """
        if split not in self._batches:
            self._batches[split] = self._read(split)
        parts: dict[str, list[Any]] = {}
        with reading(self._dataset):
            for batch in self._batches[split]:
                scores = self._run(batch)
                result = {**scores._asdict(), **batch}
                for name, value in result.items():
                    if name != "values":
                        parts.setdefault(name, []).extend(
                            v.numpy() for v in self._strategy.experimental_local_results(value)
                        )
        whole = {name: np.concatenate(values) for name, values in parts.items()}
        real = whole.pop("valid") > 0
        return {name: value[real] for name, value in whole.items()}

    def _read(self, split: str) -> TfDataset:
        data = read_batches(
            self._dataset.schema,
            self._dataset.files(split),
            self._batch,
            columns=ALL_COLUMNS,
            rows_per_block=self._dataset.rows_per_block,
        )
        return distribute_locally(self._strategy, data)


def cheap_calibrator(model: ClsdModel, dataset: Dataset) -> Calibrator | None:
    """A calibrator fitted on the validation split; None if the split has too few rows."""
    if not dataset.rows("validation"):
        return None
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score("validation")
    return Calibrator.fit(rows["logit"], rows["correction"], rows["weight"])


@contextmanager
def reading(dataset: Dataset) -> Iterator[None]:
    """Turn TensorFlow's error for a damaged record into one that names the file."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.UnknownError):
        dataset.verify()  # raises and names the file; if all files are intact, the error has another cause
        raise
    except tf.errors.NotFoundError as error:
        if all(size is not None for size in sizes(dataset.directory, dataset.shards()).values()):
            raise
        raise UserError(str(dataset.directory), "a shard vanished while it was read", "restore the data set") from error
