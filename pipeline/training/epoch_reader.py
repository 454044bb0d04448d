"""Read the batches of an epoch, starting at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clsd.features.input_pipeline import TRAINING_COLUMNS, read_batches
from clsd.features.tf_runtime import Batch, Strategy
from clsd.models.clsd_model import ClsdModel
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training import teacher_cache
from clsd.pipeline.training.run_state import RunState, steps_per_epoch
from clsd.pipeline.training.strategy import distribute


class EpochReader:
    """Reads the training split for one run.

    Args:
        config, dataset: the run's config and data set.
        strategy: the strategy that distributes the batches.
        model: the model; its teacher fills the teacher cache.
    """

    def __init__(self, config: Config, dataset: Dataset, strategy: Strategy, model: ClsdModel) -> None:
        self._config, self._dataset, self._strategy, self._model = config, dataset, strategy, model
        self._steps = steps_per_epoch(config, dataset)
        self._teacher_lookup: Callable[[Batch], Batch] | None = None

    def read(self, state: RunState) -> Any:
        """An iterator over the distributed batches of the current epoch, from the current step of ``state`` on."""
        config, dataset, epoch = self._config, self._dataset, state.epoch + 1
        columns: tuple[str, ...] = TRAINING_COLUMNS
        if config.confidence.weighted and config.confidence.source == "intensity":
            columns = (*columns, "intensity")
        lookup = self._lookup(state, epoch)
        data = read_batches(
            dataset.schema,
            dataset.files("train"),
            config.train.batch_size,
            shuffle_seed=config.seed * 1_000_003 + epoch,
            columns=(*columns, "key") if lookup else columns,
            rows_per_block=dataset.rows_per_block,
            first_batch=state.step,
            file_rows=dataset.file_rows("train"),
        )
        return iter(distribute(self._strategy, data.map(lookup) if lookup else data))

    def _lookup(self, state: RunState, epoch: int) -> Callable[[Batch], Batch] | None:
        """The lookup of cached teacher scores, if a cache pays off and the whole epoch is weighted; otherwise None."""
        # The end of the warm-up decides, not the start of a resumed run: both must read the same columns.
        first_whole = -(-self._model.warmup_steps // self._steps) + 1
        epochs_left = self._config.train.epochs - first_whole + 1
        if epoch < first_whole or not teacher_cache.worth_it(self._config, self._dataset.clicks("train"), epochs_left):
            return None
        if self._teacher_lookup is None:
            if state.steps_done(self._steps) == self._model.warmup_steps:
                self._model.copy_teacher()  # as the first weighted step would
            self._teacher_lookup = teacher_cache.lookup(*teacher_cache.click_scores(self._model, self._dataset))
        return self._teacher_lookup
