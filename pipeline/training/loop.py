"""The loop over steps and epochs of one training run, and what it leaves on disk.

A run that was stopped, killed too, goes on after its newest checkpoint: it reads the rows that it would have read, and ends with
the same weights, bit for bit on one device.
"""

from __future__ import annotations

import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clsd.features.errors import Terminated, UserError
from clsd.features.input_pipeline import TRAINING_COLUMNS, batches
from clsd.features.paths import is_remote
from clsd.features.schema import digest_of
from clsd.features.tf_runtime import tf
from clsd.models import step_metrics
from clsd.models.clsd_model import ClsdModel
from clsd.models.metrics import Measured, measure
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import remove_unfinished, whole_directory
from clsd.pipeline.shared.progress import console
from clsd.pipeline.training import teacher_cache
from clsd.pipeline.training.checkpoints import BEST, CHECKPOINTS, Checkpoints
from clsd.pipeline.training.collapse_monitor import CollapseMonitor, known_to_collapse
from clsd.pipeline.training.metrics_log import MetricsLog, StepProfiler, confidence_by_group
from clsd.pipeline.training.scoring import Scorer, reading
from clsd.pipeline.training.strategy import Machines, distribute, is_chief, workers
from clsd.pipeline.training.warm_start import BaseRun, expand_checkpoint


@dataclass
class State:
    """How far a run came: what a checkpoint holds beside the model.

    Args:
        fingerprint: of settings and data.
        epoch: whole epochs done.
        step: steps done of the next one: the position in the data; ``totals`` is what they added up.
        window, window_steps: the monitor's open window.
        best_epoch, best_value: the kept epoch and its validation metric.
        stopped: why the run ended before its last epoch.
        collapsed: what the monitor found where it only warns.
        weighted_steps: their number.
        seconds, timed_steps: time spent in weighted steps, those left out in whose call a step was traced, and their number.
        history: figures of each epoch.
    """

    fingerprint: str
    epoch: int = 0
    step: int = 0
    totals: list[float | None] = field(default_factory=list)
    window: list[float | None] = field(default_factory=list)
    window_steps: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    stopped: str = ""
    collapsed: str = ""
    weighted_steps: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def steps(self, per_epoch: int) -> int:
        """Steps done in all."""
        return self.epoch * per_epoch + self.step


def steps_per_epoch(config: Config, dataset: Dataset) -> int:
    """Batches of the training split, the last one padded."""
    return -(-dataset.rows("train") // config.train.batch_size)


def warmup_steps(config: Config, dataset: Dataset) -> int:
    """Steps of plain loss."""
    if config.confidence.warmup_steps is not None:
        return config.confidence.warmup_steps
    return round(config.confidence.warmup_epochs * steps_per_epoch(config, dataset))


class Loop:
    """One training run.

    Args:
        config, dataset: what is trained on what.
        out: the run's directory.
        strategy: under whose scope ``model`` was built.
        model: to be trained.
        state: where the run stands; its checkpoint is restored.
    """

    def __init__(
        self, config: Config, dataset: Dataset, out: Path, strategy: Any, model: ClsdModel, state: State
    ) -> None:
        self._config, self._dataset, self._out, self.state = config, dataset, out, state
        self._strategy, self._model = strategy, model
        self._steps = steps_per_epoch(config, dataset)
        self._checkpoint = tf.train.Checkpoint(model=model)
        self._checkpoints = Checkpoints(out / CHECKPOINTS, config.train.keep_checkpoints)
        self._saved = time.monotonic()
        self._terminated = False
        self._validates = dataset.rows("validation") > 0
        # Of several machines each scores all rows by itself: the same numbers, and nothing to wait for.
        self._scorer = Scorer(model, dataset, tf.distribute.get_strategy() if workers()[0] > 1 else strategy)
        self._writes, self._machines = is_chief(), Machines(strategy)
        self._metrics_log = MetricsLog(out, config.train.tensorboard and is_chief())
        self._profiler = StepProfiler(out, config.train.profile_calls)
        self._monitor = CollapseMonitor(config.train.monitor)
        self._cached: Callable[[dict[str, Any]], dict[str, Any]] | None = None

        @tf.function
        def run_steps(iterator: Any, steps: Any) -> Any:
            totals = step_metrics.empty_sums()
            for _ in tf.range(steps):
                now = strategy.run(model.train_metric_sums, args=(next(iterator),))
                first = strategy.experimental_local_results(now)[0]  # the same on every replica
                totals = step_metrics.merged(tf.stack([totals, first]))
            return totals

        self._run_steps = run_steps

    def restore(self, weights: Path | None) -> None:
        """Read the weights that belong to the state; what they do not hold keeps its start."""
        if self._writes:
            remove_unfinished(self._out)
            self._checkpoints.tidy(self.state.steps(self._steps))
        self._metrics_log.resume(self.state.steps(self._steps))
        if weights is None:
            return
        try:
            self._checkpoint.read(str(weights)).expect_partial()
        except (tf.errors.OpError, ValueError, IndexError) as error:
            what = f"cannot be restored ({type(error).__name__})"
            raise UserError(str(weights.parent), what, "pass --overwrite to start anew") from error

    def begin_with(self, base: BaseRun) -> None:
        """Begin with a model of the data set before, grown to this one's tables."""
        # Beside the run: what has room for that has room for these.
        beside = None if is_remote(self._out) or not self._writes else self._out
        with tempfile.TemporaryDirectory(prefix=".clsd-", dir=beside) as made, self._strategy.scope():
            self.restore(expand_checkpoint(base, self._model, Path(made)))
        console.print(f"begins with the model of {base.directory}", highlight=False, soft_wrap=True)

    def go(self, until: int | None = None) -> State:
        """Train to the end, or until so many steps are done in all.

        Raises:
            UserError: the loss is not finite, the run collapsed, a shard is damaged, the disk is full.
            Terminated: see there.
        """
        before = signal.signal(signal.SIGTERM, self._terminate) if _is_main_thread() else None
        try:
            begins = digest_of([self.state.fingerprint, self.state.steps(self._steps)])
            if len(set(self._machines.tell(int(begins[:8], 16)))) > 1:
                what = "the machines differ in where they begin, or in their settings or data"
                raise UserError("train", what, "give all of them the same config, --dataset and --out")
            return self._go(until)
        finally:
            self._profiler.close()
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def end(self) -> None:
        """Leave no machine before the first one has written all: one that is killed until then finds the others to go on with."""
        self._machines.tell(1)

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    def _go(self, until: int | None) -> State:
        settings, state = self._config.train, self.state
        total = settings.epochs * self._steps
        if state.steps(self._steps):
            within = f" and {state.step} of {self._steps} steps" if state.step else ""
            console.print(f"going on after epoch {state.epoch} of {settings.epochs}{within}", highlight=False)
        elif settings.batch_size > self._dataset.rows("train"):
            rows = self._dataset.rows("train")
            _warn(f"train.batch_size {settings.batch_size} is more than the {rows} rows")
        if self._config.confidence.weighted:
            if self._model.warmup_steps >= total:
                _warn(f"the warm-up takes all {total} steps: no click will be weighted")
            if expected := known_to_collapse(self._config.confidence, self._dataset.ctr("train")):
                _warn(expected)
        end = total if until is None else min(until, total)
        while state.steps(self._steps) < end and not state.stopped:
            totals = self._epoch(min(self._steps, end - state.epoch * self._steps))
            if state.step < self._steps:  # a warm-up ended within the epoch
                self._save(totals)
                break
            result = {name: float(value) for name, value in step_metrics.metrics_from(totals).items()}
            measured = self._validate()
            self._keep(result, measured)
            self._say(result, measured)
            if self._asked_to_end():
                raise Terminated
        return state

    def _epoch(self, last: int) -> Any:
        """Steps of the running epoch up to ``last``; the totals of the epoch so far."""
        config, state, number = self._config, self.state, self.state.epoch + 1
        iterator = self._reader(number)
        warmup = self._model.warmup_steps - state.epoch * self._steps  # its end, as a step of this epoch
        weighted = config.confidence.weighted
        title = f"epoch {number}/{config.train.epochs}" + (" (warm-up)" if weighted and warmup >= last else "")
        totals = _as_sums(state.totals)
        last_auc = state.history[-1]["validation"].get("auc") if state.history else None
        auc = f"  auc {last_auc:.4f} after epoch {state.epoch}" if last_auc is not None else ""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        with (
            Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar,
            reading(self._dataset),
        ):
            task = bar.add_task(title, total=self._steps, completed=state.step, shown="")
            while state.step < last:
                stops = [last, state.step + config.train.steps_per_call, *([warmup] if warmup > state.step else [])]
                now = min(stops) - state.step
                started, traces = time.perf_counter(), self._run_steps.experimental_get_tracing_count()
                with self._profiler.call():
                    result = self._run_steps(iterator, tf.constant(now))
                shown = {name: float(value) for name, value in step_metrics.metrics_from(result).items()}
                if state.step >= warmup:
                    state.weighted_steps += now
                    if self._run_steps.experimental_get_tracing_count() == traces:
                        state.seconds += time.perf_counter() - started
                        state.timed_steps += now
                state.step += now
                totals = step_metrics.merged(tf.stack([totals, result]))
                # R-CE's weights are small by design, the smaller the lower the CTR: no sign of a collapse.
                watched = weighted and config.confidence.control != "rce"
                self._look(shown, result, now, watched and state.step > warmup)
                rate = now * config.train.batch_size / (time.perf_counter() - started)
                bar.update(task, advance=now, shown=f"{rate:,.0f} rows/s  loss {shown['loss']:.4f}{auc}")
                done = state.steps(self._steps)
                self._metrics_log.note("train", done, {**shown, "rows_per_second": rate, **self._teacher_age(done)})
                if state.step < last and ((terminated := self._asked_to_end()) or self._is_due()):
                    self._save(totals)
                    if terminated:
                        raise Terminated
        return totals

    def _asked_to_end(self) -> bool:
        """Whether any machine had SIGTERM: all of them end after the same step."""
        return any(self._machines.tell(self._terminated))

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved >= 60 * self._config.train.checkpoint_minutes

    def _reader(self, number: int) -> Any:
        """Batches of an epoch from the state's step on."""
        config, dataset = self._config, self._dataset
        columns: tuple[str, ...] = TRAINING_COLUMNS
        if config.confidence.weighted and config.confidence.source == "intensity":
            columns = (*columns, "intensity")
        cached = self._cache(number)
        data = batches(
            dataset.schema,
            dataset.files("train"),
            config.train.batch_size,
            shuffle_seed=config.seed * 1_000_003 + number,
            columns=(*columns, "key") if cached else columns,
            rows_per_block=dataset.rows_per_block,
            first_batch=self.state.step,
            file_rows=dataset.file_rows("train"),
        )
        data = data.map(cached) if cached else data
        return iter(distribute(self._strategy, data))

    def _cache(self, number: int) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """The lookup of teacher's scores for an epoch that is weighted from its first step on, if one pays."""
        # By where the warm-up ended and not by where a resumed run stands: both must read the same.
        first_whole = -(-self._model.warmup_steps // self._steps) + 1
        left = self._config.train.epochs - first_whole + 1
        if number < first_whole or not teacher_cache.worth_it(self._config, self._dataset.clicks("train"), left):
            return None
        if self._cached is None:
            if self.state.steps(self._steps) == self._model.warmup_steps:
                self._model.copy_teacher()  # as the first weighted step would
            self._cached = teacher_cache.lookup(*teacher_cache.click_scores(self._model, self._dataset))
        return self._cached

    def _look(self, shown: dict[str, float], result: Any, steps: int, watched: bool) -> None:
        """Stop at a loss that is no number, or at a window of weighted steps that collapsed."""
        state, settings = self.state, self._config.train.monitor
        if not math.isfinite(shown["loss"]):
            step = state.epoch * self._steps + state.step
            what = f"the loss is {shown['loss']} by step {step}"
            raise UserError("train", what, "lower the learning rates, then run again")
        if not watched or state.collapsed:
            return
        seen = _as_sums(state.window)
        state.window = _as_list(step_metrics.merged(tf.stack([seen, result])))
        state.window_steps += steps
        if state.window_steps >= settings.window_steps:
            self._judge()

    def _judge(self) -> None:
        """Look at the window that is open, and open the next one."""
        state, settings = self.state, self._config.train.monitor
        window = _as_sums(state.window)
        problem = self._monitor.problem({k: float(v) for k, v in step_metrics.metrics_from(window).items()})
        state.window, state.window_steps = [], 0
        if not problem:
            return
        at = f"by step {state.epoch * self._steps + state.step}"
        if settings.action == "stop":
            hint = "set confidence.blend: 1.0 or confidence.teacher: frozen; or lower that bound if you mean it"
            raise UserError("train", f"the run collapsed {at}: {problem}", hint)
        state.collapsed = f"{problem} {at}"
        _warn(f"the run collapsed: {state.collapsed}")

    def _validate(self) -> Measured:
        if not self._validates:
            return Measured({}, {"auc": "the data set has no validation split"})
        rows = self._scorer.score("validation")
        user = rows["user"] if self._dataset.schema.user else None
        measured = measure(rows["label"], rows["logit"], user)
        calibrated = measure(rows["label"], rows["ctr_logit"])
        measured.values.update(
            (f"ctr_{name}", calibrated.values[name])
            for name in ("log_loss", "ece", "predicted_over_real")
            if name in calibrated.values
        )
        done = (self.state.epoch + 1) * self._steps
        self._metrics_log.note("validation", done, measured.values)
        if self._config.confidence.weighted and (by_group := confidence_by_group(self._dataset, rows)):
            self._metrics_log.note("confidence", done, by_group)
        return measured

    def _keep(self, result: dict[str, float], measured: Measured) -> None:
        """Checkpoint the epoch, keep the best one, decide whether to stop."""
        state, stopping = self.state, self._config.train.early_stopping
        state.epoch, state.step, state.totals = state.epoch + 1, 0, []
        state.history.append({"epoch": state.epoch, "train": result, "validation": measured.values})
        after_warmup = state.epoch * self._steps > self._model.warmup_steps
        value = measured.values.get(stopping.metric) if stopping else None
        # A model of the warm-up is no candidate: what is kept must have been trained with the weights.
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
        window, ends = (
            self._config.train.monitor.window_steps,
            state.stopped or state.epoch == self._config.train.epochs,
        )
        if ends and (state.weighted_steps < window or 2 * state.window_steps >= window):
            self._judge()  # the last window may be a short one; a very short one says nothing, unless it is the only one
        self._save(None)

    def _write_best(self) -> None:
        if not self._writes:
            return
        best = self._out / BEST
        with whole_directory(best.parent, marker=f"{best.name}.index", overwrite=True) as aside:
            self._checkpoint.write(str(aside / best.name))

    def _save(self, totals: Any) -> None:
        """A checkpoint of the model and the state, with the totals of an epoch that is not done."""
        state = self.state
        state.totals = [] if totals is None else _as_list(totals)
        if self._writes:
            self._metrics_log.write()
            self._checkpoints.save(state.steps(self._steps), self._checkpoint.write, asdict(state))
        self._saved = time.monotonic()

    def _teacher_age(self, step: int) -> dict[str, float]:
        """Steps since the frozen teacher was copied."""
        settings, since = self._config.confidence, step - self._model.warmup_steps
        if settings.teacher != "frozen" or not self._model.asks_teacher or since <= 0:
            return {}
        return {"teacher_age": (since - 1) % settings.refresh_steps + 1 if settings.refresh_steps else since}

    def _say(self, result: dict[str, float], measured: Measured) -> None:
        epoch, best = self.state.epoch, self.state.best_epoch
        shown = [f"epoch {epoch:>2}/{self._config.train.epochs}", f"loss {result['loss']:.4f}"]
        shown.append(f"predicted/real CTR {result['predicted_ctr'] / max(result['ctr'], 1e-12):.3f}")
        shown += [
            f"validation {n} {measured.values[n]:.4f}" for n in ("auc", "gauc", "log_loss") if n in measured.values
        ]
        weighted = self._config.confidence.weighted
        if weighted:
            shown.append(f"effective clicks {result['effective_clicks']:.1%}")
        warming = weighted and epoch * self._steps <= self._model.warmup_steps
        kept = "best" if self.state.best_value is not None else "kept"
        mark = "  warm-up" if warming else f"  [green]{kept}[/green]" if best == epoch else ""
        console.print("  ".join(shown) + mark, highlight=False, soft_wrap=True)
        if self.state.stopped:
            console.print(f"stopped early: {self.state.stopped}; epoch {best} is kept", highlight=False)


def _as_sums(listed: Sequence[float | None]) -> Any:
    """What :func:`_as_list` made a list of; of an empty one the totals of no batch."""
    nothing = step_metrics.empty_sums()
    if not listed:
        return nothing
    return tf.constant([none if total is None else total for none, total in zip(nothing.numpy(), listed, strict=True)])


def _as_list(totals: Any) -> list[float | None]:
    """Totals as JSON takes them: the extremes of no click at all are infinite, and absent."""
    return [None if np.isinf(total) else float(total) for total in totals.numpy()]


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _warn(text: str) -> None:
    console.print(f"[yellow]warning[/yellow] {text}", highlight=False, soft_wrap=True)
