"""A trained model over all rows of a split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from clsd.features.errors import UserError
from clsd.features.input_pipeline import ALL_COLUMNS, read_batches
from clsd.features.tf_runtime import Strategy, tf
from clsd.models.calibration import Calibrator
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import sizes

#: The largest batch that scoring uses; scores do not depend on it.
_BATCH = 16_384


class Scorer:
    """Scores whole splits; compiled once and used after every epoch.

    Args:
        model: a :class:`clsd.models.clsd_model.ClsdModel`.
        dataset: whose splits are scored.
        strategy: the strategy that the model was built under.
    """

    def __init__(self, model: Any, dataset: Dataset, strategy: Strategy) -> None:
        self._dataset, self._strategy = dataset, strategy
        replicas = strategy.num_replicas_in_sync
        self._batch = -(-_BATCH // replicas) * replicas

        @tf.function
        def run(batch: dict[str, Any]) -> Any:
            return strategy.run(lambda b: model.score(b["ids"], b["values"]), args=(batch,))

        self._run = run

    def score(self, split: str) -> dict[str, Any]:
        """Every row of a split, in an order that the files alone decide: blocks of a few files in turn.

        Returns:
            logit, confidence, weight, correction, ctr_logit, label, intensity float32 ``[n]``; user, key, timestamp int64
            ``[n]``; ids int32 ``[n, width]``.
        """
        data = read_batches(
            self._dataset.schema,
            self._dataset.files(split),
            self._batch,
            columns=ALL_COLUMNS,
            rows_per_block=self._dataset.rows_per_block,
        )
        parts: dict[str, list[Any]] = {}
        with reading(self._dataset):
            for batch in self._strategy.experimental_distribute_dataset(data):
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


def cheap_calibrator(model: Any, dataset: Dataset) -> Calibrator | None:
    """Fitted on the validation split of a trained model; None where there are not rows enough."""
    if not dataset.rows("validation"):
        return None
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score("validation")
    return Calibrator.fit(rows["logit"], rows["correction"], rows["weight"])


@contextmanager
def reading(dataset: Dataset) -> Iterator[None]:
    """Turn TensorFlow's word for a damaged record into one that names the file."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.UnknownError):
        dataset.verify()  # finds the file and raises; if it finds nothing, the error was another one
        raise
    except tf.errors.NotFoundError as error:
        if all(size is not None for size in sizes(dataset.directory, dataset.shards()).values()):
            raise
        raise UserError(str(dataset.directory), "a shard vanished while it was read", "restore the data set") from error
