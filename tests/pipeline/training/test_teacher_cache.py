"""The teacher cache: training does not change, and each row gets its own score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.input_pipeline import TRAINING_COLUMNS, read_batches
from clsd.features.tf_runtime import tf
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training import teacher_cache
from clsd.pipeline.training.train import train, warm_up
from clsd.pipeline.training.trained_model import load_trained

Make = Callable[..., Config]
Weights = Callable[[Path], dict[str, Any]]
#: Four epochs of steps so long that the teacher tells rows apart.
FOUR = {
    "epochs": 4,
    "embedding_optimizer": {"name": "adagrad", "learning_rate": 0.3},
    "dense_optimizer": {"name": "adam", "learning_rate": 0.01},
}
UNCACHED = {**FOUR, "teacher_cache_clicks": 0}


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of clicks each time that a cache is filled."""
    real, seen = teacher_cache.click_scores, []

    def click_scores(*args: Any) -> Any:
        keys, scores = real(*args)
        seen.append(len(keys))
        return keys, scores

    monkeypatch.setattr(teacher_cache, "click_scores", click_scores)
    return seen


@pytest.fixture(scope="module")
def cached_run(make_tiny: Make, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cached") / "train"
    train(make_tiny(train=FOUR), tiny_dataset, out)
    return out


@pytest.fixture(scope="module")
def clicks(tiny_dataset: Dataset) -> int:
    return round(tiny_dataset.ctr("train") * tiny_dataset.rows("train"))


def _history(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())["history"]


def _assert_close(kept_weights: Weights, a: Path, b: Path) -> None:
    mine, theirs = kept_weights(a), kept_weights(b)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, theirs[name], atol=1e-6, rtol=0, err_msg=name)


def test_training_is_the_same_with_and_without_the_cache(
    make_tiny: Make,
    tiny_dataset: Dataset,
    cached_run: Path,
    clicks: int,
    filled: list[int],
    kept_weights: Weights,
    tmp_path: Path,
) -> None:
    train(make_tiny(train=UNCACHED), tiny_dataset, tmp_path / "asked")
    assert filled == []
    _assert_close(kept_weights, tmp_path / "asked", cached_run)
    assert _history(tmp_path / "asked")[-1]["train"]["effective_clicks"] < 0.999
    train(make_tiny(train=FOUR), tiny_dataset, tmp_path / "again")
    assert filled == [clicks]
    assert _history(tmp_path / "again") == _history(cached_run)


def test_a_warm_up_that_ends_within_an_epoch_is_followed_by_the_same_training(
    make_tiny: Make, tiny_dataset: Dataset, clicks: int, filled: list[int], kept_weights: Weights, tmp_path: Path
) -> None:
    confidence = {"warmup_steps": 25, "gate": "off", "control": "permuted"}
    for name, changes in (("cached", FOUR), ("asked", UNCACHED)):
        train(make_tiny(confidence=confidence, train=changes), tiny_dataset, tmp_path / name)
    assert filled == [clicks]
    _assert_close(kept_weights, tmp_path / "asked", tmp_path / "cached")


@pytest.mark.parametrize("number", [2, 3])
def test_a_run_that_was_stopped_with_its_cache_ends_as_one_that_was_not(
    make_tiny: Make,
    tiny_dataset: Dataset,
    cached_run: Path,
    clicks: int,
    filled: list[int],
    same_weights: Callable[[Path, Path], bool],
    stopped: Callable[[int, Callable[[], Any]], None],
    tmp_path: Path,
    number: int,
) -> None:
    config = make_tiny(train=FOUR)
    stopped(number, lambda: train(config, tiny_dataset, tmp_path / "run"))
    already = len(filled)
    train(config, tiny_dataset, tmp_path / "run")
    assert filled[already:] == [clicks]
    assert same_weights(tmp_path / "run", cached_run)
    assert _history(tmp_path / "run") == _history(cached_run)


@pytest.mark.parametrize(
    "confidence", [{"refresh_steps": 10}, {"gate": "calibration"}, {"soften": 0.2}, {"teacher": "ema"}]
)
def test_a_teacher_that_changes_or_is_asked_about_every_row_has_no_cache(
    make_tiny: Make, tiny_dataset: Dataset, filled: list[int], tmp_path: Path, confidence: dict[str, Any]
) -> None:
    run = train(make_tiny(confidence=confidence, train=FOUR), tiny_dataset, tmp_path / "run")
    assert run["epochs"] == 4
    assert filled == []


@pytest.mark.parametrize(
    ("confidence", "limit", "epochs_left", "pays"),
    [
        ({}, 100, 2, True),
        ({}, 100, 1, False),
        ({}, 99, 9, False),
        ({}, 0, 9, False),
        ({"refresh_steps": 1}, 100, 9, False),
        ({"gate": "calibration"}, 100, 9, False),
        ({"gate": "off"}, 100, 9, True),
        ({"soften": 0.1}, 100, 9, False),
        ({"control": "permuted"}, 100, 9, True),
        ({"control": "constant"}, 100, 9, True),
        ({"control": "rce"}, 100, 9, False),
        ({"control": "tce"}, 100, 9, False),
        ({"source": "item"}, 100, 9, False),
        ({"source": "intensity"}, 100, 9, False),
        *(({"teacher": teacher}, 100, 9, False) for teacher in ("ema", "previous", "self", "none")),
    ],
)
def test_when_a_cache_pays(
    make_tiny: Make, confidence: dict[str, Any], limit: int, epochs_left: int, pays: bool
) -> None:
    config = make_tiny(confidence=confidence, train={"teacher_cache_clicks": limit})
    assert teacher_cache.worth_it(config, 100, epochs_left) is pays


def test_each_click_gets_the_teachers_score_of_itself_however_it_is_shuffled(
    tiny_dataset: Dataset, cached_run: Path, clicks: int
) -> None:
    _, model = load_trained(cached_run, tiny_dataset)
    keys, scores = teacher_cache.click_scores(model, tiny_dataset)
    assert len(set(keys.tolist())) == len(keys) == len(scores) == clicks
    assert len(set(scores.tolist())) > 0.8 * clicks  # so that another row's score would show; some rows are alike
    add, seen = teacher_cache.lookup(keys, scores), 0
    reader = {"columns": (*TRAINING_COLUMNS, "key"), "rows_per_block": tiny_dataset.rows_per_block}
    for seed in (1, 2):
        data = read_batches(tiny_dataset.schema, tiny_dataset.files("train"), 700, shuffle_seed=seed, **reader)
        for batch in data.map(lambda batch: (batch, add(batch))):
            before, taught = ({name: column.numpy() for name, column in part.items()} for part in batch)
            assert set(taught) == {"ids", "values", "label", "valid", "teacher"}
            asked = tf.sigmoid(model.teacher_logit(before["ids"], before["values"])).numpy()
            clicked = before["label"] * before["valid"] > 0
            np.testing.assert_allclose(taught["teacher"][clicked], asked[clicked], rtol=1e-5)
            assert not taught["teacher"][~clicked].any()
            seen += int(clicked.sum())
    assert seen == 2 * clicks


def test_what_is_cached_is_the_model_of_the_end_of_warm_up(
    make_tiny: Make,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = make_tiny(train=FOUR)
    warm_up(config, tiny_dataset, tmp_path / "warmup")
    real, kept = teacher_cache.click_scores, []
    monkeypatch.setattr(teacher_cache, "click_scores", lambda *args: kept.append(tuple(real(*args))) or kept[-1])
    train(config, tiny_dataset, tmp_path / "run", start=tmp_path / "warmup")
    ((keys, scores),) = kept
    train(make_tiny(train={**FOUR, "epochs": 1}), tiny_dataset, tmp_path / "one")
    _, model = load_trained(tmp_path / "one", tiny_dataset)
    rows = tiny_dataset.read("train")
    at = {int(key): i for i, key in enumerate(rows.key.astype(np.int64))}
    order = [at[int(key)] for key in keys]
    expected = tf.sigmoid(model({"ids": rows.ids[order], "values": rows.values[order]}))
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5)
