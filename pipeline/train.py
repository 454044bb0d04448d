"""A data set to a trained model."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from features.errors import UserError
from features.parse import batches
from features.schema import digest_of
from features.tf_runtime import tf
from models.clsd import SUMS, ClsdModel
from models.inputs import InputSpec
from models.metrics import Measured, measure
from pipeline.config import Config, dump_config, load_config
from pipeline.dataset import Dataset
from pipeline.files import clear_errors, make_directory, read_json, require_ours, write_json, write_text
from pipeline.progress import console
from pipeline.scoring import Scorer, reading
from pipeline.strategy import make_reproducible, make_strategy
from pipeline.versions import versions

RUN_FILE = "run.json"
_BEST = "best/weights"


@dataclass
class State:
    """How far a run came; written after each epoch's checkpoint, so it never names one that is not whole."""

    fingerprint: str
    epoch: int = 0
    checkpoint: str = ""
    best_epoch: int = 0
    best_value: float | None = None
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


def build_model(config: Config, dataset: Dataset) -> ClsdModel:
    """The model that a config describes, for a data set; to be called inside the strategy's scope."""
    transform = dataset.transform
    names = [*(f.name for f in config.rows.categorical), *(f.name for f in config.rows.bucketed)]
    spec = InputSpec.build(config.rows, {name: transform.table_size(name) for name in names})
    return ClsdModel(
        spec,
        config.model,
        config.confidence,
        warmup_steps=_warmup_steps(config, dataset),
        embedding_optimizer=config.train.embedding_optimizer,
        dense_optimizer=config.train.dense_optimizer,
        l2=config.train.l2,
        prior_ctr=min(max(dataset.ctr("train"), 1e-6), 1 - 1e-6),
    )


def load_trained(directory: Path, dataset: Dataset) -> tuple[Config, ClsdModel]:
    """The config and the best model of a finished run, on one device.

    Raises:
        UserError: no finished run there, or one of another data set.
    """
    run = read_json(directory / RUN_FILE, "finished training run", "run `clsd train` first")
    if run["dataset_fingerprint"] != dataset.manifest["fingerprint"]:
        raise UserError(
            str(directory), f"was not trained on {dataset.directory}", "train again, or name the right --dataset"
        )
    config = load_config(directory / "config.yaml")
    model = build_model(config, dataset)
    try:
        tf.train.Checkpoint(model=model).read(str(directory / _BEST)).expect_partial().assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
        raise UserError(
            str(directory / _BEST), f"cannot be restored ({type(error).__name__})", "train again with --overwrite"
        ) from error
    return config, model


def train(config: Config, dataset: Dataset, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train, with a checkpoint an epoch; a run that was stopped goes on after its last whole epoch.

    Args:
        config: the whole run's settings.
        dataset: what to train on.
        out: directory for config.yaml, versions, checkpoints, history, TensorBoard events, and, last, run.json.
        overwrite: start anew whatever is in ``out``.

    Returns:
        the content of run.json.

    Raises:
        UserError: the config does not fit the data set, ``out`` holds another run, the disk is full, a shard is damaged.
    """
    dataset.require(config.rows)
    fingerprint = run_fingerprint(config, dataset)
    if overwrite:
        require_ours(out, (RUN_FILE, "state.json", "config.yaml"))
    if (out / RUN_FILE).exists() and not overwrite:
        run = read_json(out / RUN_FILE, "run", "")
        if run["fingerprint"] == fingerprint:
            return dict(run)
        raise UserError(str(out), "holds a run of other settings or data", "choose another --out, or pass --overwrite")
    state = State(fingerprint) if overwrite else _state(out, fingerprint)
    make_reproducible(config.seed, config.train.deterministic)
    strategy = make_strategy(config.train.replicas, config.train.batch_size)
    with strategy.scope():  # variables must be created here to be mirrored, the optimizers' with them
        model = build_model(config, dataset)
    with clear_errors(str(out)):
        if overwrite and out.exists():  # not before all that can be refused has been looked at
            shutil.rmtree(out)
        make_directory(out)
        write_text(out / "config.yaml", dump_config(config))
        write_json(out / "versions.json", versions())
        return _Run(config, dataset, out, strategy, model, state).go()


def run_fingerprint(config: Config, dataset: Dataset) -> str:
    """Equal if and only if the same training would run."""
    parts = config.model_dump(mode="json", include={"seed", "rows", "model", "confidence", "train"}, by_alias=True)
    parts["dataset"] = dataset.manifest["fingerprint"]
    return digest_of(parts)


def _steps_per_epoch(config: Config, dataset: Dataset) -> int:
    return -(-dataset.rows("train") // config.train.batch_size)


def _warmup_steps(config: Config, dataset: Dataset) -> int:
    if config.confidence.warmup_steps is not None:
        return config.confidence.warmup_steps
    return round(config.confidence.warmup_epochs * _steps_per_epoch(config, dataset))


def _state(out: Path, fingerprint: str) -> State:
    if not (out / "state.json").exists():
        return State(fingerprint)
    state = State(**read_json(out / "state.json", "run", "pass --overwrite to start anew"))
    if state.fingerprint != fingerprint:
        raise UserError(str(out), "holds a run of other settings or data", "choose another --out, or pass --overwrite")
    return state


class _Run:
    """One training run: the loop over epochs and what it leaves on disk."""

    def __init__(
        self, config: Config, dataset: Dataset, out: Path, strategy: Any, model: ClsdModel, state: State
    ) -> None:
        self._config, self._dataset, self._out, self._state = config, dataset, out, state
        self._strategy, self._model = strategy, model
        self._checkpoint = tf.train.Checkpoint(model=model)
        keep = config.train.keep_checkpoints
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(out / "checkpoints"), max_to_keep=keep)
        self._validates = dataset.rows("validation") > 0
        self._scorer = Scorer(model, dataset, strategy)
        self._writer = tf.summary.create_file_writer(str(out / "tensorboard")) if config.train.tensorboard else None

        @tf.function
        def run_steps(iterator: Any, steps: Any) -> Any:
            total = tf.zeros([len(SUMS)])
            for _ in tf.range(steps):
                sums = strategy.run(model.train_sums, args=(next(iterator),))
                total += strategy.experimental_local_results(sums)[0]  # the same on every replica
            return total

        self._run_steps = run_steps

    def go(self) -> dict[str, Any]:
        settings, state = self._config.train, self._state
        total = settings.epochs * _steps_per_epoch(self._config, self._dataset)
        if settings.batch_size > self._dataset.rows("train"):
            rows = self._dataset.rows("train")
            console.print(
                f"[yellow]warning[/yellow] train.batch_size {settings.batch_size} is more than the {rows} rows"
            )
        if self._config.confidence.weighted and self._model.warmup_steps >= total:
            console.print(f"[yellow]warning[/yellow] the warm-up takes all {total} steps: no click will be weighted")
        if state.checkpoint:
            path = self._out / "checkpoints" / state.checkpoint
            try:
                self._checkpoint.restore(str(path)).expect_partial()
            except (tf.errors.OpError, ValueError, IndexError) as error:
                what = f"cannot be restored ({type(error).__name__})"
                raise UserError(str(path), what, "pass --overwrite to start anew") from error
            console.print(f"going on after epoch {state.epoch} of {settings.epochs}")
        while state.epoch < settings.epochs and not state.stopped:
            figures = self._epoch(state.epoch + 1)
            measured = self._validate()
            self._keep(figures, measured)
            self._say(figures, measured)
        run = {
            "fingerprint": state.fingerprint,
            "dataset_fingerprint": self._dataset.manifest["fingerprint"],
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "stopped": state.stopped or "all epochs done",
            "warmup_steps": self._model.warmup_steps,
            "history": state.history,
        }
        write_json(self._out / RUN_FILE, run)
        return run

    def _epoch(self, number: int) -> dict[str, float]:
        config = self._config
        data = batches(
            self._dataset.schema,
            self._dataset.files("train"),
            config.train.batch_size,
            shuffle_seed=config.seed * 1_000_003 + number,
            rows_per_block=self._dataset.rows_per_block,
        )
        iterator = iter(self._strategy.experimental_distribute_dataset(data))
        steps = _steps_per_epoch(config, self._dataset)
        first = self._model.warmup_steps >= number * steps
        title = f"epoch {number}/{config.train.epochs}" + (" (warm-up)" if first and config.confidence.weighted else "")
        total = [0.0] * len(SUMS)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        with (
            Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar,
            reading(self._dataset),
        ):
            task = bar.add_task(title, total=steps, shown="")
            for done in range(0, steps, config.train.steps_per_call):
                now = min(config.train.steps_per_call, steps - done)
                sums = self._run_steps(iterator, tf.constant(now))
                figures = {name: float(value) for name, value in ClsdModel.figures(sums).items()}
                total = [t + float(s) for t, s in zip(total, sums.numpy(), strict=True)]
                if not math.isfinite(figures["loss"]):
                    step = (number - 1) * steps + done + now
                    raise UserError(
                        "train",
                        f"the loss is {figures['loss']} by step {step}",
                        "lower the learning rates, then run again",
                    )
                bar.update(task, advance=now, shown=f"loss {figures['loss']:.4f}")
                self._summarise("train", figures)
        return {name: float(value) for name, value in ClsdModel.figures(total).items()}

    def _validate(self) -> Measured:
        if not self._validates:
            return Measured({}, {"auc": "the data set has no validation split"})
        rows = self._scorer.score("validation")
        measured = measure(rows["label"], rows["logit"], rows["user"] if self._dataset.schema.user else None)
        self._summarise("validation", measured.values)
        return measured

    def _keep(self, figures: dict[str, float], measured: Measured) -> None:
        """Checkpoint the epoch, keep the best one, decide whether to stop; state.json comes last."""
        state, stopping = self._state, self._config.train.early_stopping
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "train": figures, "validation": measured.values})
        steps = state.epoch * _steps_per_epoch(self._config, self._dataset)
        after_warmup = not self._config.confidence.weighted or steps > self._model.warmup_steps
        value = measured.values.get(stopping.metric) if stopping else None
        # A model of the warm-up is no candidate: what is kept must have been trained with the weights.
        improved = (
            value is None
            or state.best_value is None
            or (value > state.best_value) == (stopping is not None and stopping.mode == "max")
        )
        if (after_warmup and improved) or state.best_epoch == 0:
            self._checkpoint.write(str(self._out / _BEST))
            state.best_epoch, state.best_value = state.epoch, value if after_warmup else None
        elif stopping and after_warmup and state.epoch - state.best_epoch >= stopping.patience:
            state.stopped = f"{stopping.metric} did not improve for {stopping.patience} epochs"
        state.checkpoint = Path(self._manager.save(checkpoint_number=state.epoch)).name
        write_json(self._out / "state.json", asdict(state))

    def _summarise(self, name: str, figures: dict[str, float]) -> None:
        if self._writer is None:
            return
        with self._writer.as_default(step=self._model.step):
            for figure, value in figures.items():
                tf.summary.scalar(f"{name}/{figure}", value)

    def _say(self, figures: dict[str, float], measured: Measured) -> None:
        epoch, best = self._state.epoch, self._state.best_epoch
        shown = [f"epoch {epoch:>2}/{self._config.train.epochs}", f"loss {figures['loss']:.4f}"]
        shown.append(f"predicted/real CTR {figures['predicted_ctr'] / max(figures['ctr'], 1e-12):.3f}")
        shown += [
            f"validation {n} {measured.values[n]:.4f}" for n in ("auc", "gauc", "log_loss") if n in measured.values
        ]
        if self._config.confidence.weighted:
            shown.append(f"effective clicks {figures['effective_clicks']:.1%}")
        warming = (
            self._config.confidence.weighted
            and epoch * _steps_per_epoch(self._config, self._dataset) <= self._model.warmup_steps
        )
        mark = "  warm-up" if warming else "  [green]best[/green]" if best == epoch else ""
        console.print("  ".join(shown) + mark, highlight=False, soft_wrap=True)
        if self._state.stopped:
            console.print(f"stopped early: {self._state.stopped}; epoch {best} is kept", highlight=False)
