"""Warm start: known ids keep their vectors, new ids get new rows, and unrelated runs are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clsd.features.errors import UserError
from clsd.features.transform import first_value_id
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.export import export
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.model_versions import read_metadata
from clsd.pipeline.training.loop import TrainingLoop
from clsd.pipeline.training.popularity import item_scores
from clsd.pipeline.training.train import train
from clsd.pipeline.training.trained_model import load_trained

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def days(
    make_tiny: Make, small_log: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Config], list[Dataset], Path]:
    """Two days of the small log, of which the second has users and items that the first has not; and the first day's run."""
    root = tmp_path_factory.mktemp("days")
    lines = small_log.read_text().splitlines(keepends=True)
    later = [line.replace('"user_id":"u', '"user_id":"new').replace('"item_id":"i', '"item_id":"j') for line in lines]
    (root / "1.jsonl").write_text("".join(lines[:3000]))
    (root / "2.jsonl").write_text("".join(lines[3000:4500] + later[4500:]))
    rates = {1: 0.05, 2: 0.03}
    configs = [
        make_tiny(
            logs={"files": [str(root / f"{day}.jsonl")]},
            train={"epochs": 2, "embedding_optimizer": {"name": "adagrad", "learning_rate": rate}},
        )
        for day, rate in rates.items()
    ]
    first = preprocess(configs[0], root / "dataset-1")
    second = preprocess(configs[1], root / "dataset-2", base=first.directory)
    train(configs[0], first, root / "run-1")
    return configs, [first, second], root / "run-1"


def test_known_ids_keep_their_vectors_and_new_ones_begin_as_a_new_models(
    days: tuple[list[Config], list[Dataset], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, (first, second), run = days
    begun: list[Any] = []
    real = TrainingLoop._fit

    def go(self: Any, until: int | None) -> Any:
        begun.extend(v.numpy() for v in self._model.variables)
        assert float(self._model.table_optimizer.learning_rate) == pytest.approx(0.03)  # the second day's own
        return real(self, until)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_fit", go)
        made = train(configs[1], second, tmp_path / "run", base=run)
    _, model = load_trained(run, first)
    expand_checkpoint = 0
    for variable, now in zip(model.variables, begun, strict=True):
        then = variable.numpy()
        if variable.name.startswith(("step:", "moments:")):
            assert not np.any(now)
            continue
        np.testing.assert_array_equal(now[: len(then)] if then.ndim else now, then, err_msg=variable.name)
        expand_checkpoint += then.ndim > 0 and len(now) > len(then)
    assert expand_checkpoint >= 4  # user and item, of the student and of the teacher
    vocabulary_source = next(feature for feature in second.schema.vocabularies if feature.name == "user_id")
    tokens = second.transform.vocabularies["user_id"].tokens.to_pylist()
    known = len(first.transform.vocabularies["user_id"])
    assert tokens[:known] == first.transform.vocabularies["user_id"].tokens.to_pylist()
    assert any(token.startswith("new") for token in tokens[known:])
    assert second.transform.table_size("user_id") == first_value_id(vocabulary_source) + len(tokens)
    assert made["base"]["fingerprint"] == json.loads((run / "run.json").read_text())["fingerprint"]
    assert made["fingerprint"] != train(configs[1], second, tmp_path / "alone")["fingerprint"]
    assert export(second, tmp_path / "run", tmp_path / "models", version=1).name == "1"


def test_an_exported_model_is_as_good_a_start_as_its_run(
    days: tuple[list[Config], list[Dataset], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights to begin with, but for the optimizers' and the teacher's, which serving does not ask."""
    configs, (first, second), run = days
    models = tmp_path / "models"
    export(first, run, models, version=1)
    begun: list[list[Any]] = []

    def begin(self: Any, until: int | None) -> Any:
        # Dropout counts its calls, and serving has none.
        begun.append([v.numpy() for v in self._model.backbone.variables if "calls" not in v.name])
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "_fit", begin)
    for number, base in enumerate((run, models, models / "1")):
        with pytest.raises(KeyboardInterrupt):
            train(configs[1], second, tmp_path / str(number), base=base)
    assert len(begun[0]) > 6
    for other in begun[1:]:
        for mine, theirs in zip(begun[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_start_that_is_no_model_of_ours_is_refused(
    days: tuple[list[Config], list[Dataset], Path], tmp_path: Path
) -> None:
    configs, (first, second), run = days
    version = export(first, run, tmp_path / "models", version=1)
    file = version / "assets.extra" / "clsd.json"
    metadata = read_metadata(version, "")
    del metadata["variables"]
    write_json(file, metadata)
    with pytest.raises(UserError, match=r"clsd.json: variables: is missing"):
        train(configs[1], second, tmp_path / "run", base=version)
    file.unlink()
    with pytest.raises(UserError, match="is not a model that clsd exported"):
        train(configs[1], second, tmp_path / "run", base=version.parent)


def test_what_was_known_helps_from_the_first_step(
    days: tuple[list[Config], list[Dataset], Path], tmp_path: Path
) -> None:
    configs, (_, second), run = days
    one = configs[1].model_copy(update={"train": configs[1].train.model_copy(update={"epochs": 1})})
    losses = [
        train(one, second, tmp_path / name, base=base)["history"][0]["train"]["loss"]
        for name, base in (("next", run), ("alone", None))
    ]
    assert losses[0] < losses[1]


def test_a_run_that_goes_on_from_a_day_before_is_resumed_as_any(
    days: tuple[list[Config], list[Dataset], Path],
    same_weights: Callable[[Path, Path], bool],
    stopped: Callable[[int, Callable[[], Any]], None],
    tmp_path: Path,
) -> None:
    configs, (_, second), run = days
    stopped(2, lambda: train(configs[1], second, tmp_path / "run", base=run))
    train(configs[1], second, tmp_path / "run", base=run)
    train(configs[1], second, tmp_path / "whole", base=run)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_run_of_other_ids_or_of_another_model_is_refused(
    days: tuple[list[Config], list[Dataset], Path], make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    configs, (_, second), run = days
    with pytest.raises(UserError, match=r"was not trained on the data set that .* is based on; preprocess with --base"):
        train(make_tiny(), tiny_dataset, tmp_path / "run", base=run)
    other = configs[1].model_copy(update={"model": configs[1].model.model_copy(update={"embedding_dim": 8})})
    with pytest.raises(UserError, match="has another model; give both runs the same settings"):
        train(other, second, tmp_path / "run", base=run)
    with pytest.raises(UserError, match="is not a finished training run"):
        train(configs[1], second, tmp_path / "run", base=tmp_path)
    assert not (tmp_path / "run").exists()


def test_short_tables_grow_too(days: tuple[list[Config], list[Dataset], Path], tmp_path: Path) -> None:
    configs, datasets, _ = days
    short = [
        config.model_copy(update={"model": config.model.model_copy(update={"max_table_rows": 16})})
        for config in configs
    ]
    train(short[0], datasets[0], tmp_path / "run-1")
    made = train(short[1], datasets[1], tmp_path / "run-2", base=tmp_path / "run-1")
    assert np.isfinite(made["history"][-1]["validation"]["auc"])
    _, model = load_trained(tmp_path / "run-2", datasets[1])
    longest = {
        name: table.quotient.embeddings.shape[0]
        for name, table in model.backbone.embedding.tables.items()
        if "_id" in name
    }
    assert longest == {name: -(-datasets[1].transform.table_size(name) // 16) for name in longest}
    assert export(datasets[1], tmp_path / "run-2", tmp_path / "models", version=1).name == "1"


def test_a_table_that_grows_beyond_its_bound_keeps_its_vectors(
    days: tuple[list[Config], list[Dataset], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, datasets, _ = days
    most = datasets[0].transform.table_size("user_id")  # the first day's users fit, and the second's do not
    bound = [
        config.model_copy(update={"model": config.model.model_copy(update={"max_table_rows": most})})
        for config in configs
    ]
    train(bound[0], datasets[0], tmp_path / "run-1")
    begun: list[Any] = []

    def go(self: Any, until: int | None) -> Any:
        begun.append(self._model.backbone.embedding.tables["user_id"](np.arange(most)).numpy())
        raise InterruptedError

    monkeypatch.setattr(TrainingLoop, "_fit", go)
    with pytest.raises(InterruptedError):
        train(bound[1], datasets[1], tmp_path / "run-2", base=tmp_path / "run-1")
    _, model = load_trained(tmp_path / "run-1", datasets[0])
    np.testing.assert_array_equal(begun[0], model.backbone.embedding.tables["user_id"].embeddings.numpy())


def test_scores_of_items_are_those_that_the_own_data_set_counts(
    days: tuple[list[Config], list[Dataset], Path], make_tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, datasets, _ = days
    counting = [
        config.model_copy(
            update={
                "confidence": make_tiny(confidence={"preset": "two-level"}).confidence,
                "evaluate": make_tiny(evaluate={"item": "item_id"}).evaluate,
            }
        )
        for config in configs
    ]
    train(counting[0], datasets[0], tmp_path / "run-1")
    train(counting[1], datasets[1], tmp_path / "run-2", base=tmp_path / "run-1")
    _, model = load_trained(tmp_path / "run-2", datasets[1])
    result = item_scores(counting[1], datasets[1])
    assert result is not None
    np.testing.assert_array_equal(model._item_scores.numpy(), result[1])


def test_a_run_that_would_be_written_over_is_refused(days: tuple[list[Config], list[Dataset], Path]) -> None:
    configs, (_, second), run = days
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is the base run, and would be overwritten"):
            train(configs[1], second, run, base=run, overwrite=overwrite)
    assert (run / "run.json").exists()
