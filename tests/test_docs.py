"""The documentation holds what the code holds."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from clsd.features.tf_runtime import tf
from clsd.models.settings import ModelSettings
from clsd.pipeline.cli import main
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.shared.dataset import Dataset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_configuration_page_is_made_from_the_settings() -> None:
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
def test_every_command_named_exists(page: Path) -> None:
    for command in re.findall(r"clsd ([a-z]+) --", page.read_text()):
        assert command in main.commands


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


def test_the_readmes_own_example_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example, as it stands there, on a CSV of its columns that is long enough to learn from."""
    import numpy as np
    from click.testing import CliRunner

    text = (ROOT / "README.md").read_text()
    header, *lines = re.search(r"```csv\n(.*?)```", text, re.DOTALL).group(1).strip().split("\n")  # type: ignore[union-attr]
    config = re.search(r"```yaml\n(name: news.*?)```", text, re.DOTALL).group(1)  # type: ignore[union-attr]
    row = re.search(r"echo '(\{.*?\})'", text).group(1)  # type: ignore[union-attr]
    parse_config(yaml.safe_load(config), "README.md")
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
