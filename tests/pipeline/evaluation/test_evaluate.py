from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, roc_auc_score

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.pipeline.evaluation.evaluate import evaluate
from clsd.pipeline.evaluation.rank_correlations import (
    partial_spearman,
    rank_correlations,
    spearman,
    within_user_spearman,
)
from clsd.pipeline.shared.config import EvaluateSettings
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import read_json
from clsd.pipeline.training.scoring import Scorer
from clsd.pipeline.training.trained_model import load_trained


@pytest.fixture(scope="module")
def evaluated(
    small_dataset: Dataset, small_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    return out, evaluate(small_dataset, small_run, out)


@pytest.fixture(scope="module")
def rows(small_dataset: Dataset, small_run: Path) -> dict[str, Any]:
    _, model = load_trained(small_run, small_dataset)
    return Scorer(model, small_dataset, tf.distribute.get_strategy()).score("test")


def test_every_row_is_scored_once_in_the_order_on_disk(small_dataset: Dataset, rows: dict[str, Any]) -> None:
    on_disk = small_dataset.read("test")
    np.testing.assert_array_equal(rows["key"].astype(np.uint64), on_disk.key)
    np.testing.assert_array_equal(rows["label"], on_disk.label)
    np.testing.assert_array_equal(rows["ids"], on_disk.ids)


def test_metrics_are_those_of_a_reference(evaluated: tuple[Path, dict[str, Any]], rows: dict[str, Any]) -> None:
    out, metrics = evaluated
    p = 1 / (1 + np.exp(-rows["logit"].astype(np.float64)))
    assert metrics["score"]["auc"] == pytest.approx(roc_auc_score(rows["label"], p), abs=1e-9)
    assert metrics["score"]["log_loss"] == pytest.approx(log_loss(rows["label"], p), abs=1e-9)
    assert metrics["score"]["predicted_over_real"] == pytest.approx(p.mean() / rows["label"].mean())
    corrected = 1 / (1 + np.exp(-(rows["logit"] - np.log(rows["weight"])).astype(np.float64)))
    assert metrics["ctr"]["predicted_ctr"] == pytest.approx(corrected.mean(), rel=1e-5)
    known = (rows["label"] > 0) & np.isfinite(rows["intensity"])
    expected = spearmanr(rows["confidence"][known], rows["intensity"][known]).statistic
    assert metrics["intensity"]["spearman"] == pytest.approx(expected, abs=1e-9)
    assert read_json(out / "metrics.json", "evaluation", "") == metrics


def test_groups_add_up_to_the_whole(evaluated: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = evaluated
    for group in ("age_band", "gender"):
        result = metrics["groups"][group].values()
        assert sum(g["rows"] for g in result) == metrics["score"]["rows"]
        assert sum(g["clicks"] for g in result) == metrics["score"]["clicks"]
        assert sum(g["confidence"]["rows"] for g in result) == metrics["score"]["clicks"]


def test_the_report_is_one_page_that_fetches_nothing(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = evaluated
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 5  # calibration, training, confidence by two groups, days
    assert f"{metrics['score']['auc']:.4f}" in page
    fetched = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([^"')\s>]+)""", page)
    assert [address for address in fetched if not address.startswith("#")] == []
    assert "<script" not in page


def test_another_split_and_overwriting(small_dataset: Dataset, small_run: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(split="validation")
    metrics = evaluate(small_dataset, small_run, tmp_path / "out", settings=settings)
    assert metrics["score"]["rows"] == small_dataset.rows("validation")
    assert metrics["intensity"]["undefined"]["given_popularity"].startswith("no item column is known")
    written = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns
    assert evaluate(small_dataset, small_run, tmp_path / "out", settings=settings) == json.loads(json.dumps(metrics))
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == written  # reused
    with pytest.raises(UserError, match="exists already"):
        evaluate(small_dataset, small_run, tmp_path / "out")
    with pytest.raises(UserError, match=r"evaluate.item: itm: is not a feature; did you mean 'item_id'"):
        evaluate(small_dataset, small_run, tmp_path / "other", settings=EvaluateSettings(item="itm"))


def test_within_user_correlation_is_the_mean_over_users() -> None:
    rng = np.random.default_rng(0)
    x, y, user = rng.random(300), rng.integers(0, 4, 300).astype(float), rng.integers(0, 25, 300)
    total = weight = 0.0
    for u in np.unique(user):
        mine = user == u
        if mine.sum() >= 3 and len(set(y[mine])) > 1:
            total, weight = total + spearmanr(x[mine], y[mine]).statistic * mine.sum(), weight + mine.sum()
    value, _ = within_user_spearman(x, y, user)
    assert value == pytest.approx(total / weight)


def test_partial_correlation_removes_what_popularity_explains() -> None:
    rng = np.random.default_rng(1)
    popularity = rng.random(4000)
    x, y = popularity + 0.5 * rng.random(4000), popularity + 0.5 * rng.random(4000)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(x, y) > 0.6  # type: ignore[operator]
    assert abs(partial_spearman(x, y, popularity)) < 4 / np.sqrt(4000)  # type: ignore[arg-type]
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (x, y, popularity)]
    design = np.stack([np.ones(4000), ranks[2]], axis=1)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    assert partial_spearman(x, y, popularity) == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_is_undefined_is_left_out_with_its_reason() -> None:
    result = rank_correlations(np.ones(5), np.arange(5.0), np.arange(5), None)
    assert "spearman" not in result
    assert "within_user" not in result
    assert set(result["undefined"]) == {"spearman", "within_user", "given_popularity"}
