"""Numbers of odd sizes and ids of odd types, from the log to the exported model: training and serving agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsd.features.encode import scale
from clsd.features.errors import UserError
from clsd.features.schema import NumericFeature
from clsd.features.transform import NumericState
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.serving.predict import Predictor
from clsd.pipeline.shared.config import Config
from clsd.pipeline.training.train import train

Make = Callable[..., Config]


@pytest.fixture
def make_odd(make_tiny: Make, small_log: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config over a Parquet log whose ids are floats, and that has the numbers of some columns."""

    def make(features: list[dict[str, Any]], **columns: Any) -> Config:
        rows = [json.loads(line) for line in small_log.read_text().splitlines()]
        table = pa.Table.from_pylist(rows)
        ids = {name: index for index, name in enumerate(sorted({row["item_id"] for row in rows}))}
        table = table.append_column("sku", pa.array([1234567890123.0 + ids[row["item_id"]] for row in rows]))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values[: len(rows)]))
        pq.write_table(table, tmp_path / "log.parquet")
        base = make_tiny().model_dump(mode="python", by_alias=True)
        named = [{**f, "column": "sku"} if f["name"] == "item_id" else f for f in base["rows"]["features"]]
        return make_tiny(
            logs={"files": [str(tmp_path / "log.parquet")]},
            rows={"features": [*named, *features]},
            train={"epochs": 1},
            confidence={"preset": "plain"},
        )

    return make


def test_odd_numbers_train_export_and_predict(
    make_odd: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    huge = np.where(draw.random(6000) < 0.01, 1e38, draw.normal(size=6000))
    minute = 1.7e9 + draw.integers(0, 60, 6000)  # float32 has a step of 128 there
    hours = 1.7e9 + 3600 * draw.integers(0, 24, 6000)
    listed = [{"name": name, "kind": "numeric"} for name in ("huge", "minute", "hours")]
    config = make_odd(listed, huge=huge, minute=minute, hours=hours)
    dataset = preprocess(config, tmp_path / "dataset")
    printed = " ".join(capsys.readouterr().err.split())
    assert "feature 'minute' has values from 1700000000 to 1700000059, which float32 holds in steps of 128" in printed
    values = dataset.read("train").values
    names = [feature.name for feature in dataset.schema.numeric]
    assert np.isfinite(values).all()
    assert len(np.unique(values[:, names.index("hours")])) == 24
    assert abs(float(values[:, names.index("hours")].astype(np.float64).std()) - 1.0) < 0.02
    train(config, dataset, tmp_path / "run")
    predictor = Predictor(export(dataset, tmp_path / "run", tmp_path / "models"))  # the canary compares
    known = dataset.transform.vocabularies["item_id"].tokens[0].as_py()
    assert known.startswith("12345678") and known.isdigit()
    asked = [{"item_id": known}, {"item_id": "nan"}, {"item_id": "1.234567890123e+12"}, {}]
    answers = [answer["score"] for answer in predictor.predict(asked)]
    assert answers[0] != answers[1] == answers[2]  # the texts that Arrow would make are unknown
    assert predictor.predict([{"huge": 3e38}])[0]["score"] == predictor.predict([{"huge": 3e38}])[0]["score"]


def test_a_number_that_is_not_scaled_is_the_reason_for_an_infinite_loss(
    make_odd: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_odd([{"name": "huge", "kind": "numeric", "transform": "none"}], huge=np.full(6000, 1e38))
    dataset = preprocess(config, tmp_path / "dataset")
    with pytest.raises(
        UserError, match=r"the loss is (nan|inf).*; feature 'huge' has values up to 1e\+38 and transform: none"
    ):
        train(config, dataset, tmp_path / "run")


@pytest.mark.parametrize("transform", ["standardise", "log1p"])
def test_scaling_is_computed_in_float64(transform: str) -> None:
    feature = NumericFeature(name="x", kind="numeric", transform=transform)  # type: ignore[arg-type]
    x = np.array([1.7e9, 1.7e9 + 128, 3.4e38, -3.4e38, np.nan], np.float32)
    state = NumericState(mean=20.0 if transform == "log1p" else 1.7e9, sd=1e-3 if transform == "log1p" else 64.0)
    scaled = scale(feature, state, x)
    assert scaled.dtype == np.float32 and np.isfinite(scaled).all() and scaled[4] == 0
    wide = x[:2].astype(np.float64)
    right = (np.log1p(wide) if transform == "log1p" else wide) - state.mean
    np.testing.assert_allclose(scaled[:2], right / state.sd, rtol=1e-6)
    assert scale(feature, NumericState(mean=0.0, sd=1e-30), x)[2] <= np.finfo(np.float32).max
