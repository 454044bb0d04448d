from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.pipeline.evaluation.compare_runs import compare
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import directory_lock
from clsd.pipeline.training.train import run_fingerprint, train
from clsd.pipeline.training.trained_model import load_trained

Same = Callable[[Path, Path], bool]


def test_the_same_seed_gives_the_same_weights(
    small_config: Config, small_dataset: Dataset, small_run: Path, same_weights: Same, tmp_path: Path
) -> None:
    train(small_config, small_dataset, tmp_path / "again")
    assert same_weights(tmp_path / "again", small_run)


def test_another_seed_gives_other_weights(
    make_config: Callable[..., Config], small_dataset: Dataset, small_run: Path, same_weights: Same, tmp_path: Path
) -> None:
    config = make_config(seed=8)
    train(config, small_dataset, tmp_path / "run")
    assert not same_weights(tmp_path / "run", small_run)


def test_a_run_leaves_config_versions_history_and_checkpoints(small_config: Config, small_run: Path) -> None:
    assert load_config(small_run / "config.yaml") == small_config
    assert json.loads((small_run / "versions.json").read_text())["tensorflow"] == tf.__version__
    run = json.loads((small_run / "run.json").read_text())
    assert run["epochs"] == 3
    assert run["warmup_steps"] == 19  # 4,800 rows in batches of 256
    assert [entry["epoch"] for entry in run["history"]] == [1, 2, 3]
    assert set(run["history"][0]["train"]) >= {"loss", "predicted_ctr", "ctr", "mean_weight", "effective_clicks"}
    assert run["history"][0]["train"]["effective_clicks"] == pytest.approx(1.0)  # warm-up: every click weighs 1
    assert run["history"][2]["train"]["effective_clicks"] < 0.9999
    assert {path.name for path in (small_run / "checkpoints").iterdir()} == {"19", "38", "57"}  # steps


def test_a_run_goes_on_after_its_last_whole_epoch(
    small_config: Config,
    small_dataset: Dataset,
    small_run: Path,
    same_weights: Same,
    state_of: Callable[[Path], dict[str, Any]],
    stopped: Callable[[int, Callable[[], Any]], None],
    tmp_path: Path,
) -> None:
    stopped(3, lambda: train(small_config, small_dataset, tmp_path / "run"))
    assert state_of(tmp_path / "run")["epoch"] == 2
    train(small_config, small_dataset, tmp_path / "run")
    assert same_weights(tmp_path / "run", small_run)


def test_a_finished_run_is_used_again_and_another_is_refused(
    make_config: Callable[..., Config], small_config: Config, small_dataset: Dataset, small_run: Path
) -> None:
    before = (small_run / "run.json").stat().st_mtime_ns
    assert train(small_config, small_dataset, small_run)["epochs"] == 3
    assert (small_run / "run.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a run of other settings or data"):
        train(make_config(train={"epochs": 4}), small_dataset, small_run)


def test_early_stopping_keeps_the_best_epoch_after_warm_up(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    overfit = {
        "epochs": 12,
        "early_stopping": {"metric": "log_loss", "mode": "min", "patience": 2},
        "dense_optimizer": {"name": "adam", "learning_rate": 0.02},
    }
    run = train(make_config(train=overfit), small_dataset, tmp_path / "run")
    losses = [entry["validation"]["log_loss"] for entry in run["history"]]
    assert run["best_epoch"] == 2 + int(np.argmin(losses[1:]))  # epoch 1 is warm-up and no candidate
    assert run["epochs"] == run["best_epoch"] + 2
    assert run["stopped"] == "log_loss did not improve for 2 epochs"


def test_tensorboard_has_losses_and_metrics(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_config(train={"epochs": 1, "tensorboard": True, "steps_per_call": 4, "profile_calls": 2})
    train(config, small_dataset, tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.*")
    assert list((tmp_path / "run" / "tensorboard").rglob("*.xplane.pb"))
    tags = {v.tag for e in tf.compat.v1.train.summary_iterator(str(events)) for v in e.summary.value}
    assert {"train/loss", "validation/auc"} <= tags


def test_another_item_is_another_training_where_items_are_counted(
    make_config: Callable[..., Config], small_dataset: Dataset
) -> None:
    def fingerprints(**confidence: Any) -> set[str]:
        configs = [make_config(confidence=confidence, evaluate={"item": item}) for item in ("item_id", "user_id")]
        return {run_fingerprint(config, small_dataset) for config in configs}

    assert len(fingerprints(preset="two-level")) == len(fingerprints(source="popularity")) == 2
    assert len(fingerprints(preset="stable")) == 1


def test_a_batch_that_does_not_divide_is_refused(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_config(train={"replicas": 3})
    with pytest.raises(UserError, match=r"train.batch_size: 256 rows do not divide into 3 replicas; take 258"):
        train(config, small_dataset, tmp_path / "run")


def test_a_config_that_does_not_fit_the_data_set_is_refused(
    settings: dict[str, Any], small_dataset: Dataset, tmp_path: Path
) -> None:
    settings["rows"]["features"].append({"name": "extra", "kind": "numeric"})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="it has no feature 'extra'"):
        train(load_config(path), small_dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "confidence",
    [{"preset": "paper"}, {"preset": "plain"}, {"preset": "two-level"}, {"teacher": "ema"}, {"teacher": "previous"}],
)
def test_every_preset_and_teacher_trains(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path, confidence: dict[str, Any]
) -> None:
    run = train(make_config(confidence=confidence, train={"epochs": 2}), small_dataset, tmp_path / "run")
    assert np.isfinite(run["history"][-1]["train"]["loss"])
    assert run["history"][-1]["validation"]["rows"] == small_dataset.rows("validation")


def test_a_damaged_or_missing_model_is_named(small_dataset: Dataset, small_run: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(UserError, match="is not a finished training run"):
        load_trained(tmp_path, small_dataset)
    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    data = next((copy / "best").glob("weights.data*"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match=r"best/weights\.data.*: is not the file that clsd wrote"):
        load_trained(copy, small_dataset)


def test_a_run_that_ends_in_its_warm_up_corrects_nothing(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    from clsd.pipeline.training.scoring import Scorer

    train(make_config(train={"epochs": 1}), small_dataset, tmp_path / "run")
    _, model = load_trained(tmp_path / "run", small_dataset)
    rows = Scorer(model, small_dataset, tf.distribute.get_strategy()).score("test")
    assert set(rows["weight"].tolist()) == set(rows["confidence"].tolist()) == {1.0}


def test_a_run_that_diverges_is_stopped_with_its_step(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_config(train={"dense_optimizer": {"name": "sgd", "learning_rate": 1e20}})
    with pytest.raises(UserError, match=r"train: the loss is (nan|inf) by step \d+; lower the learning rates"):
        train(config, small_dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()


def test_overwriting_looks_first_and_deletes_afterwards(
    make_config: Callable[..., Config], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    with pytest.raises(UserError, match="no such option"):
        train(make_config(model={"options": {"foo": 1}}), small_dataset, copy, overwrite=True)
    with pytest.raises(UserError, match="do not divide"):
        train(make_config(train={"replicas": 3}), small_dataset, copy, overwrite=True)
    assert (copy / "run.json").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="holds something that clsd did not make"):
        train(make_config(), small_dataset, tmp_path / "thesis", overwrite=True)
    train(make_config(train={"epochs": 1}), small_dataset, copy, overwrite=True)
    assert json.loads((copy / "run.json").read_text())["epochs"] == 1


def test_a_directory_of_something_else_is_not_written_into(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.jsonl").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="log: holds something that clsd did not make"):
            train(make_config(), small_dataset, tmp_path / "log", overwrite=overwrite)
    with pytest.raises(UserError, match="log: holds something that clsd did not make"):
        compare(make_config(), small_dataset, tmp_path / "log", variants=[], seeds=1)
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["log.jsonl"]


def test_a_run_tells_its_figures_by_step_each_once(
    make_config: Callable[..., Config],
    small_dataset: Dataset,
    stopped: Callable[[int, Callable[[], Any]], None],
    tmp_path: Path,
) -> None:
    config = make_config(train={"epochs": 3, "steps_per_call": 8}, confidence={"refresh_steps": 10})
    stopped(3, lambda: train(config, small_dataset, tmp_path / "run"))
    journal = tmp_path / "run" / "metrics.jsonl"
    with journal.open("a") as file:  # as a process leaves it that is killed between this file and its checkpoint
        file.write('{"step": 4, "par\n' + json.dumps({"step": 46, "part": "train", "loss": 9.0}) + "\n")
    train(config, small_dataset, tmp_path / "run")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["part"] == "train"]
    assert steps == [8, 16, 19, 27, 35, 38, 46, 54, 57]
    assert [line["step"] for line in lines if line["part"] == "validation"] == [19, 38, 57]
    assert all(line["loss"] < 1 and line["rows_per_second"] > 0 for line in lines if line["part"] == "train")
    ages = {line["step"]: line.get("teacher_age") for line in lines if line["part"] == "train"}
    assert (ages[19], ages[27], ages[35], ages[38], ages[46]) == (None, 8, 6, 9, 7)  # copied at steps 19, 29, 39, 49
    (*_, by_group) = [line for line in lines if line["part"] == "confidence"]
    assert {name.split("=")[0] for name in by_group} == {"step", "part", "age_band", "gender"}
    assert all(0 < value < 50 for name, value in by_group.items() if "=" in name)


def test_steps_without_a_click_are_saved_and_gone_on_from(
    make_config: Callable[..., Config],
    small_log: Path,
    same_weights: Same,
    stopped: Callable[[int, Callable[[], Any]], None],
    tmp_path: Path,
) -> None:
    lines = [json.loads(line) for line in small_log.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["click"] = int(number % 1500 == 0)
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    often = {"epochs": 2, "steps_per_call": 1, "checkpoint_minutes": 0, "keep_checkpoints": 100}
    config = make_config(logs={"files": [str(tmp_path / "few.jsonl")]}, train=often)
    dataset = preprocess(config, tmp_path / "dataset")
    train(config, dataset, tmp_path / "whole")
    states = [
        json.loads(path.read_text())["state"] for path in (tmp_path / "whole" / "checkpoints").glob("*/state.json")
    ]
    assert any(state["totals"][-2:] == [None, None] for state in states if state["totals"])
    stopped(2, lambda: train(config, dataset, tmp_path / "run"))
    train(config, dataset, tmp_path / "run")
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_overwriting_waits_for_no_other_process_to_be_robbed(
    small_config: Config, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    with directory_lock(copy), pytest.raises(UserError, match="another process is writing there"):
        train(small_config, small_dataset, copy, overwrite=True)
    assert (copy / "run.json").exists() and (copy / "checkpoints").exists()


def test_a_run_in_mixed_precision_is_loaded_in_float32(
    make_config: Callable[..., Config], small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    run = train(make_config(train={"precision": "mixed_bfloat16"}), small_dataset, tmp_path / "run")
    _, model = load_trained(tmp_path / "run", small_dataset)
    assert {layer.compute_dtype for layer in model.backbone._flatten_layers()} == {"float32"}
    exact = json.loads((small_run / "run.json").read_text())["history"][-1]
    assert run["history"][-1]["train"]["loss"] == pytest.approx(exact["train"]["loss"], rel=0.01)
    assert run["history"][-1]["train"]["loss"] != exact["train"]["loss"]
    assert export(small_dataset, tmp_path / "run", tmp_path / "models", version=1).name == "1"
