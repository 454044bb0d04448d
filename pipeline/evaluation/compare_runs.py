"""Compare variants of the method with its controls over several seeds: train and measure each pair of seed and variant.

All variants of a seed start from one warm-up, so they differ only in their ``confidence`` settings. Each run writes
``result.json`` last; a killed comparison resumes with the runs that are missing::

    compare/seed-1/warmup/  compare/seed-1/<variant>/{config.yaml, best/, scores.npz, result.json}  compare/compare.json
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.features.schema import digest_of
from clsd.pipeline.evaluation.compare_summary import compare_results
from clsd.pipeline.evaluation.compare_variants import WARMUP, choose
from clsd.pipeline.shared.checksums import describe_file, require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import make_directory, refuse_foreign_directory, write_text
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.shared.loaders import read_arrays
from clsd.pipeline.shared.progress import console, say, styled, warn

COMPARE_FILE = "compare.json"
REPORT_FILE = "report.html"
TABLES_FILE = "compare.md"
LOG_FILE = "log.txt"
RESULT_FILE = "result.json"
SCORES_FILE = "scores.npz"


def compare(
    config: Config,
    dataset: Dataset,
    out: str | Path,
    *,
    variants: list[str],
    seeds: int,
    jobs: int = 1,
    controls: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and measure each variant with each seed, and write ``compare.json``, ``compare.md`` and ``report.html``.

    Args:
        config: the settings; ``confidence`` is the configured method.
        dataset: what to train and measure on.
        out: the comparison's directory.
        variants: names of variants besides the controls, see :mod:`clsd.pipeline.evaluation.compare_variants`.
        seeds: number of trainings of each variant, with the seeds ``config.seed``, ``config.seed + 1``, …
        jobs: number of processes that train at the same time and share the cores.
        controls: whether to include the controls.
        overwrite: replace runs of other settings.

    Returns:
        the content of compare.json.

    Raises:
        UserError: an unknown variant, a run that fails, results of other settings in ``out``.
    """
    from clsd.pipeline.evaluation.compare_report import markdown, render

    out = as_path(out)
    dataset.require(config.row_schema)
    chosen, left_out = choose(config, variants, controls=controls)
    for name, reason in left_out.items():
        say(styled(("left out", "yellow"), f" {name}: {reason}"))
    refuse_foreign_directory(out, (LOG_FILE, COMPARE_FILE))
    if "tce" in chosen:
        _warn_of_ramp(chosen["tce"], dataset)
    make_directory(out)
    started = time.monotonic()
    seed_numbers = [config.seed + i for i in range(seeds)]
    tasks = [
        (variant_config.model_copy(update={"seed": seed}), name, seed)
        for seed in seed_numbers
        for name, variant_config in chosen.items()
    ]
    names, first = list(chosen), next(iter(chosen.values()))
    with _workers(out, jobs) as submit, _progress(len(seed_numbers) + len(tasks)) as done:
        # Warm-ups come first because all runs need them. Then runs go seed by seed, so that the first seed is complete early.
        warmups = {
            seed: submit(
                _warm_up, first.model_copy(update={"seed": seed}), dataset.directory, out, seed, names, overwrite
            )
            for seed in seed_numbers
        }
        seed_of = {future: seed for seed, future in warmups.items()}
        for future in as_completed(seed_of):
            done(f"warm-up seed {seed_of[future]}", future.result())
        runs = {
            submit(_run, variant_config, dataset.directory, out, name, seed, overwrite): (name, seed)
            for variant_config, name, seed in tasks
        }
        for future in as_completed(runs):
            done("{} seed {}".format(*runs[future]), future.result())
    results = {
        name: {
            seed: read_json(_run_dir(out, seed, name) / RESULT_FILE, "result", "run it again") for seed in seed_numbers
        }
        for name in chosen
    }
    comparison = compare_results(config, results, _bootstraps(config, dataset, out, names, seed_numbers[0]))
    comparison |= {"left_out": left_out, "seconds": round(time.monotonic() - started, 1)}
    write_json(out / COMPARE_FILE, comparison)
    write_text(out / TABLES_FILE, markdown(comparison))
    write_text(out / REPORT_FILE, render(config, dataset.manifest, comparison))
    return comparison


def _warn_of_ramp(config: Config, dataset: Dataset) -> None:
    from clsd.pipeline.training.run_state import steps_per_epoch, warmup_steps

    ramp = config.confidence.tce_ramp_steps
    weighted = config.train.epochs * steps_per_epoch(config, dataset) - warmup_steps(config, dataset)
    if ramp > weighted:
        what = f"tce needs {ramp} steps to reach its share of dropped clicks, but has {weighted}: it will be close to plain"
        hint = f"set confidence.tce_ramp_steps={max(weighted // 4, 1)}"
        warn(f"{what}; {hint}")


def _run_dir(out: Path, seed: int, name: str) -> Path:
    return out / f"seed-{seed}" / name


# ---------------------------------------------------------------- in the worker


def _warm_up(config: Config, dataset_dir: Path, out: Path, seed: int, names: list[str], overwrite: bool) -> str:
    """Train the warm-up of the variants ``names``, unless all of their results are there."""
    from clsd.pipeline.training.train import WARMUP_FILE, warm_up

    exists = not overwrite and (_run_dir(out, seed, WARMUP) / WARMUP_FILE).exists()
    if not overwrite and all((_run_dir(out, seed, name) / RESULT_FILE).exists() for name in names):
        return "not needed"
    with _logged(out, f"seed {seed} warm-up"):
        warm_up(config, Dataset.load(dataset_dir), _run_dir(out, seed, WARMUP), overwrite=overwrite)
    return "already done" if exists else ""


def _run(config: Config, dataset_dir: Path, out: Path, name: str, seed: int, overwrite: bool) -> str:
    """Train and measure one variant with one seed, unless its result is there. If only the settings of the measurement changed,
    measure again without training."""
    from clsd.pipeline.training.checkpoints import RUN_FILE
    from clsd.pipeline.training.train import run_fingerprint, train

    dataset, run_dir = Dataset.load(dataset_dir), _run_dir(out, seed, name)
    fingerprint, measured = run_fingerprint(config, dataset), _measurement_fingerprint(config)
    existing_fingerprint = _fingerprint_of(run_dir, overwrite) if (run_dir / RUN_FILE).exists() else ""
    if (run_dir / RESULT_FILE).exists():
        result = _read_again(run_dir / RESULT_FILE, overwrite)
        same = result.get("of") == [name, seed, fingerprint] and result.get("measured") == measured
        if existing_fingerprint == fingerprint and same:
            require_unchanged(run_dir, result["files"], "remove result.json there to measure it again")
            return "already done"
        if existing_fingerprint != fingerprint and not overwrite:
            what = "holds the result of other settings or data"
            raise UserError(str(run_dir), what, "pass --overwrite, or choose another --out or --runs")
        (run_dir / RESULT_FILE).unlink()  # an unfinished run must not have a result
    with _logged(out, f"seed {seed} {name}"):
        if overwrite and existing_fingerprint != fingerprint:
            shutil.rmtree(run_dir, ignore_errors=True)
        trained = train(config, dataset, run_dir, start=_run_dir(out, seed, WARMUP))
        result, scores = _measure(config, dataset, run_dir)
        np.savez(run_dir / SCORES_FILE, **scores)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)  # the best weights stay
        keys = ("fingerprint", "best_epoch", "epochs", "stopped", "collapsed", "seconds_per_step")
        kept = {key: trained[key] for key in keys}
        about = {"of": [name, seed, fingerprint], "files": [describe_file(run_dir, SCORES_FILE)]}
        write_json(run_dir / RESULT_FILE, {**kept, **about, "measured": measured, "metrics": result})
    return f"auc {result['auc']:.4f}" if "auc" in result else ""


def _read_again(file: Path, overwrite: bool) -> dict[str, Any]:
    """A result; nothing if it is damaged and may be replaced."""
    try:
        return read_json(file, "result", "pass --overwrite")
    except UserError:
        if not overwrite:
            raise
        return {}


def _fingerprint_of(run_dir: Path, overwrite: bool) -> str:
    """The fingerprint of a finished run; "?" if it is damaged and may be replaced."""
    from clsd.pipeline.training.checkpoints import read_run

    try:
        return str(read_run(run_dir, "pass --overwrite")["fingerprint"])
    except UserError:
        if not overwrite:
            raise
        return "?"


def _measurement_fingerprint(config: Config) -> str:
    """Fingerprint of the measurement: equal if and only if a model would be measured in the same way."""
    evaluated = config.evaluate.model_dump(mode="json")
    return digest_of({"evaluate": evaluated, "ndcg_at": config.compare.ndcg_at})


def _measure(config: Config, dataset: Dataset, run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline metrics of a run's best model, and the scores that a bootstrap over users needs."""
    import gc

    from clsd.features.tf_runtime import keras, tf
    from clsd.pipeline.evaluation.evaluate import measure_rows
    from clsd.pipeline.shared.headline_metrics import headline
    from clsd.pipeline.training.scoring import Scorer
    from clsd.pipeline.training.trained_model import load_trained

    _, model = load_trained(run, dataset)
    rows = Scorer(model, dataset, tf.distribute.get_strategy()).score(config.evaluate.split)
    measured = headline(measure_rows(config, dataset, rows))
    kept = {name: rows[name] for name in ("logit", "label", "user", "intensity")}
    del model
    keras.backend.clear_session()
    gc.collect()
    return measured, kept


@contextmanager
def _logged(out: Path, title: str) -> Iterator[None]:
    """Send a run's output to a file, because several runs print at once."""
    with open(out / LOG_FILE, "a", encoding="utf-8") as file:
        file.write(f"== {title}\n")
        console.file = file
        try:
            yield
        finally:
            file.flush()


def _begin_worker(threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launching process ends its workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # so that no process of a killed comparison writes into the next comparison

    threading.Thread(target=watch, daemon=True).start()
    from clsd.features.tf_runtime import tf

    tf.get_logger().setLevel("ERROR")  # each measured model is traced again, which is intended
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


# ---------------------------------------------------------------- in the launching process


@contextmanager
def _workers(out: Path, jobs: int) -> Iterator[Callable[..., Future[str]]]:
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(threads, os.getpid())
    )
    try:
        yield pool.submit
    except BrokenProcessPool:
        what = "a training process died, perhaps out of memory"
        raise UserError(str(out), what, "see log.txt there, then run the same command again to continue") from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, str], None]]:
    columns = (TextColumn("compare"), BarColumn(), MofNCompleteColumn(), TextColumn("trainings"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def done(what: str, said: str) -> None:
            bar.advance(task)
            say(f"{what:<32} {said}")

        yield done


def _bootstraps(config: Config, dataset: Dataset, out: Path, names: list[str], seed: int) -> dict[str, Any]:
    """Bootstrap over users with the first seed's models: each variant against the first reference."""
    from clsd.pipeline.evaluation.significance import bootstrap_users

    references = [name for name in config.compare.references if name in names]
    rounds = config.compare.bootstrap_rounds
    if not references or not rounds or not config.row_schema.user:
        return {}
    reference, comparison = references[0], {}
    base = read_arrays(_run_dir(out, seed, reference) / SCORES_FILE, "pass --overwrite")
    gain = np.nan_to_num(base["intensity"]) * base["label"] if config.row_schema.intensity else None
    for name in names:
        if name == reference:
            continue
        other = read_arrays(_run_dir(out, seed, name) / SCORES_FILE, "pass --overwrite")["logit"]
        if not (np.isfinite(other).all() and np.isfinite(base["logit"]).all()):
            continue
        intervals = bootstrap_users(
            base["label"],
            base["logit"],
            other,
            base["user"],
            rounds=rounds,
            seed=config.seed,
            gain=gain,
            k=config.compare.ndcg_at,
            level=config.compare.level,
        )
        comparison[name] = {metric: vars(interval) for metric, interval in intervals.items()}
    return {"reference": reference, "seed": seed, "rounds": rounds, "variants": comparison}
