"""Statistics of a data set compared with plain counting of its log; quality bounds; drift."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clsd.features.errors import UserError
from clsd.features.schema import Schema
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation import pictures
from clsd.pipeline.evaluation.drift import drift, psi
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import STATISTICS_QUANTILES, Dataset

Make = Callable[..., Config]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _training(log: Path, dataset: Dataset) -> list[dict[str, Any]]:
    last = dataset.read("train").timestamp.max() // 1_000_000
    return [row for row in _rows(log) if row["timestamp"] <= last]


def test_days_count_every_row_and_click(small_log: Path, small_dataset: Dataset) -> None:
    expected: dict[str, list[int]] = {}
    for row in _rows(small_log):
        day = str(np.datetime64(row["timestamp"], "s").astype("datetime64[D]"))
        counts = expected.setdefault(day, [0, 0])
        counts[0] += 1
        counts[1] += row["click"]
    result: dict[str, list[int]] = {}
    for split, days in small_dataset.statistics["days"].items():
        assert sum(rows for _, rows, _ in days) == small_dataset.rows(split)
        for day, rows, clicks in days:
            counts = result.setdefault(day, [0, 0])
            counts[0] += rows
            counts[1] += clicks
    assert result == expected


def test_values_and_numbers_are_those_of_the_training_rows(small_log: Path, small_dataset: Dataset) -> None:
    training, features = _training(small_log, small_dataset), small_dataset.statistics["features"]
    items = Counter(row["item_id"] for row in training)
    assert features["item_id"]["distinct"] == len(items)  # those below min_count, too
    assert features["item_id"]["values"] == len(training)
    assert features["item_id"]["top"] == [
        [v, n] for v, n in sorted(items.items(), key=lambda kv: (-kv[1], kv[0].encode()))[:100]
    ]
    positions = Counter(str(row["position"]) for row in training)
    assert dict(map(tuple, features["position"]["top"])) == positions  # type: ignore[arg-type]
    categories = Counter(row["category"] for row in training)  # hashed: a sample, here of all rows
    assert dict(map(tuple, features["category"]["top"])) == categories
    assert "distinct" not in features["category"]
    prices = np.array([row["price"] for row in training])
    assert features["price"]["min"] == prices.min() and features["price"]["max"] == prices.max()
    np.testing.assert_allclose(features["price"]["quantiles"], np.quantile(prices, STATISTICS_QUANTILES))


def test_missing_is_counted_in_every_split(make_config: Make, small_log: Path, tmp_path: Path) -> None:
    rows = _rows(small_log)
    lacking = {"age_band": "", "price": None, "tags": [], "hour": None}
    for number, row in enumerate(rows):
        row.update({name: value for place, (name, value) in enumerate(lacking.items()) if number % (place + 3) == 0})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = preprocess(make_config(logs={"files": [str(tmp_path / "log.jsonl")]}), tmp_path / "dataset")
    for name in (*lacking, "user_id"):
        described = made.statistics["features"][name]["missing"]
        assert {split: counts["of"] for split, counts in described.items()} == {s: made.rows(s) for s in made.splits}
        absent = sum(not row[name] and row[name] != 0 for row in rows)
        assert sum(counts["rows"] for counts in described.values()) == absent


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"min_ctr": 0.5}, r"the train split's CTR is 2\d\.\d+%, not within 0.5 and 1"),
        ({"max_ctr": 0.01}, r"the train split's CTR is 2\d\.\d+%, not within 0 and 0.01"),
        ({"max_out_of_vocabulary": 0.0}, r"'\w+' is out of vocabulary in \d+\.\d% of the \w+ split's rows"),
    ],
)
def test_a_gate_that_does_not_hold_leaves_no_data_set(
    make_config: Make, tmp_path: Path, gates: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preprocess(make_config(preprocess={"gates": gates}), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_a_gate_on_what_is_missing(make_config: Make, small_log: Path, tmp_path: Path) -> None:
    rows = _rows(small_log)
    for row in rows[::4]:
        row["price"] = None
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logs = {"files": [str(tmp_path / "log.jsonl")]}
    with pytest.raises(UserError, match=r"'price' is missing in 2\d\.\d% of the train split's rows"):
        preprocess(make_config(logs=logs, preprocess={"gates": {"max_missing": 0.2}}), tmp_path / "dataset")
    preprocess(make_config(logs=logs, preprocess={"gates": {"max_missing": 0.5}}), tmp_path / "dataset")


def test_the_index_is_its_formula() -> None:
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    assert psi(old, new) == pytest.approx(-0.1 * np.log(0.8) + 0.1 * np.log(1.5))
    assert psi(old, old) == 0
    assert psi(np.array([1.0, 0.0]), np.array([0.9, 0.1])) == pytest.approx(
        -0.1 * np.log(0.9) + (0.1 - 1e-4) * np.log(0.1 / 1e-4)
    )


@pytest.fixture(scope="module")
def drifted(small_config: Config, small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small log with dearer prices, one age band half as frequent, and some hours missing."""
    root = tmp_path_factory.mktemp("drifted")
    rows = _rows(small_log)
    band = rows[0]["age_band"]
    rows = [row for number, row in enumerate(rows) if row["age_band"] != band or number % 4 == 0]
    for number, row in enumerate(rows):
        row["price"] *= 3
        row["hour"] = None if number % 5 == 0 else row["hour"]
    (root / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logs = small_config.logs.model_copy(update={"files": [str(root / "log.jsonl")]})
    return preprocess(small_config.model_copy(update={"logs": logs}), root / "dataset")


def test_drift_finds_what_moved_and_nothing_else(small_dataset: Dataset, drifted: Dataset) -> None:
    assert all(feature.psi in (None, 0.0) for feature in drift(small_dataset, small_dataset))
    result = {feature.feature: feature for feature in drift(small_dataset, drifted)}
    assert result["price"].psi > 0.5 and result["age_band"].psi > 0.1  # type: ignore[operator]
    assert set([*result][:2]) == {"price", "hour"}
    assert result["hour"].psi > 1 and result["hour"].what == "missing: 0.0% to 20.0%"  # type: ignore[operator]
    for name in ("gender", "position", "category"):
        assert result[name].psi < 0.05, name  # type: ignore[operator]
    assert result["hour"].missing == (0.0, pytest.approx(0.2, abs=0.01))
    assert "%" in result["age_band"].what


def test_two_samples_of_one_distribution_have_not_moved(small_config: Config, small_log: Path, tmp_path: Path) -> None:
    """Of 24 hours by identity as of 150 items by vocabulary and 200 users by hash, more than are named at once."""
    rows = small_config.row_schema.model_dump(mode="python")
    features = [
        {"name": "hour", "kind": "categorical", "dtype": "int64", "encoding": "identity", "size": 24},
        {"name": "item_id", "kind": "categorical"},
        {"name": "user_id", "kind": "categorical", "encoding": "hash", "size": 1000},
    ]
    schema = Schema.model_validate({**rows, "features": features, "groups": []})
    parts = []
    for half in range(2):
        lines = small_log.read_text().splitlines(keepends=True)[half::2]
        (tmp_path / f"{half}.jsonl").write_text("".join(lines))
        logs = small_config.logs.model_copy(update={"files": [str(tmp_path / f"{half}.jsonl")]})
        config = small_config.model_copy(update={"logs": logs, "row_schema": schema})
        parts.append(preprocess(config, tmp_path / f"dataset-{half}"))
    for old, new in (parts, parts[::-1]):
        result = {feature.feature: feature.psi for feature in drift(old, new)}
        assert 0 < result["hour"] < 0.1 and 0 < result["item_id"] < 0.25, result  # type: ignore[operator]
        assert 0 < result["user_id"] < 0.25, result  # type: ignore[operator]
        assert old.statistics["features"]["hour"]["distinct"] == 24


def test_a_feature_that_vanished_has_moved(small_dataset: Dataset, small_config: Config, tmp_path: Path) -> None:
    rows = _rows(Path(small_config.logs.files[0]))
    for row in rows:
        row["age_band"] = row["price"] = None
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = [f for f in small_config.row_schema.model_dump(mode="python")["features"] if f["name"] != "tags"]
    schema = Schema.model_validate({**small_config.row_schema.model_dump(mode="python"), "features": features})
    logs = small_config.logs.model_copy(update={"files": [str(tmp_path / "log.jsonl")]})
    new = preprocess(small_config.model_copy(update={"logs": logs, "row_schema": schema}), tmp_path / "dataset")
    result = {feature.feature: feature for feature in drift(small_dataset, new)}
    for name in ("age_band", "price"):
        assert result[name].psi > 5, result[name]  # type: ignore[operator]
        assert result[name].what == "missing: 0.0% to 100.0%" or result[name].missing == (0.0, 1.0)
    assert result["tags"].psi > 5 and result["tags"].what == "only the older data set has it"  # type: ignore[operator]
    assert {f.feature: f.what for f in drift(new, small_dataset)}["tags"] == "only the newer data set has it"


def test_validate_tells_a_person_and_a_script(small_dataset: Dataset, drifted: Dataset) -> None:
    def run(*words: Any) -> Any:
        return CliRunner().invoke(main, ["validate", *map(str, words)], catch_exceptions=False)

    result = run(drifted.directory, "--against", small_dataset.directory)
    assert result.exit_code == 3
    assert "price" in json.loads(result.stdout)["moved"]
    assert "drifted by more than 0.25: " in result.stderr
    assert run(drifted.directory, "--against", small_dataset.directory, "--max-psi", 1e3).exit_code == 0
    assert run(small_dataset.directory, "--against", small_dataset.directory).exit_code == 0
    missing = run(small_dataset.directory, "--against", small_dataset.directory / "nowhere")
    assert missing.exit_code == 2 and "no such data set" in missing.stderr


def test_the_days_are_drawn(small_dataset: Dataset) -> None:
    assert pictures.days(small_dataset.statistics["days"]).startswith("<svg")


class _Described:
    """A data set of one number, by its quantiles alone."""

    def __init__(self, values: list[float]) -> None:
        missing = {"train": {"rows": 0, "of": len(values)}}
        quantiles = np.quantile(values, STATISTICS_QUANTILES).tolist()
        self.statistics = {"features": {"x": {"missing": missing, "quantiles": quantiles}}}
        self.schema = Schema(features=[{"name": "x", "kind": "numeric"}])


_MIXED = [0.0] * 60 + [float(i) for i in range(1, 41)]


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ([5.0] * 100, [5.0] * 100, False),
        ([5.0] * 100, [3.0] * 100, True),
        ([5.0] * 100, [7.0] * 100, True),
        (_MIXED, [-5.0] * 60 + _MIXED[60:], True),
        (_MIXED, _MIXED, False),
        ([float(i) for i in range(100)], [i - 0.5 for i in range(100)], False),
        ([0.0] * 50 + [1.0] * 50, [0.0] * 50 + [1.0] * 50, False),
        ([0.0] * 50 + [1.0] * 50, [0.0] * 50 + [2.0] * 50, True),
    ],
)
def test_a_move_of_a_frequent_value_is_seen(old: list[float], new: list[float], moved: bool) -> None:
    (feature,) = drift(_Described(old), _Described(new))  # type: ignore[arg-type]
    assert feature.psi is not None and (feature.psi > 0.25) == moved, feature
