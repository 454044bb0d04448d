"""Train a model on a data set (`clsd train`)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.features.schema import digest_of
from clsd.features.tf_runtime import register_file_systems
from clsd.models.settings import ConfidenceSettings
from clsd.pipeline.shared.checksums import describe_file, require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import (
    LOCK,
    as_user_errors,
    clear,
    directory_lock,
    refuse_foreign_directory,
    write_text,
)
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.package_versions import versions
from clsd.pipeline.shared.progress import say_there_already
from clsd.pipeline.training.checkpoints import CHECKPOINTS, RUN_FILE, Checkpoints, read_run
from clsd.pipeline.training.loop import TrainingLoop
from clsd.pipeline.training.popularity import item_feature
from clsd.pipeline.training.run_state import RunState, steps_per_epoch, warmup_steps
from clsd.pipeline.training.strategy import (
    compile_by_xla,
    is_chief,
    lost_machines_reported,
    make_reproducible,
    make_strategy,
)
from clsd.pipeline.training.trained_model import build_model
from clsd.pipeline.training.warm_start import load_base_run, require_compatible

WARMUP_FILE = "warmup.json"


def train(
    config: Config,
    dataset: Dataset,
    out: str | Path,
    *,
    overwrite: bool = False,
    start: Path | None = None,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model. A stopped or killed run resumes after its newest checkpoint, with the result of an uninterrupted run.

    Args:
        config: the whole run's settings.
        dataset: what to train on.
        out: directory for config.yaml, versions, checkpoints, the best weights, TensorBoard events, and, last, run.json.
        overwrite: start anew, whatever run is in ``out``.
        start: directory of :func:`warm_up` for this config, from which the warm-up is taken. The result does not change.
        base: what to start from: a finished run on the base of this data set, or the model exported from that run. See
            :mod:`clsd.pipeline.training.warm_start`.

    Returns:
        the content of run.json.

    Raises:
        UserError: the config does not fit the data set, ``out`` holds another run, the disk is full, a shard is damaged, the
            run collapsed, no checkpoint is intact.
        Terminated: by SIGTERM, after a checkpoint.
    """
    out, base = as_path(out), as_path(base) if base else None
    dataset.require(config.row_schema)
    if base and base.resolve() == out.resolve():
        raise UserError(str(out), "is the base run, and would be overwritten", "choose another --out")
    base_run = load_base_run(base) if base else None
    if base_run:
        require_compatible(config, dataset, base_run)
    fingerprint = run_fingerprint(config, dataset, base_run.fingerprint if base_run else "")
    refuse_foreign_directory(
        out, (RUN_FILE, "config.yaml", LOCK)
    )  # LOCK may be the only file: another machine of the job came first
    if (out / RUN_FILE).exists() and not overwrite:
        run = read_run(out, "pass --overwrite to start anew")
        if run["fingerprint"] == fingerprint:
            require_unchanged(out, run["files"], "restore it, or pass --overwrite to start anew")
            say_there_already()
            return dict(run)
        raise UserError(
            str(out), "holds a run of other settings or data", "choose another --out or --runs, or pass --overwrite"
        )
    warmup_fingerprint = run_fingerprint(_warmup_config(config, dataset), dataset)
    with as_user_errors(str(out)), directory_lock(out) if is_chief() else nullcontext(), lost_machines_reported():
        state, weights = (
            (RunState(fingerprint), None) if overwrite else _load_state(out, fingerprint, start, warmup_fingerprint)
        )
        loop = _make_loop(config, dataset, out, state, overwrite=overwrite)
        if base_run and weights is None:
            loop.start_from(base_run)
        else:
            loop.restore(weights)
        state = loop.fit()
        run = {
            "fingerprint": fingerprint,
            "dataset_fingerprint": dataset.manifest["fingerprint"],
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "stopped": state.stopped or "all epochs done",
            "collapsed": state.collapsed,
            "warmup_steps": warmup_steps(config, dataset),
            "seconds_per_step": state.seconds / state.timed_steps if state.timed_steps else None,
            "history": state.history,
            "base": {"run": str(base), "fingerprint": base_run.fingerprint} if base_run else None,
        }
        if is_chief():
            require_unchanged(out, state.best_files, "pass --overwrite to start anew")
            run["files"] = [describe_file(out, "config.yaml"), *state.best_files]
            write_json(out / RUN_FILE, run)
        loop.wait_for_chief()
    return run


def warm_up(config: Config, dataset: Dataset, out: Path, *, overwrite: bool = False) -> None:
    """Train the warm-up once, as the start of all configs that differ from this one in ``confidence`` only.

    Args:
        config: the settings; of ``confidence``, only the length of the warm-up is used.
        dataset: what to train on.
        out: directory. A stopped warm-up is resumed, a finished one is left alone.
        overwrite: start anew if ``out`` holds a warm-up of other settings or data.

    Raises:
        UserError: as :func:`train`; or the warm-up takes all steps of the training.
    """
    steps, total = warmup_steps(config, dataset), config.train.epochs * steps_per_epoch(config, dataset)
    if steps >= total:
        what = f"the warm-up takes all {total} steps"
        raise UserError("confidence.warmup_epochs", what, "raise train.epochs, or shorten the warm-up")
    config = _warmup_config(config, dataset)
    fingerprint = run_fingerprint(config, dataset)
    with as_user_errors(str(out)), directory_lock(out):
        newest = Checkpoints(out / CHECKPOINTS).newest() if overwrite else None
        differs = newest is not None and newest[1]["fingerprint"] != fingerprint
        state, weights = (RunState(fingerprint), None) if differs else _load_state(out, fingerprint)
        if (out / WARMUP_FILE).exists() and not differs:
            return
        loop = _make_loop(config, dataset, out, state, overwrite=differs)
        loop.restore(weights)
        loop.fit(until=steps)
        write_json(out / WARMUP_FILE, {"fingerprint": fingerprint, "steps": steps})


def run_fingerprint(config: Config, dataset: Dataset, base: str = "") -> str:
    """Fingerprint of a training: equal if and only if the trainings are. ``base`` is the fingerprint of the base run."""
    parts = config.model_dump(
        mode="json", include={"seed", "row_schema", "model", "confidence", "train"}, by_alias=True
    )
    for name in (
        "checkpoint_minutes",
        "keep_checkpoints",
        "tensorboard",
        "profile_calls",
    ):  # they do not change the result
        parts["train"].pop(name)
    parts["dataset"] = dataset.manifest["fingerprint"]
    if base:
        parts["base"] = base
    if config.confidence.counts_items and (item := item_feature(config)):
        parts["item"] = item.name
    return digest_of(parts)


def _warmup_config(config: Config, dataset: Dataset) -> Config:
    """The config of the warm-up: equal for all configs that differ in ``confidence`` only and warm up for equally many steps."""
    plain = ConfidenceSettings(preset="plain", warmup_steps=warmup_steps(config, dataset))
    return config.model_copy(update={"confidence": plain})


def _load_state(
    out: Path, fingerprint: str, start: Path | None = None, start_fingerprint: str = ""
) -> tuple[RunState, Path | None]:
    """A run's state and the weights that belong to it; ``start_fingerprint`` is the fingerprint of ``start``."""
    if newest := Checkpoints(out / CHECKPOINTS).newest():
        weights, state = newest[0], RunState.from_json(newest[1])
        if state.fingerprint != fingerprint:
            raise UserError(
                str(out), "holds a run of other settings or data", "choose another --out or --runs, or pass --overwrite"
            )
        return state, weights
    # A warm-up of 0 steps leaves no checkpoint.
    newest = Checkpoints(start / CHECKPOINTS).newest() if start else None
    if newest is None:
        return RunState(fingerprint), None
    weights, state = newest[0], RunState.from_json(newest[1])
    if state.fingerprint != start_fingerprint:
        raise UserError(str(start), "is the warm-up of other settings or data", "pass --overwrite")
    state.fingerprint, state.best_epoch, state.best_value, state.best_files = fingerprint, 0, None, []
    state.weighted_steps, state.seconds, state.timed_steps = 0, 0.0, 0
    return state, weights


def _make_loop(config: Config, dataset: Dataset, out: Path, state: RunState, *, overwrite: bool) -> TrainingLoop:
    register_file_systems([out])
    make_reproducible(config.seed, config.train.deterministic)
    compile_by_xla(config.train.xla)
    strategy = make_strategy(config.train.replicas, config.train.batch_size)
    with strategy.scope():  # variables, also the optimizers', must be created here to be mirrored
        model = build_model(config, dataset, config.train.precision)
        model.create_slots()  # a first step that creates variables is traced twice
    if is_chief():
        if overwrite:  # only after all checks have passed
            clear(out)
        write_text(out / "config.yaml", dump_config(config))
        write_json(out / "versions.json", versions())
    return TrainingLoop(config, dataset, out, strategy, model, state)
