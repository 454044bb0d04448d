"""The training loop: steps, epochs, validation, checkpoints, early stopping.

A stopped run, even one stopped by SIGKILL, resumes after its newest checkpoint. It reads the rows that it would have read
without the stop, and ends with the same weights; on one device they are equal bit for bit.
"""

from __future__ import annotations

import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clsd.features.errors import Terminated, UserError
from clsd.features.paths import is_remote
from clsd.features.schema import digest_of
from clsd.features.tf_runtime import Batch, Strategy, Tensor, TfFunction, tf
from clsd.models import step_metrics
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import Measured, measure
from clsd.pipeline.shared.checksums import describe_file
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import atomic_directory, files_in, remove_unfinished
from clsd.pipeline.shared.loaders import restore_checkpoint
from clsd.pipeline.shared.progress import say, warn
from clsd.pipeline.training.checkpoints import BEST, CHECKPOINTS, Checkpoints
from clsd.pipeline.training.collapse_monitor import CollapseMonitor, known_to_collapse
from clsd.pipeline.training.display import epoch_bar, report_epoch
from clsd.pipeline.training.epoch_reader import EpochReader
from clsd.pipeline.training.metrics_log import MetricsLog, confidence_by_group
from clsd.pipeline.training.run_state import RunState, as_list, as_sums, steps_per_epoch
from clsd.pipeline.training.scoring import Scorer, reading
from clsd.pipeline.training.step_profiler import StepProfiler
from clsd.pipeline.training.strategy import Machines, is_chief, workers
from clsd.pipeline.training.warm_start import BaseRun, expand_checkpoint

#: A number from which an input that is not scaled is a likely cause of a loss that is not finite.
_LARGE_INPUT = 1e4


class TrainingLoop:
    """One training run.

    Args:
        config, dataset: the run's config and data set.
        out: the run's directory.
        strategy: the strategy under which ``model`` was built.
        model: the model to train.
        state: the run's position.
    """

    def __init__(
        self, config: Config, dataset: Dataset, out: Path, strategy: Strategy, model: ClsdModel, state: RunState
    ) -> None:
        self._config, self._dataset, self._out, self.state = config, dataset, out, state
        self._strategy, self._model = strategy, model
        self._steps_per_epoch = steps_per_epoch(config, dataset)
        self._reader = EpochReader(config, dataset, strategy, model)
        self._tf_checkpoint = tf.train.Checkpoint(model=model)
        self._checkpoints = Checkpoints(out / CHECKPOINTS, config.train.keep_checkpoints)
        self._last_save = time.monotonic()
        self._terminated = False
        # With several machines, each scores all rows itself: the numbers are the same, and no machine waits.
        self._scorer = Scorer(model, dataset, tf.distribute.get_strategy() if workers()[0] > 1 else strategy)
        self._is_chief, self._machines = is_chief(), Machines(strategy)
        self._metrics_log = MetricsLog(out, config.train.tensorboard and is_chief())
        self._profiler = StepProfiler(out, config.train.profile_calls)
        self._monitor = CollapseMonitor(config.train.monitor)
        self._run_steps = _steps_function(strategy, model)

    def restore(self, weights: Path | None) -> None:
        """Restore the weights that belong to the state. Variables that are not saved keep their initial values."""
        if self._is_chief:
            remove_unfinished(self._out)
            self._checkpoints.tidy(self._steps_done)
        self._metrics_log.resume(self._steps_done)
        if weights is None:
            return
        restore_checkpoint(self._tf_checkpoint, weights, "pass --overwrite to start anew")

    def start_from(self, base: BaseRun) -> None:
        """Start from an earlier model, with its tables extended to this data set's vocabularies."""
        # The expanded checkpoint goes to the run's own disk, which has space for it.
        parent = None if is_remote(self._out) or not self._is_chief else self._out
        with tempfile.TemporaryDirectory(prefix=".clsd-", dir=parent) as expanded, self._strategy.scope():
            self.restore(expand_checkpoint(base, self._model, Path(expanded)))
        say(f"starts with the model of {base.directory}")

    def fit(self, until: int | None = None) -> RunState:
        """Train to the end, or until ``until`` steps are done in total.

        On SIGTERM, the running call of up to ``train.steps_per_call`` steps ends, a checkpoint is written, and
        :class:`Terminated` is raised.

        Raises:
            UserError: the loss is not finite, the run collapsed, a shard is damaged, the disk is full.
            Terminated: the process was asked to end.
        """
        main_thread = threading.current_thread() is threading.main_thread()
        previous_handler = signal.signal(signal.SIGTERM, self._terminate) if main_thread else None
        try:
            starting_point = digest_of([self.state.fingerprint, self._steps_done])
            if len(set(self._machines.gather(int(starting_point[:8], 16)))) > 1:
                what = "the machines differ in where they start, or in their settings or data"
                raise UserError("train", what, "give all of them the same config, --dataset and --out")
            return self._fit(until)
        finally:
            self._profiler.close()
            if previous_handler is not None:
                signal.signal(signal.SIGTERM, previous_handler)

    def wait_for_chief(self) -> None:
        """Barrier: wait for the chief's writes. The others wait here, so that they notice if the chief dies."""
        self._machines.gather(1)

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    @property
    def _steps_done(self) -> int:
        """Total number of finished steps."""
        return self.state.steps_done(self._steps_per_epoch)

    def _fit(self, until: int | None) -> RunState:
        settings, state = self._config.train, self.state
        total = settings.epochs * self._steps_per_epoch
        self._report_start(total)
        end = total if until is None else min(until, total)
        while self._steps_done < end and not state.stopped:
            sums = self._fit_epoch(min(self._steps_per_epoch, end - state.epoch * self._steps_per_epoch))
            if state.step < self._steps_per_epoch:  # `until` lies within the epoch
                self._save(sums)
                break
            metrics = _as_floats(sums)
            measured = self._validate()
            self._finish_epoch(metrics, measured)
            weighted = self._config.confidence.weighted
            warming_up = weighted and state.epoch * self._steps_per_epoch <= self._model.warmup_steps
            report_epoch(state, settings.epochs, metrics, measured, weighted=weighted, warming_up=warming_up)
            if self._any_machine_got_sigterm():
                raise Terminated
        return state

    def _report_start(self, total: int) -> None:
        """Report where a resumed run starts, and warn of settings without effect."""
        settings, state = self._config.train, self.state
        if self._steps_done:
            within = f" and {state.step} of {self._steps_per_epoch} steps" if state.step else ""
            say(f"continuing after epoch {state.epoch} of {settings.epochs}{within}")
        elif settings.batch_size > self._dataset.rows("train"):
            warn(f"train.batch_size {settings.batch_size} is more than the {self._dataset.rows('train')} training rows")
        if self._config.confidence.weighted:
            if self._model.warmup_steps >= total:
                warn(f"the warm-up takes all {total} steps: no click will be weighted")
            if expected := known_to_collapse(self._config.confidence, self._dataset.ctr("train")):
                warn(expected)

    def _fit_epoch(self, last_step: int) -> Tensor:
        """Run the current epoch up to step ``last_step`` and return the epoch's metric sums so far."""
        config, state = self._config, self.state
        iterator = self._reader.read(state)
        # The end of the warm-up, as a step of this epoch.
        warmup_end = self._model.warmup_steps - state.epoch * self._steps_per_epoch
        weighted = config.confidence.weighted
        title = f"epoch {state.epoch + 1}/{config.train.epochs}"
        title += " (warm-up)" if weighted and warmup_end >= last_step else ""
        sums = as_sums(state.epoch_sums)
        with epoch_bar(title, self._steps_per_epoch, state) as advance, reading(self._dataset):
            while state.step < last_step:
                stops = [
                    last_step,
                    state.step + config.train.steps_per_call,
                    *([warmup_end] if warmup_end > state.step else []),
                ]
                steps = min(stops) - state.step
                started, traces = time.perf_counter(), self._run_steps.experimental_get_tracing_count()
                with self._profiler.call():
                    new_sums = self._run_steps(iterator, tf.constant(steps))
                metrics = _as_floats(new_sums)
                if state.step >= warmup_end:
                    state.weighted_steps += steps
                    if self._run_steps.experimental_get_tracing_count() == traces:
                        state.seconds += time.perf_counter() - started
                        state.timed_steps += steps
                state.step += steps
                sums = step_metrics.merged(tf.stack([sums, new_sums]))
                # R-CE's weights are small by design, and smaller at a lower CTR. So small weights are no sign of a collapse.
                watched = weighted and config.confidence.control != "rce" and state.step > warmup_end
                self._check(metrics, new_sums, steps, watched)
                rate = steps * config.train.batch_size / (time.perf_counter() - started)
                advance(steps, f"{rate:,.0f} rows/s  loss {metrics['loss']:.4f}")
                self._metrics_log.log(
                    "train",
                    self._steps_done,
                    {**metrics, "rows_per_second": rate, **self._teacher_age(self._steps_done)},
                )
                if state.step < last_step and (
                    (terminated := self._any_machine_got_sigterm()) or self._checkpoint_is_due()
                ):
                    self._save(sums)
                    if terminated:
                        raise Terminated
        return sums

    def _any_machine_got_sigterm(self) -> bool:
        """Whether any machine received SIGTERM. All machines stop after the same step."""
        return any(self._machines.gather(self._terminated))

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._last_save >= 60 * self._config.train.checkpoint_minutes

    def _check(self, metrics: dict[str, float], sums: Tensor, steps: int, watched: bool) -> None:
        """Raise if the loss is not finite or the run collapsed."""
        if not math.isfinite(metrics["loss"]):
            what = f"the loss is {metrics['loss']} by step {self._steps_done}"
            raise UserError("train", what, _cause(self._dataset) or "lower the learning rates, then run again")
        if watched:
            self._monitor.watch(self.state, sums, steps, self._steps_done)

    def _validate(self) -> Measured:
        if not self._dataset.rows("validation"):
            return Measured({}, {"auc": "the data set has no validation split"})
        rows = self._scorer.score("validation")
        measured = measure(rows["label"], rows["logit"], rows["user"] if self._dataset.schema.user else None)
        calibrated = measure(rows["label"], rows["ctr_logit"])
        measured.values.update(
            (f"ctr_{name}", calibrated.values[name])
            for name in ("log_loss", "ece", "predicted_over_real")
            if name in calibrated.values
        )
        steps_done = (self.state.epoch + 1) * self._steps_per_epoch
        self._metrics_log.log("validation", steps_done, measured.values)
        if self._config.confidence.weighted and (by_group := confidence_by_group(self._dataset, rows)):
            self._metrics_log.log("confidence", steps_done, by_group)
        return measured

    def _finish_epoch(self, metrics: dict[str, float], measured: Measured) -> None:
        """Keep the epoch if it is the best, decide whether to stop early, and write a checkpoint."""
        state, stopping = self.state, self._config.train.early_stopping
        state.epoch, state.step, state.epoch_sums = state.epoch + 1, 0, []
        state.history.append({"epoch": state.epoch, "train": metrics, "validation": measured.values})
        after_warmup = self._steps_done > self._model.warmup_steps
        value = measured.values.get(stopping.metric) if stopping else None
        # An epoch of the warm-up is not a candidate: the best model must have been trained with weights.
        improved = (
            value is None
            or state.best_value is None
            or (value > state.best_value) == (stopping is not None and stopping.mode == "max")
        )
        if (after_warmup and improved) or state.best_epoch == 0:
            self._write_best()
            state.best_epoch, state.best_value = state.epoch, value if after_warmup else None
        elif stopping and after_warmup and state.epoch - state.best_epoch >= stopping.patience:
            state.stopped = f"{stopping.metric} did not improve for {stopping.patience} epochs"
        if state.stopped or state.epoch == self._config.train.epochs:
            self._monitor.finish(state, self._steps_done)
        self._save(None)

    def _write_best(self) -> None:
        if not self._is_chief:
            return
        best = self._out / BEST
        with atomic_directory(best.parent, marker=f"{best.name}.index", overwrite=True) as temporary:
            self._tf_checkpoint.write(str(temporary / best.name))
        names = [str(Path(BEST).parent / name) for name in files_in(best.parent)]
        self.state.best_files = [describe_file(self._out, name) for name in names]

    def _save(self, sums: Tensor | None) -> None:
        """Write a checkpoint of the model and the state, with the metric sums of the unfinished epoch."""
        state = self.state
        state.epoch_sums = [] if sums is None else as_list(sums)
        if self._is_chief:
            self._metrics_log.write()
            self._checkpoints.save(self._steps_done, self._tf_checkpoint.write, state.to_json())
        self._last_save = time.monotonic()

    def _teacher_age(self, step: int) -> dict[str, float]:
        """Steps since the frozen teacher was last copied."""
        settings, since = self._config.confidence, step - self._model.warmup_steps
        if settings.teacher != "frozen" or not self._model.scoring_needs_teacher or since <= 0:
            return {}
        return {"teacher_age": (since - 1) % settings.refresh_steps + 1 if settings.refresh_steps else since}


def _steps_function(strategy: Strategy, model: ClsdModel) -> TfFunction:
    """A ``tf.function`` that runs several steps and returns their metric sums."""

    @tf.function
    def run_steps(iterator: Iterator[Batch], steps: Tensor) -> Tensor:
        sums = step_metrics.empty_sums()
        for _ in tf.range(steps):
            per_replica = strategy.run(model.train_metric_sums, args=(next(iterator),))
            step_sums = strategy.experimental_local_results(per_replica)[0]  # the same on every replica
            sums = step_metrics.merged(tf.stack([sums, step_sums]))
        return sums

    return run_steps


def _cause(dataset: Dataset) -> str:
    """The hint for a loss that is not finite, if a number of the log is too large for a network; else ""."""
    for feature in dataset.schema.numeric:
        described = dataset.statistics["features"][feature.name]
        largest = max((abs(described[end]) for end in ("min", "max") if end in described), default=0.0)
        if feature.transform == "none" and largest > _LARGE_INPUT:
            return (
                f"feature '{feature.name}' has values up to {largest:.3g} and transform: none: use standardise or log1p, "
                "or refuse such rows with its max"
            )
    return ""


def _as_floats(sums: Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in step_metrics.metrics_from(sums).items()}
