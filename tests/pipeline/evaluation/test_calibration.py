"""The served ``ctr``: corrected for weights and dropped non-clicks, exactly and cheaply, in training, report and export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import log_loss

from clsd.features.errors import UserError
from clsd.features.tf_runtime import tf
from clsd.models.calibration import Calibrator
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation.evaluate import evaluate
from clsd.pipeline.preprocess.columns import KEY
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.serving.export import export, scoring_function
from clsd.pipeline.serving.serving_inputs import as_arrays
from clsd.pipeline.shared.checksums import describe_file
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config, load_config, parse_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.training.checkpoints import read_run
from clsd.pipeline.training.scoring import Scorer
from clsd.pipeline.training.train import train
from clsd.pipeline.training.trained_model import load_trained

Make = Callable[..., Config]
SHARE = 0.25
TWO_WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def _sigmoid(s: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(s, np.float64)))


def _config(like: Config, log: Path, **changes: Any) -> Config:
    raw = like.model_dump(mode="python", by_alias=True)
    raw["logs"]["files"] = [str(log)]
    for group, values in changes.items():
        raw[group] = {**raw[group], **values}
    return parse_config(raw, "test config")


def _rows(run: Path, dataset: Dataset, split: str) -> dict[str, Any]:
    _, model = load_trained(run, dataset)
    return Scorer(model, dataset, tf.distribute.get_strategy()).score(split)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 impressions of CTR 0.1, so that the test split has some 400 clicks."""
    synthetic = SyntheticSettings(rows=40_000, users=200, items=300, ctr=0.1, seed=5)
    return write_dataset("synthetic", tmp_path_factory.mktemp("log"), synthetic=synthetic)


@pytest.fixture(scope="module")
def thin_config(small_config: Config, log: Path) -> Config:
    return _config(small_config, log, preprocess={"keep_negatives": SHARE})


@pytest.fixture(scope="module")
def thin(thin_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return preprocess(thin_config, tmp_path_factory.mktemp("thin") / "dataset")


@pytest.fixture(scope="module")
def thin_run(thin_config: Config, thin: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stable preset on thinned non-clicks."""
    out = tmp_path_factory.mktemp("stable") / "train"
    train(thin_config, thin, out)
    return out


@pytest.fixture(scope="module")
def plain_run(thin_config: Config, thin: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain cross-entropy on thinned non-clicks."""
    out = tmp_path_factory.mktemp("plain") / "train"
    train(
        _config(thin_config, Path(thin_config.logs.files[0]), confidence={"teacher": "none", "gate": "off"}), thin, out
    )
    return out


# ---------------------------------------------------------------- the cheap calibrator


def test_a_linear_law_is_recovered_within_the_range_that_was_seen() -> None:
    rng = np.random.default_rng(0)
    s, g = rng.normal(-2, 1, 400), rng.choice([-0.3, 0.1, 0.2], 400)
    log_w = 0.3 + 0.2 * s - 0.7 * g
    result = Calibrator.fit(s, g, np.exp(log_w))
    assert result is not None
    assert result[:3] == pytest.approx((0.3, 0.2, -0.7), abs=1e-9)
    assert (result.low, result.high) == pytest.approx((log_w.min(), log_w.max()))
    np.testing.assert_allclose(result.log_weight(s.astype(np.float32), g.astype(np.float32)), log_w, atol=1e-5)
    beyond = result.log_weight(tf.constant([-99.0, 99.0]), tf.constant([0.0, 0.0]))
    np.testing.assert_allclose(beyond, [log_w.min(), log_w.max()], rtol=1e-6)


def test_noise_is_fitted_by_least_squares_and_no_gate_has_no_coefficient() -> None:
    rng = np.random.default_rng(1)
    s = rng.normal(size=300)
    log_w = 0.5 * s + rng.normal(scale=0.1, size=300)
    result = Calibrator.fit(s, np.zeros(300), np.exp(log_w))
    assert result is not None
    slope, intercept = np.polyfit(s, log_w, 1)
    assert result[:3] == pytest.approx((intercept, slope, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("s", "g", "w"),
    [
        ([0.0, 1.0], [0.0, 0.0], [1.0, 2.0]),
        ([], [], []),
        ([0.0, 1.0, np.nan], [0.0] * 3, [1.0] * 3),
        ([0.0, 1.0, 2.0], [0.0, np.inf, 0.0], [1.0] * 3),
        ([0.0, 1.0, 2.0], [0.0] * 3, [1.0, np.nan, 1.0]),
        ([0.0, 1.0, 2.0], [0.0] * 3, [1.0, np.inf, 1.0]),
    ],
)
def test_what_cannot_be_fitted_is_none(s: list[float], g: list[float], w: list[float]) -> None:
    assert Calibrator.fit(np.array(s), np.array(g), np.array(w)) is None


# ---------------------------------------------------------------- thinned non-clicks


def test_only_the_training_splits_non_clicks_are_thinned(small_config: Config, thin: Dataset, tmp_path: Path) -> None:
    whole = preprocess(_config(small_config, Path(thin.manifest["sources"][0])), tmp_path / "whole")
    for split in ("validation", "test"):
        mine, theirs = thin.read(split), whole.read(split)
        np.testing.assert_array_equal(mine.key, theirs.key)
        np.testing.assert_array_equal(mine.label, theirs.label)
    mine, theirs = thin.read("train"), whole.read("train")
    clicks = [set(rows.key[rows.label == 1].tolist()) for rows in (mine, theirs)]
    others = [set(rows.key[rows.label == 0].tolist()) for rows in (mine, theirs)]
    assert clicks[0] == clicks[1]
    assert others[0] < others[1]
    n = len(others[1])
    assert abs(len(others[0]) / n - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / n)
    assert (thin.kept_negatives, whole.kept_negatives) == (SHARE, 1.0)
    assert json.loads((thin.directory / "dataset.json").read_text())["kept_negatives"] == SHARE
    assert thin.ctr("train") > 2 * thin.ctr("test")
    # The vocabularies count the rows that are trained on.
    assert thin.transform.vocabularies["gender"].rows.sum() == thin.rows("train")


def test_the_same_rows_are_kept_again_and_by_two_workers(thin_config: Config, thin: Dataset, tmp_path: Path) -> None:
    def files(dataset: Dataset) -> dict[str, bytes]:
        paths = [path for path in sorted(dataset.directory.rglob("*")) if path.is_file()]
        return {str(path.relative_to(dataset.directory)): path.read_bytes() for path in paths}

    assert files(preprocess(thin_config, tmp_path / "again")) == files(thin)
    assert files(preprocess(thin_config, tmp_path / "two", beam_options=TWO_WORKERS)) == files(thin)
    seed = thin_config.model_copy(update={"seed": thin_config.seed + 1})
    other = preprocess(seed, tmp_path / "other").read("train")
    assert set(other.key.tolist()) != set(thin.read("train").key.tolist())


def test_a_plain_model_is_shifted_by_the_logarithm_of_the_share_and_by_nothing_else(
    thin: Dataset, plain_run: Path, tmp_path: Path
) -> None:
    rows = _rows(plain_run, thin, "test")
    assert (rows["weight"] == 1).all()
    np.testing.assert_allclose(rows["ctr_logit"], rows["logit"] + np.float32(np.log(SHARE)), rtol=1e-6)
    metrics = evaluate(thin, plain_run, tmp_path / "evaluation")
    assert metrics["score"]["predicted_over_real"] > 2
    assert metrics["ctr"]["predicted_over_real"] == pytest.approx(1, abs=0.2)
    assert metrics["ctr"]["ece"] < 0.2 * metrics["score"]["ece"]
    assert metrics["ctr"]["auc"] == pytest.approx(metrics["score"]["auc"])
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert "ctr, corrected</th>" in page  # no weights, and yet a correction to show


def test_training_validates_the_corrected_ctr_beside_the_score(thin_run: Path, thin: Dataset) -> None:
    last = json.loads((thin_run / "run.json").read_text())["history"][-1]["validation"]
    rows = _rows(thin_run, thin, "validation")  # the last epoch is the one that is kept
    assert last["log_loss"] == pytest.approx(log_loss(rows["label"], _sigmoid(rows["logit"])), rel=1e-6)
    assert last["ctr_log_loss"] == pytest.approx(log_loss(rows["label"], _sigmoid(rows["ctr_logit"])), rel=1e-6)
    assert last["ctr_log_loss"] < last["log_loss"]
    assert last["predicted_over_real"] > 2
    assert last["ctr_predicted_over_real"] == pytest.approx(1, abs=0.2)
    assert last["ctr_ece"] < last["ece"]


# ---------------------------------------------------------------- what the report says


def _ece(label: Any, p: Any, bins: int) -> float:
    """By sorting and cutting into equal parts; the predictions are all different."""
    parts = np.array_split(np.argsort(p), bins)
    return sum(abs(label[part].mean() - p[part].mean()) * len(part) for part in parts) / len(p)


def test_calibration_is_reported_before_and_after_overall_and_by_group(
    thin: Dataset, thin_run: Path, tmp_path: Path
) -> None:
    metrics = evaluate(thin, thin_run, tmp_path / "out")
    rows = _rows(thin_run, thin, "test")
    logits = {"score": rows["logit"], "ctr": rows["logit"] - np.log(rows["weight"]) + np.log(SHARE)}
    for name, logit in logits.items():
        p = _sigmoid(logit)
        assert metrics[name]["predicted_over_real"] == pytest.approx(p.mean() / rows["label"].mean(), rel=1e-4)
        assert metrics[name]["ece"] == pytest.approx(_ece(rows["label"], p, 15), abs=2e-3)
    assert metrics["ctr"]["ece"] < metrics["score"]["ece"]
    names = thin.transform.id_names("age_band")
    ids = rows["ids"][:, thin.schema.id_slices["age_band"].start]
    assert len(metrics["groups"]["age_band"]) > 3
    for code in np.unique(ids):
        mine, result = ids == code, metrics["groups"]["age_band"][names[code]]
        for prefix, logit in (("", logits["score"]), ("ctr_", logits["ctr"])):
            ratio = _sigmoid(logit[mine]).mean() / rows["label"][mine].mean()
            assert result[f"{prefix}predicted_over_real"] == pytest.approx(ratio, rel=1e-4)
            assert 0 < result[f"{prefix}ece"] < 1


def test_the_cheap_calibration_of_a_separate_teacher_is_fitted_on_validation_rows_and_measured_on_test_rows(
    thin: Dataset, thin_run: Path, tmp_path: Path
) -> None:
    metrics = evaluate(thin, thin_run, tmp_path / "out")
    seen, rows = _rows(thin_run, thin, "validation"), _rows(thin_run, thin, "test")
    design = np.stack([np.ones(len(seen["logit"])), seen["logit"], seen["correction"]], axis=1).astype(np.float64)
    target = np.log(seen["weight"].astype(np.float64))
    b = np.linalg.lstsq(design, target, rcond=None)[0]
    log_w = np.clip(b[0] + b[1] * rows["logit"] + b[2] * rows["correction"], target.min(), target.max())
    p = _sigmoid(rows["logit"] - log_w + np.log(SHARE))
    assert metrics["ctr_cheap"]["log_loss"] == pytest.approx(log_loss(rows["label"], p), rel=1e-5)
    assert metrics["ctr_cheap"]["predicted_over_real"] == pytest.approx(p.mean() / rows["label"].mean(), rel=1e-4)
    assert metrics["calibrator"]["of_logit"] == pytest.approx(b[1], rel=1e-4)
    # It stands for the exact one, not for the score.
    exact, cheap, score = (metrics[part]["predicted_over_real"] for part in ("ctr", "ctr_cheap", "score"))
    assert abs(cheap - exact) < 0.1 * abs(score - exact)
    page = (tmp_path / "out" / "report.html").read_text()
    first = page[page.index("<table>") : page.index("</table>")]
    assert first.count("<th>") == 4
    assert first.count("<td>") == 4 * first.count("<tr><td>")


def test_a_model_without_a_separate_teacher_has_no_cheap_calibration(
    make_config: Make, thin: Dataset, plain_run: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    train(make_config(confidence={"teacher": "self"}, train={"epochs": 2}), small_dataset, tmp_path / "self")
    for dataset, run in ((thin, plain_run), (small_dataset, tmp_path / "self")):
        metrics = evaluate(dataset, run, tmp_path / f"evaluation-{run.name}")
        assert "ctr_cheap" not in metrics
        assert "calibrator" not in metrics
        assert metrics["ctr"]["ece"] > 0


# ---------------------------------------------------------------- what is exported


@pytest.fixture(scope="module")
def exported(thin: Dataset, thin_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model by both calibrations; each passed its canary, or it would not be there."""
    root, result = tmp_path_factory.mktemp("exported"), {}
    for kind in ("exact", "cheap"):
        run = Path(shutil.copytree(thin_run, root / f"run-{kind}"))
        config = load_config(run / "config.yaml", [f"export.calibration={kind}"])
        _replace_config(run, config)
        result[kind] = export(thin, run, root / kind, version=1)
    return result


def _golden(model: Path) -> dict[str, Any]:
    return dict(json.loads((model / "assets.extra" / "golden.json").read_text()))


def test_the_served_ctr_is_the_corrected_one(thin: Dataset, thin_run: Path, exported: dict[str, Path]) -> None:
    rows = _rows(thin_run, thin, "test")
    at = {int(key): i for i, key in enumerate(rows["key"].astype(np.uint64))}
    order = [at[key] for key in thin.golden()[KEY].to_pylist()]
    seen = _rows(thin_run, thin, "validation")
    calibrator = Calibrator.fit(seen["logit"], seen["correction"], seen["weight"])
    assert calibrator is not None
    log_w = {
        "exact": np.log(rows["weight"]),
        "cheap": calibrator.log_weight(rows["logit"], rows["correction"]).numpy(),
    }
    for kind, model in exported.items():
        golden = _golden(model)
        serve = tf.saved_model.load(str(model)).signatures["serving_default"]
        specs = serve.structured_input_signature[1]
        arrays = as_arrays({name: golden["inputs"][name] for name in specs}, specs)
        answer = serve(**{name: tf.constant(array, specs[name].dtype) for name, array in arrays.items()})
        expected = _sigmoid((rows["logit"] - log_w[kind] + np.log(SHARE))[order])
        np.testing.assert_allclose(golden["expected"]["ctr"], expected, atol=1e-5)
        np.testing.assert_allclose(answer["ctr"], expected, atol=1e-5)
        np.testing.assert_allclose(answer["score"], _sigmoid(rows["logit"][order]), atol=1e-5)
        assert answer["ctr"].numpy().mean() < 0.6 * answer["score"].numpy().mean()
    np.testing.assert_allclose(
        _golden(exported["exact"])["expected"]["confidence"], rows["confidence"][order], rtol=1e-4
    )
    assert _golden(exported["exact"])["expected"]["ctr"] != _golden(exported["cheap"])["expected"]["ctr"]


def test_the_cheap_graph_leaves_the_teacher_at_home(thin: Dataset, thin_run: Path, exported: dict[str, Path]) -> None:
    def held(model: Path) -> int:
        """Floats among the variables that the export brings along."""
        shapes = [shape for _, shape in tf.train.list_variables(str(model / "variables" / "variables")) if shape]
        return int(sum(np.prod(shape) for shape in shapes))

    def read(model: Path) -> int:
        """Floats among the variables that the serving graph reads."""
        loaded = tf.saved_model.load(str(model))  # holds the variables, of which the graph has weak references
        return int(sum(np.prod(v.shape) for v in loaded.signatures["serving_default"].graph.variables if v.shape.rank))

    _, trained = load_trained(thin_run, thin)
    teacher = sum(int(np.prod(v.shape)) for v in trained.teacher.variables)
    assert teacher > 1000
    assert held(exported["exact"]) - held(exported["cheap"]) >= teacher
    assert read(exported["exact"]) - read(exported["cheap"]) >= teacher


@pytest.mark.parametrize(
    ("confidence", "named"),
    [
        *(({"control": name}, f"confidence.control: {name}") for name in ("constant", "permuted", "rce", "tce")),
        *(({"source": name}, f"confidence.source: {name}") for name in ("popularity", "intensity")),
    ],
)
def test_a_control_is_not_exported(
    make_config: Make, small_dataset: Dataset, small_run: Path, confidence: dict[str, Any], named: str
) -> None:
    _, model = load_trained(small_run, small_dataset)
    with pytest.raises(UserError) as error:
        scoring_function(make_config(confidence=confidence), small_dataset, model)
    assert str(error.value) == f"{named}: is a control of a comparison; export a model of the method instead"


def test_the_export_of_a_control_is_refused_in_one_line(
    small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    config = load_config(run / "config.yaml", ["confidence.control=permuted"])
    _replace_config(run, config)
    command = ["export", "--config", run / "config.yaml", "--dataset", small_dataset.directory, "--run", run]
    result = CliRunner().invoke(main, [str(word) for word in [*command, "--out", tmp_path / "out"]])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: confidence.control: permuted: is a control")
    assert result.stderr.count("error: ") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_a_cheap_calibration_needs_a_validation_split(
    make_config: Make, small_dataset: Dataset, small_run: Path
) -> None:
    splits = {name: result for name, result in small_dataset.manifest["splits"].items() if name != "validation"}
    bare = Dataset(small_dataset.directory, {**small_dataset.manifest, "splits": splits}, small_dataset.schema)
    _, model = load_trained(small_run, bare)
    with pytest.raises(UserError, match=r"has no validation split .*; set export.calibration: exact"):
        scoring_function(make_config(export={"calibration": "cheap"}), bare, model)
    assert scoring_function(make_config(export={"calibration": "exact"}), bare, model) == model.score_inputs


def _replace_config(run: Path, config: Config) -> None:
    """Give a finished run another config, and list it anew."""
    (run / "config.yaml").write_text(dump_config(config))
    summary = read_run(run, "")
    others = [file for file in summary["files"] if file["file"] != "config.yaml"]
    write_json(run / "run.json", {**summary, "files": [describe_file(run, "config.yaml"), *others]})
