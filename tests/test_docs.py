"""The documentation is true of the code: its commands parse, its settings exist, its programs run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

import clsd
from clsd.features.tf_runtime import keras, tf
from clsd.models.settings import ModelSettings
from clsd.pipeline.cli import main
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.shared.dataset import Dataset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str) -> list[Any]:
    """The code blocks of a language on all pages, each named by its page and number."""
    found = []
    for page in PAGES:
        blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
        found += [pytest.param(block, id=f"{page.stem}-{number}") for number, block in enumerate(blocks, 1)]
    return found


def test_every_block_is_of_a_language_that_is_tested() -> None:
    for page in PAGES:
        languages = re.findall(r"^ *```(\S+)$", page.read_text(), re.MULTILINE)
        assert set(languages) <= {"console", "python", "yaml", "text", "csv", "mermaid"}, page.name


def test_the_settings_page_is_made_from_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "configuration.md").read_text() == module.render(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_exists(page: Path) -> None:
    for name in re.findall(
        r"`((?:features|models|pipeline|tests|docker|examples|benchmarks|configs)/[\w./-]+\.\w+)`", page.read_text()
    ):
        assert (ROOT / name).exists() or "target/" in name, name


def _commands(block: str) -> Iterator[list[str]]:
    """The calls of clsd and make in a console block."""
    for line in re.sub(r"\\\n\s*", " ", block).split("\n"):
        for part in re.split(r"\s+#|&&|\||;| do ", line):
            words = shlex.split(re.sub(r"^\s*\w+='[^']*'", "", part)) if part.count("'") % 2 == 0 else []
            if words and words[0] in ("clsd", "make"):
                yield words


@pytest.mark.parametrize("block", _blocks("console"))
def test_every_command_parses(block: str) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in _commands(block):
        if program == "make":
            assert set(words) <= set(targets), words
            continue
        if not words or words[0].startswith("-"):
            continue
        command = main.get_command(click.Context(main), words[0])
        assert command is not None, words
        arguments = [word for word in words[1 : words.index("--")] if word] if "--" in words else words[1:]
        command.make_parser(click.Context(command)).parse_args([a for a in arguments if a != "$@"])


#: What a block that shows a part of a config leaves out.
_REST: dict[str, Any] = {
    "name": "documented",
    "logs": {"files": ["log.jsonl"]},
    "rows": {
        "label": "click",
        "user": "user",
        "timestamp": "time",
        "features": [{"name": name, "kind": "categorical"} for name in ("user", "article", "item_id")],
    },
    "confidence": {"gate": "off"},
}


@pytest.mark.parametrize("block", _blocks("yaml"))
def test_every_setting_exists(block: str) -> None:
    settings = yaml.safe_load(block)
    rest = {key: value for key, value in _REST.items() if "name" not in settings or key not in ("rows", "confidence")}
    if "rows" in settings and "name" not in settings:
        settings["rows"] = {"user": "user", "timestamp": "time", **settings["rows"]}
    parse_config({**rest, **settings}, "the block")


def _nothing(*_: Any, **__: Any) -> None:
    pass


@pytest.mark.parametrize(
    "block",
    [
        block for block in _blocks("python") if not str(block.id).startswith(("serving", "backbones"))
    ],  # tested elsewhere
)
def test_every_program_runs(
    block: str, small_config: Config, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, over the small log in place of MovieLens; what it defines and does not call is called."""
    ids = tf.random.uniform([64], maxval=10, dtype=tf.int32)
    given = {
        "clsd": clsd,
        "make_network": lambda: keras.Sequential([keras.layers.Embedding(10, 4), keras.layers.Dense(1)]),
        "sample_inputs": ids,
        "data": tf.data.Dataset.from_tensors((ids, tf.cast(ids > 5, tf.float32))),
    }
    if "load_config" in block:
        train = small_config.train.model_copy(update={"epochs": 1})
        config = small_config.model_copy(update={"train": train})
        monkeypatch.setattr(clsd, "load_config", lambda *_: config, raising=False)
        monkeypatch.chdir(tmp_path)
    exec(block, given)
    if "whole_pipeline" in given:
        (answer,) = given["whole_pipeline"]("config.yaml", str(tmp_path / "run"))  # type: ignore[operator]
        assert set(answer) == {"score", "ctr", "confidence"}
    if "training_labels" in given:
        labels = given["training_labels"](str(small_dataset.directory))  # type: ignore[operator]
        assert set(np.unique(labels)) == {0, 1}


def test_the_documented_backbone_is_one(
    small_config: Config, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clsd.pipeline.training.trained_model import build_model

    source = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "backbones.md").read_text(), re.DOTALL)
    assert source is not None
    (tmp_path / "documented_models.py").write_text(source[1])
    monkeypatch.chdir(tmp_path)
    settings = ModelSettings(backbone="documented_models:TwoSums", embedding_dim=8, options={"hidden_units": [32]})
    model = build_model(small_config.model_copy(update={"model": settings}), small_dataset)
    rows = small_dataset.read("test").take(slice(0, 5))
    assert model.score(tf.constant(rows.ids), tf.constant(rows.values)).logit.shape == (5,)


def test_the_worked_example_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example, as it stands there, on a CSV of its columns that is long enough to learn from."""
    from click.testing import CliRunner

    text = (ROOT / "docs" / "your-logs.md").read_text()
    header, *lines = re.search(r"```csv\n(.*?)```", text, re.DOTALL).group(1).strip().split("\n")  # type: ignore[union-attr]
    config = re.search(r"```yaml\n(name: news.*?)```", text, re.DOTALL).group(1)  # type: ignore[union-attr]
    row = re.search(r"echo '(\{.*?\})'", text).group(1)  # type: ignore[union-attr]
    parse_config(yaml.safe_load(config), "your-logs.md")
    rng = np.random.default_rng(0)
    for i in range(1500):
        clicked = int(rng.random() < 0.2)
        seconds = f"{rng.random() * 60:.1f}" if clicked else ""
        ages, section = ("25-34", "45-54"), ("sports", "politics")
        lines.append(
            f"2026-05-01T{9 + i // 360:02}:{i // 6 % 60:02}:{i % 6 * 10:02}Z,u{rng.integers(40)},a{rng.integers(30):02},"
            f"{section[i % 2]},{ages[i % 3 == 0]},{rng.integers(200, 2000)},{seconds},{clicked}"
        )
    (tmp_path / "clicks.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "news.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["run", "--config", "news.yaml"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    answer = CliRunner().invoke(
        main, ["predict", "--model", "runs/news/export", "-"], input=row + "\n", catch_exceptions=False
    )
    assert set(json.loads(answer.stdout)) == {"score", "ctr", "confidence"}
