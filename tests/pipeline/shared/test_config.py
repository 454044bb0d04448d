from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clsd.features.errors import UserError
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config, load_config, parse_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def _write(tmp_path: Path, raw: Any) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_a_dumped_config_reads_back_equal(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(confidence={"preset": "paper"}, preprocess={"negatives": {"per_click": 2, "item": "item_id"}})
    assert load_config(_write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("path", "value", "where", "hint"),
    [
        (("train", "epoch"), 3, "train.epoch: unknown setting", "did you mean 'epochs'?"),
        (("trian",), {}, "trian: unknown setting", "did you mean 'train'?"),
        (("rows", "features", 0, "encodin"), "hash", "rows.features.0.encodin: unknown setting", "'encoding'"),
        (("train", "epochs"), "many", "train.epochs: ", "'many'"),
        (("train", "early_stopping"), {"metric": "auc", "mode": "min"}, "early_stopping", "max"),
        (("train", "early_stopping"), {"metric": "acu"}, "early_stopping", "did you mean 'auc'?"),
        (("rows", "groups"), ["age_bnd"], "'age_bnd' is not a categorical feature", "did you mean 'age_band'?"),
        (("rows", "timestamp"), "", "needs rows.timestamp", ""),
        (("export", "candidates"), ["item_id", "item_id"], "'item_id' is listed twice", "once"),
        (("export", "candidates"), ["item"], "export.candidates: 'item' is not an input of the model", "'item_id'"),
        (("rows", "groups"), [], "confidence.gate needs rows.groups", "gate: off"),
        (("preprocess", "split"), {"by": "hash"}, "needs key", ""),
        (("preprocess", "split"), {"validation": 0.6, "test": 0.5}, "nothing is left to train on", ""),
        (
            ("preprocess", "negatives"),
            {"per_click": 2, "item": "itm"},
            "'itm' is not a column",
            "did you mean 'item_id'?",
        ),
        (("confidence",), {"eps": 9.0}, "eps (9.0) must be below a_max", ""),
        (("confidence",), {"gate_units": [16, 0]}, "confidence.gate_units.1: ", "0"),
        (("confidence",), {"warmup_epochs": float("inf")}, "confidence.warmup_epochs: ", "finite"),
        (("confidence",), {"alpha": float("inf")}, "confidence.alpha: ", "finite"),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(
    settings: dict[str, Any], tmp_path: Path, path: tuple[Any, ...], value: Any, where: str, hint: str
) -> None:
    raw = copy.deepcopy(settings)
    at: Any = raw
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    with pytest.raises(UserError) as error:
        load_config(_write(tmp_path, raw))
    assert "c.yaml" in str(error.value)
    assert where in str(error.value)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(settings: dict[str, Any]) -> None:
    del settings["rows"]["features"]
    with pytest.raises(UserError, match=r"x: rows.features: is missing"):
        parse_config(settings, "x")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1\n", "is not YAML"), ("- 1\n", "is not a mapping"), ("a: b: c\n", ":1: is not YAML")]
)
def test_what_is_no_yaml_mapping_is_said_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(_write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")


def test_overrides_win_and_are_checked(settings: dict[str, Any], tmp_path: Path) -> None:
    path = _write(tmp_path, settings)
    assert load_config(path, ["train.epochs=9", "confidence.blend=.inf"]).train.epochs == 9
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        load_config(path, ["train.epoch=9"])
    with pytest.raises(UserError, match="has no '='"):
        load_config(path, ["train.epochs"])
    with pytest.raises(UserError, match="'seed' is not a group"):
        load_config(path, ["seed.x=1"])


def test_weights_by_intensity_need_an_intensity(make_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"source: intensity needs rows.intensity; name its column"):
        make_config(rows={"intensity": ""}, confidence={"source": "intensity"})


def test_an_instant_may_stand_without_quotes(tmp_path: Path) -> None:
    text = "name: a\nlogs: {files: [x.jsonl]}\nconfidence: {gate: off}\n"
    text += "rows: {label: c, timestamp: t, features: [{name: u, kind: categorical}]}\n"
    text += "preprocess: {split: {by: time, validation_from: 2026-05-01T08:00:02Z, test_from: 2026-05-02}}\n"
    (tmp_path / "c.yaml").write_text(text)
    split = load_config(tmp_path / "c.yaml").preprocess.split
    assert (split.validation_from, split.test_from) == ("2026-05-01T08:00:02+00:00", "2026-05-02")


def test_a_rate_alone_is_that_of_the_tables_own_optimizer(make_config: Callable[..., Config]) -> None:
    config = make_config(
        train={"embedding_optimizer": {"learning_rate": 0.1}, "dense_optimizer": {"learning_rate": 0.1}}
    )
    assert (config.train.embedding_optimizer.name, config.train.dense_optimizer.name) == ("adagrad", "adam")
